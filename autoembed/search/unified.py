"""Unified Embedding as a method: all fields share one hashed table, as large as the budget allows.

Feature multiplexing (Coleman et al., NeurIPS 2023, arXiv 2305.12102). It chooses no widths, only the table's size, and
is compared with separate tables at equal parameters.
"""

from __future__ import annotations

from pydantic import Field

from autoembed.architecture import Architecture, SharedTable
from autoembed.errors import SpaceError
from autoembed.search import supernet


class Config(supernet.MethodConfig):
    """`lookups` rows are joined to a value's dims, so a row is dim / lookups wide."""

    method: str = "unified"
    lookups: int = Field(default=2, ge=1)


class Supernet(supernet.Supernet):
    """Keeps every field and dim, in a table of budget / row width rows."""

    def derive(self, budget: int | None) -> Architecture:
        if budget is None:
            raise SpaceError("unified needs budget.parameters or budget.width")
        if self.parent.built:
            raise SpaceError("unified has no rows for pairs: leave it out of a chain that memorizes or factorizes any")
        dim, lookups = self.parent.dim, self.config.lookups
        if dim % lookups:
            raise SpaceError(f"embedding.dim must be a multiple of unified's lookups={lookups}, but got {dim}")
        width = dim // lookups + self.first_order
        if budget < width:
            raise SpaceError(f"unified needs a budget of one row, {width}, but got {budget}")
        shared = SharedTable(rows=budget // width, lookups=lookups, seed=self.seed)
        return self.parent.model_copy(update={"shared": shared, "cost": None})
