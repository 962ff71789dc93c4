"""How much a column says about the label, beyond what noise with the same value counts would say.

The idea is OutRank's cardinality-aware ranking (RecSys 2023, arXiv 2309.01552). OutRank estimates the noise from one
rotation of the column; here the moments under a permuted label are computed, so no score depends on the order of rows.

Throughout, a column is its table [K, L]: the rows of each of its K values in each of L classes, whole numbers. n [K]
are the rows of each value, k those of one class; N rows. Information is in nats. Sums of weights that are no counts are
for `ranking.weighted`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from autoembed.errors import DataError
from autoembed.ranking import splines, surrogate
from autoembed.types import Array

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Table = Array

EXACT_TO = 512
_NO_SPREAD = 1e-9
_PERMUTATIONS = 30


@dataclass(frozen=True, kw_only=True)
class Score:
    """One column's information about the label.

    score = mi - expected_mi. z = score / sd; under the null it is near normal for many values, and skewed like a
    chi-square for few. normalized = score / (label entropy - expected_mi), 1 for a column that tells the label.
    """

    mi: float
    expected_mi: float
    sd: float
    label_entropy: float

    @property
    def score(self) -> float:
        return self.mi - self.expected_mi

    @property
    def z(self) -> float:
        return self.score / self.sd if self.sd > 0 else 0.0

    @property
    def normalized(self) -> float:
        room = self.label_entropy - self.expected_mi
        return self.score / room if room > _NO_SPREAD else 0.0


@dataclass(frozen=True, kw_only=True)
class ScoredColumn:
    """What a score may look at: the table [K, L], and the code of missing (-1: none).

    `places` says where each code stands in the order of values, [K], or None if values have no order. `rows` gives the
    codes and the labels, int [N] each, in the order of the rows, for the scores that need it.
    """

    table: Table
    missing: int = -1
    places: Array | None = None
    rows: Callable[[], tuple[Array, Array]]


def score(table: Table) -> Score:
    """The adjusted mutual information of a column from its table [K, L], rows of each value and class.

    ValueError for negative counts, or fewer than two classes with rows. Weights that are no counts have a null of their
    own: `ranking.weighted`.
    """
    table = np.asarray(table)
    if table.ndim != 2 or (table < 0).any():
        raise ValueError(f"counts must be a table [values, classes] of numbers >= 0, but got shape {table.shape}")
    n, totals = table.sum(axis=1), table.sum(axis=0)
    entropy = label_entropy(totals)
    expected, sd = null_moments(n, totals)
    mi = mutual_information(table)
    # Without spread, every permutation has this MI: a constant column, or one of row numbers.
    return Score(mi=mi, expected_mi=expected if sd > 0 else mi, sd=sd, label_entropy=entropy)


def label_entropy(totals: Table) -> float:
    """H(label) in nats from the rows of each class [L]; ValueError unless two classes have rows."""
    if (np.asarray(totals) > 0).sum() < 2:
        raise ValueError(f"the label must have two classes with rows, but they have {np.asarray(totals).tolist()}")
    rows = float(np.sum(totals))
    return float(np.log(rows) - xlogx(totals).sum() / rows)


def mutual_information(table: Table) -> float:
    """MI(column, label) in nats; of weights as of as many rows."""
    rows = float(table.sum())
    inside = xlogx(table).sum() - xlogx(table.sum(axis=1)).sum()
    return float(inside) / rows + label_entropy(table.sum(axis=0))


def xlogx(x: Table) -> Floats:
    """x ln x, and 0 at 0."""
    x = np.asarray(x, dtype=np.float64)
    found: Floats = x * np.log(np.where(x > 0, x, 1.0))
    return found


def null_moments(n: Counts, totals: Counts) -> tuple[float, float]:
    """Mean and standard deviation of the mutual information when the label is permuted.

    A value of n rows then has k ~ Hypergeometric(N, N_c, n) rows of class c. The mean is a sum of means: exact for
    n <= 512, and above by the second order of the expansion around the class rate, which is exact for large n. In the
    variance, values compete for the same N_c rows, which has two effects. The part of their information that is linear
    in k cancels, as the k add up to N_c: it is removed by regression on k, pooled over the values. What is left is too
    small by f = (N-n)/(N-1), as each value's own moments see the finite population and their covariances are left out:
    it is divided by f, which makes it right for two values as for many.

    More than two classes: the mean is as exact. In the variance, the classes' own parts are exact as above, and their
    correlations within a value are those of large n, q_c q_d / ((1-q_c)(1-q_d)) with q the class rates: right for
    n -> infinity and for L = 2, and within 25 % of permutations in between (tests/ranking/test_scores.py).
    """
    totals = np.asarray(totals, dtype=np.int64)
    totals = totals[totals > 0]
    rows = int(totals.sum())
    sizes, times = np.unique(n[n > 0], return_counts=True)
    share = (rows - sizes) / max(rows - 1, 1)
    weight = np.where(share > 0, times / np.where(share > 0, share, 1.0), 0.0)
    rates = totals / rows
    parts = [int(totals[1])] if len(totals) == 2 else [int(total) for total in totals]
    spread = np.zeros((len(parts), len(sizes)))
    mean = np.zeros(len(sizes))
    for place, total in enumerate(parts):
        own_mean, var_f, cov, var_k = _moments(sizes, rows, total, len(totals) == 2)
        slope = float(weight @ cov) / total_k if (total_k := float(weight @ var_k)) > 0 else 0.0
        spread[place] = np.maximum(var_f - 2 * slope * cov + slope**2 * var_k, 0.0)
        mean += own_mean
    if len(totals) == 2:
        variance = float(weight @ spread[0])
    else:
        odds = rates / (1 - rates)
        alike = np.outer(odds, odds)
        np.fill_diagonal(alike, 1.0)
        root = np.sqrt(spread)
        variance = float(weight @ np.einsum("cn,cd,dn->n", root, alike, root))
    expected = float(times @ mean) / rows + label_entropy(totals)
    sd = float(np.sqrt(max(variance, 0.0))) / rows
    return expected, sd if sd > _NO_SPREAD / rows**0.5 else 0.0


def _moments(sizes: Counts, rows: int, total: int, both: bool) -> Floats:
    """E[f], Var[f], Cov[f, k] and Var[k] for each size n: [4, sizes]. f as in `exact_moments`."""
    small = sizes <= EXACT_TO
    exact = exact_moments(rows, total, both)[:, sizes[small]] if small.any() else np.empty((4, 0))
    return np.concatenate([exact, _normal_moments(sizes[~small], rows, total, both)], axis=1)


@lru_cache(maxsize=64)
def exact_moments(rows: int, total: int, both: bool) -> Floats:
    """E[f], Var[f], Cov[f, k] and Var[k] for every n up to 512, from the hypergeometric distribution: [4, 513].

    f(k, n) = k ln k + (n-k) ln(n-k) - n ln n for both classes of a binary label (`both`), or k ln(k/n) for one.
    """
    most = min(EXACT_TO, rows)
    n, k = np.arange(most + 1)[:, None], np.arange(most + 1)[None, :]
    other = np.maximum(n - k, 0)
    logs = xlogx(np.arange(most + 1))
    log_p = _log_binomials(total, most)[k] + _log_binomials(rows - total, most)[other]
    log_p[k > n] = -np.inf
    p = np.exp(log_p - log_p.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    f = np.where(k > n, 0.0, logs[k] + logs[other] - logs[n] if both else logs[k] - k * np.log(np.maximum(n, 1)))
    mean_f, mean_k = (p * f).sum(axis=1, keepdims=True), (p * k).sum(axis=1, keepdims=True)
    off_f, off_k = f - mean_f, k - mean_k
    return np.stack([mean_f[:, 0], (p * off_f**2).sum(1), (p * off_f * off_k).sum(1), (p * off_k**2).sum(1)])


def _log_binomials(total: int, most: int) -> Floats:
    """ln C(total, k) for k = 0..most, -inf where k > total; by sums, as ln Gamma loses digits at large totals."""
    i = np.arange(most)
    with np.errstate(divide="ignore"):
        steps = np.log(np.maximum(total - i, 0)) - np.log(i + 1.0)
    return np.concatenate([[0.0], np.cumsum(steps)])


def _normal_moments(sizes: Counts, rows: int, total: int, both: bool) -> Floats:
    """As `exact_moments`, from the second-order expansion of f around the class rate."""
    q = total / rows
    share = (rows - sizes) / max(rows - 1, 1)
    var_k = sizes * q * (1 - q) * share
    if both:
        slope = np.full(len(sizes), np.log(q) - np.log1p(-q))
        mean, bend = -sizes * label_entropy(np.array([rows - total, total])) + share / 2, share**2 / 2
    else:
        slope = np.full(len(sizes), np.log(q) + 1)
        mean, bend = sizes * q * np.log(q) + (1 - q) * share / 2, ((1 - q) * share) ** 2 / 2
    return np.stack([mean, slope**2 * var_k + bend, slope * var_k, var_k])


def _ami(column: ScoredColumn, found: Score) -> float:
    """scikit-learn's adjusted_mutual_info_score: (MI - E) / (mean of both entropies - E)."""
    n = column.table.sum(axis=1)
    entropy = float(np.log(n.sum()) - xlogx(n).sum() / n.sum())
    room = (entropy + found.label_entropy) / 2 - found.expected_mi
    return found.score / room if abs(room) > _NO_SPREAD else 0.0


