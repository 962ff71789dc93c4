"""Training of a click model: Adam, early stop by the objective on valid, the best epoch's weights kept."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from inspect import unwrap
from time import perf_counter
from typing import Annotated, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from autoembed.auxiliary import AuxiliaryLosses, StopBy, auxiliary_metrics, check_stopping, logits_of
from autoembed.batches import RowWeights, batches, sampled
from autoembed.data.dataset import Dataset
from autoembed.data.spec import Split
from autoembed.errors import SpaceError, TrialError, first_line
from autoembed.events import EpochEnd, EpochReport
from autoembed.fast import takes
from autoembed.knot_rows import KnotRows, NumberFunctions, knot_rows
from autoembed.metrics import Metric, Metrics
from autoembed.nn.model import ClickModel
from autoembed.pairwise import PairwiseLoss
from autoembed.shuffle import RowOrder
from autoembed.task import metric_in
from autoembed.types import Array


class TeacherEnsemble(BaseModel):
    """A teacher made of so many models of the root's full width."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ensemble: int = Field(ge=1)


class Distill(BaseModel):
    """Distillation: a retrained model learns from a teacher beside the labels.

    Args:
        teacher: `search` (the trial's last supernet after its search), the folder of a bundle, or {ensemble: N}.
        weight: the teacher's share of the loss, 0 to 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: TeacherEnsemble | str
    weight: float = Field(default=0.5, ge=0, le=1)


LossWeight = Annotated[float, Field(ge=0)]


class TrainConfig(BaseModel):
    """The recipe of one training.

    An epoch counts as better if its metric on valid (AUC or logloss, by the study's objective) is at least `min_gain`
    better than that of the last epoch that counted; of ratings, in standard deviations of train's labels.

    Args:
        epochs: how many at most.
        lr: learning rate of Adam.
        batch_size: rows per step.
        l2: weight of half the squared norm of the whole embedding table, applied at every step as FuxiCTR does.
        patience: training stops after so many epochs in a row that are not better.
        decay: multiplies the learning rate after an epoch that is not better.
        anneal: the learning rate also falls evenly to 0 over all epochs.
        min_gain: see above.
        clip: bound of the gradient's norm.
        positive_weight: how often a click counts; auxiliary labels have no such weight.
        auxiliary_weights: what the losses of `data.auxiliary_labels` are multiplied by beside that of the label: one
            number, numbers by label, 1 for those that are not named, or `uncertainty`, which learns them. A label of
            weight 0 trains its own tower alone.
        stop_by: what decides which epoch is kept, and when training stops: the metric of the label (`label`), or its
            mean over the label and the auxiliary ones (`all_labels`).
        negative_sampling: the share of the rows without a click that each epoch draws at random. The loss corrects
            the logits for it, so predictions are those of all rows.
        pairwise_weight: with `data.task: ranking`, the share that pairs of rows of a group have in the loss, 0 to 1
            (0.5 by default). At 1 predictions are scores and no probabilities.
        sparse: update only the rows of a batch (SparseAdam), for tables that are too large to touch at every step.
        precision: of the forward pass on CUDA.
        compile: run the model through torch.compile.
        distill: the teacher of a retrained model; searches have none.
        quantise: how a model with fewer than 32 bits gets its numbers: `round` after training, or `aware`, which trains
            on with rounded lookups and keeps that where it is better. `none` refuses such an architecture.
        numbers: the functions that embed numbers, where `data.numeric_embedding` is periodic or soft_bins.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=10, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    batch_size: int = Field(default=4096, ge=2)
    l2: float = Field(default=0.0, ge=0)
    patience: int = Field(default=2, ge=1)
    decay: float = Field(default=1.0, gt=0, le=1)
    anneal: bool = False
    min_gain: float = Field(default=1e-4, ge=0)
    clip: float | None = Field(default=None, gt=0)
    positive_weight: float = Field(default=1.0, gt=0)
    auxiliary_weights: Literal["uncertainty"] | LossWeight | dict[str, LossWeight] = 1.0
    stop_by: StopBy = "label"
    negative_sampling: float = Field(default=1.0, gt=0, le=1)
    pairwise_weight: float | None = Field(default=None, ge=0, le=1)
    sparse: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    quantise: Literal["none", "round", "aware"] = "aware"
    distill: Distill | None = None
    numbers: NumberFunctions = NumberFunctions()

    @model_validator(mode="after")
    def _l2_reaches_every_row(self) -> TrainConfig:
        if self.sparse and self.l2:
            raise ValueError(f"l2 moves every row at every step, so with sparse it must be 0, but got {self.l2:g}")
        return self


class PhaseTrain(BaseModel):
    """Keys of `train` that one phase of a stage overrides; a key that is not set is as in `train`.

    The number of epochs of a phase is an option of the stage.

    Args:
        lr: replaces the learning rate.
        lr_factor: multiplies it instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: float | None = Field(default=None, gt=0)
    lr_factor: float | None = Field(default=None, gt=0)
    batch_size: int | None = Field(default=None, ge=2)
    l2: float | None = Field(default=None, ge=0)
    patience: int | None = Field(default=None, ge=1)
    decay: float | None = Field(default=None, gt=0, le=1)
    anneal: bool | None = None
    min_gain: float | None = Field(default=None, ge=0)
    clip: float | None = Field(default=None, gt=0)
    positive_weight: float | None = Field(default=None, gt=0)
    negative_sampling: float | None = Field(default=None, gt=0, le=1)
    sparse: bool | None = None

    @model_validator(mode="after")
    def _one_learning_rate(self) -> PhaseTrain:
        if self.lr is not None and self.lr_factor is not None:
            raise ValueError(f"set lr or lr_factor, but got lr={self.lr:g} and lr_factor={self.lr_factor:g}")
        return self

    def of(self, train: TrainConfig) -> TrainConfig:
        """The recipe of the phase; SpaceError if what it changes breaks one of the recipe's rules."""
        changed = self.model_dump(exclude_none=True)
        if factor := changed.pop("lr_factor", None):
            changed["lr"] = train.lr * factor
        try:
            return TrainConfig.model_validate({**train.model_dump(), **changed})
        except ValidationError as error:
            raise SpaceError(first_line(error)) from None


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The best epoch, its valid metrics, and the seconds spent."""

    epoch: int
    valid: Metrics
    seconds: float


class Plateau:
    """Follows a metric on valid from epoch to epoch: which epoch is the best, and how many have gained too little.

    The best epoch is the one with the best metric, by however little, the earliest of equals. An epoch *counts* if it
    is at least `min_gain` better than the last one that counted, so small gains add up; the first one always counts.

    Attributes:
        best: the metrics of the best epoch.
        epoch: its number; 0 before there is one.
        idle: epochs since the last one that counted.
    """

    def __init__(self, metric: Metric, min_gain: float) -> None:
        self.metric, self.min_gain = metric, min_gain
        self.best: Metrics | None = None
        self.epoch = self.idle = 0
        self.mark = self.figure = -math.inf

    def see(self, epoch: int, valid: Metrics, others: Iterable[Metrics] = ()) -> bool:
        """Takes an epoch's metrics; whether it is the best so far, in the mean over these and `others`."""
        figure = statistics.fmean(self.metric.figure(one) for one in (valid, *others))
        counts = figure > self.mark and figure - self.mark >= self.min_gain
        if counts:
            self.mark = figure
        self.idle = 0 if counts else self.idle + 1
        if self.best is not None and figure <= self.figure:
            return False
        self.best, self.epoch, self.figure = valid, epoch, figure
        return True


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Logits of the rows of train, float32 [N], or [N, C] of classes, and their share of the loss."""

    logits: Array
    weight: float


def pick_device(name: str) -> torch.device:
    """The torch device for "auto", "cpu", "cuda" or "cuda:1"; SpaceError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SpaceError(f"device must be auto, cpu, cuda or cuda:N, but got {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SpaceError(f"device {name!r} is not available here: use auto or cpu")
    return device


class _PlainOptimiser(torch.optim.Optimizer):
    """torch's own without its wrappers, which import torch's compiler: 65 MiB and two seconds of each process."""

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)


class Adam(_PlainOptimiser, torch.optim.Adam):
    step = torch.no_grad()(unwrap(torch.optim.Adam.step))


class SparseAdam(_PlainOptimiser, torch.optim.SparseAdam):
    pass


class Optimiser:
    """Adam on a model's weights, with the recipe's regulariser, clipping, sparse tables and functions of numbers."""

    def __init__(
        self,
        model: ClickModel,
        weights: Iterable[nn.Parameter],
        config: TrainConfig,
        knots: Sequence[KnotRows] = (),
    ) -> None:
        tables = {id(table) for table in model.embedding_weights()}
        weights = list(weights)
        self.knots = knots
        weights += [parameter for rows in knots for parameter in rows.parameters()]
        self.tables = [weight for weight in weights if id(weight) in tables]
        self.l2, self.clip = config.l2, config.clip
        self.weights = weights
        dense = [weight for weight in weights if not (config.sparse and id(weight) in tables)]
        self.parts: list[torch.optim.Optimizer] = []
        fast = takes("optimisers")
        if dense:
            self.parts.append((Adam if fast else torch.optim.Adam)(dense, lr=config.lr, fused=True))
        if config.sparse and self.tables:
            self.parts.append((SparseAdam if fast else torch.optim.SparseAdam)(self.tables, lr=config.lr))

    def regularise(self) -> None:
        """Adds the gradient of l2/2 |table|^2, in one pass over the table: autograd would take three."""
        for table in self.tables:
            if table.grad is not None:  # a cluster's table that no row of the batch went to has none
                table.grad.add_(table.detach(), alpha=self.l2)

    def step(self) -> None:
        """Moves the weights by their gradients and drops these."""
        if self.l2:
            self.regularise()
        for rows in self.knots:
            rows.pull()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.weights, self.clip)
        for part in self.parts:
            part.step()
            part.zero_grad(set_to_none=True)
        for rows in self.knots:
            rows.write()

    def scale_lr(self, factor: float) -> None:
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] *= factor


