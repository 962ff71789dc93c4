"""A study of clicks that are ranked within groups, from end to end."""

import json

import polars as pl
import yaml
from mlflow import MlflowClient

from autoembed.bundle import load_bundle
from autoembed.study.results.leaderboard import Leaderboard
from autoembed.study.run_dir import RunDir
from autoembed.task import RANKINGS
from tests.sessions import table

SPACE = {
    "data": {
        "task": "ranking",
        "group": "session",
        "drop": ["session", "w"],
        "split": {"by": "group", "column": "session", "valid": 0.2, "test": 0.2},
    },
    "embedding": {"dim": 4, "blocks": 2},
    "stages": [{"method": "sensitivity", "warm_epochs": 3, "guard": "none", "retrain": "fresh"}],
    "baselines": ["uniform"],
    "backbone": {"name": "dnn", "hidden": [8]},
    "train": {"epochs": 3, "lr": 0.01, "batch_size": 256, "pairwise_weight": {"choice": [1.0]}},
    "budget": {"trials": 1, "width": 3},
}


def test_a_study_optimises_the_order_within_groups(tmp_path, monkeypatch, ray_here, cli):
    monkeypatch.chdir(tmp_path)
    table(10_000, 0).write_parquet("log.parquet")
    (tmp_path / "ranked.yaml").write_text(yaml.safe_dump(SPACE))
    status, out, err = cli("search", "ranked.yaml", "--data", "log.parquet")
    assert status == 0, err
    assert "by valid NDCG@10" in out
    run = RunDir(tmp_path / "runs" / "ranked")
    board = Leaderboard.read(run)
    assert board.predicts is RANKINGS
    assert all((row.done, row.pruned, row.failed) == (1, 0, 0) for row in board.rows)  # none is taken for hopeless
    (won,) = [row for row in board.rows if row.trial == board.winner]
    assert won.test.gauc > 0.5 > won.test.auc
    assert 0 < won.test_error < 0.03
    known = run.read_json("mlflow.json")
    client = MlflowClient(known["tracking_uri"])
    logged = client.get_run(known["parent"]).data.metrics
    assert logged["valid_ndcg_10"] == won.valid.ndcg_10
    assert logged["test_gauc"] == won.test.gauc
    bundle = load_bundle(run.best)
    assert bundle.schema.task is RANKINGS
    assert "Scores are no probabilities" in (run.best / "README.md").read_text()
    status, out, err = cli("retrain", run.path, "--trial", "all", "--seeds", "2")
    assert status == 0, err
    assert run.read_json("arms.json")["metric"] == "test_ndcg_10"
    status, out, err = cli("report", run.path, "--explain")
    assert status == 0, err
    assert "its test GAUC is" in (run.path / "report.html").read_text()
    status, out, err = cli("predict", run.best, "log.parquet", "--out", "scores.parquet")
    assert status == 0, err
    assert "AUC within session" in out + err
    assert pl.read_parquet("scores.parquet").columns == ["prediction"]
    assert json.loads((run.best / "schema.json").read_text())["ranking"] is True
