"""Tables of rows whose numbers take few bits: how they are trained, packed and read.

A number of `bits` <= 8 is a multiple of a step, `(code + low) * step`, with codes 0 .. 2^bits - 1. While a model is
trained, a table keeps float weights (`Rows`); it may round what it looks up and pass the gradient straight through
(LSQ, Esser et al., arXiv 1902.08153). A model that is stored or served keeps the codes (`PackedRows`). Both give the
same numbers for the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoembed.storage import PLANES, Step, first_order_bits, row_bytes

_RATIOS = [0.05 ** (n / 20) for n in range(21)]  # candidate ranges, as parts of the largest magnitude: 1 to .05
_CHUNK = 1 << 13  # rows whose numbers stay in a processor's cache
_LEAST = 1e-12


def lowest(bits: int) -> float:
    """The smallest level, in steps: levels are symmetric around 0, which is one of them unless there is but one bit."""
    return -0.5 if bits == 1 else -(2.0 ** (bits - 1) - 1)


def levels(scaled: Tensor, bits: int) -> Tensor:
    """The nearest level of numbers that were divided by their step."""
    low = lowest(bits)
    clipped = scaled.clamp(low, -low)
    return clipped.floor() + 0.5 if bits == 1 else clipped.round()


def fake_quantise(value: Tensor, step: Tensor, bits: int) -> Tensor:
    """Values rounded to levels, with LSQ's gradients: straight through within the range, and one for the step."""
    if bits == 1:  # a sign is never within its range
        return levels(value / step, bits).detach() * step + (value - value.detach())
    low, scaled = lowest(bits), value / step
    clipped = scaled.clamp(low, -low)
    return (clipped + (clipped.round() - clipped).detach()) * step


def best_step(value: Tensor, bits: int, *, per_column: bool) -> Tensor:
    """The step with the least squared error over the rows of values [N, W]: [1, W] with `per_column`, else [1, 1]."""
    dims = (0,) if per_column else (0, 1)
    value = value.detach()
    largest = value.abs().amax(dims, keepdim=True)
    sharing = value.numel() // max(largest.numel(), 1)
    return _least_error(_parts(value, largest), largest, bits, sharing, lambda errors: errors.sum(dims, keepdim=True))


def row_steps(value: Tensor, bits: int) -> Tensor:
    """The step with the least squared error of each row of values [N, W]: [N, 1]."""
    found, ones = [], value.new_ones(value.shape[1], 1)
    for part in torch.split(value.detach(), _CHUNK):
        largest = part.abs().amax(1, keepdim=True)
        # Sums of short rows are much faster as a product of matrices.
        found.append(_least_error(_parts(part, largest), largest, bits, len(ones), lambda errors: errors @ ones))
    return torch.cat(found)


def _ratios(bits: int, sharing: int) -> list[float]:
    """The candidate ranges that may have the least error for so many numbers that share a step.

    A range of r times the largest number misses that one by 1 - r of it. The whole range misses none by more than half
    a step, which is 1 / (2 levels) of it.
    """
    if bits == 1:
        return _RATIOS
    return [ratio for ratio in _RATIOS if ratio == 1 or (1 - ratio) ** 2 * 4 * lowest(bits) ** 2 < sharing]


def _parts(value: Tensor, largest: Tensor) -> Tensor:
    return value / largest.clamp_min(_LEAST)


def _least_error(parts: Tensor, largest: Tensor, bits: int, sharing: int, sums: Callable[[Tensor], Tensor]) -> Tensor:
    """The step with the least squared error of numbers that are `parts` of the largest magnitude of their group.

    Ranges are parts of that as well, so that a step is one number for all. At most `sharing` numbers have the same
    step, and `sums` adds their squared errors up, to the shape of `largest`.
    """
    low, found = lowest(bits), torch.empty_like(parts)
    best, least = torch.full_like(largest, _LEAST), torch.full_like(largest, float("inf"))
    for ratio in _ratios(bits, sharing):
        step = ratio / -low
        torch.mul(parts, 1 / step, out=found).clamp_(low, -low)
        found = found.floor_().add_(0.5) if bits == 1 else found.round_()
        error = sums(found.mul_(step).sub_(parts).square_())
        best = torch.where(error < least, (largest * step).clamp_min(_LEAST), best)
        least = torch.minimum(error, least)
    return best


