"""A model as servers run it: what batch norm does to a layer's output is part of the layer, and so are ReLUs."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

from autoembed.fast import compiles_lookups
from autoembed.nn.backbones import deepfm
from autoembed.nn.blocked import blocked
from autoembed.nn.embedding import MixedEmbedding
from autoembed.nn.layers import Dropout, Tower
from autoembed.nn.model import Model, members


def folded(model: Model) -> Model:
    """A copy for predictions alone, with fewer operations a row, on the same tables.

    Predictions differ by rounding. What is no `Tower`, and layers of 8 bits, stay as they are.
    """
    known: dict[int, object] = {}
    for member in members(model):
        known |= {id(member.embedding): _served(member.embedding), id(member.pairs): member.pairs}
    found = deepcopy(model, known).eval()
    for module in found.modules():
        if isinstance(module, Tower):
            _fold(module)
    for member in members(found):
        if compiles_lookups() and type(member.backbone) is deepfm.Backbone and not (member.pairs or member.heads):
            from autoembed.nn.one_pass import OnePass

            member.backbone, member.first_order = OnePass(member.backbone), False  # they stay where they were read
    return found


def _served(embedding: nn.Module) -> nn.Module:
    """An embedding of its own, with the same tables."""
    own = copy(embedding)
    if isinstance(own, MixedEmbedding):
        own.served = True
    return own


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
