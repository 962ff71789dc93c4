"""Quotient-remainder embeddings as a method: two smaller tables for each field with many values, within the budget.

Compositional embeddings (Shi et al., KDD 2020, arXiv 1909.02107). Every value keeps all dims and an embedding of its
own. Fields with many values all have as many values to a row, as few as the budget allows.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from pydantic import Field

from autoembed.architecture import Architecture
from autoembed.errors import SpaceError
from autoembed.methods import supernet
from autoembed.methods.method import MethodConfig
from autoembed.plans import BITS
from autoembed.storage import Combine, QuotientRemainderStorage


class Config(MethodConfig):
    """Options of a method that trains nothing before it answers.

    Args:
        combine: how the two rows of a value become its embedding, entry by entry: by their product (`mult`) or sum
            (`add`).
        split_above: fields with at most so many values have a row for each, as in the authors' code.
    """

    method: str = "quotient_remainder"
    combine: Combine = "mult"
    split_above: int = Field(default=200, ge=1)


class Supernet(supernet.Supernet):
    """Keeps every field and dim of its parent, in as many rows as a limit holds."""

    def choose(self, limit: int | None) -> Architecture:
        limit = self.left(limit) + self.parent.pair_bytes()  # refuses no limit
        mask, own, step = self.parent.mask(), self.block_bits(), self.parent.mixed().step
        width = max(int(np.flatnonzero(mask.any(axis=0))[-1]) + 1, self.parent.pair_dim)
        whole = self.parent_with(mask, own).with_mask(mask[:, :width], dim=width)
        bits = next(bits for bits in BITS if bits <= whole.block_bits().max())

        most = max(field.cardinality for field in whole.fields)

        def within(rows: int) -> Architecture:
            """As many values to a row as the largest field has with so many remainders."""
            storage = QuotientRemainderStorage(
                collisions=most / rows,
                split_above=self.config.split_above,
                combine=self.config.combine,
                bits=bits,
                step=step,
            )
            return whole.replace(storage=storage)

        def taken(rows: int) -> int:
            return within(rows).embedding_bytes(first_order=self.first_order)

        if taken(1) > limit:
            raise SpaceError(
                f"quotient_remainder needs a budget of twice the root of each large column's values in rows of {width} "
                f"dims, {taken(1)} bytes in all, but got {limit}: raise it, or lower embedding.dim or split_above"
            )
        return within(bisect_right(range(1, most + 1), limit, key=taken))
