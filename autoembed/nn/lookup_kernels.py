"""Loops that read rows of tables, compiled (`native`): one pass over the values of a batch for each table.

n values of a batch, V columns of ids, S blocks, C numbers of a row that is looked up. Tables and codes are laid out as
`rows.Rows` and `rows.PackedRows` have them, and numbers are computed as there, to the last bit.
"""

from __future__ import annotations

import numpy as np

from autoembed.native import native, prefetch
from autoembed.types import Array

AHEAD = 24  # values whose rows are on their way from memory, as most are in no cache


@native
def find(
    ids: Array, sizes: Array, stops: Array, first: Array, shift: Array, row: Array, block: Array, bad: Array
) -> None:
    """The block and the row of each id, into int32 [n]; of an id that its column does not have, the place in `bad`.

    ids int32 [B, V]; sizes int32 [V]: ids of a column; stops int32 [V, blocks - 1]; first int32 [V]; shift int32 [S].
    """
    columns = ids.shape[1]
    for b in range(ids.shape[0]):
        for v in range(columns):
            id = ids[b, v]
            at = b * columns + v
            if id < 0 or id >= sizes[v]:
                bad[0] = at + 1
                return
            own = first[v]
            for s in range(stops.shape[1]):
                if id >= stops[v, s]:
                    own += 1
            block[at] = own
            row[at] = id + shift[own]


@native
def spread(out: Array, at: int, place: Array, own: int, width: int) -> None:
    """Moves the first numbers of a row of `out` to their places, which ascend, and leaves zeros."""
    if width > 0 and place[own, width - 1] != width - 1:
        for w in range(width - 1, -1, -1):
            if place[own, w] != w:
                out[at, place[own, w]] = out[at, w]
                out[at, w] = 0


@native
def read_floats(
    number: int, width: int, row: Array, block: Array, group: Array, place: Array, table: Array, out: Array
) -> None:
    """Rows of the blocks whose table is `number`, float32 [N, width (+ 1)], into their places of out float32 [n, C].

    Their first-order weights are last, there and here.
    """
    n, wide = len(row), table.shape[1]
    for at in range(n):
        later = at + AHEAD
        if later < n and group[block[later]] == number:
            begin = np.int64(row[later]) * wide
            prefetch(table, begin)
            prefetch(table, begin + wide - 1)
        own = block[at]
        if group[own] == number:
            r = row[at]
            for w in range(width):
                out[at, w] = table[r, w]
            spread(out, at, place, own, width)
            if table.shape[1] > width:
                out[at, out.shape[1] - 1] = table[r, width]


@native
def read_halves(
    number: int,
    width: int,
    row: Array,
    block: Array,
    group: Array,
    place: Array,
    table: Array,
    values: Array,
    out: Array,
) -> None:
    """The same of rows of 16 bits, uint16 [N, width (+ 1)], which stand for `values` float32 [65536]."""
    for at in range(len(row)):
        own = block[at]
        if group[own] == number:
            r = row[at]
            for w in range(width):
                out[at, w] = values[table[r, w]]
            spread(out, at, place, own, width)
            if table.shape[1] > width:
                out[at, out.shape[1] - 1] = values[table[r, width]]


@native
def read_codes(
    number: int,
    bits: int,
    width: int,
    low: float,
    row: Array,
    block: Array,
    group: Array,
    place: Array,
    slot: Array,
    codes: Array,
    steps: Array,
    values: Array,
    slot_steps: Array,
    first_bits: int,
    first_low: float,
    first: Array,
    first_steps: Array,
    out: Array,
) -> None:
    """The same of rows of codes uint8 [N, bytes].

    Steps are uint16 [N], which stand for `values` float32 [65536], or float32 [slots, 1 or width] and `steps` is empty.
    First-order weights are codes of their own, uint8 of 8 or 4 bits with steps float32 [slots, 1]; 0 bits if there are
    none.
    """
    least, fours = np.float32(low), (width + 3) // 4
    n, wide = len(row), codes.shape[1]
    for at in range(n):
        later = at + AHEAD
        if later < n and group[block[later]] == number:
            prefetch(codes, np.int64(row[later]) * wide)
        own = block[at]
        if group[own] != number:
            continue
        r = row[at]
        if bits == 8:
            for w in range(width):
                out[at, w] = np.float32(codes[r, w]) + least
        elif bits == 4:
            for part in range(width >> 1):
                byte = codes[r, part]
                out[at, 2 * part] = np.float32(byte & 15) + least
                out[at, 2 * part + 1] = np.float32(byte >> 4) + least
            if width & 1:
                out[at, width - 1] = np.float32(codes[r, width >> 1] & 15) + least
        elif bits == 1:
            for w in range(width):
                out[at, w] = np.float32((codes[r, w >> 3] >> (w & 7)) & 1) + least
        else:  # 2 bits of each code, and of 3 bits, the third ones behind them
            for part in range(fours):
                byte, thirds = np.int64(codes[r, part]), np.int64(0)
                if bits == 3:
                    thirds = np.int64(codes[r, fours + (part >> 1)]) >> ((part & 1) << 2)
                if 4 * part + 4 <= width:
                    for k in range(4):
                        code = ((byte >> (2 * k)) & 3) + (((thirds >> k) & 1) << 2)
                        out[at, 4 * part + k] = np.float32(code) + least
                else:
                    for k in range(width & 3):
                        code = ((byte >> (2 * k)) & 3) + (((thirds >> k) & 1) << 2)
                        out[at, 4 * part + k] = np.float32(code) + least
        if len(steps) > 0 or slot_steps.shape[1] == 1:
            step = values[steps[r]] if len(steps) > 0 else slot_steps[slot[own], 0]
            for w in range(width):
                out[at, w] *= step
        else:
            for w in range(width):
                out[at, w] *= slot_steps[slot[own], w]
        spread(out, at, place, own, width)
        if first_bits > 0:
            own_code = np.int32(first[r]) if first_bits == 8 else np.int32(first[r >> 1] >> ((r & 1) << 2)) & 15
            out[at, out.shape[1] - 1] = (np.float32(own_code) + np.float32(first_low)) * first_steps[slot[own], 0]
