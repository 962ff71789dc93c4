"""Which id each value of a column gets, learnt from train alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import polars as pl

from autoembed.data.bins import upper_bounds
from autoembed.data.crosses import CrossSpec, Keys, frequent_keys, keys_of, name_of
from autoembed.data.multi import cut, no_lists, spread
from autoembed.data.schema import Cross, FeatureSchema, Kind, Multi
from autoembed.data.values import as_text, col, key, numbers, tidy
from autoembed.errors import DataError
from autoembed.types import Progress

Ids = npt.NDArray[np.int32]
Counts = npt.NDArray[np.int64]

_COLUMNS = {
    "field": pl.String,
    "kind": pl.String,
    "id": pl.Int32,
    "value": pl.String,
    "upper": pl.Float64,
    "count": pl.Int64,
}
_CROSSES, _MULTI = "autoembed.crosses", "autoembed.multi"
# How values become ids: raise it when that changes, so that no encoded data of before are used again.
ENCODING = 5
_TRUTH = {"1": "true", "0": "false"}


@dataclass(frozen=True, kw_only=True)
class _Column:
    """One field: `known` values in the order of `ids`, and the id of missing.

    Numeric fields know ascending upper bounds, crossed ones ascending keys.
    """

    kind: Kind
    known: pl.Series
    ids: Ids
    missing: int
    counts: Counts
    cross: Cross | None = None
    multi: Multi | None = None

    @property
    def length(self) -> int:
        """How many columns of the encoded table the field has."""
        return self.multi.length if self.multi else 1

    @property
    def lookup(self) -> Ids:
        """The id per position in `known`, and 0 behind the last for what is unknown."""
        return np.append(self.ids, np.int32(0))


class Vocabulary:
    """Value -> id and train count per id, for every field.

    Id 0 is an unknown value, or one that train has fewer than `min_count` times. Ids from 1 on descend in train
    frequency (ties by value), so the first k ids are the k most frequent values. Missing (null or NaN) is a value like
    any other. A numeric field is cut into bins as `bins.upper_bounds` says, and a number that train has not is in the
    nearest bin. The values of a crossed field are pairs of ids of two fields before it. Those of a multi-valued field
    are the single ones in its lists, and a list without any is missing.
    """

    def __init__(self, columns: dict[str, _Column]) -> None:
        self._columns = columns
        self._enums = {n: pl.Enum(c.known) for n, c in columns.items() if c.kind in ("categorical", "multi")}
        stops = np.cumsum([column.length for column in columns.values()]).tolist()
        self._places = {n: slice(stop - c.length, stop) for stop, (n, c) in zip(stops, columns.items(), strict=True)}

    @classmethod
    def fit(
        cls, frame: pl.LazyFrame, schema: FeatureSchema, min_count: int, bins: int, progress: Progress | None = None
    ) -> Vocabulary:
        """Learn the ids of every field of `schema` from `frame`, which must hold train rows only, with their labels.

        Each column is counted in its own streaming pass: memory grows with its distinct values, not with rows.
        """
        columns = {}
        for done, field in enumerate(schema.fields):
            if progress:
                progress("vocabulary", done, len(schema.fields))
            values, rows = [col(field.name).alias("value")], [pl.len().cast(pl.Int64).alias("count")]
            if field.multi is not None:
                values = [cut(col(field.name), field.multi).explode(empty_as_null=True).alias("value")]
            if field.kind == "numeric":
                values.append(col(schema.label).cast(pl.Int64).alias("clicks"))
                rows.append(pl.col("clicks").sum())
            counted = frame.select(values).group_by("value").agg(rows).collect(engine="streaming")
            fit = _fit_numeric if field.kind == "numeric" else _fit_categorical
            column = fit(counted, field.name, min_count, bins)
            columns[field.name] = replace(column, kind=field.kind, multi=field.multi)
        return cls(columns)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a raw table must have: the fields without the crossed ones."""
        return tuple(name for name, column in self._columns.items() if column.cross is None)

    def _column(self, name: str) -> _Column:
        if name not in self._columns:
            raise DataError(f"unknown column {name!r}: the fields are {', '.join(self._columns)}")
        return self._columns[name]

    def counts(self, name: str) -> Counts:
        """Train rows per id, int64 [cardinality], or values of a multi-valued field; index 0 counts the rare ones."""
        return self._column(name).counts.copy()

    def cardinality(self, name: str) -> int:
        """The number of ids of a field, id 0 included."""
        return len(self._column(name).counts)

    def missing(self, name: str) -> int:
        """The id of missing values, or 0 if train has none, or fewer than `min_count`."""
        return self._column(name).missing

    def encode(self, frame: pl.DataFrame) -> Ids:
        """The ids of every field, int32 [rows, V]; further columns are ignored, DataError if one is missing.

        A multi-valued field has as many columns as a row may have values, PAD where it has fewer.
        """
        absent = [name for name in self.columns if name not in frame.columns]
        if absent:
            raise DataError(f"the table lacks these columns: {', '.join(absent)}")
        out = np.empty((frame.height, sum(column.length for column in self._columns.values())), dtype=np.int32)
        for name, column in self._columns.items():
            own = out[:, self._places[name]]
            if column.multi:
                own[:] = _encode_multi(frame[name], column, column.multi, self._enums[name])
                continue
            if column.cross:
                a, b = (out[:, self._places[parent].start] for parent in (column.cross.a, column.cross.b))
                own[:, 0] = self.encode_cross(name, a, b)
            elif column.kind == "numeric":
                own[:, 0] = _encode_numeric(frame[name], column)
            else:
                own[:, 0] = _encode_categorical(frame[name], column, self._enums[name])
        return out

    def gaps(self, ids: Ids) -> Counts:
        """Of encoded rows, int [N, V]: how many values of each field are unknown, missing, and there are: [3, F]."""
        found = np.zeros((3, len(self._columns)), dtype=np.int64)
        for place, (name, column) in enumerate(self._columns.items()):
            own = ids[:, self._places[name]]
            missing = int((own == column.missing).sum()) if column.missing else 0
            found[:, place] = (own == 0).sum(), missing, (own >= 0).sum()
        return found

    def encode_cross(self, name: str, a: Ids, b: Ids) -> Ids:
        """The ids of a crossed field, int32 [rows], from those of its two fields."""
        column = self._column(name)
        assert column.cross is not None
        keys = keys_of(a, b, self.cardinality(column.cross.b), column.cross)
        known = column.known.to_numpy()
        places = np.searchsorted(known, keys)
        places[places == len(known)] = 0
        found: Ids = np.where(known[places] == keys, column.ids[places], 0) if len(known) else np.zeros_like(a)
        return found

    def with_cross(self, a: str, b: str, train: tuple[Ids, Ids], spec: CrossSpec) -> Vocabulary:
        """This vocabulary and the crossed field of two of its fields, learnt from their ids in all train rows."""
        name = name_of(a, b)
        if name in self._columns:
            raise DataError(f"the crossed column {name!r} is there already")
        exact = keys_of(*train, self.cardinality(b), Cross(a=a, b=b))
        cross = Cross(a=a, b=b, buckets=spec.buckets, distinct=len(np.unique(exact)))
        keys = exact if spec.buckets is None else keys_of(*train, self.cardinality(b), cross)
        column = _crossed(*frequent_keys(keys, spec), cross)
        return Vocabulary({**self._columns, name: column})

    def schema(self, base: FeatureSchema) -> FeatureSchema:
        """`base` with the cardinality of every field."""
        fields = tuple(f.model_copy(update={"cardinality": self.cardinality(f.name)}) for f in base.fields)
        return base.model_copy(update={"fields": fields})

    def keep(self, names: Iterable[str]) -> Vocabulary:
        """The vocabulary of these fields only, in the order in which they stand here."""
        wanted = set(names)
        for name in wanted:
            self._column(name)
        return Vocabulary({name: column for name, column in self._columns.items() if name in wanted})

    def grown(self, log: Vocabulary, *, least: int, evict: float, memory: float) -> Vocabulary:
        """This vocabulary after a later log. Numeric fields keep their bins.

        Ids are ordered anew by rows: `memory` times those of before, and those of the log.

        Args:
            log: the vocabulary of the log, of these fields and fitted with `min_count` 1.
            least: rows of the log that a value needs to get an id.
            evict: a value that has an id loses it with fewer rows.
            memory: how much rows of before count, from 0 to 1; each call multiplies them.
        """
        columns = {}
        for name, column in self._columns.items():
            after = log._column(name)
            columns[name] = column
            if column.kind != "numeric":
                grown = _grown(column, after, least, evict, memory)
                columns[name] = replace(grown, kind=column.kind, multi=column.multi)
        return Vocabulary(columns)

    def pruned(self, least: int) -> Vocabulary:
        """This vocabulary without ids for values that have fewer than `least` rows."""
        columns = dict(self._columns)
        for name, column in columns.items():
            if column.kind in ("categorical", "multi"):
                known = _table(name, column)[1:]
                rare = int(column.counts[0]) + int(known.filter(pl.col("count") < least)["count"].sum())
                kept = known.filter(pl.col("count") >= least)
                pruned = _categorical(kept["value"], np.append(np.int64(rare), kept["count"].to_numpy()))
                columns[name] = replace(pruned, kind=column.kind, multi=column.multi)
        return Vocabulary(columns)

    def cross(self, name: str) -> Cross | None:
        """What a field is crossed of, or None."""
        return self._column(name).cross

    def multi(self, name: str) -> Multi | None:
        """How the values of a multi-valued field are read, or None."""
        return self._column(name).multi

    def table(self) -> pl.DataFrame:
        """One row per field and id; neither value nor upper bound means missing (at id 0: unknown or rare)."""
        return pl.concat([_table(name, column) for name, column in self._columns.items()])

    def write(self, path: str | Path) -> None:
        """Write `table` as Parquet, with what crossed fields are made of, and how others are read, in its metadata."""
        crosses = {name: column.cross.model_dump() for name, column in self._columns.items() if column.cross}
        multi = {name: column.multi.model_dump() for name, column in self._columns.items() if column.multi}
        metadata = {_CROSSES: json.dumps(crosses)} | ({_MULTI: json.dumps(multi)} if multi else {})
        self.table().write_parquet(path, metadata=metadata)

    @classmethod
    def read(cls, path: str | Path) -> Vocabulary:
        """What `write` wrote; DataError if the file is none."""
        try:
            table = pl.read_parquet(path, glob=False)
            metadata = pl.read_parquet_metadata(path)
            crosses, multi = (json.loads(metadata.get(key, "{}")) for key in (_CROSSES, _MULTI))
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"cannot read the vocabulary {path}: {str(error).strip().splitlines()[0]}") from error
        if table.schema != pl.Schema(_COLUMNS) or not table.height:
            raise DataError(
                f"{path} is not a vocabulary: its columns must be {', '.join(_COLUMNS)}, and it must have rows"
            )
        parts = table.partition_by("field", maintain_order=True)
        return cls({part["field"][0]: _from_table(part, crosses, multi, path) for part in parts})


