"""What blocks' options would cost in loss, by what was measured at one point, and the moves that cost least."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoembed.task import Task
from autoembed.types import Array

_CALIBRATE_EVERY = 8  # moves
_CHUNK = 1 << 15  # numbers that stay in a processor's cache
_TINY = 1e-12


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

    def total(self, state: Array) -> int:
        """Bytes of all blocks where each has its option of `state` int [S]."""
        return int(self.bytes[np.arange(len(state)), state].sum())


class LossEstimate:
    """The loss of held-out rows when blocks change their options, by what was measured at one point.

    Args:
        logits: float [N], or [N, C] of classes.
        labels: float [N].
        changes: of the logits by each option of the block of each value, float [N, V, O], or [N, V, O, C].
        blocks: the block of each value, int [N, V], -1 for none.
        lengths: how many of the V columns each field has, one after the other; by default, each has one.
        task: whose loss it is.
        calibrate: whether the logits are scaled and shifted to fit the labels first.
        caution: how many standard errors above its mean a rise is taken for when bytes are saved.
        weights: how often each row counts, float [N]; each once by default. Standard errors are those of the rows as
            they were seen: a row of weight 2 is one observation that counts twice.
    """

    def __init__(
        self,
        logits: Array,
        labels: Array,
        changes: Array,
        blocks: Array,
        *,
        task: Task,
        lengths: Sequence[int] | None = None,
        calibrate: bool = True,
        caution: float = 0.0,
        weights: Array | None = None,
    ) -> None:
        self.logits, self.labels, self.total = logits.astype(np.float64), labels, len(labels)
        self.caution, self.task = caution, task
        self.weights = None if weights is None else weights / max(float(weights.mean(dtype=np.float64)), _TINY)
        self.calibrates, self.scale = calibrate, 1.0
        self.at: dict[int, tuple[Array, Array]] = {}
        changes = changes.astype(np.float32, copy=False)
        stop = 0
        for length in lengths or (1,) * blocks.shape[1]:
            start, stop = stop, stop + length
            rows, own, change = _by_block(blocks[:, start:stop], changes[:, start:stop])
            order = np.argsort(own, kind="stable")
            found, starts = np.unique(own[order], return_index=True)
            for block, at in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
                self.at[block] = rows[at], change[at]
        self.calibrate()

    def calibrate(self) -> None:
        """Scales and shifts the logits to fit the labels: a move that only makes them smaller gains nothing."""
        if self.calibrates:
            scale, shift = self.task.calibration(self.labels, self.logits, self.weights)
            self.logits = scale * self.logits + shift
            self.scale *= scale  # changes are scaled when they are read: there are many of them

    def loss(self) -> float:
        """The mean loss where the blocks are, of calibrated logits."""
        self.calibrate()
        return float(np.average(self.task.losses(self.labels, self.logits), weights=self.weights))

    def rises(self, block: int, options: Array) -> Array:
        """The rise of the mean loss when a block takes each of the options int [O'], from where it is."""
        return self._sums(block, options)[0] / self.total

    def cautious(self, block: int, options: Array, errors: float) -> Array:
        """The rise of the mean loss that a move may have: so many standard `errors` above the one that was measured.

        A small block's rise is told from chance by few rows. Taken for its mean it would be cut for a handful of bytes,
        and half of the moves that do no good look as if they did.
        """
        rise, square = self._sums(block, options)
        return np.asarray((rise + errors * np.sqrt(square)) / self.total)

    def _sums(self, block: int, options: Array) -> tuple[Array, Array]:
        """The sums over rows of the rise of the loss, and of its square: float64 [O'] each."""
        rise, square = np.zeros((2, len(options)))
        rows, changes = self.at.get(block, (np.zeros(0, dtype=np.int64), np.zeros((0, 0), dtype=np.float32)))
        size = max(_CHUNK // max(len(options) * self.logits[:1].size, 1), 1)
        for start in range(0, len(rows), size):
            found = self.row_rises(rows[start : start + size], changes[start : start + size, options])
            # As products of matrices sums over rows are much faster, and short enough for 32 bits.
            once = np.ones(len(found), dtype=np.float32)
            rise += once @ found
            square += once @ np.square(found, out=found)
        return rise, square

    def row_rises(self, rows: Array, changes: Array) -> Array:
        """How changes [N', O'] or [N', O', C] of the logits of rows int [N'] raise their loss, times weights.

        float32 [N', O'].
        """
        logits, labels = self.logits[rows, None].astype(np.float32), self.labels[rows, None]
        rise = self.task.rises(labels, logits, changes * np.float32(self.scale))
        return rise if self.weights is None else rise * self.weights[rows, None].astype(np.float32)

    def take(self, block: int, option: int) -> None:
        """A block takes an option: changes are told from there on."""
        if block in self.at:
            rows, changes = self.at[block]
            change = changes[:, option].copy()
            self.logits[rows] += self.scale * change
            changes -= change[:, None]

    def shrink(self, state: Array, options: Options, target: int, limit: int) -> Array:
        """The state int [S] after moves with the least rise per byte saved, until there are at most `target` bytes.

        Bytes that a move saves beyond what `limit` asks for do not count: closing a large block for the last few bytes
        would throw the others away.
        """
        state = state.copy()
        total = options.total(state)
        moves = 0
        # Each block's best move, and how many moves had been taken when it was found.
        queue = [(*self.best_move(block, state, options, total - limit), block, moves) for block in range(len(state))]
        heapq.heapify(queue)
        while total > target and queue:
            price, option, block, found = heapq.heappop(queue)
            if found != moves:
                fresh = self.best_move(block, state, options, total - limit)
                if queue and fresh[0] > queue[0][0] + 1e-15 and fresh[0] > price + 1e-15:
                    heapq.heappush(queue, (*fresh, block, moves))  # other moves have made it dearer since
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
            heapq.heappush(queue, (*self.best_move(block, state, options, total - limit), block, moves))
        return state

    def improve(self, state: Array, options: Options, margin: float, *, close: bool = False) -> Array:
        """The state int [S] after moves to fewer bytes that make the loss fall by `margin` standard errors or more.

        With `close` the only move is to close a block.
        """
        state, moves = state.copy(), 0
        while True:
            best = (0.0, -1, -1)
            for block in self.at:
                able = np.flatnonzero(options.bytes[block] < options.bytes[block, state[block]])
                able = able[:1] if close else able  # option 0 has no bytes
                if not len(able):
                    continue
                least = self.cautious(block, able, margin)
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
        price = np.maximum(self.cautious(block, able, self.caution), 0.0) / np.minimum(saved[able], max(needed, 1))
        best = int(np.lexsort((saved[able], price))[0])
        return float(price[best]), int(able[best])

    def grow(self, state: Array, options: Options, limit: int) -> Array:
        """The state int [S] after the moves with the largest fall per byte that `limit` still holds."""
        state = state.copy()
        total = options.total(state)
        queue = [(*self.best_growth(block, state, options, limit - total), block) for block in range(len(state))]
        heapq.heapify(queue)
        while queue:
            _, _, block = heapq.heappop(queue)
            price, option = self.best_growth(block, state, options, limit - total)
            if option < 0:
                continue  # less and less of the limit is left: it will not fit later
            if queue and price > queue[0][0] + 1e-15:
                heapq.heappush(queue, (price, option, block))
                continue
            total += int(options.bytes[block, option] - options.bytes[block, state[block]])
            state[block] = option
            self.take(block, option)
            heapq.heappush(queue, (*self.best_growth(block, state, options, limit - total), block))
        return state

    def best_growth(self, block: int, state: Array, options: Options, left: int) -> tuple[float, int]:
        """A block's best growth within `left` bytes: its rise of the loss a byte, below 0, and option, -1 if none."""
        more = options.bytes[block] - options.bytes[block, state[block]]
        able = np.flatnonzero((more > 0) & (more <= left))
        if not len(able):
            return 0.0, -1
        price = self.rises(block, able) / more[able]
        best = int(price.argmin())
        return (float(price[best]), int(able[best])) if price[best] < 0 else (0.0, -1)


def _by_block(blocks: Array, changes: Array) -> tuple[Array, Array, Array]:
    """Rows int [M], blocks int [M] and changes [M, O] or [M, O, C] of a field: a row has a block once."""
    rows = np.arange(len(blocks))
    if blocks.shape[1] == 1:
        return rows, blocks[:, 0], changes[:, 0]
    held = blocks >= 0
    pairs = np.stack([np.broadcast_to(rows[:, None], blocks.shape)[held], blocks[held]], axis=1)
    unique, place = np.unique(pairs, axis=0, return_inverse=True)
    together = np.zeros((len(unique), *changes.shape[2:]), dtype=changes.dtype)
    np.add.at(together, place.reshape(-1), changes[held])
    return unique[:, 0], unique[:, 1], together
