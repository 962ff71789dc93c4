"""The full-width click model with gates that searches train, and how its weights pass to other models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoembed import errors
from autoembed.architecture import Architecture
from autoembed.budget import first_order
from autoembed.data.schema import FeatureSchema
from autoembed.methods.method import WidthConfig
from autoembed.nn.backbones.base import build
from autoembed.nn.embedding import BlockIndex, BlockRows, PairEmbedding, pair_columns, starts
from autoembed.nn.heads import heads_of
from autoembed.nn.model import ClickModel, inherit, joined
from autoembed.nn.pooling import pooling_of
from autoembed.nn.router import Router
from autoembed.nn.rows import Rows
from autoembed.types import Array

if TYPE_CHECKING:
    from autoembed.methods.tower import Prefixes

_WHOLE = {"field": 0.75, "block": 0.5}  # share of batches that see all dims of a nested basis


class GatedNet(ClickModel):
    """A full-width click model under a parent architecture, whose values' embeddings pass gates.

    Args:
        schema: the encoded table's schema.
        parent: what may be kept.
        config: the method's own options.
        counts: per field of the schema, train count per id, int [cardinality].
        seed: for methods that draw.

    Attributes:
        notes: what a user should know of how the search went, in whole sentences.
        router: what tells rows of one cluster from those of another, if a method finds clusters.
        progress: how far the search of the gates is, 0..1; None before it has begun.
        weight: float [N, D (+ 1 with first-order weights)], one row a value, fields of `parent` in order.
        mask: float [S, D (+ 1)], 0 where the parent has closed an entry.
        prefixes: what orders hidden units, if tower widths are searched.
        held: ids int [N, V] and labels float [N] of rows that no weight is trained on, to compare answers by.
        held_weights: how often each of them counts, float [N] with a mean of 1; None if all count once.
    """

    columns: Tensor
    offsets: Tensor
    mask: Tensor

    def __init__(
        self,
        schema: FeatureSchema,
        parent: Architecture,
        config: Any,  # the Config of the method's own file
        counts: Sequence[Array],
        seed: int,
    ) -> None:
        super().__init__()
        if parent.storage.kind == "shared":
            raise errors.SpaceError(f"{config.method} cannot narrow a shared table: make unified the last stage")
        if parent.storage.kind == "quotient_remainder":
            raise errors.SpaceError(
                f"{config.method} cannot narrow tables of remainders and quotients: make "
                "quotient_remainder the last stage"
            )
        if parent.storage.kind == "sparse":
            raise errors.SpaceError(f"{config.method} cannot narrow single entries: make granularity: entry the last")
        if parent.clusters:
            raise errors.SpaceError(f"{config.method} cannot narrow clusters: make the stage that finds them the last")
        if parent.ensemble:
            raise errors.SpaceError(f"{config.method} searches a single model, but got an ensemble as its parent")
        self.parent, self.config, self.seed = parent, config, seed
        self.progress: float | None = None
        self.router: Router | None = None
        self.notes: list[str] = []
        self.held: tuple[Tensor, Tensor] | None = None
        self.held_weights: Tensor | None = None
        self.prefixes: Prefixes | None = None
        self.nested = isinstance(config, WidthConfig) and config.basis == "nested"
        self.carried = False  # the weights are those of a stage before
        self._folded = False  # the table holds gates and mask already
        self.schema = schema
        self.sparse = False
        fields = [schema.index(name) for name in parent.names]
        self.block_counts = _block_counts(parent, [counts[column] for column in fields])
        self.field_of = torch.as_tensor(parent.field_of_block())
        self.first_order = first_order(parent)
        cardinality = np.array([field.cardinality for field in parent.fields])
        width = parent.dim + self.first_order
        self.weight = nn.Parameter(torch.empty(int(cardinality.sum()), width).normal_(std=0.01))
        self.block = BlockIndex(parent)
        self.pool = pooling_of(parent.fields, parent.dim)
        parts = self.pair_parts()
        self._pairs = nn.ModuleList(PairEmbedding(part, interpolated=schema.interpolated) for part in parts)
        self.inputs = parts[-1].built if parts else ()
        pair_inputs = parent.pair_inputs(len(self.inputs), parts[-1].pair_dim if parts else 0)
        active = np.concatenate([parent.active()[: len(parent.inputs)], pair_inputs])
        self.backbone = build(parent.backbone, active, pairs=len(self.inputs), outputs=parent.outputs)
        self.heads = heads_of(parent.backbone, active, parent.auxiliary_labels)
        own = [pair_columns(schema, part) for part in parts]
        self.sizes = [sum(parent.lengths), *(len(part) for part in own)]
        columns = schema.columns(parent.inputs) + [column for part in own for column in part]
        offsets = np.concatenate([[0], cardinality.cumsum()[:-1]]).repeat(parent.lengths)
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.int32), persistent=False)
        self.register_buffer("mask", torch.tensor(self._with_first_order(parent.mask())), persistent=False)

    def _with_first_order(self, mask: Array) -> Array:
        if self.first_order:
            mask = np.concatenate([mask, mask.any(axis=1, keepdims=True)], axis=1)
        return mask.astype(np.float32)

    def pair_parts(self) -> list[Architecture]:
        """The architectures whose built pairs the net has inputs for; the last one has all of them."""
        return [self.parent] if self.parent.built else []

    @property
    def pairs(self) -> list[PairEmbedding]:
        """The pairs' tables, for each of `pair_parts`."""
        return cast(list[PairEmbedding], list(self._pairs))

    def mix(self, parts: Sequence[Tensor]) -> Tensor:
        """The inputs of pairs [B, P, E] from those of each of `pair_parts`, [B, pairs built there, E]."""
        return parts[0]

    def gates(self) -> Tensor:
        """What the entries of each block are multiplied by: float [S, D (+ 1)]."""
        return self.mask

    def forward(self, ids_BV: Tensor) -> Tensor:
        """Ids int [B, V] in the schema's column order -> logits [B], or [B, C] of classes."""
        return self.logits(*self.embedded(ids_BV))

    def all_logits(self, ids_BV: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of the label [B] and those of auxiliary labels [B, L]."""
        assert self.heads is not None
        e_BFD, first = self.read(*self.embedded(ids_BV))
        return self.backbone(e_BFD, first), self.heads(e_BFD)

    def embedded(self, ids_BV: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The gated embeddings [B, F, D (+ 1)] of ids int [B, V], and the ids of pairs."""
        ids, *rest = self.split(ids_BV)
        e_BVC = functional.embedding(self.places_of(ids), self.weight, sparse=self.sparse)
        e_BFC = self.pooled(self.gate(e_BVC, ids), ids)
        return self.gate_rows(e_BFC), rest

    def split(self, ids_BV: Tensor) -> list[Tensor]:
        """The ids of the fields, int [B, V of the parent], and of each of the pairs' parts."""
        return list(torch.split(ids_BV.index_select(1, self.columns), self.sizes, dim=1))

    def places_of(self, ids_BV: Tensor) -> Tensor:
        """Where the values of ids that `split` gives stand in `weight`: int [B, V]."""
        return self.ids_of(ids_BV) + self.offsets

    def block_of(self, ids_BV: Tensor) -> Tensor:
        """The blocks of the values of ids that `split` gives: int [B, V]."""
        out: Tensor = self.block(self.ids_of(ids_BV))
        return out

    def ids_of(self, ids_BV: Tensor) -> Tensor:
        """The ids themselves, without shares of numbers between knots, and some id where there is no value."""
        return ids_BV if self.pool is None else self.pool.ids(ids_BV)

    def pooled(self, e_BVC: Tensor, ids_BV: Tensor) -> Tensor:
        """The embeddings of fields [B, F, C] from those of their values."""
        return e_BVC if self.pool is None else self.pool(e_BVC, ids_BV)

    def logits(self, e_BFC: Tensor, rest: Sequence[Tensor]) -> Tensor:
        """Logits [B], or [B, C] of classes, of embeddings [B, F, D (+ 1)] and the ids of pairs."""
        out: Tensor = self.backbone(*self.read(e_BFC, rest))
        return out

    def read(self, e_BFC: Tensor, rest: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """What the backbone reads of the same, as `joined` gives it."""
        parts = [part(columns) for part, columns in zip(self.pairs, rest, strict=True)]
        return joined(e_BFC, self.mix(parts) if parts else None, first_order=self.first_order)

    def gate_rows(self, e_BFC: Tensor) -> Tensor:
        """What gates of each row's own let through of embeddings [B, F, D (+ 1)]: all, if there are no such gates."""
        return e_BFC

    def gate(self, e_BVC: Tensor, ids_BV: Tensor) -> Tensor:
        """Embeddings [B, V, D (+ 1)] of ids that `split` gives, times what their blocks' gates let through."""
        if self._folded:
            return e_BVC
        gates = self.gates()
        if self.nested and self.training:
            gates = gates * self.draw_prefixes().to(gates.device)
        return e_BVC * functional.embedding(self.block_of(ids_BV), gates)

    def draw_prefixes(self) -> Tensor:
        """Which dims of each block a batch sees, 0 or 1: float [S, D (+ 1)].

        Some batches see all. In the others each field, or each block, draws its width evenly among 1, 2, 4, ... D:
        nested dropout (Rippel et al., ICML 2014), as in Matryoshka embeddings (arXiv 2409.16627).
        """
        dim, blocks = self.parent.dim, len(self.mask)
        widths = torch.tensor(sorted({2**power for power in range(dim.bit_length()) if 2**power < dim} | {dim}))
        if torch.rand(()) < _WHOLE[self.config.prefixes]:
            return torch.ones(blocks, dim + self.first_order)
        groups = blocks if self.config.prefixes == "block" else len(self.parent.fields)
        drawn = widths[torch.randint(len(widths), (groups, 1))]
        if self.config.prefixes == "field":
            drawn = drawn[self.field_of]
        seen = (torch.arange(dim) < drawn).float()
        return torch.cat([seen, seen.new_ones(blocks, 1)], dim=1) if self.first_order else seen

    def embedding_weights(self) -> list[nn.Parameter]:
        return [self.weight, *(cast(nn.Parameter, rows.weight) for part in self.pairs for rows in part.tables)]

    def sparse_gradients(self, sparse: bool) -> None:
        """Whether lookups give the tables sparse gradients."""
        self.sparse = sparse
        for part in self.pairs:
            for rows in part.tables:
                cast(Rows, rows).sparse = sparse

    def parts(self) -> list[BlockRows]:
        sizes, columns, dim = [field.cardinality for field in self.parent.fields], self.weight.shape[1], self.parent.dim
        return [
            BlockRows(
                table=self.weight,
                field=name,
                ids=slice(0, size),
                rows=slice(start, start + size),
                columns=list(range(columns)),
                dim=dim,
            )
            for name, size, start in zip(self.parent.names, sizes, starts(sizes), strict=True)
        ]

    def arch_parameters(self) -> list[nn.Parameter]:
        """The gates' parameters, disjoint from the weights'."""
        return []

    def weight_parameters(self) -> list[nn.Parameter]:
        arch = {id(parameter) for parameter in self.arch_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in arch]

    def mask_of(self, architecture: Architecture) -> Array:
        """Which of the parent's entries an architecture derived from it keeps: bool [S, D]."""
        mask, own = np.zeros_like(self.parent.mask()), architecture.mask()
        kept = np.isin(np.array(self.parent.names)[self.parent.field_of_block()], architecture.names)
        mask[kept, : own.shape[1]] = own
        return mask

    @torch.no_grad()
    def load_weights_from(self, source: GatedNet) -> None:
        """Takes over the weights of a net from whose answer the parent here was narrowed.

        Tables come with their gates folded in; the backbone comes if the source has all of its inputs.
        """
        if source.parent.dim != self.parent.dim or source.first_order != self.first_order:
            return
        tables = dict(zip(source.parent.names, source.folded(source.gates()), strict=True))
        self.weight.copy_(torch.cat([tables[name] for name in self.parent.names]))
        self.carried = True
        own = source.pair_tables()
        for pairs in self.pairs:
            pairs.load({name: own.get(name, part) for name, part in pairs.own().items()})
        inputs = [pair.name for pair in self.inputs]
        if set(inputs) <= {pair.name for pair in source.inputs}:
            places = source.places([*self.parent.inputs, *inputs])
            inherit(source.backbone, self.backbone, places)
            if source.heads is not None and self.heads is not None:
                inherit(source.heads, self.heads, places)

    def folded(self, gates: Tensor) -> tuple[Tensor, ...]:
        """The weights times `gates` float [S, D (+ 1)], per field of the parent float [cardinality, D (+ 1)]."""
        rows = torch.as_tensor(self.parent.block_rows(), device=self.weight.device)
        table = self.weight * gates.repeat_interleave(rows, dim=0)
        return torch.split(table, [field.cardinality for field in self.parent.fields])

    def places(self, names: Sequence[str]) -> list[int]:
        """Where inputs of fields and of pairs stand among those of the backbone here."""
        own = [*self.parent.inputs, *(pair.name for pair in self.inputs)]
        return [own.index(name) for name in names]

    def pair_tables(self) -> dict[tuple[str, str], Tensor]:
        """What every one of the pairs' modules holds, by kind and column."""
        return {name: part for pairs in self.pairs for name, part in pairs.own().items()}

    @torch.no_grad()
    def block_means(self, table: Tensor) -> Array:
        """Mean over each block's values of a table [N, C]: float [S, C]."""
        rows = torch.as_tensor(self.parent.block_rows(), device=table.device)
        block = torch.repeat_interleave(torch.arange(len(rows), device=table.device), rows)
        total = table.new_zeros(len(rows), table.shape[1]).index_add_(0, block, table)
        means: Array = (total / rows.unsqueeze(1)).cpu().numpy()
        return means


def _block_counts(architecture: Architecture, counts: Sequence[Array]) -> Array:
    """Train rows whose value lies in each block: int [S]."""
    per_block = [
        int(counts[field][start:stop].sum())
        for field, (start, stop) in zip(architecture.field_of_block(), architecture.block_ranges(), strict=True)
    ]
    return np.array(per_block)
