"""Weights of rows: whole ones are repeated rows, and the null of others is that of redrawn rows."""

import math

import numpy as np
import polars as pl
import pytest

import autoembed as ae
from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.errors import DataError
from autoembed.ranking.ranking import rank, rank_table
from autoembed.ranking.scores import mutual_information, score
from autoembed.ranking.weighted import RowNull, equal_rows, score_weighted

ROWS = 4000


def table(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, rows), rng.integers(0, 8, rows)
    lists = [[f"t{value}" for value in rng.integers(0, 9, rng.integers(0, 4))] for _ in range(rows)]
    logit = 0.4 * (a - 2.5) + 0.8 * np.where((a + b) % 2, 1, -1) - 0.5
    frame = pl.DataFrame(
        {
            "label": (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int),
            "a": [f"v{value}" for value in a],
            "b": [f"v{value}" for value in b],
            "x": np.round(rng.normal(size=rows), 2),
            "noise": rng.integers(0, 300, rows),
            "tags": lists,
            "w": rng.integers(0, 4, rows),
        }
    )
    return frame


def repeated(frame):
    return frame[np.repeat(np.arange(len(frame)), frame["w"].to_numpy())].drop("w")


def same(first, second, *names):
    """Whether two tables have the same figures but for x, whose bins are cut by rows."""
    one, other = (table.filter(~pl.any_horizontal(pl.col(*names) == "x")).sort(names) for table in (first, second))
    figures = [name for name in one.columns if one[name].dtype.is_numeric()]
    assert len(one) == len(other) > 1
    return np.allclose(one.select(figures).to_numpy(), other.select(figures).to_numpy(), rtol=1e-9, atol=1e-12)


def test_a_table_with_whole_weights_is_ranked_as_its_repeated_rows():
    frame = table()
    weighted = rank_table(frame, settings={"weight": "w"}, pairs="all")
    plain = rank_table(repeated(frame), pairs="all")
    assert set(weighted.table["feature"]) == {"a", "b", "x", "noise", "tags"}
    assert same(weighted.table, plain.table, "feature")
    assert same(weighted.pairs, plain.pairs, "a", "b")
    assert weighted.fingerprint != rank_table(frame.drop("w")).fingerprint
    assert "a row of weight 2 is ranked as two equal rows" in weighted.notes[-1]


def test_a_dataset_with_whole_weights_is_ranked_as_one_of_repeated_rows(tmp_path):
    found = []
    for name, change in (("weighted", lambda frame: frame), ("repeated", repeated)):
        (tmp_path / name).mkdir()
        for seed, split in enumerate(("train", "valid", "test")):
            change(table(seed=seed)).write_parquet(tmp_path / name / f"{split}.parquet")
        spec = DataSpec(min_count=1, weight="w" if name == "weighted" else None)
        found.append(rank(build_dataset(spec, tmp_path / name, tmp_path / "cache"), pairs=[("a", "b"), ("a", "noise")]))
    assert same(found[0].table, found[1].table, "feature")
    assert same(found[0].pairs, found[1].pairs, "a", "b")


def test_equal_weights_say_nothing():
    rng = np.random.default_rng(1)
    codes, labels = rng.integers(0, 500, ROWS), rng.integers(0, 2, ROWS)
    counts = np.bincount(codes * 2 + labels, minlength=1000).reshape(500, 2)
    assert equal_rows(2.5 * counts.sum(axis=0), 2.5**2 * counts.sum(axis=0)) == pytest.approx(ROWS)
    null = RowNull(labels, np.full(ROWS, 2.5), 2)
    found, plain = score_weighted(2.5 * counts, counts.sum(axis=1), null), score(counts)
    assert found.mi == pytest.approx(plain.mi)
    assert found.expected_mi == pytest.approx(plain.expected_mi, rel=1e-3)
    assert found.sd == pytest.approx(plain.sd, rel=0.05)
    for rows in (np.array([ROWS]), np.ones(ROWS, int)):  # one value, and one for each row
        assert null.moments(rows)[1] == pytest.approx(0, abs=1e-6)


def by_kind(kind, rng):
    """Labels and weights of rows; the weights have to do with the label but for `decay`."""
    labels = (rng.random(ROWS) < 0.15).astype(int)
    if kind == "decay":
        return labels, np.exp(-rng.exponential(1.0, ROWS))
    if kind == "sampled":
        return labels, np.where(labels == 1, 1.0, 9.5)
    if kind == "clicks":
        return labels, np.where(labels == 1, rng.uniform(2, 9, ROWS), rng.uniform(0.1, 1, ROWS))
    return rng.choice(3, ROWS, p=[0.6, 0.3, 0.1]), rng.lognormal(0, 0.7, ROWS)


