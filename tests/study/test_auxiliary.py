"""A study of several labels from end to end: each label's metrics in the leaderboard, MLflow, seeds and the page."""

import json

import mlflow
import polars as pl
import pytest
import yaml
from mlflow import MlflowClient

from autoembed.bundle import load_bundle
from autoembed.study.results.leaderboard import Leaderboard
from autoembed.study.run_dir import RunDir
from autoembed.study.trackers.mlflow.mirror import _allowed
from tests.purchases import gaps, table

SPACE = {
    "data": {
        "label": "bought",
        "auxiliary_labels": ["click"],
        "drop": ["w", "known"],
        "split": {"by": "random", "valid": 0.2, "test": 0.2, "stratify": True},
    },
    "embedding": {"dim": 4, "blocks": 2},
    "stages": [{"method": "sensitivity", "warm_epochs": 1, "guard": "none", "retrain": "fresh"}],
    "baselines": ["uniform"],
    "backbone": {"name": "dnn", "hidden": [8]},
    "train": {"epochs": 2, "lr": 0.01, "batch_size": 512, "auxiliary_weights": {"click": {"choice": [0.5]}}},
    "budget": {"trials": 1, "width": 3},
}
LABELS = ("valid_auc.click", "valid_logloss.click", "test_auc.click", "test_logloss.click")


def test_a_study_tells_each_labels_metrics(tmp_path, monkeypatch, ray_here, cli):
    monkeypatch.chdir(tmp_path)
    gaps(table(6000, 0)).write_parquet("log.parquet")
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(SPACE))
    status, out, err = cli("search", "two.yaml", "--data", "log.parquet")
    assert status == 0, err
    assert "Auxiliary labels" in out
    assert "valid AUC of click" in out
    run = RunDir(tmp_path / "runs" / "two")
    board = Leaderboard.read(run)
    assert set(LABELS) <= set(board.table.columns)
    (won,) = [row for row in board.rows if row.trial == board.winner]
    result = json.loads((run.trial(board.winner) / "result.json").read_text())
    assert result["auxiliary"]["click"]["auc"] == won.further["valid_auc.click"]
    bundle = load_bundle(run.best)
    assert bundle.manifest.metrics["valid.click"] == result["auxiliary"]["click"]
    known = run.read_json("mlflow.json")
    client = MlflowClient(known["tracking_uri"])
    logged = client.get_run(known["parent"]).data.metrics
    assert {name: logged[name] for name in LABELS} == pytest.approx(won.further)
    model = client.search_model_versions("name = 'two'")[0]
    mlflow.set_tracking_uri(known["tracking_uri"])
    signature = mlflow.models.get_model_info(f"models:/two/{model.version}").signature
    assert signature.outputs.input_names() == ["prediction", "prediction_click"]
    status, out, err = cli("retrain", run.path, "--trial", "all", "--seeds", "2")
    assert status == 0, err
    assert "test AUC of click" in out
    arms = run.read_json("arms.json")["arms"]
    assert set(LABELS) <= set(arms["uniform"]["mean"])
    assert "seeds/test_auc.click_mean" in client.get_run(known["parent"]).data.metrics
    status, out, err = cli("retrain", run.path, "--seeds", "1")
    assert status == 0, err
    assert set(LABELS) <= set(json.loads((run.path / "retrain.json").read_text())["seeds"][0])
    status, out, err = cli("report", run.path)
    assert status == 0, err
    assert "Auxiliary labels" in (run.path / "report.html").read_text()
    status, out, err = cli("show", run.best)
    assert status == 0, err
    assert "valid.click (auc" in out
    gaps(table(500, 5)).write_parquet("new.parquet")
    status, out, err = cli("predict", run.best, "new.parquet", "--out", "scores.parquet")
    assert status == 0, err
    assert pl.read_parquet("scores.parquet").columns == ["prediction", "prediction_click"]


def test_names_that_mlflow_takes_in_no_metric_are_changed():
    assert _allowed("test_auc.is_like") == "test_auc.is_like"
    assert _allowed("test_auc.bought? [7/d]") == "test_auc.bought_ _7_d_"