def rounded(body: Tensor, first: Tensor, bits: int, step: Step) -> tuple[Tensor, Tensor]:
    """A block's numbers [N, W] and first-order weights [N, 0 or 1] as they are once packed."""
    if bits == 16:
        return body.half().to(body.dtype), first.half().to(first.dtype)
    steps = (
        row_steps(body, bits).bfloat16().float() if step == "row" else best_step(body, bits, per_column=step == "dim")
    )
    body = levels(body / steps, bits) * steps
    if first.shape[1]:
        own = best_step(first, first_order_bits(bits), per_column=True)
        first = levels(first / own, first_order_bits(bits)) * own
    return body, first


def rounded_blocks(table: Tensor, width: int, sizes: Sequence[int], bits: int, step: Step) -> Tensor:
    """A table [N, width (+ 1 first-order weight)] as it is once packed, its blocks of so many rows one after the other.

    Where each row has a step of its own, numbers that are 0 stay 0 and all blocks are rounded at once.
    """
    if bits in (1, 16) or step != "row":
        blocks = (rounded(part[:, :width], part[:, width:], bits, step) for part in torch.split(table, list(sizes)))
        return torch.cat([torch.cat(part, dim=1) for part in blocks])
    body, first = table[:, :width], table[:, width:]
    steps = row_steps(body, bits).bfloat16().float()
    body = levels(body / steps, bits) * steps
    if not first.shape[1]:
        return body
    rows = torch.as_tensor(list(sizes), device=table.device)
    block, fewer = torch.arange(len(sizes), device=table.device).repeat_interleave(rows), first_order_bits(bits)
    largest = first.new_zeros(len(sizes)).scatter_reduce(0, block, first[:, 0].abs(), "amax")
    parts = _parts(first[:, 0].detach(), largest[block])
    best = _least_error(
        parts, largest, fewer, max(sizes), lambda errors: torch.segment_reduce(errors, "sum", lengths=rows)
    )
    own = best[block, None]
    return torch.cat((body, levels(first / own, fewer) * own), dim=1)


class TableOptions(TypedDict):
    """What tables of either kind are made with, beside rows and width."""

    first_order: bool
    bits: int
    step: Step
    slots: int


