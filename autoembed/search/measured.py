"""The base of methods that choose widths and bits by what they cost in loss, on held-out rows.

From full width and the most bits, the move with the least rise of the loss per byte saved is taken again and again
until the budget is met. A move gives a block fewer dims, fewer bits, or closes it. Its rise of the loss is estimated by
the logit's change to first order in the field's embedding, which is exact where the model is linear in one field's
embedding (factorization machines), and by the exact loss of the changed logit: the Gauss-Newton idea behind Optimal
Brain Damage (LeCun et al., NeurIPS 1989) and HAWQ (arXiv 1905.03696), but with all terms between the dims of a block
and between fields, which a sum of squared gradients leaves out. Logits and gradients are measured again, at the point
that was reached, each time that the bytes have fallen by a part.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from autoembed.architecture import Architecture
from autoembed.errors import SpaceError
from autoembed.metrics import log_losses, scale_and_shift
from autoembed.nn.rows import rounded
from autoembed.plans import Array, Bits
from autoembed.search import supernet
from autoembed.search.method import WidthConfig

_CHUNK = 2048
_WIDTHS = (1, 2, 3, 4, 6, 8, 12)  # then each a third wider than the one before
_MEMORY = 1 << 28  # bytes of estimates held at once
_CALIBRATE_EVERY = 8  # moves


class MeasuredConfig(WidthConfig):
    """Options of a method that chooses by loss. Blocks have one of these `precisions`, in bits.

    `shrink` is how far the bytes fall between two measurements.
    """

    guard: Literal["retrained", "measured", "none"] = "retrained"
    precisions: tuple[Bits, ...] = Field(default=(8, 4, 3, 2), min_length=1)
    shrink: float = Field(default=0.7, gt=0, lt=1)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a block may become; option 0 is to close it.

    Attributes:
        width: dims, int [O].
        precision: place in `Config.precisions`, int [O].
        bytes: int [S, O].
    """

    width: Array
    precision: Array
    bytes: Array


