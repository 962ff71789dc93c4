"""Contingency counts with the label, of columns and of pairs: they add up, over chunks and machines, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from autoembed.errors import DataError
from autoembed.types import Array

Codes = npt.NDArray[np.int32]
Labels = npt.NDArray[np.uint8]
Weights = npt.NDArray[np.float64]
Table = Array

# Below this many cells, loading the kernel takes longer than what it saves.
_SMALL = 40_000_000


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """Per column, the rows of each value in each class, [K, L]: int64, or float64 sums of weights."""

    tables: tuple[Table, ...]

    def __add__(self, other: LabelCounts) -> LabelCounts:
        """The counts of both parts; values and classes that one part has not seen may be absent from its end."""
        return LabelCounts(tables=tuple(_sum(a, b) for a, b in zip(self.tables, other.tables, strict=True)))


def _sum(a: Table, b: Table) -> Table:
    if a.shape == b.shape:
        return a + b
    shape = tuple(np.maximum(a.shape, b.shape))
    out = np.zeros(shape, dtype=np.result_type(a, b))
    out[: a.shape[0], : a.shape[1]] += a
    out[: b.shape[0], : b.shape[1]] += b
    return out


def count_columns(
    columns: Sequence[Codes],
    labels: Labels,
    cardinalities: Sequence[int],
    classes: int = 2,
    weights: Weights | None = None,
    threads: int = 1,
    rows: int | None = None,
) -> LabelCounts:
    """Count codes [rows] of every column against labels [rows] of 0..classes-1, in one pass.

    Args:
        columns: int32 codes below the column's cardinality.
        labels: uint8 classes.
        cardinalities: K of each column.
        classes: L.
        weights: of the rows, float64, or None for 1 each.
        threads: columns, or couples of them, counted at a time.
        rows: of the whole table, where these are one part of it.
    """
    tables = [np.zeros((size, classes), np.float64 if weights is not None else np.int64) for size in cardinalities]

    if (rows or len(labels)) * len(columns) < _SMALL:
        for codes, table in zip(columns, tables, strict=True):
            table += np.bincount(codes * np.int64(classes) + labels, weights, table.size).reshape(table.shape)
    else:
        from autoembed.ranking import column_kernels

        def fill(place: int, other: int | None) -> None:
            if weights is not None:
                column_kernels.count_column_weighted(columns[place], labels, weights, tables[place])
            elif other is None:
                column_kernels.count_column(columns[place], labels, tables[place])
            else:
                column_kernels.count_two(columns[place], columns[other], labels, tables[place], tables[other])

        most = min(column_kernels.COUPLED, len(labels)) // classes if weights is None else 0
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, *zip(*_couples(cardinalities, most), strict=True)))
    return LabelCounts(tables=tuple(tables))


def _couples(cardinalities: Sequence[int], most: int) -> list[tuple[int, int | None]]:
    """Places of columns by falling cardinality, each with that of another if both have at most so many combinations."""
    left = sorted(range(len(cardinalities)), key=lambda place: -cardinalities[place])
    couples: list[tuple[int, int | None]] = []
    while left:
        place = left.pop(0)
        room = most // max(1, cardinalities[place])
        other = next((other for other in left if cardinalities[other] <= room), None)
        if other is not None:
            left.remove(other)
        couples.append((place, other))
    return couples


@dataclass(frozen=True, kw_only=True)
class PairCounts:
    """The cells of two columns that occur: codes a and b, int32 [C], ascending, and rows by class, int64 [C, L]."""

    a: Codes
    b: Codes
    table: Table

    def __add__(self, other: PairCounts) -> PairCounts:
        a, b = np.concatenate([self.a, other.a]), np.concatenate([self.b, other.b])
        return _cells(a, b, np.concatenate([self.table, other.table]))

    def recode(self, a: Codes | None, b: Codes | None) -> PairCounts:
        """With the codes of either column replaced by the entries of a and b; those that become equal are one cell."""
        return _cells(self.a if a is None else a[self.a], self.b if b is None else b[self.b], self.table)


def count_pair(a: Codes, b: Codes, labels: Labels, classes: int = 2, weights: Array | None = None) -> PairCounts:
    """Count the cells of two columns, codes [rows] each, against labels [rows]: the part of a chunk or a fragment.

    A row counts as often as its weight says, a whole number.
    """
    rows = np.eye(classes, dtype=np.int64)[labels]
    return _cells(a, b, rows if weights is None else rows * weights.astype(np.int64)[:, None])


def _cells(a: Codes, b: Codes, table: Table) -> PairCounts:
    """Rows of `table` summed where a and b are the same."""
    key, place = np.unique((a.astype(np.int64) << 32) | b, return_inverse=True)
    columns = [np.bincount(place, column, len(key)).astype(np.int64) for column in table.T]
    codes = (key >> 32).astype(np.int32), (key & 0xFFFFFFFF).astype(np.int32)
    return PairCounts(a=codes[0], b=codes[1], table=np.stack(columns, axis=1))


def check_classes(totals: Table, name: str) -> None:
    """DataError unless there are two rows or more, in two classes or more."""
    rows = int(totals.sum())
    if rows < 2:
        raise DataError(f"the table must have at least 2 rows with a label, but has {rows}")
    if (totals > 0).sum() < 2:
        raise DataError(f"label {name!r} must have two classes or more, but all {rows} rows are of one")
