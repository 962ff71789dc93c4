"""From the embeddings of a row's values to one embedding a field.

The encoded table has one column for each field, and several for a multi-valued one: V columns, F fields.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autoembed.plans import Pooling as By
from autoembed.plans import TableInputs


def pooling_of(fields: Sequence[TableInputs]) -> Pooling | None:
    """What pools the embeddings of these fields; None if each is one input of one value a row."""
    return Pooling(fields) if any(one.pool for field in fields for one in field.inputs) else None


class Pooling(nn.Module):
    """Embeddings of values [B, V, C] and their ids int [B, V], PAD where there is no value -> float [B, I, C].

    I counts the inputs of the backbone: each field, and behind it those that read its table. A row without any value
    has zeros.
    """

    def __init__(self, fields: Sequence[TableInputs]) -> None:
        super().__init__()
        inputs = [one for field in fields for one in field.inputs]
        self.field_of_column = [place for place, field in enumerate(fields) for _ in range(field.columns)]
        self.input_of_column = [place for place, one in enumerate(inputs) for _ in range(one.length)]
        self.parts: list[tuple[int, By | None]] = []  # of neighbouring columns: how many, and how they are pooled
        for field in inputs:
            if field.pool:
                self.parts.append((field.length, field.pool.by))
            elif self.parts and self.parts[-1][1] is None:
                self.parts[-1] = (self.parts[-1][0] + 1, None)
            else:
                self.parts.append((1, None))

    def forward(self, e_BVC: Tensor, ids_BV: Tensor) -> Tensor:
        sizes = [size for size, _ in self.parts]
        pooled = [
            e if by is None else pool(e, held, by)
            for (_, by), e, held in zip(
                self.parts, torch.split(e_BVC, sizes, dim=1), torch.split(ids_BV >= 0, sizes, dim=1), strict=True
            )
        ]
        return torch.cat(pooled, dim=1)


def pool(e_BVC: Tensor, held_BV: Tensor, by: By) -> Tensor:
    """One embedding from those of several values, of which a row has those where `held_BV`: float [B, 1, C]."""
    held = held_BV.unsqueeze(2)
    if by == "max":
        most = torch.where(held, e_BVC, -torch.inf).amax(1, keepdim=True)
        return torch.where(held.any(1, keepdim=True), most, 0.0)
    total = (e_BVC * held).sum(1, keepdim=True)
    return total if by == "sum" else total / held.sum(1, keepdim=True).clamp_min(1)
