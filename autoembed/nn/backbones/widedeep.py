"""Wide & Deep (Cheng et al., DLRS 2016, sec. 3), with the plain columns as the wide part."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from autoembed.nn.backbones import base
from autoembed.types import Array


class Config(base.DeepConfig):
    """The tower's options."""

    name: str = "widedeep"


class Backbone(base.Backbone):
    """Logit = sum of first-order weights + tower(e); the tower's output bias is the only bias."""

    first_order: ClassVar[bool] = True
    takes_pairs: ClassVar[bool] = True

    def __init__(self, config: Config, active: Array) -> None:
        super().__init__(config, active)
        self.tower = config.tower(active)

    def forward(self, e_BFD: Tensor, first_BF: Tensor | None) -> Tensor:
        assert first_BF is not None
        out: Tensor = first_BF.sum(1) + self.tower(e_BFD)
        return out
