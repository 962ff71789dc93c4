"""A model's weights under the names that FuxiCTR's layers give them. F field, D dim."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from autoembed.architecture import Architecture
from autoembed.nn.backbones import dcn
from autoembed.nn.backbones.base import Backbone
from autoembed.nn.layers import Entries, FlatLinear, Tower
from autoembed.nn.model import CTRModel
from autoembed.nn.quantised import PackedLinear
from autoembed.types import Array

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The dims that each field's table has, bool [F, D]."""

    mask: Array

    @classmethod
    def of(cls, architecture: Architecture, *, flat: bool) -> Kept:
        """All dims, or with `flat` those that any block of the field keeps: its part of the input is no longer."""
        return cls(mask=architecture.active() if flat else np.ones_like(architecture.active()))

    def widths(self) -> list[int]:
        widths: list[int] = self.mask.sum(axis=1).tolist()
        return widths

    def columns(self, entries: Entries) -> Tensor:
        """Where active entries stand among the concatenated tables: int64 [active entries]."""
        return torch.from_numpy(np.searchsorted(np.flatnonzero(self.mask.reshape(-1)), entries.index.numpy()))


def state_of(model: CTRModel, tables: Mapping[str, Tensor], kept: Kept) -> State:
    """All tensors of FuxiCTR's model.

    Args:
        model: a model with one of the backbones of `fuxictr_config.MODELS`.
        tables: of each field, float [cardinality, D (+ 1 first-order weight)].
        kept: the dims that the tables there have.
    """
    backbone, name = model.backbone, str(model.architecture.backbone["name"])
    assert isinstance(backbone, Backbone)
    dim, state = model.architecture.dim, State()
    if name == "lr":
        state |= _tables("lr_layer.embedding_layer", tables)
    else:
        bodies = zip(tables.items(), kept.mask, strict=True)
        state |= _tables("embedding_layer", {field: table[:, :dim][:, mask] for (field, table), mask in bodies})
    if model.first_order:
        where = "lr_layer" if name == "widedeep" else "fm.lr_layer"
        state |= _tables(f"{where}.embedding_layer", {field: table[:, -1:] for field, table in tables.items()})
    bias = getattr(backbone, "bias", None)
    if bias is not None:
        state[f"{'' if name == 'lr' else 'fm.'}lr_layer.bias"] = bias.reshape(1)
    if isinstance(backbone, dcn.Backbone):
        state |= _cross(backbone, kept)
    tower = getattr(backbone, "tower", None)
    if isinstance(tower, Tower):
        state |= _tower("dnn.mlp" if name == "widedeep" else "mlp.mlp", tower.input, tower.rest, tower.output, kept)
    return {key: tensor.detach().float().contiguous().clone() for key, tensor in state.items()}


def _tables(prefix: str, tables: Mapping[str, Tensor]) -> State:
    return {f"{prefix}.embedding_layer.embedding_layers.{field}.weight": table for field, table in tables.items()}


def _cross(backbone: dcn.Backbone, kept: Kept) -> State:
    """DCN-V2, whose last layer reads the cross layers and the tower at once where they stand side by side."""
    state, size = State(), int(kept.mask.sum())
    for number, layer in enumerate(backbone.cross):
        assert isinstance(layer, dcn.CrossLayer)
        at, weight = kept.columns(layer), torch.zeros(size, size)
        weight[at[:, None], at] = _weight(layer.linear)
        state[f"crossnet.cross_layers.{number}.weight"] = weight
        state[f"crossnet.cross_layers.{number}.bias"] = torch.zeros(size).index_copy(0, at, _bias(layer.linear))
    output = _weight(backbone.output)
    if backbone.parallel:
        output = torch.cat([_wide(backbone.crossed, kept), output], dim=1)
    state |= {"fc.weight": output, "fc.bias": _bias(backbone.output)}
    prefix = "parallel_dnn.mlp" if backbone.parallel else "stacked_dnn.mlp"
    return state | _tower(prefix, backbone.input, backbone.rest, None, kept)


def _tower(prefix: str, first: FlatLinear, rest: nn.Module, output: nn.Module | None, kept: Kept) -> State:
    """A tower as the Sequential of an MLP_Block, which has no place for a dropout of 0."""
    assert isinstance(rest, nn.Sequential)
    state = {f"{prefix}.0.weight": _wide(first, kept), f"{prefix}.0.bias": _bias(first.linear)}
    for place, layer in enumerate(_placed(rest), start=1):
        state |= _layer(f"{prefix}.{place}", layer)
    if output is not None:
        state |= _layer(f"{prefix}.{place + 1}", output)
    return state


def _placed(layers: Sequence[nn.Module] | nn.Sequential) -> Iterator[nn.Module]:
    return (layer for layer in layers if getattr(layer, "p", 1))


def _layer(prefix: str, layer: nn.Module) -> State:
    if isinstance(layer, PackedLinear | nn.Linear):
        return {f"{prefix}.weight": _weight(layer), f"{prefix}.bias": _bias(layer)}
    if isinstance(layer, nn.BatchNorm1d):
        own: State = layer.state_dict()
        return {f"{prefix}.{name}": tensor for name, tensor in own.items()}
    return {}


def _wide(layer: FlatLinear, kept: Kept) -> Tensor:
    """The weights of a layer over active entries, with zeros for the others that the tables have."""
    own = _weight(layer.linear)
    return own.new_zeros(len(own), int(kept.mask.sum())).index_copy(1, kept.columns(layer), own)


def _weight(layer: nn.Module) -> Tensor:
    """Float weights [out, in], also of a layer that is served in fewer bits."""
    if isinstance(layer, PackedLinear):
        wide = layer.codes.float()
        return wide * layer.scale[:, None] if layer.bits == 8 else wide
    assert isinstance(layer, nn.Linear)
    return layer.weight.detach()


def _bias(layer: nn.Module) -> Tensor:
    assert isinstance(layer, PackedLinear | nn.Linear)
    assert layer.bias is not None
    return layer.bias.detach()
