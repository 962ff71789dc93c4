import datetime as dt
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoembed.data.dataset import build_dataset
from autoembed.data.schema import FeatureSchema, Field
from autoembed.data.spec import DataSpec
from autoembed.data.vocabulary import Vocabulary
from autoembed.errors import DataError

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"


def fit(values, kind="categorical", min_count=1, bins=32, dtype=None):
    frame = pl.DataFrame({"x": pl.Series(values, dtype=dtype)}).with_columns(y=0)
    schema = FeatureSchema(fields=(Field(name="x", kind=kind),), label="y")
    return Vocabulary.fit(frame.lazy(), schema, min_count, bins)


def encode(vocabulary, values, dtype=None):
    return vocabulary.encode(pl.DataFrame({"x": pl.Series(values, dtype=dtype)}))[:, 0].tolist()


def test_ids_descend_in_frequency_and_ties_go_by_value():
    vocabulary = fit(["b"] * 3 + ["d", "c", "d", "c"] + ["a"] * 5)
    assert encode(vocabulary, ["a", "b", "c", "d"]) == [1, 2, 3, 4]
    assert vocabulary.counts("x").tolist() == [0, 5, 3, 2, 2]
    assert vocabulary.counts("x").dtype == np.int64
    assert vocabulary.cardinality("x") == 5


def test_rare_values_share_id_0_and_are_counted_there():
    vocabulary = fit(["a", "a", "b", "c", None], min_count=2)
    assert encode(vocabulary, ["a", "b", "c", "new", None]) == [1, 0, 0, 0, 0]
    assert vocabulary.counts("x").tolist() == [3, 2]


def test_missing_is_a_value_with_its_place_by_frequency():
    vocabulary = fit(["a", None, None, "b", None, "a"])
    assert encode(vocabulary, [None, "a", "b"]) == [1, 2, 3]
    assert vocabulary.missing("x") == 1
    assert vocabulary.counts("x").tolist() == [0, 3, 2, 1]


def test_missing_comes_after_values_as_frequent():
    assert encode(fit([None, "b", "a", None, "b", "a"]), ["a", "b", None]) == [1, 2, 3]


def test_missing_that_train_has_not_is_unknown():
    assert encode(fit(["a", "b"]), [None]) == [0]
    assert encode(fit([1.0, 2.0], kind="numeric"), [None]) == [0]
    assert fit(["a"]).missing("x") == 0


@pytest.mark.parametrize(
    ("train", "later"),
    [
        ([1, 2, 2], ["1", "2", "3"]),
        (["1", "2", "2"], [1, 2, 3]),
        ([1.0, 2.0, 2.0], [1, 2, 3]),
        ([1, 2, 2], [1.0, 2.0, 3.0]),
        (["1.0", "2.0", "2.0"], [1, 2, 3]),
        ([1, 2, 2], ["1.0", "2.00", "2.5"]),
    ],
)
def test_a_value_has_one_id_whatever_type_stored_it(train, later):
    assert encode(fit(train), later) == [2, 1, 0]


def test_truth_values_are_the_same_in_every_spelling():
    vocabulary = fit([True, True, False])
    assert encode(vocabulary, [True, False]) == encode(vocabulary, ["True", "false"]) == [1, 2]


def test_text_that_only_looks_like_a_number_stays_text():
    assert encode(fit(["007", "007", "7"]), ["007", "7", "07"]) == [1, 2, 0]


def test_other_types_have_ids_too():
    days = [dt.date(2024, 1, 1), dt.date(2024, 1, 2), dt.date(2024, 1, 2)]
    assert encode(fit(days), days) == encode(fit(days), ["2024-01-01", "2024-01-02", "2024-01-02"]) == [2, 1, 1]
    enum = pl.Enum(["u", "v", "w"])
    assert encode(fit(["u", "v", "v"], dtype=pl.Categorical), ["w", "v"], dtype=enum) == [0, 1]
    assert encode(fit([None, None], dtype=pl.Null), [None, "a"]) == [1, 0]
    assert encode(fit([0.1, 0.1, 0.25]), [0.25, 0.1, float("nan")]) == [2, 1, 0]


def test_nan_is_missing():
    vocabulary = fit([1.5, float("nan"), None, float("nan")], kind="numeric")
    assert encode(vocabulary, [1.5, None, float("nan")]) == [2, 1, 1]
    assert vocabulary.counts("x").tolist() == [0, 3, 1]