class Supernet(supernet.Supernet):
    """A full-width model, read by its gradients."""

    plain_warm_start = True

    def scores(self) -> Array:
        """The mean magnitude of each block's dim, which orders dims in a plain basis."""
        return np.asarray(self.block_means(self.weight[:, : self.parent.dim].abs()))

    def uniform(self, limit: int) -> Architecture | None:
        """The best of the uniform architectures in each of the precisions, by the loss on held-out rows."""
        found = [self.uniform_in(bits, limit) for bits in self.precisions()]
        return min((one for one in found if one is not None), key=self.loss_of, default=None)

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
        tables = [self.rounded_table(bits) for bits in self.precisions()]
        state = self.open_state(options)
        total = int(options.bytes[np.arange(len(state)), state].sum())
        while True:
            target = max(left, int(total * self.config.shrink))
            estimate = self.estimate(tables, options, state)
            state = estimate.shrink(state, options, target, left)
            total = int(options.bytes[np.arange(len(state)), state].sum())
            if total <= left:
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
        """Every width with every precision, and closed; the most bits are last."""
        dim = self.parent.dim
        widths = [width for width in _WIDTHS if width < dim]
        while widths and widths[-1] * 4 // 3 < dim:
            widths.append(widths[-1] * 4 // 3)
        widths = sorted({*widths, dim, *self.open_widths()} - {0})
        pairs = [(0, 0), *((width, place) for place in reversed(range(len(precisions))) for width in widths)]
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
    def rounded_table(self, bits: int) -> Tensor:
        """The whole table in so many bits, dims of each block in its order: float [N, D (+ 1)]."""
        table = torch.cat(self.folded(self.gates()))
        order = torch.as_tensor(self.order(), device=table.device)
        out, start, dim = torch.empty_like(table), 0, self.parent.dim
        for block, rows in enumerate(self.parent.block_rows().tolist()):
            part = table[start : start + rows]
            body = part[:, order[block]]
            out[start : start + rows] = torch.cat(
                (body, part[:, dim:]) if bits == 32 else rounded(body, part[:, dim:], bits, self.parent.mixed().step),
                dim=1,
            )
            start += rows
        return out

    def estimate(self, tables: list[Tensor], options: Options, state: Array) -> Estimate:
        """Measures logits and gradients where each block has its option of `state` int [S]."""
        assert self.held is not None
        ids, labels = self.held
        most = max(_CHUNK, _MEMORY // (4 * len(self.parent.fields) * len(options.width)))
        ids, labels = ids[:most], labels[:most]
        training = self.training
        self.eval()
        logits, changes, blocks = [], [], []
        for part in torch.split(ids, _CHUNK):
            own, *rest = self.split(part)
            block = self.block(own)
            logit, change = self._linear(tables, options, state, own, block, rest)
            logits.append(logit)
            changes.append(change)
            blocks.append(block)
        self.train(training)
        return Estimate(
            torch.cat(logits).cpu().numpy(),
            labels.cpu().numpy(),
            torch.cat(changes).cpu().numpy(),
            torch.cat(blocks).cpu().numpy(),
        )

    def _linear(
        self, tables: list[Tensor], options: Options, state: Array, ids: Tensor, block: Tensor, rest: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Logits [B], and how each option of each value's block would change them, float [B, F, O]."""
        dim, device = self.parent.dim, ids.device
        width = torch.as_tensor(options.width[state], device=device)[block]
        precision = torch.as_tensor(options.precision[state], device=device)[block]
        rows = [functional.embedding(ids + self.offsets, table) for table in tables]
        chosen = torch.stack(rows)
        now = torch.gather(chosen, 0, precision[None, :, :, None].expand(1, *rows[0].shape))[0]
        kept = torch.arange(dim, device=device) < width[..., None]
        if self.first_order:
            kept = torch.cat([kept, width[..., None] > 0], dim=2)
        order = torch.as_tensor(self.order(), device=device)[block]
        now = now * kept
        placed = torch.zeros_like(now)
        placed[..., :dim] = torch.zeros_like(now[..., :dim]).scatter(2, order, now[..., :dim])
        placed[..., dim:] = now[..., dim:]
        placed.requires_grad_(True)
        with torch.enable_grad():
            logit = self.logits(placed, rest)
            (gradient,) = torch.autograd.grad(logit.sum(), placed)
        ordered = torch.cat([gradient[..., :dim].gather(2, order), gradient[..., dim:]], dim=2)
        base = (ordered * now).sum(2)
        sums = []
        for values in rows:
            product = ordered * values
            upto = product[..., :dim].cumsum(2)
            sums.append(upto + product[..., dim:].sum(2, keepdim=True))
        out = torch.stack(
            [
                -base if w == 0 else sums[p][..., w - 1] - base
                for w, p in zip(options.width.tolist(), options.precision.tolist(), strict=True)
            ],
            dim=2,
        )
        return logit.detach(), out.detach()


class Estimate:
    """The loss of held-out rows when blocks change their options, by what was measured at one point.

    Args:
        logits: float [N].
        labels: float [N].
        changes: of the logits by each option of the block of each field's value, float [N, F, O].
        blocks: the block of each field's value, int [N, F].
        calibrate: whether the logits are scaled and shifted to fit the labels first.
    """

    def __init__(self, logits: Array, labels: Array, changes: Array, blocks: Array, *, calibrate: bool = True) -> None:
        self.logits, self.labels, self.total = logits.astype(np.float64), labels, len(labels)
        self.calibrates = calibrate
        self.at: dict[int, tuple[Array, Array]] = {}
        for field in range(blocks.shape[1]):
            own = blocks[:, field]
            for block in np.unique(own):
                rows = np.flatnonzero(own == block)
                self.at[int(block)] = rows, changes[rows, field].astype(np.float64)
        self.calibrate()

    def calibrate(self) -> None:
        """Scales and shifts the logits to fit the labels: a move that only makes them smaller gains nothing."""
        if self.calibrates:
            scale, shift = scale_and_shift(self.labels, self.logits)
            self.logits = scale * self.logits + shift
            self.at = {block: (rows, scale * changes) for block, (rows, changes) in self.at.items()}

    def loss(self) -> float:
        """The mean loss where the blocks are, of calibrated logits."""
        self.calibrate()
        return float(log_losses(self.labels, self.logits).mean())

    def rises(self, block: int, options: Array) -> Array:
        """The rise of the mean loss when a block takes each of the options int [O'], from where it is."""
        if block not in self.at:
            return np.zeros(len(options))
        rows, changes = self.at[block]
        logits, labels = self.logits[rows, None], self.labels[rows, None]
        after = logits + changes[:, options]
        rise = log_losses(labels, after) - log_losses(labels, logits)
        return np.asarray(rise.sum(axis=0) / self.total)

    def take(self, block: int, option: int) -> None:
        """A block takes an option: changes are told from there on."""
        if block in self.at:
            rows, changes = self.at[block]
            change = changes[:, option].copy()
            self.logits[rows] += change
            changes -= change[:, None]

    def shrink(self, state: Array, options: Options, target: int, limit: int) -> Array:
        """The state int [S] after moves with the least rise per byte saved, until there are at most `target` bytes.

        Bytes that a move saves beyond what `limit` asks for do not count: closing a large block for the last few bytes
        would throw the others away.
        """
        state = state.copy()
        total = int(options.bytes[np.arange(len(state)), state].sum())
        queue = [(*self.best_move(block, state, options, total - limit), block) for block in range(len(state))]
        heapq.heapify(queue)
        moves = 0
        while total > target and queue:
            price, option, block = heapq.heappop(queue)
            fresh = self.best_move(block, state, options, total - limit)
            if queue and fresh[0] > queue[0][0] + 1e-15 and fresh[0] > price + 1e-15:
                heapq.heappush(queue, (*fresh, block))  # other moves have made it dearer since
                continue
            price, option = fresh
            if option < 0:
                continue
            total -= int(options.bytes[block, state[block]] - options.bytes[block, option])
            state[block] = option
            self.take(block, option)
            moves += 1
            if moves % _CALIBRATE_EVERY == 0:
                self.calibrate()
            heapq.heappush(queue, (*self.best_move(block, state, options, total - limit), block))
        return state

    def improve(self, state: Array, options: Options, margin: float, *, close: bool = False) -> Array:
        """The state int [S] after moves to fewer bytes that make the loss fall by `margin` standard errors or more.

        With `close` the only move is to close a block.
        """
        state, moves = state.copy(), 0
        while True:
            best = (0.0, -1, -1)
            for block, (rows, changes) in self.at.items():
                able = np.flatnonzero(options.bytes[block] < options.bytes[block, state[block]])
                able = able[:1] if close else able  # option 0 has no bytes
                if not len(able):
                    continue
                logits, labels = self.logits[rows, None], self.labels[rows, None]
                rise = log_losses(labels, logits + changes[:, able]) - log_losses(labels, logits)
                least = (rise.sum(axis=0) + margin * np.sqrt(np.square(rise).sum(axis=0))) / self.total
                best = min(best, (float(least.min()), block, int(able[least.argmin()])))
            _, block, option = best
            if block < 0:
                return state
            state[block] = option
            self.take(block, option)
            moves += 1
            if moves % _CALIBRATE_EVERY == 0:
                self.calibrate()

    def best_move(self, block: int, state: Array, options: Options, needed: int) -> tuple[float, int]:
        """A block's best move: its rise of the loss per byte saved, up to `needed` ones, and its option, -1 if none."""
        saved = options.bytes[block, state[block]] - options.bytes[block]
        able = np.flatnonzero(saved > 0)
        if not len(able):
            return float("inf"), -1
        # A fall of the loss counts as no rise: it may be chance, and what hurts for certain has been pruned before.
        price = np.maximum(self.rises(block, able), 0.0) / np.minimum(saved[able], max(needed, 1))
        best = int(np.lexsort((saved[able], price))[0])
        return float(price[best]), int(able[best])

    def grow(self, state: Array, options: Options, limit: int) -> Array:
        """The state int [S] after the moves with the largest fall per byte that `limit` still holds."""
        state = state.copy()
        total = int(options.bytes[np.arange(len(state)), state].sum())
        while True:
            best = (0.0, -1, -1)
            for block in range(len(state)):
                more = options.bytes[block] - options.bytes[block, state[block]]
                able = np.flatnonzero((more > 0) & (more <= limit - total))
                if len(able):
                    price = self.rises(block, able) / more[able]
                    at = int(price.argmin())
                    best = min(best, (float(price[at]), block, int(able[at])))
            price, block, option = best
            if block < 0:
                return state
            total += int(options.bytes[block, option] - options.bytes[block, state[block]])
            state[block] = option
            self.take(block, option)
