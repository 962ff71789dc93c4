"""Product-based neural network (Qu et al., ICDM 2016, sec. III): a tower on embeddings and their products."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from autoembed.nn.backbones import base
from autoembed.nn.layers import PairLinear, inner_products
from autoembed.types import Array


class Config(base.DeepConfig):
    """`product`: "inner", one dot product per pair, or "outer", (sum of e)(sum of e)^T as the paper superposes it."""

    name: str = "pnn"
    product: Literal["inner", "outer"] = "inner"


class Backbone(base.Backbone):
    """The tower's first layer adds a linear map of the products to that of the embeddings."""

    gives_classes: ClassVar[bool] = True

    def __init__(self, config: Config, active: Array, outputs: int = 1) -> None:
        super().__init__(config, active, outputs)
        fields, dim = active.shape
        self.tower = config.tower(active, outputs)
        self.inner = config.product == "inner"
        units = config.hidden[0]
        self.products = PairLinear(fields, units, bias=False) if self.inner else nn.Linear(dim * dim, units, bias=False)

    def forward(self, e_BFD: Tensor, first_BF: Tensor | None) -> Tensor:
        if self.inner:
            products = inner_products(e_BFD)
        else:
            total = e_BFD.sum(1)
            products = (total.unsqueeze(2) * total.unsqueeze(1)).flatten(1)
        out: Tensor = self.tower(e_BFD, self.products(products))
        return out
