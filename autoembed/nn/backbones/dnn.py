"""A tower on concatenated embeddings, the "deep" model (Covington et al., RecSys 2016, sec. 3)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from autoembed.nn.backbones import base
from autoembed.types import Array


class Config(base.DeepConfig):
    """The tower's options."""

    name: str = "dnn"


class Backbone(base.Backbone):
    """Logit = tower(e)."""

    takes_pairs: ClassVar[bool] = True
    gives_classes: ClassVar[bool] = True

    def __init__(self, config: Config, active: Array, outputs: int = 1) -> None:
        super().__init__(config, active, outputs)
        self.tower = config.tower(active, outputs)

    def forward(self, e_BFD: Tensor, first_BF: Tensor | None) -> Tensor:
        out: Tensor = self.tower(e_BFD)
        return out