class Rows(nn.Module):
    """A trained table: float weights [rows, width (+ 1 first-order weight)].

    Args:
        rows: number of rows.
        width: numbers of a row, the first-order weight left out.
        first_order: whether each row has a first-order weight, its last number.
        bits: bits of a number once it is packed.
        step: what shares a step.
        slots: number of blocks that the rows belong to.
        std: of the normal draw that weights start from.
    """

    log_step: nn.Parameter | None
    first_log_step: nn.Parameter | None

    def __init__(
        self,
        rows: int,
        width: int,
        *,
        first_order: bool = False,
        bits: int = 32,
        step: Step = "row",
        slots: int = 1,
        std: float = 0.01,
    ) -> None:
        super().__init__()
        self.width, self.first_order, self.bits, self.step, self.slots = width, first_order, bits, step, slots
        self.weight = nn.Parameter(torch.empty(rows, width + first_order).normal_(std=std))
        self.sparse = False
        self.register_parameter("log_step", None)
        self.register_parameter("first_log_step", None)

    @property
    def entries(self) -> int:
        return self.weight.numel()

    def forward(self, row: Tensor, slot: Tensor | None) -> Tensor:
        """Row numbers [...] and their slots [...] -> [..., width (+ 1)]."""
        value = functional.embedding(row, self.weight, sparse=self.sparse)
        if self.bits == 16:
            return value + (value.half().to(value.dtype) - value).detach()
        if self.log_step is None:
            return value
        assert slot is not None
        per_row = self.step == "row"
        step = functional.embedding(row if per_row else slot, self.log_step).exp()
        body = fake_quantise(value[..., : self.width], _rounded(step) if per_row else step, self.bits)
        if self.first_log_step is None:
            return body
        first = functional.embedding(slot, self.first_log_step).exp()
        last = fake_quantise(value[..., self.width :], first, first_order_bits(self.bits))
        return torch.cat([body, last], dim=-1)

    @torch.no_grad()
    def start_rounding(self, slot: Tensor) -> None:
        """From here on lookups are rounded to levels, by the steps with the least squared error.

        Args:
            slot: the slot of each row, int [rows]; slots are ranges of rows in order.
        """
        if self.bits > 8:
            return
        value = self.weight.detach()
        body = value[:, : self.width]
        parts = torch.split(value, torch.bincount(slot.long(), minlength=self.slots).tolist())
        if self.step == "row":
            steps = row_steps(body, self.bits)
        else:
            each = [best_step(part[:, : self.width], self.bits, per_column=self.step == "dim") for part in parts]
            steps = torch.cat(each)
        self.log_step = nn.Parameter(steps.log())
        if self.first_order:
            bits = first_order_bits(self.bits)
            first = [best_step(part[:, self.width :], bits, per_column=True) for part in parts]
            self.first_log_step = nn.Parameter(torch.cat(first).log())

    @torch.no_grad()
    def pack_into(self, packed: PackedRows, slot: Tensor) -> None:
        """Writes codes and steps into a packed table of the same shape; `slot` as in `start_rounding`."""
        if self.bits == 16:
            packed.halves.copy_(self.weight)
            return
        assert self.log_step is not None, "start_rounding sets the steps"
        step = self.log_step.exp()
        packed.step.copy_(step)
        step = packed.step.float()
        every = torch.arange(len(self.weight), device=slot.device)
        for at in torch.split(every, _CHUNK):
            own = step[at] if self.step == "row" else step[slot[at].long()]
            code = (levels(self.weight[at, : self.width] / own, self.bits) - lowest(self.bits)).to(torch.uint8)
            packed.codes[at] = pack(code, self.bits)
        if self.first_log_step is not None:
            bits = first_order_bits(self.bits)
            packed.first_step.copy_(self.first_log_step.exp())
            own = packed.first_step[slot.long()]
            code = (levels(self.weight[:, self.width :] / own, bits) - lowest(bits)).to(torch.uint8)
            packed.first_codes.copy_(pack(code.view(1, -1), bits)[0])


class PackedRows(nn.Module):
    """A served table: codes, steps and nothing else; shapes as in `Rows`. What training cannot move is no parameter."""

    halves: Tensor
    codes: Tensor
    step: Tensor
    first_codes: Tensor
    first_step: Tensor

    def __init__(
        self, rows: int, width: int, *, first_order: bool = False, bits: int, step: Step = "row", slots: int = 1
    ) -> None:
        super().__init__()
        self.rows, self.width, self.first_order, self.bits, self.per_row = rows, width, first_order, bits, step == "row"
        if bits == 16:
            self.register_buffer("halves", torch.zeros(rows, width + first_order, dtype=torch.float16))
            return
        self.register_buffer("codes", torch.zeros(rows, row_bytes(width, bits), dtype=torch.uint8))
        shape, kind = {
            "row": ((rows, 1), torch.bfloat16),
            "block": ((slots, 1), torch.float32),
            "dim": ((slots, width), torch.float32),
        }[step]
        self.register_buffer("step", torch.zeros(shape, dtype=kind))
        if first_order:
            size = row_bytes(rows, first_order_bits(bits))
            self.register_buffer("first_codes", torch.zeros(size, dtype=torch.uint8))
            self.register_buffer("first_step", torch.zeros(slots, 1))

    @property
    def entries(self) -> int:
        return self.rows * (self.width + self.first_order)

    def forward(self, row: Tensor, slot: Tensor | None) -> Tensor:
        """Row numbers [...] and their slots [...] -> float [..., width (+ 1)]."""
        if self.bits == 16:
            return take(self.halves, row).float()
        assert slot is not None
        level = unpack(take(self.codes, row), self.width, self.bits)
        # As floats first: torch multiplies numbers of two kinds several times as slowly.
        step = take(self.step, row if self.per_row else slot).float()
        if not self.first_order:
            return level.mul_(step)
        out = level.new_empty(*row.shape, self.width + 1)
        torch.mul(level, step, out=out[..., : self.width])
        bits = first_order_bits(self.bits)
        if bits == 8:
            first = self.first_codes.index_select(0, row.reshape(-1)).view(row.shape)
        else:
            byte = self.first_codes.index_select(0, (row >> 1).reshape(-1)).view(row.shape)
            first = (byte >> ((row & 1) << 2).to(torch.uint8)) & 15
        out[..., self.width] = (first + lowest(bits)) * take(self.first_step, slot)[..., 0]
        return out


