import datetime as dt
from itertools import chain

import numpy as np
import polars as pl
import pytest

from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec, read
from autoembed.errors import DataError


@pytest.fixture
def go(tmp_path_factory):
    """go(tables, **spec) -> the `row` numbers of every split; one frame, or a dict of frames for a directory."""

    def make(tables, **spec):
        place = tmp_path_factory.mktemp("data")
        (place / "stage").mkdir()
        if isinstance(tables, dict):
            for name, frame in tables.items():
                frame.write_parquet(place / f"{name}.parquet")
            data = place
        else:
            data = place / "t.parquet"
            tables.write_parquet(data)
        table = read(DataSpec.model_validate(spec | {"categorical": ["row"]}), data, place / "stage")
        return {name: frame.collect()["row"].to_list() for name, frame in table.splits.items()}

    return make


def rows(start, stop, **more):
    frame = pl.DataFrame({"row": range(start, stop)})
    return frame.with_columns((pl.col("row") % 2).alias("label"), *(expr.alias(name) for name, expr in more.items()))


ROW = pl.col("row")


def test_random_fractions_are_exact_seeded_and_cover_each_row_once(go):
    spec = {"by": "random", "valid": 0.2, "test": 0.3, "seed": 4}
    parts = go(rows(0, 1000), split=spec)
    assert [len(parts[name]) for name in ("train", "valid", "test")] == [500, 200, 300]
    assert sorted(chain(*parts.values())) == list(range(1000))
    assert all(part == sorted(part) for part in parts.values())
    assert go(rows(0, 1000), split=spec) == parts
    assert go(rows(0, 1000), split=spec | {"seed": 5}) != parts


