"""Columns that hold several values a row, as Parquet lists or as text with a separator, counted per value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from autoembed.data.values import col, key
from autoembed.errors import DataError
from autoembed.ranking.counts import Labels
from autoembed.ranking.weighted import WeightedCounts
from autoembed.types import Array


@dataclass(frozen=True, kw_only=True)
class MultiColumn:
    """A column's counts: `table` int64 [K, L], the rows of each class that hold each value; `coverage`, rows with any.

    A row counts once for each value that it holds, and once as missing (place 0 of the table) if it holds none. With
    weights, `table` has their sums, int64 if all are whole; if they are not, `rows` [K] are those of each value.
    """

    name: str
    table: Array
    coverage: float
    rows: Array | None = None


def find(types: pl.Schema, separators: Mapping[str, str]) -> list[str]:
    """The columns that hold several values a row: lists, and those that have a separator.

    DataError if a separator is of no text column.
    """
    for name in separators:
        if name not in types:
            raise DataError(f"unknown column {name!r}: the columns are {', '.join(types.names())}")
        if types[name] != pl.String:
            raise DataError(f"column {name!r} must be text to have a separator, but its type is {types[name]}")
    return [name for name in types.names() if name in separators or isinstance(types[name], (pl.List, pl.Array))]


def count(
    frame: pl.LazyFrame,
    names: list[str],
    separators: Mapping[str, str],
    label: str,
    classes: Mapping[bool | int | float | str, int],
    rows: int,
    weighted: WeightedCounts | None = None,
) -> tuple[MultiColumn, ...]:
    """Count columns that hold several values a row against the label, each in a streaming pass of its own.

    The column of weights is that of `weighted`, if rows have some.
    """
    weight = pl.lit(1.0) if weighted is None else col(weighted.column).cast(pl.Float64)
    total = rows if weighted is None else float(frame.select(weight.sum()).collect(engine="streaming").item())
    number = len(set(classes.values()))
    kinds = col(label).replace_strict(list(classes), list(classes.values()), return_dtype=pl.UInt8)
    found = []
    for name in names:
        values = col(name)
        if name in separators:
            values = values.str.split(separators[name]).list.eval(pl.element().str.strip_chars())
        elif isinstance(frame.collect_schema()[name], pl.Array):
            values = values.arr.to_list()
        held = frame.select(kinds.alias("class"), weight.alias("weight"), values.list.unique().alias("value"))
        held = held.explode("value", empty_as_null=True)
        dtype = held.collect_schema()["value"]
        text = key(pl.col("value"), dtype)
        sums = (pl.len().alias("rows"), pl.col("weight").sum().alias("sum"))
        counted = held.group_by(text.alias("value"), "class").agg(*sums).collect(engine="streaming")
        order = counted.select(pl.col("value").drop_nulls().unique().sort()).to_series()
        place = counted["value"].replace_strict(order, np.arange(1, len(order) + 1), default=0, return_dtype=pl.Int64)
        cells, shape = (place.to_numpy(), counted["class"].to_numpy()), (len(order) + 1, number)
        table, sums_of = np.zeros(shape, np.int64), np.zeros(shape)
        np.add.at(table, cells, counted["rows"].to_numpy())
        np.add.at(sums_of, cells, counted["sum"].to_numpy())
        coverage = 1.0 - float(sums_of[0].sum()) / total
        found.append(column_of(name, table, coverage, None if weighted is None else weighted.whole, sums_of))
    return tuple(found)


def column_of(name: str, table: npt.NDArray[np.int64], coverage: float, whole: bool | None, sums: Array) -> MultiColumn:
    """A column from the rows and the weights [K, L] of its values; rows have weights unless `whole` is None."""
    used = table.any(axis=1)
    if whole is None:
        return MultiColumn(name=name, table=table[used], coverage=coverage)
    if whole:
        return MultiColumn(name=name, table=np.rint(sums[used]).astype(np.int64), coverage=coverage)
    return MultiColumn(name=name, table=sums[used], coverage=coverage, rows=table[used].sum(axis=1))


def count_values(
    table: Array, ids: npt.NDArray[np.int32], labels: npt.NDArray[np.uint8], weights: Array | None = None
) -> None:
    """Adds rows to counts [K, L]: each row, ids int [N, V] with -1 for none, once for each of its values.

    With weights [N] it adds these.
    """
    ordered = np.sort(ids, axis=1)
    once = ordered >= 0
    once[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    classes = table.shape[1]
    keys = (ordered.astype(np.int64) * classes + labels[:, None])[once]
    own = None if weights is None else np.broadcast_to(weights[:, None], once.shape)[once]
    table += np.bincount(keys, own, table.size).reshape(table.shape)


class ValueCounter:
    """Adds up the rows and the weights of the values of a field that has several of them a row."""

    def __init__(self, columns: list[int], cardinality: int) -> None:
        self.columns = columns
        self.table = np.zeros((cardinality, 2), np.int64)
        self.sums = np.zeros((cardinality, 2))
        self.total = 0.0

    def add(self, rows: Array, labels: Labels, weights: Array | None) -> None:
        ids = rows[:, self.columns]
        count_values(self.table, ids, labels)
        self.total += len(ids) if weights is None else float(weights.sum())
        if weights is not None:
            count_values(self.sums, ids, labels, weights)

    def finish(self, name: str, missing: int, weighted: WeightedCounts | None) -> MultiColumn:
        """The column; `missing` is the id of missing, 0 without one."""
        held = self.table if weighted is None else self.sums
        coverage = 1.0 - float(held[missing].sum()) / self.total if missing else 1.0
        whole = None if weighted is None else weighted.whole
        return column_of(name, self.table, coverage, whole, self.sums)
