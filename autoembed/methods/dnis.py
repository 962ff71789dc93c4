"""DNIS, Differentiable Neural Input Search (Cheng, Shen and Huang, arXiv 2006.04466; AutoSrh, TKDE 2023).

A soft selection layer alpha in [0, 1] stands between the embeddings and the interactions: the entry of a value at dim d
is multiplied by alpha[block of the value, d] (sec. 3.2). Alpha moves on held-out batches by SGD on L + l1 |alpha|, its
gradient divided by each row's mean magnitude, and is clamped (sec. 3.3). Then dims of blocks are cut.

Three choices are ours and are options. `share: field` gives each field its own row of alpha in each frequency block,
since values of two fields that are equally frequent need not be equally useful; `share: global` is the paper's.
`choose_by: loss` meets a budget by what widths and bits of the gated net cost in loss (`measured`); `weight`, as in the
paper, by the size of e * alpha, which measures frequency as well and starves rare values. And we keep dims per block,
dense and fast; `granularity: entry` masks single entries as the paper does, with a bit each that is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from autoembed.architecture import Architecture
from autoembed.data.schema import FeatureSchema
from autoembed.methods import measured, supernet
from autoembed.methods.entries import EntryConfig
from autoembed.methods.method import GateConfig
from autoembed.types import Array


class Config(EntryConfig, measured.MeasuredConfig, GateConfig):
    """Options; defaults are the authors' where they state one.

    The authors' code updates only the embeddings beside alpha. Dims have no order (`basis: plain`), as each dim has a
    gate of its own.

    Args:
        arch_lr: learning rate of the gates.
        l1: weight of the gates' L1 norm.
        share: one gate for each frequency block and dim, of each field (`field`) or of all together as in the paper
            (`global`).
        threshold: what a score must exceed if the study has no budget.
        choose_by: the loss on held-out rows, or the size of gated weights as in the paper (`weight`).
    """

    PAPER: ClassVar[Mapping[str, object]] = {
        "share": "global",
        "choose_by": "weight",
        "granularity": "entry",
        "returns": "flat",
        "guard": "none",
        "retrain": "fresh",
    }

    method: str = "dnis"
    arch_lr: float = Field(default=1e-2, gt=0)
    l1: float = Field(default=1e-5, ge=0)
    share: Literal["field", "global"] = "field"
    threshold: float = Field(default=1e-2, ge=0)
    choose_by: Literal["loss", "weight"] = "loss"
    basis: Literal["plain", "nested"] = "plain"


class Supernet(measured.Supernet):
    """A full-width model with one alpha per row of the selection layer and dim, all starting at 1."""

    row: Tensor

    def __init__(
        self, schema: FeatureSchema, parent: Architecture, config: Config, counts: Sequence[Array], seed: int
    ) -> None:
        super().__init__(schema, parent, config, counts, seed)
        row = np.arange(len(parent.block_rows()))
        if config.share == "global":
            row = parent.block_levels()
        self.register_buffer("row", torch.tensor(row), persistent=False)
        self.alpha = nn.Parameter(torch.ones(int(row.max()) + 1, parent.dim))

    def gates(self) -> Tensor:
        alpha = self.alpha[self.row]
        if self.first_order:
            alpha = torch.cat([alpha, alpha.new_ones(len(alpha), 1)], dim=1)
        return alpha * self.mask

    def arch_parameters(self) -> list[nn.Parameter]:
        return [self.alpha]

    def penalty(self) -> Tensor:
        out: Tensor = self.config.l1 * self.alpha.abs().sum()
        return out

    def step_gates(self, gradients: Sequence[Tensor]) -> None:
        (gradient,) = gradients
        with torch.no_grad():
            gradient = gradient / (gradient.abs().mean(dim=1, keepdim=True) + 1e-8)
            self.alpha.sub_(self.config.arch_lr * gradient).clamp_(0, 1)

    def diagnostics(self) -> dict[str, float]:
        alpha = self.alpha.detach()
        return {
            "alpha_mean": alpha.mean().item(),
            "alpha_zero": (alpha == 0).float().mean().item(),
            "alpha_one": (alpha == 1).float().mean().item(),
        }

    def scores(self) -> Array:
        dim = self.parent.dim
        alpha = self.gates()[:, :dim].detach().cpu().numpy()
        return np.asarray(self.block_means(self.weight[:, :dim].abs()) * alpha)

    def choose(self, limit: int | None) -> Architecture:
        if limit is None:
            return self.parent_with(self.scores() >= self.config.threshold)
        if self.config.choose_by == "weight":
            return supernet.Supernet.choose(self, limit)
        return super().choose(limit)
