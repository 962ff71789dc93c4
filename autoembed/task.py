"""What a study predicts: loss, link, metrics with their directions, and when a search is hopeless.

Clicks are in `autoembed.clicks`, ratings in `autoembed.ratings`, clicks ranked within groups in `autoembed.rankings`,
several classes in `autoembed.multiclass`. Another task is another such file, its class in `TASKS`, and a name for
`data.task`; `DataSpec.predicts` and
`FeatureSchema.task` say which one it is. No other module names a metric or a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import TYPE_CHECKING, Annotated, Protocol

import polars as pl
from pydantic import AfterValidator

from autoembed.clicks import BinaryClicks
from autoembed.errors import SpaceError, unknown
from autoembed.metrics import Metric, Metrics
from autoembed.multiclass import Multiclass
from autoembed.rankings import Rankings
from autoembed.ratings import Ratings
from autoembed.types import Array

if TYPE_CHECKING:
    from torch import Tensor

# Torch is imported where tensors come in: a ranking needs the rest of a task and starts without it.


class Task(Protocol):
    """How logits become predictions, what they are trained by, and how they are judged.

    Labels are float, logits and predictions are of the same rows. Everything is numpy [N], but for torch tensors in
    `loss`, `distil` and `link`. Logits and predictions of C classes are [N, C] wherever they are [N] here, and their
    changes [N, O, C]. `weights` say how often each row counts, once by default. Only their ratios matter, but
    in `loss` and `distil`, whose mean is over rows: there the weights of all rows that are trained on have a mean of 1;
    and in metrics of the first rows of a group, where a row takes as many places as it weighs.

    Attributes:
        name: as a `data:` section would say it.
        metrics: the first one tells whether anything was learnt.
        grouped: the metrics that there are beside these where rows have groups (data.group).
        objective: the metric that a study optimises where its space names none.
        criterion: the metric that training lowers: the mean of `losses`, in units of the label if it has some.
        unit: what 1 in logits is in predictions that have units, else 1; `train.min_gain` counts in it.
        pairwise: the share that pairs of rows have in the loss by default (`PairwiseLoss`); 0 if there are no pairs.
        outputs: logits of a row: one for each of several classes, else 1.
    """

    @property
    def name(self) -> str: ...
    @property
    def metrics(self) -> tuple[Metric, ...]: ...
    @property
    def grouped(self) -> tuple[Metric, ...]: ...
    @property
    def objective(self) -> Metric: ...
    @property
    def criterion(self) -> Metric: ...
    @property
    def unit(self) -> float: ...
    @property
    def pairwise(self) -> float: ...
    @property
    def outputs(self) -> int: ...

    def check_split(self, split: str, counted: pl.DataFrame, name: str) -> list[str]:
        """What to know of the labels of a split; DataError if nothing can be learnt or measured there.

        `counted` has a row for each `label` with its `count` of rows, `name` is the name of the label's column.
        """

    def classes(self, labels: Array) -> Array:
        """The class of each row, 0 or 1, uint8 [N]: by these columns are ranked."""

    def strata(self, labels: Array) -> Array:
        """What splits are stratified by: uint8 [N]."""

    def of_class_one(self, label: pl.Expr) -> pl.Expr:
        """The same of a column of labels, Int64."""

    @property
    def classes_are(self) -> str | None:
        """What the classes are, in words, where they are not the labels themselves."""

    def check_recipe(
        self, positive_weight: float, negative_sampling: float, pairwise_weight: float | None = None
    ) -> None:
        """SpaceError if a training's recipe is of another task."""

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        positive_weight: float = 1.0,
        reduction: str = "mean",
        weights: Tensor | None = None,
    ) -> Tensor:
        """The loss of logits [B], or [B, K] of an ensemble's K; a click counts `positive_weight` times.

        The mean is over B rows, whatever their weights [B] are.
        """

    def shift_of(self, share: float) -> float:
        """What logits of all rows differ by from those of a sample with a `share` of the rows of class 0."""

    def distil(self, logits: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
        """The loss of logits [B] or [B, K] against a teacher's [B]."""

    def link(self, logits: Tensor) -> Tensor:
        """The predictions that logits mean."""

    def unlink(self, predictions: Array) -> Array:
        """The logits that predictions mean, float64 [N]."""

    def measurable(self, labels: Array) -> bool:
        """Whether the metrics are defined on these labels."""

    def evaluate(
        self, labels: Array, predictions: Array, weights: Array | None = None, groups: Array | None = None
    ) -> Metrics:
        """The metrics, those of `grouped` too if rows have groups, int [N], below 0 for none.

        DataError if they are not defined.
        """

    def told_within(
        self, labels: Array, predictions: Array, groups: Array, group: str, weights: Array | None = None
    ) -> str:
        """The metrics of `grouped` in words, as those within the values of a column `group`.

        DataError if one is defined in no group.
        """

    def error(self, value: float, labels: Array, weights: Array | None = None, groups: Array | None = None) -> float:
        """The standard error of a value of the first metric, by the rows alone: with weights, the effective ones.

        A first metric within groups needs the rows' `groups`.
        """

    def hopeless(
        self, value: float, labels: Array, weights: Array | None = None, groups: Array | None = None
    ) -> float | None:
        """The bound that a search must beat by now, if its best `value` of the first metric on valid does not."""

    def losses(self, labels: Array, logits: Array) -> Array:
        """The loss of each row, whatever its weight."""

    def rises(self, labels: Array, logits: Array, changes: Array) -> Array:
        """How much each row's loss rises when its logit [N, 1] changes by each of [N, O], quickly: float32 [N, O]."""

    def calibration(self, labels: Array, logits: Array, weights: Array | None = None) -> tuple[float, float]:
        """The scale and shift of logits with the least mean loss."""

    def line(self, labels: Array, predictions: Array, weights: Array | None = None) -> tuple[float, float] | None:
        """The scale and shift that a cluster's logits get, from its predictions on valid; None if they stay."""

    def compare(
        self, labels: Array, logits: Array, weights: Array | None = None
    ) -> Callable[[Array], dict[str, float]]:
        """What other logits of the same rows would be worse by, as a function of these.

        Of each metric NAME it gives NAME_rise or NAME_fall, above 0 if worse, and NAME_se, the standard error, paired
        over rows.
        """


CLICKS = BinaryClicks()
RATINGS = Ratings()
RANKINGS = Rankings()
MULTICLASS = Multiclass()
TASKS: tuple[Task, ...] = (CLICKS, RATINGS, RANKINGS, MULTICLASS)
# Clicks and rankings share metrics: their names are of clicks, which come last.
_KNOWN = {metric.name: (metric, task) for task in (*TASKS, CLICKS) for metric in (*task.metrics, *task.grouped)}
_TITLES = {metric.name: metric.title for task in TASKS for metric in (*task.metrics, *task.grouped, task.criterion)}


def task_named(name: str) -> Task:
    """The task that a `data:` section names."""
    return next(task for task in TASKS if task.name == name)


def metric_of(monitor: str) -> Metric:
    """The metric of a name such as valid_auc or test_auc; SpaceError if no task has it."""
    return _named(monitor)[0]


def task_of(monitor: str) -> Task:
    """The task whose metric a name such as valid_auc is of, clicks for those of rankings; SpaceError if none is."""
    return _named(monitor)[1]


def _named(monitor: str) -> tuple[Metric, Task]:
    split, _, name = monitor.partition("_")
    if name not in _KNOWN:
        raise SpaceError(unknown("metric", monitor, [f"{split}_{known}" for known in _KNOWN]))
    return _KNOWN[name]


def metric_in(task: Task, monitor: str | None, group: str | None = None) -> Metric:
    """The metric of `task` that training follows, its default objective without a name.

    SpaceError if it is another task's, or one within groups while the data have no `group`.
    """
    names = {metric.monitor: metric for metric in (*task.metrics, *task.grouped)}
    if monitor is None:
        return task.objective
    if monitor not in names and any(monitor == metric.monitor for metric, _ in _KNOWN.values()):
        raise SpaceError(
            f"{titled(monitor)} is a metric of {task_of(monitor).name}, but data.task is {task.name}: choose "
            f"{' or '.join(metric.monitor for metric in task.metrics)}"
        )
    if monitor not in names:
        raise SpaceError(unknown("metric", monitor, list(names)))
    if names[monitor] in task.grouped and group is None:
        raise SpaceError(
            f"{titled(monitor)} is a metric within groups: set data.group to a column such as user_id, or choose "
            f"{titled(task.metrics[0].monitor)}"
        )
    return names[monitor]


def titled(name: str) -> str:
    """A name such as valid_auc as people read it: valid AUC; test_auc.is_like is test AUC of is_like."""
    first, _, rest = name.partition("_")
    metric, _, label = rest.partition(".")
    if metric not in _TITLES:
        return name.replace("_", " ")
    return f"{first} {_TITLES[metric]} of {label}" if label else f"{first} {_TITLES[metric]}"


def of_labels(names: Iterable[str], *splits: str) -> list[str]:
    """Those of these names that are of auxiliary labels' metrics on these splits, such as test_auc.is_like."""
    return [name for name in names if "." in name and name.partition("_")[0] in splits]


def columns(task: Task, *splits: str, there: Container[str] = ()) -> dict[str, Metric]:
    """The columns in which the metrics of these splits stand in a table; those within groups if they are `there`."""
    every = {f"{split}_{metric.name}": metric for split in splits for metric in (*task.metrics, *task.grouped)}
    return {name: metric for name, metric in every.items() if metric in task.metrics or name in there}


def present(task: Task, found: Iterable[Metrics | None]) -> tuple[Metric, ...]:
    """The metrics of a task, those within groups if any that were found have them."""
    names = {name for metrics in found if metrics is not None for name in metrics.names}
    return (*task.metrics, *(metric for metric in task.grouped if metric.name in names))


def under(split: str, metrics: Metrics | None) -> dict[str, float]:
    """Metrics under the names of these columns; nothing if there are none."""
    return {} if metrics is None else {f"{split}_{name}": value for name, value in metrics.items()}


def told(metrics: Metrics, split: str = "") -> str:
    """Metrics in words, such as "test AUC 0.7012, test logloss 0.4310"."""
    return ", ".join(f"{titled(name)} {value:.4f}".lstrip() for name, value in under(split, metrics).items())


def _known_monitor(name: str) -> str:
    known = [metric.monitor for metric, _ in _KNOWN.values()]
    if name not in known:
        raise ValueError(f"must be one of {', '.join(known)}, but got {name!r}")
    return name


def _whole(metrics: Metrics) -> Metrics:
    kinds = [tuple(metric.name for metric in task.metrics) for task in TASKS]
    more = [(*own, *(metric.name for metric in task.grouped)) for own, task in zip(kinds, TASKS, strict=True)]
    names = metrics.names
    # Earlier commits stored only the first of the metrics within groups.
    if not any(names == whole[: max(len(names), len(own))] for own, whole in zip(kinds, more, strict=True)):
        known = " or ".join(dict.fromkeys(map(", ".join, (*kinds, *more))))
        raise ValueError(f"must have the metrics {known}, but has {', '.join(names)}")
    return metrics


# In stored formats: a metric on valid by its name, and all metrics of a task, with those within groups or without.
Monitor = Annotated[str, AfterValidator(_known_monitor)]
TaskMetrics = Annotated[Metrics, AfterValidator(_whole)]
