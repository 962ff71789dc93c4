"""docs/production.md, run as it stands: a search, then a refresh each day, with MLflow beside it."""

import re

import polars as pl
import pytest
from mlflow import MlflowClient

from autoembed.bundle import load_bundle
from autoembed.study.run_dir import RunDir
from autoembed.study.trackers.mlflow.mirror import CHAMPION, REFRESH
from tests.pages import blocks, commands
from tests.test_refresh import logs


def champion(client):
    return client.get_model_version_by_alias("clicks", CHAMPION)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the logs and the space of the page."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    for day in range(4):
        rows = logs(day, 5000).with_row_index("at", offset=10_000 * day)
        rows.write_parquet(tmp_path / "logs" / f"day-{day}.parquet")
    (space,) = blocks("production.md", "yaml")
    (tmp_path / "clicks.yaml").write_text(space)
    return tmp_path


def test_the_page_runs_as_it_stands(place, ray_here, cli):
    given = commands("production.md")
    assert len(given) == 5
    outs = []
    for words in given:
        status, out, err = cli(*words)
        assert status == 0, err
        outs.append(out + err)
    assert "warning: MLflow" not in outs[0], outs[0]
    for out in outs[1:3]:
        assert re.search(r"on the tail of the log before: AUC 0\.\d+, .*; after: AUC 0\.\d+", out)
        assert "MLflow has the run refresh" in out
    assert load_bundle("serving/day-2").manifest.provenance["run"] == str(place / "runs" / "clicks")
    assert pl.read_parquet("scores.parquet").height == 5000
    run = RunDir(place / "runs" / "clicks")
    known = run.read_json("mlflow.json")
    client = MlflowClient(known["tracking_uri"])
    runs = [one for one in client.search_runs([known["experiment"]]) if REFRESH in one.data.tags]
    assert {one.data.tags["mlflow.parentRunId"] for one in runs} == {known["parent"]}
    assert {one.info.status for one in runs} == {"FINISHED"}
    assert all(
        {"tail/auc_before", "tail/auc_after", "drift/largest_unknown"} <= one.data.metrics.keys() for one in runs
    )
    better = [one for one in runs if one.data.metrics["tail/auc_after"] >= one.data.metrics["tail/auc_before"]]
    holder = champion(client)
    assert better
    assert holder.run_id == max(better, key=lambda one: one.info.start_time).info.run_id
    status, _, err = cli("sync", run.path)  # which knows the study's own best bundle alone
    assert status == 0, err
    assert champion(client).version == holder.version
    worse(place, cli, client, holder.version)


def worse(place, cli, client, version):
    """A log that teaches nonsense moves no alias."""
    nonsense = logs(3, 5000).with_row_index("at", offset=40_000)
    turned = pl.when(pl.col("at") < 44_500).then(1 - pl.col("label")).otherwise(pl.col("label"))
    nonsense.with_columns(label=turned).write_parquet(place / "bad.parquet")
    words = ("--data", "bad.parquet", "--out", "serving/bad", "--epochs", "3")
    status, out, err = cli("refresh", "serving/day-2", *words, "--vocabulary", "rebuild")
    assert status == 0, err
    assert "though it is worse on the tail" in out
    assert "is worse on the tail: the champion stays" in out
    assert champion(client).version == version
    status, out, _ = cli("refresh", "serving/day-2", *words[:2], *words[4:])
    assert status == 0
    assert "the new model is worse: serving/day-2 stays as it is" in out


def test_a_study_that_is_not_in_mlflow_is_told_and_the_bundle_is_written(place, finished, cli, tmp_path):
    run, _ = finished
    rows = load_bundle(run.best).example()
    frame = pl.concat([rows] * 300).with_columns(label=pl.Series([0, 1, 1] * 100))
    frame.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "study.json").write_text('{"id": "x"}')
    (tmp_path / "other" / "space.yaml").write_text(run.space.read_text())
    options = ("--set", "split={by: random, valid: 0.2, test: 0.2}", "--study", tmp_path / "other")
    status, out, err = cli("refresh", run.best, "--data", tmp_path / "log.parquet", "--out", tmp_path / "new", *options)
    assert status == 0, err
    assert "warning: MLflow has no run of this refresh" in err
    assert "bundle written to" in out
    status, _, err = cli("refresh", run.best, "--data", tmp_path / "log.parquet", "--study", tmp_path)
    assert (status, "is not the folder of a study" in err) == (2, True)
    frame.drop(frame.columns[0]).write_parquet(tmp_path / "less.parquet")
    status, _, err = cli("refresh", run.best, "--data", tmp_path / "less.parquet")
    assert (status, "the log lacks columns that the model takes" in err) == (2, True)
