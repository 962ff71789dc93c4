"""Clicks: labels 0 and 1; cross-entropy, AUC and logloss, and within groups GAUC, NDCG@10 and HR@10."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from autoembed.errors import DataError, SpaceError
from autoembed.metrics import (
    GroupedRows,
    Metric,
    Metrics,
    auc_error,
    effective_rows,
    evaluate,
    log_losses,
    mean_and_error,
    placements,
    scale_and_shift,
)
from autoembed.types import Array, Bools, Floats

if TYPE_CHECKING:
    from torch import Tensor

_ERRORS, _ABOVE = 3, 0.02
_LEAST, _FEW = 2, 30  # rows of each class that a split must and should have
_TINY = 1e-12
_TOP = 10  # rows of a group that a user would see

AUC = Metric(name="auc", title="AUC", rises=True)
LOGLOSS = Metric(name="logloss", title="logloss", rises=False)
GAUC = Metric(name="gauc", title="GAUC", rises=True)
NDCG = Metric(name=f"ndcg_{_TOP}", title=f"NDCG@{_TOP}", rises=True)
HITS = Metric(name=f"hit_{_TOP}", title=f"HR@{_TOP}", rises=True)


class BinaryClicks:
    """Labels 0 and 1: cross-entropy, a sigmoid, AUC and logloss."""

    name = "clicks"
    metrics: tuple[Metric, ...] = (AUC, LOGLOSS)
    # What earlier commits stored has the first of these, so that new ones come last.
    grouped: tuple[Metric, ...] = (GAUC, NDCG, HITS)
    objective = AUC
    criterion = LOGLOSS
    unit = 1.0
    pairwise = 0.0
    outputs = 1

    def check_split(self, split: str, counted: pl.DataFrame, name: str) -> list[str]:
        rows = int(counted["count"].sum())
        if counted.height < 2:
            raise DataError(
                f"label {name!r} must have both classes in {split}, but all {rows} rows are {counted['label'][0]}: "
                "change data.split (stratify: true gives each split its share), or the files"
            )
        rare, least = counted.sort("count").row(0)
        if least < _LEAST:
            raise DataError(
                f"{split} has {least} of {rows:,} rows with label {rare}, and must have {_LEAST}: set "
                "data.split.stratify: true, or give valid and test more rows"
            )
        if split != "train" and least < _FEW:
            return [f"{split} has only {least} rows with label {rare}: differences of AUC are mostly chance there"]
        return []

    def classes(self, labels: Array) -> Array:
        return (labels > 0.5).astype(np.uint8)

    def strata(self, labels: Array) -> Array:
        return self.classes(labels)

    def of_class_one(self, label: pl.Expr) -> pl.Expr:
        return label.cast(pl.Int64)

    @property
    def classes_are(self) -> str | None:
        return None

    def check_recipe(
        self, positive_weight: float, negative_sampling: float, pairwise_weight: float | None = None
    ) -> None:
        check_pointwise(self.name, pairwise_weight)

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        positive_weight: float = 1.0,
        reduction: str = "mean",
        weights: Tensor | None = None,
    ) -> Tensor:
        from torch.nn import functional

        if logits.dim() == 2:
            labels = labels.unsqueeze(1).expand_as(logits)
            weights = None if weights is None else weights.unsqueeze(1).expand_as(logits)
        click = None if positive_weight == 1 else logits.new_tensor(positive_weight)
        return functional.binary_cross_entropy_with_logits(
            logits, labels, weight=weights, pos_weight=click, reduction=reduction
        )

    def shift_of(self, share: float) -> float:
        return -math.log(share)  # the odds of a click in the sample are 1 / share times those of all rows

    def distil(self, logits: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
        return self.loss(logits, self.link(teacher), weights=weights)

    def link(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()

    def unlink(self, predictions: Array) -> Array:
        chances = np.clip(predictions.astype(np.float64), _TINY, 1 - _TINY)
        logits: Array = np.log(chances / (1 - chances))
        return logits

    def measurable(self, labels: Array) -> bool:
        return len(labels) > 0 and bool(labels.min() != labels.max())

    def evaluate(
        self, labels: Array, predictions: Array, weights: Array | None = None, groups: Array | None = None
    ) -> Metrics:
        found = evaluate(labels, predictions, weights)
        if groups is None:
            return found
        some = groups >= 0
        own = None if weights is None else weights[some]
        rows = GroupedRows(labels[some], predictions[some], groups[some], own)
        values = (rows.auc()[0], *rows.top(_TOP)[:2])
        return Metrics(found.root | {one.name: value for one, value in zip((GAUC, NDCG, HITS), values, strict=True)})

    def told_within(
        self, labels: Array, predictions: Array, groups: Array, group: str, weights: Array | None = None
    ) -> str:
        rows = GroupedRows(labels, predictions, groups, weights)
        (area, both), (ndcg, hits, clicked) = rows.auc(), rows.top(_TOP)
        return (
            f"AUC within {group} {area:.4f} ({both:,} groups with both labels), {NDCG.title} {ndcg:.4f} and "
            f"{HITS.title} {hits:.4f} ({clicked:,} with a click)"
        )

    def error(self, value: float, labels: Array, weights: Array | None = None, groups: Array | None = None) -> float:
        ones = labels > 0
        if weights is not None:
            return auc_error(value, effective_rows(weights[ones]), effective_rows(weights[~ones]))
        return auc_error(value, clicks := int(ones.sum()), len(labels) - clicks)

    def hopeless(
        self, value: float, labels: Array, weights: Array | None = None, groups: Array | None = None
    ) -> float | None:
        # So many standard errors above chance, but where valid is small no more than _ABOVE.
        bound = 0.5 + min(_ERRORS * self.error(value, labels, weights, groups), _ABOVE)
        return bound if value <= bound else None

    def losses(self, labels: Array, logits: Array) -> Array:
        return log_losses(labels, logits)

    def rises(self, labels: Array, logits: Array, changes: Array) -> Array:
        import torch
        from torch.nn import functional

        # torch's softplus in 32 bits takes a twentieth of numpy's logaddexp in 64.
        answers, own, moves = map(torch.from_numpy, (labels, logits, changes))
        rise = functional.softplus(own + moves).sub_(functional.softplus(own)).addcmul_(answers, moves, value=-1)
        return np.asarray(rise.numpy())

    def calibration(self, labels: Array, logits: Array, weights: Array | None = None) -> tuple[float, float]:
        return scale_and_shift(labels, logits, weights)

    def line(self, labels: Array, predictions: Array, weights: Array | None = None) -> tuple[float, float] | None:
        from sklearn.linear_model import LogisticRegression

        if weights is not None:
            labels, predictions, weights = (part[weights > 0] for part in (labels, predictions, weights))
        if len(np.unique(labels)) != 2:
            return None
        p = predictions.astype(np.float64).clip(1e-7, 1 - 1e-7)
        fitted = LogisticRegression(C=1e6).fit(np.log(p / (1 - p))[:, None], labels, weights)
        return float(fitted.coef_[0, 0]), float(fitted.intercept_[0])

    def compare(
        self, labels: Array, logits: Array, weights: Array | None = None
    ) -> Callable[[Array], dict[str, float]]:
        ones = labels == 1
        loss, placed = _losses(logits, ones), placements(logits, ones, weights)
        of_ones, of_zeros = (None if weights is None else weights[own] for own in (ones, ~ones))

        def compared(other: Array) -> dict[str, float]:
            rise, fall = _losses(other, ones) - loss, placed - placements(other, ones, weights)
            mean, error = mean_and_error(rise, weights)
            down, error_of_ones = mean_and_error(fall[ones], of_ones)
            error_of_zeros = mean_and_error(fall[~ones], of_zeros)[1]
            return {
                "logloss_rise": mean,
                "logloss_se": error,
                "auc_fall": down,
                "auc_se": math.hypot(error_of_ones, error_of_zeros),
            }

        return compared


def check_pointwise(task: str, pairwise_weight: float | None) -> None:
    """SpaceError if a training's recipe has a pairwise loss, which the task does not have."""
    if pairwise_weight is not None:
        raise SpaceError(
            f"train.pairwise_weight is of data.task: ranking, but data.task is {task}, and got {pairwise_weight:g}: "
            "set data.task: ranking with data.group, or leave it out"
        )


def _losses(logits: Array, ones: Bools) -> Floats:
    losses: Floats = np.logaddexp(0.0, np.where(ones, -logits, logits))
    return losses
