"""A first search space for a table, as commented YAML: what its columns seem to be, what looks wrong, and budgets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import yaml

from autoembed.architecture import Architecture
from autoembed.budget import uniform_bytes
from autoembed.data.dataset import Dataset, build_dataset
from autoembed.data.files import Where
from autoembed.data.layout import layout_of
from autoembed.data.readers import clean, read_rows
from autoembed.data.spec import DataSpec
from autoembed.data.values import col, key
from autoembed.errors import DataError
from autoembed.estimating import StudyEstimate, estimate
from autoembed.guessing import Node, label_column, label_values
from autoembed.nn.backbones.base import DEFAULT, OF_CLASSES
from autoembed.ranking.ranking import Ranking, rank
from autoembed.space import SearchSpace, load_mapping
from autoembed.types import Progress
from autoembed.writing import scratch

_SEEN = 2000
_TIMES = ("timestamp", "datetime", "event_time", "time", "date", "ts", "unixtime", "day")
_TIME = re.compile(r"time|date|day|(^|_)(ts|dt|hour)($|_)")
_MOMENT = r"^\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}(:\d{2})?.*)?$"
_NULLS = ("NA", "N/A", "n/a", "NULL", "null", "None", "\\N", "?", "-")
_LEAST_TIMES, _LEAST_NUMBERS = 5, 30
_COUNTS = re.compile(
    r"num|count|days|duration|width|height|length|age|price|amount|distance|minutes|seconds|score|time"
)
_RARE = 0.05  # share of clicks from which a random split needs no strata
_ALONE = 0.5  # share of rows of values that train has too rarely for an id
_DIM = 16
_TASK = "  # the label is a number; for clicks put above: NUMBER in its place"


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A search space as commented YAML, what was guessed in sentences, and what a study of it will take."""

    text: str
    notes: tuple[str, ...]
    estimate: StudyEstimate


def draft(
    source: str,
    cache: Path,
    *,
    label: str | None = None,
    settings: Mapping[str, object] | None = None,
    ask: Callable[[list[str]], str] | None = None,
    progress: Progress | None = None,
) -> Draft:
    """A search space for a table; it is checked, and a study of it runs as it stands.

    Args:
        source: what `data.path` may be.
        cache: where the encoded data go, for the study to find them.
        label: the column to predict; guessed by its name and values by default.
        settings: keys of the `data:` section that are known.
        ask: chooses the label among several columns that it may be; without it, these are an error.
        progress: called with (step, done, total).

    Raises:
        DataError: the table cannot be read, or no column can be the label.
    """
    notes: list[str] = []
    data: Node = {"path": source, **layout_of(source, settings or {}, notes.append), **(settings or {})}
    data |= {"label": label} if label is not None else {}
    _columns(source, data, ask, notes)
    spec = DataSpec.checked(data)
    dataset = build_dataset(spec, None, cache, progress)
    ranking = rank(dataset, progress=progress)
    reasons, doubts = _judged(dataset, ranking)
    *_, least = _recipe(dataset.rows("train"))
    data.setdefault("min_count", least)
    if len(reasons) == len(dataset.schema.fields):
        told = "; ".join(f"{name} ({reason.partition(':')[0]})" for name, reason in reasons.items())
        raise DataError(f"no column is left to learn from: {told}")
    if reasons:
        data["drop"] = [*cast(list[str], data.get("drop", [])), *reasons]
        for field in ("numeric", "categorical"):
            kept = [name for name in cast(list[str], data.get(field, [])) if name not in reasons]
            data |= {field: kept} if field in data else {}
    dataset = build_dataset(DataSpec.checked(data), None, cache, progress)
    text = _text(data, dataset, reasons, doubts)
    space = SearchSpace.parse(load_mapping(text))
    taken = estimate(space, dataset)
    found = [note for note in dataset.notes if note not in notes]
    return Draft(text=_headed(text, dataset, taken), notes=(*notes, *found), estimate=taken)


