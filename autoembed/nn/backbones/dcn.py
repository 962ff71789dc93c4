"""DCN-V2 (Wang et al., WWW 2021, sec. 3): x_{l+1} = x_0 * (W x_l + b) + x_l beside or below a tower.

An entry that is zero in x_0 stays zero, so the cross layers run on active entries only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from autoembed.nn.backbones import base
from autoembed.nn.layers import Entries, FlatLinear, hidden_layers, one_or_several
from autoembed.types import Array


class Config(base.DeepConfig):
    """`layers` cross layers; a "parallel" tower reads the embeddings, a "stacked" one the last cross layer."""

    name: str = "dcn"
    layers: int = Field(default=3, ge=1)
    structure: Literal["parallel", "stacked"] = "parallel"


class CrossLayer(Entries):
    """One full-rank cross layer on n active entries: n^2 + n weights."""

    def __init__(self, active: Array) -> None:
        super().__init__(active)
        self.linear = nn.Linear(self.size, self.size)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """[B, n] twice -> [B, n]."""
        out: Tensor = x0 * self.linear(x) + x
        return out

    @torch.no_grad()
    def inherit(self, source: nn.Module, fields: Sequence[int]) -> None:
        assert isinstance(source, CrossLayer)
        own, theirs = self.columns(source, fields)
        self.linear.weight[own[:, None], own] = source.linear.weight[theirs][:, theirs]
        self.linear.bias[own] = source.linear.bias[theirs]


class Backbone(base.Backbone):
    """Logit = w [cross(e), tower(e)] + b, or w tower(cross(e)) + b when stacked."""

    takes_pairs: ClassVar[bool] = True
    gives_classes: ClassVar[bool] = True

    def __init__(self, config: Config, active: Array, outputs: int = 1) -> None:
        super().__init__(config, active, outputs)
        self.parallel = config.structure == "parallel"
        self.cross = nn.ModuleList(CrossLayer(active) for _ in range(config.layers))
        self.input = FlatLinear(active, config.hidden[0])
        self.rest = hidden_layers(config.hidden, dropout=config.dropout, batch_norm=config.batch_norm)
        self.output = nn.Linear(config.hidden[-1], outputs)
        if self.parallel:
            self.crossed = FlatLinear(active, outputs, bias=False)

    def forward(self, e_BFD: Tensor, first_BF: Tensor | None) -> Tensor:
        x0 = x = self.input.take(e_BFD)
        for layer in self.cross:
            x = layer(x0, x)
        out: Tensor = self.output(self.rest(self.input(x0 if self.parallel else x)))
        if self.parallel:
            out = out + self.crossed(x)
        return one_or_several(out)