def _fit_categorical(counted: pl.DataFrame, name: str, min_count: int, bins: int) -> _Column:
    value = key(pl.col("value"), counted.schema["value"])
    merged = counted.select(value, "count").group_by("value").agg(pl.col("count").sum().cast(pl.Int64))
    ranked = merged.sort(["count", "value"], descending=[True, False], nulls_last=True)
    frequent = ranked.filter(pl.col("count") >= min_count)
    rare = int(ranked.filter(pl.col("count") < min_count)["count"].sum())
    return _categorical(frequent["value"], np.concatenate([[rare], frequent["count"].to_numpy()]).astype(np.int64))


def _categorical(values: pl.Series, counts: Counts) -> _Column:
    """The column whose ids 1.. are these values in this order; null is missing."""
    missing = values.is_null()
    ids = np.arange(1, len(values) + 1, dtype=np.int32)
    at = missing.arg_true()
    return _Column(
        kind="categorical",
        known=values.drop_nulls(),
        ids=ids[~missing.to_numpy()],
        missing=int(ids[at[0]]) if len(at) else 0,
        counts=counts,
    )


def _grown(before: _Column, log: _Column, least: int, evict: float, memory: float) -> _Column:
    """A column of values after a later log, as `Vocabulary.grown` says."""
    old, new = _table("x", before)[1:], _table("x", log)[1:]
    both = old.select("value", pl.col("count").alias("old")).join(
        new.select("value", pl.col("count").alias("new")), on="value", how="full", nulls_equal=True, coalesce=True
    )
    rows = memory * pl.col("old").fill_null(0) + pl.col("new").fill_null(0)
    stays = pl.when(pl.col("old").is_null()).then(pl.col("new") >= least).otherwise(rows >= evict)
    both = both.with_columns(rows.ceil().cast(pl.Int64).alias("count"), stays.alias("stays"))
    ranked = both.sort(["count", "value"], descending=[True, False], nulls_last=True)
    kept = ranked.filter("stays")
    rare = int(memory * before.counts[0]) + int(log.counts[0]) + int(ranked.filter(~pl.col("stays"))["count"].sum())
    return _categorical(kept["value"], np.concatenate([[rare], kept["count"].to_numpy()]).astype(np.int64))


