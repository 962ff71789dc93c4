"""A model in a form that other runtimes can run: static shapes, plain operations, tables packed as they are.

The package's own lookup groups the values of a batch by the table that they are in, so the shapes inside depend on the
batch. Here every table is asked for the values of the fields that it serves, and the others count as zero. Numbers
and packed bytes are the same. B batch, F field, D dim.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from autoembed.architecture import Architecture
from autoembed.nn.embedding import FieldEmbedding, MixedEmbedding, PairEmbedding, SharedEmbedding
from autoembed.nn.model import Answers, CTRModel, Model, RoutedModel
from autoembed.nn.projected import ProjectedEmbedding
from autoembed.nn.quotient import QuotientRemainderEmbedding
from autoembed.nn.router import Router
from autoembed.nn.rows import PackedRows, Rows, lowest
from autoembed.nn.sparse import PackedSparseRows
from autoembed.storage import PLANES, first_order_bits, row_bytes
from autoembed.task import CLICKS, Task
from autoembed.types import Array


class ServingModel(nn.Module):
    """Ids int64 [B, F] in the schema's column order -> predictions float [B], such as click probabilities.

    Those of C classes are [B, C]. With `every` label it gives the chances of auxiliary ones as well, float [B, L].
    """

    def __init__(self, model: Model, task: Task = CLICKS, *, every: bool = False) -> None:
        super().__init__()
        self.link, self.every = task.link, every
        self.logits: nn.Module = _Routed(model) if isinstance(model, RoutedModel) else _One(model, every)
        self.eval().requires_grad_(False)

    def forward(self, ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if not self.every:
            return self.link(self.logits(ids))
        assert isinstance(self.logits, _One)
        logits, further = self.logits.all_logits(ids)
        return self.link(logits), further.sigmoid()


class _One(Answers, nn.Module):
    """A `CTRModel`: ids -> logits [B], or [B, C] of classes."""

    all = False

    def __init__(self, model: CTRModel, every: bool = False) -> None:
        super().__init__()
        self.values, self.first_order, self.several = model.values, model.first_order, model.several
        self.embedding = _embedding(model)
        self.pairs = None if model.pairs is None else _pairs(model.pairs)
        self.backbone, self.heads = model.backbone, model.heads if every else None
        self.register_buffer("columns", model.columns.long())


class _Routed(nn.Module):
    """A `RoutedModel`: every cluster's model scores every row, and the router's choice is taken."""

    def __init__(self, model: RoutedModel) -> None:
        super().__init__()
        self.models = nn.ModuleList(_One(one) for one in model.models)
        self.router: Router | None = model.router
        self.calibration = model.calibration

    def forward(self, ids_BV: Tensor) -> Tensor:
        logits = torch.stack([model(ids_BV) for model in self.models], dim=1)
        if self.router is None:
            return logits.mean(1)
        if self.calibration is not None:
            logits = logits * self.calibration[0] + self.calibration[1]
        return logits.gather(1, self.router(ids_BV).unsqueeze(1)).squeeze(1)


def _embedding(model: CTRModel) -> nn.Module:
    own = model.embedding
    if isinstance(own, SharedEmbedding | QuotientRemainderEmbedding):
        own.tables = nn.ModuleList([table_of(own.tables[0])])
        for name, index in list(own.named_buffers(recurse=False)):
            setattr(own, name, index.long())
        return own
    if isinstance(own, ProjectedEmbedding):
        return _Projected(own, model.architecture)
    return _Mixed(own, model.architecture)


def _pairs(pairs: PairEmbedding) -> nn.Module:
    pairs.tables = nn.ModuleList(table_of(rows) for rows in pairs.tables)
    return pairs


class _Mixed(FieldEmbedding):
    """`MixedEmbedding` with static shapes: ids int64 [B, V] -> float [B, F, columns]."""

    shift: Tensor
    group: Tensor
    slot: Tensor
    place: Tensor
    gather: Tensor

    def __init__(self, own: MixedEmbedding, architecture: Architecture) -> None:
        super().__init__(architecture)
        field, group = architecture.field_of_block(), own.group.numpy().astype(np.int64)
        field_of_column = np.repeat(np.arange(len(architecture.fields)), architecture.lengths)
        self.tables = nn.ModuleList(table_of(rows) for rows in own.tables)
        self.widths, self.columns = own.widths, own.columns
        served = [
            np.flatnonzero(np.isin(field_of_column, field[group == number])) for number in range(len(self.widths))
        ]
        self.served = [torch.from_numpy(columns_of_table) for columns_of_table in served]
        for number, index in enumerate(self.served):
            self.register_buffer(f"served_{number}", index)
        self.block = own.block
        for name in ("shift", "place"):
            self.register_buffer(name, getattr(own, name).long())
        self.register_buffer("group", torch.from_numpy(group))
        self.register_buffer("slot", own.slot.long() if own.steps else torch.zeros(len(group), dtype=torch.int64))
        self.register_buffer("gather", torch.from_numpy(_places(served, len(field_of_column))))

    def lookup(self, ids_BV: Tensor) -> Tensor:
        """Ids int64 [B, V] -> what each value has, float [B, V, columns]."""
        block_BV = self.block(ids_BV).long()
        parts = []
        for number, (rows, width) in enumerate(zip(self.tables, self.widths, strict=True)):
            served: Tensor = getattr(self, f"served_{number}")
            block = block_BV.index_select(1, served)
            hit = self.group[block] == number
            row = torch.where(hit, ids_BV.index_select(1, served) + self.shift[block], 0)
            values = rows(row, torch.where(hit, self.slot[block], 0)) * hit.unsqueeze(2)
            wide = values.new_zeros(*row.shape, self.columns)
            # A row that is of another table adds zeros at the places of its own block.
            parts.append(wide.scatter_add(2, self.place[block][..., :width], values))
        found = torch.cat([*parts, parts[0][:, :1] * 0], dim=1)
        each = found.index_select(1, self.gather.reshape(-1))
        return each.view(ids_BV.shape[0], *self.gather.shape, self.columns).sum(2)


def _places(served: list[Array], columns: int) -> Array:
    """For each column, where its values stand among those of all tables: int [V, tables of a column at most].

    What is left over points at the last place, which holds zeros.
    """
    order = np.concatenate(served)
    depth = int(np.bincount(order, minlength=columns).max())
    places = np.full((columns, depth), len(order), dtype=np.int64)
    for number in range(columns):
        own = np.flatnonzero(order == number)
        places[number, : len(own)] = own
    return places


class _Projected(_Mixed):
    """`ProjectedEmbedding` with static shapes."""

    matrices: Tensor

    def __init__(self, own: ProjectedEmbedding, architecture: Architecture) -> None:
        super().__init__(own, architecture)
        self.side, self.inputs, self.dim, self.first_order = own.side, own.inputs, own.dim, own.first_order
        flat = own.project.detach().new_zeros(own.fields * own.side, own.inputs)
        flat = flat.index_copy(0, own.rows, own.project.detach())
        matrices = flat.view(own.fields, own.side, own.inputs)
        self.register_buffer("matrices", matrices if own.pool is None else matrices[own.pool.field_of_column])

    def lookup(self, ids_BV: Tensor) -> Tensor:
        rows = super().lookup(ids_BV)
        narrow, wide = rows[..., : self.side], rows[..., self.side : self.side + self.inputs]
        body = torch.bmm(narrow.transpose(0, 1), self.matrices).transpose(0, 1) + wide
        parts = [body]
        if self.inputs < self.dim:
            parts.append(body[..., :1].expand(-1, -1, self.dim - self.inputs) * 0)
        if self.first_order:
            parts.append(rows[..., -1:])
        return torch.cat(parts, dim=2) if len(parts) > 1 else body


def table_of(rows: nn.Module) -> nn.Module:
    """A table that is read with plain operations: (row int64 [...], slot int64 [...]) -> float [..., width (+ 1)]."""
    if isinstance(rows, PackedSparseRows):
        return _SparseTable(rows)
    if isinstance(rows, PackedRows):
        return _Halves(rows) if rows.bits == 16 else _Codes(rows)
    return _Floats(cast(Rows, rows))


class _Floats(nn.Module):
    weight: Tensor

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.register_buffer("weight", rows.weight.detach())

    def forward(self, row: Tensor, slot: Tensor | None) -> Tensor:
        return self.weight[row]


class _Halves(nn.Module):
    halves: Tensor

    def __init__(self, rows: PackedRows) -> None:
        super().__init__()
        self.register_buffer("halves", rows.halves)

    def forward(self, row: Tensor, slot: Tensor | None) -> Tensor:
        return self.halves[row].float()


class _Codes(nn.Module):
    """Rows of packed codes; each byte is looked up in a table of the codes that it holds."""

    codes: Tensor
    step: Tensor
    first_codes: Tensor
    first_step: Tensor

    def __init__(self, rows: PackedRows) -> None:
        super().__init__()
        self.width, self.bits, self.per_row = rows.width, rows.bits, rows.per_row
        self.first = FlatCodes(rows.first_codes, rows.rows, first_order_bits(rows.bits)) if rows.first_order else None
        self.register_buffer("codes", rows.codes)
        self.register_buffer("step", rows.step)
        self.planes = PLANES[rows.bits]
        for plane in self.planes:
            self.register_buffer(f"byte_{plane}", codes_of_bytes(plane))
        if rows.first_order:
            self.register_buffer("first_step", rows.first_step)

    def forward(self, row: Tensor, slot: Tensor | None) -> Tensor:
        assert slot is not None
        packed, start, done, level = self.codes[row].long(), 0, 0, None
        for plane in self.planes:
            stop = start + row_bytes(self.width, plane)
            table: Tensor = getattr(self, f"byte_{plane}")
            part = table[packed[..., start:stop]].flatten(-2)[..., : self.width] * 2.0**done
            level = part if level is None else level + part
            start, done = stop, done + plane
        assert level is not None
        step = self.step[row if self.per_row else slot].float()
        body = (level + lowest(self.bits)) * step
        if self.first is None:
            return body
        first = self.first(row.unsqueeze(-1)) * self.first_step[slot]
        return torch.cat([body, first], dim=-1)


class FlatCodes(nn.Module):
    """The levels at places int64 [...] of one long row of packed codes: float [...]."""

    codes: Tensor

    def __init__(self, codes: Tensor, total: int, bits: int) -> None:
        super().__init__()
        self.total, self.bits, self.planes = total, bits, PLANES[bits]
        self.register_buffer("codes", codes)
        for plane in self.planes:
            self.register_buffer(f"byte_{plane}", codes_of_bytes(plane).reshape(-1))

    def forward(self, at: Tensor) -> Tensor:
        start, done, level = 0, 0, None
        for plane in self.planes:
            each = 8 // plane
            byte = self.codes[torch.div(at, each, rounding_mode="floor") + start].long()
            table: Tensor = getattr(self, f"byte_{plane}")
            part = table[byte * each + at % each] * 2.0**done
            level = part if level is None else level + part
            start, done = start + row_bytes(self.total, plane), done + plane
        assert level is not None
        return level + lowest(self.bits)


class _SparseTable(nn.Module):
    """Rows that keep single entries; where a row starts is stored in 4 bytes for each row."""

    bitmap: Tensor
    start: Tensor
    bits_of_byte: Tensor
    values: Tensor
    step: Tensor
    first: Tensor
    first_step: Tensor

    def __init__(self, rows: PackedSparseRows) -> None:
        super().__init__()
        self.width, self.bits, self.per_row, self.most = rows.width, rows.bits, rows.per_row, rows.most
        self.first_order = rows.first_order
        self.register_buffer("bitmap", rows.bitmap)
        self.register_buffer("bits_of_byte", codes_of_bytes(1))
        kept = codes_of_bytes(1)[rows.bitmap.long()].flatten(1)[:, : rows.width].sum(1).long()
        self.register_buffer("start", (kept.cumsum(0) - kept).int())
        if rows.bits >= 16:
            self.register_buffer("values", rows.values)
            self.register_buffer("first", rows.first)
            return
        self.entries = FlatCodes(rows.codes, rows.most, rows.bits)
        self.register_buffer("step", rows.step)
        if rows.first_order:
            self.firsts = FlatCodes(rows.first_codes, rows.rows, first_order_bits(rows.bits))
            self.register_buffer("first_step", rows.first_step)

    def forward(self, row: Tensor, slot: Tensor | None) -> Tensor:
        kept = self.bits_of_byte[self.bitmap[row].long()].flatten(-2)[..., : self.width]
        at = kept.long().cumsum(-1) + self.start[row].long().unsqueeze(-1) - 1
        at = at.clamp(0, self.most - 1)
        if self.bits >= 16:
            whole = self.values[at].float() * kept
            return torch.cat([whole, self.first[row].float()], dim=-1) if self.first_order else whole
        assert slot is not None
        value: Tensor = self.entries(at) * self.step[row if self.per_row else slot].float() * kept
        if not self.first_order:
            return value
        first: Tensor = self.firsts(row.unsqueeze(-1)) * self.first_step[slot]
        return torch.cat([value, first], dim=-1)


def codes_of_bytes(plane: int) -> Tensor:
    """The codes of `plane` bits in each byte, the lowest first: float [256, 8 / plane]."""
    byte = torch.arange(256).unsqueeze(1)
    codes: Tensor = (byte >> torch.arange(0, 8, plane)) & (2**plane - 1)
    return codes.float()
