"""One trial: search, derive, retrain the compact model, measure it on valid. Nothing here reads the test split."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from time import perf_counter
from typing import Any

import numpy as np
import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from autoembed import distill, shrinking
from autoembed.architecture import Architecture
from autoembed.auxiliary import auxiliary_metrics, check_recipe, check_stopping
from autoembed.budget import Limit, uniform_bytes
from autoembed.candidates import Narrow, Offer, offer
from autoembed.data.dataset import Dataset
from autoembed.errors import SpaceError, TrialError, first_line
from autoembed.events import EpochEnd, EpochReport, Event, Report
from autoembed.methods import tower
from autoembed.methods.bilevel import search
from autoembed.methods.method import SearchConfig, configure, load
from autoembed.methods.warm import WarmStarts
from autoembed.nn.backbones import base
from autoembed.nn.model import Model, measure
from autoembed.nn.quantised import quantise_layers
from autoembed.nn.router import Router
from autoembed.plans import Bits, BlockCut, Cost, Ensemble, Pooling, TowerOptions
from autoembed.retraining import latency, retrain
from autoembed.storage import Step
from autoembed.task import CLICKS, Monitor, TaskMetrics, metric_of
from autoembed.training import Fit, Plateau, Teacher, TrainConfig, pick_device


class EmbeddingConfig(BaseModel):
    """The root that every search starts from: width `dim`, and `blocks` frequency blocks over all values.

    Numbers have at most `bits` bits. Where these are 8 or fewer, each row, block, or dim of a block has a `step`.
    `narrow` says whether the rows of an answer stay at their kept dims or are projected onto what all fields have, and
    `pool` how the embeddings of a multi-valued field's values become one, or how those of each such field do: a field
    that is not named has their mean. `attention` weights values by how much they are like that of the column whose
    table they read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int = Field(default=16, ge=1)
    blocks: int = Field(default=6, ge=1)
    cut: BlockCut = "geometric"
    bits: Bits = 32
    step: Step = "row"
    narrow: Narrow = "kept"
    pool: Pooling | dict[str, Pooling] = "mean"


def limits(*, widths: Sequence[float], sizes: Sequence[int]) -> list[Limit]:
    """A limit for each width and each size in bytes; SpaceError unless they are above 0."""
    try:
        return [*(Limit(width=width) for width in widths), *(Limit(bytes=size) for size in sizes)]
    except ValidationError as error:
        raise SpaceError(first_line(error)) from None


