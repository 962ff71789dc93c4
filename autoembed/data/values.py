"""What makes two values the same: one text per value, whatever type a file stored it in."""

from __future__ import annotations

import polars as pl
import polars.selectors as cs

from autoembed.errors import DataError

_EXACT = 2.0**53
_NESTED = (pl.List, pl.Array, pl.Struct, pl.Object)
# Texts that mean that there is no value: what pandas writes for NaN, and nothing at all.
MISSING = ("", "nan", "NaN")
WHOLE = r"^[-+]?\d+(\.0+)?$"
# A moment as text: date, clock, seconds and zone.
_MOMENT = r"^(\d{4}-\d{2}-\d{2})[T ](\d{2}:\d{2})(:\d{2}(?:\.\d+)?)?(?: ?(Z|UTC|[+-]\d{2}:?\d{2}))?$"
_TRUTH = {"True": "true", "False": "false", "TRUE": "true", "FALSE": "false"}


def col(name: str) -> pl.Expr:
    """The column of this very name: `pl.col` takes names such as * or ^x$ for patterns."""
    if name == "*" or (name.startswith("^") and name.endswith("$")):
        return cs.by_name(name).as_expr()
    return pl.col(name)


def is_missing(column: pl.Series) -> pl.Series:
    """Which rows have no value, bool [N]: null, NaN, or a list of none."""
    if isinstance(column.dtype, pl.List):
        return column.list.len().fill_null(0) == 0
    return column.is_null() | column.is_nan().fill_null(True) if column.dtype.is_float() else column.is_null()


def tidy(text: pl.Expr) -> pl.Expr:
    """Text that names a whole number, a truth value or a moment, written in one way: '2.0' is '2', 'True' is 'true', ''
    null, and '2024-01-01T10:30:00+09:00' is '2024-01-01 01:30:00'."""
    text = text.str.replace(r"^(-?\d+)\.0+$", "${1}").replace({**_TRUTH, **dict.fromkeys(MISSING)})
    return text.map_batches(_tidy_moments, return_dtype=pl.String, is_elementwise=True)


def _tidy_moments(text: pl.Series) -> pl.Series:
    """Moments among text in UTC, which one without a zone is in, and short: midnight is its date."""
    where = text.str.contains(_MOMENT).arg_true()
    if not len(where):
        return text
    parts = [pl.col("x").str.extract(_MOMENT, number) for number in (1, 2, 3, 4)]
    zone = parts[3].replace({"Z": "+00:00", "UTC": "+00:00"}).fill_null("+00:00")
    written = parts[0] + " " + parts[1] + parts[2].fill_null(":00") + zone
    moment = written.str.to_datetime("%Y-%m-%d %H:%M:%S%.f%#z", strict=False, time_unit="us", time_zone="UTC")
    short = moment.dt.strftime("%Y-%m-%d %H:%M:%S%.6f").str.replace(r"\.?0{1,6}$", "").str.replace(r" 00:00:00$", "")
    found = text.gather(where).to_frame("x").select(pl.coalesce(short, "x")).to_series()
    return text.scatter(where, found)


def as_text(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """The values of a column as text, untidied for text itself; NaN becomes missing, 2.0 '2' and decimal 1.50 '1.5'.

    Moments are told to the microsecond, with a zone in UTC, so that no unit and no zone changes them; `tidy` makes them
    short.
    """
    if dtype.is_float():
        whole = (column == column.round()) & (column.abs() < _EXACT)
        number = (
            pl.when(whole).then(column.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(column.cast(pl.String))
        )
        return pl.when(column.is_not_nan()).then(number)
    if dtype.is_decimal():
        return column.cast(pl.String).str.replace(r"(\.\d*?)0+$", "${1}").str.replace(r"\.$", "")
    if dtype.is_temporal():
        one = in_one_unit(column, dtype)
        return (one.to_physical() if dtype == pl.Duration else one).cast(pl.String)
    return column.cast(pl.String)


def in_one_unit(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Moments and durations in microseconds, moments of a zone in UTC; other columns as they are."""
    if isinstance(dtype, pl.Datetime):
        column = column.cast(pl.Datetime("us", dtype.time_zone))
        return column.dt.convert_time_zone("UTC") if dtype.time_zone else column
    return column.cast(pl.Duration("us")) if isinstance(dtype, pl.Duration) else column


def key(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """The text that identifies a value: equal for 2, 2.0, '2' and '2.0'; null for missing, NaN, '' and 'nan'."""
    text = as_text(column, dtype)
    return text if dtype.is_integer() else tidy(text)


def check_dtype(name: str, dtype: pl.DataType) -> None:
    """DataError if a column holds nested values, which have no one value per row."""
    if isinstance(dtype, _NESTED):
        raise DataError(f"column {name!r} must hold one value per row, but its type is {dtype}: list it under drop")


def is_measured(dtype: pl.DataType) -> bool:
    """Whether a type holds numbers that need not be whole."""
    return dtype.is_float() or dtype.is_decimal()


def all_whole(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Whether all values of a column of numbers are whole, as ids are that a gap turned into floats."""
    values = column.cast(pl.Float64)
    values = values.fill_nan(None) if dtype.is_float() else values
    return ((values == values.round()) & (values.abs() < _EXACT)).all()


def numbers(column: pl.Series) -> pl.Series:
    """The column as Float64, NaN missing, moments in microseconds; DataError with the first value that is no number."""
    name, column = column.name, column.alias("x")  # Polars takes a name such as ^x$ for a pattern
    if column.dtype.is_temporal():
        one = column.to_frame("x").select(in_one_unit(pl.col("x"), column.dtype)).to_series()
        values = one.to_physical().cast(pl.Float64)
    else:
        values = column.cast(pl.Float64, strict=False)
        wrong = values.is_null() & column.is_not_null()
        if wrong.any() and column.dtype == pl.String:
            wrong &= ~column.is_in(MISSING)
        if wrong.any():
            first = column.filter(wrong).first()
            raise DataError(
                f"numeric column {name!r} must hold numbers, but has {first!r}: "
                "list the column under categorical, or the value under null_values"
            )
    return values.fill_nan(None)
