"""Embedding tables that are as small as the architecture says."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack, cast

import numpy as np
import torch
from torch import Tensor, nn

from autoembed.architecture import Architecture
from autoembed.data.knots import SPAN
from autoembed.data.schema import FeatureSchema
from autoembed.fast import compiles_lookups
from autoembed.nn.pooling import pooling_of
from autoembed.nn.rows import PackedRows, Rows, TableOptions
from autoembed.plans import TableInputs
from autoembed.storage import QuotientRemainderStorage, SharedStorage, Step
from autoembed.types import Array

FAST = compiles_lookups()


def _is_readable(rows: nn.Module) -> bool:
    if type(rows) is PackedRows:
        return True
    return type(rows) is Rows and rows.bits == 32 and rows.weight.dtype == torch.float32


def table(
    packed: bool,
    rows: int,
    width: int,
    *,
    first_order: bool = False,
    bits: int,
    step: Step,
    slots: int,
    std: float = 0.01,
) -> Rows | PackedRows:
    """A table to train, or one to serve: numbers of 32 bits are served as they are trained."""
    if packed and bits < 32:
        return PackedRows(rows, width, first_order=first_order, bits=bits, step=step, slots=slots)
    return Rows(rows, width, first_order=first_order, bits=bits, step=step, slots=slots, std=std)


def repeated(sizes: Sequence[int], device: torch.device) -> Tensor:
    """0, 1, 2, ... each as often as its size says: int [sum of sizes]."""
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(device)


@dataclass(frozen=True, kw_only=True)
class BlockRows:
    """Where a table has the rows of a block of a field.

    Attributes:
        table: the weights, float [rows, W].
        field: the field's name.
        ids: of the field, a range.
        rows: of the table, a range as long.
        columns: what of an embedding [D (+ 1)] the W numbers of a row are.
        dim: D, so that column D is a first-order weight.
        member: the cluster or member of an ensemble whose table it is.
    """

    table: nn.Parameter
    field: str
    ids: slice
    rows: slice
    columns: list[int]
    dim: int
    member: int = 0


class BlockIndex(nn.Module):
    """Finds the block of each id by the stops of its field's blocks."""

    stops: Tensor
    first: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        fields, lengths = architecture.fields, architecture.lengths
        depth = max(len(field.blocks) for field in fields)
        stops = np.full((len(fields), depth - 1), np.iinfo(np.int32).max, dtype=np.int32)
        for row, field in zip(stops, fields, strict=True):
            row[: len(field.blocks) - 1] = [block.stop for block in field.blocks[:-1]]
        first = np.concatenate([[0], np.cumsum([len(field.blocks) for field in fields])[:-1]])
        stops, first = stops.repeat(lengths, axis=0), first.repeat(lengths)
        self.register_buffer("stops", torch.tensor(stops), persistent=False)
        self.register_buffer("first", torch.tensor(first, dtype=torch.int32), persistent=False)

    def forward(self, ids_BV: Tensor) -> Tensor:
        """Ids int [B, V] -> block numbers int [B, V], counted over all fields."""
        block = self.first.expand_as(ids_BV)
        for stop_V in self.stops.unbind(1):
            block = block + (ids_BV >= stop_V)
        return block


class FieldEmbedding(nn.Module):
    """Base of what gives the fields' embeddings: looks up each value's, and pools those of multi-valued fields."""

    tables: nn.ModuleList

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.pool = pooling_of(architecture.fields, architecture.dim)

    def forward(self, ids_BV: Tensor) -> Tensor:
        """Ids int [B, V], PAD where a row has no value, codes of numbers between knots -> float [B, F, D (+ 1)]."""
        if self.pool is None:
            return self.lookup(ids_BV)
        out: Tensor = self.pool(self.lookup(self.pool.ids(ids_BV)), ids_BV)
        return out

    def lookup(self, ids_BV: Tensor) -> Tensor:
        """Ids int [B, V] -> what each value has, float [B, V, D (+ 1)]."""
        raise NotImplementedError


