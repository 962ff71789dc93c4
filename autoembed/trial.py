"""One trial: search, derive, retrain the compact model, measure it on valid. Nothing here reads the test split."""

from __future__ import annotations

import statistics
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from autoembed import distill
from autoembed.architecture import Architecture, Cost, Cut, first_line
from autoembed.data.dataset import Dataset
from autoembed.errors import SpaceError, TrialError
from autoembed.metrics import Metrics, evaluate
from autoembed.nn.backbones import base
from autoembed.nn.model import Model, RoutedModel, build_model, cost_of, measure
from autoembed.nn.router import Router
from autoembed.search.bilevel import search
from autoembed.search.supernet import SearchConfig, Supernet, configure, load, uniform_budget
from autoembed.training import Fit, Monitor, Report, Teacher, TrainConfig, batches, fit, pick_device, predict

_LATENCY_ROWS = 1000


class EmbeddingConfig(BaseModel):
    """The root that every search starts from: width `dim`, and `blocks` frequency blocks over all values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int = Field(default=16, ge=1)
    blocks: int = Field(default=6, ge=1)
    cut: Cut = "geometric"


class Limit(BaseModel):
    """What an architecture may cost: embedding parameters, as a number or as many as `width` dims for every value take,
    and `bytes` of the whole compact model in memory.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: int | None = Field(default=None, ge=1)
    width: float | None = Field(default=None, gt=0)
    bytes: int | None = Field(default=None, ge=1)

    def resolve(self, root: Architecture) -> int | None:
        """The limit in parameters for a root architecture, or None if there is none."""
        if self.parameters is not None:
            return self.parameters
        return None if self.width is None else uniform_budget(root, self.width)


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
    backbone: dict[str, JsonValue] = {"name": "deepfm"}
    train: TrainConfig = TrainConfig()
    monitor: Monitor = "valid_auc"
    limit: Limit = Limit()
    seed: int = 0
    device: str = "auto"


