"""`autoembed rank --model` as a user runs it."""

import json
import shutil

import polars as pl


def test_the_fields_of_a_study_s_best_model(cli, finished, tmp_path):
    run, board = finished
    status, out, err = cli("rank", "--model", run.path, "--out", tmp_path / "new" / "f.parquet", "--top", "3")
    assert status == 0, err
    assert f"fields of {board.winner} in {run.name}, 1,600 valid rows" in out
    assert "more: --top" in out
    table = pl.read_parquet(tmp_path / "new" / "f.parquet")
    assert table.columns == ["field", "logloss_rise", "logloss_se", "auc_fall", "auc_se", "saliency"]
    assert set(table["field"]) <= set(run.read_json("dataset.json")["fields"])
    assert table["logloss_rise"].is_sorted(descending=True)
    assert not table["field"][0].startswith("noise")

    assert cli("rank", "--model", run.best)[0] == 0
    assert cli("export", run.path, tmp_path / "b", "--trial", "uniform")[0] == 0
    status, out, err = cli("rank", "--model", tmp_path / "b", "--runs", run.path.parent)
    assert status == 0, err
    assert "fields of uniform-" in out


def test_what_is_wrong_is_one_line(cli, finished, tmp_path):
    run, _ = finished
    other = shutil.copytree(run.best, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["provenance"]["fingerprint"] = "0"
    (other / "manifest.json").write_text(json.dumps(manifest))
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(run.space, unfinished)
    model = ("rank", "--model", run.path)
    for words, line in (
        (("rank",), "rank needs SOURCE, a table or a search-space file, or --model RUN"),
        (
            (*model, "--pairs", "3", "--html", tmp_path / "x.html"),
            "--model goes with --data, --top, --out, --runs and --json only, but got --pairs, --html",
        ),
        ((*model, "table.csv", "--score", "mi"), "only, but got source, --score"),
        ((*model, "--top", "0"), "--top must be at least 1, but got 0"),
        (("rank", "--model", tmp_path), "is neither a run folder nor a bundle"),
        (("rank", "--model", unfinished), "is not a bundle"),
        (("rank", "--model", other, "--runs", tmp_path), "is not a run folder"),
        (("rank", "--model", other, "--runs", run.path.parent), "is of other data than the study"),
    ):
        status, _, err = cli(*words)
        assert status == 2, words
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert line in err


def test_what_each_column_brings(cli, finished, tmp_path):
    run, board = finished
    status, out, err = cli("explain", run.path, "--out", tmp_path / "e.csv", "--top", "3")
    assert status == 0, err
    assert f"what each column brings to {board.winner}" in out
    assert "more: --top" in out
    table = pl.read_csv(tmp_path / "e.csv")
    ranking = pl.read_parquet(run.path / "ranking.parquet")
    assert sorted(table["field"]) == sorted(ranking["feature"])  # those that were dropped, too
    architecture = run.read_trial(board.winner).architecture
    kept = table.filter(pl.col("fate") == "kept")
    assert set(kept["field"]) == set(architecture.names)
    assert kept["logloss_rise"].null_count() == 0
    assert table.filter(pl.col("fate") != "kept")["bytes"].null_count() == len(table) - len(kept)
    assert abs(kept["share"].sum() - 1) < 1e-9
    # Bytes of single fields round up on their own, and tables of one width round up together.
    assert kept["bytes"].sum() >= architecture.cost.embedding_bytes * 0.99
    assert cli("explain", run.path, "--out", tmp_path / "e.txt")[0] == 2
    assert cli("explain", run.path, "--trial", "nobody")[0] == 2
