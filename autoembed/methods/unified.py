"""Unified Embedding as a method: all fields share one hashed table, as large as the budget allows.

Feature multiplexing (Coleman et al., NeurIPS 2023, arXiv 2305.12102). It chooses no widths, only the table's size, and
is compared with separate tables at equal parameters.
"""

from __future__ import annotations

from pydantic import Field

from autoembed.architecture import Architecture
from autoembed.errors import SpaceError
from autoembed.methods import supernet
from autoembed.methods.method import MethodConfig
from autoembed.plans import BITS
from autoembed.storage import SharedStorage, table_bytes


class Config(MethodConfig):
    """`lookups` rows are joined to a value's dims, so a row is dim / lookups wide."""

    method: str = "unified"
    lookups: int = Field(default=2, ge=1)


class Supernet(supernet.Supernet):
    """Keeps every field and dim, in a table of budget / row width rows."""

    shares_rows = True

    def choose(self, limit: int | None) -> Architecture:
        if limit is None:
            raise SpaceError("unified needs a limit: set budget.bytes, budget.embedding_bytes or budget.width")
        if self.parent.built:
            raise SpaceError("unified has no rows for pairs: leave it out of a chain that memorizes or factorizes any")
        dim, lookups = self.parent.dim, self.config.lookups
        if dim % lookups:
            raise SpaceError(f"embedding.dim must be a multiple of unified's lookups={lookups}, but got {dim}")
        most = min(self.config.bits or 32, int(self.parent.block_bits().max()))
        bits = next(bits for bits in BITS if bits <= most)
        # Rows of few bits share what the first-order weights' step takes, so bytes are not a multiple of a row's.
        many = 1 << 20
        each = table_bytes(many, dim // lookups, bits, step="row", first_order=self.first_order) / many
        rows = int(limit / each)
        while rows and table_bytes(rows, dim // lookups, bits, step="row", first_order=self.first_order) > limit:
            rows -= 1
        if rows < 1:
            raise SpaceError(f"unified needs a budget of one row, {round(each)} bytes, but got {limit}")
        storage = SharedStorage(rows=rows, lookups=lookups, seed=self.seed, bits=bits)
        return self.parent.replace(storage=storage)
