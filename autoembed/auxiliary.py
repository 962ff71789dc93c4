"""Auxiliary labels in training: the losses of their towers, and how they are weighed against that of the label.

The loss of a batch is that of the label plus the sum of weight times loss over the auxiliary labels. A label's loss is
the cross-entropy over the rows where it is known; rows count by their weights. What is searched and compared by stays
the metric of the label, and so does what training is stopped by, unless `train.stop_by` says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor
from torch.nn import functional

from autoembed.batches import RowWeights, batches
from autoembed.data.dataset import Dataset
from autoembed.data.schema import FeatureSchema
from autoembed.data.spec import Split
from autoembed.errors import SpaceError, TrialError, unknown
from autoembed.metrics import Metric, Metrics
from autoembed.nn.model import ClickModel
from autoembed.shuffle import RowOrder
from autoembed.task import CLICKS, titled
from autoembed.types import Array

StopBy = Literal["label", "all_labels"]
Weights = Literal["uncertainty"] | float | Mapping[str, float]
Both = tuple[Tensor, Tensor | None]  # logits of the label, and of auxiliary labels [B, L] if there are such

PREDICTION = "prediction"
_ROWS = 1 << 20  # whose labels are added up at a time
_RATE = 0.05  # of a gradient step on a log variance: some 50 batches bring it near its place


class Uncertainty:
    """Weights by the uncertainty of each loss (Kendall, Gal, Cipolla, CVPR 2018, arXiv 1705.07115, eq. 10).

    Each loss L has a log variance s, which minimises exp(-s) L + s / 2 by a gradient step per batch. The weights are
    exp(-s) divided by that of the label's own, so that the label's loss counts once, as it does alone, and the recipe's
    `l2`, `clip` and a method's penalties keep their meaning. At rest exp(s) = 2 L: a loss counts by the inverse of its
    size, so that rare labels, whose losses are small, weigh much.
    """

    def __init__(self, labels: int, device: torch.device) -> None:
        self.log_variance = torch.zeros(1 + labels, device=device)

    def weights(self) -> Tensor:
        """Of the auxiliary labels, float [L]."""
        return torch.exp(self.log_variance[0] - self.log_variance[1:])

    def see(self, losses: Tensor) -> None:
        """Takes the losses of a batch, that of the label first: float [1 + L], without a gradient."""
        self.log_variance += _RATE * (torch.exp(-self.log_variance) * losses - 0.5)


class AuxiliaryLosses:
    """The losses of a model's auxiliary labels while it is trained on some rows; nothing to do without such labels.

    As in `RowWeights` a batch's loss is the mean over all of its rows, of known labels only and scaled so that its
    expectation is the mean over all rows with the label: a batch is not divided by its own number of known labels,
    which would make rows count more in a batch with few.

    Args:
        model: what is trained.
        dataset: whose train split is trained on.
        seen: the rows, or those below a whole number.
        rows: their weights.
        weights: `uncertainty`, one number for all labels, or numbers by label, 1 for those that are not named. A label
            of weight 0 trains its own tower, and moves nothing that the others share.
        negative_sampling: the recipe's.
        like: losses on other rows of the same training, whose weights hold here.

    Raises:
        SpaceError: the data lack a label of the model, or the weights and the sampling do not go with them.
        TrialError: a label is known in none of the rows.
    """

    def __init__(
        self,
        model: ClickModel,
        dataset: Dataset,
        seen: int | RowOrder,
        rows: RowWeights,
        weights: Weights,
        *,
        negative_sampling: float = 1.0,
        like: AuxiliaryLosses | None = None,
    ) -> None:
        self.labels, self.rows = model.auxiliary_labels, rows
        self.columns: tuple[Array, ...] = ()
        if not self.labels:
            return
        check_recipe(self.labels, weights, negative_sampling)
        self.columns = (columns_of(dataset, "train", self.labels),)
        device = next(model.parameters()).device
        self.scale = torch.from_numpy(self._scale(seen)).to(device)
        each = [weight_of(label, weights) for label in self.labels]
        model.train_apart([label for label, weight in zip(self.labels, each, strict=True) if weight == 0])
        self.fixed = torch.tensor([weight or 1.0 for weight in each], device=device)
        self.uncertainty = Uncertainty(len(self.labels), device) if weights == "uncertainty" else None
        self.learns = like is None
        if like is not None:
            self.uncertainty = like.uncertainty

    def _scale(self, seen: int | RowOrder) -> Array:
        """Rows over the sum of weights of those that know each label, float32 [L]."""
        rows = seen if isinstance(seen, int) else len(seen)
        (labels,), known = self.columns, np.zeros(len(self.labels))
        for start in range(0, rows, _ROWS):
            places = np.arange(start, min(start + _ROWS, rows))
            at = places if isinstance(seen, int) else seen[places]
            held = ~np.isnan(labels[at])
            known += held.sum(0) if self.rows.all is None else self.rows.all[at].astype(np.float64) @ held
        if not known.all():
            name = self.labels[int(np.argmin(known))]
            raise TrialError(
                f"auxiliary label {name!r} must be known in some of the rows that are trained on, but is in none: hold "
                "out fewer"
            )
        scale: Array = (rows / (self.rows.scale * known)).astype(np.float32)
        return scale

    def of(self, logits_BL: Tensor, labels_BL: Tensor, weights_B: Tensor | None) -> Tensor:
        """The loss of each label in a batch, float [L], from logits, labels with NaN for gaps, and row weights."""
        known = ~labels_BL.isnan()
        counts = known * self.scale if weights_B is None else known * self.scale * weights_B.unsqueeze(1)
        return functional.binary_cross_entropy_with_logits(
            logits_BL, labels_BL.nan_to_num(0.0), weight=counts, reduction="none"
        ).mean(0)

    def total(self, loss: Tensor, both: Both, told: Sequence[Tensor], weights: Tensor | None) -> Tensor:
        """The label's loss of a batch with the auxiliary ones.

        Args:
            loss: of the label, a scalar.
            both: what `logits_of` gave for the batch.
            told: what `batches` gave of it, the labels of `columns` last.
            weights: of its rows.
        """
        logits = both[1]
        if logits is None:
            return loss
        losses = self.of(logits.float(), told[-1], weights)
        if self.uncertainty is None:
            return loss + (self.fixed * losses).sum()
        if self.learns:
            self.uncertainty.see(torch.cat([loss.detach().reshape(1), losses.detach()]))
        return loss + (self.uncertainty.weights() * losses).sum()


def logits_of(model: ClickModel, *, compiled: bool = False) -> Callable[[Tensor], Both]:
    """What gives a model's logits, those of auxiliary labels too if it has such; run through torch.compile if asked."""
    if model.auxiliary_labels:
        return torch.compile(model.all_logits) if compiled else model.all_logits
    of_label = torch.compile(model) if compiled else model
    return lambda ids: (of_label(ids), None)