class MixedEmbedding(FieldEmbedding):
    """One table for each width and number of bits; a value's row holds its block's kept dims and nothing else.

    With `first_order`, rows of blocks that keep a dim hold one more number, the value's first-order weight. `packed`
    tables hold codes where they have fewer than 32 bits, and cannot be trained.
    """

    shift: Tensor
    group: Tensor
    place: Tensor
    slot: Tensor
    served = False  # whether it is of a model to serve (`folding`)

    def __init__(self, architecture: Architecture, *, first_order: bool, packed: bool = False) -> None:
        super().__init__(architecture)
        storage = architecture.storage
        assert not isinstance(storage, SharedStorage | QuotientRemainderStorage)
        entries = architecture.block_entries()
        mask = architecture.mask()
        self.columns = mask.shape[1] + first_order
        width, bits, ranges = mask.sum(axis=1), architecture.block_bits(), architecture.block_ranges()
        kinds = sorted({(-int(b), int(w)) for w, b in zip(width, bits, strict=True) if w > 0})
        group = np.full(len(width), -1, dtype=np.int16)
        shift, slot = np.zeros(len(width), dtype=np.int32), np.zeros(len(width), dtype=np.int32)
        place = np.zeros((len(width), max(w for _, w in kinds) + first_order), dtype=np.int16)
        self.tables, self.widths = nn.ModuleList(), [w + first_order for _, w in kinds]
        self.slots: list[list[int]] = []  # per table, rows of each of its blocks
        for number, (minus_bits, w) in enumerate(kinds):
            sizes: list[int] = []
            kept: list[int] = []
            for block in np.flatnonzero((width == w) & (bits == -minus_bits)):
                start, stop = ranges[block]
                group[block], shift[block], slot[block] = number, sum(sizes) - start, len(sizes)
                place[block, :w] = np.flatnonzero(mask[block])
                if first_order:
                    place[block, w] = mask.shape[1]
                sizes.append(int(stop - start))
                kept.append(int(entries[block]))
            self.slots.append(sizes)
            rows = self.new_table(
                packed,
                sum(sizes),
                w,
                kept,
                first_order=first_order,
                bits=-minus_bits,
                step=storage.step,
                slots=len(sizes),
            )
            self.tables.append(rows)
        self.whole = len(kinds) == 1 and self.widths == [self.columns] and bool((width > 0).all())
        cardinality = np.array([field.cardinality for field in architecture.fields])
        self.ids: Array = cardinality.repeat(architecture.lengths).astype(np.int32)  # how many each column has
        self.block = BlockIndex(architecture)
        self.register_buffer("group", torch.tensor(group), persistent=False)
        self.register_buffer("shift", torch.tensor(shift), persistent=False)
        self.register_buffer("place", torch.tensor(place), persistent=False)
        self.steps = bool((bits[width > 0] <= 8).any())
        if self.steps:
            self.register_buffer("slot", torch.tensor(slot), persistent=False)

    def new_table(
        self, packed: bool, rows: int, width: int, kept: list[int], **options: Unpack[TableOptions]
    ) -> Rows | PackedRows:
        """A table for blocks of one width and number of bits; `kept` are the single entries of each."""
        return table(packed, rows, width, **options)

    def lookup(self, ids_BV: Tensor) -> Tensor:
        """Ids int [B, V] -> kept entries at their positions, zeros elsewhere: float [B, V, D (+ 1)]."""
        if self.is_compiled(ids_BV):
            from autoembed.nn.lookup import reader_of  # a trial of one width needs no compiler

            return reader_of(self)(ids_BV)
        block_BV = self.block(ids_BV)
        row_BV = ids_BV + self.shift[block_BV]
        if self.whole:
            out: Tensor = self.tables[0](row_BV, self.slot[block_BV] if self.steps else None)
            return out
        block, row = block_BV.reshape(-1), row_BV.reshape(-1)
        group = self.group[block]
        places, values = [], []
        for number, (w, rows) in enumerate(zip(self.widths, self.tables, strict=True)):
            hit = torch.nonzero(group == number).squeeze(1)
            own = block[hit]
            places.append((hit.unsqueeze(1) * self.columns + self.place[own, :w]).reshape(-1))
            values.append(rows(row[hit], self.slot[own] if self.steps else None).reshape(-1))
        flat = values[0].new_zeros(ids_BV.numel() * self.columns)
        wide: Tensor = flat.scatter(0, torch.cat(places), torch.cat(values))
        return wide.reshape(*ids_BV.shape, self.columns)

    def is_compiled(self, ids: Tensor) -> bool:
        """Whether ids are looked up by compiled loops: not to learn, to export, or on CUDA, which torch must."""
        if not FAST or torch.is_grad_enabled() or ids.device.type != "cpu" or type(ids) is not Tensor:
            return False
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        if traced or not all(map(_is_readable, self.tables)):
            return False
        # One table of floats takes one operation of torch, and a trial no compiler. What is served finds rows in no
        # cache, which compiled loops fetch ahead.
        return self.served or not self.whole or cast(Rows | PackedRows, self.tables[0]).bits < 16

    def slot_of_row(self) -> list[Tensor]:
        """The slot of each row of each table, int [rows]."""
        return [repeated(sizes, self.shift.device) for sizes in self.slots]

    def parts(self, architecture: Architecture) -> Iterator[BlockRows]:
        """The blocks that keep a dim, of tables to train."""
        fields, ranges, mask = architecture.field_of_block(), architecture.block_ranges(), architecture.mask()
        for block, number in enumerate(self.group.tolist()):
            if number < 0:
                continue
            (start, stop), shift = ranges[block].tolist(), int(self.shift[block])
            kept = np.flatnonzero(mask[block]).tolist()
            if self.widths[number] > len(kept):
                kept.append(architecture.dim)  # the first-order weight is last
            yield BlockRows(
                table=cast(Rows, self.tables[number]).weight,
                field=architecture.names[fields[block]],
                ids=slice(start, stop),
                rows=slice(start + shift, stop + shift),
                columns=kept,
                dim=architecture.dim,
            )

    @torch.no_grad()
    def load_dense(self, dense: Mapping[int, Tensor], architecture: Architecture) -> None:
        """Copies kept entries out of full-width tables, per field float [cardinality, D (+ 1)], of any larger D."""
        for part in self.parts(architecture):
            table = dense[architecture.names.index(part.field)]
            columns = [-1 if column == architecture.dim else column for column in part.columns]
            part.table[part.rows] = table[part.ids, columns]


