"""Loops over the texts of a request, compiled (`native`): where they are in the body, and which ids they have.

A body is uint8 with 16 NULs behind it, which end every loop, and over which words of 8 bytes may be read.
"""

from __future__ import annotations

import numpy as np

from autoembed.native import native, prefetch
from autoembed.types import Array

NONE = -(2**31)  # the id of a text that a table does not have
AHEAD = 64
VIEWS, OFFSETS, LONG_OFFSETS = 0, 1, 2  # how a column of Arrow says where its texts are
WORDS = (4, 1, 2)  # of 4 bytes that it takes for each text
_WORD = 8
_INLINE = 12  # bytes of a text that its view holds
_BLANK, _QUOTE, _COMMA, _COLON, _BACKSLASH = 32, 34, 44, 58, 92
_TAB, _LINE, _RETURN = 9, 10, 13
_OPEN, _CLOSE, _BRACE, _END = 91, 93, 123, 125  # brackets of a list and of an object


@native
def behind_blanks(body: Array, at: int) -> int:
    """The first place from `at` on where no blank is."""
    while body[at] == _BLANK or body[at] == _LINE or body[at] == _RETURN or body[at] == _TAB:
        at += 1
    return at


@native
def closing_quote(body: Array, at: int) -> int:
    """Where the text from `at` on ends, -1 if something stands in it that is written with a backslash, or may not."""
    place = np.uint64(at)  # numba looks at the sign of each index that has one
    while body[place] != _QUOTE and body[place] != _BACKSLASH and body[place] >= _BLANK:
        place += np.uint64(1)
    return np.int64(place) if body[place] == _QUOTE else -1  # type: ignore[return-value]  # int() keeps it unsigned


@native
def read_columns(body: Array, at: int, names: Array, ends: Array, start: Array, stop: Array, found: Array) -> None:
    """The columns of an object from `at`, a name's place, on: as many as are lists of texts without a backslash.

    Where their names start and stop goes into int64 [F, 2], where their texts do into int64 [N], one column behind the
    other, and the number of texts up to the end of each into int64 [F]. Into found int64 [3]: how many columns there
    are, the place behind what was read, and 1 if that is behind the object; otherwise what comes is no such column.
    """
    column, number = 0, 0
    found[2] = 0
    while True:
        found[0], found[1] = column, at
        at = behind_blanks(body, at)
        if body[at] != _QUOTE:
            return
        end = closing_quote(body, at + 1)
        if end < 0:
            return
        names[column, 0], names[column, 1] = at + 1, end
        at = behind_blanks(body, end + 1)
        if body[at] != _COLON:
            return
        at = behind_blanks(body, at + 1)
        if body[at] != _OPEN:
            return
        while body[at] != _CLOSE:  # at a bracket or a comma
            at = behind_blanks(body, at + 1)
            if body[at] != _QUOTE:
                return
            end = closing_quote(body, at + 1)
            if end < 0:
                return
            start[number], stop[number] = at + 1, end
            number += 1
            at = behind_blanks(body, end + 1)
            if body[at] != _COMMA and body[at] != _CLOSE:
                return
        ends[column] = number
        column += 1
        at = behind_blanks(body, at + 1)
        if body[at] == _END:
            found[0], found[1], found[2] = column, at + 1, 1
            return
        if body[at] != _COMMA:
            return
        at += 1


@native
def read_rows(
    body: Array, at: int, names: Array, ends: Array, start: Array, stop: Array, texts: Array, found: Array
) -> None:
    """The values of objects with the same names in the same order, from `at`, behind a bracket, to the next one.

    names: uint8, one name behind the other; ends int64 [F]: where each of them ends. Where values start and stop goes
    into int64 [F, N], of texts within their quotes; how many of a name are texts into int64 [F]; how many objects there
    are and the place behind the bracket into found int64 [2]. -1 of them: one is not as said, there are more than N, or
    a value is a list, an object, or a text with a backslash.
    """
    found[0], number = -1, 0
    texts[:] = 0
    while True:
        at = behind_blanks(body, at)
        if body[at] != _BRACE or number == start.shape[1]:
            return
        at += 1
        named = 0
        for f in range(len(ends)):
            at = behind_blanks(body, at)
            if body[at] != _QUOTE:
                return
            at += 1
            for k in range(named, ends[f]):
                if body[at] != names[k]:
                    return
                at += 1
            named = ends[f]
            if body[at] != _QUOTE:
                return
            at = behind_blanks(body, at + 1)
            if body[at] != _COLON:
                return
            at = behind_blanks(body, at + 1)
            if body[at] == _QUOTE:
                end = closing_quote(body, at + 1)
                if end < 0:
                    return
                start[f, number], stop[f, number] = at + 1, end
                texts[f] += 1
                at = end + 1
            else:
                if body[at] == _OPEN or body[at] == _BRACE:
                    return
                start[f, number] = at
                while body[at] > _BLANK and body[at] != _COMMA and body[at] != _END and body[at] != _CLOSE:
                    at += 1
                stop[f, number] = at
            at = behind_blanks(body, at)
            if body[at] != (_COMMA if f < len(ends) - 1 else _END):
                return
            at += 1
        number += 1
        at = behind_blanks(body, at)
        if body[at] == _CLOSE:
            found[0], found[1] = number, at + 1
            return
        if body[at] != _COMMA:
            return
        at += 1