def test_few_distinct_numbers_are_bins_of_their_own():
    vocabulary = fit([5.0] * 3 + [1.0] * 2 + [9.0], kind="numeric", bins=4, min_count=10)
    assert encode(vocabulary, [5.0, 1.0, 9.0]) == [1, 2, 3]
    assert encode(vocabulary, [-100.0, 2.9, 3.1, 100.0, float("inf"), float("-inf")]) == [2, 2, 1, 3, 3, 2]


def test_many_numbers_are_cut_at_train_quantiles():
    values = np.random.default_rng(0).permutation(np.arange(1000.0) ** 2)
    vocabulary = fit(values, kind="numeric", bins=10)
    assert vocabulary.counts("x").tolist() == [0] + [100] * 10
    ids = encode(vocabulary, np.sort(values))
    assert [len(set(ids[i : i + 100])) for i in range(0, 1000, 100)] == [1] * 10
    assert len(set(ids)) == 10


def test_bins_of_skewed_numbers_still_hold_every_row():
    values = np.concatenate([np.zeros(900), np.arange(100.0)])
    vocabulary = fit(values, kind="numeric", bins=8)
    counts = vocabulary.counts("x")
    assert counts.sum() == 1000
    assert counts[0] == 0
    assert counts[1] == 901  # the zeros; the others have 99 rows for 8 ranges
    assert counts[2:].min() >= 9
    assert (counts[1:-1] >= counts[2:]).all()
    assert np.bincount(encode(vocabulary, values)).tolist() == counts.tolist()


def test_numbers_may_come_as_text_and_a_wrong_one_is_named():
    vocabulary = fit([1.5, 2.5, 3.5], kind="numeric")
    assert encode(vocabulary, ["1.5", "2.5", "3.5"]) == encode(vocabulary, [1.5, 2.5, 3.5])
    with pytest.raises(
        DataError, match=r"numeric column 'x' must hold numbers, but has 'many'.*categorical.*null_values"
    ):
        encode(vocabulary, ["1.5", "many"])
    with pytest.raises(DataError, match="numeric column 'x' must hold numbers, but has 'no'"):
        fit(["1", "no"], kind="numeric")


def test_encoding_is_int32_row_major_and_names_missing_columns():
    schema = FeatureSchema(fields=(Field(name="a"), Field(name="b", kind="numeric")), label="y")
    frame = pl.DataFrame({"b": [1.0, 2.0], "more": [0, 0], "a": ["u", "u"], "y": [0, 1]})
    vocabulary = Vocabulary.fit(frame.lazy(), schema, 1, 32)
    ids = vocabulary.encode(frame)
    assert ids.tolist() == [[1, 1], [1, 2]]
    assert ids.dtype == np.int32
    assert ids.flags.c_contiguous
    assert vocabulary.encode(frame.head(0)).shape == (0, 2)
    with pytest.raises(DataError, match="the table lacks these columns: a"):
        vocabulary.encode(frame.drop("a"))


def test_schema_and_keep():
    schema = FeatureSchema(fields=(Field(name="a"), Field(name="b")), label="y")
    vocabulary = Vocabulary.fit(pl.LazyFrame({"a": ["u", "v"], "b": ["w", "w"]}), schema, 1, 32)
    assert vocabulary.schema(schema).cardinalities == (3, 2)
    assert vocabulary.keep(["b"]).names == ("b",)
    assert vocabulary.keep(["b", "a"]).names == ("a", "b")
    for call in (vocabulary.counts, vocabulary.cardinality, vocabulary.missing, lambda name: vocabulary.keep([name])):
        with pytest.raises(DataError, match="unknown column 'c': the fields are a, b"):
            call("c")


