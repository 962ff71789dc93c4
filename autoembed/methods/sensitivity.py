"""Sensitivity: the width and the bits of each block by what they cost in loss, on held-out rows.

A supernet is trained, what makes held-out rows worse is closed, the supernet is trained on, and so on; then a budget is
met by the moves that cost least (`measured`). No gates are searched.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from autoembed.errors import SpaceError
from autoembed.methods import measured
from autoembed.methods.entries import EntryConfig
from autoembed.training import PhaseTrain

_CHUNK = 4096


class Config(EntryConfig, measured.MeasuredConfig):
    """Options.

    Args:
        rounds: of pruning after the warm start at most: what makes held-out rows worse is closed, and the supernet is
            trained on.
        round_train: keys of `train` that this training overrides.
        margin: how many standard errors the loss on held-out rows must fall for a block to be closed.
        held_fraction: the share of train's rows that is held out to choose by. With 0 valid chooses, and then also
            compares what it has chosen.
    """

    method: str = "sensitivity"
    prefixes: Literal["field", "block"] = "block"
    rounds: int = Field(default=3, ge=0)
    round_train: PhaseTrain = PhaseTrain()
    margin: float = Field(default=1.0, ge=0)
    held_fraction: float = Field(default=0.2, ge=0, lt=1)

    @property
    def held_out(self) -> float:
        return self.held_fraction


class Supernet(measured.Supernet):
    """A full-width model that closes what hurts."""

    @property
    def rounds(self) -> int:
        return int(self.config.rounds)

    def entry_scores(self) -> Tensor:
        """Half of F w^2 of each entry w, float [N, D], F the mean squared gradient of a held-out row's loss.

        The rise of the loss without it, to second order (Optimal Brain Damage, LeCun et al., NeurIPS 1989).
        """
        if self.held is None:
            raise SpaceError("sensitivity must be searched before it can choose")
        table = torch.cat(self.folded(self.gates())).detach()
        squares, training = torch.zeros_like(table), self.training
        self.eval()
        weights = torch.ones_like(self.held[1]) if self.held_weights is None else self.held_weights
        for ids, labels, weight in zip(*(torch.split(part, _CHUNK) for part in (*self.held, weights)), strict=True):
            own, *rest = self.split(ids)
            e_BVC = functional.embedding(self.places_of(own), table).requires_grad_()
            with torch.enable_grad():
                logits = self.logits(self.pooled(e_BVC, own), rest)
                loss = self.schema.task.loss(logits, labels, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, e_BVC)
            square_BVC = gradient.square() * weight[:, None, None]
            squares.index_add_(0, self.places_of(own).flatten(), square_BVC.flatten(0, 1))
        self.train(training)
        # Values that held-out rows lack are as their block is on average.
        rows = torch.as_tensor(self.parent.block_rows(), device=table.device)
        squares += torch.as_tensor(self.block_means(squares), device=table.device).repeat_interleave(rows, dim=0)
        return (squares / len(self.held[1]) * table.square() / 2)[:, : self.parent.dim]

    def prune(self) -> bool:
        options = self.options((32,))
        state = self.open_state(options)
        estimate = self.estimate(self.rounded_tables((32,)), options, state)
        found = estimate.improve(state, options, self.config.margin)
        if (found == state).all():
            return False
        kept = self.in_order(np.arange(self.parent.dim) < options.width[found][:, None])
        if not kept.any():
            return False
        self.mask.mul_(torch.as_tensor(self._with_first_order(kept), device=self.mask.device))
        self.keep_alive(kept)
        return True
