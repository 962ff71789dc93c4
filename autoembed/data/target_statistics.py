"""Ordered target statistics: the click rate of each value of a column, which no row's own label is in.

CatBoost (arXiv 1706.09516, sec. 3.2): a train row sees the labels of the rows before it in a random order, or in that
of time. All other rows see those of all train rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from autoembed.data.bins import fine_bounds
from autoembed.data.strict import StrictModel
from autoembed.types import Array

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class TargetStatistics(StrictModel):
    """Columns whose click rates become further columns, `ctr(COLUMN)`, cut into about `bins` bins of equal rows.

    A value's rate is (its clicks + prior * the mean label) / (its rows + prior). For a train row, only rows that come
    before it count: by time if the split is by time, else in a random order that `seed` draws. `columns` may name
    crossed columns (`a*b`). Those under `replace` are no inputs themselves: the model sees their rates alone.
    """

    columns: tuple[str, ...] = Field(min_length=1)
    prior: float = Field(default=10.0, gt=0)
    bins: int = Field(default=16, ge=2)
    seed: int = Field(default=0, ge=0)
    replace: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _replaced_are_columns(self) -> TargetStatistics:
        strange = [name for name in self.replace if name not in self.columns]
        if strange:
            raise ValueError(f"replace must name columns of target_statistics, but got {', '.join(strange)}")
        return self


def name_of(column: str) -> str:
    """The name of the column of another one's click rates."""
    return f"ctr({column})"


def order_of(rows: int, seed: int, times: Array | None = None) -> Ints:
    """The rows in the order in which they see each other, int [rows]: by time, rows of one time at random."""
    shuffled: Ints = np.random.default_rng(seed).permutation(rows)
    return shuffled if times is None else shuffled[np.argsort(times[shuffled], kind="stable")]


def ordered_rates(ids: Array, labels: Array, order: Ints, prior: float, weights: Array | None = None) -> Floats:
    """The rate of each row's value in the rows that come before it, float64 [rows].

    Args:
        ids: a value per row, int [rows].
        labels: 0 or 1, [rows].
        order: the rows, the first one first.
        prior: how many rows the mean label counts as.
        weights: how often each row counts, [rows]; once by default.
    """
    counted = np.ones(len(ids)) if weights is None else np.asarray(weights, dtype=np.float64)
    mean = float(np.average(labels, weights=counted))
    by_value = order[np.argsort(ids[order], kind="stable")]
    own, rows = ids[by_value], counted[by_value]
    clicks = labels[by_value] * rows
    first = np.flatnonzero(np.append(True, own[1:] != own[:-1]))
    start = np.repeat(first, np.diff(np.append(first, len(own))))
    upto, rows_upto = np.cumsum(clicks) - clicks, np.cumsum(rows) - rows
    before, count = upto - upto[start], rows_upto - rows_upto[start]
    rates = np.empty(len(own))
    rates[by_value] = (before + prior * mean) / (count + prior)
    return rates


def rates(ids: Array, labels: Array, cardinality: int, prior: float, weights: Array | None = None) -> Floats:
    """The rate of each value in all rows, float64 [cardinality]; the mean label where there are none."""
    counted = np.ones(len(ids)) if weights is None else np.asarray(weights, dtype=np.float64)
    mean = float(np.average(labels, weights=counted))
    clicks = np.bincount(ids, weights=labels * counted, minlength=cardinality)
    found: Floats = (clicks + prior * mean) / (np.bincount(ids, weights=counted, minlength=cardinality) + prior)
    return found


def bounds(found: Floats, bins: int) -> Floats:
    """The ascending upper bounds of the bins of ordered rates; the last is infinite. No label shapes them."""
    values, counts = np.unique(found, return_counts=True)
    return fine_bounds(values, counts, bins, bins)
