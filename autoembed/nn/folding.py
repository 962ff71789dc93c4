"""A model as servers run it: what batch norm does to a layer's output is part of the layer."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

from torch import nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

from autoembed.nn.layers import Dropout, Tower
from autoembed.nn.model import Model, members


def folded(model: Model) -> Model:
    """A copy for predictions alone, with fewer operations a row, on the same tables.

    Predictions differ by rounding. What is no `Tower`, and layers of 8 bits, stay as they are.
    """
    parts = [part for member in members(model) for part in (member.embedding, member.pairs)]
    copy = deepcopy(model, {id(part): part for part in parts})
    for module in copy.modules():
        if isinstance(module, Tower):
            # The first norm stays: a backbone may add to what the input layer gives.
            module.rest = nn.Sequential(*_folded(module.rest))
    return copy.eval()


def _folded(layers: Iterable[nn.Module]) -> list[nn.Module]:
    done: list[nn.Module] = []
    for layer in layers:
        if done and type(layer) is nn.BatchNorm1d and type(done[-1]) is nn.Linear:
            done[-1] = fuse_linear_bn_eval(done[-1].eval(), layer.eval())
        elif not isinstance(layer, Dropout):
            done.append(layer)
    return done