def weight_of(label: str, weights: Weights) -> float:
    """What a label's loss is multiplied by at the start."""
    if weights == "uncertainty":
        return 1.0
    return float(weights.get(label, 1.0)) if isinstance(weights, Mapping) else float(weights)


def columns_of(dataset: Dataset, split: Split, labels: Sequence[str]) -> Array:
    """The auxiliary labels of a split in this order, float32 [N, L]; SpaceError if the data lack one."""
    known, held = dataset.schema.auxiliary_labels, dataset.auxiliary(split)
    absent = [label for label in labels if label not in known]
    if absent or held is None:
        raise SpaceError(
            f"the model predicts the auxiliary label {absent[0]!r}, which the data do not have: list it under "
            "data.auxiliary_labels"
        )
    if tuple(labels) == known:
        return held
    found: Array = np.ascontiguousarray(held[:, [known.index(label) for label in labels]])
    return found


def check_recipe(labels: Sequence[str], weights: Weights, negative_sampling: float) -> None:
    """SpaceError unless a training's weights and sampling go with the auxiliary labels that there are."""
    if not labels:
        if weights != 1.0:
            raise SpaceError(
                f"train.auxiliary_weights weighs data.auxiliary_labels, and there are none, but got {weights!r}: list "
                "labels, or leave it out"
            )
        return
    if isinstance(weights, Mapping):
        for name in weights:
            if name not in labels:
                raise SpaceError(f"train.auxiliary_weights: {unknown('auxiliary label', name, list(labels))}")
    if negative_sampling < 1:
        raise SpaceError(
            f"train.negative_sampling draws rows by the label, and other rates of {labels[0]!r} would be learnt from "
            f"such a sample, but got {negative_sampling:g}: set it to 1, or leave data.auxiliary_labels out"
        )