def test_a_round_trip_is_exact(tmp_path):
    schema = FeatureSchema(fields=(Field(name="a"), Field(name="n", kind="numeric"), Field(name="e")), label="y")
    rng = np.random.default_rng(1)
    frame = pl.DataFrame(
        {
            "a": [None if v == 3 else f"v{v}" for v in rng.integers(0, 9, 500)],
            "n": [None if v > 1 else v for v in rng.normal(size=500)],
            "e": ["", '"', ",", "\n", "é"] * 100,
            "y": rng.integers(0, 2, 500),
        }
    )
    vocabulary = Vocabulary.fit(frame.lazy(), schema, 2, 8)
    vocabulary.write(tmp_path / "v.parquet")
    back = Vocabulary.read(tmp_path / "v.parquet")
    assert back.table().equals(vocabulary.table())
    assert back.encode(frame).tolist() == vocabulary.encode(frame).tolist()
    assert back.names == vocabulary.names
    assert [back.missing(n) for n in back.names] == [vocabulary.missing(n) for n in back.names]
    assert vocabulary.missing("a") > 0
    assert vocabulary.missing("n") > 0


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path):
    path = tmp_path / "v.parquet"
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot read the vocabulary"):
        Vocabulary.read(path)
    pl.DataFrame({"a": [1]}).write_parquet(path)
    with pytest.raises(DataError, match="is not a vocabulary: its columns must be field, kind, id"):
        Vocabulary.read(path)
    known = fit(["a", "b"]).table()
    for wrong, kind in ((-1.0, pl.Float64), (float("nan"), pl.Float64), (None, pl.Float64), (1, pl.Int64)):
        known.with_columns(recent=pl.Series([0, 1, wrong], dtype=kind)).write_parquet(path)
        with pytest.raises(DataError, match="is not a vocabulary: recent must be numbers of at least 0"):
            Vocabulary.read(path)
    known.reverse().write_parquet(path)
    with pytest.raises(DataError, match="ids of 'x' must be 0, 1, 2"):
        Vocabulary.read(path)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(max_size=3)), min_size=1, max_size=60), st.integers(1, 3))
def test_counts_are_those_of_the_encoded_rows(values, min_count):
    vocabulary = fit(values, min_count=min_count, dtype=pl.String)
    ids = encode(vocabulary, values, dtype=pl.String)
    counts = vocabulary.counts("x")
    assert np.bincount(ids, minlength=len(counts)).tolist() == counts.tolist()
    assert (counts[1:] >= min_count).all()
    assert (np.diff(counts[1:]) <= 0).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=60), st.integers(2, 8))
def test_bins_keep_the_order_of_numbers(values, bins):
    vocabulary = fit(values, kind="numeric", bins=bins, dtype=pl.Float64)
    ids = np.array(encode(vocabulary, values, dtype=pl.Float64))
    counts = vocabulary.counts("x")
    assert np.bincount(ids, minlength=len(counts)).tolist() == counts.tolist()
    assert (counts[1:] > 0).all()
    present = sorted((value, i) for value, i in zip(values, ids, strict=True) if not np.isnan(value))
    runs = [i for place, (_, i) in enumerate(present) if place == 0 or i != present[place - 1][1]]
    assert len(runs) == len(set(runs)) <= bins


def test_a_vocabulary_of_before_still_encodes_as_it_did(tmp_path):
    values = np.concatenate([np.zeros(900), np.arange(1, 101.0)])
    before = fit(values, kind="numeric", bins=8).table()
    before = before.head(3).with_columns(upper=pl.Series([None, 0.0, np.inf]))
    before = before.with_columns(id=pl.int_range(pl.len(), dtype=pl.Int32), count=pl.Series([0, 900, 100]))
    before.write_parquet(tmp_path / "v.parquet")
    assert encode(Vocabulary.read(tmp_path / "v.parquet"), [-1.0, 0.0, 1.0, 1e9]) == [1, 1, 2, 2]


def hashed(values, buckets=3, min_count=2, most=None):
    frame = pl.DataFrame({"x": values, "y": [0] * len(values)})
    schema = FeatureSchema(fields=(Field(name="x", buckets=buckets),), label="y")
    return Vocabulary.fit(frame.lazy(), schema, min_count, 8, most=lambda name: most)


def test_at_most_so_many_values_have_ids_the_most_frequent_ones():
    values = ["b"] * 3 + ["d", "c"] * 2 + ["a"] * 5 + [None] * 4
    vocabulary = hashed(values, buckets=None, min_count=1, most=3)
    assert vocabulary.table()["value"].to_list() == [None, "a", None, "b"]
    assert encode(vocabulary, ["a", None, "b", "c", "d"]) == [1, 2, 3, 0, 0]
    assert vocabulary.counts("x").tolist() == [4, 5, 4, 3]
    # Of equals the first by value stays, and rare values are no more than the rule says.
    assert hashed(values, None, 1, most=4).table()["value"].to_list() == [None, "a", None, "b", "c"]
    assert hashed(values, None, 3, most=4).table()["value"].to_list() == [None, "a", None, "b"]


