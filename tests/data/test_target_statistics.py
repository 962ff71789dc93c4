import numpy as np
import polars as pl
import pytest

from autoembed.data.dataset import Dataset, build_dataset
from autoembed.data.spec import DataSpec
from autoembed.data.target_statistics import TargetStatistics, order_of, ordered_rates, rates
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
    """Labels are noise and most values occur once or twice: what a naive rate says of train is its own label."""
    settings = {"columns": ["user"], "prior": prior}
    dataset = built(table_of(values=6000), tmp_path, target_statistics=settings, min_count=1)
    found = rates_of_ids(dataset, "ctr(user)")
    ids, labels = dataset.ids("train")[:, 0], dataset.labels("train")
    naive = rates(ids, labels, dataset.schema.cardinalities[0], prior)[ids]
    assert auc(dataset, "train", naive) > 0.9
    assert abs(auc(dataset, "train", found["train"]) - 0.5) < 0.03
    assert abs(auc(dataset, "test", found["test"]) - 0.5) < 0.07


def test_train_rows_have_ordered_rates_and_others_those_of_all_train_rows(tmp_path):
    dataset = built(table_of(effect=1.0), tmp_path, min_count=1, target_statistics={"columns": ["user"], "prior": 3.0})
    place = dataset.schema.index("ctr(user)")
    assert dataset.schema.fields[place].statistic_of == "user"
    assert dataset.vocabulary.columns == ("user", "item")
    train, labels = dataset.ids("train"), dataset.labels("train")
    uppers = dataset.vocabulary.keep(["ctr(user)"]).table()["upper"].fill_null(-1).to_numpy()
    every = rates(train[:, 0], labels, dataset.schema.cardinalities[0], 3.0)
    seen = ordered_rates(train[:, 0], labels, order_of(len(labels), 0), 3.0)
    ascending = np.sort(uppers[1:])
    for rows, rate in ((train, seen), (dataset.ids("test"), every[dataset.ids("test")[:, 0]])):
        assert (uppers[rows[:, place]] == ascending[np.searchsorted(ascending, rate)]).all()
    counts = dataset.vocabulary.counts("ctr(user)")
    assert (counts == np.bincount(train[:, place], minlength=len(counts))).all()
    assert (np.diff(counts[1:]) <= 0).all()
    assert auc(dataset, "test", rates_of_ids(dataset, "ctr(user)")["test"]) > 0.6
    Dataset.open(dataset.path).verify()


def test_what_is_written_is_read_again(tmp_path):
    dataset = built(table_of(), tmp_path, crosses={"pairs": [["user", "item"]]}, target_statistics={"columns": CROSSED})
    dataset.vocabulary.write(tmp_path / "v.parquet")
    again, frame = Vocabulary.read(tmp_path / "v.parquet"), pl.read_parquet(tmp_path / "t.parquet")
    assert again.table().equals(dataset.vocabulary.table())
    assert (again.encode(frame) == dataset.vocabulary.encode(frame)).all()
    kept = dataset.keep(["ctr(user*item)"], tmp_path / "cache")
    assert kept.schema.names == ("user", "item", "user*item", "ctr(user*item)")


CROSSED = ["user", "user*item"]


@pytest.mark.parametrize("by", [None, "random"])
def test_a_split_by_time_counts_earlier_rows_only(tmp_path, by):
    """No click before day 200 and nine of ten later: a row that sees earlier rows alone has a low rate before."""
    table = table_of(rows=4000, values=40)
    late = np.random.default_rng(1).random(4000) < 0.9
    table = table.with_columns(label=((pl.col("day") >= 200) & pl.lit(pl.Series(late))).cast(pl.Int64))
    split = {"by": by, "valid": 0.1, "test": 0.1}
    dataset = built(table, tmp_path, time="day", drop=[], split=split, target_statistics={"columns": ["user"]})
    labels = dataset.labels("train")
    low = rates_of_ids(dataset, "ctr(user)")["train"][labels == 0] < labels.mean()
    assert (low.mean() > 0.75) == (by is None)


def test_replaced_columns_are_no_fields(tmp_path):
    dataset = built(table_of(), tmp_path, target_statistics={"columns": ["user"], "replace": ["user"]})
    assert [field.name for field in dataset.schema.fields if not field.candidate] == ["item", "ctr(user)"]


def test_what_is_replaced_must_be_a_column_of_rates():
    with pytest.raises(ValueError, match="replace must name columns of target_statistics, but got item"):
        TargetStatistics(columns=("user",), replace=("item",))


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"target_statistics": {"columns": ["nosuch"]}}, "unknown column 'nosuch'"),
        ({"target_statistics": {"columns": ["user", "user"]}}, r"the column 'ctr\(user\)' is there already"),
        ({"multi": {"item": "|"}, "target_statistics": {"columns": ["item"]}}, "'item' holds several"),
        (
            {"shared": {"item": "user"}, "target_statistics": {"columns": ["user"], "replace": ["user"]}},
            "cannot replace 'user', as item reads its table: take it out of replace",
        ),
    ],
)
def test_what_has_no_rates_is_one_line(tmp_path, data, line):
    with pytest.raises(DataError, match=line):
        built(table_of(rows=500), tmp_path, **data)


def test_rows_count_by_their_weights():
    rng = np.random.default_rng(0)
    ids, labels, weights = rng.integers(0, 5, 200), rng.integers(0, 2, 200), rng.integers(0, 4, 200)
    repeated = np.repeat(np.arange(200), weights)
    assert rates(ids, labels, 5, 2.0, weights) == pytest.approx(rates(ids[repeated], labels[repeated], 5, 2.0))
    order = rng.permutation(200)
    assert ordered_rates(ids, labels, order, 2.0, np.full(200, 1)) == pytest.approx(
        ordered_rates(ids, labels, order, 2.0)
    )
    twice = ordered_rates(ids, labels, order, 4.0, np.full(200, 2))
    assert twice == pytest.approx(ordered_rates(ids, labels, order, 2.0))
