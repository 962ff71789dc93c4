"""The baseline that any search must beat: block dims drawn at random until the budget is full."""

from __future__ import annotations

import numpy as np

from autoembed.methods import supernet
from autoembed.methods.method import MethodConfig
from autoembed.types import Array


class Config(MethodConfig):
    """No options; another seed draws another architecture."""

    method: str = "random"


class Supernet(supernet.Supernet):
    """Scores every block dim by a uniform draw."""

    def scores(self) -> Array:
        rng = np.random.default_rng([self.seed, 4])
        return np.asarray(rng.random(self.parent.mask().shape))
