"""The bins of a numeric column, from how often train has each of its values, with how many clicks."""

from __future__ import annotations

import heapq
from math import log, sqrt

import numpy as np
import numpy.typing as npt

from autoembed.types import Array

Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

OWN_ROWS = 10
MOST_OWN = 4000
LEAST_Z = 3.0
_CHANCE = 0.5  # nats of all rows together that one bin more says without any effect (Miller and Madow, 1955)


def upper_bounds(values: Floats, counts: Counts, bins: int, clicks: Counts | None = None) -> Floats:
    """The ascending upper bounds (inclusive) of the bins of a numeric column; the last is infinite.

    A column of at most `bins` values has a bin for each. Any other has its `fine_bounds`: many "numbers" are categories
    (a clock time, the distance to one airport), whose neighbours say little about them. With `clicks`, fine bins beyond
    `bins` that say little are taken back. Where all of them together say nothing about the label (chi-square, z at most
    LEAST_Z), the column has about `bins` ranges, in which a value with a range's share of rows is alone. Labels do not
    shape these, so noise has no information in them. Elsewhere neighbours merge, those that lose least first, until
    `bins` are left or the bins would say less about the label beyond chance (mutual information less (bins - 1) / (2
    rows)) than the fine bins do.

    Bounds lie midway between a bin and the next, so that a value that train has not is in the nearest bin.

    Args:
        values: the distinct values, ascending.
        counts: train rows of each.
        bins: from how many bins on a bin must be worth it.
        clicks: train rows of label 1 of each; without them, as of labels of several classes, no bin is taken back.
    """
    fine = fine_bounds(values, counts, bins)
    if clicks is None or len(fine) <= bins:
        return fine
    place = np.searchsorted(fine, values)
    table = np.stack([np.bincount(place, weights=w) for w in (counts - clicks, clicks)], axis=1)
    if _z(table) <= LEAST_Z:
        return fine_bounds(values, counts, bins, bins)
    return fine[_merged(table, bins)]


def fine_bounds(values: Floats, counts: Counts, bins: int, most: int = MOST_OWN) -> Floats:
    """Bounds as of `upper_bounds`, no label looked at.

    A value is heavy and has a bin of its own if train has it OWN_ROWS times and in 1 / `most` of the rows. The rows of
    the other values are shared by about `bins` ranges of equal mass. No range reaches across a heavy value. A stretch
    between heavy values has no range if it has fewer than OWN_ROWS rows, or 1 / MOST_OWN of all: its values go to the
    nearer heavy one.
    """
    if len(values) == 0:
        return np.empty(0)
    if len(values) <= bins:
        last = np.arange(len(values))
    else:
        rows = int(counts.sum())
        least = max(OWN_ROWS, rows / MOST_OWN)
        heavy = counts >= max(OWN_ROWS, rows / most)
        kept = np.ones(len(values), dtype=bool)
        for start, stop in _between(heavy):
            kept[start:stop] = not heavy.any() or counts[start:stop].sum() >= least
        values = values[kept]
        last = _last_places(counts[kept], heavy[kept], bins, least)
    return np.append(_midway(values[last[:-1]], values[last[:-1] + 1]), np.inf)


def _between(heavy: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Start and stop of each stretch of places that are not heavy."""
    places = np.flatnonzero(heavy)
    starts, stops = np.append(0, places + 1), np.append(places, len(heavy))
    return [(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True) if start < stop]


def _last_places(counts: Counts, heavy: npt.NDArray[np.bool_], bins: int, least: float) -> Counts:
    """The place of the last value of each bin, ascending."""
    share = max(least, int(counts[~heavy].sum()) / bins)
    ends = [np.flatnonzero(heavy)]
    for start, stop in _between(heavy):
        upto = np.cumsum(counts[start:stop])
        ranges = max(1, round(float(upto[-1]) / share))
        inner = np.searchsorted(upto, upto[-1] * np.arange(1, ranges) / ranges)
        ends.append(start + np.append(inner, stop - start - 1))
    return np.unique(np.concatenate(ends))


def _midway(below: Floats, above: Floats) -> Floats:
    """The middle of two neighbours, or the lower where no number between them can be named."""
    with np.errstate(invalid="ignore"):
        middle = below / 2 + above / 2
    found: Floats = np.where((middle > below) & (middle < above), middle, below)
    return found


def _z(table: Array) -> float:
    """Pearson's chi-square of clicks by bin [K, 2], in standard deviations above its mean without any effect."""
    n = table.sum(axis=1)
    rate = table[:, 1].sum() / n.sum()
    if not 0 < rate < 1:
        return 0.0
    chi2, free = ((table[:, 1] - n * rate) ** 2 / (n * rate * (1 - rate))).sum(), len(table) - 1
    return float((chi2 - free) / sqrt(2 * free))


def _merged(table: Array, least: int) -> Counts:
    """The places of the last of each run of bins that become one, ascending."""
    size = len(table)
    rows = [(float(a), float(b)) for a, b in table]
    before, after, state, left = list(range(-1, size - 1)), list(range(1, size + 1)), [0] * size, size

    def lost(a: int, b: int) -> tuple[float, int, int, int, int]:
        (u, v), (x, y) = rows[a], rows[b]
        return _fit(u, v) + _fit(x, y) - _fit(u + x, v + y), a, b, state[a], state[b]

    heap = [lost(at, at + 1) for at in range(size - 1)]
    heapq.heapify(heap)
    spare = 0.0
    while heap and left > least:
        loss, a, b, *seen = heapq.heappop(heap)
        if [state[a], state[b]] != seen:
            continue
        spare += _CHANCE - loss
        if spare < 0:
            break
        rows[a] = (rows[a][0] + rows[b][0], rows[a][1] + rows[b][1])
        state[a], state[b], left, after[a] = state[a] + 1, -1, left - 1, after[b]
        if after[b] < size:
            before[after[b]] = a
            heapq.heappush(heap, lost(a, after[b]))
        if before[a] >= 0:
            heapq.heappush(heap, lost(before[a], a))
    return np.array([after[at] - 1 for at in range(size) if state[at] >= 0])


def _fit(a: float, b: float) -> float:
    """The log likelihood of a bin's rows at its own click rate."""
    return (a * log(a) if a else 0.0) + (b * log(b) if b else 0.0) - ((a + b) * log(a + b) if a + b else 0.0)