class TrialConfig(BaseModel):
    """Everything a trial depends on beside the data. Every leaf is a literal: ranges were resolved before.

    `monitor` is the metric on valid whose best epoch every training keeps; a search space sets it by its objective.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str
    stages: tuple[dict[str, JsonValue], ...] = Field(min_length=1)
    embedding: EmbeddingConfig = EmbeddingConfig()
    backbone: dict[str, JsonValue] = {"name": base.DEFAULT}
    ensemble: Ensemble = Ensemble()
    tower: TowerOptions = TowerOptions()
    train: TrainConfig = TrainConfig()
    monitor: Monitor = CLICKS.metrics[0].monitor
    limit: Limit = Limit()
    seed: int = 0
    device: str = "auto"


class TrialResult(BaseModel):
    """What a trial found, and what it cost; `weights` are kept apart in a safetensors file.

    `auxiliary` are the metrics of auxiliary labels on valid, by label.
    `latency_ms` is the compact model's time for a batch of 1,000 rows on the trial's device, and `notes` what a user
    should know of how the search went.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: TrialConfig
    valid: TaskMetrics
    auxiliary: dict[str, TaskMetrics] = {}
    cost: Cost
    architecture: Architecture
    fingerprint: str
    best_epoch: int
    search_seconds: float
    retrain_seconds: float
    latency_ms: float
    notes: tuple[str, ...] = ()

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without auxiliary labels that are not there: so it was stored before there were such."""
        node: dict[str, Any] = handler(self)
        return {key: value for key, value in node.items() if value or key != "auxiliary"}


def root_architecture(config: TrialConfig, dataset: Dataset) -> Architecture:
    """Every dim of every value of the dataset's fields, under the trial's backbone."""
    return Architecture.full(
        dataset.schema,
        dataset.counts,
        dim=config.embedding.dim,
        blocks=config.embedding.blocks,
        cut=config.embedding.cut,
        bits=config.embedding.bits,
        step=config.embedding.step,
        pool=config.embedding.pool,
        backbone=config.backbone,
    ).replace(tower_bits=config.tower.bits)


def run_trial(
    config: TrialConfig, dataset: Dataset, report: Report, warm: WarmStarts | None = None
) -> tuple[TrialResult, Model]:
    """Runs a trial from the data to a retrained compact model.

    `report` gets an `EpochEnd` after every epoch of every phase, and a `SearchEnd` after each stage whose method tells
    of its end. Trials that have the folder `warm` in common train equal warm starts once. Raises TrialError on a loss
    that is not finite and on memory that ran out.
    """
    (found,) = run_limits(config, [config.limit], dataset, report, warm)
    if isinstance(found, SpaceError):
        raise found
    return found


Found = tuple[TrialResult, Model] | SpaceError


def run_limits(
    config: TrialConfig,
    limits: Sequence[Limit],
    dataset: Dataset,
    report: Report,
    warm: WarmStarts | None = None,
    epochs: int | None = None,
) -> list[Found]:
    """One search whose answer is read off within each of several limits; each architecture is retrained by itself.

    The results' configurations name the limit that they were found within. A limit that is too small has its error in
    the place of a result.

    With `epochs`, each architecture is trained on for so many, in place of by the recipe, and taught by the supernet:
    as `shrinking` says. SpaceError if the last stage trains no supernet.
    """
    try:
        return _run(config, limits, dataset, report, warm=warm, epochs=epochs)
    except (MemoryError, torch.OutOfMemoryError) as error:
        line = _no_memory(config, error)
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        line = _no_memory(config, error)
    # Outside of the handlers: the error would go with this one and hold what the trial had allocated.
    raise TrialError(line)


def _no_memory(config: TrialConfig, error: BaseException) -> str:
    """The line that says so; what the trial had allocated is let go, as the process may run another one."""
    traceback.clear_frames(error.__traceback__)
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"memory ran out ({reason}): lower embedding.dim={config.embedding.dim}, "
        f"train.batch_size={config.train.batch_size} or the trials at once"
    )


def _run(
    config: TrialConfig,
    limits: Sequence[Limit],
    dataset: Dataset,
    report: Report,
    teaches: Callable[[Teacher | None], None] = lambda teacher: None,
    warm: WarmStarts | None = None,
    epochs: int | None = None,
) -> list[Found]:
    check_labels(config, dataset.schema.auxiliary_labels)
    check_outputs(config, dataset.task.outputs)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    root = architecture = root_architecture(config, dataset)
    start = perf_counter()
    further = None if epochs is None else shrinking.recipe(config.train, configure(config.stages[-1]), epochs)
    net, trained = None, None
    notes: list[str] = []
    for number, stage in enumerate(config.stages):
        if net is not None:
            width = net.config.width
            answer = net.answer(None if width is None else uniform_bytes(root, width))
            architecture = answer.architecture
            notes += [f"{net.config.method}: {note}" for note in answer.notes]
        method = configure(stage)
        net = load(method.method).Supernet(dataset.schema, architecture, method, dataset.counts, config.seed).to(device)
        if config.tower.units == "search":
            tower.order(net)
        if isinstance(method, SearchConfig):
            if trained is not None and method.carry:
                net.load_weights_from(trained)
            trained = net
        told = partial(_staged, report, number)
        search(
            net, dataset, config.train, device=device, seed=config.seed, report=told, monitor=config.monitor, warm=warm
        )
        notes += [f"{method.method}: {note}" for note in net.notes]
    assert net is not None
    router = net.router
    teacher = distill.searched(further or config.train, net, dataset, device)
    offers: list[Offer | SpaceError] = []
    for limit in limits:
        try:
            offers.append(offer(net, config.train, limit, root, config.ensemble, config.embedding.narrow, further))
        except SpaceError as error:
            offers.append(error)
    method_name = net.config.method
    # As large as all embeddings: none are held beside those that are retrained.
    net = trained = None
    teacher = teacher or prepared_teacher(config, dataset, device, report)
    teaches(teacher)
    searched = perf_counter() - start
    found: dict[int, Found] = {}
    retrained: dict[tuple[object, ...], tuple[TrialResult, Model]] = {}
    wide: Model | None = None
    order = range(len(offers)) if further is None else shrinking.largest_first(offers)
    for place in order:
        one = offers[place]
        if isinstance(one, SpaceError):
            found[place] = one
            continue
        keys = one.keys
        if keys not in retrained:
            if further is not None:
                last = offers[order[-1]]
                least = isinstance(last, Offer) and last.keys == keys
                one = shrinking.begin(one, wide, dataset, config.monitor, device, smallest=least)
            model, fitted, seconds, note = _best(one, config, dataset, device, report, router, teacher)
            cost = measure(model)
            result = TrialResult(
                config=config,
                valid=fitted.valid,
                auxiliary=auxiliary_metrics(model, dataset, "valid", device),
                cost=cost,
                architecture=model.architecture.replace(cost=cost),
                fingerprint=dataset.fingerprint,
                best_epoch=fitted.epoch,
                search_seconds=searched,
                retrain_seconds=seconds,
                latency_ms=latency(model, dataset, device),
                notes=(*notes, *(f"{method_name}: {line}" for line in (*one.notes, *note))),
            )
            retrained[keys] = result, model
        result, wide = retrained[keys]
        limited = config.model_copy(update={"limit": one.limit})
        found[place] = result.model_copy(update={"config": limited}), wide
    return [found[place] for place in range(len(offers))]


def _best(
    one: Offer,
    config: TrialConfig,
    dataset: Dataset,
    device: torch.device,
    report: Report,
    router: Router | None,
    teacher: Teacher | None,
) -> tuple[Model, Fit, float, tuple[str, ...]]:
    """The candidate that is the best on valid once retrained, the seconds of all, and what is to be told of it."""
    best, epochs = Plateau(metric_of(config.monitor), 0.0), count(1)

    def counted(event: EpochEnd) -> None:
        report(replace(event, epoch=next(epochs)))

    seconds = 0.0
    for number, candidate in enumerate(one.candidates):
        last, fit_of_last = retrain(
            candidate.architecture,
            dataset,
            candidate.recipe,
            device,
            config.seed,
            counted,
            candidate.start,
            router,
            config.monitor,
            teacher,
            candidate.like,
        )
        seconds += fit_of_last.seconds
        if best.see(number, fit_of_last.valid):
            model, fitted = last, fit_of_last
    note = one.candidates[best.epoch].note
    return model, fitted, seconds, () if note is None else (note,)


def _staged(report: Report, stage: int, event: Event) -> None:
    report(replace(event, stage=stage))


def prepared_teacher(
    config: TrialConfig, dataset: Dataset, device: torch.device, report: EpochReport
) -> Teacher | None:
    """The teacher that is no supernet of the trial's search: a bundle or an ensemble; None without one."""
    return distill.prepared(
        config.train,
        root_architecture(config, dataset),
        dataset,
        device,
        seed=config.seed,
        report=report,
        monitor=config.monitor,
    )


