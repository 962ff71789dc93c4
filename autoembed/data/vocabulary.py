"""Which id each value of a column gets, learnt from train alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from autoembed.data.columns import (
    COLUMNS,
    Column,
    Counts,
    Ids,
    column_of,
    counted_values,
    crossed_column,
    encode_categorical,
    encode_knots,
    encode_multi,
    encode_numeric,
    fit_categorical,
    fit_numeric,
    grown,
    statistic_column,
    table_of,
    with_rare,
)
from autoembed.data.crosses import CrossSpec, frequent_keys, keys_of, name_of
from autoembed.data.knots import plain
from autoembed.data.schema import Cross, FeatureSchema, Field, Multi
from autoembed.data.target_statistics import Floats, bounds
from autoembed.data.target_statistics import name_of as rate_of
from autoembed.data.values import col
from autoembed.errors import DataError
from autoembed.types import Progress

_CROSSES, _MULTI, _HASH = "autoembed.crosses", "autoembed.multi", "autoembed.hash"
_STATISTICS = "autoembed.statistics"
_RECENT = "recent"  # a column of vocabularies that have seen a later log
# How values become ids: raise it when that changes, so that no encoded data of before are used again.
ENCODING = 5
Most = Callable[[str], int | None]  # how many values of a field have ids; None is any number


class Vocabulary:
    """Value -> id and train count per id, for every field.

    Id 0 is an unknown value, or one that train has fewer than `min_count` times. Ids from 1 on descend in train
    frequency (ties by value), so the first k ids are the k most frequent values. Missing (null or NaN) is a value like
    any other. A numeric field is cut into bins as `bins.upper_bounds` says, and a number that train has not is in the
    nearest bin. With an interpolation it is coded as between two knots, `data.knots` says how. The values of a crossed
    field are pairs of ids of two fields before it. Those of a multi-valued field are the single ones in its lists, and
    a list without any is missing. Fields that share a table have equal ids, by the rows of all of them. Values of a
    hashed field that are rare or unknown share its buckets, and not id 0. The ids of a statistic are bins of the click
    rates of another field's ids; train rows have other rates than the rest.
    """

    def __init__(self, columns: dict[str, Column]) -> None:
        self._columns = columns
        self._enums = {n: pl.Enum(c.known) for n, c in columns.items() if c.kind in ("categorical", "multi")}
        stops = np.cumsum([column.length for column in columns.values()]).tolist()
        self._places = {n: slice(stop - c.length, stop) for stop, (n, c) in zip(stops, columns.items(), strict=True)}

    @classmethod
    def fit(
        cls,
        frame: pl.LazyFrame,
        schema: FeatureSchema,
        min_count: int,
        bins: int | Callable[[str], int],
        progress: Progress | None = None,
        most: Most = lambda name: None,
    ) -> Vocabulary:
        """Learn the ids of every field of `schema` from `frame`, which must hold train rows only, with their labels.

        `bins` may differ from column to column, and so may how many values have ids, at `most`. Each column is counted
        in its own streaming pass: memory grows with its distinct values, not with rows.
        """
        columns: dict[str, Column] = {}
        tables: dict[str, list[Field]] = {}
        for field in schema.fields:
            tables.setdefault(field.shares or field.name, []).append(field)
        for done, fields in enumerate(tables.values()):
            if progress:
                progress("vocabulary", done, len(tables))
            if fields[0].kind == "numeric":
                counted = counted_values(frame, fields[0], schema.task.of_class_one(col(schema.label)))
                ranges = bins if isinstance(bins, int) else bins(fields[0].name)
                column = fit_numeric(counted, fields[0].name, ranges, fields[0].interpolation)
            else:
                counted = pl.concat([counted_values(frame, field) for field in fields])
                column = fit_categorical(
                    counted, min_count, fields[0].buckets, most(fields[0].shares or fields[0].name)
                )
            for field in fields:
                columns[field.name] = replace(column, kind=field.kind, multi=field.multi, buckets=fields[0].buckets)
        return cls({name: columns[name] for name in schema.names})

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._columns)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that a raw table must have: the fields without those that are made from other ones."""
        return tuple(name for name, column in self._columns.items() if column.kind not in ("crossed", "statistic"))

    def _column(self, name: str) -> Column:
        if name not in self._columns:
            raise DataError(f"unknown column {name!r}: the fields are {', '.join(self._columns)}")
        return self._columns[name]

    def counts(self, name: str) -> Counts:
        """Train rows per id, int64 [cardinality], or values of a multi-valued field; index 0 counts the rare ones."""
        return self._column(name).counts.copy()

    def recent(self, name: str) -> Floats:
        """Train rows per id as `counts`, after a later log in parts as `grown` says: float64 [cardinality]."""
        column = self._column(name)
        return column.counts.astype(np.float64) if column.recent is None else column.recent.copy()

    def cardinality(self, name: str) -> int:
        """The number of ids of a field, id 0 included."""
        return len(self._column(name).counts)

    def missing(self, name: str) -> int:
        """The id of missing values, or 0 if train has none, or fewer than `min_count`."""
        return self._column(name).missing

    def encode(self, frame: pl.DataFrame) -> Ids:
        """The ids of every field, int32 [rows, V]; further columns are ignored, DataError if one is missing.

        A multi-valued field has as many columns as a row may have values, PAD where it has fewer. A number between
        knots has the codes of two ids. A statistic is that of all train rows.
        """
        absent = [name for name in self.columns if name not in frame.columns]
        if absent:
            raise DataError(f"the table lacks these columns: {', '.join(absent)}")
        out = np.empty((frame.height, sum(column.length for column in self._columns.values())), dtype=np.int32)
        for name, column in self._columns.items():
            own = out[:, self._places[name]]
            if column.multi:
                own[:] = encode_multi(frame[name], column, column.multi, self._enums[name])
                continue
            if column.cross:
                a, b = (self._one(parent, out) for parent in (column.cross.a, column.cross.b))
                own[:, 0] = self.encode_cross(name, a, b)
            elif column.statistic_of:
                own[:, 0] = self.encode_statistic(name, self._one(column.statistic_of, out))
            elif column.knots is not None:
                own[:] = encode_knots(frame[name], column, column.knots)
            elif column.kind == "numeric":
                own[:, 0] = encode_numeric(frame[name], column)
            else:
                own[:, 0] = encode_categorical(frame[name], column, self._enums[name])
        return out

    def _one(self, name: str, ids: Ids) -> Ids:
        """The ids of a field with one value a row in encoded rows: those of its bins, if it is one of numbers."""
        own = ids[:, self._places[name].start]
        return own if self._column(name).knots is None else plain(own)

    def gaps(self, ids: Ids) -> Counts:
        """Of encoded rows, int [N, V]: how many values of each field are unknown, missing, and there are: [3, F]."""
        found = np.zeros((3, len(self._columns)), dtype=np.int64)
        for place, (name, column) in enumerate(self._columns.items()):
            own = ids[:, self._places[name]] if column.knots is None else self._one(name, ids)
            missing = int((own == column.missing).sum()) if column.missing else 0
            unknown = np.isin(own, column.unknown) if column.buckets else own == 0
            found[:, place] = unknown.sum(), missing, (own >= 0).sum()
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

    def encode_statistic(self, name: str, of: Ids) -> Ids:
        """The ids of a statistic, int32 [rows], from those of its field; of rows that are not in train."""
        column = self._column(name)
        assert column.of_ids is not None
        return column.of_ids[of]

    def bins_of(self, name: str, rates: pl.Series) -> Ids:
        """The ids of a statistic whose bins these rates are in, int32 [N]; 0 where one is missing."""
        return encode_numeric(rates, self._column(name))

    def with_statistic(self, of: str, train: Floats, values: Floats, bins: int) -> tuple[Vocabulary, Ids]:
        """This vocabulary and the click rates of one of its fields, and the ids that these have in the train rows.

        Args:
            of: the field.
            train: the rate of each train row, which its own label is not in.
            values: the rate of each id of the field.
            bins: how many bins there are about.
        """
        name = rate_of(of)
        if name in self._columns:
            raise DataError(f"the column {name!r} is there already, so data.target_statistics cannot make it")
        column, ids = statistic_column(of, bounds(train, bins), train, values)
        return Vocabulary({**self._columns, name: column}), ids

    def with_cross(self, a: str, b: str, train: tuple[Ids, Ids], spec: CrossSpec) -> Vocabulary:
        """This vocabulary and the crossed field of two of its fields, learnt from their ids in all train rows."""
        name = name_of(a, b)
        if name in self._columns:
            raise DataError(f"the crossed column {name!r} is there already")
        exact = keys_of(*train, self.cardinality(b), Cross(a=a, b=b))
        cross = Cross(a=a, b=b, buckets=spec.buckets, distinct=len(np.unique(exact)))
        keys = exact if spec.buckets is None else keys_of(*train, self.cardinality(b), cross)
        column = crossed_column(*frequent_keys(keys, spec), cross)
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

    def grown(
        self, log: Vocabulary, *, least: int, evict: float, memory: float, most: Most = lambda name: None
    ) -> Vocabulary:
        """This vocabulary after a later log. Numeric fields keep their bins.

        Ids are ordered again by rows: `memory` times those of before, and those of the log.

        Args:
            log: the vocabulary of the log, of these fields and fitted with `min_count` 1.
            least: rows of the log that a value needs to get an id.
            evict: a value that has an id loses it with fewer rows.
            memory: how much rows of before count, from 0 to 1; each call multiplies them.
            most: how many values of a field have ids.
        """
        columns = {}
        for name, column in self._columns.items():
            after = log._column(name)
            columns[name] = column
            if column.kind != "numeric":
                columns[name] = grown(column, after, least, evict, memory, most(name)).like(column)
        return Vocabulary(columns)

    def pruned(self, least: int, most: Most = lambda name: None) -> Vocabulary:
        """This vocabulary without ids for values that have fewer than `least` rows, or more than `most` before them."""
        columns = dict(self._columns)
        for name, column in columns.items():
            if column.kind in ("categorical", "multi"):
                known, rare = table_of(name, column)[1:], int(column.counts[0])
                rule = pl.col("count") >= least
                columns[name] = with_rare(known, rule, (rare,), column.buckets, most(name)).like(column)
        return Vocabulary(columns)

    def cross(self, name: str) -> Cross | None:
        """What a field is crossed of, or None."""
        return self._column(name).cross

    def statistic_of(self, name: str) -> str | None:
        """The field whose click rates a field has, or None."""
        return self._column(name).statistic_of

    def of_ids(self, name: str) -> Ids:
        """Of a statistic, its id for each id of its field: int32 [cardinality of that field]."""
        of_ids = self._column(name).of_ids
        assert of_ids is not None
        return of_ids.copy()

    def multi(self, name: str) -> Multi | None:
        """How the values of a multi-valued field are read, or None."""
        return self._column(name).multi

    def buckets(self, name: str) -> int | None:
        """How many ids the rare and unknown values of a field share, or None if they share id 0."""
        return self._column(name).buckets

    def knots(self, name: str) -> Floats | None:
        """The knot of each bin of a field of numbers, NaN for none, or None if numbers are their bins."""
        knots = self._column(name).knots
        return None if knots is None else knots.places

    def quantiles(self, name: str) -> Floats:
        """Of each id of a numeric field the share of train's numbers below the middle of its bin: float64 [N].

        NaN for the ids of unknown and missing numbers, and of bins without a knot.
        """
        column = self._column(name)
        rows, knots = column.counts[column.ids], column.knots
        assert knots is not None
        quantiles = np.full(len(column.counts), np.nan)
        quantiles[column.ids] = np.where(
            np.isnan(knots.places), np.nan, (rows.cumsum() - rows / 2) / max(rows.sum(), 1)
        )
        return quantiles

    def unknown(self, name: str) -> Ids:
        """The ids that rare and unknown values of a field have."""
        return self._column(name).unknown

    def table(self) -> pl.DataFrame:
        """One row per field and id; neither value nor upper bound means missing (at id 0: unknown or rare).

        The value of a numeric field's id is its knot, if the field has knots, or "=" and the only value of its bin.
        """
        return pl.concat([table_of(name, column) for name, column in self._columns.items()])

    def write(self, path: str | Path) -> None:
        """Write `table` as Parquet, with what crossed fields are made of, and how others are read, in its metadata."""
        crosses = {name: column.cross.model_dump() for name, column in self._columns.items() if column.cross}
        multi = {name: column.multi.model_dump() for name, column in self._columns.items() if column.multi}
        hashed = {name: column.buckets for name, column in self._columns.items() if column.buckets}
        metadata = {_CROSSES: json.dumps(crosses)} | ({_MULTI: json.dumps(multi)} if multi else {})
        metadata |= {_HASH: json.dumps(hashed)} if hashed else {}
        statistics = {name: column.statistic_of for name, column in self._columns.items() if column.statistic_of}
        metadata |= {_STATISTICS: json.dumps(statistics)} if statistics else {}
        table = self.table()
        if any(column.recent is not None for column in self._columns.values()):
            recent = [pl.Series(_RECENT, self.recent(name)) for name in self._columns]
            table = table.with_columns(pl.concat(recent))
        table.write_parquet(path, metadata=metadata)

    @classmethod
    def read(cls, path: str | Path, names: Iterable[str] | None = None) -> Vocabulary:
        """What `write` wrote, or what it says of some fields; DataError if the file is none."""
        try:
            whole = pl.scan_parquet(path, glob=False)
            table = (whole if names is None else whole.filter(pl.col("field").is_in(list(names)))).collect()
            metadata = pl.read_parquet_metadata(path)
            keys = (_CROSSES, _MULTI, _HASH, _STATISTICS)
            crosses, multi, hashed, statistics = (json.loads(metadata.get(key, "{}")) for key in keys)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"cannot read the vocabulary {path}: {str(error).strip().splitlines()[0]}") from error
        recent = table.get_column(_RECENT, default=None)
        table = table.drop(_RECENT, strict=False)
        if table.schema != pl.Schema(COLUMNS) or not table.height:
            raise DataError(
                f"{path} is not a vocabulary: its columns must be {', '.join(COLUMNS)}, and it must have rows"
            )
        parts = table.partition_by("field", maintain_order=True)
        columns = {part["field"][0]: column_of(part, crosses, multi, statistics, path) for part in parts}
        columns = {name: replace(column, buckets=hashed.get(name)) for name, column in columns.items()}
        if recent is None:
            return cls(columns)
        if recent.dtype != pl.Float64 or not (recent.is_finite() & (recent >= 0)).fill_null(False).all():
            raise DataError(f"{path} is not a vocabulary: {_RECENT} must be numbers of at least 0")
        stops = np.cumsum([len(column.counts) for column in columns.values()]).tolist()
        own = dict(zip(columns, np.split(recent.to_numpy(), stops[:-1]), strict=True))
        return cls({name: replace(column, recent=own[name]) for name, column in columns.items()})
