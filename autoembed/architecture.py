"""The one answer type: which dims each block of each field keeps, in how many bits, and the backbone behind them.

An Architecture is plain data: JSON, no tensors, no trace of the method that found it. A compact model is built from a
schema and an Architecture alone (`autoembed.nn.model.CTRModel`).

Shape letters used throughout the package: B batch, F field, D dim, S block.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field as Key
from pydantic import JsonValue, SerializerFunctionWrapHandler, ValidationError, model_serializer, model_validator

from autoembed.data.crosses import name_of
from autoembed.data.schema import FeatureSchema, Field
from autoembed.errors import BundleError, SpaceError, first_line, unknown
from autoembed.plans import (
    Bits,
    Block,
    BlockCut,
    Choice,
    Cost,
    Ensemble,
    FieldPlan,
    Frozen,
    Input,
    PairPlan,
    Pool,
    Pooling,
    RouterPlan,
    TowerBits,
)
from autoembed.storage import (
    MixedStorage,
    ProjectedStorage,
    QuotientRemainderStorage,
    SparseStorage,
    Step,
    Storage,
    table_bytes,
)
from autoembed.types import Array


class Architecture(Frozen):
    """Kept dims and bits per field block, in an interaction space of width `dim`, and the backbone's name and options.

    The backbone's linear layers are served in `tower_bits`.

    The inputs of built `pairs` have `pair_dim` numbers of `pair_bits` bits each. `storage` says how the embeddings are
    kept; under a shared table every block keeps every dim. With `clusters`, there is a model for each of them, `router`
    says which one a row goes to, and the fields show what any of them keeps. An `ensemble` is of members that share
    the tables. The model has a tower for each of the `auxiliary_labels`, with the hidden layers of the backbone.
    The backbone gives `outputs` numbers a row: one for each of several classes, else 1.
    """

    version: Literal[2] = 2
    dim: int
    fields: tuple[FieldPlan, ...]
    backbone: dict[str, JsonValue]
    tower_bits: TowerBits = 32
    pairs: tuple[PairPlan, ...] = ()
    pair_dim: int = 0
    pair_bits: Bits = 32
    storage: Storage = MixedStorage()
    clusters: tuple[Architecture, ...] = ()
    router: RouterPlan | None = None
    ensemble: Ensemble | None = None
    auxiliary_labels: tuple[str, ...] = ()
    outputs: int = Key(default=1, ge=1)
    cost: Cost | None = None

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, node: object) -> object:
        """Version 1 had `shared`, a hashed table or null, in the place of `storage`."""
        if not isinstance(node, dict) or node.get("version") != 1:
            return node
        shared = node.get("shared")
        storage = {"kind": "shared", **shared} if isinstance(shared, dict) else {"kind": "mixed"}
        kept = {key: value for key, value in node.items() if key != "shared"}
        return {**kept, "version": 2, "storage": storage}

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without auxiliary labels and outputs that are not there: so it was stored before there were such."""
        node: dict[str, Any] = handler(self)
        before = {"auxiliary_labels": (), "outputs": 1}
        return {key: value for key, value in node.items() if key not in before or value not in (before[key], [])}

    @model_validator(mode="after")
    def _clusters_fit(self) -> Architecture:
        if bool(self.clusters) != bool(self.router):
            raise ValueError(f"clusters and router must come together, but got {len(self.clusters)} clusters")
        if any(
            one.clusters or one.storage.kind not in ("mixed", "projected", "quotient_remainder") or one.dim != self.dim
            for one in self.clusters
        ):
            raise ValueError(f"a cluster must be a plain architecture of dim {self.dim}")
        if (self.ensemble and self.clusters) or any(one.ensemble for one in self.clusters):
            raise ValueError("an architecture must have clusters or an ensemble, but got both")
        if self.outputs > 1 and (self.clusters or self.ensemble):
            raise ValueError(f"an architecture of {self.outputs} outputs must have no clusters and no ensemble")
        if self.ensemble and (self.ensemble.members < 2 or self.ensemble.share == "none"):
            raise ValueError(
                f"an ensemble must be of 2 members or more that share something, but got {self.ensemble!r}"
            )
        return self

    @model_validator(mode="after")
    def _entries_fit(self) -> Architecture:
        for field in self.fields:
            for rows, block in zip(np.diff([0, *(one.stop for one in field.blocks)]), field.blocks, strict=True):
                most = int(rows) * len(block.dims) if self.storage.kind == "sparse" else 0
                if bool(block.entries) != bool(most) or (block.entries or 0) > most:
                    raise ValueError(
                        f"entries of a block of {field.name!r} must be 1..{most} under sparse storage where it keeps "
                        f"a dim, and absent elsewhere, but got {block.entries} under {self.storage.kind}"
                    )
        return self

    @model_validator(mode="after")
    def _dims_fit(self) -> Architecture:
        if self.storage.kind == "shared" and self.dim % self.storage.lookups:
            raise ValueError(f"dim must be a multiple of storage.lookups={self.storage.lookups}, but got {self.dim}")
        least = 1 if self.built else 0
        if not least <= self.pair_dim <= self.dim:
            raise ValueError(f"pair_dim must be a number in {least}..{self.dim}, but got {self.pair_dim}")
        for field in self.fields:
            for block in field.blocks:
                dims = block.dims
                if list(dims) != sorted(set(dims)) or (dims and not 0 <= dims[0] <= dims[-1] < self.dim):
                    raise ValueError(
                        f"kept dims of {field.name!r} must be rising numbers in 0..{self.dim - 1}, but got {list(dims)}"
                    )
        return self

    @classmethod
    def full(
        cls,
        schema: FeatureSchema,
        counts: Sequence[Array],
        *,
        dim: int,
        blocks: int,
        backbone: dict[str, JsonValue],
        cut: BlockCut = "geometric",
        bits: Bits = 32,
        step: Step = "row",
        pool: Pooling | Mapping[str, Pooling] = "mean",
    ) -> Architecture:
        """Every dim of every value, with the values of all fields cut into frequency blocks together (DNIS, sec. 3.2).

        The schema's candidates are no fields: they become open pairs. Its auxiliary labels are predicted as well, and
        each of its classes has an output.

        Args:
            schema: the fitted schema.
            counts: per field, train count per id, int [cardinality]; ids 1.. are ordered by falling count.
            dim: width D of the interaction space.
            blocks: number of frequency blocks S over all fields; a field has those that its own counts reach.
            backbone: name and options of the backbone.
            cut: "geometric" cuts at ranks N^(s/S) (the authors' Criteo setting is of this form), "equal" at N*s/S.
            bits: bits that every number is stored in.
            step: what shares a step of 8 bits and fewer.
            pool: how the embeddings of a multi-valued field's values become one; of each such field by its name, the
                mean of those that are not named. `attention` compares them with the field whose table they read.

        Raises:
            SpaceError: there is no such field, or nothing that its values could be compared with.
        """
        if blocks < 1 or dim < 1:
            raise SpaceError(f"embedding.blocks and embedding.dim must be at least 1, but got {blocks=} {dim=}")
        _check_pool(schema, pool)
        cardinality = dict(zip(schema.names, schema.cardinalities, strict=True))
        pairs = tuple(
            PairPlan(
                a=field.cross.a,
                b=field.cross.b,
                name=field.name,
                cardinalities=(cardinality[field.cross.a], cardinality[field.cross.b]),
                crossed=field.cardinality,
                distinct=field.cross.distinct,
                choice="open",
            )
            for field in schema.fields
            if field.candidate and field.cross
        )
        pairs += tuple(_product(schema, a, b, pool) for a, b in schema.products)
        every = zip(schema.fields, counts, strict=True)
        own = [(field, count) for field, count in every if not field.candidate and field.shares is None]
        ranked = np.sort(np.concatenate([count[1:] for _, count in own]))[::-1]
        total = max(len(ranked), 1)
        share = np.arange(1, blocks) / blocks
        ranks = np.rint(total**share if cut == "geometric" else total * share)
        # A block ends below a count, not at a rank: equal counts share a block, and ids of a field stay a range.
        edges = sorted({int(ranked[int(rank)]) for rank in ranks if rank < len(ranked)}, reverse=True)
        fields = []
        for field, count in own:
            # Id 0, rare and unseen values, has no count of its own to be placed by: it goes with the first block.
            stops = [1 + int(np.searchsorted(-count[1:], -edge, side="left")) for edge in edges] + [field.cardinality]
            plan, last = [], 1 if field.cardinality > 1 else 0
            for level, stop in enumerate(stops):
                if stop > last:
                    plan.append(Block(stop=stop, level=level, dims=tuple(range(dim)), bits=bits))
                    last = stop
            readers = tuple(_input(other, pool) for other in schema.fields if other.shares == field.name)
            size, own_input = field.cardinality, _input(field, pool)
            fields.append(
                FieldPlan(name=field.name, cardinality=size, blocks=tuple(plan), pool=own_input.pool, readers=readers)
            )
        storage = MixedStorage(step=step)
        return cls(
            dim=dim,
            fields=tuple(fields),
            backbone=backbone,
            pairs=pairs,
            pair_bits=bits,
            storage=storage,
            auxiliary_labels=schema.auxiliary_labels,
            outputs=schema.task.outputs,
        )

    def replace(self, **changes: object) -> Architecture:
        """A copy with other values for some of its parts, checked like a new one; its cost is dropped unless given."""
        parts = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**parts, "cost": None, **changes})

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the fields, in order."""
        return tuple(field.name for field in self.fields)

    @property
    def built(self) -> tuple[PairPlan, ...]:
        """The pairs that are memorized or factorized, in order."""
        return tuple(pair for pair in self.pairs if pair.built)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the encoded table that a model reads: fields, crossed columns, then factorized ones.

        With clusters, those of any of their models and of the router.
        """
        if self.router:
            read = [column for cluster in self.clusters for column in cluster.columns]
            routed = [one.name for field in self.router.fields for one in field.inputs]
            return tuple(dict.fromkeys([*read, *routed]))
        crossed = [pair.name for pair in self.built if pair.choice == "memorize"]
        return (*self.inputs, *crossed, *self.factors())

    def factors(self) -> dict[str, int]:
        """The columns that factorized pairs have embeddings of, and how many ids each has."""
        found: dict[str, int] = {}
        for pair in self.built:
            if pair.choice == "factorize":
                found |= dict(zip((pair.a, pair.b), pair.cardinalities, strict=True))
        return found

    def factor_pools(self) -> dict[str, Pool | None]:
        """How the values of each of those columns become one, None where a row has one value."""
        found: dict[str, Pool | None] = {}
        for pair in self.built:
            if pair.choice == "factorize":
                found |= dict(zip((pair.a, pair.b), pair.pools, strict=True))
        return found

    @property
    def few_bits(self) -> bool:
        """Whether any block has numbers of fewer than 32 bits."""
        parts = self.clusters or (self,)
        return any(block.bits not in (0, 32) for part in parts for field in part.fields for block in field.blocks)

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many columns of the encoded table are looked up in each field's table."""
        return tuple(field.columns for field in self.fields)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The fields that the backbone sees: each, and behind it those that read its table."""
        return tuple(one.name for field in self.fields for one in field.inputs)

    def field_of_input(self) -> Array:
        """The field whose table each input is looked up in: int [I]."""
        return np.repeat(np.arange(len(self.fields)), [len(field.inputs) for field in self.fields])

    def field_of_block(self) -> Array:
        """The field of each block, blocks of all fields in order: int [S]."""
        return np.repeat(np.arange(len(self.fields)), [len(field.blocks) for field in self.fields])

    def block_ranges(self) -> Array:
        """First and last-plus-one id of each block within its field: int [S, 2]."""
        ranges = []
        for field in self.fields:
            stops = [block.stop for block in field.blocks]
            ranges += list(zip([0, *stops[:-1]], stops, strict=True))
        return np.array(ranges, dtype=np.int64).reshape(-1, 2)

    def block_levels(self) -> Array:
        """The frequency block over all fields that each block belongs to: int [S]."""
        return np.array([block.level for field in self.fields for block in field.blocks])

    def block_rows(self) -> Array:
        """Number of values in each block: int [S]."""
        ranges = self.block_ranges()
        return ranges[:, 1] - ranges[:, 0]

    def block_bits(self) -> Array:
        """Bits of each block's numbers, 0 where it keeps none: int [S]."""
        return np.array([block.bits for field in self.fields for block in field.blocks])

    def block_entries(self) -> Array:
        """Single entries that each block keeps under sparse storage, else 0: int [S]."""
        return np.array([block.entries or 0 for field in self.fields for block in field.blocks])

    def with_entries(self, entries: Array, *, bits: Array) -> Architecture:
        """The same dims under sparse storage with so many single entries of each block, int [S], 0 to close it."""
        found = self.with_mask(self.mask() & (entries > 0)[:, None], bits=bits)
        left = iter(entries[entries > 0].tolist())
        fields = tuple(
            field.model_copy(
                update={
                    "blocks": tuple(
                        block.model_copy(update={"entries": next(left)}) if block.dims else block
                        for block in field.blocks
                    )
                }
            )
            for field in found.fields
        )
        return found.replace(fields=fields, storage=SparseStorage(step=self.mixed().step))

    def mask(self) -> Array:
        """Which dims each block keeps: bool [S, D]."""
        blocks = [block for field in self.fields for block in field.blocks]
        mask = np.zeros((len(blocks), self.dim), dtype=bool)
        for row, block in zip(mask, blocks, strict=True):
            row[list(block.dims)] = True
        return mask

    def active(self) -> Array:
        """What the tower sees: dims that a block of its field keeps, then those of built pairs: bool [I + P, D].

        Where rows are projected, every field has all dims up to the last one that any block keeps.
        """
        active, mask = np.zeros((len(self.fields), self.dim), dtype=bool), self.mask()
        np.logical_or.at(active, self.field_of_block(), mask)
        if self.storage.kind == "projected":
            active[:, : 1 + np.flatnonzero(mask.any(axis=0))[-1]] = True
        return np.concatenate([active[self.field_of_input()], self.pair_inputs(len(self.built), self.pair_dim)])

    def pair_inputs(self, pairs: int, pair_dim: int) -> Array:
        """The inputs of pairs of width `pair_dim` in the interaction space, bool [pairs, D]."""
        return np.broadcast_to(np.arange(self.dim) < pair_dim, (pairs, self.dim))

    def with_mask(self, mask: Array, *, bits: Array | None = None, dim: int | None = None) -> Architecture:
        """The same fields and blocks with other kept dims, bool [S, D]; a field that keeps nothing goes.

        Args:
            mask: kept dims, bool [S, D].
            bits: bits of each block, int [S]; as they are without it, 32 where a block was closed.
            dim: another width D of the interaction space.

        Raises:
            SpaceError: if no field is left.
        """
        if bits is None:
            bits = self.block_bits()
        fields, at = [], 0
        for field in self.fields:
            blocks = []
            for block in field.blocks:
                dims = tuple(np.flatnonzero(mask[at]).tolist())
                own = (int(bits[at]) or 32) if dims else 0
                blocks.append(
                    Block.model_validate({"stop": block.stop, "level": block.level, "dims": dims, "bits": own})
                )
                at += 1
            if any(block.dims for block in blocks):
                fields.append(field.model_copy(update={"blocks": tuple(blocks)}))
        if not fields:
            raise SpaceError("an architecture must keep at least one dim, but none is left: raise the budget")
        return self.replace(dim=dim or self.dim, fields=tuple(fields), storage=self.mixed(), clusters=(), router=None)

    def mixed(self) -> MixedStorage:
        """Its storage if it is mixed, the one with the same steps if it has rows, else the default kind of that."""
        if isinstance(self.storage, SparseStorage | ProjectedStorage | QuotientRemainderStorage):
            return MixedStorage(step=self.storage.step)
        return self.storage if self.storage.kind == "mixed" else MixedStorage()

    def with_choices(self, choices: Sequence[Choice], pair_dim: int) -> Architecture:
        """The same fields with other choices, one for each pair, and that many numbers for each built one."""
        pairs = tuple(
            pair.model_copy(update={"choice": choice}) for pair, choice in zip(self.pairs, choices, strict=True)
        )
        built = any(pair.built for pair in pairs)
        return self.replace(pairs=pairs, pair_dim=pair_dim if built else 0)

    def narrows(self, parent: Architecture) -> bool:
        """Whether every field, block, kept dim and bit here is one of `parent`'s, and every choice one it left open."""
        choices = {pair.name: pair.choice for pair in parent.pairs}
        for pair in self.pairs:
            if pair.choice not in ("naive", choices.get(pair.name)) and choices.get(pair.name) != "open":
                return False
        if not all(cluster.narrows(parent) for cluster in self.clusters):
            return False
        plans = {field.name: field for field in parent.fields}
        for field in self.fields:
            plan = plans.get(field.name)
            if plan is None or [b.stop for b in plan.blocks] != [b.stop for b in field.blocks]:
                return False
            blocks = list(zip(field.blocks, plan.blocks, strict=True))
            if any(not set(own.dims) <= set(before.dims) or own.bits > before.bits for own, before in blocks):
                return False
        return self.dim <= parent.dim

    def embedding_parameters(self, *, first_order: bool) -> int:
        """Stored entries whatever their bits; with `first_order`, one more for each value of a block that keeps a dim.

        With clusters, the sum over their models, without the router's own.
        """
        if self.clusters:
            return sum(cluster.embedding_parameters(first_order=first_order) for cluster in self.clusters)
        return self.storage.parameters(self.fields, self.dim, first_order=first_order) + self.pair_parameters()

    def embedding_bytes(self, *, first_order: bool) -> int:
        """Bytes of the tables of fields and pairs with their steps; with clusters, the sum over their models."""
        if self.clusters:
            return sum(cluster.embedding_bytes(first_order=first_order) for cluster in self.clusters)
        return self.storage.bytes(self.fields, self.dim, first_order=first_order) + self.pair_bytes()

    def _pair_rows(self) -> list[int]:
        crossed = [pair.crossed for pair in self.built if pair.choice == "memorize"]
        return [*crossed, *self.factors().values()]

    def pair_parameters(self) -> int:
        """Embedding parameters of the pairs: those of crossed values, and of the values of factorized columns."""
        return self.pair_dim * sum(self._pair_rows())

    def pair_bytes(self) -> int:
        """Bytes of the pairs' tables with their steps."""
        return sum(self.pair_column_bytes(rows, self.pair_dim) for rows in self._pair_rows())

    def pair_column_bytes(self, rows: int, pair_dim: int) -> int:
        """Bytes that a crossed or factorized column of so many ids takes."""
        return table_bytes(rows, pair_dim, self.pair_bits, step=self.mixed().step, first_order=False)

    def write(self, path: Path) -> None:
        """Writes the architecture as a JSON file."""
        path.write_text(self.model_dump_json(indent=1))

    @classmethod
    def read(cls, path: Path) -> Architecture:
        """The architecture in a JSON file; BundleError names the file and the rule that it breaks."""
        try:
            return cls.model_validate(json.loads(path.read_text()))
        except OSError as error:
            raise BundleError(f"cannot read the architecture {path}: {error.strerror}") from None
        except (ValueError, ValidationError) as error:
            raise BundleError(f"{path} is not a valid architecture: {first_line(error)}") from None


