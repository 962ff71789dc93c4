"""The texts of a request's columns, in JSON or Arrow, to ids, a whole column at a time.

Python takes some 300 ns for each value of a request of columns: an object, its hash, and a dictionary's entry and key
that no cache holds. Here texts stay where they are in the body, and compiled loops find and look them up
(`text_kernels`). What is not plain, such as a text with an escape, is left to `json` and to the dictionaries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from json import JSONDecoder

import numpy as np
import pyarrow as pa

from autoembed.fast import compiles_lookups
from autoembed.types import Array

FAST = compiles_lookups()
if FAST:
    from autoembed.native import View
    from autoembed.serving import text_kernels as kernels

    _KINDS = {
        pa.string_view(): kernels.VIEWS,
        pa.string(): kernels.OFFSETS,
        pa.large_string(): kernels.LONG_OFFSETS,
    }

UNSEEN = np.iinfo(np.int32).min  # a text that the table does not have
_LONGEST = 16  # bytes of a text in the table
_BLANK = rb"[ \t\n\r]*"
_COLUMNS = re.compile(rb'%b\{%b"columns"%b:%b\{' % ((_BLANK,) * 4))
_ROWS = re.compile(rb'%b\{%b"rows"%b:%b\[%b' % ((_BLANK,) * 5))
_NAME = re.compile(rb'%b"([^"\\\x00-\x1f]*)"%b:%b\[' % ((_BLANK,) * 3))
_NEXT = re.compile(rb"%b([,}])" % _BLANK)
_TAIL = re.compile(rb"%b\}%b\Z" % ((_BLANK,) * 2))
_QUOTE = b'"'
_FOUR = 4  # bytes of a word of a body
Columns = dict[str, "Texts | list[object]"]


class Body:
    """Bytes as compiled loops take them: with 16 NULs behind them."""

    def __init__(self, content: bytes) -> None:
        self.content = content + bytes(_LONGEST)
        self.signs = np.frombuffer(self.content, np.uint8)
        self.view = View(self.signs)


class Texts:
    """Texts without escapes, as UTF-8 in a body; none ends with a NUL.

    Args:
        body: where they are.
        start: where each text begins, int64 [N].
        stop: where it ends.
    """

    def __init__(self, body: Body, start: Array, stop: Array) -> None:
        self.body, self.start, self.stop = body, start, stop

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, place: int) -> str:
        return self.body.content[self.start[place] : self.stop[place]].decode()

    def tolist(self) -> list[str]:
        """The texts."""
        return [self[place] for place in range(len(self))]


class TextTable:
    """The ids of known texts, of those that have at most 16 bytes: for each field a hash table with open addressing.

    Args:
        fields: for each field, the id of each of its texts.
    """

    def __init__(self, fields: Sequence[Mapping[str, int]]) -> None:
        # Of what cannot be printed, a NUL would be the same as the end here, and half a character has no bytes.
        own = [{text.encode(): at for text, at in field.items() if text.isprintable()} for field in fields]
        short = [{text: at for text, at in field.items() if len(text) <= _LONGEST} for field in own]
        # At least one slot in two is free, so that few of them are looked at.
        self.sizes = np.array([1 << (2 * len(field)).bit_length() for field in short], np.int64)
        self.bases = np.cumsum(self.sizes) - self.sizes
        self.slots = View(np.zeros((int(self.sizes.sum()), 3), np.uint64))
        for field, base, size in zip(short, self.bases.tolist(), self.sizes.tolist(), strict=True):
            stop = np.cumsum(np.array([len(text) for text in field], np.int64))
            start = np.concatenate([np.zeros(1, np.int64), stop])[: len(stop)]
            ids = np.array(list(field.values()), np.int32)
            kernels.place(Body(b"".join(field)).view, start, stop, ids, base, size, self.slots)

    def ids(self, columns: Mapping[int, Texts]) -> Array:
        """The ids of columns of one body, all of the same length, by the numbers of their fields: int32 [C, N].

        UNSEEN is a text that a field does not have.
        """
        fields, texts = list(columns), list(columns.values())
        start, stop = (np.concatenate([getattr(one, name) for one in texts]) for name in ("start", "stop"))
        ends, out = np.cumsum(list(map(len, texts))), np.empty(len(start), np.int32)
        bases, sizes = self.bases[fields], self.sizes[fields]
        words, at = np.empty((kernels.AHEAD, 2), np.uint64), np.empty(kernels.AHEAD, np.int64)
        kernels.look_up(texts[0].body.view, start, stop, ends, bases, sizes, self.slots, words, at, out)
        return out.reshape(len(fields), -1)


def columns_of(content: bytes, decoder: JSONDecoder) -> Columns | None:
    """The columns of {"columns": {"name": []}}, those of plain texts as Texts; None if the body is not as simple.

    ValueError or RecursionError if a part of it is no JSON.
    """
    head = _COLUMNS.match(content)
    if head is None:
        return None
    room, most = len(content) // 6, len(content) // 3  # a column is at least "":[], and a text "",
    names, ends = np.empty((room, 2), np.int64), np.empty(room, np.int64)
    start, stop, found = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(3, np.int64)
    body, at, columns = Body(content), head.end(), Columns()
    while True:
        kernels.read_columns(body.view, at, names, ends, start, stop, found)
        number, at, done = found.tolist()
        places = [0, *ends[:number].tolist()]
        for (begin, end), first, last in zip(names[:number].tolist(), places, places[1:], strict=False):
            key = content[begin:end].decode()
            if key in columns:
                return None
            columns[key] = Texts(body, start[first:last], stop[first:last])
        if done:
            return columns if _TAIL.match(content, at) else None
        name = _NAME.match(content, at)
        if name is None or (key := name[1].decode()) in columns:
            return None
        # What ends within a text, at its bracket, is no JSON.
        end = content.find(b"]", name.end()) + 1
        columns[key] = decoder.decode(content[name.end() - 1 : end].decode()) if end else []
        after = _NEXT.match(content, end)
        if after is None or not end:
            return None
        if after[1] == b"}":
            return columns if _TAIL.match(content, after.end()) else None
        start, stop, at = start[places[-1] :], stop[places[-1] :], after.end()


def rows_of(content: bytes, decoder: JSONDecoder, most: int) -> Columns | None:
    """The columns of {"rows": [{}]}, those of plain texts as Texts; None if the body is not as simple.

    Simple are at most `most` rows with the same names in the same order, without lists. ValueError or RecursionError if
    a part is no JSON.
    """
    head = _ROWS.match(content)
    if head is None:
        return None
    first, _ = decoder.raw_decode(content.decode(), head.end())
    if not isinstance(first, dict) or not first:
        return None
    names = [name.encode() for name in first]
    room = min(most, len(content) // (sum(map(len, names)) + 5 * len(names)))  # a value has a sign, and four around it
    body, ends = Body(content), np.cumsum(np.array(list(map(len, names)), np.int64))
    start, stop = np.empty((2, len(names), room), np.int64)
    texts, found = np.empty(len(names), np.int64), np.empty(2, np.int64)
    kernels.read_rows(body.view, head.end(), np.frombuffer(b"".join(names), np.uint8), ends, start, stop, texts, found)
    number, behind = found.tolist()
    if number < 0 or not _TAIL.match(content, behind):
        return None
    columns = Columns()
    for name, begin, end, of_texts in zip(first, start[:, :number], stop[:, :number], texts.tolist(), strict=True):
        columns[name] = Texts(body, begin, end) if of_texts == number else _values(body, begin, end, decoder)
    return columns


def _values(body: Body, start: Array, stop: Array, decoder: JSONDecoder) -> list[object]:
    """Values that are not all texts: as a list of JSON."""
    quoted = (body.signs[start - 1] == ord(_QUOTE)).astype(np.int64)
    places = zip((start - quoted).tolist(), (stop + quoted).tolist(), strict=True)
    values: list[object] = decoder.decode(f"[{b','.join(body.content[a:b] for a, b in places).decode()}]")
    return values


class ArrowBody:
    """A body in Arrow's IPC format, in which the texts of columns may be found.

    Args:
        body: bytes, which what reads the columns holds by `handle`, without a copy of its own.
    """

    def __init__(self, body: bytes) -> None:
        self.size, self.content, self.handle = len(body), body, pa.py_buffer(body)

    def texts(self, columns: Mapping[str, pa.ChunkedArray]) -> dict[str, Texts]:
        """The texts of columns, all of the same length, as they are in the body.

        Left out is a column with missing values, of another type, in several chunks, or compressed.
        """
        places = {name: at for name, column in columns.items() if (at := self._places(column)) is not None}
        if not places:
            return {}
        rows, body = len(columns[next(iter(places))]), Body(self.content)
        data = [len(found) for _, _, found in places.values()]
        start, stop = np.empty((2, len(places), rows), np.int64)
        good = np.empty(len(places), np.int64)
        kernels.locate(
            body.view,
            np.frombuffer(body.content, "<i4", len(body.content) // _FOUR),
            self.size,
            np.array([kind for kind, _, _ in places.values()], np.int64),
            np.array([first for _, first, _ in places.values()], np.int64),
            np.array([at for _, _, found in places.values() for at in found], np.int64),
            np.cumsum([0, *data]).astype(np.int64),
            start,
            stop,
            good,
        )
        found = zip(places, start, stop, good.tolist(), strict=True)
        return {name: Texts(body, begin, end) for name, begin, end, fine in found if fine}

    def _places(self, column: pa.ChunkedArray) -> tuple[int, int, list[int]] | None:
        """What `kernels.locate` takes: how a column says where its texts are, which word of the body begins that, and
        where the texts begin that it speaks of."""
        if column.num_chunks != 1 or column.null_count or not len(column):
            return None
        chunk, kind = column.chunk(0), _KINDS.get(column.type)
        if kind is None:
            return None
        _, said, *data = chunk.buffers()
        size = kernels.WORDS[kind] * _FOUR
        first = said.address - self.handle.address + chunk.offset * size
        if first % _FOUR or first < 0 or first + len(chunk) * size > self.size:  # it was compressed
            return None
        return kind, first // _FOUR, [0 if one is None else one.address - self.handle.address for one in data]
