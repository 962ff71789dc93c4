"""Row orders that are computed where they are read, so that shuffling costs no memory per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Protocol

import numpy as np

from autoembed.types import Array

ROUNDS = 6
_AT_ONCE = 1 << 20
_PLACE = (1 << 32) - 1


class RowOrder(Protocol):
    """Row numbers in some order, int [N]; an array is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, places: Array, /) -> Array: ...


class Shuffle:
    """`rows`, or the numbers below a whole `rows`, as a pseudorandom permutation.

    A generalised Feistel network (Black and Rogaway, CT-RSA 2002): a place is written as (left, right) with left < a,
    right < b, a * b >= N, and each round adds a random function of one half to the other. Places that land at N or
    above walk on until they fall below; less than one in sqrt(N) does. The round functions are tables of random
    numbers, so memory grows with sqrt(N): 1.5 MB for a billion rows. Of a handful of rows not all orders are equally
    likely; from hundreds on they look as random as a shuffle in memory.
    """

    def __init__(self, rows: int | RowOrder, seed: int | Sequence[int]) -> None:
        self.rows = None if isinstance(rows, int) else rows
        self.total = rows if isinstance(rows, int) else len(rows)
        self.left = isqrt(max(self.total - 1, 0)) + 1
        self.right = max(1, -(-self.total // self.left))
        rng = np.random.default_rng(seed)
        sizes = [(self.left, self.right), (self.right, self.left)] * (ROUNDS // 2)
        self.tables = [rng.integers(0, moved, read) for moved, read in sizes]

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, places: Array) -> Array:
        """Places int [n], each below N -> the rows that stand there, int64 [n]."""
        numbers = self._pass(places)
        while len(outside := np.flatnonzero(numbers >= self.total)):
            numbers[outside] = self._pass(numbers[outside])
        return numbers if self.rows is None else self.rows[numbers]

    def _pass(self, numbers: Array) -> Array:
        left, right = np.divmod(numbers, self.right)
        for number, table in enumerate(self.tables):
            if number % 2:
                right = _add(right, table[left], self.right)
            else:
                left = _add(left, table[right], self.left)
        return np.asarray(left * self.right + right)


def _add(a: Array, b: Array, modulus: int) -> Array:
    """a + b mod modulus for numbers below it; a division would take four times as long."""
    total = a + b
    total -= modulus * (total >= modulus)
    return np.asarray(total)


@dataclass(frozen=True)
class Stretch:
    """The rows at the places from `start` to `stop` of others."""

    rows: RowOrder
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, places: Array) -> Array:
        return self.rows[places + self.start]


class GroupsTogether:
    """`rows`, or the numbers below a whole `rows`, in a random order of parts, whose rows are of one group.

    Each group is cut at random into the fewest parts of at most `most` rows, about equally large. A row's place in a
    `Shuffle` stands behind its group in a number, and sorted numbers are groups in one piece: 8 bytes a row and 16 a
    part.

    Args:
        rows: the rows, fewer than 2^32.
        groups: the group of every row that there is, int [N]. A row whose group is below 0 is a part by itself.
        most: rows of a part.
        seed: of the order.
    """

    def __init__(self, rows: int | RowOrder, groups: Array, most: int, seed: Sequence[int]) -> None:
        self.shuffled = Shuffle(rows, [*seed, 0])
        total = len(self.shuffled)
        if total > _PLACE:
            raise ValueError(f"rows in groups must be fewer than 2^32, but got {total}")
        self.numbers = np.empty(total, dtype=np.int64)
        for start in range(0, total, _AT_ONCE):
            places = np.arange(start, min(start + _AT_ONCE, total))
            self.numbers[places] = (groups[self.shuffled[places]].astype(np.int64) << 32) | places
        self.numbers.sort()
        starts = self._starts()
        sizes = np.diff(np.append(starts, total))
        parts = -(-sizes // most)
        # Part p of a group of n rows in k parts begins at p * n // k.
        part = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
        starts = np.repeat(starts, parts) + part * np.repeat(sizes, parts) // np.repeat(parts, parts)
        turn = np.random.default_rng([*seed, 1]).permutation(len(starts))
        sizes = np.diff(np.append(starts, total))[turn]
        self.stops = np.cumsum(sizes)
        self.shift = starts[turn] - (self.stops - sizes)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, places: Array) -> Array:
        """Places int [n] -> the rows that stand there, int64 [n]."""
        at = places + self.shift[np.searchsorted(self.stops, places, side="right")]
        return self.shuffled[self.numbers[at] & _PLACE]

    def _starts(self) -> Array:
        """Where groups start in `numbers`, int64 [groups]."""
        found = [np.arange(min(len(self.numbers), 1))]
        for start in range(1, len(self.numbers), _AT_ONCE):
            group = self.numbers[start - 1 : start + _AT_ONCE] >> 32
            found.append(start + np.flatnonzero((group[1:] != group[:-1]) | (group[1:] < 0)))
        return np.concatenate(found)
