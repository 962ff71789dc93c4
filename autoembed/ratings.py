"""Ratings: labels that are numbers, such as stars, prices and seconds; squared error, RMSE and MAE.

A model's logits are labels less train's mean, over train's standard deviation, so that recipes do not depend on units.
Predictions, metrics and differences are in units of the label.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from autoembed.clicks import check_pointwise
from autoembed.errors import DataError, SpaceError
from autoembed.metrics import Metric, Metrics, effective_rows, mean_and_error
from autoembed.types import Array

if TYPE_CHECKING:
    from torch import Tensor

_ERRORS, _BELOW = 3, 0.02
_FEW = 30  # rows that a split should have
_LEAST = 1e-30  # an RMSE by which can be divided
_FAR, _WIDER = 0.25, 1.25  # of a kept scale: a shift of the mean in sds, and a ratio of sds, that are told


class LabelScale(BaseModel):
    """What train's labels are like: mean, standard deviation, and the `cut` above which a label is of class 1.

    The cut is the label that divides train's rows most evenly: columns are ranked by what they say of the two classes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float = Field(allow_inf_nan=False)
    sd: float = Field(gt=0, allow_inf_nan=False)
    cut: float = Field(allow_inf_nan=False)

    def with_units_of(self, other: LabelScale) -> LabelScale:
        """The scale for a model that was trained in the units of another one: its mean and sd, and the own cut."""
        return LabelScale(mean=other.mean, sd=other.sd, cut=self.cut)

    def shift_from(self, other: LabelScale) -> str | None:
        """In words, how far these labels are from those of another scale; None if they are close."""
        ratio = max(self.sd / other.sd, other.sd / self.sd)
        if abs(self.mean - other.mean) <= _FAR * other.sd and ratio <= _WIDER:
            return None
        own, before = (f"{one.mean:.4g} and sd {one.sd:.4g}" for one in (self, other))
        return f"mean {own}, where the model was trained on {before}"


def scale_of(labels: Array, rows: Array) -> LabelScale:
    """The scale of two or more distinct labels [L], of which there are so many rows, or so much weight, [L]."""
    order = np.argsort(labels)
    values, share = labels[order].astype(np.float64), rows[order] / rows.sum(dtype=np.float64)
    mean = float(share @ values)
    sd = math.sqrt(float(share @ np.square(values - mean)))
    below = np.cumsum(share)[:-1]
    return LabelScale(mean=mean, sd=sd, cut=float(values[np.abs(below - 0.5).argmin()]))