class PairEmbedding(nn.Module):
    """The inputs of built pairs (OptInter, arXiv 2108.01265, sec. 3.2): memorized from crossed ids, or as products.

    It reads crossed ids of memorized pairs, then ids of factorized columns, as `pair_columns` orders them. Tables of
    the two kinds stand apart: the embeddings of factorized columns are none of the fields'. In a product, a number of
    the fields `interpolated` is its bin, and several values are pooled.
    """

    crossed: Tensor
    factors: Tensor
    left: Tensor
    right: Tensor
    order: Tensor
    factor_slot: Tensor

    def __init__(
        self,
        architecture: Architecture,
        *,
        packed: bool = False,
        std: float = 0.01,
        interpolated: Collection[str] = (),
    ) -> None:
        super().__init__()
        built, factors = architecture.built, architecture.factors()
        memorized = [pair.crossed for pair in built if pair.choice == "memorize"]
        products = [pair for pair in built if pair.choice == "factorize"]
        place = list(factors)
        inputs = [TableInputs(name=name, pool=pool) for name, pool in architecture.factor_pools().items()]
        lengths = [one.length for one in inputs]
        self.memorized, self.pool = len(memorized), pooling_of(inputs, architecture.pair_dim)
        self.knots = [one.name in interpolated for one in inputs for _ in range(one.length)]
        # The root of std for factors: their products start at the scale of what is memorized.
        both = (memorized, std), (list(factors.values()), std**0.5)
        self.slots = [sizes for sizes, _ in both if sizes]
        step, bits, width = architecture.mixed().step, architecture.pair_bits, architecture.pair_dim
        self.tables = nn.ModuleList(
            table(packed, sum(sizes), width, bits=bits, step=step, slots=len(sizes), std=scale)
            for sizes, scale in both
            if sizes
        )
        self.names = [*(pair.name for pair in built if pair.choice == "memorize")], place
        self.sizes = memorized, list(factors.values())
        # Memorized pairs are looked up first, then products are made: `order` brings them back into the pairs' order.
        kinds = [pair.choice == "factorize" for pair in built]
        self._index("crossed", starts(memorized))
        self._index("factors", np.repeat(starts(list(factors.values())), lengths))
        if self.pool is not None:
            self._index("factor_slot", np.repeat(np.arange(len(factors)), lengths))
        self._index("left", [place.index(pair.a) for pair in products])
        self._index("right", [place.index(pair.b) for pair in products])
        self._index("order", np.argsort(np.argsort(kinds, kind="stable")))

    def _index(self, name: str, values: Sequence[int] | Array) -> None:
        self.register_buffer(name, torch.tensor(np.asarray(values, dtype=np.int32)), persistent=False)

    def forward(self, ids_BC: Tensor) -> Tensor:
        """Ids int [B, crossed and factorized columns], PAD for no value -> float [B, built pairs, pair_dim]."""
        parts = []
        if self.memorized:
            crossed = ids_BC[:, : self.memorized] + self.crossed
            parts.append(self.tables[0](crossed, self._columns(crossed)))
        if len(self.factors):
            ids = ids_BC[:, self.memorized :]
            if any(self.knots):
                columns = zip(ids.unbind(1), self.knots, strict=True)
                ids = torch.stack([column % SPAN if knots else column for column, knots in columns], dim=1)
            factor = (ids if self.pool is None else self.pool.ids(ids)) + self.factors
            if self.pool is None:
                e = self.tables[-1](factor, self._columns(factor))
            else:
                e = self.pool(self.tables[-1](factor, self.factor_slot.expand_as(factor)), ids)
            parts.append(e.index_select(1, self.left) * e.index_select(1, self.right))
        return torch.cat(parts, dim=1).index_select(1, self.order)

    @staticmethod
    def _columns(ids_BC: Tensor) -> Tensor:
        """The column of each id, which is the slot of its step where columns hold one value: int [B, C]."""
        return torch.arange(ids_BC.shape[1], device=ids_BC.device).expand_as(ids_BC)

    def slot_of_row(self) -> list[Tensor]:
        """The slot of each row of each table, int [rows]."""
        return [repeated(sizes, self.order.device) for sizes in self.slots]

    def own(self) -> dict[tuple[str, str], Tensor]:
        """The table of each crossed column ("memorize", name) and of each factorized one ("factorize", name)."""
        found: dict[tuple[str, str], Tensor] = {}
        tables = iter(self.tables)
        for choice, names, sizes in zip(("memorize", "factorize"), self.names, self.sizes, strict=True):
            if names:
                parts = torch.split(cast(Rows, next(tables)).weight, sizes)
                found |= {(choice, name): part for name, part in zip(names, parts, strict=True)}
        return found

    @torch.no_grad()
    def load(self, parts: Mapping[tuple[str, str], Tensor]) -> None:
        """Copies parts as `own` gives them, of this module's columns."""
        for key, part in self.own().items():
            part.copy_(parts[key])


