"""How a model stores its embeddings. Each kind knows its parameters and bytes; its module is in `autoembed.nn`.

A new kind is a class here, a module in `nn/` that `autoembed.nn.model.STORAGES` names, and a method that answers with
it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from autoembed.plans import Bits, FieldPlan, Frozen
from autoembed.types import Array

Step = Literal["row", "block", "dim"]
# Rows of a sparse table whose entries are found from one place.
PLACE_EVERY = 8
# The parts of a code that are packed side by side, so that each part's codes fill whole bytes.
PLANES: dict[int, tuple[int, ...]] = {8: (8,), 4: (4,), 3: (2, 1), 2: (2,), 1: (1,)}


def row_bytes(width: int, bits: int) -> int:
    """Bytes of a row of `width` numbers of `bits` bits: each plane of the codes is filled up to whole bytes."""
    if bits >= 16:
        return width * bits // 8
    return sum(-(-width * plane // 8) for plane in PLANES[bits])


def first_order_bits(bits: int) -> int:
    """The bits of a first-order weight beside numbers of `bits` bits.

    A single number cannot average its rounding error away, so it has at least 4.
    """
    return max(bits, 4)


def table_bytes(rows: int, width: int, bits: int, *, step: Step, first_order: bool, blocks: int = 1) -> int:
    """Bytes of rows of `width` numbers each, with their steps and first-order weights; 0 for no width.

    Steps are bfloat16 where each row has one, and float32 where each of the `blocks` or each dim of these has one.
    """
    if not width:
        return 0
    if bits >= 16:
        return rows * (width + first_order) * bits // 8
    steps = {"row": 2 * rows, "block": 4 * blocks, "dim": 4 * width * blocks}[step]
    first = 4 * blocks + -(-rows * first_order_bits(bits) // 8) if first_order else 0
    return rows * row_bytes(width, bits) + steps + first


class WholeRows(Frozen):
    """A row for each value, as wide as its block keeps dims, in its block's bits."""

    step: Step = "row"

    def parameters(self, fields: Sequence[FieldPlan], dim: int, *, first_order: bool) -> int:
        """The entries of all values, first-order weights included."""
        return sum(rows * (width + (first_order and width > 0)) for rows, width, _ in _blocks(fields))

    def bytes(self, fields: Sequence[FieldPlan], dim: int, *, first_order: bool) -> int:
        """Bytes of all tables with their steps."""
        tables: dict[tuple[int, int], list[int]] = {}
        for rows, width, bits in _blocks(fields):
            tables.setdefault((width, bits), []).append(rows)
        return sum(
            table_bytes(sum(rows), *kind, step=self.step, first_order=first_order, blocks=len(rows))
            for kind, rows in tables.items()
        )

    def sizes(self, rows: Array, dim: int, bits: Array, *, first_order: bool) -> Array:
        """Bytes of each block by its width 0..dim: int [S, dim + 1].

        Args:
            rows: values of each block, int [S].
            dim: the largest width.
            bits: bits of each block, int [S].
            first_order: whether the model has first-order weights.
        """
        return np.array(
            [
                [table_bytes(n, width, b, step=self.step, first_order=first_order) for width in range(dim + 1)]
                for n, b in zip(rows.tolist(), bits.tolist(), strict=True)
            ]
        )


class MixedStorage(WholeRows):
    """A row for each value, whose numbers are its entries at the dims that its block keeps.

    Numbers of 8 bits and fewer are whole multiples of a step: one for each `row`, each `block`, or each `dim` of a
    block. First-order weights have a step for each block.
    """

    kind: Literal["mixed"] = "mixed"


class ProjectedStorage(WholeRows):
    """The same rows; each block multiplies its own by a matrix onto the dims that all fields have.

    These are all dims up to the last one that any block keeps; blocks that keep all of them have no matrix. Matrices
    are of 32 bits and count as dense parameters (mixed-dimension embeddings, Ginart et al., arXiv 1909.11810).
    """

    kind: Literal["projected"] = "projected"


def shift_bytes(width: int) -> int:
    """Bytes that tell where a row of a sparse table starts, counted from the first of its PLACE_EVERY rows."""
    return 1 if (PLACE_EVERY - 1) * width < 256 else 2


