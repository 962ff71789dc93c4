"""Numbers between knots: knots, and the codes of numbers, by hand."""

import numpy as np
import polars as pl
import pytest

from autoembed.data.dataset import build_dataset
from autoembed.data.knots import ONE, SPAN, Knots, check_size, encode, line, of_bins, plain
from autoembed.data.spec import DataSpec
from autoembed.data.vocabulary import Vocabulary
from autoembed.errors import DataError

UPPERS, KNOTS = np.array([5.0, 15.0, np.inf]), np.array([0.0, 10.0, 30.0])
IDS = np.array([3, 1, 2], dtype=np.int32)


def codes(*values, missing=4):
    return encode(np.array(values), UPPERS, KNOTS, IDS, missing).tolist()


def code(id, share):
    """An id that has a share of a number, which is its complement to 1 in the code."""
    return id + round((1 - share) * ONE) * SPAN


def test_a_number_between_two_knots_has_a_share_of_each():
    assert codes(2.5) == [[code(3, 0.75), code(1, 0.25)]]
    assert codes(7.5) == [[code(1, 0.75), code(3, 0.25)]]  # the first id is that of its bin
    assert codes(20.0) == [[code(2, 0.5), code(1, 0.5)]]
    assert codes(14.0) == [[code(1, 0.8), code(2, 0.2)]]


def test_a_number_at_a_knot_is_its_id_alone():
    assert codes(0.0, 10.0, 30.0) == [[3, -1], [1, -1], [2, -1]]


def test_numbers_beyond_the_knots_are_the_last_ones():
    assert codes(-1e300, -np.inf, 31.0, np.inf) == [[3, -1], [3, -1], [2, -1], [2, -1]]


def test_no_number_is_interpolated_towards_a_bin_without_a_knot():
    knots = np.array([0.0, np.nan, 30.0])
    x = np.array([2.5, 7.0, 12.0, 20.0, 99.0])
    assert encode(x, UPPERS, knots, IDS, 4).tolist() == [[3, -1], [1, -1], [1, -1], [2, -1], [2, -1]]


def test_missing_has_an_id_of_its_own():
    assert codes(np.nan) == [[4, -1]]
    assert codes(np.nan, missing=0) == [[0, -1]]


def test_distances_that_no_number_can_hold_are_none():
    found = encode(np.array([0.0]), np.array([0.0, np.inf]), np.array([-1.7e308, 1.7e308]), IDS, 0)
    assert found.tolist() == [[code(3, 0.5), code(1, 0.5)]]


def test_shares_are_as_exact_as_codes_can_tell():
    x = np.random.default_rng(0).uniform(0, 30, 1000)
    found = encode(x, UPPERS, KNOTS, IDS, 0)
    knot_of = np.zeros(5)
    knot_of[IDS] = KNOTS
    share = np.where(found < 0, 0, 1 - found // SPAN / ONE)
    assert np.allclose(share.sum(axis=1), 1)
    assert np.abs((knot_of[np.maximum(plain(found), 0)] * share).sum(axis=1) - x).max() <= 20 / ONE
    assert np.array_equal(plain(found)[:, 0], IDS[np.searchsorted(UPPERS, x)])


def test_knots_are_medians_of_bins_of_several_values():
    values, counts = np.array([1.0, 2.0, 3.0, 4.0, 9.0]), np.array([1, 5, 1, 1, 7])
    assert of_bins(values, counts, np.array([3.0, np.inf])).places.tolist() == [2.0, 9.0]
    assert of_bins(values, np.ones(5, int), np.array([np.inf])).places.tolist() == [3.0]
    found = of_bins(values, counts, np.array([2.0, 3.0, np.inf]))
    assert found.texts == ["2.0", "=3.0", "9.0"]
    assert np.array_equal(found.places, [2.0, np.nan, 9.0], equal_nan=True)
    again = Knots.of_texts(found.texts)
    assert np.array_equal(again.places, found.places, equal_nan=True)
    assert again.medians.tolist() == [2.0, 3.0, 9.0]


def test_a_line_has_the_ends_that_few_rows_lie_beyond():
    values = np.arange(1001.0)
    uppers, knots = line(values, np.ones(1001, int))
    assert knots.places.tolist() == [5.0, 995.0]
    assert uppers.tolist() == [500.0, np.inf]
    assert line(np.array([0.0, 7.0]), np.array([10_000, 1]))[1].places.tolist() == [0.0, 7.0]
    assert line(np.array([3.0]), np.array([5]))[1].places.tolist() == [3.0]
    assert line(np.empty(0), np.empty(0, int))[1].places.tolist() == [0.0]


def test_infinite_numbers_of_train_are_values_of_their_own():
    values, counts = np.array([-np.inf, 1.0, 2.0, 3.0, np.inf]), np.full(5, 9)
    assert line(values, counts)[1].places.tolist() == [1.0, 3.0]
    uppers = np.array([1.0, 2.0, np.inf])
    knots = of_bins(values, counts, uppers).places  # -inf, none, and 3
    assert encode(np.array([-np.inf, 0.0, 1.0, 2.5, np.inf]), uppers, knots, IDS, 0)[:, 1].tolist() == [-1] * 5


def test_too_many_knots_are_refused():
    check_size("x", SPAN - 2)
    with pytest.raises(DataError, match=f"'x' must have at most {SPAN - 2} knots, but has {SPAN - 1}: lower data.bins"):
        check_size("x", SPAN - 1)


ROWS = 400


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=ROWS), rng.normal(size=ROWS)
    x[:60] = 0.5  # a value with a bin of its own
    label = (rng.random(ROWS) < 1 / (1 + np.exp(-2 * x))).astype(int)
    gaps = [None if n % 9 == 0 else value for n, value in enumerate(x.tolist())]
    return pl.DataFrame({"x": gaps, "y": y, "city": rng.choice(["a", "b", "c"], ROWS), "label": label})


