"""Tables that keep single entries of their rows: a bit for each tells which, and the kept ones stand side by side."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoembed.architecture import Architecture
from autoembed.nn.embedding import MixedEmbedding
from autoembed.nn.rows import PackedRows, Rows, TableOptions, levels, lowest, pack, take
from autoembed.storage import PLACE_EVERY, PLANES, first_order_bits, row_bytes, shift_bytes


class SparseRows(Rows):
    """A trained table of which only the entries of `kept`, bool [rows, width], count; others are looked up as 0."""

    kept: Tensor

    def __init__(self, rows: int, width: int, entries: int, **options: Unpack[TableOptions]) -> None:
        super().__init__(rows, width, **options)
        self.most = entries
        self.register_buffer("kept", torch.ones(rows, width, dtype=torch.bool))

    @property
    def entries(self) -> int:
        return self.most + len(self.weight) * self.first_order

    @torch.no_grad()
    def keep(self, kept: Tensor) -> None:
        """Keeps these entries, bool [rows, width], and sets the others to 0."""
        self.kept.copy_(kept)
        self.weight[:, : self.width] *= self.kept

    def forward(self, row: Tensor, slot: Tensor | None) -> Tensor:
        """Row numbers [...] and their slots [...] -> [..., width (+ 1)]."""
        value = super().forward(row, slot)
        kept = self.kept[row.long()]
        if self.first_order:
            kept = functional.pad(kept, (0, 1), value=True)
        return value * kept

    @torch.no_grad()
    def start_rounding(self, slot: Tensor) -> None:
        # Optimisers leave what has no gradient alone, but steps must not see it.
        self.keep(self.kept)
        super().start_rounding(slot)

    @torch.no_grad()
    def pack_into(self, packed: PackedRows, slot: Tensor) -> None:
        """Writes bits, codes and steps into a packed table of the same shape; `slot` as in `start_rounding`."""
        assert isinstance(packed, PackedSparseRows)
        assert int(self.kept.sum()) == self.most, "a fresh sparse table has no entries chosen yet"
        packed.bitmap.copy_(pack(self.kept.to(torch.uint8), 1))
        body, first = self.weight[:, : self.width], self.weight[:, self.width :]
        if self.bits >= 16:
            packed.values.copy_(body[self.kept])
            packed.first.copy_(first)
        else:
            assert self.log_step is not None, "start_rounding sets the steps"
            packed.step.copy_(self.log_step.exp())
            step = packed.step.float() if self.step == "row" else packed.step[slot.long()]
            own = step.expand_as(body)[self.kept]
            code = (levels(body[self.kept] / own, self.bits) - lowest(self.bits)).to(torch.uint8)
            packed.codes.copy_(pack(code.view(1, -1), self.bits)[0])
            if self.first_log_step is not None:
                bits = first_order_bits(self.bits)
                packed.first_step.copy_(self.first_log_step.exp())
                code = (levels(first / packed.first_step[slot.long()], bits) - lowest(bits)).to(torch.uint8)
                packed.first_codes.copy_(pack(code.view(1, -1), bits)[0])
        packed.index()


class PackedSparseRows(PackedRows):
    """A served table: a bit for each entry, the kept ones one after the other, steps, and where some rows start.

    Of the others it tells how far from there. Both follow from the bits: they are in memory, but not in files.
    """

    bitmap: Tensor
    values: Tensor
    first: Tensor
    place: Tensor
    shift: Tensor

    def __init__(
        self, rows: int, width: int, kept: int, *, first_order: bool, bits: int, step: str, slots: int
    ) -> None:
        nn.Module.__init__(self)
        self.rows, self.width, self.first_order, self.bits, self.per_row = rows, width, first_order, bits, step == "row"
        self.most = kept
        self.register_buffer("bitmap", torch.zeros(rows, row_bytes(width, 1), dtype=torch.uint8))
        self.register_buffer("place", torch.zeros(-(-rows // PLACE_EVERY), dtype=torch.int32), persistent=False)
        small = torch.uint8 if shift_bytes(width) == 1 else torch.int16
        self.register_buffer("shift", torch.zeros(rows, dtype=small), persistent=False)
        if bits >= 16:
            kind = torch.float32 if bits == 32 else torch.float16
            self.register_buffer("values", torch.zeros(kept, dtype=kind))
            self.register_buffer("first", torch.zeros(rows, int(first_order), dtype=kind))
            return
        self.register_buffer("codes", torch.zeros(row_bytes(kept, bits), dtype=torch.uint8))
        shape = {"row": (rows, 1), "block": (slots, 1), "dim": (slots, width)}[step]
        self.register_buffer("step", torch.zeros(shape, dtype=torch.bfloat16 if self.per_row else torch.float32))
        if first_order:
            self.register_buffer("first_codes", torch.zeros(row_bytes(rows, first_order_bits(bits)), dtype=torch.uint8))
            self.register_buffer("first_step", torch.zeros(slots, 1))

    @property
    def entries(self) -> int:
        return self.most + self.rows * self.first_order

    @torch.no_grad()
    def index(self) -> None:
        """Finds where rows start, from the bits."""
        each = _bits(self.bitmap, self.width).sum(dim=1, dtype=torch.int64)
        start = each.cumsum(0) - each
        self.place.copy_(start[::PLACE_EVERY])
        self.shift.copy_(start - start[::PLACE_EVERY].repeat_interleave(PLACE_EVERY)[: len(start)])

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.index()

    def forward(self, row: Tensor, slot: Tensor | None) -> Tensor:
        """Row numbers [...] and their slots [...] -> float [..., width (+ 1)]."""
        flat = row.reshape(-1)
        kept = _bits(self.bitmap.index_select(0, flat), self.width)
        at = kept.cumsum(-1, dtype=torch.int32)
        start = self.place.index_select(0, flat // PLACE_EVERY) + self.shift.index_select(0, flat)
        at = (at + (start - 1).unsqueeze(-1)).clamp_(0, self.most - 1)
        if self.bits >= 16:
            value = self.values.index_select(0, at.reshape(-1)).float().view(at.shape)
        else:
            assert slot is not None
            step = take(self.step, flat if self.per_row else slot.reshape(-1)).float()
            value = _level(self.codes, at, self.most, self.bits) * step
        value = (value * kept).view(*row.shape, self.width)
        if not self.first_order:
            return value
        if self.bits >= 16:
            first = take(self.first, row).float()
        else:
            assert slot is not None
            level = _level(self.first_codes, row.unsqueeze(-1), self.rows, first_order_bits(self.bits))
            first = level * take(self.first_step, slot)
        return torch.cat([value, first], dim=-1)


class SparseEmbedding(MixedEmbedding):
    """Tables as of mixed storage, of whose entries some are kept."""

    def new_table(
        self, packed: bool, rows: int, width: int, kept: list[int], **options: Unpack[TableOptions]
    ) -> Rows | PackedRows:
        self.kept: list[list[int]] = [*getattr(self, "kept", []), kept]
        return (PackedSparseRows if packed else SparseRows)(rows, width, sum(kept), **options)

    @torch.no_grad()
    def load_dense(self, dense: Mapping[int, Tensor], architecture: Architecture) -> None:
        """As of mixed storage; each block keeps as many entries as the architecture says, the largest."""
        super().load_dense(dense, architecture)
        for rows, sizes, counts in zip(self.tables, self.slots, self.kept, strict=True):
            assert isinstance(rows, SparseRows)
            parts = torch.split(rows.weight[:, : rows.width], sizes)
            rows.keep(torch.cat([largest(part.abs(), count) for part, count in zip(parts, counts, strict=True)]))

    @torch.no_grad()
    def keep_as(self, other: SparseEmbedding) -> None:
        """Keeps the entries that another embedding of the same architecture keeps, a trained or a packed one."""
        for rows, theirs in zip(self.tables, other.tables, strict=True):
            assert isinstance(rows, SparseRows)
            if isinstance(theirs, PackedSparseRows):
                rows.keep(_bits(theirs.bitmap, rows.width).bool())
            else:
                assert isinstance(theirs, SparseRows)
                rows.keep(theirs.kept)


def largest(scores: Tensor, count: int) -> Tensor:
    """Where the `count` largest of scores [N, W] stand: bool [N, W]."""
    kept = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    kept[torch.topk(scores.flatten(), count).indices] = True
    return kept.view(scores.shape)


def _bits(packed: Tensor, width: int) -> Tensor:
    """The bits of uint8 [..., bytes], the lowest first: uint8 [..., width]."""
    each = _bits_of_byte(packed.device).index_select(0, packed.reshape(-1).int()).view(torch.uint8)
    return each.view(*packed.shape[:-1], packed.shape[-1] * 8)[..., :width]


@cache
def _bits_of_byte(device: torch.device) -> Tensor:
    """The bits of each byte, eight of one byte each read as one number: int64 [256]."""
    byte = torch.arange(256, device=device).unsqueeze(1)
    bits = (byte >> torch.arange(8, device=device)) & 1
    return bits.to(torch.uint8).view(torch.int64)[:, 0].contiguous()


def _level(codes: Tensor, at: Tensor, total: int, bits: int) -> Tensor:
    """The levels at places int [...] of one row of `total` codes as `rows.pack` packs them: float [...]."""
    code, start, done = None, 0, 0
    for plane in PLANES[bits]:
        per_byte = 8 // plane
        byte = codes.index_select(0, ((at >> per_byte.bit_length() - 1) + start).reshape(-1)).view(at.shape)
        part = byte if per_byte == 1 else byte >> ((at & per_byte - 1) * plane).to(torch.uint8) & (2**plane - 1)
        code = part if code is None else code + (part << done)
        start, done = start + row_bytes(total, plane), done + plane
    assert code is not None
    return code.float() + lowest(bits)
