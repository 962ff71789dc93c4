"""Multiclass: labels of three classes or more, such as which action followed an impression; softmax and cross-entropy.

A model has a logit for each class, [N, C] in place of [N], and predictions are chances that sum to 1. Cross-entropy is
the first metric: it is defined whichever classes a split has, while macro AUC gives a class of thirty rows the say of
one of thirty thousand, and accuracy moves only where the likeliest class changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, model_validator

from autoembed.clicks import check_pointwise
from autoembed.errors import DataError, SpaceError
from autoembed.metrics import Metric, Metrics, class_aucs, effective_rows, mean_and_error, placements
from autoembed.types import Array, Bools, Floats

if TYPE_CHECKING:
    from torch import Tensor

LEAST, MOST = 3, 255  # classes; they are counted in bytes
_ERRORS, _BELOW = 3, 0.02
_FEW = 30  # rows of each class that a split should have
_SHOWN = 8
_TINY = 1e-12
_FAR, _LEAST = 80.0, 1e-37  # a difference whose exponential has 32 bits, and what has a logarithm there


class LabelClasses(BaseModel):
    """The classes of a label, in the order of the columns of predictions, and the rows of train that each has.

    `rows` are those that count; there are none before train is read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...] = Field(min_length=LEAST, max_length=MOST)
    rows: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _fit(self) -> LabelClasses:
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"classes must have different names, but got {list(self.names)}")
        if self.rows and len(self.rows) != len(self.names):
            raise ValueError(f"classes must have a number of rows each, but got {len(self.rows)} for {len(self.names)}")
        return self

    @property
    def cut(self) -> int:
        """The place of the class that divides train's rows most evenly from those of all others."""
        if not self.rows:
            return 0
        share = np.array(self.rows) / max(sum(self.rows), 1)
        return int(np.abs(share - 0.5).argmin())


