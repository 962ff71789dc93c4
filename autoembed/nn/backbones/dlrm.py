"""DLRM (Naumov et al., arXiv 1906.00091, sec. 2): a top tower on pairwise dot products.

Numeric columns are binned like all others here, so there is no bottom tower for dense features.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from autoembed.errors import SpaceError
from autoembed.nn.backbones import base
from autoembed.nn.layers import PairLinear, hidden_layers, inner_products, one_or_several
from autoembed.types import Array


class Config(base.DeepConfig):
    """The top tower's options."""

    name: str = "dlrm"


class Backbone(base.Backbone):
    """Logit = tower(dot products of all pairs)."""

    gives_classes: ClassVar[bool] = True

    def __init__(self, config: Config, active: Array, outputs: int = 1) -> None:
        super().__init__(config, active, outputs)
        if len(active) < 2:
            raise SpaceError(f"dlrm crosses pairs of fields, so it needs at least 2, but got {len(active)}")
        self.input = PairLinear(len(active), config.hidden[0])
        self.rest = hidden_layers(config.hidden, dropout=config.dropout, batch_norm=config.batch_norm)
        self.output = nn.Linear(config.hidden[-1], outputs)

    def forward(self, e_BFD: Tensor, first_BF: Tensor | None) -> Tensor:
        return one_or_several(self.output(self.rest(self.input(inner_products(e_BFD)))))