def check_finite(loss: Tensor, lr: float, where: str) -> float:
    """The loss as a float; TrialError if it is not finite."""
    value = loss.item()
    if not math.isfinite(value):
        raise TrialError(f"the loss must be finite, but got {value} in {where} with lr={lr:g}: lower train.lr")
    return value


@torch.no_grad()
def predict(model: nn.Module, dataset: Dataset, split: Split, device: torch.device, size: int = 16384) -> Array:
    """Predictions of a split, such as click probabilities: float32 [N], or [N, C] of classes."""
    model.eval()
    link = dataset.task.link
    parts = [link(model(ids).float()).cpu() for ids, _ in batches(dataset, split, size, device)]
    predictions: Array = torch.cat(parts).numpy()
    return predictions


def metrics_of(predictions: Array, dataset: Dataset, split: Split) -> Metrics:
    """The metrics of predictions of a split, float [N] or [N, C], weighted as its rows are, and within their groups."""
    weights, groups = dataset.weights(split), dataset.groups(split)
    return dataset.task.evaluate(dataset.labels(split), predictions, weights, groups)


def metrics_on(model: nn.Module, dataset: Dataset, split: Split, device: torch.device) -> Metrics:
    """Metrics on a split."""
    return metrics_of(predict(model, dataset, split, device), dataset, split)