def _columns(source: Where, data: Node, ask: Callable[[list[str]], str] | None, notes: list[str]) -> None:
    """Fills in what the first rows tell: missing values, label, time and split."""
    with scratch() as staging:
        spec = DataSpec.checked({**data, "label": data.get("label", "label")})
        first, several = _first(source, spec)
        frame = read_rows(spec, first, staging)  # once: text is converted as a whole

        def cleaned() -> pl.LazyFrame:
            return clean(frame, DataSpec.checked({**data, "label": data.get("label", "label")}))

        head = frame.head(_SEEN).collect()
        if "strip" not in data and any(text.str.contains(r"^\s+\S").any() for text in _texts(head)):
            data["strip"] = True
            notes.append("blanks around values are cut off (strip)")
            head = cleaned().head(_SEEN).collect()
        if "null_values" not in data and (markers := _markers(head)):
            data["null_values"] = markers
            notes.append(f"missing where it says {', '.join(markers)}")
            head = cleaned().head(_SEEN).collect()
        if "label" not in data:
            data["label"] = label_column(head, data.get("task"), ask, notes)
        name = str(data["label"])
        if name not in head.columns:
            raise DataError(f"there is no label column {name!r}: the columns are {', '.join(head.columns)}")
        counted = cleaned().select(key(col(name), head.schema[name]).alias("value")).group_by("value").agg(pl.len())
        share = label_values(counted.collect(engine="streaming"), name, data, notes)
        if "time" not in data and (time := _time(cleaned(), head, name)):
            data["time"] = time
            notes.append(f"split by time: {time}")
        if "split" not in data and not several:
            by: Node = {"by": "time"} if "time" in data else {"by": "random"}
            strata: Node = {"stratify": True} if "time" not in data and share < _RARE else {}
            data["split"] = {**by, "valid": 0.1, "test": 0.1, **strata}


def _first(source: Where, spec: DataSpec) -> tuple[Where, bool]:
    """The table whose rows tell what there is, and whether the splits are given by files."""
    from autoembed.data.files import locate

    found = locate(spec, source)
    if len(found) == 1:
        return source, False
    return [str(path) for path in found["train"]], {"train", "valid", "test"} <= set(found)


def _texts(head: pl.DataFrame) -> list[pl.Series]:
    return [head[name].drop_nulls() for name, dtype in head.schema.items() if dtype == pl.String]


def _markers(head: pl.DataFrame) -> list[str]:
    """The texts that stand where a number is missing."""
    found = set()
    for text in _texts(head):
        gone = text.is_in(_NULLS)
        rest = text.filter(~gone & (text != ""))
        if gone.any() and len(rest) and rest.cast(pl.Float64, strict=False).null_count() == 0:
            found |= set(text.filter(gone))
    return sorted(found)


def _time(frame: pl.LazyFrame, head: pl.DataFrame, label: str) -> str | None:
    """A column to split by: moments, or whole numbers of a name that says so."""
    moments = [name for name in head.columns if name != label and _is_moment(head[name])]
    named = [name for name in head.columns if name != label and name.lower() in _TIMES]
    distinct = frame.select(col(name).n_unique() for name in dict.fromkeys([*moments, *named]))
    found = distinct.collect(engine="streaming")
    names = [name for name in found.columns if found[name][0] >= _LEAST_TIMES]
    if by_name := sorted(set(moments) & set(names), key=lambda name: _TIME.search(name.lower()) is None):
        return by_name[0]
    for wanted in _TIMES:
        for name in names:
            if head.schema[name].is_nested():
                continue
            numbers = head[name].cast(pl.Float64, strict=False)
            if name.lower() == wanted and not numbers.null_count() and bool((numbers > 1000).all()):
                return name
    return None


def _is_moment(column: pl.Series) -> bool:
    """Whether every row has a date or a moment."""
    if column.null_count():
        return False
    typed = column.dtype in (pl.Date, pl.Datetime)
    return typed or (column.dtype == pl.String and bool(column.str.contains(_MOMENT).all()))


def _judged(dataset: Dataset, ranking: Ranking) -> tuple[dict[str, str], dict[str, str]]:
    """Columns to leave out, and columns to think about, each with the reason."""
    out, doubts = {}, {}
    for finding in ranking.findings:
        if finding.rule == "constant" or (finding.rule == "leak" and finding.severity == "error"):
            out[finding.column] = f"{finding.rule}: {finding.advice}"
        elif finding.rule == "duplicate":
            first, _, second = finding.column.partition(" = ")
            out[second] = f"a copy of {first}"
        elif finding.rule == "leak":
            doubts[finding.column] = f"leak? {finding.advice}"
    for field, counts in zip(dataset.schema.fields, dataset.counts, strict=True):
        alone = float(counts[0]) / max(float(counts.sum()), 1.0)
        if field.kind == "categorical" and alone >= _ALONE:
            # Where all of them are alone, the encoded column is constant: that is the reason, and not the finding.
            into = out if field.name in out else doubts
            into[field.name] = f"like an id: {alone:.0%} of its rows have a value that train has once"
    z = dict(ranking.table.select("feature", "z").iter_rows())
    for name, value in z.items():
        if value < 1 and name not in out:
            doubts.setdefault(name, f"says nothing by itself (z {value:.1f}); it may in a pair")
    return out, doubts


def _recipe(rows: int) -> tuple[int, int, int, int]:
    """Batch size, epochs, epochs of a warm start and min_count for so many train rows."""
    if rows < 50_000:
        return 512, 15, 10, 2
    if rows < 300_000:
        return 2048, 10, 6, 2
    if rows < 5_000_000:
        return 4096, 6, 3, 5
    return 8192, 3, 2, 10