def sparse_bytes(
    rows: int, width: int, bits: int, entries: int, *, step: Step, first_order: bool, blocks: int = 1
) -> int:
    """Bytes of rows that keep `entries` of their `width` numbers together; 0 for no entry.

    A bit for each number tells which are kept. Every PLACE_EVERY rows have 4 bytes for where they start, and each row
    has 1 for how far from there, or 2 where rows are wide. Steps are as in `table_bytes`.
    """
    if not entries:
        return 0
    index = rows * (row_bytes(width, 1) + shift_bytes(width)) + 4 * -(-rows // PLACE_EVERY)
    if bits >= 16:
        return index + (entries + rows * first_order) * bits // 8
    steps = {"row": 2 * rows, "block": 4 * blocks, "dim": 4 * width * blocks}[step]
    first = 4 * blocks + row_bytes(rows, first_order_bits(bits)) if first_order else 0
    return index + row_bytes(entries, bits) + steps + first


class SparseStorage(Frozen):
    """Single entries of each value's row at its block's dims, in its block's bits; steps as in mixed storage.

    Which entries are kept is stored with the model, a bit each. A block tells how many there are.
    """

    kind: Literal["sparse"] = "sparse"
    step: Step = "row"

    def parameters(self, fields: Sequence[FieldPlan], dim: int, *, first_order: bool) -> int:
        """The kept entries of all values, first-order weights included."""
        rows = sum(rows for rows, width, _ in _blocks(fields) if width)
        return sum(field.entries for field in fields) + rows * first_order

    def bytes(self, fields: Sequence[FieldPlan], dim: int, *, first_order: bool) -> int:
        """Bytes of all tables with their steps, bits that tell which entries are kept, and places of rows."""
        tables: dict[tuple[int, int], list[tuple[int, int]]] = {}
        entries = [block.entries or 0 for field in fields for block in field.blocks]
        for (rows, width, bits), kept in zip(_blocks(fields), entries, strict=True):
            tables.setdefault((width, bits), []).append((rows, kept))
        return sum(
            sparse_bytes(
                sum(rows for rows, _ in own),
                *kind,
                sum(kept for _, kept in own),
                step=self.step,
                first_order=first_order,
                blocks=len(own),
            )
            for kind, own in tables.items()
        )


class SharedStorage(Frozen):
    """One hashed table for all fields (Unified Embedding, Coleman et al., NeurIPS 2023, arXiv 2305.12102).

    A value reads `lookups` of the `rows` rows, by hashes of its field's own, and joins them to its `dim` numbers of
    `bits` bits; each row has a step, and all first-order weights have one together.
    """

    kind: Literal["shared"] = "shared"
    rows: int = Field(ge=1)
    lookups: int = Field(ge=1)
    seed: int = 0
    bits: Bits = 32

    def parameters(self, fields: Sequence[FieldPlan], dim: int, *, first_order: bool) -> int:
        """The entries of the table's rows, whatever the fields."""
        return self.rows * (dim // self.lookups + first_order)

    def bytes(self, fields: Sequence[FieldPlan], dim: int, *, first_order: bool) -> int:
        """Bytes of the table with its steps."""
        width = dim // self.lookups
        return table_bytes(self.rows, width, self.bits, step="row", first_order=first_order)


Combine = Literal["mult", "add"]


class QuotientRemainderStorage(Frozen):
    """Two smaller tables for each field with many values (Shi et al., KDD 2020, arXiv 1909.02107).

    A field of n values, more than `split_above`, has m = n / `collisions` rows for the remainders of its ids by m, at
    least the root of n, and n / m rows for their quotients, both rounded up. So each value has a pair of rows of its
    own, and its embedding is their product, entry by entry (`mult`), or their sum (`add`). Where that saves no row,
    and up to `split_above` values, a field has a row for each value. Steps are as in mixed storage, each part of a
    field being a block.
    """

    kind: Literal["quotient_remainder"] = "quotient_remainder"
    collisions: float = Field(ge=1)
    split_above: int = Field(default=200, ge=1)
    combine: Combine = "mult"
    bits: Bits = 32
    step: Step = "row"

    def parts(self, cardinality: int) -> tuple[int, ...]:
        """The rows of a field of so many values: (values,), or (remainders, quotients)."""
        remainders = max(math.ceil(cardinality / self.collisions), math.isqrt(cardinality - 1) + 1)
        found = remainders, -(-cardinality // remainders)
        return found if cardinality > self.split_above and sum(found) < cardinality else (cardinality,)

    def parameters(self, fields: Sequence[FieldPlan], dim: int, *, first_order: bool) -> int:
        """The entries of all rows, first-order weights included."""
        return sum(self._sizes(fields)) * (dim + first_order)

    def bytes(self, fields: Sequence[FieldPlan], dim: int, *, first_order: bool) -> int:
        """Bytes of the table with its steps."""
        sizes = self._sizes(fields)
        return table_bytes(sum(sizes), dim, self.bits, step=self.step, first_order=first_order, blocks=len(sizes))

    def _sizes(self, fields: Sequence[FieldPlan]) -> list[int]:
        return [size for field in fields for size in self.parts(field.cardinality)]


def _blocks(fields: Sequence[FieldPlan]) -> list[tuple[int, int, int]]:
    """Values, width and bits of each block of all fields."""
    found: list[tuple[int, int, int]] = []
    for field in fields:
        stops = [0, *(block.stop for block in field.blocks)]
        for (start, stop), block in zip(pairwise(stops), field.blocks, strict=True):
            found.append((stop - start, len(block.dims), block.bits))
    return found


Storage = Annotated[
    MixedStorage | ProjectedStorage | SparseStorage | SharedStorage | QuotientRemainderStorage,
    Field(discriminator="kind"),
]