class Multiclass:
    """Labels 0, 1, ... C - 1, the places of classes: softmax, cross-entropy, accuracy and macro AUC.

    Args:
        known: the classes; without them there are as few as there may be, and they have no names.
    """

    name = "multiclass"
    metrics = (
        Metric(name="cross_entropy", title="cross-entropy", rises=False),
        Metric(name="accuracy", title="accuracy", rises=True),
        Metric(name="macro_auc", title="macro AUC", rises=True),
    )
    grouped: tuple[Metric, ...] = ()
    objective = criterion = metrics[0]
    unit = 1.0
    pairwise = 0.0

    def __init__(self, known: LabelClasses | None = None) -> None:
        self.known = LabelClasses(names=tuple(map(str, range(LEAST)))) if known is None else known

    @property
    def outputs(self) -> int:
        return len(self.known.names)

    def check_split(self, split: str, counted: pl.DataFrame, name: str) -> list[str]:
        rows = np.bincount(counted["label"].to_numpy(), counted["count"].to_numpy(), self.outputs).astype(np.int64)
        absent = [one for one, count in zip(self.known.names, rows, strict=True) if not count]
        if split == "train" and absent:
            raise DataError(
                f"label {name!r} must have rows of each class in train, but has none of {_listed(absent)}: change "
                "data.split (stratify: true gives each split its share), or leave the rows of such classes out of the "
                "table"
            )
        if len(absent) > self.outputs - 2:
            raise DataError(
                f"label {name!r} must have rows of two classes in {split}, but all {rows.sum()} rows are of one: "
                "change data.split (stratify: true gives each split its share), or the files"
            )
        notes = []
        if absent:
            notes.append(f"{split} has no row of {_listed(absent)}: macro AUC there is the mean over the other classes")
        if few := [
            f"{one} ({count})" for one, count in zip(self.known.names, rows.tolist(), strict=True) if 0 < count < _FEW
        ]:
            notes.append(
                f"{split} has fewer than {_FEW} rows of {_listed(few)}: what is said of these is mostly chance"
            )
        return notes

    def classes(self, labels: Array) -> Array:
        return np.asarray(labels == self.known.cut, dtype=np.uint8)

    def strata(self, labels: Array) -> Array:
        return np.asarray(labels, dtype=np.uint8)

    def of_class_one(self, label: pl.Expr) -> pl.Expr:
        return (label == self.known.cut).cast(pl.Int64)

    @property
    def classes_are(self) -> str | None:
        return (
            f"the label has {self.outputs} classes: columns are ranked by what they say of whether it is "
            f"{self.known.names[self.known.cut]!r}, which divides the rows most evenly from all others"
        )

    def check_recipe(
        self, positive_weight: float, negative_sampling: float, pairwise_weight: float | None = None
    ) -> None:
        check_pointwise(self.name, pairwise_weight)
        for key, value in (("positive_weight", positive_weight), ("negative_sampling", negative_sampling)):
            if value != 1:
                raise SpaceError(
                    f"train.{key} is of clicks: with data.task: multiclass it must be 1, but got {value:g}; set "
                    "data.weight to a column that weighs rows of rare classes"
                )

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        positive_weight: float = 1.0,
        reduction: str = "mean",
        weights: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy of logits [B, C] in nats."""
        from torch.nn import functional

        return _reduced(functional.cross_entropy(logits, labels.long(), reduction="none"), reduction, weights)

    def shift_of(self, share: float) -> float:
        return 0.0

    def distil(self, logits: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
        losses = -(teacher.softmax(-1) * logits.log_softmax(-1)).sum(-1)
        return _reduced(losses, "mean", weights)

    def link(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1)

    def unlink(self, predictions: Array) -> Array:
        logits: Array = np.log(np.maximum(predictions.astype(np.float64), _TINY))
        return logits

    def measurable(self, labels: Array) -> bool:
        return len(labels) > 0 and bool(labels.min() != labels.max())

    def evaluate(
        self, labels: Array, predictions: Array, weights: Array | None = None, groups: Array | None = None
    ) -> Metrics:
        if weights is not None:
            labels, predictions, weights = (part[weights > 0] for part in (labels, predictions, weights))
        if not self.measurable(labels):
            raise DataError(f"macro AUC needs rows of two classes, but all {len(labels)} rows are of one")
        if not np.isfinite(predictions).all():
            raise DataError("probabilities must be finite, but some are not")
        places = labels.astype(np.int64)
        own = None if weights is None else weights.astype(np.float64)
        chosen = np.take_along_axis(predictions, places[:, None], 1)[:, 0]
        losses = -np.log(np.maximum(chosen, np.finfo(chosen.dtype).eps).astype(np.float64))
        right = predictions.argmax(axis=1) == places
        return Metrics(
            {
                "cross_entropy": float(np.average(losses, weights=own)),
                "accuracy": float(np.average(right, weights=own)),
                "macro_auc": float(np.mean(list(class_aucs(places, predictions, weights).values()))),
            }
        )

    def told_within(
        self, labels: Array, predictions: Array, groups: Array, group: str, weights: Array | None = None
    ) -> str:
        raise DataError("models of data.task: multiclass are not compared within groups: leave the group out")

    def error(self, value: float, labels: Array, weights: Array | None = None, groups: Array | None = None) -> float:
        # At most, or nearly so: losses of rows are less spread than those of an exponential distribution of that mean.
        return value / math.sqrt(len(labels) if weights is None else effective_rows(weights))

    def hopeless(
        self, value: float, labels: Array, weights: Array | None = None, groups: Array | None = None
    ) -> float | None:
        # So many standard errors below what the shares of the classes reach, but of few rows no more than _BELOW.
        share = np.bincount(labels.astype(np.int64), weights, self.outputs)
        share = share[share > 0] / share.sum()
        constant = -float(share @ np.log(share))
        bound = constant - min(_ERRORS * self.error(constant, labels, weights), _BELOW * constant)
        return bound if value >= bound else None

    def losses(self, labels: Array, logits: Array) -> Array:
        places = labels.astype(np.int64)[:, None]
        losses: Array = _log_sums(logits) - np.take_along_axis(logits, places, 1)[:, 0]
        return losses

    def rises(self, labels: Array, logits: Array, changes: Array) -> Array:
        # log sum_c p_c exp(change_c - change_y), p the chances before: one exponential for each change.
        places = labels.astype(np.int64)[..., None]
        of_label = np.take_along_axis(changes, np.broadcast_to(places, (*changes.shape[:2], 1)), 2)
        moved = np.minimum(changes - of_label, _FAR, dtype=np.float32)
        chances = _chances(logits[:, 0].astype(np.float32))
        sums = np.exp(moved, out=moved) @ chances[:, :, None]
        return np.asarray(np.log(np.maximum(sums[..., 0], _LEAST)), dtype=np.float32)

    def calibration(self, labels: Array, logits: Array, weights: Array | None = None) -> tuple[float, float]:
        """The inverse temperature with the least cross-entropy (Guo et al., ICML 2017), by Newton's method; shift 0."""
        z, places = logits.astype(np.float64), labels.astype(np.int64)[:, None]
        of_label, scale = np.take_along_axis(z, places, 1)[:, 0], 1.0
        for _ in range(20):
            p = np.exp(scale * z - _log_sums(scale * z)[:, None])
            mean = (p * z).sum(1)
            bend = float(np.average((p * np.square(z - mean[:, None])).sum(1), weights=weights))
            if bend < _TINY:
                break
            step = float(np.clip(np.average(mean - of_label, weights=weights) / bend, -1, 1))
            scale = max(scale - step, 0.0)
            if abs(step) < 1e-8:
                break
        return scale, 0.0

    def line(self, labels: Array, predictions: Array, weights: Array | None = None) -> tuple[float, float] | None:
        return None

    def compare(
        self, labels: Array, logits: Array, weights: Array | None = None
    ) -> Callable[[Array], dict[str, float]]:
        places = labels.astype(np.int64)
        loss, right = self.losses(labels, logits), (logits.argmax(1) == places).astype(np.float64)
        before = _chances(logits)
        there = [number for number in np.unique(places).tolist() if not (places == number).all()]
        placed = {number: placements(before[:, number], places == number, weights) for number in there}

        def compared(other: Array) -> dict[str, float]:
            rise, error = mean_and_error(self.losses(labels, other) - loss, weights)
            found = {"cross_entropy_rise": rise, "cross_entropy_se": error}
            fall, error = mean_and_error(right - (other.argmax(1) == places), weights)
            found |= {"accuracy_fall": fall, "accuracy_se": error}
            after, falls, moved = _chances(other), [], np.zeros(len(places))
            for number in there:
                ones = places == number
                gone = placed[number] - placements(after[:, number], ones, weights)
                falls.append(_add_moves(moved, gone, ones, weights))
            found["macro_auc_fall"] = float(np.mean(falls))
            return found | {"macro_auc_se": math.sqrt(float(np.square(moved).sum())) / len(there)}

        return compared


def _add_moves(moved: Floats, gone: Floats, ones: Bools, weights: Array | None) -> float:
    """Adds what each row moves the AUC of a class by (DeLong et al., Biometrics 1988) to `moved`; the AUC's fall."""
    fall = 0.0
    for own in (ones, ~ones):
        share = np.ones(int(own.sum())) if weights is None else weights[own].astype(np.float64)
        share = share / share.sum()
        fall = float(share @ gone[own])  # the same of both
        moved[own] += share * (gone[own] - fall)
    return fall


def _log_sums(logits: Array) -> Array:
    """The logarithm of the sum of exponentials over the last axis."""
    most = logits.max(axis=-1, keepdims=True)
    sums: Array = np.log(np.exp(logits - most).sum(axis=-1)) + most[..., 0]
    return sums


def _chances(logits: Array) -> Array:
    chances: Array = np.exp(logits - _log_sums(logits)[:, None])
    return chances


def _reduced(losses: Tensor, reduction: str, weights: Tensor | None) -> Tensor:
    losses = losses if weights is None else losses * weights
    return losses.sum() if reduction == "sum" else losses.mean()


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