def check_stopping(labels: Sequence[str], stop_by: StopBy, metric: Metric) -> None:
    """SpaceError unless training can be stopped by these labels and the metric that it follows."""
    if stop_by == "label":
        return
    if not labels:
        raise SpaceError(
            f"train.stop_by: {stop_by} is of data.auxiliary_labels, and there are none: list labels, or leave it out"
        )
    if metric not in CLICKS.metrics:
        raise SpaceError(
            f"train.stop_by: {stop_by} needs a metric that all labels have, "
            f"{' or '.join(titled(one.monitor) for one in CLICKS.metrics)}, but the objective is "
            f"{titled(metric.monitor)}: choose one of these, or leave stop_by out"
        )


@torch.no_grad()
def predict_auxiliary(
    model: ClickModel, dataset: Dataset, split: Split, device: torch.device, size: int = 16384
) -> Array:
    """Chances of the auxiliary labels in a split, float32 [N, L]."""
    model.eval()
    parts = [model.all_logits(ids)[1].float().sigmoid().cpu() for ids, _ in batches(dataset, split, size, device)]
    found: Array = torch.cat(parts).numpy()
    return found


def auxiliary_metrics(model: ClickModel, dataset: Dataset, split: Split, device: torch.device) -> dict[str, Metrics]:
    """The metrics of each auxiliary label on the rows of a split that know it; none without such labels."""
    if not model.auxiliary_labels:
        return {}
    chances = predict_auxiliary(model, dataset, split, device)
    labels = columns_of(dataset, split, model.auxiliary_labels)
    return judged(model.auxiliary_labels, labels, chances, dataset.weights(split))


def predictions(schema: FeatureSchema, model: ClickModel, ids: Tensor) -> Array:
    """Predictions float32 [N, 1 + L] for ids int [N, V]: of the label, and of each auxiliary one; of classes [N, C]."""
    logits, further = logits_of(model)(ids)
    columns = schema.task.link(logits).float()
    columns = columns.unsqueeze(1) if columns.dim() == 1 else columns
    if further is not None:
        columns = torch.cat([columns, further.float().sigmoid()], dim=1)
    found: Array = columns.cpu().numpy()
    return found


def prediction_columns(schema: FeatureSchema) -> list[str]:
    """The names of the columns of predictions: of the label, and of each auxiliary one; or of each class."""
    if schema.classes is not None:
        return [f"{PREDICTION}_{name}" for name in schema.classes.names]
    return [PREDICTION, *(f"{PREDICTION}_{label}" for label in schema.auxiliary_labels)]


def judged(names: Sequence[str], labels: Array, chances: Array, weights: Array | None = None) -> dict[str, Metrics]:
    """The metrics of each label, from labels with NaN for gaps and chances, float [N, L] both.

    DataError if one has rows of one class only.
    """
    found = {}
    for place, name in enumerate(names):
        known = ~np.isnan(labels[:, place])
        own = None if weights is None else weights[known]
        found[name] = CLICKS.evaluate(labels[known, place], chances[known, place], own)
    return found


def recorded(split: str, metrics: Metrics, further: Mapping[str, Metrics]) -> dict[str, JsonValue]:
    """What a bundle records of a split: the metrics of the label, and of each auxiliary one under split.LABEL."""
    parts = {split: metrics, **{f"{split}.{label}": own for label, own in further.items()}}
    return {name: own.model_dump() for name, own in parts.items()}


def under_labels(split: str, found: Mapping[str, Metrics]) -> dict[str, float]:
    """Metrics of auxiliary labels under names such as test_auc.is_like."""
    return {f"{split}_{metric}.{label}": value for label, own in found.items() for metric, value in own.items()}
