"""A study of several classes from end to end: arms by cross-entropy, what columns bring, the page, seeds, a bundle."""

import json
import re

import mlflow
import polars as pl
import pytest
import yaml
from mlflow import MlflowClient

from autoembed.study.results.leaderboard import Leaderboard
from autoembed.study.run_dir import RunDir
from tests.actions import ACTIONS, SPLIT, table

SPACE = {
    "data": {"task": "multiclass", "label": "action", "min_count": 1, "split": SPLIT | {"stratify": True}},
    "features": {"pairs": {"top": 2}},
    "embedding": {"dim": 4, "blocks": 2},
    "stages": [{"method": "dnis", "warm_epochs": 1, "epochs": 1, "precisions": [32], "guard": "measured"}],
    "baselines": ["uniform"],
    "backbone": {"name": "dcn", "hidden": [8], "layers": 1},
    "train": {"epochs": 3, "lr": {"log": [5.0e-3, 2.0e-2]}, "batch_size": 256},
    "budget": {"trials": 2, "width": 3},
}


@pytest.mark.slow
def test_a_study_of_classes_from_end_to_end(tmp_path, monkeypatch, ray_here, cli):
    monkeypatch.chdir(tmp_path)
    table(5000, 0).drop("p0", "p1", "p2", "p3").write_parquet("log.parquet")
    (tmp_path / "actions.yaml").write_text(yaml.safe_dump(SPACE))
    status, out, err = cli("search", "actions.yaml", "--data", "log.parquet")
    assert status == 0, err
    assert "actions: the best trial of each arm by valid cross-entropy" in out
    run = RunDir(tmp_path / "runs" / "actions")
    board = Leaderboard.read(run)
    best = [json.loads(path.read_text())["valid"]["cross_entropy"] for path in run.path.glob("trials/*-*/result.json")]
    won = next(row for row in board.rows if row.trial == board.winner)
    assert won.valid.cross_entropy == pytest.approx(min(best))
    assert 0.9 < won.test.cross_entropy < 1.25
    assert 0 < won.test_error < 0.1
    assert {"test_accuracy", "test_macro_auc"} <= set(board.table.columns)
    known = run.read_json("mlflow.json")
    client = MlflowClient(known["tracking_uri"])
    assert client.get_run(known["parent"]).data.metrics["test_cross_entropy"] == pytest.approx(won.test.cross_entropy)
    mlflow.set_tracking_uri(known["tracking_uri"])
    model = client.search_model_versions("name = 'actions'")[0]
    signature = mlflow.models.get_model_info(f"models:/actions/{model.version}").signature
    assert signature.outputs.input_names() == [f"prediction_{name}" for name in ACTIONS]
    status, out, err = cli("explain", run.path)
    assert status == 0, err
    assert re.search(r"cross-entropy rise .*accuracy fall .*macro AUC fall", out)
    status, out, err = cli("retrain", run.path, "--trial", "all", "--seeds", "2")
    assert status == 0, err
    assert "test cross-entropy" in out
    status, out, err = cli("report", run.path, "--explain")
    assert status == 0, err
    page = (run.path / "report.html").read_text()
    assert "best by valid cross-entropy" in page
    assert "cross-entropy rise without it" in page
    status, out, err = cli("show", run.best)
    assert status == 0, err
    table(300, 1).drop("p0", "p1", "p2", "p3").write_parquet("new.parquet")
    status, out, err = cli("predict", run.best, "new.parquet", "--out", "scores.csv", "--keep", "action")
    assert status == 0, err
    assert "on its 300 labelled rows cross-entropy" in out
    assert pl.read_csv("scores.csv").columns == ["action", *(f"prediction_{name}" for name in ACTIONS)]
    status, out, err = cli("resize", run.path, "sizes", "--width", "1")
    assert status == 0, err
