"""A table as codes and counts, ready to be ranked: from a raw file in one pass, or from an encoded dataset.

Rows come in chunks. Counts are added up as they come; codes are kept only if pairs are wanted, in memory up to 0.5 GB
and behind that in a temporary file.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import IO, TYPE_CHECKING

import numpy as np
import polars as pl

from autoembed.data.knots import plain
from autoembed.data.labels import ONES, ZEROS
from autoembed.data.multi import separated
from autoembed.data.readers import no_label
from autoembed.data.scan import unreadable
from autoembed.data.values import check_dtype, col, key
from autoembed.errors import DataError
from autoembed.ranking.coders import Coder, coders
from autoembed.ranking.counts import Codes, LabelCounts, Labels, check_classes, count_columns
from autoembed.ranking.multi import MultiColumn, ValueCounter, count, find
from autoembed.ranking.weighted import WeightCounter, WeightedCounts
from autoembed.types import Array, Progress
from autoembed.writing import scratch

if TYPE_CHECKING:
    from autoembed.data.dataset import Dataset
    from autoembed.data.files import Where
    from autoembed.data.frames import Frame
    from autoembed.data.readers import Opened
    from autoembed.data.schema import Field
    from autoembed.data.spec import DataSpec
    from autoembed.data.vocabulary import Vocabulary


_CHUNK_CELLS = 20_000_000
_LEAST_CHUNK = 1 << 16
_KEPT_IN_MEMORY = 1 << 29
_MOST_CLASSES = 255
_SEEN = 1000  # rows that show whether a text column holds several values


class Spill:
    """Arrays in the order in which they were added, the later ones in a temporary file once memory is full."""

    def __init__(self) -> None:
        # Each array, or where it stands in the file: its place, type and size.
        self._parts: list[Array | tuple[int, np.dtype[np.generic], int]] = []
        self._bytes = 0
        self._file: IO[bytes] | None = None
        self._lock = Lock()

    def add(self, codes: Array) -> None:
        """Keep an array of small whole numbers, in as few bytes as they need."""
        most = int(codes.max(initial=0))
        small = codes.astype(np.uint8 if most < 1 << 8 else np.uint16 if most < 1 << 16 else np.int32)
        self._bytes += small.nbytes
        if self._bytes <= _KEPT_IN_MEMORY:
            self._parts.append(small)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="autoembed-")  # noqa: SIM115  (closed with the store)
        self._parts.append((self._file.seek(0, 2), small.dtype, len(small)))
        small.tofile(self._file)

    def read(self, start: int, step: int, rows: int) -> Codes:
        """Every `step`-th array from `start` on, joined: int32 [rows]."""
        out, at = np.empty(rows, np.int32), 0
        for part in self._parts[start::step]:
            if isinstance(part, tuple):
                offset, dtype, size = part
                assert self._file is not None
                with self._lock:
                    self._file.flush()
                    self._file.seek(offset)
                    part = np.fromfile(self._file, dtype, size)
            out[at : at + len(part)] = part
            at += len(part)
        return out


@dataclass(frozen=True, kw_only=True)
class CodedTable:
    """Columns as codes with their counts.

    names, kinds: of each column. places: where its codes stand in the order of its values, [K], or None if they have
    none. missing: the code of missing, or -1. counts: [K, L] of each column. labels: uint8 [rows]. store: the codes, if
    they were kept (without, labels may be absent too). recode: the final code of each stored one, or None where they
    are final. multi: columns of several values a row, which have counts only. weighted: the weights of rows and values,
    if rows have some; rows of weight 0 are in no part of the table. notes: what was read, in sentences.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    places: tuple[Codes | None, ...]
    missing: tuple[int, ...]
    counts: LabelCounts
    labels: Labels
    fingerprint: str
    store: Spill | None
    recode: tuple[Codes | None, ...]
    multi: tuple[MultiColumn, ...] = ()
    weighted: WeightedCounts | None = None
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return int(self.counts.tables[0].sum())

    @property
    def cardinalities(self) -> tuple[int, ...]:
        return tuple(len(table) for table in self.counts.tables)

    def codes(self, column: int, step: int = 1) -> Codes:
        """int32 of every `step`-th row of a column, read again each time."""
        if self.store is None:
            raise ValueError("codes were not kept: build the table with keep=True")
        codes = self.store.read(column, len(self.names), self.rows)[::step]
        recode = self.recode[column]
        return codes if recode is None else recode[codes]


