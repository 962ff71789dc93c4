import numpy as np
import polars as pl
import pytest

from autoembed.data.dataset import Dataset, build_dataset
from autoembed.data.spec import DataSpec
from autoembed.data.target_statistics import order_of, ordered_rates, rates
from autoembed.data.vocabulary import Vocabulary
from autoembed.errors import DataError
from autoembed.metrics import evaluate


def table_of(rows=6000, values=1500, seed=0, effect=0.0):
    """Users that occur a few times each, an item, a time, and a label that a user's own effect shifts."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, values, rows), rng.integers(0, 7, rows)
    logit = effect * rng.normal(size=values)[user]
    return pl.DataFrame(
        {
            "user": [f"u{n}" for n in user],
            "item": [f"i{n}" for n in item],
            "day": rng.integers(0, 500, rows),
            "label": (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int),
        }
    )


def built(table, folder, **data):
    folder.mkdir(exist_ok=True)
    table.write_parquet(folder / "t.parquet")
    spec = {"target_statistics": {"columns": ["user"]}, "drop": ["day"], **data}
    return build_dataset(DataSpec.model_validate(spec), folder / "t.parquet", folder / "cache")


def rates_of_ids(dataset, name):
    """The upper bound of each row's bin, for each split: it orders rows as their binned rates do."""
    uppers = dataset.vocabulary.keep([name]).table()["upper"].fill_null(-1).to_numpy()
    return {split: uppers[dataset.ids(split)[:, dataset.schema.index(name)]] for split in dataset.splits}


def auc(dataset, split, scores):
    ranks = pl.Series(scores).rank().to_numpy() / (len(scores) + 1)
    return evaluate(dataset.labels(split), ranks.astype(np.float32))["auc"]


def test_rates_by_hand():
    ids, labels = np.array([3, 1, 3, 3, 1]), np.array([1, 0, 0, 1, 1], dtype=np.float32)  # mean .6
    order = np.array([2, 0, 1, 4, 3])
    found = ordered_rates(ids, labels, order, prior=2.0)
    np.testing.assert_allclose(found, [(0 + 1.2) / 3, 1.2 / 2, 1.2 / 2, (1 + 1.2) / 4, (0 + 1.2) / 3])
    np.testing.assert_allclose(rates(ids, labels, 5, prior=2.0), [0.6, 2.2 / 4, 0.6, 3.2 / 5, 0.6])


def test_order_is_by_time_and_random_within_one_time():
    times = np.repeat([2, 1, 3], 100)
    order = order_of(300, 0, times)
    assert (np.diff(times[order]) >= 0).all()
    assert sorted(order) == list(range(300))
    assert (np.diff(order[:100]) < 0).any()
    assert (order_of(300, 0) != order_of(300, 1)).any()


@pytest.mark.parametrize("prior", [0.5, 10.0])
def test_a_rates_own_label_is_not_in_it(tmp_path, prior):
    """Labels are noise and values occur some four times: what a naive rate says of train is its own label."""
    settings = {"columns": ["user"], "prior": prior}
    dataset = built(table_of(), tmp_path, target_statistics=settings, min_count=1)
    found = rates_of_ids(dataset, "ctr(user)")
    ids, labels = dataset.ids("train")[:, 0], dataset.labels("train")
    naive = rates(ids, labels, dataset.schema.cardinalities[0], prior)[ids]
    assert auc(dataset, "train", naive) > 0.7
    assert abs(auc(dataset, "train", found["train"]) - 0.5) < 0.03
    assert abs(auc(dataset, "test", found["test"]) - 0.5) < 0.07
