"""Embedding tables that are as small as the architecture says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoembed.architecture import Architecture, SharedTable


class BlockIndex(nn.Module):
    """Finds the block of each id by the stops of its field's blocks."""

    stops: Tensor
    first: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        fields = architecture.fields
        depth = max(len(field.blocks) for field in fields)
        stops = np.full((len(fields), depth - 1), np.iinfo(np.int32).max, dtype=np.int32)
        for row, field in zip(stops, fields, strict=True):
            row[: len(field.blocks) - 1] = [block.stop for block in field.blocks[:-1]]
        first = np.concatenate([[0], np.cumsum([len(field.blocks) for field in fields])[:-1]])
        self.register_buffer("stops", torch.tensor(stops), persistent=False)
        self.register_buffer("first", torch.tensor(first, dtype=torch.int32), persistent=False)

    def forward(self, ids_BF: Tensor) -> Tensor:
        """Ids int [B, F] -> block numbers int [B, F], counted over all fields."""
        block = self.first.expand_as(ids_BF)
        for stop_F in self.stops.unbind(1):
            block = block + (ids_BF >= stop_F)
        return block


class MixedEmbedding(nn.Module):
    """One table for each distinct width; a value's row holds its block's kept dims and nothing else.

    With `first_order`, rows of blocks that keep a dim hold one more number, the value's first-order weight.
    """

    shift: Tensor
    group: Tensor
    place: Tensor

    def __init__(self, architecture: Architecture, *, first_order: bool, std: float = 0.01) -> None:
        super().__init__()
        mask = architecture.mask()
        if first_order:
            mask = np.concatenate([mask, mask.any(axis=1, keepdims=True)], axis=1)
        self.columns = mask.shape[1]
        self.sparse = False
        width, ranges = mask.sum(axis=1), architecture.block_ranges()
        self.widths = [int(w) for w in np.unique(width) if w > 0]
        group = np.full(len(width), -1, dtype=np.int16)
        shift = np.zeros(len(width), dtype=np.int32)
        place = np.zeros((len(width), max(self.widths)), dtype=np.int16)
        self.tables = nn.ParameterList()
        for number, w in enumerate(self.widths):
            rows = 0
            for block in np.flatnonzero(width == w):
                start, stop = ranges[block]
                group[block], shift[block] = number, rows - start
                place[block, :w] = np.flatnonzero(mask[block])
                rows += stop - start
            self.tables.append(nn.Parameter(torch.empty(int(rows), w).normal_(std=std)))
        self.whole = self.widths == [self.columns] and bool((width > 0).all())
        self.block = BlockIndex(architecture)
        self.register_buffer("group", torch.tensor(group), persistent=False)
        self.register_buffer("shift", torch.tensor(shift), persistent=False)
        self.register_buffer("place", torch.tensor(place), persistent=False)

    def forward(self, ids_BF: Tensor) -> Tensor:
        """Ids int [B, F] -> kept entries at their positions, zeros elsewhere: float [B, F, D (+ 1)]."""
        block_BF = self.block(ids_BF)
        row_BF = ids_BF + self.shift[block_BF]
        if self.whole:
            return functional.embedding(row_BF, self.tables[0], sparse=self.sparse)
        block, row = block_BF.reshape(-1), row_BF.reshape(-1)
        group = self.group[block]
        places, values = [], []
        for number, (w, table) in enumerate(zip(self.widths, self.tables, strict=True)):
            hit = torch.nonzero(group == number).squeeze(1)
            places.append((hit.unsqueeze(1) * self.columns + self.place[block[hit], :w]).reshape(-1))
            values.append(functional.embedding(row[hit], table, sparse=self.sparse).reshape(-1))
        flat = values[0].new_zeros(ids_BF.numel() * self.columns)
        out = flat.scatter(0, torch.cat(places), torch.cat(values))
        return out.reshape(*ids_BF.shape, self.columns)

    @torch.no_grad()
    def load_dense(self, dense: Mapping[int, Tensor], architecture: Architecture) -> None:
        """Copies kept entries out of full-width tables, per field float [cardinality, D (+ 1)]."""
        fields, ranges = architecture.field_of_block(), architecture.block_ranges()
        for block, number in enumerate(self.group.tolist()):
            if number < 0:
                continue
            (start, stop), shift, w = ranges[block].tolist(), int(self.shift[block]), self.widths[number]
            kept = self.place[block, :w].long()
            self.tables[number][start + shift : stop + shift] = dense[int(fields[block])][start:stop, kept]


