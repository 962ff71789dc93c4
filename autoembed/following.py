"""What a model keeps that is trained on with one log after another, each too short to choose weights by.

After each epoch its weights are averaged with those of before. The average is judged and kept; training goes on from
the weights themselves. The last epoch's average stays, unless an earlier one, or the weights of before, are surely
better on valid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoembed.data.dataset import Dataset
from autoembed.metrics import Metrics, mean_and_error
from autoembed.training import copy_of, finite_on_valid, metrics_of
from autoembed.types import Array

_SURE = 1.645  # standard errors of a one-sided test at 5 %


@dataclass(frozen=True, kw_only=True)
class JudgedEpoch:
    """Weights with the epoch that they are of, their metrics on valid, and the loss of each row there.

    `row_weights` say how often each of these rows counts.
    """

    epoch: int
    valid: Metrics
    losses: Array
    state: dict[str, Tensor]
    row_weights: Array | None = None

    def loss_over(self, other: JudgedEpoch) -> tuple[float, float]:
        """How much the mean loss is above another epoch's, and its standard error."""
        return mean_and_error(self.losses - other.losses, self.row_weights)


class Follower:
    """Which weights a model keeps that follows a stream: the averaged ones of the last epoch, or some surely better.

    Args:
        model: with the weights of before.
        dataset: whose valid rows judge.
        device: of the model.
        lr: the learning rate, for messages.
        mean: weights averaged with those of before.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        device: torch.device,
        lr: float,
        mean: Callable[[nn.Module], Mapping[str, Tensor]],
    ) -> None:
        self.model, self.dataset, self.device, self.lr, self.mean = model, dataset, device, lr, mean
        self.best = self.last = self._candidate(0, copy_of(model))

    def see(self, epoch: int) -> Metrics:
        """Judges an epoch's averaged weights; the model keeps its own, from which training goes on."""
        own, mean = copy_of(self.model), dict(self.mean(self.model))
        self.model.load_state_dict(mean)
        self.last = self._candidate(epoch, mean)
        if self.last.loss_over(self.best)[0] < 0:
            self.best = self.last
        self.model.load_state_dict(own)
        return self.last.valid

    def kept(self) -> tuple[int, Metrics, dict[str, Tensor]]:
        """The last, unless the best is better by more than chance: by a one-sided paired test at 5 %."""
        gain, error = self.last.loss_over(self.best)
        found = self.best if gain > _SURE * error else self.last
        return found.epoch, found.valid, found.state

    def _candidate(self, epoch: int, state: dict[str, Tensor]) -> JudgedEpoch:
        task, labels = self.dataset.task, self.dataset.labels("valid")
        predictions = finite_on_valid(self.model, self.dataset, self.device, self.lr, f"epoch {epoch}")
        return JudgedEpoch(
            epoch=epoch,
            valid=metrics_of(predictions, self.dataset, "valid"),
            losses=task.losses(labels, task.unlink(predictions)),
            state=state,
            row_weights=self.dataset.weights("valid"),
        )
