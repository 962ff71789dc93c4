"""One column of a vocabulary: its values' ids, how they are learnt from counts, and how values are encoded."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from autoembed.data import knots as between
from autoembed.data.bins import upper_bounds
from autoembed.data.crosses import Keys
from autoembed.data.knots import Interpolation, Knots
from autoembed.data.multi import cut, no_lists, spread
from autoembed.data.schema import Cross, Field, Kind, Multi
from autoembed.data.target_statistics import Floats
from autoembed.data.values import as_text, col, key, numbers, tidy
from autoembed.errors import DataError

Ids = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]

COLUMNS = {
    "field": pl.String,
    "kind": pl.String,
    "id": pl.Int32,
    "value": pl.String,
    "upper": pl.Float64,
    "count": pl.Int64,
}
_TRUTH = {"1": "true", "0": "false"}
_BUCKET = "#hash:"


@dataclass(frozen=True, kw_only=True)
class Column:
    """One field: `known` values in the order of `ids`, and the id of missing.

    Numeric fields know ascending upper bounds, and perhaps the knot of each bin; crossed ones ascending keys. With
    `buckets`, so many of the values are those of `bucket_of`, which stand for all values that are rare or that train
    does not have. A statistic of another field knows upper bounds of rates, and `of_ids` has its id for each id of that
    field. After a later log, `recent` has the rows of each id, those of before in parts; `counts` has them rounded up.
    """

    kind: Kind
    known: pl.Series
    ids: Ids
    missing: int
    counts: Counts
    cross: Cross | None = None
    multi: Multi | None = None
    buckets: int | None = None
    statistic_of: str | None = None
    of_ids: Ids | None = None
    knots: Knots | None = None
    recent: Floats | None = None

    @property
    def length(self) -> int:
        """How many columns of the encoded table the field has."""
        if self.knots is not None:
            return between.COLUMNS
        return self.multi.length if self.multi else 1

    @property
    def lookup(self) -> Ids:
        """The id per position in `known`, and 0 behind the last for what is unknown."""
        return np.append(self.ids, np.int32(0))

    @property
    def unknown(self) -> Ids:
        """The ids of values that are rare, or that train does not have: 0, and those of buckets."""
        if self.buckets is None:
            return np.zeros(1, dtype=np.int32)
        return np.append(self.ids[self.known.str.starts_with(_BUCKET).to_numpy()], np.int32(0))

    def like(self, other: Column) -> Column:
        """This column, read as another one is."""
        return replace(self, kind=other.kind, multi=other.multi, buckets=other.buckets)


def bucket_of(text: str, buckets: int) -> str:
    """The value that stands for a rare or unknown one: CRC-32 of its text, which every language has."""
    return f"{_BUCKET}{zlib.crc32(text.encode()) % buckets}"


def in_buckets(texts: pl.Series, buckets: int) -> pl.Series:
    """The bucket of each text."""
    distinct = texts.unique()
    return texts.replace_strict(distinct, [bucket_of(text, buckets) for text in distinct], return_dtype=pl.String)


def counted_values(frame: pl.LazyFrame, field: Field, of_class_one: pl.Expr | None = None) -> pl.DataFrame:
    """The rows of each value: value and count, and the `clicks` among them: those for which `of_class_one` is 1.

    Values are as they stand if they are numbers of a numeric field, and text elsewhere.
    """
    column = col(field.name) if field.multi is None else cut(col(field.name), field.multi).explode(empty_as_null=True)
    values, rows = [column.alias("value")], [pl.len().cast(pl.Int64).alias("count")]
    if of_class_one is not None:
        values.append(of_class_one.alias("clicks"))
        rows.append(pl.col("clicks").sum())
    counted = frame.select(values).group_by("value").agg(rows).collect(engine="streaming")
    return (
        counted if of_class_one is not None else counted.select(key(pl.col("value"), counted.schema["value"]), "count")
    )


def fit_categorical(
    counted: pl.DataFrame, min_count: int, buckets: int | None = None, most: int | None = None
) -> Column:
    merged = counted.group_by("value").agg(pl.col("count").sum().cast(pl.Int64))
    return with_rare(merged, pl.col("count") >= min_count, (0,), buckets, most)


def with_rare(
    counted: pl.DataFrame, stays: pl.Expr, rare: Sequence[float], buckets: int | None, most: int | None = None
) -> Column:
    """The column of the values (value, count, perhaps recent) that stay; the others share id 0, or buckets.

    `rare` rows have id 0 beside them: a number for count, and one for recent. At most the `most` frequent values stay,
    buckets left out.
    """
    of_bucket = pl.lit(False) if buckets is None else pl.col("value").str.starts_with(_BUCKET).fill_null(False)
    if most is not None:
        counted = counted.sort(["count", "value"], descending=[True, False], nulls_last=True)
        stays &= (stays & ~of_bucket).cum_sum() <= most
    stays |= of_bucket
    names = ["count", "recent"][: len(rare)]
    kept, others = counted.filter(stays).select("value", *names), counted.filter(~stays)
    if buckets is not None:
        texts = others.drop_nulls("value")
        unheld = others.filter(pl.col("value").is_null())
        every = pl.DataFrame({"value": [f"{_BUCKET}{n}" for n in range(buckets)]})
        empty = [pl.lit(0).cast(kept.schema[name]).alias(name) for name in names]
        held = texts.select(in_buckets(texts["value"], buckets).alias("value"), *names)
        kept = pl.concat([kept, held, every.with_columns(empty)]).group_by("value").agg(pl.col(names).sum())
    else:
        unheld = others
    ranked = kept.sort(["count", "value"], descending=[True, False], nulls_last=True)
    rows = [
        np.concatenate([[before + float(unheld[name].sum())], ranked[name].to_numpy()])
        for name, before in zip(names, rare, strict=True)
    ]
    column = ranked_column(ranked["value"], rows[0].astype(np.int64))
    return replace(column, recent=rows[1].astype(np.float64)) if len(rows) > 1 else column


def ranked_column(values: pl.Series, counts: Counts) -> Column:
    """The column whose ids 1.. are these values in this order; null is missing."""
    missing = values.is_null()
    ids = np.arange(1, len(values) + 1, dtype=np.int32)
    at = missing.arg_true()
    return Column(
        kind="categorical",
        known=values.drop_nulls(),
        ids=ids[~missing.to_numpy()],
        missing=int(ids[at[0]]) if len(at) else 0,
        counts=counts,
    )


def grown(before: Column, log: Column, least: int, evict: float, memory: float, most: int | None = None) -> Column:
    """A column of values after a later log, as `Vocabulary.grown` says."""
    weighed = before.counts.astype(np.float64) if before.recent is None else before.recent
    old, new = table_of("x", before)[1:], table_of("x", log)[1:]
    old = old.select("value", pl.col("count").alias("old"), pl.Series("weighed", weighed[1:]))
    both = old.join(
        new.select("value", pl.col("count").alias("new")), on="value", how="full", nulls_equal=True, coalesce=True
    ).with_columns(pl.col("weighed", "new").fill_null(0))
    recent = memory * pl.col("weighed") + pl.col("new")
    stays = pl.when(pl.col("old").is_null()).then(pl.col("new") >= least).otherwise(recent >= evict)
    both = both.with_columns(recent.ceil().cast(pl.Int64).alias("count"), recent.alias("recent"), stays.alias("stays"))
    rare = memory * float(weighed[0]) + float(log.counts[0])
    return with_rare(both, pl.col("stays"), (np.ceil(rare), rare), before.buckets, most)


def fit_numeric(counted: pl.DataFrame, name: str, bins: int, interpolation: Interpolation | None = None) -> Column:
    """The column of a field's numbers (value, count, clicks), cut into about so many bins, and perhaps with knots."""
    merged = (
        counted.select(numbers(counted["value"].alias(name)).alias("value"), "count", "clicks")
        .group_by("value")
        .agg(pl.col("count", "clicks").sum())
        .sort("value", nulls_last=True)
    )
    present = merged.drop_nulls("value")
    values, counts = present["value"].to_numpy(), present["count"].to_numpy()
    knots: Knots | None
    if interpolation == "linear" or (interpolation and not len(values)):
        uppers, knots = between.line(values, counts)
    else:
        uppers = upper_bounds(values, counts, bins, present["clicks"].to_numpy())
        knots = between.of_bins(values, counts, uppers) if interpolation else None
    if knots is not None:
        between.check_size(name, len(knots.medians))
    per_bin = np.bincount(np.searchsorted(uppers, values), weights=counts, minlength=len(uppers)).astype(np.int64)
    missing = int(merged["count"].sum()) - int(counts.sum())
    if missing:
        per_bin = np.append(per_bin, missing)
    order, ids = _by_count(per_bin)
    return Column(
        kind="numeric",
        known=pl.Series(uppers, dtype=pl.Float64),
        ids=ids[: len(uppers)],
        missing=int(ids[-1]) if missing else 0,
        counts=np.append(np.int64(0), per_bin[order]),
        knots=knots,
    )


