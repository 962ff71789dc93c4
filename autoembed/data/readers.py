"""From a `data:` section to three lazy splits and the schema of their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from autoembed.data.files import Located, Where, format_of, locate, told
from autoembed.data.frames import Frame, to_lazy
from autoembed.data.labels import auxiliary_of, label_of, with_classes
from autoembed.data.multi import MultiSpec, as_lists, is_list, multi_of, no_lists, separated
from autoembed.data.planted import LOGIT, Truth, planted
from autoembed.data.scan import CRITEO_NUMERIC, Tell, can_hold, scan, unreadable
from autoembed.data.schema import FeatureSchema, Field, Kind
from autoembed.data.sides import weight_of
from autoembed.data.spec import SPLITS, DataSpec, Split, SplitSpec
from autoembed.data.splits import SplitTable, split
from autoembed.data.times import typed_time
from autoembed.data.values import MISSING, WHOLE, all_whole, check_dtype, col, is_measured, key
from autoembed.errors import DataError, option
from autoembed.multiclass import LabelClasses

_SHOWN = 8
_SEEN = 1000  # rows that tell most columns of text from numbers

__all__ = ["DataSpec", "SplitSpec", "Table", "clean", "labelled", "read", "read_rows"]


@dataclass(frozen=True, kw_only=True)
class Table:
    """The parts of a table, its schema (cardinalities 0), and the truth of planted data.

    The columns of every part are the fields, the time and the group if there are such, the label, 0, 1 or missing
    (Int8; of ratings a number, Float32; of multiclass the class's place, UInt8), auxiliary labels likewise (Int8), and
    the weight (Float32) if there is one. `notes` say in sentences what was taken and what was guessed.
    """

    parts: list[SplitTable]
    schema: FeatureSchema
    truth: Truth | None
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[Split, pl.LazyFrame]:
        """The rows of each split, lazily."""
        return {name: pl.concat([part.split(name) for part in self.parts]) for name in SPLITS}


def read(spec: DataSpec, data: Where | None, staging: Path) -> Table:
    """Find, scan, label and split the data.

    Args:
        spec: the `data:` section.
        data: a file or directory that overrides `spec.path`, or None.
        staging: an empty folder for converted copies of text files; it must outlive the returned table.

    Raises:
        DataError: whatever is wrong with the files, columns, label or split, in one line.
    """
    truth: Truth | None = None
    notes: list[str] = []
    if spec.planted is not None:
        if data is not None:
            raise DataError(f"the data is planted (data.planted), so {option('data')} must not be given")
        frame, truth = planted(spec.planted, ratings=spec.task == "ratings")
        spec = spec.model_copy(update={"label": "label"})
        frames = _same_columns({"train": frame.lazy()}, spec)
    else:
        files = locate(spec, data)
        notes.append(f"read {told(files)}")
        spec = _with_defaults(spec, files["train"][0])
        frames = _same_columns({name: _scan(paths, spec, staging, notes.append) for name, paths in files.items()}, spec)
    schema = _schema(frames["train"], spec, notes.append)
    spec = with_classes(frames, spec)
    if spec.classes is not None:
        schema = schema.model_copy(update={"classes": LabelClasses(names=spec.classes)})
    frames = typed_time(frames, spec)
    labels = [label_of(frames, spec).alias(spec.label), *auxiliary_of(frames, spec)]
    frames = {name: frame.with_columns(labels) for name, frame in frames.items()}
    weight = weight_of(frames, spec)
    if weight is not None:
        frames = {name: frame.with_columns(weight.alias(str(spec.weight))) for name, frame in frames.items()}
    table = Table(parts=split(frames, spec), schema=schema, truth=truth, notes=tuple(notes))
    if truth is not None and spec.task == "clicks":
        truth["best_auc"] = {name: _auc(frame) for name, frame in table.splits.items()}
    elif truth is not None:
        truth["best_rmse"] = {name: _rmse(frame) for name, frame in table.splits.items()}
    beside = [name for name in (schema.time, schema.weight, schema.group) if name]
    columns = dict.fromkeys([*schema.names, *beside, schema.label, *schema.auxiliary_labels])
    return replace(table, parts=[part.select(*columns) for part in table.parts])


def read_rows(spec: DataSpec, path: Where, staging: Path, tell: Tell = lambda line: None) -> pl.LazyFrame:
    """The columns of one file as `read` sees them, label or no label: for prediction on new rows.

    `staging` is as in `read`. DataError if `path` is a directory of several tables.
    """
    files = locate(spec.model_copy(update={"files": None, "planted": None}), path)
    tell(f"read {told(files)}")
    if len(files) > 1:
        raise DataError(f"{path} holds the tables {', '.join(files)}: name the file of one of them")
    return _scan(files["train"], _with_defaults(spec, files["train"][0]), staging, tell)


class Opened(NamedTuple):
    """All rows of a table, its files, and whether the rows lie in memory."""

    frame: pl.LazyFrame
    files: list[Path]
    held: bool


def open_rows(spec: DataSpec, path: Where, staging: Path, tell: Tell = lambda line: None) -> Opened:
    """All rows of a table; of a directory with train, valid and test those of train. Small text is held in memory."""
    files = locate(spec, path)
    if len(files) > 1:
        tell(f"of {', '.join(files)} only train is ranked")
        files = Located(train=files["train"])
    tell(f"read {told(files)}")
    held = can_hold(files["train"], spec)
    frame = _scan(files["train"], _with_defaults(spec, files["train"][0]), staging, tell, hold=held)
    return Opened(_without_dropped(frame, spec), files["train"], held)


def open_frame(spec: DataSpec, frame: Frame) -> Opened:
    """All rows of a frame of Polars or pandas, as `open_rows` has those of a file."""
    return Opened(_without_dropped(clean(to_lazy(frame), spec), spec).collect().lazy(), [], held=True)


def _without_dropped(frame: pl.LazyFrame, spec: DataSpec) -> pl.LazyFrame:
    names = frame.collect_schema().names()
    hidden = {"drop": spec.drop, "auxiliary_labels": spec.auxiliary_labels}
    for where, listed in hidden.items():
        unknown = [name for name in listed if name not in names]
        if unknown:
            raise _unknown(unknown, where, names)
    return frame.select(col(name) for name in names if name not in {*spec.drop, *spec.auxiliary_labels})


def with_numbers(frame: pl.LazyFrame, names: Sequence[str]) -> pl.LazyFrame:
    """A table of text alone with its numbers as numbers, as their types were lost; any other table as it is.

    Numbers are the text columns of `names` of which every value is a number, and all are whole ones in their usual
    writing or not all are whole: 07 is no number.
    """
    types = frame.collect_schema()
    if any(types[name] != pl.String for name in names):
        return frame
    whole = _plain_whole(frame, names)
    real = _fractions(frame, [name for name in names if name not in whole])
    return frame.with_columns(
        *(col(name).cast(pl.Int64) for name in names if name in whole),
        *(col(name).cast(pl.Float64, strict=False) for name in names if name in real),
    )


def labelled(frame: pl.LazyFrame, spec: DataSpec) -> pl.LazyFrame:
    """The frame with its label column as `label_of` has it; DataError if the column is none of the spec's labels."""
    spec = spec.model_copy(update={"missing_label": "drop"})
    return frame.with_columns(label_of({"train": frame}, spec).alias(spec.label))


def _with_defaults(spec: DataSpec, first: Path) -> DataSpec:
    """What a format fixes: Avazu's label and time, Criteo's numeric columns."""
    form = format_of(first, spec)
    update: dict[str, object] = {}
    if form == "avazu":
        update = {"time": spec.time or "hour"}
        if "label" not in spec.model_fields_set:
            update["label"] = "click"
    if form == "criteo":
        update = {"numeric": sorted({*CRITEO_NUMERIC, *spec.numeric} - {*spec.categorical, *spec.drop})}
    return spec.model_copy(update=update)


def _scan(paths: list[Path], spec: DataSpec, staging: Path, tell: Tell, *, hold: bool = False) -> pl.LazyFrame:
    frame = scan(paths, spec, staging, tell, hold=hold)
    try:
        columns = frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(paths[0], error) from error
    if not columns.names():
        raise DataError(f"{paths[0]} has no columns")
    return clean(frame, spec)


def clean(frame: pl.LazyFrame, spec: DataSpec) -> pl.LazyFrame:
    """Text stripped and null values missing as the spec says, bytes as text; a second time changes nothing."""
    return frame.with_columns(_cleaned(name, dtype, spec) for name, dtype in frame.collect_schema().items())


def _cleaned(name: str, dtype: pl.DataType, spec: DataSpec) -> pl.Expr:
    """Text columns stripped; Categorical, Enum and Binary columns as text; the null values missing in any type.

    Multi-valued columns become lists of text.
    """
    nulls, column = list(spec.null_values), col(name)
    if isinstance(dtype, (pl.Categorical, pl.Enum)) and name in spec.multi:
        raise no_lists(name, dtype)
    if is_list(dtype) or name in spec.multi:
        own = spec.multi.get(name)
        return as_lists(name, dtype, None if own is None else own.separator, nulls)
    if isinstance(dtype, (pl.Categorical, pl.Enum, pl.Binary)):
        column = column.cast(pl.String)
    elif dtype != pl.String:
        if not nulls or dtype.is_nested():
            return column
        return pl.when(key(column, dtype).is_in(nulls)).then(None).otherwise(column).name.keep()
    if spec.strip:
        column = column.str.strip_chars()
        nulls.append("")
    return pl.when(column.is_in(nulls)).then(None).otherwise(column).name.keep() if nulls else column


def _same_columns(frames: dict[Split, pl.LazyFrame], spec: DataSpec) -> dict[Split, pl.LazyFrame]:
    """Every table with the columns of train in its order; columns whose types differ between tables become text."""
    schemas = {name: frame.collect_schema() for name, frame in frames.items()}
    names = [name for name in schemas["train"].names() if name not in spec.drop or name == spec.group]
    for given, schema in schemas.items():
        absent = [name for name in names if name not in schema]
        if absent:
            raise DataError(f"{given} lacks columns that train has: {', '.join(absent)}")
    mixed = {name for name in names if len({str(schema[name]) for schema in schemas.values()}) > 1}
    unknown = [name for name in spec.drop if name not in schemas["train"]]
    if unknown:
        raise _unknown(unknown, "drop", schemas["train"].names())
    return {
        given: frame.select(
            key(_truth(col(name), name, schemas, given), schemas[given][name]) if name in mixed else col(name)
            for name in names
        )
        for given, frame in frames.items()
    }


def _truth(column: pl.Expr, name: str, schemas: Mapping[Split, pl.Schema], given: Split) -> pl.Expr:
    """A truth value as 0 or 1 where another table holds numbers: pandas makes floats of those with gaps."""
    numbers = any(schema[name].is_numeric() for schema in schemas.values())
    return column.cast(pl.Int8) if numbers and schemas[given][name] == pl.Boolean else column


def _unknown(names: Sequence[str], where: str, known: Sequence[str]) -> DataError:
    return DataError(
        f"data.{where} names no column of the table: {', '.join(names)} (the columns are {', '.join(known)})"
    )


def _schema(train: pl.LazyFrame, spec: DataSpec, tell: Tell) -> FeatureSchema:
    """Fields and their kinds by the types of train, and where these leave it open by all values of train.

    Text of which all values are numbers, and not all whole ones, is numeric; so are floats and decimals, unless all
    are whole: then they are ids that a gap has turned into floats.
    """
    types = train.collect_schema()
    wanted: dict[str, Sequence[str]] = {
        "categorical": spec.categorical,
        "numeric": spec.numeric,
        "multi": list(spec.multi),
        "shared": [*spec.readers, *spec.readers.values()],
        "hash": list(spec.hash),
        "max_values": list(spec.max_values) if isinstance(spec.max_values, dict) else [],
        "numeric_embedding": [] if isinstance(spec.numeric_embedding, str) else list(spec.numeric_embedding),
        "bins": [] if isinstance(spec.bins, int) else list(spec.bins),
        "time": [spec.time] if spec.time else [],
        "weight": [spec.weight] if spec.weight else [],
        "group": [spec.group] if spec.group else [],
        "auxiliary_labels": spec.auxiliary_labels,
    }
    for where, names in wanted.items():
        unknown = [name for name in names if name not in types]
        if unknown:
            raise _unknown(unknown, where, types.names())
    if spec.label not in types:
        raise no_label(spec.label, types.names(), "set data.label to one of")
    hidden = {spec.label, LOGIT} if spec.planted else {spec.label}
    hidden |= {spec.time or spec.label, spec.split.column or spec.label} - {*spec.categorical, *spec.numeric}
    hidden |= {spec.weight or spec.label, *spec.drop, *spec.auxiliary_labels}
    names = [name for name in types.names() if name not in hidden]
    if not names:
        raise DataError("no fields are left: every column is a label, the time, the weight or under drop")
    lists = [name for name in names if is_list(types[name])]
    for name in names:
        if name not in lists:
            check_dtype(name, types[name])
        elif name in {*spec.categorical, *spec.numeric}:
            raise DataError(f"column {name!r} holds lists, which are multi-valued: list it under multi, or under drop")
    open_ = [name for name in names if types[name] == pl.String and name not in {*spec.categorical, *spec.numeric}]
    guessed = () if spec.format in ("criteo", "avazu", "libfm") else open_
    texts = _fractions(train, guessed)
    _tell_separated(train, [name for name in guessed if name not in texts], tell)
    multi = multi_of(train, {name: spec.multi.get(name, MultiSpec()) for name in lists})
    if multi:
        tell(f"multi-valued: {_some([told for _, told in multi.values()])}")
    floats = [name for name in names if is_measured(types[name]) and name not in {*spec.categorical, *spec.numeric}]
    whole = _whole(train, {name: types[name] for name in floats})
    if texts or set(floats) - whole:
        measured = [name for name in names if name in texts or (name in floats and name not in whole)]
        tell(f"numeric, as not all of their values are whole: {_some(measured)}")
    if whole:
        tell(f"categorical, though floats, as all of their values are whole: {_some([n for n in names if n in whole])}")

    def kind(name: str) -> Kind:
        if name in multi:
            return "multi"
        if name in spec.numeric:
            return "numeric"
        if name in spec.categorical:
            return "categorical"
        measured = (is_measured(types[name]) and name not in whole) or types[name] == pl.Duration
        return "numeric" if measured or name in texts else "categorical"

    read = {name: how for name, (how, _) in multi.items()}
    shares = spec.readers
    kinds = {name: kind(name) for name in names}
    for where in ("numeric_embedding", "bins"):
        for name in wanted[where]:
            if kinds.get(name) != "numeric":
                why = f"is {kinds[name]}" if name in kinds else "is no field"
                raise DataError(f"data.{where} is of numeric columns, but {name} {why}: list it under numeric")
    fields = tuple(
        Field(
            name=name,
            kind=kinds[name],
            multi=read.get(name),
            shares=shares.get(name),
            buckets=spec.hash.get(name),
            interpolation=spec.interpolation(name) if kinds[name] == "numeric" else None,
        )
        for name in names
    )
    for field in fields:
        if field.buckets is not None and (field.kind == "numeric" or field.shares is not None):
            why = f"it has the ids of {field.shares}: hash that" if field.shares else "it is numeric"
            raise DataError(f"data.hash cannot hash {field.name}, as {why}")
    for name in wanted["max_values"]:
        own = next((field for field in fields if field.name == name), None)
        if own is None or own.kind == "numeric" or own.shares is not None:
            why = "is no field" if own is None else f"has the ids of {own.shares}" if own.shares else "is numeric"
            able = [one.name for one in fields if one.kind != "numeric" and one.shares is None]
            raise DataError(
                f"data.max_values is of columns with a table of values, but {name} {why}: name one of {_some(able)}"
            )
    _check_shared({field.name: field for field in fields})
    return spec.schema_of(fields)


def _check_shared(fields: Mapping[str, Field]) -> None:
    """DataError unless every column that shares has values, and another column with a table of its own to read."""
    for field in fields.values():
        if field.shares is None:
            continue
        owner = fields.get(field.shares)
        line = f"data.shared: {field.name} cannot read the table of {field.shares}"
        if owner is None or owner is field:
            raise DataError(f"{line}, which is not another feature")
        if owner.shares is not None:
            raise DataError(f"{line}, which itself reads that of {owner.shares}: name {owner.shares}")
        for one in (field, owner):
            if one.kind == "numeric":
                raise DataError(f"{line}, as {one.name} is numeric: list it under categorical")


def _tell_separated(frame: pl.LazyFrame, names: Sequence[str], tell: Tell) -> None:
    """Says of each text column that looks as if it held several values how to read it so."""
    if names:
        for line in separated(frame.select(col(name) for name in names).head(_SEEN).collect(), names):
            tell(line)


def _fractions(frame: pl.LazyFrame, names: Sequence[str]) -> set[str]:
    """The text columns whose every value is a number, and not every value a plain whole number."""
    if not names:
        return set()
    head = frame.select(col(name) for name in names).head(_SEEN).collect()
    left = [name for name in names if head[name].cast(pl.Float64, strict=False).null_count() <= _absent(head[name])]
    if not left:
        return set()
    facts = frame.select(
        pl.struct(
            (col(name).cast(pl.Float64, strict=False).is_not_null() & ~col(name).is_in(MISSING)).sum().alias("numbers"),
            (~col(name).is_in(MISSING)).sum().alias("present"),
        ).alias(name)
        for name in left
    ).collect(engine="streaming")
    found = {name for name in left if facts[name][0]["numbers"] == facts[name][0]["present"] > 0}
    seen = {name for name in found if (~head[name].str.contains(WHOLE) & ~head[name].is_in(MISSING)).any()}
    if found == seen:
        return found
    rest = [name for name in left if name in found - seen]
    odd = frame.select((~col(name).str.contains(WHOLE) & ~col(name).is_in(MISSING)).any() for name in rest)
    parts = odd.collect(engine="streaming")
    return seen | {name for name in rest if parts[name][0]}


def _absent(column: pl.Series) -> int:
    return column.null_count() + int(column.is_in(MISSING).sum())


def _plain_whole(frame: pl.LazyFrame, names: Sequence[str]) -> set[str]:
    """The text columns whose every value is a whole number as it is usually written: no two texts are the same."""
    head = frame.head(_SEEN).select(_is_plain_whole(col(name)).alias(name) for name in names).collect()
    left = [name for name in names if head[name][0]]
    if not left:
        return set()
    facts = ((_is_plain_whole(col(name)) & col(name).is_not_null().any()).alias(name) for name in left)
    found = frame.select(facts).collect(engine="streaming")
    return {name for name in left if found[name][0]}


def _is_plain_whole(text: pl.Expr) -> pl.Expr:
    odd = text.str.starts_with("+") | text.str.starts_with("-0")
    odd |= text.str.starts_with("0") & (text.str.len_bytes() > 1)
    return (text.cast(pl.Int64, strict=False).null_count() == text.null_count()) & ~odd.any()


def _whole(frame: pl.LazyFrame, types: Mapping[str, pl.DataType]) -> set[str]:
    """The columns of numbers that are whole throughout."""
    if not types:
        return set()
    facts = frame.select(all_whole(col(name), dtype).alias(name) for name, dtype in types.items())
    found = facts.collect(engine="streaming")
    return {name for name in types if found[name][0]}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def no_label(label: str, names: Sequence[str], what: str) -> DataError:
    """The error of a table without its label column, with a hint if the separator may be another."""
    line = f"there is no label column {label!r}: {what} {', '.join(names)}"
    inside = next((sign for sign in (";", "\t", "|", ",") if len(names) == 1 and sign in names[0]), None)
    if inside is not None:
        line += f" (it is one column: is the separator {inside!r}? Set data.separator, or --set separator={inside!r})"
    return DataError(line)


def _auc(frame: pl.LazyFrame) -> float:
    """The AUC of the noise-free logit, which no model can beat except by luck."""
    from scipy.stats import rankdata

    rows = frame.select("label", LOGIT).collect()
    label = rows["label"].to_numpy() == 1
    ranks = rankdata(rows[LOGIT].to_numpy())
    positives, negatives = int(label.sum()), int((~label).sum())
    if not positives or not negatives:
        return float("nan")
    return float((np.sum(ranks[label]) - positives * (positives + 1) / 2) / (positives * negatives))


def _rmse(frame: pl.LazyFrame) -> float:
    """The RMSE of the noise-free label, which no model can beat except by luck."""
    error = pl.col("label").cast(pl.Float64) - pl.col(LOGIT)
    return float(frame.select(error.pow(2).mean().sqrt()).collect().item())
