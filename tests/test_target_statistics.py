"""Click rates of values from a trial to its bundle, on other tables, and among ranked pairs."""

import numpy as np
import polars as pl
import pytest

from autoembed.bundle import load_bundle, write_bundle
from autoembed.data.dataset import build_dataset
from autoembed.data.spec import DataSpec
from autoembed.errors import SpaceError
from autoembed.ranking.ranking import rank
from autoembed.refreshing import refresh
from autoembed.reuse import train_architecture
from autoembed.trial import check, run_trial

SPEC = {"split": {"by": "random", "valid": 0.2, "test": 0.2}, "min_count": 1}
RATES = {"columns": ["user"], "replace": ["user"], "bins": 8}


def table_of(seed, rows=3000):
    """600 users whose effects are all that matters; other draws of rows for each seed."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, 600, rows)
    logit = 2.0 * np.random.default_rng(9).normal(size=600)[user]
    return pl.DataFrame(
        {
            "user": [f"u{n}" for n in user],
            "item": [f"i{n}" for n in rng.integers(0, 5, rows)],
            "label": (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int),
        }
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The bundle of a trial that reads users by their click rates alone, and its folder."""
    folder = tmp_path_factory.mktemp("rates")
    for seed in range(2):
        table_of(seed).write_parquet(folder / f"t{seed}.parquet")
    spec = DataSpec.model_validate({**SPEC, "target_statistics": RATES})
    dataset = build_dataset(spec, folder / "t0.parquet", folder / "cache")
    node = {"arm": "uniform", "stages": [{"method": "uniform"}], "embedding": {"dim": 4}, "device": "cpu"}
    train = {"epochs": 8, "lr": 1e-2, "batch_size": 200}
    config = check({**node, "backbone": {"name": "deepfm", "hidden": [8]}, "train": train})
    result, model = run_trial(config, dataset, lambda event: None)
    write_bundle(
        folder / "bundle",
        schema=dataset.schema,
        vocabulary=dataset.vocabulary,
        architecture=result.architecture,
        model=model,
        data=spec.model_dump(mode="json", exclude={"path", "planted", "split", "files", "crosses"}),
        metrics={},
        provenance={"train": config.train.model_dump(mode="json")},
    )
    return result, folder


def test_a_model_learns_from_rates_alone(made):
    result, folder = made
    assert result.architecture.names == ("item", "ctr(user)")
    assert result.valid.auc > 0.65
    bundle = load_bundle(folder / "bundle")
    assert bundle.schema.names == ("user", "item", "ctr(user)")
    rows = pl.DataFrame({"user": ["u1", "strange"], "item": ["i0", "i0"]})
    assert bundle.predict(rows).shape == (2,)


@pytest.mark.parametrize("warm", [False, True])
def test_a_retrained_bundle_has_the_rates_of_its_own_table(made, tmp_path, warm):
    _, folder = made
    found = train_architecture(
        folder / "bundle", folder / "t1.parquet", tmp_path / "b", warm=warm, settings=SPEC, device="cpu"
    )
    before, after = (load_bundle(path).vocabulary for path in (folder / "bundle", tmp_path / "b"))
    assert found.valid.auc > 0.65
    assert not np.array_equal(before.of_ids("ctr(user)"), after.of_ids("ctr(user)"))
    assert found.bundle.spec.target_statistics == DataSpec(target_statistics=RATES).target_statistics


def test_a_refresh_is_refused(made, tmp_path):
    _, folder = made
    with pytest.raises(SpaceError, match=r"click rates of values \(ctr\(user\)\)"):
        refresh(folder / "bundle", folder / "t1.parquet", tmp_path / "b", device="cpu")
    assert not (tmp_path / "b").exists()


def test_a_column_and_its_own_rate_are_no_pair(tmp_path):
    table_of(0).write_parquet(tmp_path / "t.parquet")
    spec = DataSpec.model_validate({**SPEC, "target_statistics": {"columns": ["user", "item"]}})
    dataset = build_dataset(spec, tmp_path / "t.parquet", tmp_path / "cache")
    ranking = rank(dataset, pairs="all", threads=1)
    assert ranking.pairs is not None
    found = {frozenset(pair) for pair in ranking.pairs.select("a", "b").rows()}
    assert len(found) == 4
    assert frozenset(["user", "ctr(user)"]) not in found
    z = dict(ranking.table.select("feature", "z").iter_rows())
    assert z["ctr(user)"] > 5