@pytest.mark.parametrize("kind", ["decay", "sampled", "clicks", "three classes"])
@pytest.mark.parametrize("values", [2, 40, 1500])
def test_the_null_is_that_of_rows_drawn_anew(kind, values):
    rng = np.random.default_rng(5)
    labels, weights = by_kind(kind, rng)
    classes, codes = labels.max() + 1, rng.integers(0, values, ROWS)
    rows = np.bincount(codes, minlength=values)
    drawn = []
    for _ in range(300):
        own = rng.permutation(codes)
        counts = np.bincount(own * classes + labels, weights, values * classes).reshape(values, classes)
        drawn.append(mutual_information(counts))
    mean, sd = np.array(RowNull(labels, weights, classes).moments(rows)) / weights.sum()
    z = (np.array(drawn) - mean) / sd
    assert abs(z.mean()) < 4 / math.sqrt(300)
    assert z.std() == pytest.approx(1, abs=0.15)


def test_noise_of_weighted_rows_has_a_z_of_chance():
    rng = np.random.default_rng(7)
    labels, weights = by_kind("decay", rng)
    frame = pl.DataFrame(
        {f"noise_{at}": rng.integers(0, 10 * 3 ** (at % 4), ROWS) for at in range(160)}
        | {"label": labels, "w": weights}
    )
    z = rank_table(frame, settings={"weight": "w"}).table["z"].to_numpy()
    assert abs(z.mean()) < 4 / math.sqrt(160)
    assert z.std() == pytest.approx(1, abs=0.2)
    # Taken for counts, the weights would make noise look like information.
    counted = (
        rank_table(frame.with_columns(w=(pl.col("w") * 100).ceil()), settings={"weight": "w"}).table["z"].to_numpy()
    )
    assert counted.mean() > 10


@pytest.mark.parametrize("criterion", ["jmi", "3mr"])
def test_selection_and_stability_of_whole_weights_are_those_of_the_repeated_rows(criterion):
    frame = table().drop("tags", "x")
    options = {"select": (criterion, 3), "stability": 20}
    weighted = rank_table(frame, settings={"weight": "w"}, **options)
    plain = rank_table(repeated(frame), **options)
    assert weighted.selected["feature"].to_list() == plain.selected["feature"].to_list()
    assert same(weighted.selected, plain.selected, "feature")
    ranks = ["rank_low", "rank_median", "rank_high"]
    assert weighted.stability.sort("feature").equals(plain.stability.sort("feature"))
    assert weighted.stability.select(ranks).to_numpy().min() == 1


def test_pairs_of_weights_that_are_not_whole_are_those_of_the_rows():
    frame = table().with_columns(w=pl.col("w") + 0.5)
    weighted = ae.rank(frame, settings={"weight": "w"}, pairs=3)
    assert weighted.pairs.equals(ae.rank(frame.drop("w"), pairs=3).pairs)
    assert "count once each" in weighted.notes[-1]


def test_what_cannot_be_weighted_is_refused_in_one_line():
    frame = table(400)
    settings = {"weight": "w"}
    with pytest.raises(DataError, match="the score tree counts each row once, but rows have the weights 'w': choose"):
        rank_table(frame.drop("tags"), settings=settings, score="tree")
    uneven = frame.with_columns(pl.col("w") + 0.5)
    for options in ({"select": ("jmi", 2)}, {"stability": 5}):
        with pytest.raises(DataError, match="select and stability count rows, so the weights 'w' must be whole"):
            rank_table(uneven, settings=settings, **options)
    with pytest.raises(DataError, match="of at most 999,999,999 in all"):
        rank_table(frame.with_columns(pl.col("w") * 10**7), settings=settings, stability=2)
    with pytest.raises(DataError, match=r"data\.weight names no column of the table: v"):
        rank_table(frame, settings={"weight": "v"})
    with pytest.raises(DataError, match="all weights of 'w' are 0"):
        rank_table(frame.with_columns(w=0), settings=settings)
    with pytest.raises(DataError, match="weight 'w' must be 0 or more, but has -1"):
        rank_table(frame.with_columns(w=-1), settings=settings)
