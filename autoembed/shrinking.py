"""Several sizes of one searched net, each trained on for a few epochs in place of anew.

The largest starts from the supernet's weights, and each other one from those of the next larger size, if it keeps a
part of that and is better on valid with them (progressive shrinking, Cai et al., arXiv 1908.09791). The smallest, which
the supernet is furthest from, gets one epoch more. The supernet teaches. `docs/results/nested.md` has what it brings.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import torch

from autoembed.candidates import Offer
from autoembed.data.dataset import Dataset
from autoembed.errors import SpaceError, option
from autoembed.methods.method import MethodConfig, SearchConfig
from autoembed.nn.model import Model, cost_of
from autoembed.nn.taking_over import take_over
from autoembed.task import metric_of
from autoembed.training import Distill, TrainConfig, on_valid

_LR, _TAUGHT = 0.6, 0.5  # of the recipe's rate, and the teacher's share of the loss


def recipe(train: TrainConfig, method: MethodConfig, epochs: int) -> TrainConfig:
    """The recipe of so many epochs more; SpaceError if the method trains no supernet."""
    if not isinstance(method, SearchConfig):
        raise SpaceError(
            f"{option('epochs', epochs)} trains a searched supernet on, but {method.method} trains none: leave it out, "
            "or choose another trial"
        )
    if epochs < 1:
        raise SpaceError(f"{option('epochs')} must be at least 1, but got {epochs}")
    changes = {"epochs": epochs, "lr": train.lr * _LR, "anneal": True, "decay": 1.0, "patience": epochs + 1}
    return train.model_copy(update={"distill": train.distill or Distill(teacher="search", weight=_TAUGHT), **changes})


def largest_first(offers: Sequence[Offer | SpaceError]) -> list[int]:
    """The places of offers, by the bytes of their models; those of errors first."""

    def size(place: int) -> float:
        one = offers[place]
        return float("inf") if isinstance(one, SpaceError) else cost_of(one.candidates[0].architecture).bytes

    return sorted(range(len(offers)), key=size, reverse=True)


def begin(
    offer: Offer, wide: Model | None, dataset: Dataset, monitor: str, device: torch.device, *, smallest: bool
) -> Offer:
    """An offer of one candidate with the weights that it starts from, and a note that says whose they are.

    Args:
        offer: its candidate starts from the supernet's weights.
        wide: the model of the next larger size, if there is one.
        dataset: whose valid split decides between the two.
        monitor: the metric there.
        device: of the models.
        smallest: whether it gets one epoch more.
    """
    (candidate,) = offer.candidates
    start, train, whose = candidate.start, candidate.recipe, "the supernet"
    assert start is not None
    if smallest:
        train = train.model_copy(update={"epochs": train.epochs + 1})
    if wide is not None and take_over(narrow := deepcopy(start), wide):
        metric = metric_of(monitor)
        own, other = (
            metric.figure(on_valid(model, dataset, device, train.lr, "the weights that it starts from"))
            for model in (start, narrow)
        )
        if other > own:
            start, whose = narrow, "the next larger size"
    note = f"trained for {train.epochs} epoch{'s' if train.epochs > 1 else ''} from the weights of {whose}"
    changed = replace(candidate, start=start, recipe=train)
    return replace(offer, candidates=(changed,), notes=(*offer.notes, note))