_NUMBERS = {2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}  # by their bytes


def take(table: Tensor, row: Tensor) -> Tensor:
    """Rows [...] of a table [N, W] -> [..., W], each read as one number where there is one of as many bytes."""
    number = _NUMBERS.get(table.shape[1] * table.element_size())
    if number is None:
        return functional.embedding(row, table)
    found = table.view(number)[:, 0].index_select(0, row.reshape(-1))
    return found.view(table.dtype).view(*row.shape, table.shape[1])


def _rounded(step: Tensor) -> Tensor:
    """Steps as bfloat16 stores them, with the gradient of the step itself."""
    return step + (step.bfloat16().to(step.dtype) - step).detach()


def pack(code: Tensor, bits: int) -> Tensor:
    """Codes uint8 [N, W] of `bits` bits -> uint8 [N, row_bytes(W, bits)]: the first code in the lowest bits."""
    parts, done = [], 0
    for plane in PLANES[bits]:
        part, per_byte = (code >> done) & (2**plane - 1), 8 // plane
        part = functional.pad(part, (0, -part.shape[1] % per_byte)).view(len(part), -1, per_byte)
        byte = part[..., 0].clone()
        for place in range(1, per_byte):
            byte |= part[..., place] << (place * plane)
        parts.append(byte)
        done += plane
    return torch.cat(parts, dim=1)


def unpack(packed: Tensor, width: int, bits: int) -> Tensor:
    """The levels of what `pack` packed, uint8 [..., row_bytes(width, bits)], as float [..., width]."""
    if bits == 8:
        return packed.float().add_(lowest(bits))
    plane = PLANES[bits][0]
    index = _joined(packed, width) if bits == 3 else packed.int()
    level = _levels(bits, packed.device).index_select(0, index.reshape(-1)).view(torch.float32)
    return level.view(*packed.shape[:-1], row_bytes(width, plane) * 8 // plane)[..., :width]


def _joined(packed: Tensor, width: int) -> Tensor:
    """Rows of 3-bit codes in two planes -> four codes in one number, two bits of each below the third ones: int32.

    uint8 [..., bytes] -> int [..., width / 4, rounded up].
    """
    low = row_bytes(width, 2)
    high = packed[..., low:]
    third = torch.stack([high & 15, high >> 4], dim=-1).flatten(-2)[..., :low]
    return packed[..., :low].int().add_(third, alpha=256)


@cache
def _levels(bits: int, device: torch.device) -> Tensor:
    """The levels of the codes in each byte, or of four codes as `_joined` gives them: [256 or 4096], [256, 2] of 1 bit.

    Two or four numbers are read as one of 8 or 16 bytes, many times as fast as one by one.
    """
    plane = PLANES[bits][0]
    number = torch.arange(4096 if bits == 3 else 256, device=device).unsqueeze(1)
    code = (number >> torch.arange(0, 8, plane, device=device)) & (2**plane - 1)
    if bits == 3:
        code += ((number >> torch.arange(8, 12, device=device)) & 1) << 2
    level = code.float() + lowest(bits)
    wide: Tensor = level.view(torch.float64) if plane == 4 else level.view(torch.complex128)
    return wide if bits == 1 else wide[:, 0].contiguous()