def on_valid(model: nn.Module, dataset: Dataset, device: torch.device, lr: float, where: str) -> Metrics:
    """Metrics on valid; TrialError if the predictions are not finite."""
    return metrics_of(finite_on_valid(model, dataset, device, lr, where), dataset, "valid")


def finite_on_valid(model: nn.Module, dataset: Dataset, device: torch.device, lr: float, where: str) -> Array:
    """Predictions of valid, float32 [N] or [N, C]; TrialError if they are not finite."""
    predictions = predict(model, dataset, "valid", device)
    if not np.isfinite(predictions).all():
        raise TrialError(f"predictions must be finite, but {where} gave NaN: lower train.lr={lr:g}")
    return predictions


class Keeper(Protocol):
    """Judges a model after each epoch in place of the best epoch on valid."""

    def see(self, epoch: int) -> Metrics:
        """Judges an epoch; its metrics on valid. The model goes on from the weights that it has."""

    def kept(self) -> tuple[int, Metrics, dict[str, Tensor]]:
        """The epoch whose weights stay, their metrics on valid, and the weights."""


def fit(
    model: ClickModel,
    dataset: Dataset,
    config: TrainConfig,
    *,
    device: torch.device,
    seed: int,
    report: EpochReport,
    rows: RowOrder | None = None,
    monitor: str | None = None,
    start: Metrics | None = None,
    teacher: Teacher | None = None,
    keeper: Keeper | None = None,
    fresh: bool = False,
) -> Fit:
    """Trains on the train split (or its `rows`) and leaves the weights of the epoch with the best `monitor`.

    `monitor` names a metric on valid, such as valid_auc; it is the task's first one by default. The earliest of equal
    epochs is kept, whatever `min_gain` says: it decides when the learning rate falls and when training stops, and not
    which epoch is kept. Rows count by their weights (`RowWeights`). With `start`, the metrics of the weights as they
    are, these are epoch 0 and stay if no epoch is better. With a `teacher`, its logits count as labels with their share
    of the loss; `positive_weight` is of the labels alone, since a teacher's logits have its own in them. Losses of the
    model's auxiliary labels are added (`AuxiliaryLosses`), and pairs of rows have their share where the task is of the
    order within groups (`PairwiseLoss`).

    A `keeper` judges epochs instead, and decides which one's weights stay; then all epochs are trained, whatever
    `patience` and `decay` say.

    The rows of numbers in `fresh` weights are given by functions of them, where the data have such
    (`data.numeric_embedding`); those of other weights train by themselves.

    TrialError if the loss is not finite. `report` gets an `EpochEnd` after each epoch, of the phase "retrain".
    """
    begin = perf_counter()
    taken = dataset.rows("train") if rows is None else rows
    model.sparse_gradients(config.sparse)
    knots = knot_rows(model, dataset, config.numbers) if fresh else ()
    optimiser = Optimiser(model, model.weight_parameters(), config, knots)
    forward = logits_of(model, compiled=config.compile)
    autocast = config.precision == "bfloat16" and device.type == "cuda"
    weights = RowWeights(dataset, taken)
    auxiliary = AuxiliaryLosses(
        model, dataset, taken, weights, config.auxiliary_weights, negative_sampling=config.negative_sampling
    )
    task, shift = dataset.task, dataset.task.shift_of(config.negative_sampling)
    task.check_recipe(config.positive_weight, config.negative_sampling, config.pairwise_weight)
    pairs = PairwiseLoss(dataset, taken, weights, config.pairwise_weight, device=device, seed=seed)
    taught_columns = () if teacher is None else (teacher.logits,)
    columns = (*weights.columns, *pairs.columns, *taught_columns, *auxiliary.columns)
    metric = metric_in(task, monitor, dataset.schema.group)
    check_stopping(model.auxiliary_labels, config.stop_by, metric)
    plateau, state = Plateau(metric, config.min_gain * task.unit), {}

    def others() -> Iterable[Metrics]:
        return () if config.stop_by == "label" else auxiliary_metrics(model, dataset, "valid", device).values()

    if start is not None and plateau.see(0, start, others()):
        state = copy_of(model)
    for epoch in range(1, config.epochs + 1):
        model.train()
        total = torch.zeros((), device=device)
        steps = 0
        drawn = sampled(dataset, taken, config.negative_sampling, [seed, 6, epoch])
        if config.negative_sampling < 1:
            weights.of_rows(drawn)
            pairs.of_rows(drawn)
        order = pairs.order(drawn, [seed, 0, epoch])
        least, per_epoch = min(2, len(order)), -(-len(order) // config.batch_size)
        for ids, labels, *told in batches(
            dataset, "train", config.batch_size, device, rows=order, least=least, columns=columns
        ):
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                both = forward(ids)
            logits, own = both[0].float(), weights.of(told)
            loss = task.loss(logits + shift, labels, config.positive_weight, weights=own)
            loss = pairs.total(loss, logits, labels, told)
            if teacher is not None:
                taught = task.distil(logits, told[len(weights.columns) + len(pairs.columns)], own)
                loss = (1 - teacher.weight) * loss + teacher.weight * taught
            loss = auxiliary.total(loss, both, told, own)
            loss.backward()
            optimiser.step()
            if config.anneal:
                left = (config.epochs - epoch + 1) * per_epoch - steps
                optimiser.scale_lr((left - 1) / left)
            total += loss.detach()
            steps += 1
        mean = check_finite(total / max(steps, 1), config.lr, f"epoch {epoch}")
        if keeper is not None:
            report(EpochEnd(epoch=epoch, loss=mean, valid=keeper.see(epoch)))
            continue
        valid = on_valid(model, dataset, device, config.lr, f"epoch {epoch}")
        report(EpochEnd(epoch=epoch, loss=mean, valid=valid))
        if plateau.see(epoch, valid, others()):
            state = copy_of(model)
        if plateau.idle >= config.patience:
            break
        if plateau.idle:
            optimiser.scale_lr(config.decay)
    if keeper is not None:
        number, valid, state = keeper.kept()
        model.load_state_dict(state)
        return Fit(epoch=number, valid=valid, seconds=perf_counter() - begin)
    assert plateau.best is not None
    model.load_state_dict(state)
    return Fit(epoch=plateau.epoch, valid=plateau.best, seconds=perf_counter() - begin)


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
