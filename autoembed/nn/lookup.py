"""The compiled way to look rows up, for models that predict on a CPU: the same numbers as by torch's operations.

A batch of a compact model is of several tables, and torch takes some ten operations for each of them; a compiled loop
reads every value's row once (`lookup_kernels`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from autoembed.native import View
from autoembed.nn import lookup_kernels as kernels
from autoembed.nn.rows import PackedRows, Rows, lowest
from autoembed.storage import first_order_bits
from autoembed.types import Array

if TYPE_CHECKING:
    from autoembed.nn.embedding import MixedEmbedding

_NO_CODES, _NO_STEPS, _NO_SLOTS = np.zeros(0, np.uint8), np.zeros(0, np.uint16), np.zeros((1, 1), np.float32)
Read = Callable[[View, View, View], None]  # what writes numbers: of these rows, in these blocks, into these places
_readers: WeakKeyDictionary[nn.Module, Reader] = WeakKeyDictionary()


def reader_of(embedding: MixedEmbedding) -> Reader:
    """What reads the rows of a module, made again if its tables have moved."""
    known = _readers.get(embedding)
    if known is None or known.places != _places(embedding):
        known = _readers[embedding] = Reader(embedding)
    return known


class Reader:
    """The tables of a `MixedEmbedding` as compiled loops take them.

    Attributes:
        places: where the tables were in memory.
    """

    def __init__(self, embedding: MixedEmbedding) -> None:
        self.places = _places(embedding)
        self._width = len(embedding.ids)
        self._new = torch.empty if embedding.whole else torch.zeros  # whole rows fill all of it
        self._columns, index = embedding.columns, embedding.block
        parts = index.stops, index.first, embedding.shift, embedding.group, embedding.place
        stops, first, shift, group, place = (View(_array(part)) for part in parts)
        slot = View(_array(embedding.slot) if embedding.steps else np.zeros(len(embedding.shift), np.int32))
        self._index = View(embedding.ids), stops, first, shift
        self._reads = [_read(number, rows, group, place, slot) for number, rows in enumerate(_tables(embedding))]

    def __call__(self, ids_BV: Tensor) -> Tensor:
        """Ids int [B, V] -> float [B, V, C]; IndexError if there are other columns, or one does not have an id."""
        if ids_BV.dim() != 2 or ids_BV.shape[1] != self._width:
            raise IndexError(f"ids must have {self._width} columns, but have the shape {list(ids_BV.shape)}")
        ids = ids_BV.to(torch.int32).contiguous().numpy()
        row, block, bad = np.empty(ids.size, np.int32), np.empty(ids.size, np.int32), np.zeros(1, np.int64)
        row_view, block_view = View(row), View(block)
        kernels.find(View(ids), *self._index, row_view, block_view, bad)
        if bad[0]:
            at = int(bad[0]) - 1
            raise IndexError(f"column {at % ids.shape[1]} has no id {ids.reshape(-1)[at]}")
        out = self._new(ids.size, self._columns)
        view = View(out.numpy())
        for read in self._reads:
            read(row_view, block_view, view)
        return out.view(*ids_BV.shape, self._columns)


def _read(number: int, rows: Rows | PackedRows, group: View, place: View, slot: View) -> Read:
    """What writes a table's numbers, given the rows, the blocks and where to."""
    if isinstance(rows, Rows):
        table = View(_array(rows.weight))
        return lambda row, block, out: kernels.read_floats(number, rows.width, row, block, group, place, table, out)
    if rows.bits == 16:
        halves, values = View(_array(rows.halves)), View(_halves())
        return lambda row, block, out: kernels.read_halves(
            number, rows.width, row, block, group, place, halves, values, out
        )
    codes, values, low = View(_array(rows.codes)), View(_bfloats()), lowest(rows.bits)
    steps = View(_array(rows.step).reshape(-1) if rows.per_row else _NO_STEPS)
    slot_steps = View(_NO_SLOTS if rows.per_row else _array(rows.step))
    bits = first_order_bits(rows.bits) if rows.first_order else 0
    first = View(_array(rows.first_codes) if bits else _NO_CODES)
    first_steps = View(_array(rows.first_step) if bits else _NO_SLOTS)
    first_low = lowest(bits) if bits else 0.0
    return lambda row, block, out: kernels.read_codes(
        number, rows.bits, rows.width, low, row, block, group, place, slot, codes, steps, values, slot_steps, bits,
        first_low, first, first_steps, out,
    )  # fmt: skip


def _tables(embedding: MixedEmbedding) -> Sequence[Rows | PackedRows]:
    return cast(Sequence[Rows | PackedRows], list(embedding.tables))


def _places(embedding: MixedEmbedding) -> list[int]:
    """Where its tables are: elsewhere once the module was moved, or given other tensors."""
    return [_numbers(rows).data_ptr() for rows in _tables(embedding)]


def _numbers(rows: Rows | PackedRows) -> Tensor:
    if isinstance(rows, Rows):
        return rows.weight
    return rows.halves if rows.bits == 16 else rows.codes


def _array(tensor: Tensor) -> Array:
    """A tensor's memory; numbers of 16 bits that are no integers as their bits, uint16."""
    tensor = tensor.detach()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


@cache
def _halves() -> Array:
    """What each number of 16 bits is as a float: float32 [65536]."""
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)


@cache
def _bfloats() -> Array:
    """The same of bfloat16."""
    return (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
