"""How many units a backbone's hidden layers should have, where a limit on bytes holds them and the embeddings together.

While a supernet is trained, every second batch sees a prefix of each hidden layer only, so that units are ordered and
any prefix is a tower: nested dropout (Rippel et al., ICML 2014), as for the dims of a nested basis. After the search, a
few sizes are tried. Each leaves the other bytes to the embeddings, and the one with the least loss on held-out rows,
by the supernet's own weights, is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoembed.architecture import Architecture
from autoembed.budget import Limit
from autoembed.errors import SpaceError
from autoembed.methods.method import WidthConfig
from autoembed.methods.supernet import Answer, Supernet
from autoembed.nn.backbones.base import DeepConfig, build, configure
from autoembed.nn.model import CTRModel, Model

Ask = Callable[[int | None], Answer]  # an answer within so many bytes of embeddings
PARTS = (1.0, 0.75, 0.5, 0.25, 0.125)


def units_of(hidden: Sequence[int], part: float) -> list[int]:
    """So large a part of each hidden layer, rounded up."""
    return [-int(-size * part // 1) for size in hidden]


class Prefixes:
    """Lets a part of each hidden layer of a backbone through, the first units.

    Attributes:
        hidden: the units of the layers.
        part: what passes in evaluation.
    """

    def __init__(self, backbone: nn.Module, hidden: Sequence[int]) -> None:
        (self.stack,) = stacks(backbone)
        self.hidden, self.part, self.drawn = list(hidden), 1.0, 1.0
        # Hooks hold no state and change no names: the narrower compact model finds its weights by these.
        backbone.register_forward_pre_hook(self._draw)
        units = [layer for layer in self.stack if isinstance(layer, nn.ReLU)]
        for size, layer in zip(self.hidden, units, strict=True):
            layer.register_forward_hook(partial(self._cut, size))

    def _draw(self, backbone: nn.Module, inputs: object) -> None:
        self.drawn = self.part
        if backbone.training and torch.rand(()) < 0.5:
            self.drawn = PARTS[int(torch.randint(len(PARTS), ()))]

    def _cut(self, size: int, layer: nn.Module, inputs: object, x: Tensor) -> Tensor:
        (kept,) = units_of([size], self.drawn)
        return x if kept == size else x * (torch.arange(size, device=x.device) < kept)

    @contextmanager
    def at(self, part: float) -> Iterator[None]:
        """Within it, that part passes in evaluation, normed by the batch: running statistics are of all parts mixed."""
        norms = [layer for layer in self.stack if isinstance(layer, _BatchNorm)]
        held = [(layer.running_mean, layer.running_var) for layer in norms]
        try:
            self.part = part
            for layer in norms:
                layer.running_mean = layer.running_var = None
            yield
        finally:
            self.part = 1.0
            for layer, (mean, variance) in zip(norms, held, strict=True):
                layer.running_mean, layer.running_var = mean, variance


def stacks(backbone: nn.Module) -> list[nn.Sequential]:
    """The stacks of hidden layers in a backbone."""
    return [
        layer
        for name, layer in backbone.named_modules()
        if name.split(".")[-1] == "rest" and isinstance(layer, nn.Sequential)
    ]


def require(options: Mapping[str, object]) -> None:
    """SpaceError unless a backbone has one tower, whose units can be searched."""
    config = configure(options)
    with torch.device("meta"):
        backbone = build(options, np.ones((2, 1), dtype=bool)) if isinstance(config, DeepConfig) else nn.Module()
    if len(stacks(backbone)) != 1:
        raise SpaceError(
            f"tower.units: search needs a backbone with one tower, such as deepfm, dnn or dcn, but got {config.name}"
        )


def order(net: Supernet) -> None:
    """Trains a net's hidden units in order from now on, if it can compare towers later."""
    if isinstance(net.config, WidthConfig):
        net.prefixes = Prefixes(net.backbone, cast(DeepConfig, configure(net.parent.backbone)).hidden)
    else:
        net.notes.append("it keeps no held-out rows to compare towers by, so the tower stays as it is")


def choose(net: Supernet, find: Callable[[Ask], Answer], limit: Limit) -> Answer:
    """The answer with the least loss on held-out rows among towers of several sizes.

    Args:
        net: the searched net; if its units are not ordered, the tower stays as it is.
        find: what answers within the limit, given what asks the net.
        limit: what the answer may cost.

    Raises:
        SpaceError: if the limit is of the embeddings alone, or does not hold even the narrowest tower.
    """
    prefixes = net.prefixes
    if prefixes is None:
        return find(net.answer)
    if limit.bytes is None:
        raise SpaceError("tower.units: search needs a limit on the whole model: set budget.bytes")
    tried: list[tuple[float, list[int], Answer]] = []
    for part in PARTS:
        hidden = units_of(prefixes.hidden, part)
        with prefixes.at(part):
            try:
                found = find(_narrowing(net.answer, hidden))
            except SpaceError as error:
                refused = error
                continue
            tried.append((net.loss_of(found.architecture), hidden, found))
    if not tried:
        raise refused
    _, chosen, best = min(tried, key=lambda one: one[0])
    losses = ", ".join(f"{loss:.4f} with {hidden}" for loss, hidden, _ in tried)
    note = f"hidden layers of {chosen} have the least loss on held-out rows within {limit.bytes:,} bytes ({losses})"
    return replace(best, notes=(*best.notes, note))


def like(net: Supernet, ask: Ask, architecture: Architecture) -> Ask:
    """Asks for answers with the tower of one that `choose` gave."""
    prefixes = net.prefixes
    if prefixes is None:
        return ask
    hidden = cast(list[int], architecture.backbone["hidden"])
    part = next(part for part in PARTS if units_of(prefixes.hidden, part) == list(hidden))

    def asked(limit: int | None) -> Answer:
        with prefixes.at(part):
            return _narrowing(ask, hidden)(limit)

    return asked


def _narrowing(ask: Ask, hidden: Sequence[int]) -> Ask:
    def asked(limit: int | None) -> Answer:
        found = ask(limit)
        backbone = {**found.architecture.backbone, "hidden": list(hidden)}
        return replace(found, architecture=found.architecture.replace(backbone=backbone))

    return asked


@torch.no_grad()
def compact(net: Supernet, architecture: Architecture) -> Model:
    """The compact model with the net's weights, the first units of each hidden layer."""
    wide = net.parent.backbone
    if architecture.clusters or architecture.backbone == wide:
        return net.compact(architecture)
    whole = net.compact(architecture.replace(backbone=wide))
    assert isinstance(whole, CTRModel)
    model = CTRModel(net.schema, architecture).to(net.weight.device)
    state = whole.state_dict()
    for name, tensor in model.state_dict().items():
        tensor.copy_(state[name][tuple(slice(size) for size in tensor.shape)])
    return model
