"""A study that finds clusters, from search to served rows."""

import mlflow
import numpy as np
import polars as pl
import pytest
import torch
from mlflow import MlflowClient

from autoembed.bundle import load_bundle
from autoembed.data.planted import PlantedSpec, write_planted
from autoembed.space import SearchSpace
from autoembed.study.engine.run import Request, prepare, run_study
from autoembed.study.show.page import block_matrix
from autoembed.study.trackers.mlflow.store import store
from autoembed.training import predict

CHANGES = {
    "stages": [{"method": "ihas", "epochs": 2, "clusters": {"choice": [2, 3]}, "calibrate": True}],
    "baselines": ["ensemble"],
    "budget": {"trials": 2, "width": 2},
    "train": {"epochs": 2, "lr": 3.0e-3, "batch_size": 256},
}


@pytest.mark.slow
def test_routed_rows_score_alike_everywhere(write_space, tmp_path, ray_here, cli):
    planted = {"rows": 8000, "marginal": [5], "xor": [], "low_rank": [], "noise": [10], "populations": True}
    folder = write_planted(PlantedSpec.model_validate(planted), tmp_path / "data")
    data = {"path": str(folder / "table.parquet"), "split": {"by": "random", "valid": 0.2, "test": 0.2}}
    path = write_space("clusters", **CHANGES, data=data)
    run, board = run_study(Request(space=path, runs=tmp_path / "runs"))
    assert [row.failed for row in board.rows] == [0, 0]
    trial = run.read_trial(board.rows[0].trial)
    assert trial.result.architecture.router.kind == "table"

    status, out, _ = cli("show", run.path, "--trial", trial.id)
    assert status == 0
    assert f"{len(trial.result.architecture.clusters)} clusters: mean dims kept" in out
    assert "a row's cluster is found by table from" in out
    assert "an ensemble of 2 such models" in cli("show", run.path, "--trial", board.rows[1].trial)[1]

    status, out, err = cli("retrain", run.path, "--trial", trial.id, "--seeds", "1")
    assert (status, "test" in out) == (0, True), err

    assert cli("export", run.path, tmp_path / "bundle", "--trial", trial.id)[0] == 0
    raw = pl.read_parquet(folder / "table.parquet")
    bundle = load_bundle(tmp_path / "bundle")
    scores = bundle.predict(raw)
    dataset = prepare(run, SearchSpace.read(run.space), None)
    model = run.load_model(trial, dataset.schema)
    own = np.concatenate([predict(model, dataset, split, torch.device("cpu")) for split in ("train", "valid", "test")])
    assert np.allclose(np.sort(own), np.sort(scores), atol=1e-6)

    client = MlflowClient(store(run.path.parent))
    (experiment,) = [e for e in client.search_experiments() if e.name == "clusters"]
    runs = {one.data.tags.get("trial"): one.info.run_id for one in client.search_runs(experiment.experiment_id)}
    ended = client.get_metric_history(runs[trial.id], "search/clusters")
    epochs = client.get_metric_history(runs[trial.id], "search/valid_auc")
    assert [point.step for point in ended] == [max(point.step for point in epochs)]  # of the search's last epoch
    assert client.get_run(runs[trial.id]).data.tags["phase"] == "retrain"
    for row in board.rows:
        assert "dims.png" in {file.path for file in client.list_artifacts(runs[row.trial])}
        found = run.read_trial(row.trial).result.architecture
        alike = row.arm == "ensemble"
        panels = block_matrix(found, "dims").axes[:-1]  # the last one is the colour bar
        titles = ["each of 2 members"] if alike else [f"cluster {n + 1}" for n in range(len(found.clusters))]
        assert [panel.get_title() for panel in panels] == titles
        assert [label.get_text() for label in panels[0].get_yticklabels()] == list(found.names)
        for panel, cluster in zip(panels, found.clusters, strict=not alike):
            dims = sum(len(block.dims) for field in cluster.fields for block in field.blocks)
            assert sum(int(text.get_text()) for text in panel.texts) == dims
    mlflow.set_tracking_uri(store(run.path.parent))
    (logged,) = client.search_logged_models([experiment.experiment_id])
    served = mlflow.pyfunc.load_model(logged.model_uri).predict(raw.head(50).to_pandas())
    winner = run.load_model(run.read_trial(board.winner), dataset.schema)
    assert len(served) == 50
    assert sum(p.numel() for p in winner.parameters()) == run.read_trial(board.winner).result.cost.parameters