@native
def locate(
    body: Array,
    words: Array,
    size: int,
    kinds: Array,
    first: Array,
    data: Array,
    ends: Array,
    start: Array,
    stop: Array,
    good: Array,
) -> None:
    """Where the texts of columns of Arrow are in a body of `size` bytes: into int64 [C, N] each.

    `words` int32 are those of the body. kinds int64 [C]: of VIEWS, OFFSETS and LONG_OFFSETS; first int64 [C]: the word
    that begins them. data int64: where what they speak of begins, ends int64 [C + 1]: which of these are a column's.
    Into good int64 [C]: 1 if all of a column's texts are in the body and none ends with a NUL.
    """
    for c in range(len(kinds)):
        kind, at, base, fine = kinds[c], first[c], ends[c], 1
        for n in range(start.shape[1]):
            if kind == VIEWS:
                length = np.int64(words[at])
                begin = 4 * at + 4
                if length > _INLINE:
                    buffer = base + words[at + 2]
                    begin = data[buffer] + words[at + 3] if base <= buffer < ends[c + 1] else -1
                end = begin + length
                at += 4
            elif kind == OFFSETS:
                begin, end = data[base] + words[at], data[base] + words[at + 1]
                at += 1
            else:  # a body has less than 2^31 bytes
                if words[at + 1] != 0 or words[at + 3] != 0:
                    fine = 0
                begin, end = data[base] + words[at], data[base] + words[at + 2]
                at += 2
            if begin < 0 or end < begin or end > size or (end > begin and body[end - 1] == 0):
                fine = 0
            start[c, n], stop[c, n] = begin, end
        good[c] = fine


@native
def word(body: Array, at: int, length: int) -> np.uint64:
    """The first 8 of so many bytes, zeros behind their end."""
    out = np.uint64(0)
    for k in range(_WORD):
        out |= np.uint64(body[np.uint64(at) + np.uint64(k)]) << np.uint64(8 * k)
    if length < _WORD:
        out &= (np.uint64(1) << np.uint64(8 * length)) - np.uint64(1)
    return out


@native
def first_slot(first: np.uint64, second: np.uint64, size: int) -> np.int64:
    """Where a text of two words is looked for first, of 2^k slots."""
    mixed = (first ^ (second * np.uint64(0xC2B2AE3D27D4EB4F))) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xC2B2AE3D27D4EB4F)
    return np.int64(mixed >> np.uint64(32)) & (size - 1)


@native
def place(body: Array, start: Array, stop: Array, ids: Array, base: int, size: int, slots: Array) -> None:
    """Enters texts of at most 16 bytes int64 [N] with their ids int32 [N] into `size` slots from `base` on.

    Slots are uint64 [S, 3]: the words of a text, and its id + 1; 0 in a free one.
    """
    for n in range(len(start)):
        length = stop[n] - start[n]
        first = word(body, start[n], length)
        second = word(body, start[n] + _WORD, length - _WORD) if length > _WORD else np.uint64(0)
        slot = first_slot(first, second, size)
        while slots[base + slot, 2] != 0:
            slot = (slot + 1) & (size - 1)
        slot += base
        slots[slot, 0], slots[slot, 1], slots[slot, 2] = first, second, np.uint64(ids[n] + 1)


@native
def look_up(
    body: Array,
    start: Array,
    stop: Array,
    ends: Array,
    bases: Array,
    sizes: Array,
    slots: Array,
    words: Array,
    at: Array,
    out: Array,
) -> None:
    """The ids of texts int64 [N] of columns that end at `ends` int64 [C], NONE if there is none, into int32 [N].

    The slots of a column's field are `sizes` int64 [C] from `bases` int64 [C] on. `words` uint64 [AHEAD, 2] and `at`
    int64 [AHEAD] are for the texts whose slots are on their way from memory, as most are in no cache.
    """
    begin = 0
    for c in range(len(ends)):
        base, size = bases[c], sizes[c]
        while begin < ends[c]:
            end = min(begin + AHEAD, ends[c])
            for n in range(begin, end):
                length = stop[n] - start[n]
                first = word(body, start[n], length)
                second = word(body, start[n] + _WORD, length - _WORD) if length > _WORD else np.uint64(0)
                slot = first_slot(first, second, size)
                prefetch(slots, 3 * (base + slot))
                words[n - begin, 0], words[n - begin, 1], at[n - begin] = first, second, slot
            for n in range(begin, end):
                out[n] = NONE
                if stop[n] - start[n] > 2 * _WORD:
                    continue
                first, second, slot = words[n - begin, 0], words[n - begin, 1], at[n - begin]
                while slots[base + slot, 2] != 0:
                    if slots[base + slot, 0] == first and slots[base + slot, 1] == second:
                        out[n] = np.int64(slots[base + slot, 2]) - 1
                        break
                    slot = (slot + 1) & (size - 1)
            begin = end
