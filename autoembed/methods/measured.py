"""The base of methods that choose widths and bits by what they cost in loss, on held-out rows.

From full width and the most bits, the move with the least rise of the loss per byte saved is taken again and again
until the budget is met. A move gives a block fewer dims, fewer bits, or closes it. Its rise of the loss is estimated by
the logit's change to first order in the field's embedding, which is exact where the model is linear in one field's
embedding (factorization machines), and by the exact loss of the changed logit: the Gauss-Newton idea behind Optimal
Brain Damage (LeCun et al., NeurIPS 1989) and HAWQ (arXiv 1905.03696), but with all terms between the dims of a block
and between fields, which a sum of squared gradients leaves out. Of several classes each has a logit that changes.
Logits and gradients are measured again, at the point that was reached, each time that the bytes have fallen by a part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from autoembed.architecture import Architecture
from autoembed.errors import SpaceError
from autoembed.methods import supernet
from autoembed.methods.method import WidthConfig
from autoembed.methods.rises import LossEstimate, Options
from autoembed.nn.rows import rounded_blocks
from autoembed.plans import Bits
from autoembed.types import Array

_CHUNK = 4096
_WIDTHS = (1, 2, 3, 4, 6, 8, 12)  # then each a third wider than the one before
_ROUGH = 6500  # rows of measurements far from the budget and of what is compared first; the last one takes all
_MEMORY = 1 << 28  # bytes of estimates held at once
_FEW = 1024  # rows that choose between widths at the least, however many classes they have


class MeasuredConfig(WidthConfig):
    """Options of a method that chooses widths and bits by the loss on held-out rows.

    Args:
        precisions: the bits that a block may have.
        shrink: the share of its bytes that a model keeps from one measurement to the next.
        caution: how many standard errors are added to the measured rise of the loss.
    """

    guard: Literal["retrained", "measured", "none"] = "retrained"
    precisions: tuple[Bits, ...] = Field(default=(8, 4, 3, 2), min_length=1)
    shrink: float = Field(default=0.7, gt=0, lt=1)
    caution: float = Field(default=1.0, ge=0)


class Supernet(supernet.Supernet):
    """A full-width model, read by its gradients."""

    plain_warm_start = True

    def scores(self) -> Array:
        """The mean magnitude of each block's dim, which orders dims in a plain basis."""
        return np.asarray(self.block_means(self.weight[:, : self.parent.dim].abs()))

    def uniform(self, limit: int) -> Architecture | None:
        """The best of the uniform architectures in each of the precisions, by the loss on some held-out rows."""
        return self._best_of(self.uniform_in(bits, limit) for bits in self.precisions())

    def frequent(self, limit: int) -> Architecture | None:
        """Widths by frequency in the best of the precisions, by the loss on some held-out rows."""
        return self._best_of(self.frequent_in(bits, limit) for bits in self.precisions())

    def _best_of(self, found: Iterable[Architecture | None]) -> Architecture | None:
        return min((one for one in found if one is not None), key=partial(self.loss_of, rows=_ROUGH), default=None)

    def choose(self, limit: int | None) -> Architecture:
        left = self.left(limit)
        if self.held is None:
            raise SpaceError(f"{self.config.method} must be searched before it can choose")
        options = self.options(self.precisions())
        if int(options.bytes[:, 1:].min()) > left:
            raise SpaceError(
                f"the budget must hold one dim of the smallest block ({int(options.bytes[:, 1:].min())} bytes), "
                f"but got {left}"
            )
        tables = self.rounded_tables(self.precisions())
        state = self.open_state(options)
        total = options.total(state)
        while (target := int(total * self.config.shrink)) > left:
            found = self.estimate(tables, options, state, rows=_ROUGH).shrink(state, options, target, left)
            total = options.total(found)
            if total <= left:
                break  # one move went all the way: all rows decide whether it is the one
            state = found
        estimate = self.estimate(tables, options, state)
        state = estimate.shrink(state, options, left, left)
        # A block that held-out rows do not miss is closed, however many bytes the budget leaves.
        state = estimate.improve(estimate.grow(state, options, left), options, 0.0, close=True)
        return self.with_state(state, options)

    def open_state(self, options: Options) -> Array:
        """The option of each block that keeps all that pruning has left, with the most bits: int [S]."""
        return np.array([np.flatnonzero(options.width == width)[-1] for width in self.open_widths()])

    def open_widths(self) -> list[int]:
        """How many dims of each block the parent and the pruning have left."""
        return [int(width) for width in (self.mask[:, : self.parent.dim] > 0).sum(dim=1).tolist()]

    def precisions(self) -> tuple[Bits, ...]:
        """The bits to choose from, most first, none above the parent's or the stage's own."""
        most = int(self.block_bits().max())
        found = tuple(sorted({bits for bits in self.config.precisions if bits <= most}, reverse=True))
        if not found:
            raise SpaceError(
                f"{self.config.method}'s precisions must hold one of at most {most} bits, "
                f"but are {list(self.config.precisions)}"
            )
        return found

    def options(self, precisions: Sequence[Bits]) -> Options:
        """Closed, then every width with every precision, those of each in a row; the most bits are last."""
        dim = self.parent.dim
        widths = [width for width in _WIDTHS if width < dim]
        while widths and widths[-1] * 4 // 3 < dim:
            widths.append(widths[-1] * 4 // 3)
        widths = sorted({*widths, dim, *self.open_widths()} - {0})
        pairs = [
            (0, len(precisions) - 1),
            *((width, place) for place in reversed(range(len(precisions))) for width in widths),
        ]
        width, precision = (np.array(part) for part in zip(*pairs, strict=True))
        rows, storage = self.parent.block_rows(), self.parent.mixed()
        sizes = [
            storage.sizes(rows, dim, np.full(len(rows), bits), first_order=self.first_order) for bits in precisions
        ]
        return Options(
            width=width,
            precision=precision,
            bytes=np.stack([sizes[p][:, w] for w, p in zip(width, precision, strict=True)], axis=1),
        )

    def with_state(self, state: Array, options: Options) -> Architecture:
        """The parent with each block's option, int [S]."""
        kept = np.arange(self.parent.dim) < options.width[state][:, None]
        bits = np.array(self.precisions())[options.precision[state]]
        return self.parent_with(self.in_order(kept), bits)

    def in_order(self, kept: Array) -> Array:
        """The first dims in each block's order, bool [S, D], as dims."""
        mask = np.zeros_like(kept)
        np.put_along_axis(mask, self.order(), kept, axis=1)
        return mask

    def order(self) -> Array:
        """Dims of each block, best first: as they stand in a nested basis, else by size: int [S, D]."""
        allowed = self.mask[:, : self.parent.dim].cpu().numpy() > 0
        return np.argsort(~allowed if self.nested else -np.where(allowed, self.scores(), -1.0), axis=1, kind="stable")

    @torch.no_grad()
    def rounded_tables(self, precisions: Sequence[Bits]) -> Tensor:
        """The whole table in each of these bits, dims of each block in its order: float [N, P, D (+ 1)]."""
        table, dim = torch.cat(self.folded(self.gates())), self.parent.dim
        rows = self.parent.block_rows()
        places = torch.as_tensor(self.order(), device=table.device).repeat_interleave(
            torch.as_tensor(rows, device=table.device), dim=0
        )
        table = torch.cat((table[:, :dim].gather(1, places), table[:, dim:]), dim=1)
        step, sizes = self.parent.mixed().step, rows.tolist()
        found = [table if bits == 32 else rounded_blocks(table, dim, sizes, bits, step) for bits in precisions]
        return torch.stack(found, dim=1)

    def estimate(self, tables: Tensor, options: Options, state: Array, *, rows: int | None = None) -> LossEstimate:
        """Measures logits and gradients where each block has its option of `state` int [S], on so many held-out rows.

        They are all that fit in memory without `rows`. `tables` are as `rounded_tables` gives them.
        """
        ids, labels, weights = self.held_rows(rows)
        outputs = self.parent.outputs
        least = max(_CHUNK // outputs, _FEW)
        most = max(least, _MEMORY // (4 * sum(self.parent.lengths) * len(options.width) * outputs))
        ids, labels, weights = ids[:most], labels[:most], None if weights is None else weights[:most]
        training, order = self.training, torch.as_tensor(self.order(), device=ids.device)
        self.eval()
        logits, blocks = [], []
        changes = torch.empty(outputs, len(ids), sum(self.parent.lengths), len(options.width), device=ids.device)
        for part, change in zip(torch.split(ids, _CHUNK), torch.split(changes, _CHUNK, dim=1), strict=True):
            own, *rest = self.split(part)
            block = self.block_of(own)
            logits.append(self._linear(tables, options, state, own, block, rest, order, change))
            blocks.append(torch.where(own >= 0, block, -1))
        self.train(training)
        return LossEstimate(
            torch.cat(logits).cpu().numpy(),
            labels.cpu().numpy(),
            (changes[0] if outputs == 1 else changes.movedim(0, -1)).cpu().numpy(),
            torch.cat(blocks).cpu().numpy(),
            task=self.schema.task,
            lengths=self.parent.lengths,
            caution=self.config.caution,
            weights=None if weights is None else weights.cpu().numpy(),
        )

    def _linear(
        self,
        tables: Tensor,
        options: Options,
        state: Array,
        ids: Tensor,
        block: Tensor,
        rest: list[Tensor],
        orders: Tensor,
        changes: Tensor,
    ) -> Tensor:
        """Logits [B], or [B, C]; and into `changes` [C, B, V, O], how each option of each value's block changes them.

        C is 1 but for classes, which take a gradient each. `orders` int [S, D] are the dims of each block, best first.
        """
        dim, device = self.parent.dim, ids.device
        width = torch.as_tensor(options.width[state], device=device)[block]
        precision = torch.as_tensor(options.precision[state], device=device)[block]
        places, precisions = self.places_of(ids), tables.shape[1]
        rows = functional.embedding(places, tables.flatten(1)).unflatten(2, tables.shape[1:])
        kept = torch.arange(dim, device=device) < width[..., None]
        if self.first_order:
            kept = torch.cat([kept, width[..., None] > 0], dim=2)
        now = functional.embedding(places * precisions + precision, tables.flatten(0, 1)) * kept
        order, placed = orders[block], now.clone()
        placed[..., :dim].scatter_(2, order, now[..., :dim])
        placed.requires_grad_(True)
        # Which numbers of its precision an option keeps, the first-order weight with any: [P, D (+ 1), O].
        keeps = np.arange(placed.shape[2])[:, None] < options.width
        keeps[dim:] = options.width > 0
        keeps = keeps & (np.arange(precisions)[:, None, None] == options.precision)
        summed = torch.as_tensor(keeps, device=device).flatten(0, 1).to(placed.dtype)
        with torch.enable_grad():
            logit = self.logits(self.pooled(placed, ids), rest)
            sums = [logit.sum()] if logit.dim() == 1 else list(logit.sum(0))
        for number, (change, total) in enumerate(zip(changes, sums, strict=True)):
            (gradient,) = torch.autograd.grad(total, placed, retain_graph=number + 1 < len(sums))
            ordered = torch.cat([gradient[..., :dim].gather(2, order), gradient[..., dim:]], dim=2)
            base = (ordered * now).sum(2).view(-1, 1)
            moved = (rows * ordered.unsqueeze(2)).view(len(base), -1)
            torch.addmm(base, moved, summed, beta=-1, out=change.view(len(base), -1))
        return logit.detach()
