"""Towers of auxiliary labels on the embeddings that the main label's backbone reads.

Models of several labels share what is below their towers (Caruana, Machine Learning 1997): here the embedding tables.
B batch, F field, D dim, L auxiliary label.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from autoembed.nn.backbones.base import tower
from autoembed.types import Array


class Heads(nn.Module):
    """A plain tower for each auxiliary label, with the hidden layers of the backbone; first-order weights are not read.

    SpaceError if the backbone has no hidden layers.

    Args:
        options: the `backbone:` section.
        active: which entries of the backbone's input may differ from zero, bool [F, D].
        labels: the auxiliary labels, L of them.

    Attributes:
        apart: labels whose towers are trained without moving what they read.
    """

    def __init__(self, options: Mapping[str, object], active: Array, labels: Sequence[str]) -> None:
        super().__init__()
        self.labels = tuple(labels)
        self.apart: Collection[str] = ()
        self.towers = nn.ModuleList(tower(options, active) for _ in labels)

    def forward(self, e_BFD: Tensor) -> Tensor:
        """Embeddings of fields and pairs [B, F, D] -> logits [B, L]."""
        inputs = [e_BFD.detach() if label in self.apart else e_BFD for label in self.labels]
        return torch.stack([one(e) for one, e in zip(self.towers, inputs, strict=True)], dim=1)


def heads_of(options: Mapping[str, object], active: Array, labels: Sequence[str]) -> Heads | None:
    """The towers of auxiliary labels; None if there are no such labels."""
    return Heads(options, active, labels) if labels else None
