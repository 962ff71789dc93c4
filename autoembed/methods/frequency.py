"""The baseline that knows nothing but how often values occur: width grows with a power of the mean count.

The popularity rule of Mixed Dimension Embeddings (Ginart et al., arXiv 1909.11810, sec. 3.3), for frequency blocks.
A search that does not beat it has relearned value frequency.
"""

from __future__ import annotations

from pydantic import Field

from autoembed.budget import by_frequency
from autoembed.methods import supernet
from autoembed.methods.method import MethodConfig
from autoembed.types import Array


class Config(MethodConfig):
    """`temperature` is the power of the mean count that widths follow; 0 gives equal widths."""

    method: str = "frequency"
    temperature: float = Field(default=0.3, ge=0)


class Supernet(supernet.Supernet):
    """Keeps round(c * count^temperature) dims of each block, with the largest c that the budget holds."""

    def scores(self) -> Array:
        return by_frequency(self.block_counts, self.parent.block_rows(), self.parent.dim, self.config.temperature)
