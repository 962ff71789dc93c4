"""Magnitude pruning: train wide, cut the block dims with the smallest weights, fine-tune.

The baseline that tells whether gates learned more than weight magnitude (Han et al., arXiv 1506.02626, for block dims).
"""

from __future__ import annotations

import numpy as np

from autoembed.methods import supernet
from autoembed.methods.entries import EntryConfig
from autoembed.methods.method import WidthConfig
from autoembed.types import Array


class Config(EntryConfig, WidthConfig):
    """Only a warm start; no gates are searched."""

    method: str = "magnitude"


class Supernet(supernet.Supernet):
    """Scores a block dim by the mean magnitude of its entries after training."""

    plain_warm_start = True

    def scores(self) -> Array:
        return np.asarray(self.block_means(self.weight[:, : self.parent.dim].abs()))
