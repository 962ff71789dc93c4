"""Auxiliary labels: read as labels are, stored beside the ids with gaps, never fields."""

import json

import numpy as np
import polars as pl
import pytest

from autoembed.data.crosses import CrossSpec
from autoembed.data.dataset import Dataset
from autoembed.data.readers import DataSpec
from autoembed.errors import DataError
from autoembed.ranking.table import read_table
from tests.data.test_sides import build


def frame(rows=600, seed=0):
    rng = np.random.default_rng(seed)
    like = rng.integers(0, 2, rows)
    return pl.DataFrame(
        {
            "label": rng.integers(0, 2, rows),
            "a": [f"v{value}" for value in rng.integers(0, 5, rows)],
            "row": np.arange(rows),
            "like": like,
            "bought": pl.Series(["yes", "no"]).gather(rng.integers(0, 2, rows)),
        }
    ).with_columns(bought=pl.when(pl.col("label") == 1).then("bought"))


def test_auxiliary_labels_are_split_and_copied_as_labels_are_and_are_no_fields(tmp_path):
    table = frame()
    dataset = build(tmp_path, table, auxiliary_labels=["like", "bought"], categorical=["row"], min_count=1)
    assert dataset.schema.names == ("a", "row")
    assert dataset.schema.auxiliary_labels == ("like", "bought")
    rows = dataset.vocabulary.keep(["row"]).table()["value"].to_list()
    seen = 0
    for split in dataset.splits:
        found, ids = dataset.auxiliary(split), dataset.schema.one(dataset.ids(split), "row")
        assert (found.dtype, found.shape) == (np.float32, (dataset.rows(split), 2))
        assert (np.isnan(found[:, 1]) == (dataset.labels(split) == 0)).all()
        if split == "train":  # others' rows have no id
            own = table[[int(rows[one]) for one in ids]]
            assert (found[:, 0] == own["like"].to_numpy()).all()
            bought = (own["bought"] == "yes").cast(pl.Float32).fill_null(np.nan).to_numpy()
            assert np.array_equal(found[:, 1], bought, equal_nan=True)
            seen = len(own)
    assert seen
    kept = dataset.keep(["a"], tmp_path / "cache")
    crossed = dataset.cross([("a", "row")], CrossSpec(), tmp_path / "cache", candidates=False)
    for other in (kept, crossed, Dataset.open(dataset.path)):
        other.verify()
        assert np.array_equal(other.auxiliary("valid"), dataset.auxiliary("valid"), equal_nan=True)
    assert any("auxiliary label 'bought' is known in" in note for note in dataset.notes)
    plain = build(tmp_path, table, drop=["like", "bought"], min_count=1)
    assert plain.auxiliary("train") is None
    # So were schemas and folders stored before there were auxiliary labels.
    assert "auxiliary_labels" not in json.loads((plain.path / "schema.json").read_text())
    assert not list(plain.path.glob("*.auxiliary.npy"))


def test_a_changed_auxiliary_label_is_found(tmp_path):
    dataset = build(tmp_path, frame(), auxiliary_labels=["like"], drop=["bought"])
    path = dataset.path / "test.auxiliary.npy"
    labels = np.load(path)
    np.save(path, 1 - labels)
    with pytest.raises(DataError, match="its content is not what was written"):
        dataset.verify()
    np.save(path, labels[:, 0])
    with pytest.raises(DataError, match=r"the arrays of test are not as dataset\.json says"):
        Dataset.open(dataset.path)


def test_ratings_may_have_auxiliary_labels(tmp_path):
    table = frame().with_columns(label=pl.col("row") / 7)
    dataset = build(tmp_path, table, task="ratings", auxiliary_labels=["like"])
    assert dataset.auxiliary("valid").shape == (dataset.rows("valid"), 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 2], "auxiliary label 'like' must be 0, 1 or missing, but has the values '0', '2': make it such a column"),
        (["much", "1"], "auxiliary label 'like' must be 0, 1 or missing, but has the values '1', 'much'"),
        ([0, 0], "auxiliary label 'like' must have 2 rows of each class in train, but has 480 of 0 and 0 of 1: give"),
        ([None, None], "auxiliary label 'like' must have 2 rows of each class in train, but has 0 of 0 and 0 of 1"),
    ],
)
def test_an_auxiliary_label_that_is_none_is_told_in_one_line(values, message, tmp_path):
    series = pl.Series("like", values * 300, dtype=pl.Int64 if values == [None, None] else None)
    with pytest.raises(DataError) as error:
        build(tmp_path, frame().with_columns(like=series), auxiliary_labels=["like"], drop=["bought"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_of_weight_0_are_no_rows_of_an_auxiliary_label(tmp_path):
    table = frame().with_columns(w=pl.col("like"))
    with pytest.raises(DataError, match=r"must have 2 rows of each class in train, but has 0 of 0 and \d+ of 1"):
        build(tmp_path, table, auxiliary_labels=["like"], weight="w", drop=["bought"])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"auxiliary_labels": ["like", "like"]}, "must name each column once, but got like twice"),
        ({"auxiliary_labels": ["label"]}, "must be columns that are nothing else, but label is used elsewhere"),
        ({"auxiliary_labels": ["a"], "categorical": ["a"]}, "but a is used elsewhere"),
        ({"auxiliary_labels": ["w"], "weight": "w"}, "but w is used elsewhere"),
        ({"auxiliary_labels": ["t"], "time": "t"}, "but t is used elsewhere"),
        ({"auxiliary_labels": ["g"], "group": "g"}, "but g is used elsewhere"),
        ({"auxiliary_labels": ["d"], "drop": ["d"]}, "but d is used elsewhere"),
        ({"auxiliary_labels": ["x"], "planted": {}}, "planted data have one label: leave auxiliary_labels out"),
    ],
)
def test_an_auxiliary_label_is_nothing_else(spec, message):
    with pytest.raises(DataError, match=message):
        DataSpec.checked(spec)


def test_an_unknown_auxiliary_label_is_told(tmp_path):
    with pytest.raises(DataError, match=r"data\.auxiliary_labels names no column of the table: liked \(the columns"):
        build(tmp_path, frame(), auxiliary_labels=["liked"])


def test_auxiliary_labels_are_not_ranked(tmp_path):
    table = frame()
    found = read_table(table, label="label", settings={"auxiliary_labels": ["like", "bought"]})
    assert set(found.names) == {"a", "row"}
    with pytest.raises(DataError, match=r"data\.auxiliary_labels names no column of the table: liked"):
        read_table(table, label="label", settings={"auxiliary_labels": ["liked"]})
