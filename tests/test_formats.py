"""What an earlier commit wrote is still read, and predicts the same."""

import json
from pathlib import Path

import polars as pl
import pytest

from autoembed.architecture import Architecture
from autoembed.bundle import load_bundle
from autoembed.nn.model import cost_of
from autoembed.study.results.leaderboard import Leaderboard
from autoembed.study.run_dir import RunDir

V1 = Path(__file__).parent / "fixtures" / "v1"
TRIALS = sorted(json.loads((V1 / "scores.json").read_text())["scores"])


@pytest.mark.parametrize("trial", TRIALS)
def test_bundles_of_version_1_predict_the_same(trial):
    scores = json.loads((V1 / "scores.json").read_text())["scores"][trial]
    bundle = load_bundle(V1 / "bundles" / trial)
    assert bundle.predict(pl.read_parquet(V1 / "rows.parquet"), device="cpu").tolist() == pytest.approx(
        scores, abs=1e-6
    )


@pytest.mark.parametrize("trial", TRIALS)
def test_architectures_of_version_1_are_read_and_cost_the_same(trial, tmp_path):
    path = V1 / "run" / "trials" / trial / "architecture.json"
    architecture = Architecture.read(path)
    assert architecture.version == 2
    assert json.loads(path.read_text())["version"] == 1
    before = json.loads(path.read_text())["cost"]
    now = cost_of(architecture)
    assert (now.embedding_parameters, now.dense_parameters, now.bytes) == (
        before["embedding_parameters"],
        before["dense_parameters"],
        before["bytes"],
    )
    assert now.embedding_bytes == 4 * before["embedding_parameters"]
    architecture.write(tmp_path / "again.json")
    assert Architecture.read(tmp_path / "again.json") == architecture


def test_run_folders_of_version_1_are_read():
    run = RunDir.existing(V1 / "run")
    assert [trial.id for trial in run.trials()] == sorted(TRIALS, key=lambda one: one.rpartition("-")[0])
    board = Leaderboard.read(run)
    assert board is not None
    for trial in run.trials():
        bundle = load_bundle(V1 / "bundles" / trial.id)
        model = run.load_model(trial, bundle.schema) if trial.id == "uniform-1" else None
        assert trial.result.cost.embedding_bytes > 0
        assert model is None or model.state_dict().keys() == bundle.model.state_dict().keys()
