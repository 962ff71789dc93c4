"""The time column: text as numbers or moments, and cut values in its type."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping

import polars as pl

from autoembed.data.spec import Cut, DataSpec, Split
from autoembed.data.values import col
from autoembed.errors import DataError

# Text of one of these forms sorts by time where all of it has the same: the date, then what stands between it and the
# clock, the clock, and the zone.
_ISO = r"^\d{4}([-/.])\d{2}\1\d{2}(?:([ T])\d{2}(?::\d{2}(?::\d{2}(?:\.\d+)?)?)?(Z|[+-]\d{2}:?\d{2})?)?$"
_ZONE = r"(?:Z|[+-]\d{2}:\d{2})$"


def typed_time(frames: Mapping[Split, pl.LazyFrame], spec: DataSpec) -> dict[Split, pl.LazyFrame]:
    """The frames with a time column of text as moments if `time_format` says how, as numbers if all of it is.

    Text that sorts by time (ISO dates) stays. DataError for text that does not fit its format, or does not sort by
    time and has none.
    """
    frames = dict(frames)
    if spec.time is None or frames["train"].collect_schema()[spec.time] != pl.String:
        return frames
    time = col(spec.time)
    if spec.time_format is not None:
        try:
            moment = time.str.to_datetime(spec.time_format, strict=False, time_unit="us")
            wrong = _first(frames, time, moment.is_null() & time.is_not_null())
        except pl.exceptions.PolarsError as error:
            line = str(error).splitlines()[0]
            raise DataError(
                f"data.time_format must be one such as %m/%d/%Y, but got {spec.time_format!r}: {line}"
            ) from None
        if wrong is not None:
            form = spec.time_format
            raise DataError(f"time column {spec.time!r} must be as data.time_format={form!r} says, but has {wrong!r}")
        return {name: frame.with_columns(moment.alias(spec.time)) for name, frame in frames.items()}
    for dtype in (pl.Int64, pl.Float64):
        cast = time.cast(dtype, strict=False)
        if _first(frames, time, cast.is_null() & time.is_not_null()) is None:
            return {name: frame.with_columns(cast) for name, frame in frames.items()}
    return frames


def check_sorts(frames: list[pl.LazyFrame], name: str) -> None:
    """DataError if a time column of text does not sort by time: a split by it would take the future for the past.

    It does if all of it is written in one way, and that way has the year first, or one number only.
    """
    if frames[0].collect_schema()[name] != pl.String:
        return
    shape = _shape(col(name)).alias("shape")
    facts = pl.concat([frame.group_by(shape).agg(col(name).first().alias("first")) for frame in frames])
    found = facts.filter(pl.col("shape").is_not_null()).unique("shape").sort("shape").collect(engine="streaming")
    line = f"time column {name!r} is text that need not sort by time"
    hint = "set data.time_format to how it is written, such as %m/%d/%Y or '%Y-%m-%d %H:%M'"
    firsts = found["first"].to_list()
    if len(firsts) > 1:
        raise DataError(f"{line}, as it is written in more than one way ({firsts[0]!r}, {firsts[1]!r}): {hint}")
    if firsts and not _sorts(firsts[0]):
        raise DataError(f"{line}, such as {firsts[0]!r}: {hint}")


def _shape(text: pl.Expr) -> pl.Expr:
    """How text is written: 0 for every digit, a zone as it is. A moment sorts with a shorter one, such as its date."""
    body = text.str.replace(_ZONE, "").str.replace_all(r"\d", "0").str.replace(r"\.0+$", ".0")
    body = body.str.replace(r"^(0000-00-00) 00:00(:00(\.0)?)?$", "${1}")
    return body + text.str.extract(_ZONE, 0).fill_null("")


def _sorts(text: str) -> bool:
    return re.match(_ISO, text) is not None or len(re.findall(r"\d+", text)) == 1


def _first(frames: Mapping[Split, pl.LazyFrame], column: pl.Expr, where: pl.Expr) -> object:
    """The first value for which a condition holds, or None."""
    for frame in frames.values():
        found = frame.filter(where).select(column).head(1).collect(engine="streaming")
        if found.height:
            return found.to_series()[0]
    return None


def cut_value(cut: Cut, frames: list[pl.LazyFrame], spec: DataSpec) -> pl.Expr:
    """A cut value in the type of the time column; DataError if it cannot be, or is written in another way than text."""
    name = spec.time
    assert name is not None
    dtype = frames[0].collect_schema()[name]
    try:
        if dtype.is_numeric():
            if isinstance(cut, str):
                cut = int(cut) if cut.lstrip("-").isdigit() else float(cut)
            return pl.lit(cut)
        if dtype == pl.Date:
            return pl.lit(dt.date.fromisoformat(str(cut)))
        if isinstance(dtype, pl.Datetime):
            moment = _moment(str(cut), spec.time_format)
            if moment.tzinfo is None and dtype.time_zone is not None:
                return pl.lit(moment).dt.replace_time_zone(dtype.time_zone).cast(dtype)
            return pl.lit(moment).cast(dtype)
        if dtype == pl.String:
            return pl.lit(_as_written(str(cut), frames, name))
    except ValueError:
        raise DataError(f"a cut of time column {name!r} must be of its type {dtype}, but got {cut!r}") from None
    raise DataError(f"time column {name!r} must hold numbers, dates or text, but its type is {dtype}")


def _moment(cut: str, form: str | None) -> dt.datetime:
    try:
        return dt.datetime.fromisoformat(cut)
    except ValueError:
        if form is None:
            raise
        return dt.datetime.strptime(cut, form)


def _as_written(cut: str, frames: list[pl.LazyFrame], name: str) -> str:
    """A cut as the column writes moments: the date whole, and the same sign between date and clock."""
    example = str(frames[0].select(col(name).drop_nulls().first()).collect(engine="streaming").item())
    found, own = re.match(_ISO, cut), re.match(_ISO, example)
    alike = re.sub(r"\d", "0", cut) == re.sub(r"\d", "0", example)
    if not (alike if own is None else found is not None and found[1] == own[1]):
        raise DataError(
            f"a cut of time column {name!r} must be written as its values are, such as {example!r}, but got {cut!r}"
        )
    return cut.replace(found[2], own[2]) if found and own and found[2] and own[2] else cut
