"""From the embeddings of a row's values to one embedding a field.

The encoded table has one column for each field, and several for a multi-valued one or one of numbers between knots: V
columns, F fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from autoembed.data.knots import COLUMNS, ONE, SPAN
from autoembed.plans import Pooling as ByValues
from autoembed.plans import TableInputs

By = ByValues | Literal["knots"]
_NEVER = -1e9  # no infinity: a row without any value has finite weights, of which none counts


def pooling_of(fields: Sequence[TableInputs], dim: int) -> Pooling | None:
    """What pools the embeddings of these fields, of `dim` dims; None if each is one input of one value a row."""
    return Pooling(fields, dim) if any(one.pool for field in fields for one in field.inputs) else None


class Pooling(nn.Module):
    """Embeddings of values [B, V, C] and their codes int [B, V], PAD where there is no value -> float [B, I, C].

    A code is an id, and in columns of numbers between knots its share as well. I counts the inputs of the backbone:
    each field, and behind it those that read its table. A row without any value has zeros. C counts `dim` dims and
    perhaps a first-order weight.
    """

    span: Tensor

    def __init__(self, fields: Sequence[TableInputs], dim: int) -> None:
        super().__init__()
        self.dim = dim
        inputs = [one for field in fields for one in field.inputs]
        self.field_of_column = [place for place, field in enumerate(fields) for _ in range(field.columns)]
        self.input_of_column = [place for place, one in enumerate(inputs) for _ in range(one.length)]
        self.parts: list[tuple[int, By | None]] = []  # of neighbouring columns: how many, and how they are pooled
        self.targets: list[int] = []  # of each part: the column that its values are compared with, where they are
        self.knots = [one.interpolated for one in inputs for _ in range(one.length)]
        for field in fields:
            target = sum(size for size, _ in self.parts)
            for one in field.inputs:
                by = one.pool.by if one.pool else None
                if by in (None, "knots") and self.parts and self.parts[-1][1] == by:
                    self.parts[-1] = (self.parts[-1][0] + one.length, by)
                    continue
                self.parts.append((one.length, by))
                self.targets.append(target)
        if any(self.knots):
            # Ids of other columns are below the largest number, and stay as they are.
            span = [SPAN if knots else torch.iinfo(torch.int32).max for knots in self.knots]
            self.register_buffer("span", torch.tensor(span, dtype=torch.int32), persistent=False)

    def ids(self, codes_BV: Tensor) -> Tensor:
        """The ids in codes int [B, V], some id where there is no value."""
        ids = codes_BV.clamp_min(0)
        return ids % self.span if any(self.knots) else ids

    def forward(self, e_BVC: Tensor, codes_BV: Tensor) -> Tensor:
        sizes = [size for size, _ in self.parts]
        pooled = []
        for (_, by), target, e, codes in zip(
            self.parts,
            self.targets,
            torch.split(e_BVC, sizes, dim=1),
            torch.split(codes_BV, sizes, dim=1),
            strict=True,
        ):
            held = codes >= 0
            if by == "knots":
                pooled.append(interpolate(e, codes))
            elif by == "attention":
                pooled.append(attend(e, held, e_BVC[:, target : target + 1], self.dim))
            else:
                pooled.append(e if by is None else pool(e, held, by))
        return torch.cat(pooled, dim=1)


def shares(codes_BV: Tensor) -> Tensor:
    """The share that each code has of its number's embedding, 0 where there is none: float [B, V]."""
    missing = torch.div(codes_BV.clamp_min(0), SPAN, rounding_mode="floor")
    return (1 - missing.float() / ONE) * (codes_BV >= 0)


def interpolate(e_BVC: Tensor, codes_BV: Tensor) -> Tensor:
    """The embeddings of numbers from those of the knots on both sides, neighbouring columns: float [B, V / 2, C]."""
    weighted = e_BVC * shares(codes_BV).unsqueeze(2)
    out: Tensor = weighted.unflatten(1, (-1, COLUMNS)).sum(2)
    return out


def pool(e_BVC: Tensor, held_BV: Tensor, by: ByValues) -> Tensor:
    """One embedding from those of several values, of which a row has those where `held_BV`: float [B, 1, C]."""
    held = held_BV.unsqueeze(2)
    if by == "max":
        most = torch.where(held, e_BVC, -torch.inf).amax(1, keepdim=True)
        return torch.where(held.any(1, keepdim=True), most, 0.0)
    total = (e_BVC * held).sum(1, keepdim=True)
    return total if by == "sum" else total / held.sum(1, keepdim=True).clamp_min(1)


def attend(e_BVC: Tensor, held_BV: Tensor, target_B1C: Tensor, dim: int) -> Tensor:
    """The mean of several values, weighted by how much they are like the target's: float [B, 1, C].

    A row's values are compared with what it is scored for, as in DIN (arXiv 1706.06978, sec. 4.3), by the softmax of
    scaled dot products (arXiv 1706.03762, sec. 3.2.1): it has no weights of its own.
    """
    score_BV = (e_BVC[..., :dim] * target_B1C[..., :dim]).sum(2) / dim**0.5
    weight_BV = torch.where(held_BV, score_BV, _NEVER).softmax(1) * held_BV
    return (e_BVC * weight_BV.unsqueeze(2)).sum(1, keepdim=True)
