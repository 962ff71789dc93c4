"""Sensitivity: the width and the bits of each block by what they cost in loss, on held-out rows.

A supernet is trained, what makes held-out rows worse is closed, the supernet is trained on, and so on; then a budget is
met by the moves that cost least (`measured`). No gates are searched.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field

from autoembed.search import measured
from autoembed.training import PhaseTrain


class Config(measured.MeasuredConfig):
    """Options.

    After the warm start, `rounds` times at most, dims whose loss makes held-out rows better by more than `margin`
    standard errors are closed, and the supernet is trained on by `round_train`.
    """

    method: str = "sensitivity"
    rounds: int = Field(default=3, ge=0)
    round_train: PhaseTrain = PhaseTrain()
    margin: float = Field(default=1.0, ge=0)


class Supernet(measured.Supernet):
    """A full-width model that closes what hurts."""

    @property
    def rounds(self) -> int:
        return int(self.config.rounds)

    def prune(self) -> bool:
        options = self.options((32,))
        state = self.open_state(options)
        estimate = self.estimate([self.rounded_table(32)], options, state)
        found = estimate.improve(state, options, self.config.margin)
        if (found == state).all():
            return False
        kept = self.in_order(np.arange(self.parent.dim) < options.width[found][:, None])
        if not kept.any():
            return False
        self.mask.mul_(torch.as_tensor(self._with_first_order(kept), device=self.mask.device))
        self.keep_alive(kept)
        return True
