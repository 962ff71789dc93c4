"""Quotient-remainder embeddings as a method: two smaller tables for each field with many values, within the budget.

Compositional embeddings (Shi et al., KDD 2020, arXiv 1909.02107). Every value keeps an embedding of its own, of all
dims where the budget holds them. Fields with many values all have as many values to a row, as few as it allows.
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
    """Keeps every field and as many dims as fit in the fewest rows, then in as many rows as a limit holds."""

    shares_rows = True

    def choose(self, limit: int | None) -> Architecture:
        limit = self.left(limit) + self.parent.pair_bytes()  # an error if there is no limit
        mask = self.parent.mask()
        whole = self.parent_with(mask, self.block_bits())
        most = int(np.flatnonzero(mask.any(axis=0))[-1]) + 1
        for width in range(most, 0, -1):
            own = max(width, whole.pair_dim)
            narrow = whole.with_mask(mask[:, :own] & (np.arange(own) < width), dim=own)
            found = self.fill(narrow, limit)
            if found is not None:
                return found
        raise SpaceError(
            f"quotient_remainder needs a budget of one dim in the fewest rows, {self.taken(narrow, 1)} bytes, but got "
            f"{limit}: raise it, or lower split_above"
        )

    def fill(self, whole: Architecture, limit: int) -> Architecture | None:
        """An architecture's fields in as many rows as a limit holds; None if it does not hold the fewest."""
        if self.taken(whole, 1) > limit:
            return None
        most = max(field.cardinality for field in whole.fields)
        rows = bisect_right(range(1, most + 1), limit, key=lambda rows: self.taken(whole, rows))
        return whole.replace(storage=self.storage(whole, rows))

    def taken(self, whole: Architecture, rows: int) -> int:
        """Bytes of the fields and pairs with so many remainders in the largest field."""
        fields = self.storage(whole, rows).bytes(whole.fields, whole.dim, first_order=self.first_order)
        return fields + whole.pair_bytes()

    def storage(self, whole: Architecture, rows: int) -> QuotientRemainderStorage:
        """As many values to a row as the largest field has with so many remainders."""
        most = int(whole.block_bits().max())
        return QuotientRemainderStorage(
            collisions=max(field.cardinality for field in whole.fields) / rows,
            split_above=self.config.split_above,
            combine=self.config.combine,
            bits=next(bits for bits in BITS if bits <= most),
            step=self.parent.mixed().step,
        )
