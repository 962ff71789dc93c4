import json
import re

import polars as pl
import pytest
from mlflow import MlflowClient

from autoembed import __version__


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "clicks.csv"
    rows = [f"{'ab'[n % 2]},{n % 7},{int(n % 2 == 0 or n % 7 == 3)}" for n in range(400)]
    path.write_text("site,slot,clicked\n" + "\n".join(rows) + "\n")
    return path


def test_version_and_help(cli):
    assert cli("--version")[:2] == (0, f"autoembed {__version__}\n")
    status, out, _ = cli("--help")
    assert status == 0
    for command in ("search", "rank", "retrain", "export", "predict", "show", "sync", "ui"):
        assert command in out


def test_rank_a_bare_table(cli, table, tmp_path):
    status, out, _ = cli(
        "rank", table, "--label", "clicked", "--runs", tmp_path / "runs", "--out", tmp_path / "r.parquet"
    )
    assert status == 0
    assert out.index("site") < out.index("slot")
    assert pl.read_parquet(tmp_path / "r.parquet")["feature"].to_list() == ["site", "slot"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["rank", "{table}"], "no label column 'label'.*site, slot, clicked"),
        (["rank", "{tmp}/none.csv", "--label", "y"], "none.csv"),
        (["rank", "{table}", "--label", "clicked", "--top", "0"], "--top must be at least 1, but got 0"),
        (["search", "{tmp}/none.yaml"], "cannot read the search space"),
        (["show", "{tmp}/none"], "does not exist"),
        (["show", "{tmp}"], "is not a run folder"),
        (["export", "{tmp}/none", "{tmp}/out"], "is not a run folder"),
        (["retrain", "{tmp}/none"], "is not a run folder"),
        (["sync", "{tmp}/none"], "is not a run folder"),
        (["predict", "{tmp}/none", "{table}"], "is not a bundle"),
        (["predict", "{tmp}/none", "{table}", "--out", "x.json"], "--out must end in .parquet or .csv"),
        (["ui", "--runs", "{tmp}/none"], "nothing to show"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_and_status_2(cli, table, tmp_path, words, line):
    import re

    status, _, err = cli(*(word.format(table=table, tmp=tmp_path) for word in words), *_runs(words, tmp_path))
    assert status == 2
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1
    assert re.search(line, err), err


def _runs(words, tmp_path):
    return ["--runs", tmp_path / "runs"] if words[0] == "rank" else []


def test_usage_errors_have_status_2(cli):
    assert cli("search")[0] == 2
    assert cli("serch")[0] == 2


def test_show_export_predict_and_retrain_on_a_finished_study(cli, copied, tmp_path):
    run, board = copied
    status, out, _ = cli("show", run.path)
    assert status == 0
    for words in ("dnis", "uniform", "noise", "share of", board.winner, "autoembed ui"):
        assert words in out
    assert cli("show", run.best)[0] == 0
    assert cli("show", run.trial(board.winner) / "architecture.json")[0] == 0
    assert "uniform-" in cli("show", run.path, "--trial", "uniform")[1]
    assert cli("export", run.path, tmp_path / "b", "--trial", "uniform")[0] == 0

    from autoembed.bundle import load_bundle
    from autoembed.data.planted import planted
    from autoembed.space import SearchSpace

    rows, _ = planted(SearchSpace.read(run.space).data.planted)
    rows.write_parquet(tmp_path / "raw.parquet")
    out_file = tmp_path / "p.csv"
    status, out, _ = cli("predict", tmp_path / "b", tmp_path / "raw.parquet", "--out", out_file, "--keep", "label")
    assert status == 0
    assert f"{len(rows):,} predictions" in out
    assert "AUC 0." in out
    written = pl.read_csv(out_file)
    assert written.columns == ["label", "prediction"]
    assert written["prediction"].to_numpy() == pytest.approx(load_bundle(tmp_path / "b").predict(rows), abs=1e-6)

    assert cli("predict", run.best, tmp_path / "raw.parquet", "--out", tmp_path / "q.parquet")[0] == 0
    assert pl.read_parquet(tmp_path / "q.parquet").shape == (len(rows), 1)

    status, out, _ = cli("retrain", run.path, "--seeds", "2")
    assert status == 0
    assert "sd" in out
    assert (run.path / "retrain.json").is_file()
    sizes = ("--width", "1", "--width", "3", "--bytes", "20000")
    status, out, _ = cli("resize", run.path, tmp_path / "sizes", "--trial", "dnis", *sizes)
    assert (status, "one search within 3 limits" in out) == (0, True)
    costs = [load_bundle(tmp_path / "sizes" / name).architecture.cost for name in ("width-1", "width-3", "20000-bytes")]
    assert costs[0].parameters < costs[1].parameters
    assert costs[2].bytes <= 20_000
    status, out, _ = cli("resize", run.path, tmp_path / "on", "--trial", "dnis", "--width", "2", "--epochs", "1")
    assert (status, "one search within 1 limit" in out) == (0, True)
    for wrong, told in (((), "at least one --width or --bytes"), (("--width", "-1"), "width: .* greater than 0")):
        status, _, err = cli("resize", run.path, tmp_path / "none", *wrong)
        assert status == 2
        assert re.search(told, err), err

    status, out, _ = cli("retrain", run.path, "--trial", "all", "--seeds", "2")
    assert status == 0
    assert "ahead by" in out
    arms = json.loads((run.path / "arms.json").read_text())
    assert set(arms["arms"]) == {"dnis", "uniform"}
    (other,) = arms["paired"]
    first, second = (arms["arms"][arm]["seeds"] for arm in (arms["leader"], other))
    gaps = [a["test_auc"] - b["test_auc"] for a, b in zip(first, second, strict=True)]
    assert arms["paired"][other]["mean"] == pytest.approx(sum(gaps) / 2)
    assert 0 <= arms["paired"][other]["p"] <= 1
    known = run.read_json("mlflow.json")
    mirrored = MlflowClient(known["tracking_uri"]).get_run(known["parent"]).data.metrics
    assert mirrored["seeds/test_auc_mean"] == pytest.approx(arms["arms"][arms["leader"]]["mean"]["test_auc"])
    status, _, err = cli("retrain", run.path, "--trial", "all", "--seeds", "1")
    assert (status, "--seeds must be at least 2" in err) == (2, True)
    status, _, err = cli("retrain", run.path, "--trial", "dnis-99")
    assert status == 2
    assert "unknown trial 'dnis-99'" in err
