"""Scores of columns in one additive model of splines: a Kolmogorov-Arnold network (KAN, arXiv 2404.19756) of one layer.

The logit is a sum of one curve a column, each a sum of B-splines. After KAN-L1 and KAN-L2 (arXiv 2509.23366), the score
of a column is the norm of its curve, which stands beside the curves of the other columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autoembed.errors import DataError
from autoembed.types import Array

Floats = npt.NDArray[np.float64]

_KNOTS, _DEGREE = 8, 3
_SAMPLE = 100_000
_CELLS = 20_000_000


def curve_norms(columns: Sequence[Floats], labels: Array) -> Floats:
    """The mean |f| and the root mean square of each column's curve f about its mean: float [K, 2], in logits.

    A column stands at its rank among the rows, in 0..1, so that no outlier takes the knots for itself. Rows without a
    value have a number of their own in the place of the curve, and count as 0. Curves have a slight ridge penalty.
    With N rows and click rate q, noise has a root mean square of about 3 / sqrt(N q (1 - q)).

    Args:
        columns: numbers in the order of the values, NaN where missing, float [N] each.
        labels: 0 or 1, int [N]. Columns and labels are read on at most 100,000 evenly spaced rows, fewer if the columns
            are many.

    Raises:
        DataError: the label does not have two classes.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import SplineTransformer

    if not len(columns):
        return np.empty((0, 2))
    width = _KNOTS + _DEGREE - 2
    step = -(-len(labels) // max(1, min(_SAMPLE, _CELLS // (len(columns) * (width + 1)))))
    labels = labels[::step]
    if len(np.unique(labels)) != 2:
        raise DataError("the scores kan_l1 and kan_l2 need a label of two classes")
    knots = np.linspace(0, 1, _KNOTS)[:, None]
    parts = []
    for column in columns:
        place, missing = _mid_ranks(column[::step])
        basis = SplineTransformer(_KNOTS, degree=_DEGREE, knots=knots, include_bias=False).fit_transform(place[:, None])
        basis[missing] = 0.0
        parts.append(np.concatenate([basis, missing[:, None]], axis=1).astype(np.float32))
    fitted = LogisticRegression(max_iter=300).fit(np.concatenate(parts, axis=1), labels)
    weights = np.split(fitted.coef_[0], len(columns))
    out = np.zeros((len(columns), 2))
    for number, (part, weight) in enumerate(zip(parts, weights, strict=True)):
        known = part[:, -1] == 0
        curve = part[known, :-1] @ weight[:-1]
        if len(curve):
            curve = curve - curve.mean()
            out[number] = np.abs(curve).sum() / len(labels), np.sqrt(np.square(curve).sum() / len(labels))
    return out


def _mid_ranks(column: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Where each row's value stands among the rows that have one, 0..1, the middle for ties; and which have none."""
    missing = np.isnan(column)
    values, place, counts = np.unique(column[~missing], return_inverse=True, return_counts=True)
    out = np.full(len(column), 0.5)
    if len(values):
        out[~missing] = ((np.cumsum(counts) - counts / 2) / counts.sum())[place]
    return out, missing
