"""What a column says about the label where rows have weights.

Whole weights are counts: a row of weight 3 is three equal rows, and its table is scored as that of the rows written
out (`ranking.scores`). Other weights say how much a row counts, but not how often it was seen: the null must be that of
the N rows themselves, redrawn among the values of the column, each with its label and its weight.

Let S_vc be the weight of class c in the value v, S_v in all, W the sum of all weights and p_c the share of class c of
it. With f(x) = x ln x, W times the information is exactly the sum over values of

    t_v = sum_c f(S_vc) - f(S_v) - sum_c S_vc ln p_c.

Under the null, S_vc are sums over n_v rows drawn from all rows, and t_v depends on n_v alone: `RowNull` has its mean
and its spread as functions of n.

- The mean needs one sum at a time: E f(S) of n rows comes from the distribution of one row's weight, on a grid, to the
  power n (by FFT), and from those of the weights that are of one class. A grid keeps means, and its step is too fine to
  matter. For one row the mean is H(label) times the mean weight; for many it is, to second order in D_vc = S_vc - p_c
  S_v, whose variance is n s_c with s_c the mean of w^2 (1[y = c] - p_c)^2 over all rows,

      (W / M) (L - 1) / 2,    M = W^2 (L - 1) / (N sum_c s_c / p_c).

  M is the number of equal rows that tell as much. It is N where all weights are the same, and Kish's W^2 / sum w^2
  where they have nothing to do with the label. Where they have, it differs: rows without a click that were kept one in
  ten and count ten times leave M far above Kish's number, as the few clicks decide what chance does. Beyond 512 rows
  the mean goes to this limit as 1 / n.
- The spread comes from 4,000 seeded draws of n rows, of which a few per cent of error do no harm. Values compete for
  the same rows: sum_v S_vc is fixed for each class. So the part of t_v that is linear in the S_vc cancels, as in
  `scores.null_moments`: it is removed by regression on them, pooled over the values.
- Rows are drawn without being put back: mean and variance are smaller by (N - n) / (N - 1).

Columns of several values a row are taken as if their values were so many rows. tests/ranking/test_weighted.py holds
mean and spread against permutations of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autoembed.ranking.counts import Codes, LabelCounts, Labels, count_columns
from autoembed.ranking.scores import Score, Table, label_entropy, mutual_information, xlogx
from autoembed.types import Array, Floats

_MOST_ROWS, _STEPS = 512, 40  # of a value whose moments are computed, and for how many sizes
_GRID, _ATOMS, _DRAWS = 1 << 15, 4096, 4000
_NO_SPREAD = 1e-7
MOST = 2**31  # the kernels of pairs count in 32 bits


@dataclass(frozen=True, kw_only=True)
class WeightedCounts:
    """Per column the weight of each value in each class, [K, L], and what the null needs of the rows behind.

    Attributes:
        column: of the weights, as messages name it.
        weights: of the rows, float [N]; those that are not whole have a mean of 1.
        whole: whether all weights are whole numbers, so that a row is as many equal rows.
        tables: int64 if `whole`, else float64.
        squares: the sum of squared weights of each class, float64 [L].
        labels: of the rows, uint8 [N].
    """

    column: str
    weights: Array
    whole: bool
    tables: tuple[Table, ...]
    squares: Floats
    labels: Labels

    @cached_property
    def null(self) -> RowNull:
        """What chance does, of weights that are not whole."""
        return RowNull(self.labels, self.weights, len(self.squares))

    @property
    def note(self) -> str:
        """How the weights are understood, in a sentence."""
        if self.whole:
            return f"weights {self.column!r} are whole: a row of weight 2 is ranked as two equal rows"
        total = self.tables[0].sum(axis=0)
        rows = equal_rows(total, self.squares)
        return (
            f"weights {self.column!r} are not all whole: chance is that of {rows:,.0f} rows of equal weight, "
            f"which tell as much as these {len(self.weights):,}"
        )


class WeightCounter:
    """Adds up the weights of a table, chunk by chunk.

    Args:
        column: of the weights.
        classes: of the label.
        weights: of all rows, 0 or more, float [N]. Rows of weight 0 are left out.
    """

    def __init__(self, column: str, classes: int, weights: Array | None) -> None:
        assert weights is not None
        self.column, self.classes = column, classes
        self.all = weights
        self.whole = bool((weights == np.rint(weights)).all())
        # Otherwise only their ratios matter; a mean of 1 keeps the sums in range.
        self.scale = 1.0 if self.whole else 1 / float(weights[weights > 0].mean(dtype=np.float64))
        self.parts: list[tuple[Array, Labels]] = []
        self.counts: LabelCounts | None = None
        self.squares = np.zeros(classes)

    def used(self, rows: Array, labels: Labels, where: slice) -> tuple[Array, Labels, Array]:
        """The rows of a chunk that have weight, their labels and weights; the chunk stands at `where` of all rows."""
        weights = self.all[where]
        some = weights > 0
        own = weights[some].astype(np.float64) * self.scale
        labels = labels[some]
        self.parts.append((own, labels))
        self.squares += np.bincount(labels, own * own, self.classes)
        return rows[some], labels, own

    def add(
        self, columns: list[Codes], labels: Labels, sizes: Sequence[int], weights: Array | None, threads: int
    ) -> None:
        """Counts a chunk of what `used` gave."""
        found = count_columns(columns, labels, sizes, self.classes, weights, threads)
        self.counts = found if self.counts is None else self.counts + found

    @property
    def labels(self) -> Labels:
        """Of the rows that have weight."""
        return np.concatenate([labels for _, labels in self.parts])

    def finish(self) -> WeightedCounts:
        """The counts of all chunks."""
        assert self.counts is not None
        tables = tuple(np.rint(table).astype(np.int64) if self.whole else table for table in self.counts.tables)
        return WeightedCounts(
            column=self.column,
            weights=np.concatenate([weights for weights, _ in self.parts]),
            whole=self.whole,
            tables=tables,
            squares=self.squares,
            labels=self.labels,
        )


def equal_rows(totals: Array, squares: Array) -> float:
    """M: how many equal rows tell as much about the label.

    Args:
        totals: the weight of each class, [L].
        squares: the sum of squared weights of each class, [L].
    """
    some = totals > 0
    weight, own = totals[some].astype(np.float64), squares[some].astype(np.float64)
    share = weight / weight.sum()
    spread = own * (1 - share) ** 2 + (own.sum() - own) * share**2
    return float(weight.sum() ** 2 * (len(weight) - 1) / (spread / share).sum())


class RowNull:
    """Mean and spread of t_v for a value of n rows that are drawn from all rows (see above).

    Args:
        labels: of all rows, whole numbers [N].
        weights: of all rows, above 0, float [N].
        classes: of the label.
    """

    def __init__(self, labels: Labels, weights: Array, classes: int) -> None:
        totals = np.bincount(labels, weights, classes)
        held = np.flatnonzero(totals > 0)
        place = np.zeros(classes, np.int64)
        place[held] = np.arange(len(held))
        self.rows, self.classes = len(labels), len(held)
        self.sizes = np.unique(np.geomspace(1, _MOST_ROWS, _STEPS).round().astype(np.int64))
        shares = totals[held] / totals.sum()
        self.logs = np.log(shares)
        atoms = [_atoms(weights[labels == number]) for number in held]
        mean = float(weights.mean())
        entropy = -float(shares @ self.logs)
        self.limit = _limit(totals, np.bincount(labels, weights.astype(np.float64) ** 2, classes), self.rows)
        self.mean = np.array([self._mean(atoms, int(n), mean, entropy) for n in self.sizes])
        rng = np.random.default_rng(0)
        drawn = [self._spread(place[labels], weights, int(n), rng) for n in self.sizes]
        # Of t, of t with each S_c, and of S_c and S_d by row: [sizes], [sizes, L], [sizes, L, L].
        self.own, self.cross, self.sums = (np.array(part) for part in zip(*drawn, strict=True))

    def _mean(self, atoms: Sequence[tuple[Floats, Floats]], n: int, mean: float, entropy: float) -> float:
        """E t of n rows, from the weights of each class and how many rows have them."""
        if n == 1:
            return mean * entropy
        everything = np.concatenate([own for own, _ in atoms]), np.concatenate([times for _, times in atoms])
        of_classes = sum(_mean_of_sums(own, times, n, self.rows) for own, times in atoms)
        return of_classes - _mean_of_sums(*everything, n, self.rows) + n * mean * entropy

    def _spread(self, labels: Array, weights: Array, n: int, rng: np.random.Generator) -> tuple[float, Floats, Floats]:
        at = rng.integers(0, self.rows, (_DRAWS, n))
        own, kinds = weights[at].astype(np.float64), labels[at]
        S = np.stack([np.where(kinds == number, own, 0.0).sum(axis=1) for number in range(self.classes)], axis=1)
        t = xlogx(S).sum(axis=1) - xlogx(S.sum(axis=1)) - S @ self.logs
        both = np.cov(np.column_stack([t, S]), rowvar=False)
        return float(both[0, 0]), both[0, 1:], both[1:, 1:] / n

    def moments(self, rows: Array) -> tuple[float, float]:
        """Mean and standard deviation of the sum of t over values of so many rows, whole numbers [K]."""
        n, times = np.unique(rows[rows > 0], return_counts=True)
        left = np.maximum(int(rows.sum()) - n, 0) / max(int(rows.sum()) - 1, 1)
        # All are close to straight lines in 1 / n.
        ends, x = 1 / self.sizes[::-1], np.clip(1 / n, 1 / _MOST_ROWS, 1.0)

        def of(values: Floats) -> Floats:
            return np.interp(x, ends, values[::-1])

        mean = of(self.mean)
        beyond = self.limit + (self.mean[-1] - self.limit) * _MOST_ROWS / n
        mean = np.where(n > _MOST_ROWS, beyond, mean)
        pooled = times @ n
        cross = np.stack([of(part) for part in self.cross.T], axis=1)
        flat = self.sums.reshape(len(self.sizes), -1).T
        sums = np.stack([of(part) * n for part in flat], axis=1).reshape(len(n), self.classes, self.classes)
        slope = np.linalg.lstsq(np.tensordot(times, sums, 1) / pooled, times @ cross / pooled, rcond=None)[0]
        spread = of(self.own) - 2 * cross @ slope + np.einsum("c,ncd,d->n", slope, sums, slope)
        variance = float(times @ (left * np.maximum(spread, 0.0)))
        return float(times @ (left * mean)), variance**0.5


def _atoms(weights: Array) -> tuple[Floats, Floats]:
    """Weights in bins of a ratio, each by its mean, and the rows of each bin: float [bins] both."""
    logs = np.log(weights.astype(np.float64))
    span = float(logs.max() - logs.min())
    bins = np.minimum(((logs - logs.min()) / max(span, 1e-12) * _ATOMS).astype(np.int64), _ATOMS - 1)
    times = np.bincount(bins, minlength=_ATOMS).astype(np.float64)
    sums = np.bincount(bins, weights, _ATOMS)
    return sums[times > 0] / times[times > 0], times[times > 0]


def _mean_of_sums(weights: Floats, times: Floats, n: int, rows: int) -> float:
    """E f(S) for S the sum over n of `rows` rows, of which `times` have these weights and the others 0."""
    share = times / rows
    mean, square = float(share @ weights), float(share @ weights**2)
    most = n * mean + 10 * (n * square) ** 0.5 + 2 * float(weights.max())
    step = min(most, n * float(weights.max()) * 1.001) / (_GRID - 2)
    place = weights / step
    low = place.astype(np.int64)
    base = np.zeros(_GRID)
    np.add.at(base, low, share * (1 - (place - low)))
    np.add.at(base, low + 1, share * (place - low))
    base[0] += 1 - share.sum()
    found = np.fft.irfft(np.fft.rfft(base) ** n, _GRID)
    return float(np.maximum(found, 0.0) @ xlogx(np.arange(_GRID) * step))


def _limit(totals: Array, squares: Array, rows: int) -> float:
    """The mean of t of a value of many rows."""
    classes = int((totals > 0).sum())
    return float(totals.sum()) / equal_rows(totals, squares) * (classes - 1) / 2 if rows > 1 else 0.0


def score_weighted(table: Table, rows: Array, null: RowNull) -> Score:
    """The adjusted mutual information of a column from weights that are no counts.

    Args:
        table: the weight of each value and class, [K, L].
        rows: of each value, [K].
        null: of all rows.

    Raises:
        ValueError: fewer than two classes have weight.
    """
    mi, whole = mutual_information(table), float(table.sum())
    mean, sd = (part / whole for part in null.moments(rows))
    # Without spread, every permutation has this information: one value, or a value for each row.
    sd = sd if sd > _NO_SPREAD / len(rows) ** 0.5 else 0.0
    expected = mean if sd > 0 else mi
    return Score(mi=mi, expected_mi=expected, sd=sd, label_entropy=label_entropy(table.sum(axis=0)))
