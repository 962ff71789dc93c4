"""Factorization machine (Rendle, ICDM 2010, eq. 1)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from autoembed.nn.backbones import base
from autoembed.nn.layers import factorization_machine
from autoembed.types import Array


class Config(base.BackboneConfig):
    """No options."""

    name: str = "fm"


class Backbone(base.Backbone):
    """Logit = bias + sum of first-order weights + sum of pairwise dot products."""

    first_order: ClassVar[bool] = True

    def __init__(self, config: Config, active: Array) -> None:
        super().__init__(config, active)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, e_BFD: Tensor, first_BF: Tensor | None) -> Tensor:
        assert first_BF is not None
        out: Tensor = self.bias + first_BF.sum(1) + factorization_machine(e_BFD)
        return out
