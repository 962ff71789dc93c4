"""Embeddings made of two rows: one of the remainder of a value's id, one of its quotient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from autoembed.architecture import Architecture
from autoembed.nn.embedding import FieldEmbedding, repeated, starts, table
from autoembed.nn.rows import Rows
from autoembed.storage import QuotientRemainderStorage
from autoembed.types import Array

_STD = 0.01


class QuotientRemainderEmbedding(FieldEmbedding):
    """The parts of all fields, one behind the other in one table (arXiv 1909.02107, sec. 3).

    A field's parts are its remainders and its quotients, or a row for each value. Parts share steps as blocks do. The
    first-order weight of a value is the sum of those of its rows.
    """

    modulus: Tensor
    first: Tensor
    slot: Tensor
    split: Tensor
    order: Tensor

    def __init__(self, architecture: Architecture, *, first_order: bool, packed: bool = False) -> None:
        super().__init__(architecture)
        storage = architecture.storage
        assert isinstance(storage, QuotientRemainderStorage)
        self.dim, self.combine = architecture.dim, storage.combine
        parts = [storage.parts(field.cardinality) for field in architecture.fields]
        self.sizes = [size for own in parts for size in own]
        rows = table(
            packed,
            sum(self.sizes),
            architecture.dim,
            first_order=first_order,
            bits=storage.bits,
            step=storage.step,
            slots=len(self.sizes),
            std=_STD,
        )
        if storage.combine == "mult" and isinstance(rows, Rows):
            _spread_factors(rows, [len(own) > 1 for own in parts for _ in own], self.sizes, self.dim)
        self.tables = nn.ModuleList([rows])
        # Of each column of ids, then of each one that is split a second time, for its quotients.
        lengths = architecture.lengths
        slot = np.repeat(starts([len(own) for own in parts]), lengths)
        split = np.flatnonzero(np.repeat([len(own) > 1 for own in parts], lengths))
        order = np.arange(len(slot))
        order[split] = len(slot) + np.arange(len(split))
        slot = np.concatenate([slot, slot[split] + 1])
        self._index("modulus", np.repeat([own[0] for own in parts], lengths))
        self._index("first", np.array(starts(self.sizes))[slot])
        self._index("slot", slot)
        self._index("split", split)
        self._index("order", order)

    def _index(self, name: str, values: Array) -> None:
        self.register_buffer(name, torch.tensor(values.astype(np.int32)), persistent=False)

    def lookup(self, ids_BV: Tensor) -> Tensor:
        """Ids int [B, V] -> float [B, V, D (+ 1)]."""
        whole = ids_BV.index_select(1, self.split)
        quotient = torch.div(whole, self.modulus.index_select(0, self.split), rounding_mode="floor")
        rows = torch.cat([ids_BV % self.modulus, quotient], dim=1) + self.first
        found: Tensor = self.tables[0](rows, self.slot.expand_as(rows))
        if not len(self.split):
            return found
        own = found[:, : len(self.modulus)]
        joined = self.join(own.index_select(1, self.split), found[:, len(self.modulus) :])
        return torch.cat([own, joined], dim=1).index_select(1, self.order)

    def join(self, remainder: Tensor, quotient: Tensor) -> Tensor:
        """One embedding of the two rows of each value, float [..., D (+ 1)]."""
        if self.combine == "add":
            return remainder + quotient
        body, first = remainder[..., : self.dim], remainder[..., self.dim :]
        factor, other = quotient[..., : self.dim], quotient[..., self.dim :]
        return torch.cat([body * factor, first + other], dim=-1)

    def slot_of_row(self) -> list[Tensor]:
        """The slot of each row, the part that it is of: int [rows]."""
        return [repeated(self.sizes, self.first.device)]


@torch.no_grad()
def _spread_factors(rows: Rows, factors: Sequence[bool], sizes: Sequence[int], dim: int) -> None:
    """Raises parts that are factors to the root of the scale: their products start at the scale of plain rows."""
    for part, factor in zip(torch.split(rows.weight, list(sizes)), factors, strict=True):
        if factor:
            part[:, :dim] *= _STD**-0.5