def _fit_numeric(counted: pl.DataFrame, name: str, min_count: int, bins: int) -> _Column:
    merged = (
        counted.select(numbers(counted["value"].alias(name)).alias("value"), "count", "clicks")
        .group_by("value")
        .agg(pl.col("count", "clicks").sum())
        .sort("value", nulls_last=True)
    )
    present = merged.drop_nulls("value")
    values, counts = present["value"].to_numpy(), present["count"].to_numpy()
    uppers = upper_bounds(values, counts, bins, present["clicks"].to_numpy())
    per_bin = np.bincount(np.searchsorted(uppers, values), weights=counts, minlength=len(uppers)).astype(np.int64)
    missing = int(merged["count"].sum()) - int(counts.sum())
    if missing:
        per_bin = np.append(per_bin, missing)
    order = np.argsort(-per_bin, kind="stable")
    ids = np.empty(len(per_bin), dtype=np.int32)
    ids[order] = np.arange(1, len(per_bin) + 1, dtype=np.int32)
    return _Column(
        kind="numeric",
        known=pl.Series(uppers, dtype=pl.Float64),
        ids=ids[: len(uppers)],
        missing=int(ids[-1]) if missing else 0,
        counts=np.append(np.int64(0), per_bin[order]),
    )


def _encode_multi(series: pl.Series, column: _Column, multi: Multi, enum: pl.Enum) -> Ids:
    if not isinstance(series.dtype, pl.List):
        raise no_lists(series.name, series.dtype)
    lists = series.to_frame("x").select(cut(pl.col("x"), multi)).to_series()
    values = _encode_categorical(lists.explode(empty_as_null=True), column, enum)
    lengths = lists.list.len().fill_null(1).clip(1, None).to_numpy()
    return spread(lengths, values, multi.length)


