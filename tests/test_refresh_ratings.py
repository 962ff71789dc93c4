"""Bundles of ratings are trained on with later logs, in the mean and sd that their weights were trained in."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import root_mean_squared_error

from autoembed.bundle import load_bundle, write_bundle
from autoembed.data.dataset import build_dataset
from autoembed.data.spec import DataSpec
from autoembed.errors import SpaceError
from autoembed.metrics import Metrics
from autoembed.ratings import LabelScale
from autoembed.refreshing import refresh
from autoembed.reuse import train_architecture
from autoembed.trial import check, run_trial

DRIFT = 12  # items that are new each day
SPLIT = {"split": {"by": "random", "valid": 0.1, "test": 0.1}}
TRAIN = {"epochs": 6, "batch_size": 256, "lr": 0.01}


def logs(day, rows=5000, *, shift=0.0):
    """A day's ratings: items of a window that moves on by DRIFT, the newest most often; noise has sd 0.5."""
    effects = np.random.default_rng(0).normal(size=500)
    rng = np.random.default_rng(day)
    item, user = DRIFT * day + 60 - np.minimum(rng.geometric(0.05, rows), 60), rng.integers(0, 30, rows)
    stars = 3 + effects[item] + 0.5 * effects[user] + 0.5 * rng.normal(size=rows) + shift
    return pl.DataFrame({"item": [f"i{one}" for one in item], "user": user, "stars": stars})


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder of three days' logs, and of a bundle of the first."""
    folder = tmp_path_factory.mktemp("ratings")
    for day in range(3):
        logs(day).write_parquet(folder / f"{day}.parquet")
    spec = DataSpec(task="ratings", label="stars", split=SPLIT["split"])
    dataset = build_dataset(spec, str(folder / "0.parquet"), folder / "cache")
    node = {"arm": "x", "stages": [{"method": "frequency"}], "embedding": {"dim": 4, "blocks": 2}}
    node |= {"backbone": {"name": "deepfm", "hidden": [8], "batch_norm": False}, "limit": {"width": 3}}
    config = check(node | {"monitor": "valid_rmse", "train": TRAIN})
    result, model = run_trial(config, dataset, lambda values: None)
    write_bundle(
        folder / "bundle",
        schema=dataset.schema,
        vocabulary=dataset.vocabulary,
        architecture=result.architecture,
        model=model,
        data={"task": "ratings", "label": "stars"},
        metrics={"valid": result.valid.model_dump()},
        provenance={"train": config.train.model_dump(mode="json"), "monitor": config.monitor},
    )
    return folder


def test_a_refreshed_bundle_beats_the_frozen_one_on_the_next_day(first, tmp_path):
    done = refresh(first / "bundle", first / "1.parquet", tmp_path / "new", settings=SPLIT)
    assert done.no_worse
    assert done.after.rmse < 0.9 * done.before.rmse
    later = logs(2)
    old, new = (
        root_mean_squared_error(later["stars"], load_bundle(path).predict(later))
        for path in (first / "bundle", tmp_path / "new")
    )
    print(f"RMSE on the next day: frozen {old:.3f}, refreshed {new:.3f}")
    assert new < 0.9 * old
    kept, own = (load_bundle(path).schema.ratings for path in (first / "bundle", tmp_path / "new"))
    assert (own.mean, own.sd) == (kept.mean, kept.sd)
    assert not replace(done, after=Metrics({"rmse": done.before.rmse + 1e-6, "mae": 0.0})).no_worse


@pytest.mark.parametrize("rule", ["keep", "grow", "rebuild"])
def test_without_learning_predictions_stay_whatever_the_labels_of_the_log_are(first, tmp_path, rule):
    logs(0, shift=40).write_parquet(tmp_path / "far.parquet")
    done = refresh(
        first / "bundle",
        tmp_path / "far.parquet",
        tmp_path / "new",
        vocabulary=rule,
        settings=SPLIT,
        train={"lr": 1e-12},
    )
    (note,) = [note for note in done.notes if "keeps its scale" in note]
    assert "label 'stars' has mean 43" in note
    assert "where the model was trained on 3" in note
    rows, old = logs(0), load_bundle(first / "bundle")
    for name in ("item", "user"):
        known = [set(one.vocabulary.keep([name]).table()["value"].drop_nulls()) for one in (old, done.bundle)]
        rows = rows.filter(pl.col(name).cast(pl.String).is_in(known[0] & known[1]))
    assert len(rows) > 4000
    assert np.abs(done.bundle.predict(rows) - old.predict(rows)).max() < 1e-6


def test_the_cut_and_bins_are_of_the_new_log(first, tmp_path):
    logs(0, shift=40).write_parquet(tmp_path / "far.parquet")
    own = train_architecture(
        first / "bundle", tmp_path / "far.parquet", tmp_path / "new", warm=True, settings=SPLIT, train={"epochs": 1}
    ).bundle.schema.ratings
    assert own.cut > 40
    assert own.mean < 5


def test_warm_weights_keep_their_scale_and_fresh_ones_have_that_of_the_table(first, tmp_path):
    found = {}
    for warm in (True, False):
        found[warm] = train_architecture(
            first / "bundle",
            first / "1.parquet",
            tmp_path / str(warm),
            warm=warm,
            settings=SPLIT,
            train={"epochs": 2, "lr": 3e-3},
        )
    kept = load_bundle(first / "bundle").schema.ratings
    warm, fresh = (found[one].bundle.schema.ratings for one in (True, False))
    assert (warm.mean, warm.sd) == (kept.mean, kept.sd)
    assert fresh.mean == pytest.approx(logs(1)["stars"].mean(), abs=0.05)
    assert found[True].test.rmse < 0.9 * found[False].test.rmse


def test_a_shift_is_told_where_it_is_large():
    own = LabelScale(mean=3, sd=1, cut=3)
    assert own.shift_from(LabelScale(mean=3.2, sd=1.2, cut=0)) is None
    told = own.shift_from(LabelScale(mean=3.5, sd=1, cut=0))
    assert told == "mean 3 and sd 1, where the model was trained on 3.5 and sd 1"
    assert own.shift_from(LabelScale(mean=3, sd=0.5, cut=0)) is not None
    assert own.shift_from(LabelScale(mean=3, sd=2, cut=0)) is not None


def test_weights_of_another_task_are_refused(first, tmp_path):
    clicks = {"task": "clicks", "above": 3, **SPLIT}
    with pytest.raises(SpaceError, match=r"valid RMSE is a metric of ratings, but data\.task is clicks"):
        train_architecture(first / "bundle", first / "0.parquet", tmp_path / "new", warm=True, settings=clicks)
    with pytest.raises(
        SpaceError, match=r"trained for data\.task: ratings, but data\.task is clicks: leave it ratings"
    ):
        refresh(first / "bundle", first / "0.parquet", tmp_path / "new", settings=clicks)