def _by_count(per_bin: Counts) -> tuple[Counts, Ids]:
    """The bins by falling count, and the id of each bin, from 1 on."""
    order = np.argsort(-per_bin, kind="stable")
    ids = np.empty(len(per_bin), dtype=np.int32)
    ids[order] = np.arange(1, len(per_bin) + 1, dtype=np.int32)
    return order, ids


def statistic_column(of: str, uppers: Floats, train: Floats, values: Floats) -> tuple[Column, Ids]:
    """The column of the bins of another field's rates, and the ids of the train rows, int32 [rows].

    Args:
        of: the other field.
        uppers: the ascending upper bounds of the bins.
        train: the rate of each train row.
        values: the rate of each id of the other field, for all other rows.
    """
    bins = np.searchsorted(uppers, train)
    per_bin = np.bincount(bins, minlength=len(uppers)).astype(np.int64)
    order, ids = _by_count(per_bin)
    column = Column(
        kind="statistic",
        known=pl.Series(uppers, dtype=pl.Float64),
        ids=ids,
        missing=0,
        counts=np.append(np.int64(0), per_bin[order]),
        statistic_of=of,
        of_ids=ids[np.searchsorted(uppers, values)],
    )
    return column, ids[bins]


def encode_multi(series: pl.Series, column: Column, multi: Multi, enum: pl.Enum) -> Ids:
    if not isinstance(series.dtype, pl.List):
        raise no_lists(series.name, series.dtype)
    lists = series.to_frame("x").select(cut(pl.col("x"), multi)).to_series()
    values = encode_categorical(lists.explode(empty_as_null=True), column, enum)
    lengths = lists.list.len().fill_null(1).clip(1, None).to_numpy()
    return spread(lengths, values, multi.length)