def _input(field: Field, pool: Pooling | Mapping[str, Pooling]) -> Input:
    if field.interpolation:
        return Input(name=field.name, pool=Pool(length=field.length, by="knots"))
    if field.multi is None:
        return Input(name=field.name)
    return Input(name=field.name, pool=Pool(length=field.multi.length, by=_pooling(field.name, pool)))


def _product(schema: FeatureSchema, a: str, b: str, pool: Pooling | Mapping[str, Pooling]) -> PairPlan:
    """The open pair of columns of which one holds several values a row."""
    fields = [schema.fields[schema.index(name)] for name in (a, b)]
    pools = []
    for field in fields:
        by = _pooling(field.name, pool)
        # The product itself compares values with the other column.
        own = None if field.multi is None else Pool(length=field.multi.length, by="mean" if by == "attention" else by)
        pools.append(own)
    sizes = (fields[0].cardinality, fields[1].cardinality)
    return PairPlan(
        a=a, b=b, name=name_of(a, b), cardinalities=sizes, crossed=0, choice="open", pools=(pools[0], pools[1])
    )


def _pooling(name: str, pool: Pooling | Mapping[str, Pooling]) -> Pooling:
    return pool if isinstance(pool, str) else pool.get(name, "mean")


def _check_pool(schema: FeatureSchema, pool: Pooling | Mapping[str, Pooling]) -> None:
    lists = {field.name: field for field in schema.fields if field.multi is not None}
    for name in () if isinstance(pool, str) else pool:
        if name not in lists:
            raise SpaceError(f"embedding.pool: {unknown('multi-valued field', name, list(lists))}")
    single = {field.name for field in schema.fields if field.multi is None}
    for name, field in lists.items():
        if _pooling(name, pool) == "attention" and field.shares not in single:
            raise SpaceError(
                f"embedding.pool: attention compares the values of {name!r} with those of the column whose table it "
                f"reads, but it reads its own: set data.multi.{name}.shared, or pool: {{{name}: mean}}"
            )
