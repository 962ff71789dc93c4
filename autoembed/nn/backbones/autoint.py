"""AutoInt (Song et al., CIKM 2019, sec. 4.4): multi-head self-attention over fields; AutoInt+ adds a tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from autoembed.nn.backbones import base
from autoembed.nn.layers import InputLinear, one_or_several
from autoembed.types import Array


class Config(base.DeepConfig):
    """`layers` of `heads` heads of `head_units` each; `scale` divides scores by its root; `deep` adds the tower."""

    renamed: ClassVar[Mapping[str, str]] = {"width": "head_units"}

    name: str = "autoint"
    layers: int = Field(default=3, ge=1)
    heads: int = Field(default=2, ge=1)
    head_units: int = Field(default=20, ge=1)
    scale: bool = False
    deep: bool = True


class Attention(nn.Module):
    """One interacting layer (eq. 5-8): ReLU(attention + W_res e)."""

    def __init__(self, dim: int, heads: int, units: int, scale: bool) -> None:
        super().__init__()
        self.heads, self.scale = heads, units**-0.5 if scale else 1.0
        self.query, self.key, self.value, self.residual = (nn.Linear(dim, heads * units, bias=False) for _ in range(4))

    def forward(self, x_BFD: Tensor, alive_F: Tensor) -> Tensor:
        """[B, F, dim] -> [B, F, heads * units]; fields that are not alive are neither read nor written."""
        shape = (*x_BFD.shape[:2], self.heads, -1)
        q, k, v = (map_(x_BFD).view(shape).transpose(1, 2) for map_ in (self.query, self.key, self.value))
        scores = (q @ k.transpose(2, 3)) * self.scale
        weights = scores.masked_fill(~alive_F, float("-inf")).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).flatten(2)
        return torch.relu(mixed + self.residual(x_BFD)) * alive_F.unsqueeze(1)


class Backbone(base.Backbone):
    """Logit = w attention layers(e) + b, plus tower(e) with `deep`."""

    gives_classes: ClassVar[bool] = True

    def __init__(self, config: Config, active: Array, outputs: int = 1) -> None:
        super().__init__(config, active, outputs)
        fields, dim = active.shape
        out = config.heads * config.head_units
        sizes = [dim] + [out] * (config.layers - 1)
        self.attention = nn.ModuleList(Attention(size, config.heads, config.head_units, config.scale) for size in sizes)
        self.output = InputLinear(np.ones((fields, out), dtype=bool), outputs)
        self.tower = config.tower(active, outputs) if config.deep else None

    def forward(self, e_BFD: Tensor, first_BF: Tensor | None) -> Tensor:
        x = e_BFD
        for layer in self.attention:
            x = layer(x, self.alive)
        out = one_or_several(self.output(x))
        return out if self.tower is None else out + self.tower(e_BFD)
