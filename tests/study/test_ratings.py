"""A study of ratings from end to end: arms by RMSE, what columns bring, the page, seeds, and its champion."""

import json
import re

import polars as pl
import pytest
import yaml
from mlflow import MlflowClient

from autoembed.study.results.leaderboard import Leaderboard
from autoembed.study.run_dir import RunDir
from autoembed.study.trackers.mlflow.mirror import CHAMPION
from tests.test_refresh_ratings import logs

SPACE = {
    "data": {"task": "ratings", "label": "stars", "time": "at", "min_count": 2},
    "embedding": {"dim": 4, "blocks": 2},
    "stages": [{"method": "dnis", "warm_epochs": 1, "epochs": 1, "precisions": [32], "guard": "measured"}],
    "baselines": ["uniform"],
    "backbone": {"name": "deepfm", "hidden": [8]},
    "train": {"epochs": 5, "lr": {"log": [5.0e-3, 2.0e-2]}, "batch_size": 256},
    "budget": {"trials": 2, "width": 3},
}


def log(day, **options):
    return logs(day, **options).with_row_index("at", offset=10_000 * day)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for day in range(2):
        log(day).write_parquet(f"{day}.parquet")
    (tmp_path / "stars.yaml").write_text(yaml.safe_dump(SPACE))
    return tmp_path


def test_a_study_of_ratings_from_end_to_end(place, ray_here, cli):
    status, out, err = cli("search", "stars.yaml", "--data", "0.parquet")
    assert status == 0, err
    assert "stars: the best trial of each arm by valid RMSE" in out
    run = RunDir(place / "runs" / "stars")
    board = Leaderboard.read(run)
    best = [json.loads((path / "result.json").read_text())["valid"]["rmse"] for path in run.path.glob("trials/*-*")]
    assert len(best) == 4
    won = next(row for row in board.rows if row.trial == board.winner)
    assert won.valid.rmse == pytest.approx(min(best))
    assert won.test.rmse < 0.6  # the noise has an sd of 0.5, and the labels one of 1.1
    status, out, err = cli("explain", run.path)
    assert status == 0, err
    assert re.search(r"MSE rise .*RMSE rise .*MAE rise", out)
    status, out, err = cli("retrain", run.path, "--trial", "all", "--seeds", "2")
    assert status == 0, err
    assert "test RMSE" in out
    status, out, err = cli("report", run.path, "--explain")
    assert status == 0, err
    page = (run.path / "report.html").read_text()
    assert "best by valid RMSE" in page
    assert "MSE rise without it" in page
    assert "AUC" not in re.sub(r"<(script|style)[\s\S]*?</\1>", "", page)
    follows(cli, run)


def follows(cli, run):
    """The champion moves to a refreshed model, and not to one that a log of nonsense has made worse."""
    known = run.read_json("mlflow.json")
    client = MlflowClient(known["tracking_uri"])
    status, out, err = cli("refresh", run.best, "--data", "1.parquet", "--out", "day-1")
    assert status == 0, err
    told = re.search(r"before: RMSE ([\d.]+), MAE [\d.]+; after: RMSE ([\d.]+)", out)
    assert float(told[2]) < 0.8 * float(told[1])
    assert "is the champion now" in out
    holder = client.get_model_version_by_alias("stars", CHAMPION)
    runs = client.get_run(holder.run_id).data.metrics
    assert runs["tail/rmse_after"] < runs["tail/rmse_before"]
    turned = pl.when(pl.col("at") < 14_500).then(6 - pl.col("stars")).otherwise(pl.col("stars"))
    log(1).with_columns(stars=turned).write_parquet("bad.parquet")
    words = ("--vocabulary", "rebuild", "--epochs", "4")
    status, out, err = cli("refresh", "day-1", "--data", "bad.parquet", "--out", "bad", *words)
    assert status == 0, err
    assert "is worse on the tail: the champion stays" in out
    assert client.get_model_version_by_alias("stars", CHAMPION).version == holder.version