def _pearson(column: ScoredColumn, found: Score) -> float:
    """|correlation| of the place of a value in the order of values with the class number; 0 where values have none."""
    if column.places is None:
        return 0.0
    known = np.arange(len(column.table)) != column.missing
    table, x = column.table[known], column.places[known]
    total, y = max(table.sum(), 1), np.arange(table.shape[1])
    n, m = table.sum(axis=1) / total, table.sum(axis=0) / total
    off_x, off_y = x - n @ x, y - m @ y
    spread = (n @ off_x**2) * (m @ off_y**2)
    return abs(float(off_x @ table @ off_y) / total) / float(np.sqrt(spread)) if spread > 0 else 0.0


def _coverage(column: ScoredColumn, found: Score) -> float:
    """The share of rows of the most frequent value."""
    n = column.table.sum(axis=1)
    return float(n.max() / n.sum())


def _rotation(column: ScoredColumn, found: Score) -> float:
    """MI less that of the column rotated by half its rows: OutRank's null, for comparison; it depends on row order."""
    codes, labels = column.rows()
    return found.mi - mutual_information(_table_of(np.roll(codes, len(codes) // 2), labels, column.table.shape))


def _permutation(column: ScoredColumn, found: Score) -> float:
    """z of MI among 30 permuted labels (seeded): the check of the exact null."""
    codes, labels = column.rows()
    rng = np.random.default_rng(0)
    drawn = [
        mutual_information(_table_of(codes, rng.permutation(labels), column.table.shape)) for _ in range(_PERMUTATIONS)
    ]
    spread = float(np.std(drawn, ddof=1))
    return (found.mi - float(np.mean(drawn))) / spread if spread > _NO_SPREAD else 0.0


def _table_of(codes: Array, labels: Array, shape: tuple[int, ...]) -> Table:
    return np.bincount(codes * np.int64(shape[1]) + labels, minlength=shape[0] * shape[1]).reshape(shape)


def _curves(columns: Sequence[ScoredColumn], norm: int) -> list[float]:
    """A norm of each column's curve in one additive model; 0 where values have no order."""
    found, labels = [0.0] * len(columns), None
    ordered, curves = [], []
    for at, column in enumerate(columns):
        if column.places is None:
            continue
        codes, labels = column.rows()
        ordered.append(at)
        x = column.places.astype(np.float64)
        if column.missing >= 0:
            x[column.missing] = np.nan
        curves.append(x[codes])
    if labels is not None:
        for at, norms in zip(ordered, splines.curve_norms(curves, labels), strict=True):
            found[at] = float(norms[norm])
    return found


# Scores of all columns together, from one model.
JOINT: dict[str, Callable[[Sequence[ScoredColumn]], list[float]]] = {
    "kan_l1": lambda columns: _curves(columns, 0),
    "kan_l2": lambda columns: _curves(columns, 1),
}
SCORES: dict[str, Callable[[ScoredColumn, Score], float]] = {
    "adjusted_mi": lambda column, found: found.score,
    "mi": lambda column, found: found.mi,
    "ami": _ami,
    "rotation": _rotation,
    "pearson": _pearson,
    "coverage": _coverage,
    "permutation": _permutation,
    "logistic": lambda column, found: surrogate.logistic(*column.rows()),
    "tree": lambda column, found: surrogate.tree(*column.rows()),
    "lightgbm": lambda column, found: surrogate.lightgbm(*column.rows()),
}
NEEDS_ROWS = {"rotation", "permutation", "logistic", "tree", "lightgbm", *JOINT}


def require(name: str) -> None:
    """DataError with all names of scores unless this is one."""
    if name not in {**SCORES, **JOINT}:
        raise DataError(f"unknown score {name!r}: must be one of {', '.join([*SCORES, *JOINT])}")


def measure(name: str, columns: Sequence[ScoredColumn], found: Sequence[Score]) -> list[float]:
    """The score of that name of each column, whose adjusted information is `found`."""
    if name in JOINT:
        return JOINT[name](columns)
    return [SCORES[name](column, own) for column, own in zip(columns, found, strict=True)]