class TrialResult(BaseModel):
    """What a trial found, and what it cost; `weights` are kept apart in a safetensors file.

    `latency_ms` is the compact model's time for a batch of 1,000 rows on the trial's device, and `notes` what a user
    should know of how the search went.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: TrialConfig
    valid: Metrics
    cost: Cost
    architecture: Architecture
    fingerprint: str
    best_epoch: int
    search_seconds: float
    retrain_seconds: float
    latency_ms: float
    notes: tuple[str, ...] = ()


def root_architecture(config: TrialConfig, dataset: Dataset) -> Architecture:
    """Every dim of every value of the dataset's fields, under the trial's backbone."""
    return Architecture.full(
        dataset.schema,
        dataset.counts,
        dim=config.embedding.dim,
        blocks=config.embedding.blocks,
        cut=config.embedding.cut,
        backbone=config.backbone,
    )


def run_trial(config: TrialConfig, dataset: Dataset, report: Report) -> tuple[TrialResult, Model]:
    """Runs a trial from the data to a retrained compact model.

    `report` is called after every epoch: {"search_epoch" or "warm_epoch": n, "stage": from 0, "search_valid_auc" or
    "warm_valid_auc": the supernet's, ...} while searching, and {"retrain_epoch": n, "valid_auc": ..., "valid_logloss":
    ..., "train_loss": ...} while retraining. Only the last kind carries `valid_auc`, so nothing compares the phases.
    Raises TrialError on a loss that is not finite and on memory that ran out.
    """
    (found,) = run_limits(config, [config.limit], dataset, report)
    return found


def run_limits(
    config: TrialConfig, limits: Sequence[Limit], dataset: Dataset, report: Report
) -> list[tuple[TrialResult, Model]]:
    """One search whose answer is read off within each of several limits; each architecture is retrained by itself.

    The results' configurations name the limit that they were found within.
    """
    try:
        return _run(config, limits, dataset, report)
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
) -> list[tuple[TrialResult, Model]]:
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    root = architecture = root_architecture(config, dataset)
    start = perf_counter()
    net, trained = None, None
    notes: list[str] = []
    for number, stage in enumerate(config.stages):
        if net is not None:
            width = net.config.width
            architecture = net.derive(None if width is None else uniform_budget(root, width))
        method = configure(stage)
        net = load(method.method).Supernet(dataset.schema, architecture, method, dataset.counts, config.seed).to(device)
        if isinstance(method, SearchConfig):
            if trained is not None and method.carry:
                net.receive(trained)
            trained = net
        told = partial(_staged, report, number)
        search(net, dataset, config.train, device=device, seed=config.seed, report=told, monitor=config.monitor)
        notes += [f"{method.method}: {note}" for note in net.notes]
    assert net is not None
    router = net.router
    teacher = distill.searched(config.train, net, dataset, device)
    inherits = isinstance(net.config, SearchConfig) and net.config.inherits
    recipe = net.config.inherit_train.of(config.train) if inherits else config.train
    answers: list[tuple[Limit, Architecture, Model | None]] = []
    for limit in limits:
        net.reopen()
        architecture = within(net, limit, root)
        answers.append((limit, architecture, net.compact(architecture) if inherits else None))
    # As large as all embeddings: none are held beside those that are retrained.
    net = trained = None
    teacher = teacher or prepared_teacher(config, dataset, device, report)
    teaches(teacher)
    searched = perf_counter() - start
    found = []
    for limit, architecture, start_from in answers:
        model, fitted = retrain(
            architecture, dataset, recipe, device, config.seed, report, start_from, router, config.monitor, teacher
        )
        cost = measure(model)
        result = TrialResult(
            config=config.model_copy(update={"limit": limit}),
            valid=fitted.valid,
            cost=cost,
            architecture=architecture.model_copy(update={"cost": cost}),
            fingerprint=dataset.fingerprint,
            best_epoch=fitted.epoch,
            search_seconds=searched,
            retrain_seconds=fitted.seconds,
            latency_ms=latency(model, dataset, device),
            notes=tuple(notes),
        )
        found.append((result, model))
    return found


def _staged(report: Report, stage: int, values: Mapping[str, float]) -> None:
    report({**values, "stage": stage})


def within(net: Supernet, limit: Limit, root: Architecture) -> Architecture:
    """What a net derives within a limit; SpaceError if even its smallest answer takes too many bytes."""
    budget = limit.resolve(root)
    if limit.bytes is None:
        return net.derive(budget)
    budget = min(budget or limit.bytes, limit.bytes // 4)
    while True:
        # A parameter is four bytes, and with the fewer come fewer inputs of the tower: a few rounds settle it.
        architecture = net.derive(budget)
        over = cost_of(architecture).bytes - limit.bytes
        if over <= 0:
            return architecture
        budget -= -(-over // 4)
        if budget < 1:
            raise SpaceError(
                f"budget.bytes must hold the backbone and one dim, but {limit.bytes:,} are {over:,} too few for "
                f"{architecture.backbone['name']}: raise it, or make backbone.hidden smaller"
            )
        net.reopen()


@torch.no_grad()
def latency(model: Model, dataset: Dataset, device: torch.device) -> float:
    """Milliseconds that a model takes for 1,000 rows, the median of 15 calls after one to warm up."""
    ids = torch.from_numpy(dataset.ids("valid")[:_LATENCY_ROWS])
    ids = ids.repeat(-(-_LATENCY_ROWS // len(ids)), 1)[:_LATENCY_ROWS].to(device)
    model.eval()
    times = []
    for _ in range(16):
        start = perf_counter()
        model(ids).sum().item()
        times.append((perf_counter() - start) * 1e3)
    return statistics.median(times[1:])


def retrain(
    architecture: Architecture,
    dataset: Dataset,
    train: TrainConfig,
    device: torch.device,
    seed: int,
    report: Report,
    model: Model | None = None,
    router: Router | None = None,
    monitor: Monitor = "valid_auc",
    teacher: Teacher | None = None,
) -> tuple[Model, Fit]:
    """Trains the compact model of an architecture, from `model`'s weights if given; (model, Fit).

    The weights of the epoch with the best `monitor` on valid are kept. With a `teacher` it learns from that as well.
    Clusters need a `router` as the search fitted it: it is no weight that training finds.
    """
    if model is None:
        torch.manual_seed(seed)
        model = build_model(dataset.schema, architecture).to(device)
        if isinstance(model, RoutedModel) and model.router is not None:
            assert router is not None
            model.router.load_state_dict(router.state_dict())

    def prefixed(values: Mapping[str, float]) -> None:
        report({("retrain_epoch" if name == "epoch" else name): value for name, value in values.items()})

    fitted = fit(model, dataset, train, device=device, seed=seed, report=prefixed, monitor=monitor, teacher=teacher)
    if isinstance(model, RoutedModel) and model.calibration is not None:
        fitted = replace(fitted, valid=calibrate(model, dataset, device))
    return model, fitted


def prepared_teacher(config: TrialConfig, dataset: Dataset, device: torch.device, report: Report) -> Teacher | None:
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


def calibrate(model: RoutedModel, dataset: Dataset, device: torch.device) -> Metrics:
    """Fits the scale and shift of each cluster's logits on valid (Platt 1999); the metrics there with them.

    A cluster whose valid rows are of one class keeps its logits.
    """
    from sklearn.linear_model import LogisticRegression

    assert model.router is not None
    assert model.calibration is not None
    labels = dataset.labels("valid")
    cluster = np.concatenate([model.router(ids).cpu().numpy() for ids, _ in batches(dataset, "valid", 16384, device)])
    p = predict(model, dataset, "valid", device).astype(np.float64).clip(1e-7, 1 - 1e-7)
    logits = np.log(p / (1 - p))
    for number in range(len(model.models)):
        rows = cluster == number
        if len(np.unique(labels[rows])) == 2:
            line = LogisticRegression(C=1e6).fit(logits[rows, None], labels[rows])
            model.calibration[:, number] = torch.tensor([line.coef_[0, 0], line.intercept_[0]])
    return evaluate(labels, predict(model, dataset, "valid", device))


def check(config: Mapping[str, Any]) -> TrialConfig:
    """A validated TrialConfig, its stages and backbone included; SpaceError names the first rule broken."""
    try:
        trial = TrialConfig.model_validate(dict(config))
    except ValidationError as error:
        raise SpaceError(first_line(error)) from None
    base.configure(trial.backbone)
    for stage in trial.stages:
        method = configure(stage)
        if isinstance(method, SearchConfig):
            method.recipes(trial.train)
        searches = isinstance(method, SearchConfig)
        if load(method.method).Supernet.makes_pairs:
            base.require_pairs(str(trial.backbone["name"]), method.method)
    distill.require_searched(trial.train, method.method, searches)
    return trial
