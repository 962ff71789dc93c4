"""Pairs of rows in training: the loss of a click and another row of its group, which should stand in this order.

A batch holds groups together, and its loss is (1 - s) times that of its rows plus s times that of its pairs, where s is
`train.pairwise_weight` (combined regression and ranking, Sculley, KDD 2010; in click prediction Li et al., KDD 2015).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from autoembed.batches import RowWeights
from autoembed.data.dataset import Dataset
from autoembed.errors import TrialError
from autoembed.shuffle import GroupsTogether, RowOrder, Shuffle
from autoembed.types import Array

# Rows of a group that stand together in an order, and pairs of a click. Batches of whole groups would be of few groups,
# such as 8 users of MovieLens-100k, and train worse than batches of rows at random, whatever the loss is.
PART = MOST = 32
_ROWS = 1 << 20  # whose groups are counted at a time


class PairwiseLoss:
    """The loss of pairs while a model is trained on some rows; nothing to do where the task has no pairs.

    A pair is a click and another row of its group in the batch, and its loss is log(1 + exp(other - click)) of their
    logits (RankNet, Burges et al., ICML 2005; BPR, Rendle et al., UAI 2009, arXiv 1205.2618). A click's loss is the
    mean over its pairs, of which `MOST` are taken at random where there are more. The loss of pairs is the mean over
    the clicks that have a partner: as in `RowWeights` a batch is divided by its number of rows and the share that such
    clicks have of all rows, and not by their number in the batch, which would make them count more where they are few.

    A row of weight 2 counts as two equal rows, as a click and in the mean over a click's pairs. Rows in no group, and
    those without a partner in the batch, have the loss of rows alone.

    Args:
        dataset: whose train split is trained on.
        seen: the rows, or those below a whole number.
        rows: their weights.
        share: of pairs in the loss, 0 to 1; the task's default if it is None.
        device: of the batches.
        seed: of the pairs that are drawn.

    Raises:
        TrialError: no group of the rows has both labels.
    """

    def __init__(
        self,
        dataset: Dataset,
        seen: int | RowOrder,
        rows: RowWeights,
        share: float | None,
        *,
        device: torch.device,
        seed: int,
    ) -> None:
        self.share = dataset.task.pairwise if share is None else share
        self.rows, self.labels, self.groups = rows, dataset.labels("train"), dataset.groups("train")
        if not self.share:
            return
        self.generator = torch.Generator(device).manual_seed(seed)
        self.of_rows(seen)

    def of_rows(self, seen: int | RowOrder) -> None:
        """Scales the loss to the clicks of another draw."""
        if not self.share:
            return
        assert self.groups is not None
        total = seen if isinstance(seen, int) else len(seen)
        size = int(self.groups.max(initial=-1)) + 1
        weight = np.zeros((2, size))  # of each group's other rows and clicks
        for start in range(0, total, _ROWS):
            places = np.arange(start, min(start + _ROWS, total))
            at = places if isinstance(seen, int) else seen[places]
            groups, ones = self.groups[at], self.labels[at] > 0.5
            own = np.ones(len(at)) if self.rows.all is None else self.rows.all[at].astype(np.float64)
            for label in (0, 1):
                chosen = (groups >= 0) & (ones == label)
                weight[label] += np.bincount(groups[chosen], own[chosen], minlength=size)
        clicks = weight[1][weight[0] > 0].sum()
        if not clicks:
            raise TrialError(
                "the rows that are trained on must have a group with both labels, but have none: hold out fewer, or "
                "choose another data.group"
            )
        self.scale = float(total / (self.rows.scale * clicks))

    @property
    def columns(self) -> tuple[Array, ...]:
        """For `batches`."""
        if not self.share:
            return ()
        assert self.groups is not None
        return (self.groups,)

    def order(self, rows: int | RowOrder, seed: Sequence[int]) -> RowOrder:
        """The order of an epoch: rows at random, or those of a group together."""
        if not self.share:
            return Shuffle(rows, seed)
        assert self.groups is not None
        return GroupsTogether(rows, self.groups, PART, seed)

    def total(self, loss: Tensor, logits: Tensor, labels: Tensor, told: Sequence[Tensor]) -> Tensor:
        """The loss of a batch with that of its pairs.

        Args:
            loss: of its rows, a scalar.
            logits: float [B], or [B, K] of an ensemble's K.
            labels: 0 or 1, float [B].
            told: what `batches` gives of it: its weights if there are some, and then `columns`.
        """
        if not self.share:
            return loss
        groups = told[len(self.rows.columns)]
        return (1 - self.share) * loss + self.share * self.of(logits, labels, groups, self.rows.of(told))

    def of(self, logits: Tensor, labels: Tensor, groups: Tensor, weights: Tensor | None) -> Tensor:
        """The loss of a batch's pairs, a scalar."""
        clicks, others, counts = pairs(labels, groups, weights, generator=self.generator)
        losses = functional.softplus(logits[others] - logits[clicks])
        if losses.dim() == 2:
            losses = losses.mean(1)
        return (losses * counts).sum() * (self.scale / len(labels))


def pairs(
    labels: Tensor, groups: Tensor, weights: Tensor | None, *, generator: torch.Generator, most: int = MOST
) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of a batch: the rows of clicks, int [P], those of their partners, int [P], and how much each counts.

    That is float [P], of all of a click's pairs together 1, or the click's weight. A click in a group with more than
    `most` other rows has so many, evenly spaced from a random one on.

    Args:
        labels: 0 or 1, float [B].
        groups: int [B], below 0 for none.
        weights: how often each row counts, float [B].
        generator: draws the partners.
        most: pairs of a click.
    """
    counted = groups >= 0 if weights is None else (groups >= 0) & (weights > 0)
    rows = torch.nonzero(counted).squeeze(1)
    one = labels[rows] > 0.5
    # By group, and in each the other rows before the clicks.
    order = torch.argsort(2 * groups[rows].long() + one, stable=True)
    rows, one = rows[order], one[order]
    sizes = torch.unique_consecutive(groups[rows], return_counts=True)[1]
    group = torch.repeat_interleave(torch.arange(len(sizes), device=rows.device), sizes)
    zeros = torch.zeros_like(sizes).index_add_(0, group, (~one).long())
    starts = sizes.cumsum(0) - sizes
    at = torch.nonzero(one & (zeros[group] > 0)).squeeze(1)  # clicks with a partner
    own = group[at]
    number = zeros[own].clamp(max=most)
    click = torch.repeat_interleave(torch.arange(len(at), device=rows.device), number)
    nth = torch.arange(len(click), device=rows.device) - (number.cumsum(0) - number)[click]
    there = zeros[own]
    first = (torch.rand(len(at), generator=generator, device=rows.device) * there).long()
    place = (first[click] + nth * there[click] // number[click]) % there[click]
    others = rows[starts[own][click] + place]
    clicks = rows[at][click]
    if weights is None:
        return clicks, others, 1 / number[click].to(labels.dtype)
    whole = torch.zeros(len(sizes), dtype=weights.dtype, device=rows.device)
    whole.index_add_(0, group, torch.where(one, 0, weights[rows]))
    drawn = there[click] / number[click]  # how many other rows each partner stands for
    return clicks, others, weights[clicks] * weights[others] * drawn / whole[own][click]
