"""What counts as a click: columns of labels as 1, 0 or missing. Of ratings, the column as numbers; of classes, their
places."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from autoembed.data.spec import DataSpec, Split
from autoembed.data.values import MISSING, check_dtype, col, key
from autoembed.errors import DataError
from autoembed.multiclass import LEAST, MOST

ONES = {"1", "true", "yes"}
ZEROS = {"0", "false", "no"}
_SHOWN = 5


def label_of(frames: Mapping[Split, pl.LazyFrame], spec: DataSpec) -> pl.Expr:
    """The expression that is 1, 0 or null per row, Int8, after a look at every value that the label has.

    Of ratings it is the number or null, Float32; of multiclass the place of the class in `spec.classes`, UInt8.

    Raises:
        DataError: labels are missing and may not be, they are not 0 and 1 and the spec does not say which values count
            as 1, or no finite numbers, or none of the classes, or fewer than two rows have one.
    """
    name = spec.label
    dtype = frames["train"].collect_schema()[name]
    check_dtype(name, dtype)
    if spec.task == "ratings":
        return _number_of(frames, spec, dtype)
    counted = _counted(frames, name, dtype)
    present = counted.drop_nulls("text")
    rows = int(present["rows"].sum())
    missing = int(counted["rows"].sum()) - rows
    _check_present(missing, rows, spec)
    column = _present(counted, name, dtype)
    if spec.task == "multiclass":
        return _place_of(column, present, spec)
    if spec.above is not None:
        if present["text"].cast(pl.Float64, strict=False).null_count():
            raise DataError(f"data.above needs a numeric label, but {name!r} has the values {_shown(present)}")
        return (column.cast(pl.Float64) > spec.above).cast(pl.Int8)
    return _is_one(column, present, _ones(present, spec))


def with_classes(frames: Mapping[Split, pl.LazyFrame], spec: DataSpec) -> DataSpec:
    """The spec with the classes that a label has, sorted, whole numbers by their size; as it is if it names them.

    DataError if there are too few or too many, or if they are numbers with fractions.
    """
    name = spec.label
    if spec.task != "multiclass" or spec.classes is not None:
        return spec
    dtype = frames["train"].collect_schema()[name]
    check_dtype(name, dtype)
    texts = _counted(frames, name, dtype)["text"].drop_nulls().unique()
    whole = bool(len(texts)) and not texts.cast(pl.Int64, strict=False).null_count()
    if len(texts) > MOST or (dtype.is_numeric() and not whole and len(texts)):
        such = f"has {len(texts)} values" if len(texts) > MOST else f"has the value {texts.sort()[0]!r}"
        raise DataError(
            f"labels of data.task: multiclass must be {LEAST} to {MOST} classes, text or whole numbers, but label "
            f"{name!r} {such}: set task: ratings if it is a number, or pool its rare classes"
        )
    if len(texts) < LEAST:
        shown = ", ".join(map(repr, texts.sort()))
        raise DataError(
            f"labels of data.task: multiclass must be {LEAST} classes or more, but label {name!r} has "
            f"{shown or 'none'}: set task: clicks, and data.positive to the value that counts as 1"
        )
    ordered = sorted(texts, key=lambda text: (int(text), text)) if whole else sorted(texts)
    return spec.model_copy(update={"classes": tuple(ordered)})


def _place_of(column: pl.Expr, present: pl.DataFrame, spec: DataSpec) -> pl.Expr:
    """The place of each value's class, null where it is null; DataError if it is none of `spec.classes`."""
    assert spec.classes is not None
    places = {one: place for place, one in enumerate(spec.classes)}
    known = present.select("value", "text").unique()
    if other := sorted(set(known["text"]) - set(places)):
        raise DataError(
            f"label {spec.label!r} has the class {other[0]!r}, which is none of {', '.join(spec.classes)}: list it "
            "under data.classes, or name it under data.null_values with missing_label: drop"
        )
    of_value = known["text"].replace_strict(places, return_dtype=pl.UInt8)
    return column.replace_strict(known["value"], of_value, default=None, return_dtype=pl.UInt8)


def auxiliary_of(frames: Mapping[Split, pl.LazyFrame], spec: DataSpec) -> list[pl.Expr]:
    """The expression of each auxiliary label, under its name, that is 1, 0 or null per row, Int8.

    DataError unless its values are 0 and 1 in one of their writings.
    """
    found = []
    for name in spec.auxiliary_labels:
        dtype = frames["train"].collect_schema()[name]
        check_dtype(name, dtype)
        counted = _counted(frames, name, dtype)
        present = counted.drop_nulls("text")
        texts = set(present["text"])
        if not {text.lower() for text in texts} <= ONES | ZEROS:
            raise DataError(
                f"auxiliary label {name!r} must be 0, 1 or missing, but has the values {_shown(present)}: make it such "
                "a column in the table"
            )
        ones = {text for text in texts if text.lower() in ONES}
        found.append(_is_one(_present(counted, name, dtype), present, ones).alias(name))
    return found


