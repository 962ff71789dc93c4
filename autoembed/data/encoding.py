"""A table that was read, split and checked, to ids on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from autoembed.data.knots import FUNCTIONS
from autoembed.data.readers import Table
from autoembed.data.schema import FeatureSchema
from autoembed.data.sides import GroupCodes, Sides
from autoembed.data.spec import SPLITS, DataSpec, Split
from autoembed.data.values import col, key
from autoembed.data.vocabulary import Vocabulary
from autoembed.data.writer import Writer
from autoembed.errors import DataError
from autoembed.multiclass import LabelClasses
from autoembed.ratings import LabelScale, scale_of
from autoembed.types import Array, Progress

_CHUNK = 1 << 18
_LABELS = ("label", "weight")
_LEAST = 2  # rows of each class that an auxiliary label needs in each split
TIMES = "train.times.npy"  # the rank of each train row's time, where statistics need it


@dataclass(frozen=True, kw_only=True)
class OtherVocabulary:
    """A vocabulary that is not simply fitted to train.

    Args:
        key: what tells it from others, for the cache.
        fields: the columns that it has.
        make: gives it from that of train with ids for all values.
    """

    key: str
    fields: tuple[str, ...]
    make: Callable[[Vocabulary], Vocabulary]


def encode_table(
    table: Table,
    spec: DataSpec,
    folder: Path,
    progress: Progress,
    sources: Sequence[str],
    other: OtherVocabulary | None,
    units: LabelScale | None = None,
) -> None:
    """Fits a vocabulary to train, and writes the ids of all splits and what stands beside them to a folder.

    Args:
        table: its splits, and the slices in which they are read.
        spec: the `data:` section.
        folder: an empty one.
        progress: called with (step, done, total).
        sources: signatures of the files.
        other: the ids, if they are to be others than those fitted to train.
        units: of ratings: the scale whose mean and sd logits are in, if it is to be another than train's.

    Raises:
        DataError: labels, weights or groups of a split break a rule.
    """
    splits = table.splits
    schema = table.schema if other is None else table.schema.keep(other.fields)
    rows, notes = {}, list(table.notes)
    predicts = spec.predicts if schema.classes is None else schema.task
    for split, frame in splits.items():
        rows[split], counted = _counted_labels(split, frame, schema)
        notes += _check_auxiliary(split, frame, schema)
        note = predicts.check_split(split, counted.select("label", "count"), schema.label)
        if spec.task == "ratings" and split == "train":
            scale, told = _scale(counted, schema.label, units)
            schema, notes = schema.model_copy(update={"ratings": scale}), [*notes, *told]
        if schema.classes is not None and split == "train":
            rows_of = tuple(counted.sort("label")["count"].to_list())
            schema = schema.model_copy(update={"classes": LabelClasses(names=schema.classes.names, rows=rows_of)})
        notes += note
        if split != "train" or schema.ranking:
            notes += _check_groups(split, frame, table.schema)
    groups = None if schema.group is None else GroupCodes(splits.values(), schema.group)
    least = spec.min_count if other is None else 1
    most = spec.most_of if other is None else lambda name: None
    vocabulary = Vocabulary.fit(splits["train"], schema, least, spec.bins_of, progress, most)
    if other is None:
        notes += _without_knots(vocabulary, schema)
    else:
        vocabulary = other.make(vocabulary)
    writer = Writer(folder, vocabulary.schema(schema), rows)
    done, total = 0, sum(rows.values())
    time = table.schema.time if spec.target_statistics and spec.split.by in (None, "time") else None
    times = []
    for part in table.parts:
        for chunk, codes in part.chunks(_CHUNK):
            if time is not None:
                times.append(chunk[time].filter(codes == 0))
            ids, sides = vocabulary.encode(chunk), _sides(chunk, table.schema, groups)
            for code, split in enumerate(SPLITS):
                inside = codes == code
                writer.add(split, ids[inside], {name: side[inside] for name, side in sides.items()})
                done += int(inside.sum())
            progress("encode", done, total)
    if times:
        np.save(folder / TIMES, pl.concat(times).rank("dense").fill_null(0).to_numpy())
    writer.finish(vocabulary, table.truth, notes, sources)


def _without_knots(vocabulary: Vocabulary, schema: FeatureSchema) -> list[str]:
    """Notes of the columns whose numbers no function embeds: each has a bin, and so an embedding, of its own."""
    names = [field.name for field in schema.fields if field.interpolation in FUNCTIONS]
    return [
        f"each value of {name!r} has a bin and so an embedding of its own, and no function gives any: lower data.bins "
        "to have such"
        for name in names
        if np.isnan(vocabulary.quantiles(name)).all()
    ]


def _sides(chunk: pl.DataFrame, schema: FeatureSchema, groups: GroupCodes | None) -> Sides:
    """What stands beside the ids of some rows."""
    found: dict[str, Array] = {"labels": chunk[schema.label].cast(pl.Float32).to_numpy()}
    if schema.weight is not None:
        found["weights"] = chunk[schema.weight].to_numpy()
    if groups is not None:
        found["groups"] = groups.encode(chunk)
    if names := list(schema.auxiliary_labels):
        found["auxiliary"] = chunk.select(col(name).cast(pl.Float32).fill_null(np.nan) for name in names).to_numpy()
    return found


def _counted_labels(split: Split, frame: pl.LazyFrame, schema: FeatureSchema) -> tuple[int, pl.DataFrame]:
    """The rows of a split, and of each `label` those that have weight: their `count` and sum of `weight`.

    DataError if there are none.
    """
    weight = pl.lit(1.0) if schema.weight is None else col(schema.weight)
    values = frame.select(col(schema.label).alias("label"), weight.alias("weight"))
    facts = values.group_by("label").agg(
        pl.len().alias("rows"),
        (pl.col("weight") > 0).sum().alias("count"),
        pl.col("weight").cast(pl.Float64).sum(),
    )
    found = facts.collect(engine="streaming")
    rows = int(found["rows"].sum())
    if not rows:
        raise DataError(f"split {split} has no rows: change data.split or the files")
    if not found["count"].sum():
        raise DataError(f"all weights of {split} are 0: give rows of {split} that shall count a weight above 0")
    counted = found.filter(pl.col("count") > 0).select("label", pl.col("count").cast(pl.Int64), "weight")
    return rows, counted


def _check_auxiliary(split: Split, frame: pl.LazyFrame, schema: FeatureSchema) -> list[str]:
    """What to know of the auxiliary labels of a split; DataError if one has too few rows of a class that count."""
    counts = pl.lit(True) if schema.weight is None else col(schema.weight) > 0
    each = [
        ((col(name) == value) & counts).sum().alias(f"{place} {value}")
        for place, name in enumerate(schema.auxiliary_labels)
        for value in (0, 1)
    ]
    if not each:
        return []
    found, notes = frame.select(each).collect(engine="streaming"), []
    for place, name in enumerate(schema.auxiliary_labels):
        zeros, ones = (int(found[f"{place} {value}"].item()) for value in (0, 1))
        if min(zeros, ones) < _LEAST:
            raise DataError(
                f"auxiliary label {name!r} must have {_LEAST} rows of each class in {split}, but has {zeros} of 0 and "
                f"{ones} of 1: give {split} more rows, or take the column out of data.auxiliary_labels"
            )
        if split == "train":
            share = ones / (zeros + ones)
            notes.append(f"auxiliary label {name!r} is known in {zeros + ones:,} rows of train, {share:.2%} of them 1")
    return notes


def _scale(counted: pl.DataFrame, label: str, units: LabelScale | None) -> tuple[LabelScale, list[str]]:
    """The scale of train's labels, in other `units` if they are given, and a note where these are far from it."""
    own = scale_of(*(counted[key].to_numpy() for key in _LABELS))
    if units is None:
        return own, []
    shift = own.shift_from(units)
    notes = [f"label {label!r} has {shift}: the model keeps its scale of labels"] if shift else []
    return own.with_units_of(units), notes


def _check_groups(split: Split, frame: pl.LazyFrame, schema: FeatureSchema) -> list[str]:
    """What to know of the groups of a split; DataError if none has rows of both classes that count."""
    if schema.group is None:
        return []
    name, weight = schema.group, pl.lit(1.0) if schema.weight is None else col(schema.weight)
    group = key(col(name), frame.collect_schema()[name])
    label = col(schema.label).filter(weight > 0)
    both = frame.group_by(group.alias("group")).agg(
        pl.len().alias("rows"), ((label.min() == 0) & (label.max() == 1)).alias("both")
    )
    found = both.select(
        pl.col("rows").filter(pl.col("group").is_null()).sum().alias("missing"),
        (pl.col("both") & pl.col("group").is_not_null()).sum().alias("both"),
    ).collect(engine="streaming")
    if not found["both"][0]:
        raise DataError(
            f"group {name!r} must have a value with both labels in {split}, but has none: choose another data.group, "
            f"or give {split} more rows"
        )
    missing = int(found["missing"][0])
    return [f"{missing:,} rows of {split} have no {name!r}: they are in no group"] if missing else []
