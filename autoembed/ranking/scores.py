"""How much a column says about a binary label, beyond what noise with the same value counts would say.

The idea is OutRank's cardinality-aware ranking (RecSys 2023, arXiv 2309.01552). OutRank estimates the noise from one
rotation of the column; here the moments under a permuted label are computed, so no score depends on the order of rows.

Throughout, a column is given as n [K], the rows of each of its K values, and k [K], the positive ones among them;
N rows and N1 positives are the sums. Information is in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import xlogy

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_EXACT_TO = 512
_NO_SPREAD = 1e-9


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


def score(k: Counts, n: Counts) -> Score:
    """The score of a column from its counts; ValueError unless 0 <= k <= n and both classes are there."""
    k, n = np.asarray(k, dtype=np.int64), np.asarray(n, dtype=np.int64)
    if k.shape != n.shape or (k < 0).any() or (k > n).any():
        raise ValueError("counts must have 0 <= k <= n for every value, but some have not")
    rows, positives = int(n.sum()), int(k.sum())
    expected, sd = null_moments(n, rows, positives)
    return Score(
        mi=mutual_information(k, n, rows, positives),
        expected_mi=expected,
        sd=sd,
        label_entropy=label_entropy(rows, positives),
    )


def label_entropy(rows: int, positives: int) -> float:
    """H(label) in nats; ValueError unless both classes are there."""
    if not 0 < positives < rows:
        raise ValueError(f"the label must have both classes, but {positives} of {rows} rows are positive")
    return -float(_information(np.array([positives]), np.array([rows]))[0]) / rows


def mutual_information(k: Counts, n: Counts, rows: int, positives: int) -> float:
    """MI(column, label) in nats."""
    return float(_information(k, n).sum()) / rows + label_entropy(rows, positives)


def null_moments(n: Counts, rows: int, positives: int) -> tuple[float, float]:
    """Mean and standard deviation of the mutual information when the label is permuted.

    A value of n rows then has k ~ Hypergeometric(N, N1, n) positives. The mean is a sum of means: exact for n <= 512,
    n (q ln q + (1-q) ln(1-q)) + (N-n) / (2(N-1)) above, with q = N1/N. In the variance, values compete for the same
    N1 positives, which has two effects. The part of their information that is linear in k cancels, as the k add up to
    N1: it is removed by regression on k, pooled over the values. What is left is too small by f = (N-n)/(N-1), as each
    value's own moments see the finite population and their covariances are left out: it is divided by f, which makes
    it right for two values as for many.
    """
    sizes, times = np.unique(n[n > 0], return_counts=True)
    entropy = label_entropy(rows, positives)
    small = sizes <= _EXACT_TO
    moments = np.concatenate(
        [_exact_moments(sizes[small], rows, positives), _normal_moments(sizes[~small], rows, positives)], axis=1
    )
    mean, var_g, cov, var_k = moments
    share = (rows - sizes) / max(rows - 1, 1)
    weight = np.where(share > 0, times / np.where(share > 0, share, 1.0), 0.0)
    total_cov, total_k = float(weight @ cov), float(weight @ var_k)
    variance = float(weight @ var_g) - (total_cov**2 / total_k if total_k > 0 else 0.0)
    expected = float(times @ mean) / rows + entropy
    sd = float(np.sqrt(max(variance, 0.0))) / rows
    return expected, sd if sd > _NO_SPREAD / rows**0.5 else 0.0


def _information(k: npt.NDArray[np.int64], n: npt.NDArray[np.int64]) -> Floats:
    """g(k, n) = k ln k + (n-k) ln(n-k) - n ln n: minus n times the label's entropy within each value."""
    found: Floats = xlogy(k, k) + xlogy(n - k, n - k) - xlogy(n, n)
    return found


def _exact_moments(sizes: Counts, rows: int, positives: int) -> Floats:
    """E[g], Var[g], Cov[g, k] and Var[k] for each n, summed over the hypergeometric distribution: [4, sizes]."""
    if len(sizes) == 0:
        return np.empty((4, 0))
    most = int(sizes.max())
    k = np.arange(most + 1)
    log_positive, log_negative = _log_binomials(positives, most), _log_binomials(rows - positives, most)
    out = np.empty((4, len(sizes)))
    for place, n in enumerate(sizes):
        inside = k[: n + 1]
        log_p = log_positive[: n + 1] + log_negative[n::-1]
        p = np.exp(log_p - log_p.max())
        p /= p.sum()
        g = _information(inside, np.full(n + 1, n))
        mean_g, mean_k = p @ g, p @ inside
        off_g, off_k = g - mean_g, inside - mean_k
        out[:, place] = mean_g, p @ off_g**2, p @ (off_g * off_k), p @ off_k**2
    return out


def _log_binomials(total: int, most: int) -> Floats:
    """ln C(total, k) for k = 0..most, -inf where k > total; by sums, as ln Gamma loses digits at large totals."""
    i = np.arange(most)
    with np.errstate(divide="ignore"):
        steps = np.log(np.maximum(total - i, 0)) - np.log(i + 1.0)
    return np.concatenate([[0.0], np.cumsum(steps)])


def _normal_moments(sizes: Counts, rows: int, positives: int) -> Floats:
    """As `_exact_moments`, from the second-order expansion of g around the label rate, which is exact for large n."""
    q = positives / rows
    share = (rows - sizes) / max(rows - 1, 1)
    slope = np.log(q) - np.log1p(-q)
    var_k = sizes * q * (1 - q) * share
    mean = -sizes * label_entropy(rows, positives) + share / 2
    return np.stack([mean, slope**2 * var_k + share**2 / 2, slope * var_k, var_k])
