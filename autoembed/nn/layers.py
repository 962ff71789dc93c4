"""Layers that backbones share. B batch, F field, D dim, P = F(F-1)/2 pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoembed.types import Array


class Narrowable(nn.Module):
    """A layer whose weights belong to fields and dims, so that a narrower copy can inherit some of them."""

    def inherit(self, source: nn.Module, fields: Sequence[int]) -> None:
        """Copies this layer's part of a wider layer's weights; `fields` gives the source's field of each field here."""
        raise NotImplementedError


class Entries(Narrowable):
    """The active entries of [B, F, D], as a list of flat positions."""

    index: Tensor

    def __init__(self, active: Array) -> None:
        super().__init__()
        self.dim = active.shape[1]
        self.all = bool(active.all())
        self.size = int(active.sum())
        self.register_buffer("index", torch.tensor(np.flatnonzero(active.reshape(-1))), persistent=False)

    def take(self, e_BFD: Tensor) -> Tensor:
        """[B, F, D] -> [B, active entries]."""
        flat = e_BFD.flatten(1)
        return flat if self.all else flat.index_select(1, self.index)

    def columns(self, source: Entries, fields: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The entries here that the source has as well, and where they stand there."""
        field = torch.as_tensor(fields, device=self.index.device)[self.index // self.dim]
        wanted = field * source.dim + self.index % self.dim
        at = torch.searchsorted(source.index, wanted).clamp_(max=source.size - 1)
        own = torch.nonzero(source.index[at] == wanted).squeeze(1)
        return own, at[own]


class FlatLinear(Entries):
    """A linear layer over active entries that were taken already: pruned positions cost no weights."""

    def __init__(self, active: Array, units: int, *, bias: bool = True) -> None:
        super().__init__(active)
        self.linear = nn.Linear(self.size, units, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, active entries] -> [B, units]."""
        out: Tensor = self.linear(x)
        return out

    @torch.no_grad()
    def inherit(self, source: nn.Module, fields: Sequence[int]) -> None:
        assert isinstance(source, FlatLinear)
        own, theirs = self.columns(source, fields)
        self.linear.weight[:, own] = source.linear.weight[:, theirs]
        if self.linear.bias is not None:
            self.linear.bias.copy_(source.linear.bias)


class InputLinear(FlatLinear):
    """The same on whole embeddings."""

    def forward(self, e_BFD: Tensor) -> Tensor:
        """[B, F, D] -> [B, units]."""
        return super().forward(self.take(e_BFD))


class OutputLinear(Entries):
    """A linear layer that gives one number for each active entry."""

    def __init__(self, active: Array, units: int) -> None:
        super().__init__(active)
        self.linear = nn.Linear(units, self.size)

    def forward(self, x: Tensor) -> Tensor:
        """[..., units] -> [..., active entries]."""
        out: Tensor = self.linear(x)
        return out

    @torch.no_grad()
    def inherit(self, source: nn.Module, fields: Sequence[int]) -> None:
        assert isinstance(source, OutputLinear)
        own, theirs = self.columns(source, fields)
        self.linear.weight[own] = source.linear.weight[theirs]
        self.linear.bias[own] = source.linear.bias[theirs]


class PairLinear(Narrowable):
    """A linear layer over one number per pair of fields, pairs in the order (0, 1), (0, 2), ..., (F-2, F-1)."""

    def __init__(self, fields: int, units: int, *, bias: bool = True) -> None:
        super().__init__()
        self.fields = fields
        self.linear = nn.Linear(fields * (fields - 1) // 2, units, bias=bias)

    def forward(self, p_BP: Tensor) -> Tensor:
        """[B, P] -> [B, units]."""
        out: Tensor = self.linear(p_BP)
        return out

    @torch.no_grad()
    def inherit(self, source: nn.Module, fields: Sequence[int]) -> None:
        assert isinstance(source, PairLinear)
        left, right = (torch.as_tensor(fields)[side].numpy() for side in pairs(self.fields))
        total = source.fields
        low, high = np.minimum(left, right), np.maximum(left, right)
        columns = torch.as_tensor(low * (2 * total - low - 1) // 2 + high - low - 1)
        self.linear.weight.copy_(source.linear.weight[:, columns])
        if self.linear.bias is not None:
            self.linear.bias.copy_(source.linear.bias)


def pairs(fields: int) -> tuple[Tensor, Tensor]:
    """The two fields of each pair, int [P] each."""
    left, right = np.triu_indices(fields, 1)
    return torch.tensor(left), torch.tensor(right)


def inner_products(e_BFD: Tensor) -> Tensor:
    """The dot product of each pair of fields, [B, F, D] -> [B, P]."""
    left, right = pairs(e_BFD.shape[1])
    products = e_BFD @ e_BFD.transpose(1, 2)
    return products[:, left, right]


def factorization_machine(e_BFD: Tensor) -> Tensor:
    """The sum of all pairwise dot products, [B, F, D] -> [B] (Rendle 2010, eq. 5)."""
    return 0.5 * (e_BFD.sum(1).square() - e_BFD.square().sum(1)).sum(1)


class Dropout(nn.Module):
    """Dropout (Srivastava et al., JMLR 2014); p to the nearest 1/65536 on a CPU.

    There torch draws one Bernoulli number an entry, in one thread, which takes a seventh of a training step: four
    entries are decided by one 64-bit draw instead.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        if x.is_cuda:
            return functional.dropout(x, self.p)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        keep = bits[: x.numel()].view(x.shape) >= round(self.p * 2**16) - 2**15
        return x * torch.where(keep, 1 / (1 - self.p), 0.0)


def hidden_layers(hidden: Sequence[int], *, dropout: float, batch_norm: bool) -> nn.Sequential:
    """What follows a linear layer of hidden[0] units: norm, ReLU, dropout, and the further hidden layers."""
    layers: list[nn.Module] = []
    for number, size in enumerate(hidden):
        if number:
            layers.append(nn.Linear(hidden[number - 1], size))
        if batch_norm:
            layers.append(nn.BatchNorm1d(size))
        layers += [nn.ReLU(), Dropout(dropout)]
    return nn.Sequential(*layers)


def one_or_several(x_BO: Tensor) -> Tensor:
    """The outputs of a last layer [B, outputs], or [B] if there is one."""
    return x_BO.squeeze(1) if x_BO.shape[1] == 1 else x_BO  # ONNX squeezes no dimension of another size


class Tower(nn.Module):
    """The deep part of a click model: active entries -> hidden layers -> one logit, or one for each of `outputs`.

    Attributes:
        gain: where the first norm was folded into the input layer, what it multiplies each unit by.
    """

    gain: Tensor | None

    def __init__(
        self, active: Array, hidden: Sequence[int], *, dropout: float, batch_norm: bool, outputs: int = 1
    ) -> None:
        super().__init__()
        self.register_buffer("gain", None)
        self.input = InputLinear(active, hidden[0])
        self.rest = hidden_layers(hidden, dropout=dropout, batch_norm=batch_norm)
        self.output = nn.Linear(hidden[-1], outputs)

    def hidden(self, e_BFD: Tensor, added_BU: Tensor | None = None) -> Tensor:
        """[B, F, D] -> the last hidden layer, [B, hidden[-1]].

        What a backbone adds to the input layer's output, [B, hidden[0]], comes in here: it may stand before a norm.
        """
        first: Tensor = self.input(e_BFD)
        if added_BU is not None:
            first = first + (added_BU if self.gain is None else added_BU * self.gain)
        out: Tensor = self.rest(first)
        return out

    def forward(self, e_BFD: Tensor, added_BU: Tensor | None = None) -> Tensor:
        """The same -> [B], or [B, outputs] of several."""
        return one_or_several(self.output(self.hidden(e_BFD, added_BU)))
