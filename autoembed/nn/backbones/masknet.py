"""MaskNet (Wang et al., DLP-KDD 2021, sec. 3): mask blocks guided by the instance, in series or in parallel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from autoembed.nn.backbones import base
from autoembed.nn.layers import Dropout, InputLinear, OutputLinear, hidden_layers, one_or_several
from autoembed.types import Array


class Config(base.BackboneConfig):
    """`hidden`: the blocks' units in series, the tower above `blocks` blocks of `block_units` units in parallel.

    `aggregation` is the units of a mask's hidden layer, which the paper gives as a multiple of the mask's own.
    """

    renamed: ClassVar[Mapping[str, str]] = {"block_width": "block_units"}

    name: str = "masknet"
    structure: Literal["serial", "parallel"] = "parallel"
    hidden: tuple[int, ...] = Field(default=(400, 400, 400), min_length=1)
    blocks: int = Field(default=4, ge=1)
    block_units: int = Field(default=64, ge=1)
    aggregation: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)


class EmbeddingBlock(nn.Module):
    """A mask block on embeddings: ReLU(LN(W (mask(e) * LN(e)))), the inner LN per field (eq. 6-8)."""

    def __init__(self, active: Array, units: int, aggregation: int) -> None:
        super().__init__()
        # Norms lift pruned entries off zero, so what follows a norm has weights for all of them.
        everywhere = np.ones_like(active)
        self.guide = InputLinear(active, aggregation)
        self.mask = OutputLinear(everywhere, aggregation)
        self.linear = InputLinear(everywhere, units, bias=False)
        self.norm = nn.LayerNorm(units)

    def forward(self, e_BFD: Tensor, normed_BFD: Tensor) -> Tensor:
        mask = self.mask(torch.relu(self.guide(e_BFD))).view_as(e_BFD)
        return torch.relu(self.norm(self.linear(normed_BFD * mask)))


class HiddenBlock(nn.Module):
    """A mask block on a hidden layer: ReLU(LN(W (mask(e) * x)))."""

    def __init__(self, active: Array, units: int, out: int, aggregation: int) -> None:
        super().__init__()
        self.guide = InputLinear(active, aggregation)
        self.mask = nn.Linear(aggregation, units)
        self.linear = nn.Linear(units, out, bias=False)
        self.norm = nn.LayerNorm(out)

    def forward(self, e_BFD: Tensor, x: Tensor) -> Tensor:
        mask = self.mask(torch.relu(self.guide(e_BFD)))
        return torch.relu(self.norm(self.linear(x * mask)))


class Backbone(base.Backbone):
    """Logit = w (last block) + b in series, or a tower on the joined blocks in parallel."""

    gives_classes: ClassVar[bool] = True

    def __init__(self, config: Config, active: Array, outputs: int = 1) -> None:
        super().__init__(config, active, outputs)
        self.norm = nn.LayerNorm(active.shape[1])
        self.dropout = Dropout(config.dropout)
        self.serial = config.structure == "serial"
        hidden: Sequence[int] = config.hidden
        if self.serial:
            self.first = nn.ModuleList([EmbeddingBlock(active, hidden[0], config.aggregation)])
            self.further = nn.ModuleList(
                HiddenBlock(active, size, out, config.aggregation) for size, out in pairwise(hidden)
            )
        else:
            self.first = nn.ModuleList(
                EmbeddingBlock(active, config.block_units, config.aggregation) for _ in range(config.blocks)
            )
            self.join = nn.Linear(config.blocks * config.block_units, hidden[0])
            self.rest = hidden_layers(hidden, dropout=config.dropout, batch_norm=False)
        self.output = nn.Linear(hidden[-1], outputs)

    def forward(self, e_BFD: Tensor, first_BF: Tensor | None) -> Tensor:
        normed = self.norm(e_BFD) * self.alive.unsqueeze(1)
        x = torch.cat([self.dropout(block(e_BFD, normed)) for block in self.first], dim=1)
        if self.serial:
            for block in self.further:
                x = self.dropout(block(e_BFD, x))
        else:
            x = self.rest(self.join(x))
        return one_or_several(self.output(x))
