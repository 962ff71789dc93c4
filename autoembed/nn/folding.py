"""A model as servers run it: what batch norm does to a layer's output is part of the layer, and so are ReLUs."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

from autoembed.nn.blocked import blocked
from autoembed.nn.layers import Dropout, Tower
from autoembed.nn.model import Model, members


def folded(model: Model) -> Model:
    """A copy for predictions alone, with fewer operations a row, on the same tables.

    Predictions differ by rounding. What is no `Tower`, and layers of 8 bits, stay as they are.
    """
    parts = [part for member in members(model) for part in (member.embedding, member.pairs)]
    copy = deepcopy(model, {id(part): part for part in parts}).eval()
    for module in copy.modules():
        if isinstance(module, Tower):
            _fold(module)
    return copy


def _fold(tower: Tower) -> None:
    first, *others = tower.rest
    if type(first) is nn.BatchNorm1d and type(tower.input.linear) is nn.Linear:
        tower.input.linear, tower.gain = fuse_linear_bn_eval(tower.input.linear, first), _gain(first)
    else:
        others = [first, *others]
    layers: list[nn.Module] = []
    for layer in others:
        if layers and type(layer) is nn.BatchNorm1d and type(layers[-1]) is nn.Linear:
            layers[-1] = fuse_linear_bn_eval(layers[-1], layer)
        elif type(layer) is nn.ReLU:
            layers.append(nn.ReLU(inplace=True))  # nobody else reads what a layer gave
        elif not isinstance(layer, Dropout):
            layers.append(layer)
    tower.input.linear = cast(nn.Linear, blocked(tower.input.linear) or tower.input.linear)  # one is called, no more
    tower.rest = nn.Sequential(*_blocked(layers))


def _blocked(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """The layers, large linear ones with the ReLUs behind them in blocks."""
    found: list[nn.Module] = []
    for layer in layers:
        if type(layer) is nn.ReLU and found and (both := blocked(found[-1], relu=True)):
            found[-1] = both
        else:
            found.append(layer)
    return [blocked(layer) or layer for layer in found]


def _gain(norm: nn.BatchNorm1d) -> Tensor:
    """What a norm in prediction multiplies each unit by."""
    assert norm.running_var is not None
    gain = torch.rsqrt(norm.running_var + norm.eps)
    return (gain * norm.weight if norm.affine else gain).detach()
