"""The texts of a request's columns, in JSON or Arrow, to ids, a whole column at a time.

Python takes some 300 ns for each value of a request of columns: an object, its hash, and a dictionary's entry and key
that no cache holds. Here texts stay where they are in the body, and numpy compares them as words of 8 bytes. What is
not plain, such as a text with an escape, is left to `json` and to the dictionaries.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa

from autoembed.types import Array

UNSEEN = np.iinfo(np.int32).min  # a text that the table does not have
_WORD = 8
_LONGEST = 2 * _WORD  # bytes of a text in the table
_QUOTE, _COMMA, _SPACE = b'", '
_BLANK = rb"[ \t\n\r]*"
_HEAD = re.compile(rb'%b\{%b"columns"%b:%b\{' % ((_BLANK,) * 4))
_NAME = re.compile(rb'%b"([^"\\\x00-\x1f]*)"%b:%b\[' % ((_BLANK,) * 3))
_NEXT = re.compile(rb"%b([,}])" % _BLANK)
_TAIL = re.compile(rb"%b\}%b\Z" % ((_BLANK,) * 2))
_MASKS = np.array([(1 << (8 * length)) - 1 for length in range(_WORD + 1)], dtype=np.uint64)
_LONG = np.uint64(2**64 - 1)  # no text of UTF-8 begins so
_LOOKS = 8  # slots in which a text is looked for
_MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F)
_VIEW = np.dtype([("length", "<i4"), ("prefix", "<i4"), ("buffer", "<i4"), ("offset", "<i4")])
_INLINE = 12  # bytes of a text that its view holds
Columns = dict[str, "Texts | list[object]"]


class Texts:
    """Texts without escapes, as UTF-8 in a buffer that goes on for 16 bytes behind them; none ends with a NUL.

    Args:
        buffer: bytes.
        start: where each text begins, int [N].
        stop: where it ends.
    """

    def __init__(self, buffer: bytes, start: Array, stop: Array) -> None:
        self.buffer, self.start, self.stop = buffer, start, stop

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, place: int) -> str:
        return self.buffer[self.start[place] : self.stop[place]].decode()

    @staticmethod
    def joined(columns: Sequence[Texts]) -> Texts:
        """The texts of columns of one body, one column behind the other."""
        start, stop = (np.concatenate([getattr(one, name) for one in columns]) for name in ("start", "stop"))
        return Texts(columns[0].buffer, start, stop)

    def tolist(self) -> list[str]:
        """The texts."""
        return [self[place] for place in range(len(self))]

    def words(self) -> tuple[Array, Array]:
        """The first and second 8 bytes of each text, uint64 [N], zeros behind its end; a longer text has LONG first."""
        words: Array = np.ndarray((len(self.buffer) - _WORD + 1,), "<u8", self.buffer, strides=(1,))
        length = self.stop - self.start
        first = words[self.start] & _MASKS[np.minimum(length, _WORD)]
        if not len(length) or length.max() <= _WORD:
            return first, np.zeros_like(first)
        second = words[self.start + _WORD] & _MASKS[np.clip(length - _WORD, 0, _WORD)]
        first[length > _LONGEST] = _LONG
        return first, second


class TextTable:
    """The ids of known texts: a hash table with open addressing, of those that have at most 16 bytes.

    Args:
        fields: for each field, the id of each of its texts.
    """

    def __init__(self, fields: Sequence[Mapping[str, int]]) -> None:
        # Of what cannot be printed, a NUL would be the same as the end here, and half a character has no bytes.
        texts = [[text.encode() for text in own if text.isprintable()] for own in fields]
        length = np.array([len(text) for own in texts for text in own], dtype=np.int64)
        stop = np.cumsum(length)
        known = Texts(b"".join(map(b"".join, texts)) + bytes(_LONGEST), stop - length, stop)
        field = np.repeat(np.arange(len(fields), dtype=np.int32), list(map(len, texts)))
        of = np.array([at for own in fields for text, at in own.items() if text.isprintable()], dtype=np.int32)
        short = length <= _LONGEST
        parts = [*known.words(), field, of]
        # What each row has: two words and a field; then an id. The last row is of no field, and free slots have it.
        *self.rows, self.of = (
            np.concatenate([part[short], np.array([end], dtype=part.dtype)])
            for part, end in zip(parts, (0, 0, -1, UNSEEN), strict=True)
        )
        free = len(self.of) - 1
        bits = max(2 * free, 2).bit_length()
        self.last, self.shift = (1 << bits) - 1, np.uint64(64 - bits)
        # A slot has a row, and its hash, which most others differ in.
        self.slots, self.hashes = np.full(1 << bits, free, dtype=np.int32), np.zeros(1 << bits, dtype=np.uint64)
        mixed = _hash(*(part[:-1] for part in self.rows))
        left, at = np.arange(free, dtype=np.int32), self._first(mixed)
        while len(left):
            empty = self.slots[at] == free
            self.slots[at[empty]] = left[empty]
            on = self.slots[at] != left
            self.hashes[at[~on]] = mixed[left[~on]]
            left, at = left[on], (at[on] + 1) & self.last

    def ids(self, texts: Texts, field: Array) -> Array:
        """The id of each text of a field int32 [N], UNSEEN where a few slots do not have it: int32 [N]."""
        wanted = (*texts.words(), field)
        mixed = _hash(*wanted)
        at = self._first(mixed)
        left = np.flatnonzero(self.hashes[at] != mixed)
        for _ in range(_LOOKS - 1):
            at[left] = (at[left] + 1) & self.last
            left = left[self.hashes[at[left]] != mixed[left]]
        row = self.slots[at]
        same = np.logical_and.reduce([own[row] == one for own, one in zip(self.rows, wanted, strict=True)])
        found: Array = np.where(same, self.of[row], np.int32(UNSEEN))
        return found

    def _first(self, mixed: Array) -> Array:
        """The slot where a text with a hash is looked for first."""
        return (mixed >> self.shift).astype(np.int64)


def _hash(first: Array, second: Array, field: Array) -> Array:
    mixed = (first ^ (second * _MIX[1]) ^ (field.astype(np.uint64) << np.uint64(40))) * _MIX[0]
    out: Array = (mixed ^ (mixed >> np.uint64(29))) * _MIX[1]
    return out


def columns_of(body: bytes, decode: Callable[[str], object]) -> Columns | None:
    """The columns of {"columns": {"name": []}}, those of plain texts as Texts; None if the body is not as simple.

    ValueError or RecursionError if a part of it is no JSON for `decode`.
    """
    head = _HEAD.match(body)
    if head is None:
        return None
    buffer = body + bytes(_LONGEST)
    signs, at, found = np.frombuffer(buffer, np.uint8), head.end(), Columns()
    while True:
        name = _NAME.match(body, at)
        if name is None:
            return None
        key, start, stop = name[1].decode(), name.end(), body.find(b"]", name.end())
        if stop < 0 or key in found:
            return None
        texts = _texts(buffer, signs, start, stop)
        # What ends within a text, at its bracket, is no JSON.
        found[key] = decode(f"[{body[start:stop].decode()}]") if texts is None else texts  # type: ignore[assignment]
        after = _NEXT.match(body, stop + 1)
        if after is None:
            return None
        at = after.end()
        if after[1] == b"}":
            return found if _TAIL.match(body, at) else None


def _texts(buffer: bytes, signs: Array, start: int, stop: int) -> Texts | None:
    """The texts between brackets, if there is nothing else, with `,` or `, ` between them."""
    part = signs[start:stop]
    quotes = np.flatnonzero(part == _QUOTE)
    if len(quotes) < 2 or len(quotes) % 2 or quotes[0] != 0 or quotes[-1] != len(part) - 1:
        return None
    if part.min() < _SPACE or buffer.find(b"\\", start, stop) >= 0:
        return None
    opened, closed = quotes[::2], quotes[1::2]
    before = closed[:-1]
    gap = opened[1:] - before
    if not ((part[before + 1] == _COMMA) & ((gap == 2) | ((gap == 3) & (part[before + 2] == _SPACE)))).all():
        return None
    return Texts(buffer, opened + (start + 1), closed + start)


class ArrowBody:
    """A body in Arrow's IPC format, in which the texts of a column may be found.

    Args:
        body: bytes, which what reads the columns holds by `handle`, without a copy of its own.
    """

    def __init__(self, body: bytes) -> None:
        self.body, self.handle = body, pa.py_buffer(body)

    @cached_property
    def buffer(self) -> bytes:
        """The body for `Texts`: a copy, which small bodies do not need."""
        return self.body + bytes(_LONGEST)

    def texts(self, column: pa.ChunkedArray) -> Texts | None:
        """The texts of a column; None if it has missing values or another type, or is not in the body as it is."""
        if column.num_chunks != 1 or column.null_count:
            return None
        chunk, kind = column.chunk(0), column.type
        found: tuple[Array, Array] | None
        if pa.types.is_string_view(kind):
            found = self._of_views(chunk)
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            found = self._of_offsets(chunk, "<i4" if pa.types.is_string(kind) else "<i8")
        else:
            return None
        if found is None or not len(found[0]):
            return None
        start, stop = found
        if start.min() < 0 or stop.max() > len(self.buffer) - _LONGEST:  # it was compressed
            return None
        # Words end with zeros, so a NUL at the end of a text could not be told from the end.
        last = np.frombuffer(self.buffer, np.uint8)[np.maximum(stop - 1, 0)]
        return Texts(self.buffer, start, stop) if (last[stop > start] != 0).all() else None

    def _of_offsets(self, chunk: pa.Array, kind: str) -> tuple[Array, Array] | None:
        _, offsets, data = chunk.buffers()
        if data is None:
            return None
        at = np.frombuffer(offsets, kind)[chunk.offset : chunk.offset + len(chunk) + 1].astype(np.int64)
        at += data.address - self.handle.address
        return at[:-1], at[1:]

    def _of_views(self, chunk: pa.Array) -> tuple[Array, Array]:
        _, views, *data = chunk.buffers()
        held = np.frombuffer(views, _VIEW)[chunk.offset : chunk.offset + len(chunk)]
        length = held["length"].astype(np.int64)
        start = views.address + _VIEW.itemsize * (chunk.offset + np.arange(len(held))) + held["length"].itemsize
        far = np.flatnonzero(length > _INLINE)
        if len(far):
            start[far] = np.array([one.address for one in data])[held["buffer"][far]] + held["offset"][far]
        start -= self.handle.address
        return start, start + length
