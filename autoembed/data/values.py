"""What makes two values the same: one text per value, whatever type a file stored it in."""

from __future__ import annotations

import polars as pl

from autoembed.errors import DataError

_EXACT = 2.0**53
_NESTED = (pl.List, pl.Array, pl.Struct, pl.Object, pl.Binary)


def tidy(text: pl.Expr) -> pl.Expr:
    """Text that names a whole number or a truth value, written in one way: '2.0' is '2' and 'True' is 'true'."""
    return text.str.replace(r"^(-?\d+)\.0+$", "${1}").replace({"True": "true", "False": "false"})


def as_text(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """The values of a column as text, untidied for text itself; NaN becomes missing and 2.0 becomes '2'."""
    if dtype.is_float():
        whole = (column == column.round()) & (column.abs() < _EXACT)
        number = (
            pl.when(whole).then(column.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(column.cast(pl.String))
        )
        return pl.when(column.is_not_nan()).then(number)
    return column.cast(pl.String)


def key(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """The text that identifies a value: equal for 2, 2.0, '2' and '2.0'; null for missing and NaN."""
    text = as_text(column, dtype)
    return text if dtype.is_integer() else tidy(text)


def check_dtype(name: str, dtype: pl.DataType) -> None:
    """DataError if a column holds lists, structs or bytes, which have no one value per row."""
    if isinstance(dtype, _NESTED):
        raise DataError(f"column {name!r} must hold one value per row, but its type is {dtype}: list it under drop")


def numbers(column: pl.Series) -> pl.Series:
    """The column as Float64 with NaN as missing; DataError with the first value that is no number."""
    if column.dtype.is_temporal():
        values = column.to_physical().cast(pl.Float64)
    else:
        values = column.cast(pl.Float64, strict=False)
        wrong = values.is_null() & column.is_not_null()
        if wrong.any():
            first = column.filter(wrong).first()
            raise DataError(
                f"numeric column {column.name!r} must hold numbers, but has {first!r}: "
                "list the column under categorical, or the value under null_values"
            )
    return values.fill_nan(None)
