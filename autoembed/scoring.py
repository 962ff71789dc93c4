"""A raw table scored with a bundle, and what there is to know of that: values that train did not have, labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl

from autoembed.auxiliary import PREDICTION, judged, prediction_columns
from autoembed.bundle import Bundle
from autoembed.data.files import locate, signature
from autoembed.data.labels import auxiliary_of
from autoembed.data.readers import labelled, read_rows
from autoembed.data.sides import weight_of
from autoembed.data.spec import DataSpec
from autoembed.data.values import col, key
from autoembed.errors import DataError, option
from autoembed.task import CLICKS, told
from autoembed.types import Array, Progress
from autoembed.writing import scratch

_FAR = 0.1  # above train's share, from which a column is warned of


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Predictions with the columns that were kept, the coverage of each field, and what to tell."""

    table: pl.DataFrame
    coverage: pl.DataFrame
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    quality: str


def score_table(
    bundle: Bundle,
    table: str,
    *,
    keep: Sequence[str] = (),
    device: str = "auto",
    settings: Mapping[str, object] | None = None,
    max_unknown: float | None = None,
    group: str | None = None,
    progress: Progress | None = None,
) -> Scored:
    """Scores all rows of a table.

    Args:
        bundle: a loaded bundle.
        table: a file, a pattern or a directory of fragments.
        keep: columns to copy beside the predictions. A text with commas that is no column's name is a list of names.
        device: auto, cpu, cuda or cuda:N.
        settings: keys of the `data:` section that override those that the bundle was made with.
        max_unknown: the share of unknown values of a field above which nothing is scored.
        group: a column within whose values quality is told as well, such as a user's id.
        progress: called with (step, done, total).

    Raises:
        DataError: the table lacks a column, has one that would be overwritten, or has too many unknown values.
    """
    spec = DataSpec.checked(bundle.spec.model_dump(exclude_unset=True) | dict(settings or {}))
    classes = bundle.schema.classes
    if spec.classes != (classes and classes.names) or (spec.task == "multiclass" and classes is None):
        raise DataError(
            f"the weights of {bundle.path} were trained for its task and its classes: leave data.task and data.classes "
            "as they are"
        )
    notes: list[str] = []
    with scratch() as staging:
        frame = read_rows(spec, table, staging, notes.append)
        present = frame.collect_schema().names()
        keep = _names(keep, present)
        missing = [name for name in keep if name not in present]
        if missing:
            raise DataError(f"unknown column {missing[0]!r} in {option('keep')}: the table has {', '.join(present)}")
        if group is not None and group not in present:
            raise DataError(f"unknown column {group!r} in {option('group')}: the table has {', '.join(present)}")
        for name in prediction_columns(bundle.schema):
            if name in keep:
                raise DataError(
                    f"{option('keep', name)} would stand beside the new predictions under one name: rename the column"
                )
        step = None
        if progress:
            total = int(frame.select(pl.len()).collect(engine="streaming").item())
            step = partial(_passed, progress, total)
        found, coverage = bundle.score_all(frame, device=device, progress=step)
        columns = prediction_columns(bundle.schema)
        scores = found.select(columns).to_numpy() if bundle.schema.classes else found[PREDICTION].to_numpy()
        if max_unknown is not None:
            _check(coverage, max_unknown)
        kept = frame.select(col(name) for name in keep).collect(engine="streaming") if keep else None
        result = found if kept is None else kept.with_columns(found.get_columns())
        quality = _quality(frame, spec, scores, group) if spec.label in present else ""
        labels = [name for name in bundle.schema.auxiliary_labels if name in present]
        quality = "; ".join(filter(None, [quality, *_quality_of(labels, frame, spec, found)]))
    files = [file for own in locate(spec.model_copy(update={"files": None}), table).values() for file in own]
    sources = bundle.manifest.provenance.get("sources") or []
    if quality and isinstance(sources, list) and any(signature(file) in sources for file in files):
        quality += " (the model was trained on rows of this very table: this is no test)"
    return Scored(
        table=result,
        coverage=coverage,
        notes=tuple(notes),
        warnings=tuple(coverage_warnings(coverage)),
        quality=quality,
    )


