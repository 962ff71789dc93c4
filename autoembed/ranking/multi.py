"""Columns that hold several values a row, as Parquet lists or as text with a separator, counted per value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from autoembed.data.values import col, key
from autoembed.errors import DataError


@dataclass(frozen=True, kw_only=True)
class MultiColumn:
    """A column's counts: `table` int64 [K, L], the rows of each class that hold each value; `coverage`, rows with any.

    A row counts once for each value that it holds, and once as missing (place 0 of the table) if it holds none.
    """

    name: str
    table: npt.NDArray[np.int64]
    coverage: float


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
) -> tuple[MultiColumn, ...]:
    """Count columns that hold several values a row against the label, each in a streaming pass of its own."""
    number = len(set(classes.values()))
    kinds = col(label).replace_strict(list(classes), list(classes.values()), return_dtype=pl.UInt8)
    found = []
    for name in names:
        values = col(name)
        if name in separators:
            values = values.str.split(separators[name]).list.eval(pl.element().str.strip_chars())
        elif isinstance(frame.collect_schema()[name], pl.Array):
            values = values.arr.to_list()
        held = frame.select(kinds.alias("class"), values.list.unique().alias("value"))
        held = held.explode("value", empty_as_null=True)
        dtype = held.collect_schema()["value"]
        text = key(pl.col("value"), dtype)
        counted = held.group_by(text.alias("value"), "class").agg(pl.len().alias("rows")).collect(engine="streaming")
        order = counted.select(pl.col("value").drop_nulls().unique().sort()).to_series()
        place = counted["value"].replace_strict(order, np.arange(1, len(order) + 1), default=0, return_dtype=pl.Int64)
        table = np.zeros((len(order) + 1, number), np.int64)
        np.add.at(table, (place.to_numpy(), counted["class"].to_numpy()), counted["rows"].to_numpy())
        coverage = 1.0 - float(table[0].sum()) / rows
        found.append(MultiColumn(name=name, table=table[1:] if not table[0].any() else table, coverage=coverage))
    return tuple(found)


def count_values(table: npt.NDArray[np.int64], ids: npt.NDArray[np.int32], labels: npt.NDArray[np.uint8]) -> None:
    """Adds rows to counts int64 [K, L]: each row, ids int [N, V] with -1 for none, once for each of its values."""
    ordered = np.sort(ids, axis=1)
    once = ordered >= 0
    once[:, 1:] &= ordered[:, 1:] != ordered[:, :-1]
    classes = table.shape[1]
    keys = (ordered.astype(np.int64) * classes + labels[:, None])[once]
    table += np.bincount(keys, minlength=table.size).reshape(table.shape)