def from_dataset(dataset: Dataset, keep: bool, threads: int, progress: Progress | None = None) -> CodedTable:
    """The train split. Values that the vocabulary pools as rare are one value, id 0: no model can tell them apart.

    Numbers between knots are the bins that they are in.
    """
    schema = dataset.schema
    fields = tuple(field for field in schema.fields if field.multi is None)
    if not fields:
        raise DataError("one column must hold one value per row, but all hold several")
    sizes, names = [field.cardinality for field in fields], [field.name for field in fields]
    several = [field for field in schema.fields if field.multi is not None]
    between = schema.interpolated
    own = schema.first_columns(names) if several or between else slice(None)
    multi = {field.name: ValueCounter(schema.columns([field.name]), field.cardinality) for field in several}
    store = Spill() if keep else None
    ids, counts = dataset.ids("train"), LabelCounts(tables=tuple(np.zeros((size, 2), np.int64) for size in sizes))
    labels = dataset.task.classes(dataset.labels("train"))
    gather = None if schema.weight is None else WeightCounter(schema.weight, 2, dataset.weights("train"))
    step = max(1, _CHUNK_CELLS // max(1, len(sizes)))
    for start in range(0, len(ids), step):
        rows, classes, weights = ids[start : start + step], labels[start : start + step], None
        if gather:
            rows, classes, weights = gather.used(rows, classes, slice(start, start + step))
        for part in multi.values():
            part.add(rows, classes, weights)
        chunk = np.ascontiguousarray(rows[:, own].T)
        for place, name in enumerate(names):
            if name in between:
                chunk[place] = plain(chunk[place])
        counts += count_columns(list(chunk), classes, sizes, threads=threads, rows=len(ids))
        if gather:
            gather.add(list(chunk), classes, sizes, weights, threads)
        if store:
            for codes in chunk:
                store.add(codes)
        if progress:
            progress("rank", min(start + step, len(ids)), len(ids))
    missing = [dataset.vocabulary.missing(name) or -1 for name in names]
    weighted = gather.finish() if gather else None
    return CodedTable(
        names=tuple(names),
        kinds=tuple(field.kind for field in fields),
        places=tuple(_places(dataset.vocabulary, field) for field in fields),
        missing=tuple(missing),
        counts=counts,
        labels=gather.labels if gather else labels,
        fingerprint=dataset.fingerprint,
        store=store,
        recode=(None,) * len(sizes),
        multi=tuple(part.finish(name, dataset.vocabulary.missing(name), weighted) for name, part in multi.items()),
        weighted=weighted,
        notes=tuple(note for note in (weighted and weighted.note, dataset.task.classes_are) if note),
    )


def _places(vocabulary: Vocabulary, field: Field) -> Codes | None:
    """Of a numeric field, or one of click rates, where each id stands in the order of the upper bounds."""
    if field.kind not in ("numeric", "statistic"):
        return None
    uppers = vocabulary.keep([field.name]).table()["upper"]
    out: Codes = uppers.rank("ordinal").fill_null(0).to_numpy().astype(np.int32)
    return out


def read_table(
    source: Frame | Where,
    label: str,
    keep: bool = False,
    threads: int = 1,
    progress: Progress | None = None,
    separators: Mapping[str, str] | None = None,
    settings: Mapping[str, object] | None = None,
) -> CodedTable:
    """All rows of a file, a pattern or a directory of fragments; of a directory with train, valid and test, train.

    Args:
        source: CSV, Parquet, or whatever `data.path` may be; or a frame of Polars or pandas.
        label: its column: 0 and 1, or up to 255 classes.
        keep: whether to keep the codes, for pairs and for scores that need rows.
        threads: columns counted at a time.
        progress: called with (step, done, total).
        separators: of text columns that hold several values a row, what stands between these; lists need none.
        settings: keys of a search space's `data:` section, such as format, separator, drop, null_values.

    Raises:
        DataError: the file, its columns or its label are not as they must be, in one line.
    """
    from autoembed.data.readers import open_frame, open_rows
    from autoembed.data.spec import DataSpec

    spec = DataSpec.checked({"label": label, **(settings or {})})
    if spec.task == "ratings":
        raise DataError(
            "a table is ranked by classes of its label, and task: ratings has numbers: rank a search-space file, whose "
            "data are encoded, or set above to a threshold without task"
        )
    notes: list[str] = []
    try:
        with scratch() as staging:
            if isinstance(source, (str, Path, Sequence)):
                opened = open_rows(spec, source, staging, notes.append)
            else:
                opened = open_frame(spec, source)
            opened = _with_weights(opened, spec)
            about = spec.label if spec.weight is None else f"{spec.label}, weighted by {spec.weight}"
            mark = fingerprint_of(opened.files, about) if opened.files else _mark_of(opened.frame, about)
            notes += _looks_like_lists(opened.frame, {spec.label, *(separators or {})})
            table = _coded(opened, spec.label, spec.weight, keep, threads, progress, separators or {}, mark)
            return replace(table, notes=(*notes, *table.notes))
    except (pl.exceptions.PolarsError, OSError) as error:
        where = str(source) if isinstance(source, (str, Path, Sequence)) else "the frame"
        raise unreadable(where, error) from error


def _with_weights(opened: Opened, spec: DataSpec) -> Opened:
    """The rows that have weight, and it as a number; all rows without data.weight. DataError as `weight_of`."""
    from autoembed.data.sides import weight_of

    if spec.weight is None:
        return opened
    names = opened.frame.collect_schema().names()
    for name, what in ((spec.label, "label"), (spec.weight, "weight")):
        if name not in names:
            raise (
                no_label(name, names, "name one of")
                if what == "label"
                else DataError(f"data.weight names no column of the table: {name} (the columns are {', '.join(names)})")
            )
    weight = weight_of({"train": opened.frame}, spec)
    assert weight is not None
    frame = opened.frame.with_columns(weight.alias(spec.weight))
    least, most = frame.select(col(spec.weight).min().alias("a"), col(spec.weight).max().alias("b")).collect().row(0)
    if not most:
        raise DataError(f"all weights of {spec.weight!r} are 0: give rows that shall count a weight above 0")
    return opened._replace(frame=frame.filter(col(spec.weight) > 0) if least == 0 else frame)


def _looks_like_lists(frame: pl.LazyFrame, others: Collection[str]) -> list[str]:
    """A note for each text column that looks as if it held several values a row, but for `others`."""
    texts = [name for name, dtype in frame.collect_schema().items() if dtype == pl.String and name not in others]
    return separated(frame.select(col(name) for name in texts).head(_SEEN).collect(), texts) if texts else []


def _coded(
    opened: Opened,
    label: str,
    weight: str | None,
    keep: bool,
    threads: int,
    progress: Progress | None,
    separators: Mapping[str, str],
    mark: str,
) -> CodedTable:
    from autoembed.data.readers import with_numbers

    frame = opened.frame
    if frame.collect_schema().get(label, pl.Int8()).is_decimal():
        frame = frame.with_columns(col(label).cast(pl.Float64))
    several = find(frame.collect_schema(), separators)
    single = frame.drop(several)
    if several and len(single.collect_schema()) < (2 if weight is None else 3):
        raise DataError(f"beside the label {label!r}, one column must hold one value per row, but all hold several")
    single = with_numbers(single, [name for name in single.collect_schema().names() if name not in (label, weight)])
    if opened.held:
        single = single.collect().lazy()
    table = _read(single, label, weight, keep, threads, progress, mark)
    if not several:
        return table
    rows, classes = _classes(frame, label)
    return replace(table, multi=count(frame, several, separators, label, classes, rows, table.weighted))


@dataclass(frozen=True, kw_only=True)
class CodingPlan:
    """How the rows of a raw table become codes and labels: the same for every chunk of them."""

    names: tuple[str, ...]
    coders: list[Coder]
    label: str
    classes: dict[bool | int | float | str, int]
    rows: int

    @classmethod
    def of(cls, frame: pl.LazyFrame, label: str, fixed: bool = False, weight: str | None = None) -> CodingPlan:
        """What passes over single columns tell, but that of weights; `fixed` as in `coders`.

        DataError as in `read_table`.
        """
        types = frame.collect_schema()
        if label not in types:
            raise no_label(label, types.names(), "name one of")
        names = tuple(name for name in types.names() if name not in (label, weight))
        if not names:
            raise DataError(f"the table has no column but the label {label!r}")
        rows, classes = _classes(frame, label)
        return cls(names=names, coders=coders(frame, names, fixed), label=label, classes=classes, rows=rows)

    def encode(self, chunk: pl.DataFrame) -> tuple[list[Codes], Labels]:
        """The codes of every column, int32 [rows] each, and the labels, uint8 [rows]."""
        values, classes = list(self.classes), list(self.classes.values())
        labels = chunk[self.label].alias("x").replace_strict(values, classes, return_dtype=pl.UInt8).to_numpy()
        columns = [chunk[name].alias("x") for name in self.names]  # Polars takes a name such as ^x$ for a pattern
        return [coder.encode(column) for column, coder in zip(columns, self.coders, strict=True)], labels

    def count(self, columns: list[Codes], labels: Labels, threads: int = 1) -> LabelCounts:
        """The counts of a chunk, to be added up."""
        classes = len(set(self.classes.values()))
        return count_columns(columns, labels, self.sizes(columns), classes, threads=threads, rows=self.rows)

    def sizes(self, columns: list[Codes]) -> list[int]:
        """How many codes each column has so far."""
        return [int(codes.max(initial=0)) + 1 for codes in columns]

    def finish(
        self,
        counts: LabelCounts,
        labels: Labels,
        store: Spill | None,
        fingerprint: str,
        weighted: WeightedCounts | None = None,
    ) -> CodedTable:
        """The table from the counts of all chunks: values that are the same become one, and every code is in use."""
        check_classes(counts.tables[0].sum(axis=0), self.label)
        tables, recode, missing, sums = [], [], [], []
        for place, (coder, table) in enumerate(zip(self.coders, counts.tables, strict=True)):
            n = table.sum(axis=1)
            merged = coder.merge(n)
            used = np.zeros(int(merged.max()) + 1, bool)
            used[merged[n > 0]] = True
            final = (np.cumsum(used) - 1).astype(np.int32)[merged]
            folded = np.zeros((int(used.sum()), table.shape[1]), np.int64)
            np.add.at(folded, final[n > 0], table[n > 0])
            tables.append(folded)
            if weighted:
                own = weighted.tables[place]
                sums.append(np.zeros(folded.shape, own.dtype))
                np.add.at(sums[-1], final[n > 0], own[n > 0])
            recode.append(None if len(final) == len(folded) and (final == np.arange(len(final))).all() else final)
            missing.append(0 if n[merged == 0].any() else -1)
        return CodedTable(
            names=self.names,
            kinds=tuple(coder.kind for coder in self.coders),
            places=tuple(
                np.arange(len(table), dtype=np.int32) if coder.ordered else None
                for coder, table in zip(self.coders, tables, strict=True)
            ),
            missing=tuple(missing),
            counts=LabelCounts(tables=tuple(tables)),
            labels=labels,
            fingerprint=fingerprint,
            store=store,
            recode=tuple(recode),
            weighted=replace(weighted, tables=tuple(sums)) if weighted else None,
            notes=(weighted.note,) if weighted else (),
        )


def _read(
    frame: pl.LazyFrame,
    label: str,
    weight: str | None,
    keep: bool,
    threads: int,
    progress: Progress | None,
    fingerprint: str,
) -> CodedTable:
    plan = CodingPlan.of(frame, label, weight=weight)
    gather = None
    if weight is not None:
        everything = frame.select(col(weight).alias("weight")).collect(engine="streaming")["weight"].to_numpy()
        gather = WeightCounter(weight, len(set(plan.classes.values())), everything)
    store = Spill() if keep else None
    counts: LabelCounts | None = None
    labels = np.empty(plan.rows, np.uint8)
    step = max(_LEAST_CHUNK, _CHUNK_CELLS // len(plan.names))
    for start in range(0, plan.rows, step):
        columns, part = plan.encode(frame.slice(start, step).collect())
        labels[start : start + step] = part
        if gather:
            own = gather.used(np.empty((len(part), 0)), part, slice(start, start + step))[2]
            gather.add(columns, part, plan.sizes(columns), own, threads)
        found = plan.count(columns, part, threads)
        counts = found if counts is None else counts + found
        if store:
            for codes in columns:
                store.add(codes)
        if progress:
            progress("read", min(start + step, plan.rows), plan.rows)
    assert counts is not None
    return plan.finish(counts, labels, store, fingerprint, gather.finish() if gather else None)


def _classes(frame: pl.LazyFrame, label: str) -> tuple[int, dict[bool | int | float | str, int]]:
    """The number of rows, and the class of every value of the label: 1 for 1 and true if all are 0/1 or false/true."""
    dtype = frame.collect_schema()[label]
    check_dtype(label, dtype)
    values = frame.select(col(label).alias("value"))
    counted = values.group_by("value").agg(pl.len().alias("rows")).collect(engine="streaming")
    counted = counted.with_columns(key(pl.col("value"), dtype).alias("text"))
    rows = int(counted["rows"].sum())
    missing = int(counted.filter(pl.col("text").is_null())["rows"].sum())
    if missing:
        raise DataError(f"label {label!r} is missing in {missing} of {rows} rows: leave them out of the table")
    texts = set(counted["text"])
    if rows < 2:
        raise DataError(f"the table must have at least 2 rows with a label, but has {rows}")
    if len(texts) < 2:
        raise DataError(f"label {label!r} must have two classes or more, but all {rows} rows are {texts.pop()!r}")
    if len(texts) > _MOST_CLASSES:
        raise DataError(
            f"label {label!r} has {len(texts)} values, but at most {_MOST_CLASSES} classes can be ranked: "
            "a search-space file can set a threshold as data.above"
        )
    if {text.lower() for text in texts} <= ONES | ZEROS:
        return rows, {value: int(text.lower() in ONES) for value, text in counted.select("value", "text").iter_rows()}
    order = {text: place for place, text in enumerate(sorted(texts))}
    return rows, {value: order[text] for value, text in counted.select("value", "text").iter_rows()}


def _mark_of(frame: pl.LazyFrame, label: str) -> str:
    """16 hex digits of a table in memory: its columns and rows, and its label."""
    rows = frame.collect()
    facts = f"{label} {rows.schema} {rows.height} {rows.hash_rows(seed=0).sum()}"
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def fingerprint_of(files: Iterable[Path], label: str) -> str:
    """16 hex digits of a table: its files' names, sizes and times, and its label."""
    facts = [label, *(f"{p.resolve()} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files)]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
