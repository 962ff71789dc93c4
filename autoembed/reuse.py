"""Trains an architecture that was chosen before on another table, without a search."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from pydantic import JsonValue, ValidationError
from torch import Tensor, nn

from autoembed.architecture import Architecture
from autoembed.auxiliary import auxiliary_metrics, recorded
from autoembed.bundle import Bundle, load_bundle, write_bundle
from autoembed.data.dataset import Dataset, build_dataset
from autoembed.data.files import Where
from autoembed.data.knots import plain
from autoembed.data.readers import DataSpec
from autoembed.data.schema import FeatureSchema, Field
from autoembed.errors import BundleError, DataError, SpaceError, first_line
from autoembed.events import EpochEnd
from autoembed.metrics import Metrics
from autoembed.nn.embedding import MixedEmbedding
from autoembed.nn.model import CTRModel, Model, inherit, measure
from autoembed.nn.taking_over import looked_up
from autoembed.plans import Block, FieldPlan, Input
from autoembed.ratings import LabelScale
from autoembed.retraining import retrain
from autoembed.task import metric_in
from autoembed.training import TrainConfig, metrics_on, pick_device
from autoembed.types import Array, Progress
from autoembed.writing import scratch


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A bundle of an architecture that was trained on another table; `notes` say what was read and guessed.

    `auxiliary` are the metrics of auxiliary labels on test, by label.
    """

    bundle: Bundle
    valid: Metrics
    test: Metrics
    notes: tuple[str, ...]
    auxiliary: Mapping[str, Metrics]


def carried(architecture: Architecture, schema: FeatureSchema) -> Architecture:
    """The architecture for another vocabulary of its columns, whose ids are ordered by frequency as well.

    A block keeps its ranks, with its dims and bits; the last block of a field takes all ranks behind it, and blocks
    that begin behind the last id are gone. Tables of another size cost other bytes, which the model's cost tells.
    It has a tower for each auxiliary label of the schema.

    Raises:
        DataError: the schema lacks a column.
        SpaceError: parts of the architecture are of the very values that it was searched on, or the schema lacks one of
            its auxiliary labels.
    """
    router = architecture.router
    for label in architecture.auxiliary_labels:
        if label not in schema.auxiliary_labels:
            raise SpaceError(
                f"the architecture predicts the auxiliary label {label!r}, which the table must have: list it under "
                "data.auxiliary_labels"
            )
    for what, there in {
        "pairs of columns that have an input": bool(architecture.built),
        f"a router of kind {router.kind if router else ''}": router is not None and router.kind != "all",
        "single entries of its tables": architecture.storage.kind == "sparse",
    }.items():
        if there:
            raise SpaceError(
                f"the architecture has {what}, which belong to the values that it was searched on: search again on "
                "these data"
            )
    known = {field.name: field for field in schema.fields}
    absent = [name for name in architecture.columns if name not in known]
    if absent:
        raise DataError(f"the table lacks columns of the architecture: {', '.join(absent)}")
    fields = tuple(_carried(field, known) for field in architecture.fields)
    clusters = tuple(carried(one, schema) for one in architecture.clusters)
    changes = {"auxiliary_labels": schema.auxiliary_labels, "outputs": schema.task.outputs}
    return architecture.replace(fields=fields, clusters=clusters, pairs=(), cost=None, **changes)


def _carried(field: FieldPlan, known: Mapping[str, Field]) -> FieldPlan:
    blocks: list[Block] = []
    cardinality = known[field.name].cardinality
    for block in field.blocks:
        stop = min(block.stop, cardinality)
        if not blocks or stop > blocks[-1].stop:
            blocks.append(block.model_copy(update={"stop": stop}))
    blocks[-1] = blocks[-1].model_copy(update={"stop": cardinality})
    own, *readers = (_input(one, known[one.name], field.name) for one in field.inputs)
    plan = {"cardinality": cardinality, "blocks": tuple(blocks), "pool": own.pool, "readers": tuple(readers)}
    return field.model_copy(update=plan)