def test_a_table_alone_is_split_at_random_or_by_its_time(go):
    parts = go(rows(0, 100))
    assert [len(parts[name]) for name in ("train", "valid", "test")] == [80, 10, 10]
    assert max(parts["train"]) > 90
    parts = go(rows(0, 100, t=ROW // 5), time="t")
    assert parts == {"train": list(range(80)), "valid": list(range(80, 90)), "test": list(range(90, 100))}


def test_time_fractions_keep_equal_times_together(go):
    parts = go(rows(0, 100, t=ROW // 30), time="t", split={"by": "time", "valid": 0.25, "test": 0.25})
    assert parts == {"train": list(range(30)), "valid": list(range(30, 60)), "test": list(range(60, 100))} or parts == {
        "train": list(range(60)), "valid": list(range(60, 90)), "test": list(range(90, 100))
    }  # fmt: skip


@pytest.mark.parametrize(
    ("time", "valid", "test"),
    [
        (ROW * 10, 500, 800),
        (ROW / 2, 25, 40),
        ("d" + ROW.cast(pl.String).str.zfill(3), "d050", "d080"),
        (ROW.cast(pl.String).str.zfill(3), "050", "080"),
        (pl.date(2024, 1, 1) + pl.duration(days=ROW), "2024-02-20", "2024-03-21"),
        (pl.date(2024, 1, 1) + pl.duration(days=ROW), dt.date(2024, 2, 20), dt.date(2024, 3, 21)),
        (pl.datetime(2024, 1, 1) + pl.duration(hours=ROW), "2024-01-03T02:00", "2024-01-04T08:00:00"),
        (
            pl.datetime(2024, 1, 1, time_zone="UTC") + pl.duration(hours=ROW),
            "2024-01-03 02:00",
            "2024-01-04T08:00:00+00:00",
        ),
    ],
)
def test_cuts_are_in_the_type_of_the_time(go, time, valid, test):
    parts = go(rows(0, 100, t=time), time="t", split={"by": "time", "valid": valid, "test": test})
    assert parts == {"train": list(range(50)), "valid": list(range(50, 80)), "test": list(range(80, 100))}


def test_numbers_in_text_are_compared_as_numbers(go):
    parts = go(rows(0, 100, t=ROW.cast(pl.String)), time="t", split={"by": "time", "valid": 50, "test": 80})
    assert parts == {"train": list(range(50)), "valid": list(range(50, 80)), "test": list(range(80, 100))}


def test_three_files_are_used_as_they_are(go):
    tables = {"train": rows(0, 50), "valid": rows(50, 60), "test": rows(60, 70)}
    parts = go(tables)
    assert parts == {"train": list(range(50)), "valid": list(range(50, 60)), "test": list(range(60, 70))}
    with pytest.raises(DataError, match=r"the data has its own valid and test, so data.split must not say by, valid"):
        go(tables, split={"by": "random", "valid": 0.2})


def test_cuts_by_time_go_through_all_files(go):
    tables = {"train": rows(0, 50, t=ROW), "valid": rows(50, 100, t=ROW)}
    cuts = {"by": "time", "valid": 40, "test": 75}
    want = {"train": list(range(40)), "valid": list(range(40, 75)), "test": list(range(75, 100))}
    assert go(tables, time="t", split=cuts) == want
    assert go({**tables, "test": rows(100, 110, t=ROW)}, time="t", split=cuts)["test"] == list(range(75, 110))


def test_valid_comes_out_of_train_where_only_test_is_given(go):
    tables = {"train": rows(0, 100, t=ROW), "test": rows(100, 130, t=ROW)}
    parts = go(tables)
    assert [len(parts[name]) for name in ("train", "valid")] == [90, 10]
    assert sorted(parts["train"] + parts["valid"]) == list(range(100))
    assert parts["test"] == list(range(100, 130))
    assert go(tables, split={"by": "random", "valid": 0.3, "seed": 1})["valid"] != list(range(70, 100))
    assert go(tables, time="t", split={"valid": 0.2})["valid"] == list(range(80, 100))
    assert go(tables, time="t", split={"by": "time", "valid": 60})["valid"] == list(range(60, 100))
    with pytest.raises(DataError, match=r"the data has its own test, so data.split must not say test"):
        go(tables, split={"by": "random", "valid": 0.1, "test": 0.1})


def test_train_and_valid_without_a_test_are_refused(go):
    with pytest.raises(DataError, match=r"train and valid but no test: add a test file .*by: time, valid: FIRST"):
        go({"train": rows(0, 50), "valid": rows(50, 60)})


@pytest.mark.parametrize(
    ("time", "spec", "message"),
    [
        (ROW, {"split": {"by": "time"}}, "split by time needs data.time"),
        (ROW, {"split": {"valid": 5, "test": 8}}, "split by random must have fractions.*for cut values, set data.time"),
        (
            ROW,
            {"time": "t", "split": {"by": "time", "valid": "a", "test": "b"}},
            "'t' must be of its type Int64, but got 'a'",
        ),
        (ROW * 0, {"time": "t"}, "'t' has 1 distinct times, too few for this split"),
        (pl.lit(None, dtype=pl.Int64), {"time": "t"}, "'t' must have no missing values, but 100 rows have none"),
        (
            ROW > 50,
            {"time": "t", "split": {"valid": 1, "test": 2}},
            "must hold numbers, dates or text, but its type is Boolean",
        ),
        (
            pl.date(2024, 1, 1) + pl.duration(days=ROW),
            {"time": "t", "split": {"by": "time", "valid": 20240110, "test": 20249999}},
            "must be of its type Date, but got 20249999",
        ),
    ],
)
def test_splits_that_cannot_be_made_say_why(go, time, spec, message):
    with pytest.raises(DataError, match=message):
        go(rows(0, 100, t=time), **spec)


def test_a_rare_class_is_shared_out_or_refused(tmp_path):
    frame = pl.DataFrame({"label": [1] * 9 + [0] * 5000, "a": [row % 7 for row in range(5009)]})
    frame.write_parquet(tmp_path / "t.parquet")
    with pytest.raises(
        DataError, match=r"must have both classes in valid, but all 501 rows are 0: change data.split \(stratify: true"
    ):
        build_dataset(DataSpec(), tmp_path / "t.parquet", tmp_path / "cache")
    split = {"by": "random", "valid": 0.2, "test": 0.1, "stratify": True}
    with pytest.raises(
        DataError, match=r"test has 1 of 501 rows with label 1, and must have 2: set data.split.stratify"
    ):
        build_dataset(DataSpec(split=split), tmp_path / "t.parquet", tmp_path / "cache")
    spec = DataSpec(split={"by": "random", "valid": 0.25, "test": 0.25, "stratify": True})
    found = build_dataset(spec, tmp_path / "t.parquet", tmp_path / "cache")
    assert [int(found.labels(split).sum()) for split in found.splits] == [5, 2, 2]
    assert sum("has only 2 rows with label 1" in note for note in found.notes) == 2


def grouped(tmp_path, column="patient", rows=2000, groups=150, **split):
    rng = np.random.default_rng(0)
    table = pl.DataFrame({"label": rng.integers(0, 2, rows), "a": rng.integers(0, 5, rows)})
    table = table.with_columns(pl.Series("patient", [f"p{one}" for one in rng.geometric(1 / groups, rows)]))
    table.write_parquet(tmp_path / "t.parquet")
    spec = DataSpec.model_validate({"split": {"by": "group", "column": column, **split}})
    return table, read(spec, tmp_path / "t.parquet", tmp_path)


def test_rows_of_a_group_stay_together(tmp_path):
    table, found = grouped(tmp_path, valid=0.2, test=0.1)
    assert found.schema.names == ("a",)  # what tells groups apart is no feature, unless it is named
    (part,) = found.parts
    codes = table.with_columns(split=pl.Series(part.code))
    assert codes.group_by("patient").agg(pl.col("split").n_unique())["split"].max() == 1
    shares = codes["split"].value_counts(normalize=True).sort("split")["proportion"].to_list()
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.02)
    again = grouped(tmp_path, valid=0.2, test=0.1)[1].parts[0].code
    other = grouped(tmp_path, valid=0.2, test=0.1, seed=1)[1].parts[0].code
    assert np.array_equal(again, part.code)
    assert not np.array_equal(other, part.code)


def test_a_split_by_groups_that_cannot_be_made_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"data\.split\.column names no column of the table: nobody"):
        grouped(tmp_path, column="nobody")
    with pytest.raises(DataError, match=r"has 1 groups, too few for valid 0\.1 and test 0\.1"):
        grouped(tmp_path, groups=1)
    for split in ({"by": "group"}, {"by": "random", "column": "a"}):
        with pytest.raises(ValueError, match=r"by: group and split\.column go together"):
            DataSpec.model_validate({"split": split})
    with pytest.raises(ValueError, match="split by group must have fractions"):
        DataSpec.model_validate({"split": {"by": "group", "column": "a", "valid": 3, "test": 4}})
