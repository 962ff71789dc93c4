"""Pairs of columns: what they say together, and what of it neither says alone.

The joint column of a pair is scored as any column is (`ranking.scores`). Its synergy is measured against a null that
keeps both main effects. With n rows and k positives in the cell of values a and b:

- The null is additive on the logit: q = u_a v_b / (1 + u_a v_b), fitted so that each value of either column gets as
  many positives as it has. Values of fewer than 10 rows are left out, cells and all: fitted effects of so few rows
  would bend the fit of all others, and they hold next to no pairs of rows in one cell.
- Two rows of one cell agree more than the null says if there is an interaction. T = (k - nq)^2 - k(1-q)^2 - (n-k)q^2
  is the sum of (y_i - q)(y_j - q) over such pairs of rows: its mean is 0 for known q, whatever n is, its variance
  2 n(n-1) s^2 with s = q(1-q), and a cell of one row adds nothing, not even noise. As q is fitted, n(n-1) s^2 m is
  added back, m = c_a/A_a + c_b/B_b - 1/V, where A_a, B_b and V sum ns over the value a, the value b and all, and
  c = n/(n-1) of the value is what makes this exact for a single column.
- S = sum w T with w = 1 / (1 + ns/10), near the locally most powerful weights, but no cell outweighs all others.
  Var S = 2 L2, L2 = sum w^2 n(n-1) s^2 (1 - nsm). The statistic is close to a gamma variable whose shape follows from
  L2 and L3, the same sum of third powers; `synergy_z` is its normal deviate (Wilson and Hilferty 1931).
- `synergy`, nats = v V / 2N, where v = S / U, U = sum w n(n-1) s^2, estimates the variance of the interaction
  on the logit: the information per row that an interaction of this size holds.

Measured limits are in docs/results/ranking.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, count
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from autoembed.data.target_statistics import name_of as rate_of
from autoembed.errors import DataError
from autoembed.native import View
from autoembed.ranking import pair_kernels
from autoembed.ranking.counts import PairCounts, count_pair
from autoembed.ranking.scores import exact_moments, label_entropy, xlogx
from autoembed.ranking.weighted import MOST
from autoembed.types import Array, Floats, Progress

if TYPE_CHECKING:
    from autoembed.ranking.table import CodedTable

Pair = tuple[int, int]
Cells = tuple[Array, Array, Array, Array]  # both codes, uint32, rows and positives, int32 [cells] each
Walk = tuple[View, View, View, View]  # order and starts of `sort_rows`, and the codes and labels in that order

COLUMNS = {
    "a": pl.String,
    "b": pl.String,
    "cells": pl.Int64,
    "score": pl.Float64,
    "z": pl.Float64,
    "normalized": pl.Float64,
    "mi": pl.Float64,
    "expected_mi": pl.Float64,
    "synergy": pl.Float64,
    "synergy_z": pl.Float64,
}
_NO_ORDER = View(np.zeros(0, np.uint32))
_LEAST = 10
_SWEEPS = 100
_TOLERANCE = 1e-8
_DIRECT = 1 << 16, 1 << 21
_LOGS = 1 << 16
_KEPT_CELLS = 1 << 27
# Pairs whose screening z is above, and so many of the best, get the additive fit.
_FIT_ABOVE = 2.5
_FIT_FIRST = 20
# Fewer pairs of rows in one cell cannot show an interaction of one unit of the logit, and are far from normal.
_TOGETHER = 200
# Screening every pair on all rows up to this many row visits takes some 10 s of one core; beyond it, on fewer rows.
_SCREEN = 1_000_000_000
_SCREEN_ROWS = 100_000
_SCREEN_WEIGHTED = 30_000_000  # the same, where numpy counts the cells


class Kernel:
    """Sums of pairs for one label; one per thread, as it holds the workspace, for `room` rows: all by default."""

    def __init__(self, rows: int, positives: int, most_values: int = 1, room: int | None = None) -> None:
        logs = xlogx(np.arange(min(rows, _LOGS) + 1))
        moments = exact_moments(rows, positives, True).copy()
        share = (rows - np.arange(moments.shape[1])) / max(rows - 1, 1)
        moments[1:] = np.where(share > 0, moments[1:] / np.where(share > 0, share, 1.0), 0.0)
        self._chance = View(logs), View(moments), View(np.zeros(moments.shape[1], np.int64))
        room = rows if room is None else room
        self._cells = [View(np.empty(room + 1, dtype)) for dtype in (np.uint32, np.uint32, np.int32, np.int32)]
        self._numbers = View(np.zeros(2, np.int64))
        self._walked = {dtype: View(np.empty(room, dtype)) for dtype in (np.dtype(np.uint16), np.dtype(np.uint32))}
        size = max(_direct(room), most_values)
        # Half the width is half the cache, and enough if a cell has fewer rows than 65,536.
        packed = np.empty(room + 1, np.uint64)
        self._narrow = View(np.zeros(size, np.uint32)), 16, View(packed.view(np.uint32))
        self._wide = View(np.zeros(size, np.uint64)), 32, View(packed)

    def _count(self, a: Side, b: Side, labels: View, walk: Walk | None, least: int) -> None:
        """Fills the workspace with the cells of a pair that have `least` rows."""
        rows = a.codes, b.codes, labels, *(walk or (_NO_ORDER, _NO_ORDER, a.codes, labels)), len(a.rows), len(b.rows)
        counter, bits, packed = self._narrow if min(a.most, b.most) < 1 << 16 else self._wide
        work = counter, bits, least, packed, self._walked[b.codes.array.dtype], *self._cells, self._numbers
        pair_kernels.cells(*rows, *work)

    def cells(self, a: Side, b: Side, labels: View, walk: Walk | None, least: int) -> tuple[Cells, int]:
        """The cells of a pair with `least` rows, in the workspace, and how many occur."""
        self._count(a, b, labels, walk, least)
        found, seen = self._numbers.array.tolist()
        ca, cb, cn, ck = (part.array[:found] for part in self._cells)
        return (ca, cb, cn, ck), seen

    def screen(self, a: Side, b: Side, labels: View, walk: Walk | None) -> Floats:
        """The 14 sums of a pair from its cells of two rows or more, about the product of the odds of both values."""
        out = np.zeros(14)
        self._count(a, b, labels, walk, 2)
        about = a.odds, b.relative, a.lever, b.lever, min(a.spread, b.spread)
        pair_kernels.screen(*self._cells, self._numbers, *self._chance, *about, out)
        return out

    def fit(self, cells: Cells, na: Array, nb: Array) -> Floats:
        """The 14 sums of a pair from all its cells, which are reordered, about the additive fit."""
        out, work = np.zeros(14), (np.empty((5, len(na))), np.empty((5, len(nb))))
        pair_kernels.fit(*cells, na, nb, *self._chance, _LEAST, _SWEEPS, _TOLERANCE, *work, out)
        return out


class Side:
    """One column of a pair: its codes [rows], and of each value [K] the rows, odds, and c / A without a fit.

    `relative` are the odds over those of all rows.

    The codes are new ones: the more rows, the lower, so that most counters that a row meets stand in the cache.
    """

    def __init__(self, codes: Array, table: Array) -> None:
        order = np.argsort(-table.sum(axis=1), kind="stable")
        place = np.empty(len(order), np.uint16 if len(order) <= 1 << 16 else np.uint32)
        place[order] = np.arange(len(order))
        self.codes = View(place[codes])
        table = table[order]
        self.rows = table.sum(axis=1)
        self.most = int(self.rows[0])
        known = (self.rows >= _LEAST) & (table > 0).all(axis=1)
        odds = np.where(known, table[:, 1] / np.where(known, table[:, 0], 1), 0.0)
        others, ones = table.sum(axis=0)
        self.odds, self.relative = View(odds), View(odds / (ones / others))
        spread = np.where(known, table[:, 0] * table[:, 1] / np.maximum(self.rows, 1), 0.0)
        self.spread = max(float(spread.sum()), 1.0)
        lever = self.rows / (np.maximum(self.rows - 1, 1) * np.where(known, spread, 1.0))
        self.lever = View(np.where(known, lever, 0.0))

    def walk(self, labels: View) -> Walk:
        """What `Kernel.cells` needs to walk the rows of each value."""
        codes = self.codes.array
        order, starts = pair_kernels.sort_rows(codes, len(self.rows))
        return View(order), View(starts), View(codes[order]), View(labels.array[order])


def rank_pairs(
    table: CodedTable, wanted: int | str | Sequence[tuple[str, str]], threads: int, progress: Progress | None = None
) -> pl.DataFrame:
    """The pairs of a table, by synergy_z descending (ties by names).

    Args:
        table: with its codes kept.
        wanted: "all"; a list of name pairs; or a number: as many best pairs of all pairs. Those of a column and its own
            click rate are not among them. Beyond 1e9 row visits, all pairs are screened on every s-th row, and a
            quarter more than the number are then measured on all rows.
        threads: pairs measured at a time.
        progress: called with (step, done, total).

    Whole weights count as so many equal rows: cells are counted by numpy then, not by the kernels, and beyond 3e7 row
    visits the best pairs are found on rows without weights first. Where weights are not whole, rows count once.

    Raises:
        DataError: the label has more than two classes, a name is no column, or a pair names one column twice.
    """
    totals = table.counts.tables[0].sum(axis=0)
    if len(totals) != 2:
        raise DataError(
            f"pairs need a label of two classes, but it has {len(totals)}: make it one class against the rest"
        )
    names = table.names
    every = [pair for pair in combinations(range(len(names)), 2) if not _is_own_rate(table, *pair)]
    if isinstance(wanted, str):
        if wanted != "all":
            raise DataError(f"pairs must be a number or all, but got {wanted!r}")
        chosen, most = every, len(every)
    elif isinstance(wanted, int):
        if wanted < 1:
            raise DataError(f"pairs must be at least 1, but got {wanted}")
        chosen, most = every, wanted
        if table.rows * len(every) > (_SCREEN_WEIGHTED if counts_weights(table) else _SCREEN) and wanted < len(every):
            chosen = _sample(table, every, wanted + max(wanted // 4, _FIT_FIRST), threads, progress)
    else:
        chosen = [_places(names, pair) for pair in wanted]
        most = len(chosen)
    if counts_weights(table):
        return _by_weights(table, chosen, progress).head(most)
    columns = _Columns(table, 1)
    sums = _screened(columns, chosen, threads, progress)
    z = synergy(sums, table.rows)[1]
    again = [at for place, at in enumerate(np.argsort(-z, kind="stable")) if z[at] > _FIT_ABOVE or place < _FIT_FIRST]
    sums[again] = _fitted(columns, [chosen[at] for at in again], threads, progress)
    return frame([(names[a], names[b]) for a, b in chosen], sums, totals).head(most)


def counts_weights(table: CodedTable) -> bool:
    """Whether pairs of a table count rows by their weights: these are whole, and few enough for the kernels."""
    own = table.weighted
    return own is not None and own.whole and int(own.tables[0].sum()) < MOST


def _by_weights(table: CodedTable, pairs: Sequence[Pair], progress: Progress | None) -> pl.DataFrame:
    """The table of pairs whose rows count by their weights: all get the additive fit."""
    assert table.weighted is not None
    weights, names = table.weighted.weights, table.names
    totals = table.weighted.tables[0].sum(axis=0)
    kernel = Kernel(int(totals.sum()), int(totals[1]), room=0)
    kept: dict[int, Array] = {}

    def codes(column: int) -> Array:
        if column not in kept:
            if len(kept) * table.rows > _KEPT_CELLS:
                kept.clear()
            kept[column] = table.codes(column)
        return kept[column]

    sums, named = [], [(names[a], names[b]) for a, b in pairs]
    for done, (name, (a, b)) in enumerate(zip(named, pairs, strict=True), 1):
        sums.append(_counted(kernel, name, count_pair(codes(a), codes(b), table.labels, weights=weights)))
        if progress:
            progress("pairs", done, len(pairs))
    return frame(named, np.stack(sums), totals)


def _is_own_rate(table: CodedTable, a: int, b: int) -> bool:
    """Whether one is the click rate of the other: among a value's rows, train's rate falls with their own labels."""
    pairs = ((a, b), (b, a))
    return any(table.kinds[y] == "statistic" and table.names[y] == rate_of(table.names[x]) for x, y in pairs)


def _places(names: tuple[str, ...], pair: tuple[str, str]) -> Pair:
    unknown = [name for name in pair if name not in names]
    if unknown:
        raise DataError(f"unknown column {unknown[0]!r}: the columns are {', '.join(names)}")
    if pair[0] == pair[1]:
        raise DataError(f"a pair must name two columns, but got {pair[0]!r} twice")
    return names.index(pair[0]), names.index(pair[1])


def _sample(table: CodedTable, every: list[Pair], most: int, threads: int, progress: Progress | None) -> list[Pair]:
    """The best pairs on every s-th row."""
    step = max(1, min(table.rows // _SCREEN_ROWS, table.rows * len(every) // _SCREEN))
    sums = _screened(_Columns(table, step), every, threads, progress)
    z = synergy(sums, max(table.rows // step, 1))[1]
    return [every[at] for at in np.argsort(-z, kind="stable")[:most]]


class _Columns:
    """The columns of a table on every `step`-th row, kept if they are small."""

    def __init__(self, table: CodedTable, step: int) -> None:
        self.table, self._step = table, step
        self._small = table.rows // step * len(table.names) <= _KEPT_CELLS
        self._kept: dict[int, Side] = {}
        self.labels = View(np.ascontiguousarray(table.labels[::step]))

    def __getitem__(self, column: int) -> Side:
        if column in self._kept:
            return self._kept[column]
        codes = np.ascontiguousarray(self.table.codes(column, self._step))
        counts = self.table.counts.tables[column]
        if self._step > 1:
            counts = np.bincount(codes * np.int64(2) + self.labels.array, minlength=counts.size).reshape(counts.shape)
        side = Side(codes, counts)
        if self._small:
            self._kept[column] = side
        return side


def _screened(columns: _Columns, pairs: Sequence[Pair], threads: int, progress: Progress | None) -> Floats:
    return _measured(columns, pairs, threads, "pairs", Kernel.screen, progress)


def _fitted(columns: _Columns, pairs: Sequence[Pair], threads: int, progress: Progress | None) -> Floats:
    def one(kernel: Kernel, a: Side, b: Side, labels: View, walk: Walk | None) -> Floats:
        return kernel.fit(kernel.cells(a, b, labels, walk, 1)[0], a.rows, b.rows)

    return _measured(columns, pairs, threads, "synergy", one, progress)


def _measured(
    columns: _Columns,
    pairs: Sequence[Pair],
    threads: int,
    step: str,
    one: Callable[[Kernel, Side, Side, View, Walk | None], Floats],
    progress: Progress | None,
) -> Floats:
    """The sums of pairs, [pairs, 14]; all partners of a larger column stand together."""
    names, sizes, labels = columns.table.names, columns.table.cardinalities, columns.labels
    rows, positives = len(labels.array), int(labels.array.sum())
    by_larger: dict[int, list[int]] = {}
    for at, (a, b) in enumerate(pairs):
        larger = a if _leads(sizes[a], names[a], sizes[b], names[b]) else b
        by_larger.setdefault(larger, []).append(at)
    out = np.empty((len(pairs), 14))
    local, done = threading.local(), count(1)

    def run(larger: int) -> None:
        if not hasattr(local, "kernel"):
            local.kernel = Kernel(rows, positives, max(sizes))
        a, walk = columns[larger], None
        for at in by_larger[larger]:
            other = pairs[at][1] if pairs[at][0] == larger else pairs[at][0]
            direct = sizes[larger] * sizes[other] <= _direct(rows)
            if not direct and walk is None:
                walk = a.walk(labels)
            out[at] = one(local.kernel, a, columns[other], labels, None if direct else walk)
            if progress:
                progress(step, next(done), len(pairs))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, sorted(by_larger, key=lambda column: -sizes[column])))
    return out


def _direct(rows: int) -> int:
    """Up to how many cells a table of all of them is faster than a walk."""
    return min(max(rows, _DIRECT[0]), _DIRECT[1])


def _leads(Ka: int, a: str, Kb: int, b: str) -> bool:
    """Whether a is the side that is walked and fitted first: that of more values. Any order would do, but one."""
    return (Ka, a) > (Kb, b)


def score_counts(names: Sequence[tuple[str, str]], counts: Sequence[PairCounts]) -> pl.DataFrame:
    """The table of pairs from their counts, as chunks or machines added them up."""
    totals = counts[0].table.sum(axis=0)
    if len(totals) != 2:
        raise DataError(
            f"pairs need a label of two classes, but it has {len(totals)}: make it one class against the rest"
        )
    kernel = Kernel(int(totals.sum()), int(totals[1]), room=0)
    sums = [_counted(kernel, name, pair) for name, pair in zip(names, counts, strict=True)]
    return frame(names, np.stack(sums), totals)


def _counted(kernel: Kernel, names: tuple[str, str], pair: PairCounts) -> Floats:
    """The 14 sums of a pair about the additive fit, from its counts."""
    n = pair.table.sum(axis=1)
    a, b = pair.a, pair.b
    na, nb = (np.bincount(codes, n).astype(np.int64) for codes in (a, b))
    if not _leads((na > 0).sum(), names[0], (nb > 0).sum(), names[1]):
        a, b, na, nb = b, a, nb, na
    cells = (a.astype(np.uint32), b.astype(np.uint32), n.astype(np.int32), pair.table[:, 1].astype(np.int32))
    return kernel.fit(cells, na, nb)


def synergy(sums: Floats, rows: int) -> tuple[Floats, Floats]:
    """synergy in nats and synergy_z, [pairs] each, from the sums of pairs."""
    S, L2, L3, U, V, together = sums[:, 8:14].T
    some = (L2 > 0) & (together >= _TOGETHER)
    L2, L3, U = np.where(some, L2, 1.0), np.where(some, L3, 1.0), np.where(some, U, 1.0)
    shape = L2**3 / L3**2
    ratio = np.maximum(1 + S / np.sqrt(2 * L2) * np.sqrt(2 / shape), 0.0)
    z = (np.cbrt(ratio) - (1 - 2 / (9 * shape))) / np.sqrt(2 / (9 * shape))
    return np.where(some, S / U * V / (2 * rows), 0.0), np.where(some, z, 0.0)


def frame(names: Sequence[tuple[str, str]], sums: Floats, totals: npt.NDArray[np.int64]) -> pl.DataFrame:
    """The table of pairs from their sums, by synergy_z descending, ties by names."""
    rows, entropy = int(totals.sum()), label_entropy(totals)
    cells, g, mean, var_g, cov, var_k, large_rows, large = sums[:, :8].T
    q = float(totals[1]) / rows
    slope = np.log(q) - np.log1p(-q)
    share = (rows * large - large_rows) / max(rows - 1, 1)
    spread = large_rows * q * (1 - q)
    mean = mean - large_rows * entropy + share / 2
    var_g, cov, var_k = var_g + slope**2 * spread + share / 2, cov + slope * spread, var_k + spread
    variance = var_g - np.where(var_k > 0, cov**2 / np.where(var_k > 0, var_k, 1.0), 0.0)
    sd = np.sqrt(np.maximum(variance, 0.0)) / rows
    sd[sd < 1e-9 / rows**0.5] = 0.0
    mi, expected = g / rows + entropy, mean / rows + entropy
    score, room = mi - expected, entropy - expected
    synergies, z = synergy(sums, rows)
    found = {
        "a": [a for a, _ in names],
        "b": [b for _, b in names],
        "cells": cells.astype(np.int64),
        "score": score,
        "z": np.where(sd > 0, score / np.where(sd > 0, sd, 1.0), 0.0),
        "normalized": np.where(room > 1e-9, score / np.where(room > 1e-9, room, 1.0), 0.0),
        "mi": mi,
        "expected_mi": expected,
        "synergy": synergies,
        "synergy_z": z,
    }
    return pl.DataFrame(found, schema=COLUMNS).sort(["synergy_z", "a", "b"], descending=[True, False, False])