def encode_knots(series: pl.Series, column: Column, knots: Knots) -> Ids:
    """The codes of numbers between knots, int32 [rows, 2]."""
    values = numbers(series).fill_null(np.nan).to_numpy()
    return between.encode(values, column.known.to_numpy(), knots.places, column.ids, column.missing)


def encode_numeric(series: pl.Series, column: Column) -> Ids:
    """The ids of the bins that numbers are in, int32 [rows]."""
    values = numbers(series)
    places = np.searchsorted(column.known.to_numpy(), values.fill_null(0.0).to_numpy())
    ids: Ids = column.lookup[places]
    ids[values.is_null().to_numpy()] = column.missing
    return ids


def encode_categorical(series: pl.Series, column: Column, enum: pl.Enum) -> Ids:
    text = series.to_frame("x").select(as_text(pl.col("x"), series.dtype)).to_series()
    known = set(column.known) if len(column.known) <= len(_TRUTH) else set()
    truth: dict[str, str] = {}
    if known and known <= set(_TRUTH.values()):
        truth = _TRUTH
    elif (known and known <= set(_TRUTH)) or series.dtype == pl.Boolean:  # train has 0 and 1
        truth = {word: number for number, true in _TRUTH.items() for word in _spellings(true)}
    text = text.replace(truth) if truth else text
    places = text.cast(enum, strict=False).to_physical()
    if not series.dtype.is_integer():
        # Tidying every value would take five times as long as the cast: do it where the text as it stands is unknown.
        strange = (places.is_null() & text.is_not_null()).arg_true()
        if len(strange):
            tidied = text.gather(strange).to_frame("x").select(tidy(pl.col("x"))).to_series()
            tidied = tidied.replace(truth) if truth else tidied
            places = places.scatter(strange, tidied.cast(enum, strict=False).to_physical())
            text = text.scatter(strange, tidied)
    if column.buckets is not None and len(at := (places.is_null() & text.is_not_null()).arg_true()):
        places = places.scatter(at, in_buckets(text.gather(at), column.buckets).cast(enum).to_physical())
    ids: Ids = column.lookup[places.fill_null(len(column.ids)).to_numpy()]
    if column.missing:
        ids[text.is_null().to_numpy()] = column.missing
    return ids


