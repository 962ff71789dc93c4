"""Training of a click model: Adam, early stop on valid AUC, the best epoch's weights kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from autoembed.architecture import Array
from autoembed.data.dataset import Dataset
from autoembed.data.spec import Split
from autoembed.errors import SpaceError, TrialError
from autoembed.metrics import Metrics, evaluate

Report = Callable[[Mapping[str, float]], None]


class TrainConfig(BaseModel):
    """The recipe of one training.

    `l2` weighs half the squared norm of the whole embedding table, added to the loss at every step as FuxiCTR does.
    `patience` is the number of epochs without a better valid AUC after which training stops.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=10, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    batch_size: int = Field(default=4096, ge=2)
    l2: float = Field(default=0.0, ge=0)
    patience: int = Field(default=2, ge=1)


class Trainable(Protocol):
    """What `fit` trains: a module from ids to logits that tells its embedding weights."""

    def embedding_weights(self) -> Sequence[nn.Parameter]: ...


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The best epoch, its valid metrics, and the seconds spent."""

    epoch: int
    valid: Metrics
    seconds: float


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


def batches(
    dataset: Dataset, split: Split, size: int, device: torch.device, *, rows: Array | None = None, least: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids int32 [B, F] and labels float [B], in the order of `rows` (all in file order by default).

    A last batch of fewer than `least` rows is left out: batch norm cannot train on a single row.
    """
    ids, labels = torch.from_numpy(dataset.ids(split)), torch.from_numpy(dataset.labels(split))
    order = None if rows is None else torch.from_numpy(rows)
    total = len(ids) if order is None else len(order)
    for start in range(0, total, size):
        if order is None:
            batch = ids[start : start + size], labels[start : start + size]
        else:
            at = order[start : start + size]
            if len(at) < least:
                return
            batch = ids[at], labels[at]
        yield batch[0].to(device, non_blocking=True), batch[1].to(device, non_blocking=True)


def penalised_loss(model: nn.Module, logits: Tensor, labels: Tensor, l2: float) -> Tensor:
    """Binary cross-entropy plus the embedding regulariser."""
    loss = functional.binary_cross_entropy_with_logits(logits, labels)
    if l2:
        weights = model.embedding_weights()  # type: ignore[operator]
        loss = loss + 0.5 * l2 * torch.stack([weight.square().sum() for weight in weights]).sum()
    return loss


def check_finite(loss: Tensor, lr: float, where: str) -> float:
    """The loss as a float; TrialError if it is not finite."""
    value = loss.item()
    if not math.isfinite(value):
        raise TrialError(f"the loss must be finite, but got {value} in {where} with lr={lr:g}: lower train.lr")
    return value


@torch.no_grad()
def predict(model: nn.Module, dataset: Dataset, split: Split, device: torch.device, size: int = 16384) -> Array:
    """Click probabilities of a split, float32 [N]."""
    model.eval()
    parts = [torch.sigmoid(model(ids)).cpu().numpy() for ids, _ in batches(dataset, split, size, device)]
    return np.concatenate(parts)


def fit(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    *,
    device: torch.device,
    seed: int,
    report: Report,
    rows: Array | None = None,
) -> Fit:
    """Trains on the train split (or its `rows`) and leaves the weights of the epoch with the best valid AUC.

    TrialError if the loss is not finite. `report` gets loss, valid AUC and logloss after each epoch, counted from 1.
    """
    start = perf_counter()
    rng = np.random.default_rng(seed)
    rows = np.arange(dataset.rows("train")) if rows is None else rows
    optimiser = torch.optim.Adam(model.parameters(), lr=config.lr)
    best: Metrics | None = None
    best_epoch, state = 0, {}
    for epoch in range(1, config.epochs + 1):
        model.train()
        total = torch.zeros((), device=device)
        steps = 0
        for ids, labels in batches(
            dataset, "train", config.batch_size, device, rows=rng.permutation(rows), least=min(2, len(rows))
        ):
            loss = penalised_loss(model, model(ids), labels, config.l2)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += loss.detach()
            steps += 1
        mean = check_finite(total / max(steps, 1), config.lr, f"epoch {epoch}")
        probabilities = predict(model, dataset, "valid", device)
        if not np.isfinite(probabilities).all():
            raise TrialError(f"predictions must be finite, but epoch {epoch} gave NaN: lower train.lr={config.lr:g}")
        valid = evaluate(dataset.labels("valid"), probabilities)
        report({"epoch": epoch, "train_loss": mean, "valid_auc": valid.auc, "valid_logloss": valid.logloss})
        if best is None or valid.auc > best.auc:
            best, best_epoch = valid, epoch
            state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        elif epoch - best_epoch >= config.patience:
            break
    assert best is not None
    model.load_state_dict(state)
    return Fit(epoch=best_epoch, valid=best, seconds=perf_counter() - start)