def _text(data: Node, dataset: Dataset, reasons: Mapping[str, str], doubts: Mapping[str, str]) -> str:
    """The search space as YAML with comments."""
    backbone = DEFAULT if dataset.task.outputs == 1 else OF_CLASSES
    root = Architecture.full(dataset.schema, dataset.counts, dim=_DIM, blocks=6, backbone={"name": backbone})
    whole = uniform_bytes(root, _DIM)
    small, medium = max(whole // 32, 1000), max(whole // 8, 2000)
    batch, epochs, warm, _ = _recipe(dataset.rows("train"))
    metric = dataset.task.objective
    lines = ["data:"]
    for name, value in data.items():
        if name == "drop":
            continue
        lines.append(f"  {_flow({name: value})}{_TASK if (name, value) == ('task', 'ratings') else ''}")
    dropped = list(cast(list[str], data.get("drop", [])))
    if dropped or doubts:
        lines.append("  drop:" if dropped else "  drop: []")
    lines += [f"    - {_scalar(name)}{_why(reasons.get(name))}" for name in dropped]
    lines += [f"    # - {_scalar(name)}{_why(reason)}" for name, reason in doubts.items()]
    kinds: dict[str, list[str]] = {}
    for field in dataset.schema.fields:
        kinds.setdefault(field.kind, []).append(field.name)
    for kind, names in kinds.items():
        lines.append(f"  # {kind}: {', '.join(names)}")
    if counts := [name for name in kinds.get("categorical", []) if _counts(dataset, name)]:
        lines.append(f"  # {_flow({'numeric': counts})}  # whole numbers that may count or measure something")
    lines += [
        f"embedding: {{dim: {_DIM}, blocks: 6}}",
        "stages:",
        f"  - {{method: sensitivity, warm_epochs: {warm}}}",
        "baselines: [{method: uniform, bits: 4}, {method: frequency, bits: 4}]",
        f"backbone: {{name: {backbone}, hidden: [64, 32], dropout: {{uniform: [0.0, 0.5]}}}}",
        "train:",
        f"  epochs: {epochs}",
        "  lr: {log: [1.0e-3, 1.0e-2]}",
        "  l2: {log: [1.0e-6, 1.0e-2]}",
        "  decay: 0.3",
        f"  batch_size: {batch}",
        f"# Bytes of the embeddings: {whole:,} hold {_DIM} dims of 32 bits for every value; small: {small}; medium: "
        f"{medium}.",
        f"budget: {{trials: 4, embedding_bytes: {medium}}}",
        f"objective: {{{'maximize' if metric.rises else 'minimize'}: valid.{metric.name}}}",
        "",
    ]
    return "\n".join(lines)


def _counts(dataset: Dataset, name: str) -> bool:
    """Whether a column of many whole numbers has a name that says that they count or measure."""
    values = dataset.vocabulary.keep([name]).table()["value"].drop_nulls()
    many = len(values) >= _LEAST_NUMBERS and _COUNTS.search(name.lower()) is not None
    return many and values.cast(pl.Int64, strict=False).null_count() == 0


def _why(reason: str | None) -> str:
    return f"  # {' '.join(reason.split())}" if reason else ""


def _scalar(value: str) -> str:
    """A text as YAML writes it in one line."""
    return yaml.safe_dump([value], default_flow_style=True, width=10_000, allow_unicode=True).strip()[1:-1]


def _flow(node: Node) -> str:
    """One key and its value as YAML in one line."""
    return yaml.safe_dump(node, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True).strip()[
        1:-1
    ]


def _headed(text: str, dataset: Dataset, taken: StudyEstimate) -> str:
    """The text below what a study of it will take."""
    rows = ", ".join(f"{dataset.rows(split):,} {split}" for split in dataset.splits)
    scale, classes = dataset.schema.ratings, dataset.schema.classes
    if classes is not None:
        labels = f"{len(classes.names)} classes, of {min(classes.rows):,} to {max(classes.rows):,} rows of train"
    elif scale is None:
        labels = f"{float(np.mean(dataset.labels('train'))):.1%} of train with label 1"
    else:
        labels = f"labels of train with mean {scale.mean:.4g} and sd {scale.sd:.4g}"
    return (
        f"# {rows} rows, {len(dataset.schema.fields)} columns, {labels}.\n"
        f"# {told_estimate(taken)}\n"
        "# Every key is described in docs/search-spaces.md.\n" + text
    )


def told_estimate(taken: StudyEstimate) -> str:
    """What a study will take, in a sentence."""
    return (
        f"{sum(taken.trials.values())} trials in about {told_seconds(taken.seconds)}, {taken.at_once} at a time, with "
        f"{taken.memory / 2**30:.1f} GiB of memory; the uniform model has {taken.bytes / 1e6:.1f} MB."
    )


def told_seconds(seconds: float) -> str:
    """A time in words: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{max(5, round(seconds / 5) * 5)} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
