"""The baseline that most tables use: the same width for every value, as wide as the budget allows."""

from __future__ import annotations

import numpy as np

from autoembed.architecture import Architecture
from autoembed.errors import SpaceError
from autoembed.search import supernet


class Config(supernet.MethodConfig):
    """No options."""

    method: str = "uniform"


class Supernet(supernet.Supernet):
    """Keeps the first dims of every block."""

    def derive(self, budget: int | None) -> Architecture:
        if budget is None:
            return self.parent
        rows = int(self.parent.block_rows().sum())
        width = min((budget - self.parent.pair_parameters()) // rows - self.first_order, self.parent.dim)
        if width < 1:
            least = rows * (1 + self.first_order) + self.parent.pair_parameters()
            raise SpaceError(f"uniform needs a budget of one dim for every value, {least}, but got {budget}")
        mask = np.broadcast_to(np.arange(self.parent.dim) < width, self.parent.mask().shape)
        return self.narrow_to(mask).model_copy(update={"dim": max(width, self.parent.pair_dim)})