def test_values_beyond_the_most_frequent_are_hashed_and_later_logs_keep_to_the_number():
    vocabulary = hashed(["a"] * 9 + ["b"] * 40 + ["c"] * 8 + ["d"] * 7, most=2)
    held = [f"#hash:{number}" for number in range(3)]
    assert sorted(vocabulary.table()["value"].drop_nulls()) == [*held, "a", "b"]
    assert vocabulary.counts("x").sum() == 64
    log = hashed(["e"] * 60 + ["c"] * 2, min_count=1)
    later = vocabulary.grown(log, least=1, evict=0.05, memory=0.5, most=lambda name: 2)
    assert sorted(later.table()["value"].drop_nulls()) == [*held, "b", "e"]
    assert sorted(log.pruned(1, lambda name: 1).table()["value"].drop_nulls()) == [*held, "e"]


def test_rare_and_unknown_values_of_a_hashed_field_share_its_buckets(tmp_path):
    rare = [f"r{number}" for number in range(30)]
    vocabulary = hashed(["a"] * 9 + ["b"] * 40 + rare + [None])
    table = vocabulary.table()
    assert sorted(table["value"].drop_nulls()) == ["#hash:0", "#hash:1", "#hash:2", "a", "b"]
    assert table["value"][1] == "b"
    assert table["count"].sum() == 80
    assert vocabulary.counts("x")[0] == 1  # what is missing, and too rare for an id of its own
    encoded = vocabulary.encode(pl.DataFrame({"x": ["b", *rare, "new", None, "7", "7.0"]}))[:, 0]
    assert encoded[0] == 1
    assert set(encoded[1:32]) == set(vocabulary.unknown("x")) - {0}
    assert encoded[32] == 0
    assert encoded[33] == encoded[34]  # one text, one bucket
    assert vocabulary.gaps(vocabulary.encode(pl.DataFrame({"x": ["b", "new", None]})))[:, 0].tolist() == [2, 0, 3]
    vocabulary.write(tmp_path / "v.parquet")
    again = Vocabulary.read(tmp_path / "v.parquet")
    assert again.buckets("x") == 3
    assert np.array_equal(again.encode(pl.DataFrame({"x": rare})), vocabulary.encode(pl.DataFrame({"x": rare})))


def test_a_hashed_field_keeps_its_buckets_after_a_later_log():
    old, log = hashed(["a"] * 9 + ["b"] * 4 + ["r"]), hashed(["b"] * 9 + ["c"] * 5 + ["s"], min_count=1)
    grown = old.grown(log, least=2, evict=5.0, memory=0.5)
    table = dict(grown.table().select("value", "count").iter_rows())
    assert set(table) == {None, "#hash:0", "#hash:1", "#hash:2", "b", "c"}  # a, with 4.5 rows, has gone into a bucket
    assert sum(table[f"#hash:{number}"] for number in range(3)) == 5 + 1 + 1
    assert set(log.pruned(3).table()["value"]) == {None, "#hash:0", "#hash:1", "#hash:2", "b", "c"}


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ({"hash": {"nobody": 9}}, "data.hash names no column of the table: nobody"),
        ({"hash": {"n": 9}}, "data.hash cannot hash n, as it is numeric"),
        ({"hash": {"b": 9}, "shared": {"b": "a"}}, "data.hash cannot hash b, as it has the ids of a: hash that"),
        (
            {"max_values": {"n": 9}},
            "data.max_values is of columns with a table of values, but n is numeric: name one of a",
        ),
        ({"max_values": {"b": 9}, "shared": {"b": "a"}}, "but b has the ids of a: name one of a"),
        ({"max_values": {"nobody": 9}}, "nobody"),
    ],
)
def test_columns_that_cannot_be_hashed_or_capped_are_refused(tmp_path, spec, line):
    frame = pl.DataFrame({"label": [0, 1] * 50, "a": ["x", "y"] * 50, "b": ["y", "x"] * 50, "n": [0.5, 1.25] * 50})
    frame.write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError) as caught:
        build_dataset(DataSpec.model_validate(spec), tmp_path / "t.parquet", tmp_path / "cache")
    assert line in str(caught.value)
