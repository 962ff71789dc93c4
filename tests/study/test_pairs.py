"""A study whose search chooses for pairs, from ranking to bundle."""

import numpy as np
import polars as pl
import pytest
from mlflow import MlflowClient

from autoembed.architecture import Architecture
from autoembed.bundle import load_bundle
from autoembed.data.planted import PlantedSpec, write_planted
from autoembed.errors import SpaceError
from autoembed.space import SearchSpace
from autoembed.study.engine.run import Request, run_study
from autoembed.study.trackers.mlflow.store import store

CHANGES = {
    "features": {"keep": 5, "pairs": {"top": 4, "min_count": 3}},
    "stages": [{"method": "optinter", "epochs": 2, "pair_dim": 2}],
    "baselines": ["all_memorize"],
    "backbone": {"name": "dnn", "hidden": [16], "dropout": 0.0},
    "train": {"epochs": 12, "patience": 12, "lr": 1.0e-2, "batch_size": 256},
    "budget": {"trials": 1},
}


def test_from_synergy_to_a_bundle_that_crosses_raw_rows(write_space, tmp_path, ray_here, cli):
    planted = {"rows": 8000, "seed": 0, "marginal": [5], "xor": [4], "low_rank": [], "noise": [10]}
    folder = write_planted(PlantedSpec.model_validate(planted), tmp_path / "data")
    data = {"path": str(folder / "table.parquet"), "split": {"by": "random", "valid": 0.2, "test": 0.2}}
    path = write_space("pairs", **CHANGES, data=data)
    run, board = run_study(Request(space=path, runs=tmp_path / "runs"))
    assert [row.done for row in board.rows] == [1, 1]
    # The planted XOR pair has the most synergy.
    assert run.read_json("dataset.json")["pairs"][0] == ["xor_0_a", "xor_0_b"]
    memorized = run.trials()[[trial.arm for trial in run.trials()].index("all_memorize")]
    assert [pair.choice for pair in memorized.result.architecture.built] == ["memorize"] * 4

    status, out, _ = cli("show", run.path, "--trial", "all_memorize", "--picture", tmp_path / "pairs.png")
    assert status == 0
    assert "4 pairs: 4 memorize" in out
    assert (tmp_path / "pairs.png").read_bytes().startswith(b"\x89PNG")

    bundle = tmp_path / "bundle"
    assert cli("export", run.path, bundle, "--trial", "all_memorize")[0] == 0
    loaded = load_bundle(bundle)
    assert loaded.schema.names[-4:] == tuple(pair.name for pair in memorized.result.architecture.built)
    raw = pl.read_parquet(folder / "table.parquet")
    scores = loaded.predict(raw)
    assert len(scores) == len(raw)
    labels = raw["label"].to_numpy()
    assert scores[labels == 1].mean() > scores[labels == 0].mean() + 0.03
    assert Architecture.read(bundle / "architecture.json").built

    client = MlflowClient(store(run.path.parent))
    (experiment,) = [e for e in client.search_experiments() if e.name == "pairs"]
    parent = [r for r in client.search_runs(experiment.experiment_id) if "mlflow.parentRunId" not in r.data.tags]
    names = {artifact.path for artifact in client.list_artifacts(parent[0].info.run_id)}
    assert {"pairs.png", "ranking.html", "ranking.parquet"} <= names


def test_a_space_without_candidates_is_refused_before_anything_runs(write_space):
    path = write_space("none", **{**CHANGES, "features": {"keep": 5}})
    with pytest.raises(SpaceError, match=r"optinter needs candidate pairs: set features\.pairs"):
        SearchSpace.read(path)
    with pytest.raises(SpaceError, match=r"features\.pairs\.top: must be at least 1 or all, but got 0"):
        SearchSpace.read(write_space("zero", **{**CHANGES, "features": {"pairs": {"top": 0}}}))


def test_pairs_of_lists_from_the_space_to_a_bundle(write_space, tmp_path, ray_here, cli):
    """The label says whether the item is in the history."""
    rng = np.random.default_rng(0)
    item = rng.integers(0, 8, 4000)
    lists = [rng.choice(8, rng.integers(0, 4), replace=False) for _ in item]
    inside = np.array([one in own for one, own in zip(item, lists, strict=True)])
    label = (rng.random(len(item)) < np.where(inside, 0.95, 0.05)).astype(int)
    columns = {"item": item.astype(str), "city": rng.choice(["a", "b"], len(item)), "label": label}
    table = pl.DataFrame(columns).with_columns(history=pl.Series([[f"h{n}" for n in own] for own in lists]))
    table.write_parquet(tmp_path / "t.parquet")
    pairs = {"top": 1, "min_count": 3, "lists": [["history", "item"]]}
    changes = {"features": {"pairs": pairs}, "baselines": ["all_memorize"]}
    data = {"path": str(tmp_path / "t.parquet"), "split": {"by": "random", "valid": 0.2, "test": 0.2}}
    stage = {"method": "optinter", "epochs": 4, "pair_dim": 4}
    path = write_space("lists", **{**CHANGES, **changes, "stages": [stage], "data": data, "tracking": "none"})
    run, _ = run_study(Request(space=path, runs=tmp_path / "runs"))
    by_arm = {trial.arm: trial.result.architecture for trial in run.trials()}
    assert [(pair.name, pair.choice) for pair in by_arm["all_memorize"].pairs] == [
        ("item*city", "memorize"),
        ("history*item", "naive"),
    ]
    assert by_arm["optinter"].pairs[1].choice == "factorize"
    status, out, _ = cli("show", run.path, "--trial", "optinter", "--picture", tmp_path / "pairs.png")
    assert status == 0
    assert "history" in out
    assert cli("export", run.path, tmp_path / "bundle", "--trial", "optinter")[0] == 0
    scores = load_bundle(tmp_path / "bundle").predict(table)
    assert scores[label == 1].mean() > scores[label == 0].mean() + 0.3
    status, _, err = cli("search", path, "--runs", tmp_path / "more", "--dry-run")
    assert (status, "unknown" in err) == (0, False)
