"""What is stored beside the ids of a row: weights and groups."""

import json

import numpy as np
import polars as pl
import pytest

from autoembed.data.crosses import CrossSpec
from autoembed.data.dataset import Dataset, build_dataset
from autoembed.data.readers import DataSpec
from autoembed.errors import DataError


def frame(rows=300, seed=0):
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "label": rng.integers(0, 2, rows),
            "a": [f"v{value}" for value in rng.integers(0, 5, rows)],
            "user": [f"u{value}" for value in rng.integers(0, 40, rows)],
            "w": np.round(rng.exponential(1.0, rows), 3),
        }
    )


def build(folder, table, **spec):
    path = folder / "table.parquet"
    table.write_parquet(path)
    return build_dataset(DataSpec.model_validate(spec), path, folder / "cache")


def test_weights_and_groups_are_split_and_copied_as_labels_are(tmp_path):
    table = frame()
    dataset = build(tmp_path, table, weight="w", group="user", min_count=1)
    assert dataset.schema.names == ("a", "user")
    assert (dataset.schema.weight, dataset.schema.group) == ("w", "user")
    known = {(label, f"{weight:.3f}") for label, weight in table.select("label", "w").iter_rows()}
    for split in dataset.splits:
        weights, groups = dataset.weights(split), dataset.groups(split)
        assert (weights.dtype, groups.dtype) == (np.float32, np.int32)
        assert {(int(y), f"{w:.3f}") for y, w in zip(dataset.labels(split), weights, strict=True)} <= known
        # One code for each user, the same in all splits.
        users = dataset.vocabulary.keep(["user"]).table()["value"]
        ids = dataset.ids(split)[:, dataset.schema.index("user")]
        assert len(set(zip(ids.tolist(), groups.tolist(), strict=True))) == len(set(groups.tolist()))
        assert groups.max() < len(users)
    kept = dataset.keep(["a"], tmp_path / "cache")
    crossed = dataset.cross([("a", "user")], CrossSpec(), tmp_path / "cache", candidates=False)
    for other in (kept, crossed, Dataset.open(dataset.path)):
        other.verify()
        assert (other.weights("valid") == dataset.weights("valid")).all()
        assert (other.groups("test") == dataset.groups("test")).all()
    plain = build(tmp_path, table, drop=["w"], min_count=1)
    assert (plain.weights("train"), plain.groups("train")) == (None, None)
    assert len({plain.fingerprint, dataset.fingerprint, kept.fingerprint}) == 3
    # So were schemas stored before there were weights.
    assert not json.loads((plain.path / "schema.json").read_text()).keys() & {"weight", "group"}


def test_a_changed_weight_is_found(tmp_path):
    dataset = build(tmp_path, frame(), weight="w", drop=["user"])
    path = dataset.path / "valid.weights.npy"
    weights = np.load(path)
    weights[0] += 1
    np.save(path, weights)
    with pytest.raises(DataError, match="its content is not what was written"):
        dataset.verify()
    np.save(path, weights[1:])
    with pytest.raises(DataError, match=r"the arrays of valid are not as dataset\.json says"):
        Dataset.open(dataset.path)


def test_weights_of_text_are_numbers_and_a_group_may_be_no_field(tmp_path):
    table, path = frame(), tmp_path / "table.csv"
    table.write_csv(path)
    spec = DataSpec(weight="w", group="user", drop=("user",), min_count=1)
    dataset = build_dataset(spec, path, tmp_path / "cache")
    assert dataset.schema.names == ("a",)
    total = sum(float(dataset.weights(split).sum()) for split in dataset.splits)
    assert total == pytest.approx(table["w"].sum(), rel=1e-6)
    other = build(
        tmp_path, table.with_columns(user=pl.when(pl.col("a") != "v0").then("user")), group="user", min_count=1
    )
    train = other.ids("train")[:, other.schema.index("a")]
    gone = other.vocabulary.keep(["a"]).table().filter(pl.col("value") == "v0")["id"].item()
    assert ((other.groups("train") == -1) == (train == gone)).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, None], "weight 'w' is missing in 150 rows: give each row one; a weight of 0 leaves its row out"),
        ([1.0, float("nan")], "weight 'w' is missing in 150 rows"),
        ([1.0, float("inf")], "weight 'w' must be finite, but is not in 150 rows"),
        ([1.0, 1e300], "weight 'w' must be finite"),
        ([1.0, -0.5], "weight 'w' must be 0 or more, but has -0.5: give rows that shall not count 0"),
        (["1", "much"], "weight 'w' must be a number, but has 'much': name a column of numbers"),
        (["1", ""], "weight 'w' is missing in 150 rows"),
        ([True, False], "the weight must be a number, but column 'w' is Boolean"),
        ([0, 0], "all weights of train are 0: give rows of train that shall count a weight above 0"),
    ],
)
def test_a_weight_that_is_none_is_told_in_one_line(values, message, tmp_path):
    with pytest.raises(DataError) as error:
        build(tmp_path, frame().with_columns(w=pl.Series("w", values * 150, strict=False)), weight="w")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_of_weight_0_are_none_to_learn_from(tmp_path):
    with pytest.raises(DataError, match="label 'label' must have both classes in train, but all"):
        build(tmp_path, frame().with_columns(w=1.0 - pl.col("label")), weight="w")


def test_rows_without_a_label_need_no_weight(tmp_path):
    table = frame().with_columns(label=pl.when(pl.int_range(300) > 5).then("label"))
    table = table.with_columns(w=pl.when(pl.int_range(300) > 3).then("w"))
    dataset = build(tmp_path, table, weight="w", missing_label="drop")
    assert sum(dataset.rows(split) for split in dataset.splits) == 294


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"weight": "label"}, "the weight must not be a field, the label, the time or a group, but 'label' is"),
        ({"weight": "t", "time": "t"}, "but 't' is: name a column of its own"),
        ({"weight": "w", "group": "w"}, "but 'w' is"),
        ({"weight": "w", "numeric": ["w"]}, "but 'w' is"),
        ({"weight": "w", "shared": {"a": "w"}}, "but 'w' is"),
        ({"weight": "w", "drop": ["w"]}, "drop must not name columns that are used elsewhere, but got w"),
        ({"group": "label"}, "the group must not be the label, but 'label' is: name another column"),
    ],
)
def test_a_weight_is_nothing_else(spec, message):
    with pytest.raises(DataError, match=message):
        DataSpec.checked(spec)


def test_a_weight_that_is_not_there_is_told_with_the_columns(tmp_path):
    with pytest.raises(
        DataError, match=r"data\.weight names no column of the table: v .the columns are label, a, user, w"
    ):
        build(tmp_path, frame(), weight="v")
    with pytest.raises(DataError, match=r"data\.group names no column of the table: v"):
        build(tmp_path, frame(), group="v")