def _spellings(truth: str) -> tuple[str, ...]:
    return truth, truth.capitalize(), truth.upper()


def table_of(name: str, column: Column) -> pl.DataFrame:
    size = len(column.counts)
    values: list[str | None] = [None] * size
    uppers: list[float | None] = [None] * size
    into: list[str | None] | list[float | None] = uppers if column.kind in ("numeric", "statistic") else values
    known = column.known.cast(pl.String) if column.kind == "crossed" else column.known
    for place, value in zip(column.ids, known, strict=True):
        into[place] = value
    if column.knots is not None:
        for place, text in zip(column.ids.tolist(), column.knots.texts, strict=True):
            values[place] = text
    if column.of_ids is not None:
        values[1:] = [" ".join(map(str, np.flatnonzero(column.of_ids == own))) for own in range(1, size)]
    data = {
        "field": [name] * size,
        "kind": [column.kind] * size,
        "id": np.arange(size, dtype=np.int32),
        "value": values,
        "upper": uppers,
        "count": column.counts,
    }
    return pl.DataFrame(data, schema=COLUMNS)


def crossed_column(keys: Keys, counts: Counts, cross: Cross) -> Column:
    """The column whose ids 1.. are these keys in this order."""
    order = np.argsort(keys)
    return Column(
        kind="crossed",
        known=pl.Series(keys[order], dtype=pl.Int64),
        ids=(order + 1).astype(np.int32),
        missing=0,
        counts=counts,
        cross=cross,
    )


def _statistic(part: pl.DataFrame, statistics: Mapping[str, str], path: str | Path) -> Column:
    name, bins = part["field"][0], part[1:].sort("upper")
    if name not in statistics:
        raise DataError(f"{path} is not a vocabulary: it does not say which field has the rates of {name!r}")
    own = part[1:].select("id", pl.col("value").str.split(" ")).explode("value").filter(pl.col("value") != "")
    own = own.with_columns(pl.col("value").cast(pl.Int64)).sort("value")
    if own["value"].to_list() != list(range(own.height)):
        raise DataError(f"{path} is not a vocabulary: {name!r} must have one bin for each id of {statistics[name]!r}")
    return Column(
        kind="statistic",
        known=bins["upper"],
        ids=bins["id"].to_numpy(),
        missing=0,
        counts=part["count"].to_numpy().astype(np.int64),
        statistic_of=statistics[name],
        of_ids=own["id"].to_numpy(),
    )


def column_of(
    part: pl.DataFrame,
    crosses: Mapping[str, object],
    multi: Mapping[str, object],
    statistics: Mapping[str, str],
    path: str | Path,
) -> Column:
    name, kind = part["field"][0], part["kind"][0]
    if part["id"].to_list() != list(range(part.height)) or kind not in get_args(Kind):
        raise DataError(f"{path} is not a vocabulary: the ids of {name!r} must be 0, 1, 2, ... in order")
    counts = part["count"].to_numpy().astype(np.int64)
    if kind == "crossed":
        if name not in crosses:
            raise DataError(f"{path} is not a vocabulary: it does not say what {name!r} is crossed of")
        keys = part["value"][1:].cast(pl.Int64).to_numpy()
        return crossed_column(keys, counts, Cross.model_validate(crosses[name]))
    if kind == "multi":
        if name not in multi:
            raise DataError(f"{path} is not a vocabulary: it does not say how many values {name!r} may have")
        column = ranked_column(part["value"][1:], counts)
        return replace(column, kind="multi", multi=Multi.model_validate(multi[name]))
    if kind == "categorical":
        return ranked_column(part["value"][1:], counts)
    if kind == "statistic":
        return _statistic(part, statistics, path)
    ids = part[1:].select("id", "upper", "value")
    missing = ids.filter(pl.col("upper").is_null())["id"]
    known = ids.drop_nulls("upper").sort("upper")
    texts = known["value"].drop_nulls()
    return Column(
        kind="numeric",
        known=known["upper"],
        ids=known["id"].to_numpy(),
        missing=int(missing[0]) if len(missing) else 0,
        counts=counts,
        knots=Knots.of_texts(texts.to_list()) if len(texts) else None,
    )
