"""ARM-Net (Cai et al., SIGMOD 2021, sec. 4): exponential neurons cross fields with powers that sparse attention gives.

The shapes follow the authors' code (bilinear attention per head, one value vector per neuron, batch norm on neurons).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from autoembed.nn.backbones import base
from autoembed.nn.layers import Narrowable, hidden_layers, one_or_several
from autoembed.types import Array


class Config(base.DeepConfig):
    """`heads` of `neurons`; attention in `key` dims, alpha-entmax (1 is softmax, 2 sparsemax)."""

    name: str = "armnet"
    heads: int = Field(default=1, ge=1)
    neurons: int = Field(default=16, ge=1)
    key: int = Field(default=10, ge=1)
    alpha: float = Field(default=1.7, ge=1, le=2)


class _Kept(torch.autograd.function.FunctionCtx):
    """What the forward pass leaves for the backward one."""

    alpha: float
    saved_tensors: tuple[Tensor, ...]


class Entmax(torch.autograd.Function):
    """alpha-entmax over the last dim (Peters et al., ACL 2019), its threshold by Newton's method."""

    @staticmethod
    def forward(ctx: _Kept, x: Tensor, alpha: float) -> Tensor:
        z, power = x * (alpha - 1), 1 / (alpha - 1)
        # The sum over p is convex and falling in the threshold, so from below Newton rises to where it is 1.
        threshold = z.amax(-1, keepdim=True) - 1
        for _ in range(10):
            gap = (z - threshold).clamp_min(0)
            slope = torch.where(gap > 0, gap ** (power - 1), torch.zeros_like(gap))
            excess = (slope * gap).sum(-1, keepdim=True) - 1
            threshold = threshold + excess / (power * slope.sum(-1, keepdim=True))
        p = (z - threshold).clamp_min(0) ** power
        p = p / p.sum(-1, keepdim=True)
        ctx.save_for_backward(p)
        ctx.alpha = alpha
        return p

    @staticmethod
    def backward(ctx: _Kept, *gradients: Tensor) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors
        slope = torch.where(p > 0, p ** (2 - ctx.alpha), torch.zeros_like(p))
        mean = (gradients[0] * slope).sum(-1, keepdim=True) / slope.sum(-1, keepdim=True)
        return slope * (gradients[0] - mean), None


def entmax(x: Tensor, alpha: float) -> Tensor:
    """A sparse softmax over the last dim; softmax itself at alpha 1."""
    if alpha == 1:
        return x.softmax(-1)
    out: Tensor = Entmax.apply(x, alpha)  # type: ignore[no-untyped-call]  # torch gives apply() no types
    return out


class Values(Narrowable):
    """The powers' own weights, one for each neuron and field: [K, O, F]."""

    def __init__(self, heads: int, neurons: int, fields: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, neurons, fields))
        nn.init.xavier_uniform_(self.weight, gain=1.414)

    @torch.no_grad()
    def inherit(self, source: nn.Module, fields: Sequence[int]) -> None:
        assert isinstance(source, Values)
        self.weight.copy_(source.weight[..., torch.as_tensor(fields, device=self.weight.device)])


class Backbone(base.Backbone):
    """Logit = tower(BN(exp(sum over fields of w e))), w = entmax(attention) * values."""

    gives_classes: ClassVar[bool] = True

    def __init__(self, config: Config, active: Array, outputs: int = 1) -> None:
        super().__init__(config, active, outputs)
        fields, dim = active.shape
        self.alpha, self.scale = config.alpha, config.key**-0.5
        self.bilinear = nn.Parameter(torch.empty(config.heads, dim, config.key))
        self.query = nn.Parameter(torch.empty(config.heads, config.neurons, config.key))
        nn.init.xavier_uniform_(self.bilinear, gain=1.414)
        nn.init.xavier_uniform_(self.query, gain=1.414)
        self.values = Values(config.heads, config.neurons, fields)
        self.norm = nn.BatchNorm1d(config.heads * config.neurons)
        self.input = nn.Linear(config.heads * config.neurons * dim, config.hidden[0])
        self.rest = hidden_layers(config.hidden, dropout=config.dropout, batch_norm=config.batch_norm)
        self.output = nn.Linear(config.hidden[-1], outputs)

    def forward(self, e_BFD: Tensor, first_BF: Tensor | None) -> Tensor:
        scores = torch.einsum("bfx,kxy,koy->bkof", e_BFD, self.bilinear, self.query) * self.scale
        scores = scores.masked_fill(~self.alive, -1e9)
        gates = entmax(scores, self.alpha)
        powers = gates * self.values.weight
        neurons = torch.exp(torch.einsum("bfe,bkof->bkoe", e_BFD, powers)).flatten(1, 2)
        return one_or_several(self.output(self.rest(self.input(self.norm(neurons).flatten(1)))))
