"""Retraining of a compact model, from fresh or inherited weights, and what is measured of it on valid."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn

from autoembed.architecture import Architecture
from autoembed.batches import batches
from autoembed.data.dataset import Dataset
from autoembed.errors import SpaceError
from autoembed.events import EpochEnd, EpochReport
from autoembed.following import Follower
from autoembed.metrics import Metrics
from autoembed.nn.model import (
    Model,
    RoutedModel,
    build_model,
    has_few_bits,
    keep_as,
    pack,
    rounds_layers,
    start_rounding,
)
from autoembed.nn.router import Router
from autoembed.training import Fit, Teacher, TrainConfig, fit, metrics_on, on_valid, predict

_LATENCY_ROWS = 1000
_AWARE_LR = 0.3


def retrain(
    architecture: Architecture,
    dataset: Dataset,
    train: TrainConfig,
    device: torch.device,
    seed: int,
    report: EpochReport,
    model: Model | None = None,
    router: Router | None = None,
    monitor: str | None = None,
    teacher: Teacher | None = None,
    like: Model | None = None,
    mean: Callable[[nn.Module], Mapping[str, Tensor]] | None = None,
) -> tuple[Model, Fit]:
    """Trains the compact model of an architecture, from `model`'s weights if given; (packed model, Fit).

    The weights of the epoch with the best `monitor` on valid are kept, those that were given if none is better. With a
    `teacher` it learns from that as well.
    With a `mean`, which averages weights with those of before, a `Follower` keeps them instead.
    Clusters need a `router` as the search fitted it, and fresh weights of a sparse architecture a model that is `like`
    them in which entries it keeps: training finds neither.
    """
    start, fresh = None, model is None
    if model is not None and mean is None:
        start = on_valid(model, dataset, device, train.lr, "the weights that it starts from")
    if model is None:
        torch.manual_seed(seed)
        model = build_model(dataset.schema, architecture).to(device)
        keep_as(model, like)
        if isinstance(model, RoutedModel) and model.router is not None:
            assert router is not None
            model.router.load_state_dict(router.state_dict())

    epochs = count(1)

    def counted(event: EpochEnd) -> None:
        report(replace(event, epoch=next(epochs)))

    learn = partial(fit, model, dataset, device=device, report=counted, monitor=monitor, teacher=teacher)
    keeper = mean and Follower(model, dataset, device, train.lr, mean)
    fitted = learn(train, seed=seed, start=start, keeper=keeper, fresh=fresh)
    if has_few_bits(model):
        fitted = quantise(model, dataset, train, fitted, device, learn, seed)
    if isinstance(model, RoutedModel) and model.calibration is not None:
        fitted = replace(fitted, valid=calibrate(model, dataset, device))
    packed = pack(model, dataset.schema)
    if rounds_layers(model):
        fitted = replace(fitted, valid=on_valid(packed, dataset, device, train.lr, "rounding"))
    return packed, fitted


def quantise(
    model: Model,
    dataset: Dataset,
    train: TrainConfig,
    trained: Fit,
    device: torch.device,
    learn: Callable[..., Fit],
    seed: int,
) -> Fit:
    """Rounds a trained model's tables to their bits and, if asked for, trains it on with rounded lookups.

    Training goes on at a part of the learning rate (LSQ, arXiv 1902.08153, trains on from a full-precision model). What
    is kept is the better of rounding alone and of the best epoch after it.
    """
    if train.quantise == "none":
        raise SpaceError(
            "train.quantise: none keeps 32-bit numbers, but the architecture has fewer: use round or aware, or bits: 32"
        )
    start_rounding(model)
    rounded = replace(trained, valid=on_valid(model, dataset, device, train.lr, "rounding"))
    if train.quantise == "round":
        return rounded
    recipe = train.model_copy(update={"lr": train.lr * _AWARE_LR})
    aware = learn(recipe, seed=seed + 1, start=rounded.valid)
    return replace(aware, epoch=trained.epoch + aware.epoch, seconds=trained.seconds + aware.seconds)


def calibrate(model: RoutedModel, dataset: Dataset, device: torch.device) -> Metrics:
    """Fits the scale and shift of each cluster's logits on valid (Platt 1999); the metrics there with them.

    A cluster whose valid rows are of one class keeps its logits.
    """
    assert model.router is not None
    assert model.calibration is not None
    labels, weights = dataset.labels("valid"), dataset.weights("valid")
    cluster = np.concatenate([model.router(ids).cpu().numpy() for ids, _ in batches(dataset, "valid", 16384, device)])
    predictions = predict(model, dataset, "valid", device)
    for number in range(len(model.models)):
        rows = cluster == number
        if line := dataset.task.line(labels[rows], predictions[rows], None if weights is None else weights[rows]):
            model.calibration[:, number] = torch.tensor(line)
    return metrics_on(model, dataset, "valid", device)


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