def _names(keep: Sequence[str], present: Sequence[str]) -> list[str]:
    """The columns that are meant, each once: a text is a name if there is such a column, else names with commas."""
    parts = ([text] if text in present else [part for part in text.split(",") if part] for text in keep)
    return list(dict.fromkeys(name for own in parts for name in own))


def _passed(progress: Progress, total: int, done: int) -> None:
    progress("predict", done, total)


def _check(coverage: pl.DataFrame, limit: float) -> None:
    over = coverage.filter(pl.col("unknown") > limit).sort("unknown", descending=True)
    if over.height:
        named = ", ".join(
            f"{name!r} {share:.1%}" for name, share in over.select("field", "unknown").head(5).iter_rows()
        )
        raise DataError(
            f"more than {option('max_unknown', limit)} of the values are unknown to the model in {named}: no scores"
        )


def coverage_warnings(coverage: pl.DataFrame) -> list[str]:
    """A sentence for each field whose share of unknown or of missing values is far above train's."""
    found = []
    for name, *shares in coverage.select("field", "unknown", "train_unknown", "missing", "train_missing").iter_rows():
        for what, now, then in (("unknown to the model", *shares[:2]), ("missing", *shares[2:])):
            if now > then + _FAR:
                found.append(f"{name!r}: {now:.1%} of the values are {what} (of train's {then:.1%})")
    return found


def _quality(frame: pl.LazyFrame, spec: DataSpec, scores: Array, group: str | None) -> str:
    """The metrics on the rows with a label, and within groups of them, or why there is none.

    They are weighted, if the bundle's data are and the table has the weights.
    """
    weights = None
    try:
        rows = labelled(frame, spec)
        labels = rows.select(col(spec.label)).collect(engine="streaming").to_series()
        known = labels.is_not_null().to_numpy()
        if spec.weight in frame.collect_schema() and known.any():
            weight = weight_of({"train": rows}, spec)
            assert weight is not None
            weights = rows.select(weight.alias("weight")).collect(engine="streaming")["weight"].to_numpy()[known]
    except DataError as error:
        return "" if len(scores) < 2 else f"no {spec.predicts.metrics[0].title}: {error}"
    present = labels.drop_nulls().to_numpy()
    if not len(present) or not spec.predicts.measurable(present if weights is None else present[weights > 0]):
        return ""
    how = "labelled rows" if weights is None else f"labelled rows, weighted by {spec.weight!r},"
    line = f"on its {len(present):,} {how} {told(spec.predicts.evaluate(present, scores[known], weights))}"
    asked = group is not None
    group = group if asked or spec.group not in frame.collect_schema() else spec.group
    if group is None:
        return line
    dtype = frame.collect_schema()[group]
    groups = frame.select(key(col(group), dtype).alias("group")).collect(engine="streaming")["group"].filter(known)
    some = groups.is_not_null().to_numpy()  # rows without a value are in no group
    own = None if weights is None else weights[some]
    try:
        within = spec.predicts.told_within(present[some], scores[known][some], groups.to_numpy()[some], group, own)
    except DataError as error:
        if asked:
            raise
        return f"{line}; {error}"
    return f"{line}; {within}"


def _quality_of(labels: Sequence[str], frame: pl.LazyFrame, spec: DataSpec, found: pl.DataFrame) -> list[str]:
    """The metrics of auxiliary labels that the table has, in words, on the rows with each, or why there are none."""
    told_of = []
    for label in labels:
        try:
            own = spec.model_copy(update={"auxiliary_labels": (label,), "label": label})
            rows = frame.with_columns(auxiliary_of({"train": frame}, own))
            wanted = [col(label).cast(pl.Float64).fill_null(math.nan)]
            if spec.weight in frame.collect_schema() and (weight := weight_of({"train": rows}, own)) is not None:
                wanted.append(weight.alias(f"{label} weight"))
            values, *weights = rows.select(wanted).collect(engine="streaming").to_numpy().T
            counts = ~np.isnan(values) & (weights[0] > 0 if weights else True)
            if CLICKS.measurable(values[counts]):
                chances = found.select(f"{PREDICTION}_{label}").to_numpy()
                metrics = judged([label], values[:, None], chances, *weights)[label]
                told_of.append(f"{label}: {told(metrics)}")
        except DataError as error:
            told_of.append(f"no {CLICKS.metrics[0].title} of {label}: {error}")
    return told_of
