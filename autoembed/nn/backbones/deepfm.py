"""DeepFM (Guo et al., IJCAI 2017, sec. 2): first order + factorization machine + tower on shared embeddings."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from autoembed.nn.backbones import base
from autoembed.nn.layers import factorization_machine
from autoembed.types import Array


class Config(base.DeepConfig):
    """The tower's options."""

    name: str = "deepfm"


class Backbone(base.Backbone):
    """Logit = bias + sum of first-order weights + FM(e) + tower(e)."""

    first_order: ClassVar[bool] = True
    takes_pairs: ClassVar[bool] = True

    def __init__(self, config: Config, active: Array) -> None:
        super().__init__(config, active)
        self.tower = config.tower(active)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, e_BFD: Tensor, first_BF: Tensor | None) -> Tensor:
        assert first_BF is not None
        fields = e_BFD[:, : first_BF.shape[1]]
        out: Tensor = self.bias + first_BF.sum(1) + factorization_machine(fields) + self.tower(e_BFD)
        return out