def teacher_of(config: TrialConfig, dataset: Dataset, device: torch.device) -> Teacher | None:
    """The teacher of a trial's retraining, made once more: where it is the searched supernet, by the trial's search."""
    if not distill.wants_search(config.train):
        return prepared_teacher(config, dataset, device, lambda values: None)
    made: list[Teacher | None] = []
    on_device = config.model_copy(update={"device": str(device)})
    _run(on_device, [], dataset, lambda values: None, made.append)
    return made[0]


def check(config: Mapping[str, object]) -> TrialConfig:
    """A validated TrialConfig, its stages and backbone included; SpaceError names the first rule broken."""
    try:
        trial = TrialConfig.model_validate(dict(config))
    except ValidationError as error:
        raise SpaceError(first_line(error, TrialConfig)) from None
    base.configure(trial.backbone)
    for stage in trial.stages:
        method = configure(stage)
        if isinstance(method, SearchConfig):
            method.recipes(trial.train)
        searches = isinstance(method, SearchConfig)
        if load(method.method).Supernet.chooses_pairs:
            base.require_pairs(str(trial.backbone["name"]), method.method)
    if trial.tower.units == "search":
        tower.require(trial.backbone)
    if trial.tower.bits < 32:
        with torch.device("meta"):
            backbone = base.build(trial.backbone, np.ones((2, trial.embedding.dim), dtype=bool))
        quantise_layers(backbone, trial.tower.bits)
    if trial.train.pairwise_weight == 1 and load(method.method).Supernet.makes_clusters:
        raise SpaceError(
            f"{method.method} makes a model for each cluster, which are made to compare by the loss of rows, and "
            "train.pairwise_weight: 1 leaves that out: set it below 1"
        )
    if trial.ensemble.members > 1 and load(method.method).Supernet.makes_clusters:
        raise SpaceError(f"{method.method} makes a model for each cluster, so ensemble.members must be 1")
    distill.require_searched(trial.train, method.method, searches)
    return trial


def check_labels(trial: TrialConfig, labels: Sequence[str]) -> None:
    """SpaceError unless a trial can be run on data with these auxiliary labels."""
    check_recipe(labels, trial.train.auxiliary_weights, trial.train.negative_sampling)
    check_stopping(labels, trial.train.stop_by, metric_of(trial.monitor))
    if not labels:
        return
    with torch.device("meta"):
        base.tower(trial.backbone, np.ones((2, trial.embedding.dim), dtype=bool))
    stages = [configure(stage).method for stage in trial.stages]
    for what, there in {
        "tower.units: search": trial.tower.units == "search",
        f"a model for each cluster ({stages[-1]})": load(stages[-1]).Supernet.makes_clusters,
        "ensemble.share: none": trial.ensemble.members > 1 and trial.ensemble.share == "none",
    }.items():
        if there:
            raise SpaceError(f"data.auxiliary_labels does not go with {what}: leave one of them out")


def check_outputs(trial: TrialConfig, outputs: int) -> None:
    """SpaceError unless a trial can be run with so many logits a row: clusters and ensembles join one of each model."""
    if outputs == 1:
        return
    base.require_classes(str(trial.backbone["name"]))
    stages = [configure(stage).method for stage in trial.stages]
    joined = next((method for method in stages if load(method).Supernet.makes_clusters), None)
    for what, there in {
        f"the method {joined}, which makes several models": joined is not None,
        f"ensemble.members: {trial.ensemble.members}": trial.ensemble.members > 1,
    }.items():
        if there:
            raise SpaceError(
                f"data.task: multiclass has a logit for each class, and does not go with {what}: leave it out"
            )
