"""The baseline that knows nothing but how often values occur: width grows with a power of the mean count.

The popularity rule of Mixed Dimension Embeddings (Ginart et al., arXiv 1909.11810, sec. 3.3), for frequency blocks.
A search that does not beat it has relearned value frequency.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from autoembed.plans import Array
from autoembed.search import supernet
from autoembed.search.method import MethodConfig


class Config(MethodConfig):
    """`temperature` is the power of the mean count that widths follow; 0 gives equal widths."""

    method: str = "frequency"
    temperature: float = Field(default=0.3, ge=0)


class Supernet(supernet.Supernet):
    """Keeps round(c * count^temperature) dims of each block, with the largest c that the budget holds."""

    def scores(self) -> Array:
        mean = np.maximum(self.block_counts / self.parent.block_rows(), 1e-9)
        wish = (mean / mean.max()) ** self.config.temperature
        # The rule opens dim d of a block once c * wish reaches d + 1/2: by falling score, the largest c is found.
        return np.asarray(wish[:, None] / (np.arange(self.parent.dim) + 0.5))