def _encode_numeric(series: pl.Series, column: _Column) -> Ids:
    values = numbers(series)
    places = np.searchsorted(column.known.to_numpy(), values.fill_null(0.0).to_numpy())
    ids: Ids = column.lookup[places]
    ids[values.is_null().to_numpy()] = column.missing
    return ids


def _encode_categorical(series: pl.Series, column: _Column, enum: pl.Enum) -> Ids:
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
    ids: Ids = column.lookup[places.fill_null(len(column.ids)).to_numpy()]
    if column.missing:
        ids[text.is_null().to_numpy()] = column.missing
    return ids


def _spellings(truth: str) -> tuple[str, ...]:
    return truth, truth.capitalize(), truth.upper()


def _table(name: str, column: _Column) -> pl.DataFrame:
    size = len(column.counts)
    values: list[str | None] = [None] * size
    uppers: list[float | None] = [None] * size
    into: list[str | None] | list[float | None] = uppers if column.kind == "numeric" else values
    known = column.known.cast(pl.String) if column.kind == "crossed" else column.known
    for place, value in zip(column.ids, known, strict=True):
        into[place] = value
    data = {
        "field": [name] * size,
        "kind": [column.kind] * size,
        "id": np.arange(size, dtype=np.int32),
        "value": values,
        "upper": uppers,
        "count": column.counts,
    }
    return pl.DataFrame(data, schema=_COLUMNS)


def _crossed(keys: Keys, counts: Counts, cross: Cross) -> _Column:
    """The column whose ids 1.. are these keys in this order."""
    order = np.argsort(keys)
    return _Column(
        kind="crossed",
        known=pl.Series(keys[order], dtype=pl.Int64),
        ids=(order + 1).astype(np.int32),
        missing=0,
        counts=counts,
        cross=cross,
    )


def _from_table(
    part: pl.DataFrame, crosses: Mapping[str, object], multi: Mapping[str, object], path: str | Path
) -> _Column:
    name, kind = part["field"][0], part["kind"][0]
    if part["id"].to_list() != list(range(part.height)) or kind not in get_args(Kind):
        raise DataError(f"{path} is not a vocabulary: the ids of {name!r} must be 0, 1, 2, ... in order")
    counts = part["count"].to_numpy().astype(np.int64)
    if kind == "crossed":
        if name not in crosses:
            raise DataError(f"{path} is not a vocabulary: it does not say what {name!r} is crossed of")
        keys = part["value"][1:].cast(pl.Int64).to_numpy()
        return _crossed(keys, counts, Cross.model_validate(crosses[name]))
    if kind == "multi":
        if name not in multi:
            raise DataError(f"{path} is not a vocabulary: it does not say how many values {name!r} may have")
        column = _categorical(part["value"][1:], counts)
        return replace(column, kind="multi", multi=Multi.model_validate(multi[name]))
    if kind == "categorical":
        return _categorical(part["value"][1:], counts)
    ids = part[1:].select("id", "upper")
    missing = ids.filter(pl.col("upper").is_null())["id"]
    known = ids.drop_nulls("upper").sort("upper")
    return _Column(
        kind="numeric",
        known=known["upper"],
        ids=known["id"].to_numpy(),
        missing=int(missing[0]) if len(missing) else 0,
        counts=counts,
    )
