"""Loops that count columns, compiled (`native`): threads run them side by side.

A cell is a value with a class. What indexes arrays is unsigned: numba would look whether a signed number is negative,
each time. What a kernel needs to work in, its caller allocates.
"""

from __future__ import annotations

import numpy as np

from autoembed.native import native, prefetch
from autoembed.types import Array

_BLOCK = np.uint64(128)  # rows: short enough that a core reads the next block's while it counts this one's
_HALF = _BLOCK // np.uint64(2)
_LONG = 1 << 14  # rows: where counters are waited for, long blocks let a core go on
_LINE = np.uint64(16)  # codes: of one line of memory
_NEAR = 1 << 13  # cells: a table of them stands in the first cache
COUPLED = 1 << 11  # cells: beside the three streams of two columns there is less room
_TWOS = 1 << 11  # cells
_INTERLEAVED = 1 << 7  # cells


def count_column(codes: Array, labels: Array, table: Array) -> None:
    """Add rows, codes int32 and labels uint8 [rows], to table int64 [K, L] by code and class."""
    cells = table.size
    if len(codes) < cells:
        count_few(codes, labels, table)
    elif cells > _NEAR:
        cell = np.empty(_LONG, np.uint16 if cells <= 1 << 16 else np.uint32)
        count_far(codes, labels, table, np.zeros(cells, np.uint32), cell)
    else:
        _near(codes, codes, 0, labels, table)


def count_two(a: Array, b: Array, labels: Array, table_a: Array, table_b: Array) -> None:
    """`count_column` of two columns, with at most COUPLED cells for the combinations of both, by one addition a row."""
    (Ka, L), Kb = table_a.shape, len(table_b)
    joint = np.zeros((Ka, Kb, L), np.int64)
    _near(a, b, Kb, labels, joint.reshape(Ka, Kb * L))
    table_a += joint.sum(axis=1)
    table_b += joint.sum(axis=0)


def _near(a: Array, b: Array, Kb: int, labels: Array, table: Array) -> None:
    # A core writes one counter at a time, so rows of a small table are counted two by two.
    cells = table.size
    twos = cells * cells <= _TWOS
    size = cells * cells if twos else cells
    # Equal neighbours would wait on each other in one table.
    part = np.zeros((8 if size <= _INTERLEAVED else 1, size), np.uint32)
    count_near(a, b, Kb, labels, table, int(twos), part, np.empty(int(_BLOCK), np.uint16))


@native
def count_few(codes: Array, labels: Array, table: Array) -> None:
    """`count_column` without counters beside the table."""
    for i in range(len(codes)):
        table[codes[i], labels[i]] += 1


@native
def count_far(codes: Array, labels: Array, table: Array, part: Array, cell: Array) -> None:
    """`count_column` through counters half as large as those of the table; cells are found several at a time."""
    L, block = np.uint32(table.shape[1]), np.uint64(len(cell))
    whole = np.uint64(len(codes)) // block * block
    for b in range(np.uint64(0), whole, block):
        for i in range(block):
            cell[i] = np.uint32(codes[b + i]) * L + labels[b + i]
        for line in range(np.uint64(0), block, _LINE):
            # The codes of the next block arrive meanwhile; past the end of the array this does nothing.
            prefetch(codes, b + block + line)
            for i in range(_LINE):
                part[cell[line + i]] += np.uint32(1)
    for i in range(whole, len(codes)):
        part[np.uint32(codes[i]) * L + labels[i]] += np.uint32(1)
    for c in range(len(part)):
        table[c // L, c % L] += part[c]


@native
def count_near(a: Array, b: Array, Kb: int, labels: Array, table: Array, twos: int, part: Array, cell: Array) -> None:
    """`count_column` of a, or of a * Kb + b if there are Kb values of b, through the counters of part.

    part is uint32 [1 or 8, cells], or [., cells * cells] with `twos`. cell, uint16 [_BLOCK], holds the cells of a block
    of rows, or with `twos` those of both halves, row by row. They are found several at a time, and read by fours.
    """
    L, M = np.uint32(table.shape[1]), np.uint32(table.size)
    classes = L // np.uint32(max(Kb, 1))
    n = len(part)
    p0, p1, p2, p3 = part[0], part[1 % n], part[2 % n], part[3 % n]
    p4, p5, p6, p7 = part[4 % n], part[5 % n], part[6 % n], part[7 % n]
    fours = cell.view(np.uint64)
    low, one = np.uint64(0xFFFF), np.uint32(1)
    words = (_HALF if twos else _BLOCK) // np.uint64(4)
    whole = np.uint64(len(a)) // _BLOCK * _BLOCK
    for start in range(np.uint64(0), whole, _BLOCK):
        if Kb:
            for i in range(_BLOCK):
                cell[i] = np.uint32(a[start + i]) * L + np.uint32(b[start + i]) * classes + labels[start + i]
        else:
            for i in range(_BLOCK):
                cell[i] = np.uint32(a[start + i]) * L + labels[start + i]
        if twos:
            for i in range(_HALF):
                cell[i] = cell[i] * M + cell[_HALF + i]
        for i in range(np.uint64(0), words, np.uint64(2)):
            x, y = fours[i], fours[i + np.uint64(1)]
            p0[x & low] += one
            p1[(x >> np.uint64(16)) & low] += one
            p2[(x >> np.uint64(32)) & low] += one
            p3[x >> np.uint64(48)] += one
            p4[y & low] += one
            p5[(y >> np.uint64(16)) & low] += one
            p6[(y >> np.uint64(32)) & low] += one
            p7[y >> np.uint64(48)] += one
    for p in range(n):
        for c in range(part.shape[1]):
            times = part[p, c]
            if twos:
                table[c // M // L, c // M % L] += times
                table[c % M // L, c % L] += times
            else:
                table[c // L, c % L] += times
    for i in range(whole, len(a)):
        table[a[i], (b[i] * classes if Kb else 0) + labels[i]] += 1


@native
def count_column_weighted(codes: Array, labels: Array, weights: Array, table: Array) -> None:
    """Add the weights of rows to table [K, L] by code and class."""
    for i in range(len(codes)):
        table[codes[i], labels[i]] += weights[i]