class PairEmbedding(nn.Module):
    """The inputs of built pairs (OptInter, arXiv 2108.01265, sec. 3.2): memorized from crossed ids, or as products.

    It reads crossed ids of memorized pairs, then ids of factorized columns, as `Architecture.columns` orders them.
    Tables of the two kinds stand apart: the embeddings of factorized columns are none of the fields'.
    """

    crossed: Tensor
    factors: Tensor
    left: Tensor
    right: Tensor
    order: Tensor

    def __init__(self, architecture: Architecture, *, std: float = 0.01) -> None:
        super().__init__()
        built, factors = architecture.built, architecture.factors()
        memorized = [pair.crossed for pair in built if pair.choice == "memorize"]
        products = [pair for pair in built if pair.choice == "factorize"]
        place = list(factors)
        self.memorized, self.sparse = len(memorized), False
        # The root of std for factors: their products start at the scale of what is memorized.
        self.tables = nn.ParameterList(
            nn.Parameter(torch.empty(sum(sizes), architecture.pair_dim).normal_(std=scale))
            for sizes, scale in ((memorized, std), (list(factors.values()), std**0.5))
            if sizes
        )
        self.names = [*(pair.name for pair in built if pair.choice == "memorize")], place
        self.sizes = memorized, list(factors.values())
        # Memorized pairs are looked up first, then products are made: `order` brings them back into the pairs' order.
        kinds = [pair.choice == "factorize" for pair in built]
        self._index("crossed", starts(memorized))
        self._index("factors", starts(list(factors.values())))
        self._index("left", [place.index(pair.a) for pair in products])
        self._index("right", [place.index(pair.b) for pair in products])
        self._index("order", np.argsort(np.argsort(kinds, kind="stable")))

    def _index(self, name: str, values: Sequence[int] | np.ndarray[Any, Any]) -> None:
        self.register_buffer(name, torch.tensor(np.asarray(values, dtype=np.int32)), persistent=False)

    def forward(self, ids_BC: Tensor) -> Tensor:
        """Ids int [B, crossed and factorized columns] -> float [B, built pairs, pair_dim]."""
        parts = []
        if self.memorized:
            crossed = ids_BC[:, : self.memorized] + self.crossed
            parts.append(functional.embedding(crossed, self.tables[0], sparse=self.sparse))
        if len(self.factors):
            factor = ids_BC[:, self.memorized :] + self.factors
            e = functional.embedding(factor, self.tables[-1], sparse=self.sparse)
            parts.append(e.index_select(1, self.left) * e.index_select(1, self.right))
        return torch.cat(parts, dim=1).index_select(1, self.order)

    def own(self) -> dict[tuple[str, str], Tensor]:
        """The table of each crossed column ("memorize", name) and of each factorized one ("factorize", name)."""
        found: dict[tuple[str, str], Tensor] = {}
        tables = iter(self.tables)
        for choice, names, sizes in zip(("memorize", "factorize"), self.names, self.sizes, strict=True):
            if names:
                parts = torch.split(next(tables), sizes)
                found |= {(choice, name): part for name, part in zip(names, parts, strict=True)}
        return found

    @torch.no_grad()
    def load(self, parts: Mapping[tuple[str, str], Tensor]) -> None:
        """Copies parts as `own` gives them, of this module's columns."""
        for key, part in self.own().items():
            part.copy_(parts[key])


def starts(sizes: Sequence[int]) -> list[int]:
    """The first row of each of several tables that stand in one."""
    return [sum(sizes[:place]) for place in range(len(sizes))]


PRIME = 2**31 - 1


class SharedEmbedding(nn.Module):
    """One table for all fields, read by hashes of each field's own (arXiv 2305.12102, sec. 4).

    A row holds dim / lookups numbers, and one more with `first_order`; a value's first-order weight is the sum over its
    lookups. Collisions are part of the idea: the tower's weights of different fields tell them apart.
    """

    factor: Tensor
    addend: Tensor

    def __init__(self, architecture: Architecture, *, first_order: bool, std: float = 0.01) -> None:
        super().__init__()
        shared = architecture.shared
        assert isinstance(shared, SharedTable)
        self.rows, self.first_order, self.sparse = shared.rows, first_order, False
        width = architecture.dim // shared.lookups + first_order
        self.tables = nn.ParameterList([nn.Parameter(torch.empty(shared.rows, width).normal_(std=std))])
        rng = np.random.default_rng(shared.seed)
        shape = (len(architecture.fields), shared.lookups)
        self.register_buffer("factor", torch.tensor(rng.integers(1, PRIME, shape)), persistent=False)
        self.register_buffer("addend", torch.tensor(rng.integers(0, PRIME, shape)), persistent=False)

    def hashes(self, ids_BF: Tensor) -> Tensor:
        """Ids int [B, F] -> rows int64 [B, F, lookups] (Carter and Wegman's universal hashing)."""
        return (ids_BF.long().unsqueeze(2) * self.factor + self.addend) % PRIME % self.rows

    def forward(self, ids_BF: Tensor) -> Tensor:
        """Ids int [B, F] -> float [B, F, D (+ 1)]."""
        parts = functional.embedding(self.hashes(ids_BF), self.tables[0], sparse=self.sparse)
        if self.first_order:
            return torch.cat([parts[..., :-1].flatten(2), parts[..., -1:].sum(2)], dim=2)
        return parts.flatten(2)