def _present(counted: pl.DataFrame, name: str, dtype: pl.DataType) -> pl.Expr:
    """A column with null for each value that means a missing one."""
    # Rows are compared as they are stored, as this runs in every later pass: the text of each would be slow.
    column = pl.when(col(name).is_not_nan()).then(col(name)) if dtype.is_float() else col(name)
    if dtype == pl.String:
        gone = counted.filter(pl.col("text").is_null())["value"].drop_nulls()
        column = pl.when(~column.is_in(gone.to_list())).then(column)
    return column


def _is_one(column: pl.Expr, present: pl.DataFrame, ones: set[str]) -> pl.Expr:
    """Whether each value of a column is one of the texts `ones`, null where it is null: Int8."""
    values = present.filter(pl.col("text").is_in(list(ones)))["value"].unique()
    return column.is_in(values.to_list()).cast(pl.Int8)


def _number_of(frames: Mapping[Split, pl.LazyFrame], spec: DataSpec, dtype: pl.DataType) -> pl.Expr:
    """`label_of` of ratings."""
    name = spec.label
    if not (dtype.is_numeric() or dtype in (pl.String, pl.Boolean)):
        raise DataError(f"labels of data.task: ratings must be numbers, but column {name!r} is {dtype}")
    gone = col(name).is_null()
    if dtype == pl.String:
        gone |= col(name).is_in(MISSING)
    elif dtype.is_float():
        gone |= col(name).is_nan()
    number = col(name).cast(pl.Float64, strict=False).cast(pl.Float32, strict=False)
    facts = pl.concat(
        frame.select(
            pl.len().alias("rows"),
            gone.sum().alias("missing"),
            col(name).filter(~gone & ~number.is_finite().fill_null(False)).cast(pl.String).first().alias("wrong"),
        )
        for frame in frames.values()
    ).collect(engine="streaming")
    wrong = facts["wrong"].drop_nulls()
    if len(wrong):
        raise DataError(
            f"labels of data.task: ratings must be finite numbers, but label {name!r} has {wrong[0]!r}: mend it, or "
            "name it under data.null_values"
        )
    missing, rows = int(facts["missing"].sum()), int(facts["rows"].sum())
    _check_present(missing, rows - missing, spec)
    return pl.when(~gone).then(number)


def _check_present(missing: int, rows: int, spec: DataSpec) -> None:
    """DataError if labels are missing and may not be, or fewer than two rows have one."""
    if missing and spec.missing_label == "error":
        raise DataError(
            f"label {spec.label!r} is missing in {missing} rows: set data.missing_label: drop to leave them out"
        )
    if rows < 2:
        raise DataError(f"the table must have at least 2 rows with a label, but has {rows}")


def _counted(frames: Mapping[Split, pl.LazyFrame], name: str, dtype: pl.DataType) -> pl.DataFrame:
    """Each value of a column, its text, null where it means a missing one, and its rows in each of the frames."""
    parts = []
    for frame in frames.values():
        values = frame.select(col(name).alias("value"))
        parts.append(values.group_by("value").agg(pl.len().alias("rows")).collect(engine="streaming"))
    return pl.concat(parts).with_columns(key(pl.col("value"), dtype).alias("text"))


def _ones(present: pl.DataFrame, spec: DataSpec) -> set[str]:
    """The texts of the values that count as 1."""
    values = set(present["text"])
    if spec.positive is None:
        if not {value.lower() for value in values} <= ONES | ZEROS:
            raise DataError(
                f"label {spec.label!r} must be 0 or 1, but has the values {_shown(present)}: "
                "list the values that count as 1 under data.positive, or give a threshold as data.above"
            )
        return {value for value in values if value.lower() in ONES}
    listed = pl.DataFrame({"value": [str(value) for value in spec.positive]})
    wanted = set(listed.select(key(pl.col("value"), pl.String())).to_series())
    if not wanted & values:
        raise DataError(
            f"data.positive must name values of label {spec.label!r}, but got {list(spec.positive)} "
            f"(it has {_shown(present)})"
        )
    return wanted


def _shown(present: pl.DataFrame) -> str:
    values = present["text"].unique().sort()
    return ", ".join(repr(value) for value in values.head(_SHOWN)) + (", ..." if len(values) > _SHOWN else "")
