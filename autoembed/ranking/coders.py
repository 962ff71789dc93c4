"""From the values of a column to codes 0, 1, 2, ... a chunk of rows at a time; code 0 is missing until the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import polars as pl

from autoembed.data.values import MISSING, WHOLE, all_whole, as_text, check_dtype, col, is_measured, numbers, tidy

Codes = npt.NDArray[np.int32]

BINS = 32  # as data.bins
# Whole numbers in a range up to this are their own codes; beyond, a dictionary of their texts is smaller.
_RANGE = 1 << 20


class Coder(Protocol):
    """Codes one column. `kind` and `merge` are known once every chunk has been coded."""

    kind: str
    ordered: bool

    def encode(self, column: pl.Series) -> Codes:
        """int32 [rows]; 0 is missing."""

    def merge(self, counts: npt.NDArray[np.int64]) -> Codes:
        """The final value of every code: codes with equal numbers are one value. `counts` are the rows of each code."""


class Whole:
    """Whole numbers, truth values and dates in a small range: the code is the distance from the least, plus 1."""

    kind, ordered = "categorical", True

    def __init__(self, least: int) -> None:
        self._least = least

    def encode(self, column: pl.Series) -> Codes:
        if is_measured(column.dtype):
            column = numbers(column)
        return _filled(column.to_physical().cast(pl.Int64) - (self._least - 1))

    def merge(self, counts: npt.NDArray[np.int64]) -> Codes:
        return np.arange(len(counts), dtype=np.int32)


class Binned:
    """Measured numbers: the fine bins of `data.bins`, ascending, which no label has shaped."""

    kind, ordered = "numeric", True

    def __init__(self, uppers: npt.NDArray[np.float64]) -> None:
        self._uppers = uppers

    def encode(self, column: pl.Series) -> Codes:
        values = numbers(column)
        codes = np.searchsorted(self._uppers, values.fill_null(0.0).to_numpy()).astype(np.int32) + 1
        codes[values.is_null().to_numpy()] = 0
        return codes

    def merge(self, counts: npt.NDArray[np.int64]) -> Codes:
        return np.arange(len(counts), dtype=np.int32)


class Text:
    """Any other value, by its text: a dictionary that grows from chunk to chunk, or the given texts for all machines.

    As the readers have it, texts that name one whole number are one value, and a text column whose every value is a
    number, and not every one a whole number, is numeric. Both are seen from the dictionary, so no row is parsed.
    """

    def __init__(self, dtype: pl.DataType, texts: pl.Series | None = None) -> None:
        self.kind, self.ordered = "categorical", False
        self._is_text = dtype == pl.String
        self._dictionary = pl.Categorical(pl.Categories(uuid4().hex)) if texts is None else pl.Enum(texts)
        # Polars forgets a dictionary once no series uses it.
        self._alive = pl.Series([], dtype=self._dictionary)

    def encode(self, column: pl.Series) -> Codes:
        text = column.to_frame("x").select(_text(pl.col("x"), column.dtype)).to_series()
        return _filled(text.cast(self._dictionary).to_physical().cast(pl.Int64) + 1)

    def merge(self, counts: npt.NDArray[np.int64]) -> Codes:
        codes = pl.int_range(0, len(counts) - 1, dtype=pl.UInt32)
        text = pl.select(codes.cat.to(self._dictionary).cast(pl.String)).to_series()
        gone = text.is_in(MISSING)
        values = text.cast(pl.Float64, strict=False).fill_nan(None)
        whole = (text.str.contains(WHOLE) | gone).all()
        if self._is_text and not gone.all() and not (values.is_null() & ~gone).any() and not whole:
            self.kind, self.ordered = "numeric", True
            table = pl.DataFrame({"value": values, "count": counts[1:]})
            return np.append(np.int32(0), Binned(upper_bounds(table)).encode(table["value"]))
        merged = text.to_frame("text").select(tidy(pl.col("text")).rank("dense").fill_null(0)).to_series()
        return np.append(np.int32(0), merged.to_numpy().astype(np.int32))


def coders(frame: pl.LazyFrame, names: Sequence[str], fixed: bool = False) -> list[Coder]:
    """A coder for each column; one streaming pass for the ranges of whole numbers, one for each measured column.

    Args:
        frame: all rows.
        names: of the columns.
        fixed: whether the codes must be the same on every machine; one more pass for each column of texts.

    Raises:
        DataError: a column holds lists, structs or bytes.
    """
    types = frame.collect_schema()
    for name in names:
        check_dtype(name, types[name])
    whole = [name for name in names if _is_whole(types[name])]
    ends: tuple[int | None, ...] = ()
    if whole:
        values = [col(name).to_physical() for name in whole]
        least = [value.min().alias(f"{at}<") for at, value in enumerate(values)]
        most = [value.max().alias(f"{at}>") for at, value in enumerate(values)]
        ends = frame.select(*least, *most).collect(engine="streaming").row(0)
    ranges = {name: (ends[at], ends[at + len(whole)]) for at, name in enumerate(whole)}
    return [_coder(frame, name, types[name], ranges.get(name), fixed) for name in names]


def _is_whole(dtype: pl.DataType) -> bool:
    return dtype.is_integer() or dtype == pl.Boolean or (dtype.is_temporal() and dtype != pl.Duration)


def _coder(
    frame: pl.LazyFrame, name: str, dtype: pl.DataType, ends: tuple[int | None, int | None] | None, fixed: bool
) -> Coder:
    if is_measured(dtype) or dtype == pl.Duration:
        values = frame.select(col(name).alias("value"))
        counted = values.group_by("value").agg(pl.len().alias("count")).collect(engine="streaming")
        found = counted.select(numbers(counted["value"].alias(name)).alias("value"), "count")
        if dtype == pl.Duration or not found.select(all_whole(pl.col("value"), pl.Float64())).item():
            return Binned(upper_bounds(found))
        # Ids that a gap has turned into floats.
        whole = found["value"].drop_nulls().to_numpy()
        ends = (int(whole.min()), int(whole.max())) if len(whole) else (0, 0)
    if ends is not None:
        least, most = (int(end) if end is not None else 0 for end in ends)
        if most - least < _RANGE and most < 2**62:
            return Whole(least)
    if not fixed:
        return Text(dtype)
    texts = frame.select(_text(col(name), dtype).unique().drop_nulls()).collect(engine="streaming").to_series()
    return Text(dtype, texts.sort())


def _text(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, (pl.Categorical, pl.Enum)):
        return column.cast(pl.String)
    return as_text(column.to_physical() if dtype.is_temporal() else column, dtype)


def upper_bounds(counted: pl.DataFrame) -> npt.NDArray[np.float64]:
    """The upper bounds of the fine bins from value (null: missing) and count; the last is infinite."""
    from autoembed.data.bins import fine_bounds

    merged = counted.drop_nulls("value").group_by("value").agg(pl.col("count").sum().cast(pl.Int64)).sort("value")
    return fine_bounds(merged["value"].to_numpy(), merged["count"].to_numpy(), BINS)


def _filled(codes: pl.Series) -> Codes:
    out: Codes = codes.cast(pl.Int32).fill_null(0).to_numpy()
    return out
