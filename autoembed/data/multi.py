"""Columns that hold several values a row: lists, or text with a separator between the values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from autoembed.data.schema import PAD, Multi
from autoembed.data.strict import StrictModel
from autoembed.data.values import col, key
from autoembed.errors import DataError
from autoembed.types import Array

MOST = 50  # values of a row that are read where the space does not say how many
_SEPARATORS = ("|", ";", ",", " ")
_OFTEN, _FEWER = 0.2, 0.5


class MultiSpec(StrictModel):
    """How a multi-valued column is read.

    `separator` stands between the values of a text column; lists need none. Of a row with more than `max_length`
    values, the `last` ones are kept, or the `first`. Without `max_length`, the longest row says, up to 50. `shared`
    names another column with the same values, whose ids and embeddings this one has: `data.shared` in short.
    """

    separator: str | None = Field(default=None, min_length=1)
    max_length: int | None = Field(default=None, ge=1)
    keep: Literal["first", "last"] = "last"
    shared: str | None = None


def is_list(dtype: pl.DataType | type[pl.DataType]) -> bool:
    """Whether a column of this type holds lists of plain values."""
    return isinstance(dtype, (pl.List, pl.Array)) and not dtype.inner.is_nested()


def as_lists(name: str, dtype: pl.DataType, separator: str | None, missing: Sequence[str]) -> pl.Expr:
    """A multi-valued column as lists of text, each value as `key` writes it; values that are missing are left out.

    DataError if the column is not of lists, and not of text with a separator.
    """
    column = col(name)
    inner: pl.DataType = pl.String()
    if dtype == pl.String and separator is not None:
        column = column.str.split(separator)
    elif isinstance(dtype, (pl.List, pl.Array)) and is_list(dtype):
        column = column.arr.to_list() if isinstance(dtype, pl.Array) else column
        inner = dtype.inner if isinstance(dtype.inner, pl.DataType) else dtype.inner()
    else:
        raise no_lists(name, dtype)
    value = pl.element()
    if isinstance(inner, (pl.Categorical, pl.Enum, pl.Binary)):
        value, inner = value.cast(pl.String), pl.String()
    value = key(value.str.strip_chars() if inner == pl.String else value, inner)
    if missing:
        value = pl.when(value.is_in(list(missing))).then(None).otherwise(value)
    return column.list.eval(value.drop_nulls())


def no_lists(name: str, dtype: pl.DataType | type[pl.DataType]) -> DataError:
    return DataError(
        f"the multi-valued column {name!r} must hold lists, or text with data.multi.{name}.separator, but its type is "
        f"{dtype}"
    )


def cut(column: pl.Expr, multi: Multi) -> pl.Expr:
    """The lists with at most as many values as are kept."""
    return column.list.tail(multi.length) if multi.keep == "last" else column.list.head(multi.length)


def spread(lengths: Array, values: Array, width: int) -> Array:
    """The values of all rows, int [sum of lengths], side by side in rows of `width`, PAD behind them: int32 [N, width].

    `lengths` is how many values each row has, int [N], `width` at most.
    """
    out = np.full((len(lengths), width), PAD, dtype=np.int32)
    out[np.arange(width) < lengths[:, None]] = values
    return out


def multi_of(frame: pl.LazyFrame, specs: Mapping[str, MultiSpec]) -> dict[str, tuple[Multi, str]]:
    """How each column of lists is read, and what to tell of it in words; one pass over those without `max_length`."""
    sizes = {
        name: (
            col(name).list.len().max().alias(f"{place} most"),
            (col(name).list.len() > (spec.max_length or MOST)).sum().alias(f"{place} cut"),
        )
        for place, (name, spec) in enumerate(specs.items())
    }
    if not sizes:
        return {}
    facts = frame.select(one for pair in sizes.values() for one in pair).collect(engine="streaming")
    found = {}
    for place, (name, spec) in enumerate(specs.items()):
        most, rows = int(facts[f"{place} most"][0] or 1), int(facts[f"{place} cut"][0])
        length = spec.max_length or max(1, min(most, MOST))
        told = f"{name} (up to {length} values a row"
        if rows:
            told += f", the {spec.keep} of {rows:,} rows that have up to {most:,}"
        found[name] = Multi(separator=spec.separator, length=length, keep=spec.keep), told + ")"
    return found


def separated(head: pl.DataFrame, names: Sequence[str]) -> list[str]:
    """What to tell of text columns that look as if they held several values, by the first rows of a table.

    A fifth of the rows must have the separator, and the parts must repeat: half as many as whole values, or fewer.
    """
    found = []
    for name in names:
        text = head[name].drop_nulls()
        for sign in _SEPARATORS:
            several = text.filter(text.str.contains(sign, literal=True))
            if len(several) < max(_OFTEN * len(text), 5):
                continue
            wholes, parts = several.n_unique(), several.str.split(sign).explode().n_unique()
            if parts <= _FEWER * wholes:
                found.append(
                    f"{name}: each combination of values is one value; if {sign!r} stands between several, set "
                    f"data.multi: {{{name}: {sign!r}}} (rank: --multi {name}={sign!r})"
                )
                break
    return found
