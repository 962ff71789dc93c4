"""Layers that backbones share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from autoembed.architecture import Array


class InputLinear(nn.Module):
    """A linear layer over the active entries of [B, F, D]: pruned positions cost no weights."""

    index: Tensor

    def __init__(self, active: Array, width: int) -> None:
        super().__init__()
        self.dim = active.shape[1]
        self.all = bool(active.all())
        index = torch.tensor(np.flatnonzero(active.reshape(-1)))
        self.register_buffer("index", index, persistent=False)
        self.linear = nn.Linear(len(index), width)

    def forward(self, e_BFD: Tensor) -> Tensor:
        flat = e_BFD.flatten(1)
        out: Tensor = self.linear(flat if self.all else flat.index_select(1, self.index))
        return out

    @torch.no_grad()
    def inherit(self, source: InputLinear, fields: Sequence[int]) -> None:
        """Copies the columns of this layer's entries; `fields` gives the source's field of each field here."""
        wanted = torch.as_tensor(fields)[self.index // self.dim] * source.dim + self.index % self.dim
        columns = torch.searchsorted(source.index, wanted)
        self.linear.weight.copy_(source.linear.weight[:, columns])
        self.linear.bias.copy_(source.linear.bias)


def mlp(width: int, hidden: Sequence[int], *, dropout: float, batch_norm: bool) -> nn.Sequential:
    """What follows a tower's input layer of `width`: norm, ReLU, dropout, then the further layers and one output."""
    layers: list[nn.Module] = []
    for number, size in enumerate(hidden):
        if number:
            layers.append(nn.Linear(width, size))
        if batch_norm:
            layers.append(nn.BatchNorm1d(size))
        layers += [nn.ReLU(), nn.Dropout(dropout)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, 1))


class Tower(nn.Module):
    """The deep part of a click model: active entries -> hidden layers -> one logit."""

    def __init__(self, active: Array, hidden: Sequence[int], *, dropout: float, batch_norm: bool) -> None:
        super().__init__()
        self.input = InputLinear(active, hidden[0])
        self.rest = mlp(hidden[0], hidden, dropout=dropout, batch_norm=batch_norm)

    def forward(self, e_BFD: Tensor) -> Tensor:
        """[B, F, D] -> [B]."""
        out: Tensor = self.rest(self.input(e_BFD)).squeeze(1)
        return out


def factorization_machine(e_BFD: Tensor) -> Tensor:
    """The sum of all pairwise dot products, [B, F, D] -> [B] (Rendle 2010, eq. 5)."""
    return 0.5 * (e_BFD.sum(1).square() - e_BFD.square().sum(1)).sum(1)
