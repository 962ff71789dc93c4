"""The baseline that most tables use: the same width for every value, as wide as the budget allows."""

from __future__ import annotations

import numpy as np

from autoembed.architecture import Architecture
from autoembed.errors import SpaceError
from autoembed.methods import supernet
from autoembed.methods.method import MethodConfig


class Config(MethodConfig):
    """No options."""

    method: str = "uniform"


class Supernet(supernet.Supernet):
    """Keeps the first dims of every block."""

    def choose(self, limit: int | None) -> Architecture:
        allowed = self.parent.mask()
        if limit is None:
            return self.parent_with(allowed)
        total = self.block_sizes().sum(axis=0)
        width = int((total <= self.left(limit)).sum()) - 1
        if width < 1:
            least = int(total[1]) + self.parent.pair_bytes()
            raise SpaceError(f"uniform needs a budget of one dim for every value, {least} bytes, but got {limit}")
        found = self.parent_with(np.broadcast_to(np.arange(self.parent.dim) < width, allowed.shape))
        return found.with_mask(found.mask()[:, : max(width, found.pair_dim)], dim=max(width, found.pair_dim))