def pair_columns(schema: FeatureSchema, architecture: Architecture) -> list[int]:
    """The columns of the encoded table that `PairEmbedding` reads: one for each crossed and factorized column.

    Of a factorized column that holds several values, it reads all of them.
    """
    found = schema.first_columns([pair.name for pair in architecture.built if pair.choice == "memorize"])
    for name, pool in architecture.factor_pools().items():
        found += schema.first_columns([name]) if pool is None else schema.columns([name])
    return found


def starts(sizes: Sequence[int]) -> list[int]:
    """The first row of each of several tables that stand in one."""
    return [sum(sizes[:place]) for place in range(len(sizes))]


PRIME = 2**31 - 1


class SharedEmbedding(FieldEmbedding):
    """One table for all fields, read by hashes of each field's own (arXiv 2305.12102, sec. 4).

    A row holds dim / lookups numbers, and one more with `first_order`; a value's first-order weight is the sum over its
    lookups. Collisions are part of the idea: the tower's weights of different fields tell them apart.
    """

    factor: Tensor
    addend: Tensor

    def __init__(self, architecture: Architecture, *, first_order: bool, packed: bool = False) -> None:
        super().__init__(architecture)
        shared = architecture.storage
        assert isinstance(shared, SharedStorage)
        self.rows, self.first_order = shared.rows, first_order
        width = architecture.dim // shared.lookups
        rows = table(packed, shared.rows, width, first_order=first_order, bits=shared.bits, step="row", slots=1)
        self.tables = nn.ModuleList([rows])
        rng = np.random.default_rng(shared.seed)
        shape, lengths = (len(architecture.fields), shared.lookups), architecture.lengths
        for name, low in (("factor", 1), ("addend", 0)):
            drawn = rng.integers(low, PRIME, shape).repeat(lengths, axis=0)
            self.register_buffer(name, torch.tensor(drawn), persistent=False)

    def hashes(self, ids_BV: Tensor) -> Tensor:
        """Ids int [B, V] -> rows int64 [B, V, lookups] (Carter and Wegman's universal hashing)."""
        return (ids_BV.long().unsqueeze(2) * self.factor + self.addend) % PRIME % self.rows

    def lookup(self, ids_BV: Tensor) -> Tensor:
        """Ids int [B, V] -> float [B, V, D (+ 1)]."""
        rows = self.hashes(ids_BV)
        parts: Tensor = self.tables[0](rows, torch.zeros_like(rows))
        if self.first_order:
            return torch.cat([parts[..., :-1].flatten(2), parts[..., -1:].sum(2)], dim=2)
        return parts.flatten(2)

    def slot_of_row(self) -> list[Tensor]:
        """All rows are of one slot: int [rows]."""
        return [torch.zeros(self.rows, dtype=torch.int64, device=self.factor.device)]
