"""Which columns to take together: greedy selection that looks at what the ones taken already say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from autoembed.errors import DataError
from autoembed.ranking.scores import score, xlogx
from autoembed.types import Array, Progress

if TYPE_CHECKING:
    from autoembed.ranking.table import CodedTable

Floats = npt.NDArray[np.float64]

CRITERIA = ("jmi", "3mr")
_SAMPLE = 200_000


def select(
    table: CodedTable,
    k: int,
    criterion: str = "jmi",
    *,
    redundancy: float = 1.0,
    relation: float = 1.0,
    progress: Progress | None = None,
) -> pl.DataFrame:
    """The k columns taken one after the other, each for what it adds to those before.

    jmi: joint mutual information (Yang and Moody, 1999), the sum over the columns taken of what both together say.
    3mr: relevance - `redundancy` * mean information shared with the columns taken + `relation` * mean synergy with
    them (maximal relevance, minimal redundancy, maximal relation, as in OutRank, RecSys 2023). All information is
    adjusted for chance and in nats; pairs are counted on at most 200,000 evenly spaced rows. A row of a whole weight
    counts as so many equal rows.

    Returns:
        One row per column taken, in order: feature, gain (the criterion when it was taken), relevance.

    Raises:
        DataError: an unknown criterion, k below 1, or a table whose codes were not kept.
    """
    if criterion not in CRITERIA:
        raise DataError(f"unknown criterion {criterion!r}: must be one of {', '.join(CRITERIA)}")
    if k < 1:
        raise DataError(f"the number of columns to select must be at least 1, but got {k}")
    step = max(1, table.rows // _SAMPLE)
    labels = table.labels[::step]
    weights = None if table.weighted is None else table.weighted.weights[::step]
    columns = [np.ascontiguousarray(table.codes(place, step)) for place in range(len(table.names))]
    classes = table.counts.tables[0].shape[1]
    alone = np.array([score(_table(codes, labels, classes, weights)).score for codes in columns])
    left, taken = list(range(len(columns))), list[int]()
    shared, joint = np.zeros(len(columns)), np.zeros(len(columns))
    out = []
    for turn in range(min(k, len(columns))):
        if not taken:
            value = alone
        elif criterion == "jmi":
            value = joint
        else:
            synergy = joint - len(taken) * alone - alone[taken].sum()
            value = alone - (redundancy * shared - relation * synergy) / len(taken)
        best = max(left, key=lambda place: (value[place], -place))
        out.append((table.names[best], float(value[best]), float(alone[best])))
        left.remove(best)
        taken.append(best)
        if turn + 1 < min(k, len(columns)):
            for place in left:
                information, overlap = _pair(columns[best], columns[place], labels, classes, weights)
                joint[place] += information
                shared[place] += overlap
        if progress:
            progress("select", turn + 1, min(k, len(columns)))
    return pl.DataFrame(out, schema={"feature": pl.String, "gain": pl.Float64, "relevance": pl.Float64}, orient="row")


def _table(codes: Array, labels: Array, classes: int, weights: Array | None) -> npt.NDArray[np.int64]:
    size = int(codes.max(initial=0)) + 1
    return _counted(codes * np.int64(classes) + labels, weights, size * classes).reshape(size, classes)


def _counted(codes: Array, weights: Array | None, least: int = 0) -> npt.NDArray[np.int64]:
    """Rows of each code, by their whole weights if they have some."""
    return np.bincount(codes, weights, minlength=least).astype(np.int64)


def _pair(a: Array, b: Array, labels: Array, classes: int, weights: Array | None) -> tuple[float, float]:
    """What two columns together say about the label, and what they say about each other, both adjusted for chance."""
    _, cells = np.unique(a.astype(np.int64) << 32 | b, return_inverse=True)
    table = _table(cells, labels, classes, weights)
    information = score(table).score
    n = table.sum(axis=1)
    margins = [_counted(side, weights) for side in (a, b)]
    rows = float(n.sum())
    mutual = (xlogx(n).sum() - sum(xlogx(m).sum() for m in margins)) / rows + np.log(rows)
    # The plug-in estimate is too large by this much for independent columns (Miller and Madow, 1955).
    chance = (np.prod([float((m > 0).sum()) - 1 for m in margins])) / (2 * rows)
    return information, max(0.0, float(mutual - min(chance, mutual)))


def stability(tables: Sequence[npt.NDArray[np.int64]], names: Sequence[str], draws: int, seed: int = 0) -> pl.DataFrame:
    """How firm the order of columns is: their ranks on random halves of the rows.

    Halves are drawn without replacement within each class, per column from its table [K, L] (so no rows are read; a
    bootstrap would repeat rows, and repeated rows look like information in columns of many values).

    Returns:
        One row per column: feature, rank_low, rank_median, rank_high (5, 50 and 95 % of the draws; 1 is best).
    """
    if draws < 2:
        raise DataError(f"stability needs at least 2 draws, but got {draws}")
    rng = np.random.default_rng(seed)
    scores = np.empty((draws, len(tables)))
    for draw in range(draws):
        for place, table in enumerate(tables):
            halves = [rng.multivariate_hypergeometric(k, int(k.sum()) // 2, method="marginals") for k in table.T]
            scores[draw, place] = score(np.stack(halves, axis=1)).score
    ranks = len(tables) - np.argsort(np.argsort(scores, axis=1), axis=1)
    low, median, high = np.quantile(ranks, [0.05, 0.5, 0.95], axis=0, method="nearest")
    return pl.DataFrame(
        {"feature": list(names), "rank_low": low, "rank_median": median, "rank_high": high}
    ).with_columns(pl.col("rank_low", "rank_median", "rank_high").cast(pl.Int64))


def rank_biased_overlap(first: Sequence[str], second: Sequence[str], p: float = 0.9) -> float:
    """How alike two orders are, 0 to 1, the top weighing most (Webber, Moffat and Zobel, TOIS 2010, eq. 32: RBO_ext).

    `p` sets how deep one looks: the first 1 / (1 - p) ranks have most of the weight. Orders may differ in length and in
    what they hold. ValueError for p outside (0, 1) or an order that is empty or names something twice.
    """
    if not 0 < p < 1:
        raise ValueError(f"p must lie between 0 and 1, but got {p}")
    for order in (first, second):
        if not order or len(set(order)) != len(order):
            raise ValueError("an order must name one thing or more, each once")
    short, long = sorted((first, second), key=len)
    s, m = len(short), len(long)
    seen_short: set[str] = set()
    seen_long: set[str] = set()
    overlap, total, at_s = 0, 0.0, 0
    for depth in range(1, m + 1):
        seen_long.add(long[depth - 1])
        seen_short.update(short[depth - 1 : depth])
        overlap = len(seen_short & seen_long)
        if depth == s:
            at_s = overlap
        total += overlap / depth * p**depth
        if depth > s:
            total += at_s * (depth - s) / (s * depth) * p**depth
    return (1 - p) / p * total + ((overlap - at_s) / m + at_s / s) * p**m


def compare(first: pl.DataFrame, second: pl.DataFrame) -> pl.DataFrame:
    """Two rankings side by side: feature, rank_first, rank_second (null: absent), score_first, score_second; by the
    largest move first.
    """
    sides = [
        table.select(
            "feature", pl.int_range(1, pl.len() + 1).alias(f"rank_{name}"), pl.col("score").alias(f"score_{name}")
        )
        for name, table in (("first", first), ("second", second))
    ]
    joined = sides[0].join(sides[1], on="feature", how="full", coalesce=True)
    move = (pl.col("rank_first").cast(pl.Int64) - pl.col("rank_second").cast(pl.Int64)).abs()
    return joined.sort(move, "rank_first", descending=[True, False], nulls_last=False)
