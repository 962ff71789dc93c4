"""Logistic regression: one weight for each value."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoembed.errors import SpaceError
from autoembed.nn.backbones import base
from autoembed.types import Array


class Config(base.BackboneConfig):
    """No options."""

    name: str = "lr"


class Backbone(base.Backbone):
    """Logit = bias + sum of the values' weights; the embedding is that weight, so its width is 1."""

    def __init__(self, config: Config, active: Array) -> None:
        super().__init__(config, active)
        if active.shape[1] != 1:
            raise SpaceError(
                f"backbone lr has one weight for each value, so there are no widths to choose: set embedding.dim: 1 "
                f"(got {active.shape[1]})"
            )
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, e_BFD: Tensor, first_BF: Tensor | None) -> Tensor:
        return self.bias + e_BFD.sum((1, 2))
