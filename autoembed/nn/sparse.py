"""Tables that keep single entries of their rows: a bit for each tells which, and the kept ones stand side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoembed.architecture import Architecture
from autoembed.nn.embedding import MixedEmbedding
from autoembed.nn.rows import PackedRows, Rows, levels, lowest, pack
from autoembed.storage import PLACE_EVERY, PLANES, first_order_bits, row_bytes


class SparseRows(Rows):
    """A trained table of which only the entries of `kept`, bool [rows, width], count; others are looked up as 0."""

    kept: Tensor

    def __init__(self, rows: int, width: int, entries: int, **options: Any) -> None:
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

    Where the others start is counted from the bits of the rows between, at most PLACE_EVERY - 1. Places follow from the
    bits: they are in memory, but not in files.
    """

    bitmap: Tensor
    values: Tensor
    first: Tensor
    place: Tensor

    def __init__(
        self, rows: int, width: int, kept: int, *, first_order: bool, bits: int, step: str, slots: int
    ) -> None:
        nn.Module.__init__(self)
        self.rows, self.width, self.first_order, self.bits, self.per_row = rows, width, first_order, bits, step == "row"
        self.most = kept
        self.register_buffer("bitmap", torch.zeros(rows, row_bytes(width, 1), dtype=torch.uint8))
        self.register_buffer("place", torch.zeros(-(-rows // PLACE_EVERY), dtype=torch.int32), persistent=False)
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
        """Finds where the entries of every PLACE_EVERY-th row start, from the bits."""
        each = _ones(self.bitmap)
        self.place.copy_((each.cumsum(0) - each)[::PLACE_EVERY])

    def start(self, row: Tensor) -> Tensor:
        """Where the entries of rows [...] start: int64 [...]."""
        first = row // PLACE_EVERY * PLACE_EVERY
        between = first.unsqueeze(-1) + torch.arange(PLACE_EVERY - 1, device=row.device)
        ones = _ones(self.bitmap[between.clamp(max=self.rows - 1)])
        return self.place[row // PLACE_EVERY] + (ones * (between < row.unsqueeze(-1))).sum(-1)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.index()

    def forward(self, row: Tensor, slot: Tensor | None) -> Tensor:
        """Row numbers [...] and their slots [...] -> float [..., width (+ 1)]."""
        kept = _bits(functional.embedding(row, self.bitmap), self.width)
        at = self.start(row.long()).unsqueeze(-1) + kept.cumsum(-1) - 1
        at = at.clamp(0, self.most - 1)
        if self.bits >= 16:
            value = self.values[at].float()
        else:
            assert slot is not None
            step = functional.embedding(row if self.per_row else slot, self.step)
            value = _level(self.codes, at, self.most, self.bits) * step
        value = torch.where(kept.bool(), value, 0.0)
        if not self.first_order:
            return value
        if self.bits >= 16:
            first = functional.embedding(row, self.first).float()
        else:
            assert slot is not None
            level = _level(self.first_codes, row.long().unsqueeze(-1), self.rows, first_order_bits(self.bits))
            first = level * functional.embedding(slot, self.first_step)
        return torch.cat([value, first], dim=-1)


class SparseEmbedding(MixedEmbedding):
    """Tables as of mixed storage, of whose entries some are kept."""

    def new_table(self, packed: bool, rows: int, width: int, kept: list[int], **options: Any) -> Rows | PackedRows:
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
    """The bits of uint8 [..., bytes], the lowest first: int [..., width]."""
    each = (packed.unsqueeze(-1) >> torch.arange(8, device=packed.device, dtype=torch.uint8)) & 1
    return each.flatten(-2)[..., :width].int()


def _ones(packed: Tensor) -> Tensor:
    """How many bits are set in uint8 [..., bytes]: int64 [...]."""
    counts = torch.tensor([byte.bit_count() for byte in range(256)], dtype=torch.uint8, device=packed.device)
    return counts[packed.int()].sum(-1)


def _level(codes: Tensor, at: Tensor, total: int, bits: int) -> Tensor:
    """The levels at places [...] of one row of `total` codes as `rows.pack` packs them: float [...]."""
    code, start, done = torch.zeros_like(at), 0, 0
    for plane in PLANES[bits]:
        byte = codes[start + (at * plane >> 3)].long()
        code = code + ((byte >> (at * plane & 7) & (2**plane - 1)) << done)
        start, done = start + row_bytes(total, plane), done + plane
    return code.float() + lowest(bits)
