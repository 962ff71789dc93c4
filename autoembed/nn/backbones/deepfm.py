"""DeepFM (Guo et al., IJCAI 2017, sec. 2): first order + factorization machine + tower on shared embeddings."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from autoembed.architecture import Array
from autoembed.nn.backbones import base
from autoembed.nn.layers import Tower, factorization_machine


class Config(base.BackboneConfig):
    """Tower of `hidden` layers with `dropout` and, by default, batch norm."""

    name: str = "deepfm"
    hidden: tuple[int, ...] = Field(default=(400, 400, 400), min_length=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    batch_norm: bool = True


class Backbone(base.Backbone):
    """Logit = bias + sum of first-order weights + FM(e) + tower(e)."""

    first_order: ClassVar[bool] = True

    def __init__(self, config: Config, active: Array) -> None:
        super().__init__(config, active)
        self.tower = Tower(active, config.hidden, dropout=config.dropout, batch_norm=config.batch_norm)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, e_BFD: Tensor, first_BF: Tensor | None) -> Tensor:
        assert first_BF is not None
        out: Tensor = self.bias + first_BF.sum(1) + factorization_machine(e_BFD) + self.tower(e_BFD)
        return out
