"""The base of every search method: a full-width model with gates, from which a narrower architecture is derived.

Methods subclass it, each in a file of its own (`autoembed.methods.method`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoembed import errors
from autoembed.architecture import Architecture
from autoembed.budget import by_frequency, first_order, select, take_in_order
from autoembed.data.dataset import Dataset
from autoembed.data.schema import FeatureSchema
from autoembed.methods import entries
from autoembed.methods.method import WidthConfig
from autoembed.nn.backbones.base import build
from autoembed.nn.embedding import BlockIndex, MixedEmbedding, PairEmbedding
from autoembed.nn.model import ClickModel, CTRModel, Model, apply, inherit
from autoembed.nn.pooling import pooling_of
from autoembed.nn.router import Router
from autoembed.nn.rows import Rows, rounded, rounded_blocks
from autoembed.types import Array

if TYPE_CHECKING:
    from autoembed.methods.tower import Prefixes

_CHUNK = 4096
_WHOLE = {"field": 0.75, "block": 0.5}  # share of batches that see all dims of a nested basis


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An architecture, and what a user should know of how it was chosen, in whole sentences."""

    architecture: Architecture
    notes: tuple[str, ...] = ()


class Supernet(ClickModel):
    """A full-width click model under a parent architecture.

    Args:
        schema: the encoded table's schema.
        parent: what may be kept; `derive` only narrows it.
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
        held: ids int [N, F] and labels float [N] of rows that no weight is trained on, to compare answers by.

    A method that `chooses_pairs` closes the open pairs of its parent; other methods ignore open pairs. One with a
    `plain_warm_start` changes nothing here until its gates move, so that methods can share one.
    """

    chooses_pairs: ClassVar[bool] = False
    plain_warm_start: ClassVar[bool] = False
    makes_clusters: ClassVar[bool] = False

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
        self.prefixes: Prefixes | None = None
        self.nested = isinstance(config, WidthConfig) and config.basis == "nested"
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
        self.pool = pooling_of(parent.fields)
        parts = self.pair_parts()
        self._pairs = nn.ModuleList(PairEmbedding(part) for part in parts)
        self.inputs = parts[0].built if parts else ()
        pair_inputs = parent.pair_inputs(len(self.inputs), parts[0].pair_dim if parts else 0)
        active = np.concatenate([parent.active()[: len(parent.fields)], pair_inputs])
        self.backbone = build(parent.backbone, active, pairs=len(self.inputs))
        own = [schema.columns(part.columns[len(part.fields) :]) for part in parts]
        self.sizes = [sum(parent.lengths), *(len(part) for part in own)]
        columns = schema.columns(parent.names) + [column for part in own for column in part]
        offsets = np.concatenate([[0], cardinality.cumsum()[:-1]]).repeat(parent.lengths)
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.int32), persistent=False)
        self.register_buffer("mask", torch.tensor(self._with_first_order(parent.mask())), persistent=False)

    def _with_first_order(self, mask: Array) -> Array:
        if self.first_order:
            mask = np.concatenate([mask, mask.any(axis=1, keepdims=True)], axis=1)
        return mask.astype(np.float32)

    def pair_parts(self) -> list[Architecture]:
        """The architectures whose built pairs, the same ones in each, the net has inputs for."""
        return [self.parent] if self.parent.built else []

    @property
    def pairs(self) -> list[PairEmbedding]:
        """The pairs' tables, for each of `pair_parts`."""
        return cast(list[PairEmbedding], list(self._pairs))

    def mix(self, parts: Sequence[Tensor]) -> Tensor:
        """The inputs of pairs from those of each of `pair_parts`, all [B, P, E]."""
        return parts[0]

    def gates(self) -> Tensor:
        """What the entries of each block are multiplied by: float [S, D (+ 1)]."""
        return self.mask

    def forward(self, ids_BV: Tensor) -> Tensor:
        """Ids int [B, V] in the schema's column order -> logits [B]."""
        ids, *rest = self.split(ids_BV)
        e_BVC = functional.embedding(self.places_of(ids), self.weight, sparse=self.sparse)
        e_BFC = self.pooled(self.gate(e_BVC, self.block(ids)), ids)
        return self.logits(self.gate_rows(e_BFC), rest)

    def split(self, ids_BV: Tensor) -> list[Tensor]:
        """The ids of the fields, int [B, V of the parent], and of each of the pairs' parts."""
        return list(torch.split(ids_BV.index_select(1, self.columns), self.sizes, dim=1))

    def places_of(self, ids_BV: Tensor) -> Tensor:
        """Where the values of ids that `split` gives stand in `weight`: int [B, V]."""
        return (ids_BV if self.pool is None else ids_BV.clamp_min(0)) + self.offsets

    def pooled(self, e_BVC: Tensor, ids_BV: Tensor) -> Tensor:
        """The embeddings of fields [B, F, C] from those of their values."""
        return e_BVC if self.pool is None else self.pool(e_BVC, ids_BV)

    def logits(self, e_BFC: Tensor, rest: Sequence[Tensor]) -> Tensor:
        """Logits [B] of embeddings [B, F, D (+ 1)] and the ids of pairs."""
        parts = [part(columns) for part, columns in zip(self.pairs, rest, strict=True)]
        return apply(self.backbone, e_BFC, self.mix(parts) if parts else None, first_order=self.first_order)

    def gate_rows(self, e_BFC: Tensor) -> Tensor:
        """What gates of each row's own let through of embeddings [B, F, D (+ 1)]: all, if there are no such gates."""
        return e_BFC

    def gate(self, e_BVC: Tensor, block_BV: Tensor) -> Tensor:
        """Embeddings [B, V, D (+ 1)] of values in these blocks, times what their gates let through."""
        if self._folded:
            return e_BVC
        gates = self.gates()
        if self.nested and self.training:
            gates = gates * self.draw_prefixes().to(gates.device)
        return e_BVC * functional.embedding(block_BV, gates)

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

    def arch_parameters(self) -> list[nn.Parameter]:
        """The gates' parameters, disjoint from the weights'."""
        return []

    def weight_parameters(self) -> list[nn.Parameter]:
        arch = {id(parameter) for parameter in self.arch_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in arch]

    def penalty(self) -> Tensor:
        """What the search adds to the loss that moves the gates; a scalar."""
        return self.weight.new_zeros(())

    def step_gates(self, gradients: Sequence[Tensor]) -> None:
        """Updates the gates from the gradients of `arch_parameters`; a method with gates overrides it."""
        raise NotImplementedError

    @property
    def rounds(self) -> int:
        """How often at most the search prunes and trains on."""
        return 0

    def prune(self) -> bool:
        """Closes entries that make held-out rows worse; whether there were any."""
        raise NotImplementedError

    def on_search_end(self, dataset: Dataset, device: torch.device) -> dict[str, float]:
        """Called once when weights and gates have moved, for what a method reads off the data; numbers to report."""
        return {}

    def diagnostics(self) -> dict[str, float]:
        """Numbers to watch while the gates move, reported after each epoch."""
        return {}

    def scores(self) -> Array:
        """How much each block's dim is worth, float [S, D]; the largest are kept."""
        raise NotImplementedError

    def entry_scores(self) -> Tensor:
        """How much each entry is worth where single ones are cut, float [N, D]: its size, gates folded in."""
        return torch.cat(self.folded(self.gates()))[:, : self.parent.dim].detach().abs()

    def derive(self, limit: int | None) -> Architecture:
        """The answer within `limit` bytes of embeddings; without one, by the method's own threshold.

        A pure function of the net: nothing here changes.
        """
        return self.answer(limit).architecture

    def answer(self, limit: int | None) -> Answer:
        """What `derive` gives, with notes: the uniform architecture where that one is better on held-out rows."""
        own = entries.choose(self, limit) if entries.cuts(self) else self.choose(limit)
        if limit is None or self.held is None or self.config.guard == "none":
            return Answer(architecture=own)
        rival = self.uniform(limit)
        if rival is None or rival == own:
            return Answer(architecture=own)
        if len(own.fields) == 1 < len(self.parent.fields):
            note = f"its own choice keeps {own.names[0]!r} alone, and models cross fields: the answer is uniform"
            return Answer(architecture=rival, notes=(note,))
        ours, theirs = self.loss_of(own), self.loss_of(rival)
        if ours <= theirs:
            return Answer(architecture=own)
        width = int(rival.mask().sum(axis=1).max())
        note = (
            f"within {limit:,} bytes its own choice has a loss of {ours:.4f} on held-out rows, and {width} dims for "
            f"every value {theirs:.4f}: the answer is uniform"
        )
        return Answer(architecture=rival, notes=(note,))

    def rivals(self) -> dict[str, Callable[[int], Architecture | None]]:
        """Simple architectures within a limit that are retrained beside the answer, under what they are called.

        These are the one of `uniform`, the uniform one in the most bits, and widths by frequency: a supernet may
        misjudge how well a narrow model is once it is trained alone.
        """
        if not isinstance(self.config, WidthConfig) or self.config.guard != "retrained" or self.held is None:
            return {}
        return {
            "the uniform architecture": self.uniform,
            "the uniform architecture in the most bits": partial(self.uniform_in, None),
            "the architecture with widths by frequency": self.frequent,
        }

    def choose(self, limit: int | None) -> Architecture:
        """The method's own choice within `limit` bytes of embeddings, or by its threshold."""
        return self.parent_with(self.spend(self.scores(), self.left(limit)))

    def left(self, limit: int | None) -> int:
        """Bytes that a limit leaves to the fields; SpaceError if there is none."""
        if limit is None:
            raise errors.SpaceError(
                f"{self.config.method} needs a limit: set budget.bytes, budget.embedding_bytes or budget.width"
            )
        return limit - self.parent.pair_bytes()

    def spend(self, scores: Array, left: int) -> Array:
        """Kept dims bool [S, D] of the best scores that `left` bytes hold, by the order of dims and their returns."""
        allowed, sizes = self.parent.mask(), self.block_sizes()
        if not isinstance(self.config, WidthConfig):
            return select(scores, allowed, sizes, left)
        scores = np.where(allowed, scores, -1.0)
        # Closed dims are last; a nested basis has its order, and a prefix counts its best part so far.
        order = np.argsort(~allowed if self.nested else -scores, axis=1, kind="stable")
        worth = np.take_along_axis(scores, order, axis=1)
        if self.nested:
            worth = np.maximum.accumulate(worth[:, ::-1], axis=1)[:, ::-1]
        if self.config.returns == "diminishing":
            worth = worth / np.sqrt(np.arange(1, worth.shape[1] + 1))
        return take_in_order(worth, order, allowed.sum(axis=1), sizes, left)

    def block_bits(self, bits: int | None = None) -> Array:
        """The bits of each block in what is derived, at most `bits` or the stage's own: int [S]."""
        own: Array = np.minimum(self.parent.block_bits(), bits or self.config.bits or 32)
        return np.where(own, own, 32)

    def block_sizes(self, bits: int | None = None) -> Array:
        """Bytes of each block by its width, int [S, D + 1]."""
        parent, own = self.parent, self.block_bits(bits)
        return parent.mixed().sizes(parent.block_rows(), parent.dim, own, first_order=self.first_order)

    def parent_with(self, mask: Array, bits: Array | None = None) -> Architecture:
        """The parent with kept dims bool [S, D] and the bits of each block, int [S]."""
        found = self.parent.with_mask(mask & self.parent.mask(), bits=self.block_bits() if bits is None else bits)
        pair_bits = min(self.parent.pair_bits, self.config.bits or 32)
        return found if pair_bits == found.pair_bits else found.replace(pair_bits=pair_bits)

    def uniform(self, limit: int) -> Architecture | None:
        """The uniform architecture that the method's own choice is compared with; None if the limit holds none."""
        return self.uniform_in(None, limit)

    def uniform_in(self, bits: int | None, limit: int) -> Architecture | None:
        """The same number of dims for every value, in at most so many bits; None if the limit does not hold one dim.

        In a plain basis they are those with the highest scores over all values, each block counted by its values.
        """
        allowed, left = self.parent.mask(), self.left(limit)
        sizes = self.block_sizes(bits)
        width = int((sizes.sum(axis=0) <= left).sum()) - 1
        if width < 1:
            return None
        order = np.arange(self.parent.dim)
        if not self.nested:
            order = np.argsort(-(self.scores() * self.parent.block_rows()[:, None]).sum(axis=0), kind="stable")
        ranked = allowed[:, order]
        kept = np.zeros_like(allowed)
        kept[:, order] = ranked & (ranked.cumsum(axis=1) <= width)
        return self.parent_with(kept, self.block_bits(bits))

    def frequent(self, limit: int) -> Architecture | None:
        """Widths by how often a block's values occur, which the method's own choice is compared with."""
        return self.frequent_in(None, limit)

    def frequent_in(self, bits: int | None, limit: int) -> Architecture | None:
        """Widths by frequency in at most so many bits; None if the limit does not hold one dim of each block."""
        allowed, left, sizes = self.parent.mask(), self.left(limit), self.block_sizes(bits)
        if int(sizes[:, 1].sum()) > left:
            return None
        order = np.argsort(~allowed if self.nested else -np.where(allowed, self.scores(), -1.0), axis=1, kind="stable")
        worth = by_frequency(self.block_counts, self.parent.block_rows(), self.parent.dim)
        kept = take_in_order(worth, order, allowed.sum(axis=1), sizes, left)
        return self.parent_with(kept, self.block_bits(bits))

    @contextmanager
    def answering(self, architecture: Architecture) -> Iterator[None]:
        """Within it, the net gives the logits of the compact model that it has for an architecture derived from it."""
        weight, folded, alive = self.weight.data, self._folded, self.backbone.alive.clone()
        mask = self.mask_of(architecture)
        try:
            self.weight.data, self._folded = self.table_of(architecture), True
            self.keep_alive(mask)
            yield
        finally:
            self.weight.data, self._folded = weight, folded
            self.backbone.alive.copy_(alive)

    def keep_alive(self, mask: Array) -> None:
        """Tells the backbone which fields still have an entry of `mask` bool [S, D]."""
        alive = np.zeros(len(self.parent.fields), dtype=bool)
        np.logical_or.at(alive, self.parent.field_of_block(), mask.any(axis=1))
        self.backbone.alive[: len(alive)] = torch.tensor(alive)

    def mask_of(self, architecture: Architecture) -> Array:
        """Which of the parent's entries an architecture derived from it keeps: bool [S, D]."""
        mask, own = np.zeros_like(self.parent.mask()), architecture.mask()
        kept = np.isin(np.array(self.parent.names)[self.parent.field_of_block()], architecture.names)
        mask[kept, : own.shape[1]] = own
        return mask

    @torch.no_grad()
    def table_of(self, architecture: Architecture) -> Tensor:
        """The weights as the compact model has them, gates folded in, rounded to their bits: float [N, D (+ 1)]."""
        mask = self.mask_of(architecture)
        gates = self.gates() * torch.tensor(self._with_first_order(mask), device=self.weight.device)
        table = torch.cat(self.folded(gates))
        if architecture.storage.kind == "sparse":
            table = table * entries.kept(self, architecture)
        names = np.array(self.parent.names)[self.parent.field_of_block()]
        bits = np.zeros(len(mask), dtype=np.int64)
        bits[np.isin(names, architecture.names)] = architecture.block_bits()
        step, dim = architecture.mixed().step, self.parent.dim
        rows = self.parent.block_rows()
        for own in np.unique(bits[(bits > 0) & (bits < 32)]).tolist():
            blocks = np.flatnonzero(bits == own)
            if own == 1 or step != "row":  # what is closed would move the others' steps, or become half a step
                for block in blocks:
                    at = torch.as_tensor(np.arange(rows[block]) + rows[:block].sum(), device=table.device)
                    kept = torch.as_tensor(np.flatnonzero(mask[block]), device=table.device)
                    body, first = rounded(table[at][:, kept], table[at][:, dim:], own, step)
                    table[at[:, None], kept] = body
                    table[at, dim:] = first
                continue
            at = torch.as_tensor(np.flatnonzero(np.repeat(bits == own, rows)), device=table.device)
            table[at] = rounded_blocks(table[at], dim, rows[blocks].tolist(), own, step)
        return table

    @torch.no_grad()
    def loss_of(self, architecture: Architecture) -> float:
        """The mean loss on held-out rows of an architecture derived from here, with this net's weights.

        Logits are scaled and shifted to fit these rows first.
        """
        assert self.held is not None
        ids, labels = self.held
        training = self.training
        self.eval()
        with self.answering(architecture):
            logits = torch.cat([self(part) for part in torch.split(ids, _CHUNK)])
        self.train(training)
        own, answers = logits.double().cpu().numpy(), labels.cpu().numpy()
        scale, shift = self.schema.task.calibration(answers, own)
        return float(self.schema.task.losses(answers, scale * own + shift).mean())

    @torch.no_grad()
    def load_weights_from(self, source: Supernet) -> None:
        """Takes over the weights of a net from whose answer the parent here was narrowed.

        Tables come with their gates folded in; the backbone comes if the source has all of its inputs.
        """
        if source.parent.dim != self.parent.dim or source.first_order != self.first_order:
            return
        tables, fields = source.folded(source.gates()), source.places(self.parent.names)
        self.weight.copy_(torch.cat([tables[field] for field in fields]))
        own = source.pair_tables()
        for pairs in self.pairs:
            pairs.load({name: own.get(name, part) for name, part in pairs.own().items()})
        inputs = [pair.name for pair in self.inputs]
        if set(inputs) <= {pair.name for pair in source.inputs}:
            inherit(source.backbone, self.backbone, fields + source.places(inputs))

    def folded(self, gates: Tensor) -> tuple[Tensor, ...]:
        """The weights times `gates` float [S, D (+ 1)], per field of the parent float [cardinality, D (+ 1)]."""
        rows = torch.as_tensor(self.parent.block_rows(), device=self.weight.device)
        table = self.weight * gates.repeat_interleave(rows, dim=0)
        return torch.split(table, [field.cardinality for field in self.parent.fields])

    def places(self, names: Sequence[str]) -> list[int]:
        """Where fields and inputs of pairs stand among those of the backbone here."""
        own = [*self.parent.names, *(pair.name for pair in self.inputs)]
        return [own.index(name) for name in names]

    def pair_tables(self) -> dict[tuple[str, str], Tensor]:
        """What every one of the pairs' modules holds, by kind and column."""
        return {name: part for pairs in self.pairs for name, part in pairs.own().items()}

    def compact(self, architecture: Architecture) -> Model:
        """The compact model of an architecture derived here, with this net's weights, gates folded in.

        It depends on the net and the architecture alone, not on what was derived before.
        """
        return self.cut(architecture, self.gates())

    @torch.no_grad()
    def cut(self, architecture: Architecture, gates: Tensor) -> CTRModel:
        """The compact model of a plain architecture with this net's weights times `gates` float [S, D (+ 1)]."""
        model = CTRModel(self.schema, architecture).to(self.weight.device)
        assert isinstance(model.embedding, MixedEmbedding), "a hashed table has no rows of a value's own to inherit"
        tables, fields = self.folded(gates), self.places(architecture.names)
        if architecture.storage.kind == "sparse":
            kept = entries.kept(self, architecture)
            tables = tuple(part * own for part, own in zip(tables, torch.split(kept, [*map(len, tables)]), strict=True))
        model.embedding.load_dense({number: tables[field] for number, field in enumerate(fields)}, architecture)
        if model.pairs is not None:
            model.pairs.load(self.pair_tables())
            fields += self.places([pair.name for pair in architecture.built])
        inherit(self.backbone, model.backbone, fields)
        return model

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