def _input(field: Input, column: Field, table: str) -> Input:
    """An input with as many values as the column may have; DataError if only one of them holds several."""
    if column.shares != (None if field.name == table else table):
        raise DataError(
            f"column {field.name!r} reads the table of {table!r} in the architecture: set data.shared: "
            f"{{{field.name}: {table}}}"
        )
    if field.interpolated != bool(column.interpolation):
        now, then = ("no knots", "knots") if field.interpolated else ("knots", "none")
        raise DataError(
            f"numbers of column {field.name!r} have {now} in the table, but {then} in the architecture: set "
            f"data.numeric_embedding: {{{field.name}: {'piecewise' if field.interpolated else 'bins'}}}"
        )
    if bool(field.pool) != (column.length > 1 or column.multi is not None):
        several, one = ("the architecture", "the table") if field.pool else ("the table", "the architecture")
        raise DataError(
            f"column {field.name!r} has several values a row in {several}, and one in {one}: set data.multi, or list "
            "the column under categorical"
        )
    return Input(name=field.name, pool=field.pool and field.pool.model_copy(update={"length": column.length}))


def train_architecture(
    source: str | Path,
    data: Where,
    out: str | Path,
    *,
    label: str | None = None,
    settings: Mapping[str, object] | None = None,
    train: Mapping[str, object] | None = None,
    warm: bool = False,
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Trained:
    """Trains the architecture of a bundle, or of a JSON file, on another table.

    The vocabulary is fitted on the new table's train split. Of a bundle, the rules by which tables are read and the
    recipe of its training hold as well.

    Args:
        source: a bundle's folder, or an architecture's JSON file.
        data: whatever `data.path` may be.
        out: the folder of the new bundle; a bundle that is there is replaced.
        label: the label column, if it is another one than the bundle's; "label" for a JSON file.
        settings: keys of the `data:` section that override those of the bundle, such as split or min_count.
        train: keys of `train` that override the bundle's recipe, or the default one.
        warm: start from the bundle's weights: a value keeps its embedding, and a new one begins as an unknown one. The
            better on valid of these weights and of each epoch is kept. Of ratings the mean and sd that logits are in
            stay the bundle's.
        seed: of fresh weights and of the order of rows.
        device: auto, cpu, cuda or cuda:N.
        progress: called with (step, done, total).
        cache: where encoded data are kept; a temporary folder by default.

    Raises:
        DataError: the table breaks a rule, or lacks a column.
        SpaceError: the recipe breaks a rule, or the architecture belongs to its own data.
        BundleError: there is no bundle and no architecture at `source`.
    """
    if cache is None:
        with scratch() as folder:
            return train_architecture(
                source,
                data,
                out,
                label=label,
                settings=settings,
                train=train,
                warm=warm,
                seed=seed,
                device=device,
                progress=progress,
                cache=folder,
            )
    architecture, spec, recipe, monitor, origin, told = _source(Path(source), label, settings or {}, train or {})
    where = pick_device(device)
    old = load_bundle(source) if warm else None
    dataset = build_dataset(spec, data, cache, progress, units=None if old is None else units_of(old, spec))
    absent = [name for name in architecture.columns if name not in dataset.schema.names]
    if absent:
        raise DataError(f"the table lacks columns of the architecture: {', '.join(absent)}")
    notes = (*dataset.notes, *told)
    if recipe.distill is not None:
        recipe = recipe.model_copy(update={"distill": None})
        notes = (*notes, "trained without the teacher of the recipe, which belongs to the data that it was made for")
    dataset = dataset.keep(architecture.columns, cache)
    plan = carried(architecture, dataset.schema)
    start = None
    if old is not None:
        torch.manual_seed(seed)
        start = with_weights_of(old, plan, dataset).to(where)
    model, valid, test = fitted(plan, dataset, recipe, where, seed, start, monitor, progress)
    provenance: dict[str, JsonValue] = {
        **origin,
        "train": recipe.model_dump(mode="json"),
        "monitor": monitor,
        "seed": seed,
        "warm": warm,
    }
    further = further_metrics(model, dataset)
    bundle = written(Path(out), model, dataset, spec, valid, test, provenance, further)
    return Trained(bundle=bundle, valid=valid, test=test, notes=notes, auxiliary=further["test"])


def fitted(
    plan: Architecture,
    dataset: Dataset,
    recipe: TrainConfig,
    where: torch.device,
    seed: int,
    start: CTRModel | None,
    monitor: str,
    progress: Progress | None = None,
    mean: Callable[[nn.Module], Mapping[str, Tensor]] | None = None,
) -> tuple[Model, Metrics, Metrics]:
    """An architecture trained on a dataset, on the CPU, with its metrics on valid and on test.

    `mean` is as in `retrain`. `progress` is called with ("train", epochs done, epochs at most).
    """
    tell = progress or (lambda *_: None)

    def told(event: EpochEnd) -> None:
        tell("train", min(event.epoch, recipe.epochs - 1), recipe.epochs)

    tell("train", 0, recipe.epochs)
    model, fit = retrain(plan, dataset, recipe, where, seed, told, start, monitor=monitor, mean=mean)
    tell("train", recipe.epochs, recipe.epochs)
    test = metrics_on(model, dataset, "test", where)
    return model.cpu(), fit.valid, test


def further_metrics(model: Model, dataset: Dataset) -> dict[str, dict[str, Metrics]]:
    """The metrics of auxiliary labels on valid and test, by split and label, of a model on the CPU."""
    cpu = torch.device("cpu")
    return {
        "valid": auxiliary_metrics(model, dataset, "valid", cpu),
        "test": auxiliary_metrics(model, dataset, "test", cpu),
    }


def written(
    out: Path,
    model: Model,
    dataset: Dataset,
    spec: DataSpec,
    valid: Metrics,
    test: Metrics,
    provenance: Mapping[str, JsonValue],
    further: Mapping[str, Mapping[str, Metrics]],
) -> Bundle:
    """The bundle of a model that was trained on a dataset, in `out`; `further` is what `further_metrics` gives."""
    write_bundle(
        out,
        schema=dataset.schema,
        vocabulary=dataset.vocabulary,
        architecture=model.architecture.replace(cost=measure(model)),
        model=model,
        data=spec.model_dump(mode="json", exclude={"path", "planted", "split", "files", "crosses"}),
        metrics=recorded("valid", valid, further["valid"]) | recorded("test", test, further["test"]),
        provenance={**provenance, "fingerprint": dataset.fingerprint, "sources": list(dataset.sources)},
    )
    return load_bundle(out)


def _source(
    path: Path, label: str | None, settings: Mapping[str, object], train: Mapping[str, object]
) -> tuple[Architecture, DataSpec, TrainConfig, str, dict[str, JsonValue], tuple[str, ...]]:
    """The architecture, how tables are read, the recipe, the metric of its epochs, where they come from, and notes."""
    monitor: JsonValue = None
    named = {} if label is None else {"label": label}
    own: dict[str, JsonValue] = {}
    recipe: JsonValue = None
    if path.is_file():
        architecture = Architecture.read(path)
        origin: dict[str, JsonValue] = {"architecture": str(path.absolute())}
    elif (path / "manifest.json").is_file():
        bundle = load_bundle(path)
        provenance = bundle.manifest.provenance
        architecture, own, recipe = bundle.architecture, dict(bundle.manifest.data), provenance.get("train")
        origin = {"bundle": str(path.absolute()), "trial": provenance.get("trial")}
        monitor = provenance.get("monitor")
        refuse_crossed(bundle)
    else:
        raise BundleError(f"{path} is neither a bundle nor an architecture's JSON file")
    known, notes = known_recipe(recipe)
    try:
        config = TrainConfig.model_validate({**known, **train})
    except ValidationError as error:
        raise SpaceError(f"train.{first_line(error, TrainConfig)}") from None
    spec = DataSpec.checked({**own, **named, **settings})
    metric = metric_in(spec.predicts, monitor if isinstance(monitor, str) else None, spec.group)
    return architecture, spec, config, metric.monitor, origin, notes


def known_recipe(stored: JsonValue) -> tuple[dict[str, JsonValue], tuple[str, ...]]:
    """The recipe that a bundle names, and a note where it names none: older ones and an architecture alone do not."""
    if isinstance(stored, dict):
        return stored, ()
    return {}, ("the recipe of its training is not known: `train` has its defaults where it is not given",)


@torch.no_grad()
def with_weights_of(bundle: Bundle, plan: Architecture, dataset: Dataset) -> CTRModel:
    """The compact model of a carried architecture with the weights of a bundle's."""
    old = bundle.model
    if not isinstance(old, CTRModel) or not isinstance(old.embedding, MixedEmbedding) or plan.tower_bits < 32:
        raise SpaceError(
            "weights of clusters, of rows that values share and of layers in few bits cannot be taken over"
        )
    dense = {}
    for number, field in enumerate(plan.fields):
        codes = _old_codes(bundle, dataset, field.name)  # a knot may lie between two of before
        dense[number] = looked_up(old, field.name, torch.from_numpy(codes))
    model = CTRModel(dataset.schema, plan)
    assert isinstance(model.embedding, MixedEmbedding)
    model.embedding.load_dense(dense, plan)
    inherit(old.backbone, model.backbone, range(len(plan.inputs)))
    if old.heads is not None and model.heads is not None:
        for label, tower in zip(model.heads.labels, model.heads.towers, strict=True):
            if label in old.heads.labels:
                inherit(old.heads.towers[old.heads.labels.index(label)], tower, range(len(plan.inputs)))
    return model


def rows_seen(bundle: Bundle) -> int:
    """The train rows that a bundle's vocabulary has counted, those of earlier logs as far as they still count.

    Told by a categorical column with one value a row, if there is one: a list counts its values, a table that others
    read counts theirs, and numeric columns keep the counts that they began with.
    """
    read = {field.shares for field in bundle.schema.fields}
    plain = [field.name for field in bundle.schema.fields if field.kind == "categorical" and field.name not in read]
    return max(round(float(bundle.vocabulary.recent(name).sum())) for name in plain or bundle.vocabulary.names)


def averaged(
    bundle: Bundle, start: CTRModel, dataset: Dataset, memory: float
) -> Callable[[nn.Module], Mapping[str, Tensor]]:
    """Gives the mean of a model's weights and those that it started from, each by the rows that it has seen.

    A value that had n rows, `memory` of which count, and has m in the log takes m / (m + memory n) of its new
    embedding; a new value takes all of it, and so does one that moved into a block with more dims, in these. The
    backbone takes its share by all rows. So what is known well moves less than by one log's noise, as in the mean of a
    stream.

    Args:
        bundle: the model of before, whose vocabulary says how many rows its values had.
        start: the weights to average with, which stay as they are.
        dataset: the log.
        memory: how much a row of before counts beside one of the log.
    """
    before, ids = copy.deepcopy(start), dataset.ids("train")
    plans, shares = {field.name: field for field in bundle.architecture.fields}, {}
    for number, field in enumerate(start.architecture.fields):
        new = np.zeros(field.cardinality, dtype=np.int64)
        for one in field.inputs:
            columns = ids[:, dataset.schema.columns([one.name])].T
            for column in [dataset.schema.one(ids, one.name)] if one.interpolated else columns:
                new += np.bincount(column[column >= 0], minlength=len(new))
        old, counted = _old_ids(bundle, dataset, field.name), bundle.vocabulary.recent(field.name)
        known = (old > 0) | (np.arange(len(old)) == 0)
        had = memory * np.where(known, counted[np.maximum(old, 0)], 0)
        share = np.divide(new, new + had, out=np.ones(len(old)), where=new + had > 0)
        kept = _kept(plans[field.name], old, start.architecture.dim)
        shares[number] = torch.from_numpy(np.where(kept, share[:, None], 1.0)).float()
    of_rows = copy.deepcopy(start.embedding)
    assert isinstance(of_rows, MixedEmbedding)
    of_rows.load_dense(shares, start.architecture)
    by_row = {f"embedding.{name}": tensor for name, tensor in of_rows.state_dict().items()}
    whole = len(ids) / (len(ids) + memory * rows_seen(bundle))

    def mean(model: nn.Module) -> Mapping[str, Tensor]:
        old, found = before.state_dict(), {}
        for name, tensor in model.state_dict().items():
            share = by_row[name] if name in by_row and tensor.is_floating_point() else whole
            found[name] = old[name].lerp(tensor, share) if tensor.is_floating_point() else tensor
        return found

    return mean


def _kept(field: FieldPlan, ids: Array, dim: int) -> Array:
    """Which dims, and at last whether a first-order weight, a field's values have: bool [N, D + 1]."""
    mask = np.zeros((len(field.blocks), dim + 1), dtype=bool)
    for row, block in zip(mask, field.blocks, strict=True):
        row[list(block.dims)] = True
        row[-1] = bool(block.dims)
    kept: Array = mask[np.searchsorted([block.stop for block in field.blocks], ids, side="right")]
    return kept


def _old_ids(bundle: Bundle, dataset: Dataset, name: str) -> Array:
    """The id that a bundle gives to each value of a field of new data, 0 where it does not know it: int32 [N].

    Of a number between knots, that of its bin.
    """
    codes = _old_codes(bundle, dataset, name)[:, 0]
    return codes if bundle.vocabulary.knots(name) is None else plain(codes)


def _old_codes(bundle: Bundle, dataset: Dataset, name: str) -> Array:
    """What a bundle makes of each value of a field of new data: int32 [N, columns of the field]."""
    known = dataset.vocabulary.keep([name]).table()
    if bundle.vocabulary.statistic_of(name):
        return bundle.vocabulary.bins_of(name, known["upper"])[:, None]
    column = "upper" if known["value"].null_count() == len(known) else "value"
    if dataset.vocabulary.knots(name) is not None:
        known = known.with_columns(pl.col("value").str.strip_prefix("="))
    missing = known["value"].is_null() & known["upper"].is_null()
    value = pl.col(column) if dataset.vocabulary.multi(name) is None else pl.concat_list(pl.col(column))
    ids: Array = bundle.vocabulary.keep([name]).encode(known.select(value.alias(name)))
    ids[missing.to_numpy(), 0] = bundle.vocabulary.missing(name)
    ids[0, 0] = 0
    return ids


def units_of(bundle: Bundle, spec: DataSpec) -> LabelScale | None:
    """The scale of ratings that a bundle's weights were trained in, and so the one to train them on in; else None.

    SpaceError if `spec` reads labels for another task, or of other classes.
    """
    task = bundle.schema.task.name
    if spec.task != task:
        raise SpaceError(
            f"the weights of {bundle.path} were trained for data.task: {task}, but data.task is {spec.task}: leave it "
            f"{task}, or train from fresh weights with `autoembed retrain`"
        )
    classes = bundle.schema.classes
    if classes is not None and spec.classes != classes.names:
        raise SpaceError(
            f"the weights of {bundle.path} were trained for the classes {', '.join(classes.names)}, and data.classes "
            "must list these in this order: leave it as it is, or train from fresh weights with `autoembed retrain`"
        )
    return bundle.schema.ratings


def refuse_crossed(bundle: Bundle) -> None:
    crossed = [field.name for field in bundle.schema.fields if field.cross is not None]
    if crossed:
        raise SpaceError(
            f"the architecture has crossed columns ({', '.join(crossed)}), whose values belong to the data that it was "
            "searched on: search again on these data"
        )