class Ratings:
    """Labels that are numbers: squared error, predictions in units of the label, RMSE and MAE.

    Args:
        scale: of train's labels; without it logits are in units of the label.
    """

    name = "ratings"
    metrics = (
        Metric(name="rmse", title="RMSE", rises=False, in_units=True),
        Metric(name="mae", title="MAE", rises=False, in_units=True),
    )
    grouped: tuple[Metric, ...] = ()
    objective = metrics[0]
    criterion = Metric(name="mse", title="MSE", rises=False, in_units=True)
    pairwise = 0.0
    outputs = 1

    def __init__(self, scale: LabelScale | None = None) -> None:
        self.scale = LabelScale(mean=0, sd=1, cut=0) if scale is None else scale

    @property
    def unit(self) -> float:
        return self.scale.sd

    def check_split(self, split: str, counted: pl.DataFrame, name: str) -> list[str]:
        rows = int(counted["count"].sum())
        if counted.height < 2:
            raise DataError(
                f"label {name!r} must have two values or more in {split}, but all {rows} rows are "
                f"{counted['label'][0]:g}: change data.split or the files"
            )
        if split != "train" and rows < _FEW:
            return [f"{split} has only {rows} rows: differences of RMSE are mostly chance there"]
        return []

    def classes(self, labels: Array) -> Array:
        return (labels > self.scale.cut).astype(np.uint8)

    def strata(self, labels: Array) -> Array:
        return self.classes(labels)

    def of_class_one(self, label: pl.Expr) -> pl.Expr:
        return (label > self.scale.cut).cast(pl.Int64)

    @property
    def classes_are(self) -> str | None:
        return f"the label is a number: columns are ranked by what they say of whether it is above {self.scale.cut:g}"

    def check_recipe(
        self, positive_weight: float, negative_sampling: float, pairwise_weight: float | None = None
    ) -> None:
        check_pointwise(self.name, pairwise_weight)
        for key, value in (("positive_weight", positive_weight), ("negative_sampling", negative_sampling)):
            if value != 1:
                raise SpaceError(f"train.{key} is of clicks: with data.task: ratings it must be 1, but got {value:g}")

    def loss(
        self,
        logits: Tensor,
        labels: Tensor,
        positive_weight: float = 1.0,
        reduction: str = "mean",
        weights: Tensor | None = None,
    ) -> Tensor:
        """Squared error in units of the standard deviation."""
        return _squares(logits, (labels - self.scale.mean) / self.scale.sd, reduction, weights)

    def shift_of(self, share: float) -> float:
        return 0.0

    def distil(self, logits: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
        return _squares(logits, teacher, "mean", weights)

    def link(self, logits: Tensor) -> Tensor:
        return logits * self.scale.sd + self.scale.mean

    def unlink(self, predictions: Array) -> Array:
        logits: Array = (predictions.astype(np.float64) - self.scale.mean) / self.scale.sd
        return logits

    def measurable(self, labels: Array) -> bool:
        return len(labels) > 0

    def evaluate(
        self, labels: Array, predictions: Array, weights: Array | None = None, groups: Array | None = None
    ) -> Metrics:
        if weights is not None:
            labels, predictions, weights = (part[weights > 0] for part in (labels, predictions, weights))
        if not len(labels):
            raise DataError("RMSE must have a row with a label and weight, but there is none")
        if not np.isfinite(predictions).all():
            raise DataError("predictions must be finite, but some are not")
        errors = predictions.astype(np.float64) - labels
        own = None if weights is None else weights.astype(np.float64)
        mse, mae = (float(np.average(part, weights=own)) for part in (np.square(errors), np.abs(errors)))
        return Metrics({"rmse": math.sqrt(mse), "mae": mae})

    def told_within(
        self, labels: Array, predictions: Array, groups: Array, group: str, weights: Array | None = None
    ) -> str:
        raise DataError("models of data.task: ratings are not compared within groups: leave the group out")

    def error(self, value: float, labels: Array, weights: Array | None = None, groups: Array | None = None) -> float:
        # Of errors that are normal, the variance of their mean square is 2 mse^2 / rows.
        rows = len(labels) if weights is None else effective_rows(weights)
        return value / math.sqrt(2 * rows)

    def hopeless(
        self, value: float, labels: Array, weights: Array | None = None, groups: Array | None = None
    ) -> float | None:
        # So many standard errors below what the mean label reaches, but where there are few rows no more than _BELOW.
        mean = float(np.average(labels, weights=weights))
        constant = math.sqrt(float(np.average(np.square(labels.astype(np.float64) - mean), weights=weights)))
        bound = constant - min(_ERRORS * self.error(constant, labels, weights), _BELOW * constant)
        return bound if value >= bound else None

    def losses(self, labels: Array, logits: Array) -> Array:
        """Squared errors in units of the standard deviation, as in `loss`."""
        losses: Array = np.square(logits - self.unlink(labels))
        return losses

    def rises(self, labels: Array, logits: Array, changes: Array) -> Array:
        errors = (logits - self.unlink(labels)).astype(np.float32)
        return np.asarray(changes * (2 * errors + changes), dtype=np.float32)

    def calibration(self, labels: Array, logits: Array, weights: Array | None = None) -> tuple[float, float]:
        """By least squares; logits that are all the same keep their scale."""
        x, y = logits.astype(np.float64), self.unlink(labels)
        own = np.ones(len(x)) if weights is None else weights.astype(np.float64)
        at, mean = np.average(x, weights=own), np.average(y, weights=own)
        spread = float(own @ np.square(x - at))
        scale = float(own @ ((x - at) * (y - mean))) / spread if spread > 0 else 1.0
        return scale, float(mean - scale * at)

    def line(self, labels: Array, predictions: Array, weights: Array | None = None) -> tuple[float, float] | None:
        if weights is not None:
            labels, predictions, weights = (part[weights > 0] for part in (labels, predictions, weights))
        if len(np.unique(predictions)) < 2:
            return None
        return self.calibration(labels, self.unlink(predictions), weights)

    def compare(
        self, labels: Array, logits: Array, weights: Array | None = None
    ) -> Callable[[Array], dict[str, float]]:
        before = self._errors(labels, logits)
        rmse = math.sqrt(float(np.average(np.square(before), weights=weights)))

        def compared(other: Array) -> dict[str, float]:
            after = self._errors(labels, other)
            rise, error = mean_and_error(np.square(after) - np.square(before), weights)
            found = {"mse_rise": rise, "mse_se": error}
            root = math.sqrt(float(np.average(np.square(after), weights=weights)))
            # The delta method: what each row's squares move the two roots by.
            moved = np.square(after) / (2 * max(root, _LEAST)) - np.square(before) / (2 * max(rmse, _LEAST))
            found |= {"rmse_rise": root - rmse, "rmse_se": mean_and_error(moved, weights)[1]}
            rise, error = mean_and_error(np.abs(after) - np.abs(before), weights)
            return found | {"mae_rise": rise, "mae_se": error}

        return compared

    def _errors(self, labels: Array, logits: Array) -> Array:
        errors: Array = logits * logits.dtype.type(self.scale.sd) + logits.dtype.type(self.scale.mean) - labels
        return errors


def _squares(logits: Tensor, answers: Tensor, reduction: str, weights: Tensor | None) -> Tensor:
    """Squared differences of logits [B] or [B, K] and answers [B]."""
    if logits.dim() == 2:
        answers = answers.unsqueeze(1)
        weights = None if weights is None else weights.unsqueeze(1)
    squares = (logits - answers).square()
    squares = squares if weights is None else squares * weights
    return squares.sum() if reduction == "sum" else squares.mean()