def built(table, folder, **data):
    table.write_parquet(folder / "t.parquet")
    return build_dataset(DataSpec(**data), folder / "t.parquet", folder / "cache")


def test_an_encoded_table_has_two_columns_for_a_number_between_knots(table, tmp_path):
    data = built(table, tmp_path, numeric_embedding={"x": "piecewise"}, bins=8)
    assert data.schema.lengths == (2, 1, 1)
    assert data.schema.interpolated == {"x"}
    vocabulary = data.vocabulary
    knots = vocabulary.knots("x")
    assert len(knots) == data.schema.cardinalities[0] - 2  # unknown and missing beside them
    assert np.isnan(knots).sum() == 1
    at_knots = vocabulary.encode(table.head(len(knots)).with_columns(x=np.where(np.isnan(knots), 0.5, knots)))[:, :2]
    assert (at_knots[:, 1] == -1).all()
    assert len(set(at_knots[:, 0].tolist())) == len(knots)
    gone = vocabulary.encode(table.head(1).with_columns(x=pl.lit(None, pl.Float64)))
    assert gone[0, :2].tolist() == [vocabulary.missing("x"), -1]
    again = Vocabulary.read(data.path / "vocabulary.parquet")
    assert np.array_equal(again.knots("x"), knots, equal_nan=True)
    assert np.array_equal(again.encode(table), vocabulary.encode(table))
    assert np.array_equal(data.schema.one(vocabulary.encode(table), "x"), bins_of(table, tmp_path))
    kept = data.keep(["x", "city"], tmp_path / "kept")
    assert np.array_equal(kept.ids("train"), data.ids("train")[:, [0, 1, 3]])
    assert np.array_equal(kept.vocabulary.encode(table), vocabulary.encode(table)[:, [0, 1, 3]])


def bins_of(table, folder):
    return built(table, folder, bins=8).vocabulary.encode(table)[:, 0]


def test_a_line_has_two_knots_and_all_numeric_columns_may_have_one(table, tmp_path):
    data = built(table, tmp_path, numeric_embedding="linear")
    assert data.schema.interpolated == {"x", "y"}
    assert [len(data.vocabulary.knots(name)) for name in ("x", "y")] == [2, 2]
    assert data.vocabulary.knots("city") is None


def test_data_of_bins_are_as_they_were(table, tmp_path):
    data = built(table, tmp_path)
    assert data.fingerprint == built(table, tmp_path, numeric_embedding="bins").fingerprint
    assert "interpolation" not in (data.path / "schema.json").read_text()


def test_a_column_without_any_number_has_one_knot(table, tmp_path):
    gone = table.with_columns(x=pl.lit(None, pl.Float64))
    data = built(gone, tmp_path, numeric=["x"], numeric_embedding="piecewise")
    assert data.vocabulary.knots("x").tolist() == [0.0]
    assert Vocabulary.read(data.path / "vocabulary.parquet").knots("x").tolist() == [0.0]


def test_what_cannot_have_knots_is_refused(table, tmp_path):
    with pytest.raises(DataError, match="numeric_embedding is of numeric columns, but city is categorical"):
        built(table, tmp_path, numeric_embedding={"city": "linear"})
    with pytest.raises(DataError, match=r"data\.numeric_embedding names no column of the table: price"):
        built(table, tmp_path, numeric_embedding={"price": "linear"})
    with pytest.raises(DataError, match="numeric_embedding"):
        DataSpec.checked({"numeric_embedding": "splines"})


def test_a_number_between_knots_is_crossed_and_rated_by_its_bin(table, tmp_path):
    between, plain_bins = (
        built(
            table,
            tmp_path,
            bins=4,
            numeric_embedding=kind,
            crosses={"pairs": [("x", "city")], "min_count": 1},
            target_statistics={"columns": ["x"]},
        )
        for kind in ("piecewise", "bins")
    )
    assert between.schema.names[3:] == plain_bins.schema.names[3:]
    for name in ("x", *between.schema.names[3:]):
        found, expected = (data.schema.one(data.ids("train"), name) for data in (between, plain_bins))
        assert np.array_equal(found, expected)
    encoded = between.vocabulary.encode(table)
    assert np.array_equal(encoded[:, 5:], plain_bins.vocabulary.encode(table)[:, 3:])
