"""The one answer type: which dims each block of each field keeps, and the backbone behind them.

An Architecture is plain data: JSON, no tensors, no trace of the method that found it. A compact model is built from a
schema and an Architecture alone (`autoembed.nn.model.CTRModel`).

Shape letters used throughout the package: B batch, F field, D dim, S block.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from autoembed.data.schema import FeatureSchema
from autoembed.errors import BundleError, SpaceError

Array = np.ndarray[Any, np.dtype[Any]]
Cut = Literal["geometric", "equal"]
Choice = Literal["open", "memorize", "factorize", "naive"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Block(_Frozen):
    """Ids up to but without `stop` (the previous block's stop is the first), and the dims that they keep.

    `level` is the frequency block over all fields that the values belong to, 0 the most frequent.
    """

    stop: int
    level: int
    dims: tuple[int, ...]


class FieldPlan(_Frozen):
    """One field: its blocks cover the ids 0..cardinality-1 in order, frequent values first."""

    name: str
    cardinality: int
    blocks: tuple[Block, ...]

    @property
    def entries(self) -> int:
        """Entries that its values keep together, first-order weights left out."""
        starts = [0, *(block.stop for block in self.blocks[:-1])]
        return sum((block.stop - start) * len(block.dims) for block, start in zip(self.blocks, starts, strict=True))

    @model_validator(mode="after")
    def _blocks_cover_the_ids(self) -> FieldPlan:
        stops = [0, *(block.stop for block in self.blocks)]
        if any(a >= b for a, b in pairwise(stops)) or stops[-1] != self.cardinality:
            raise ValueError(f"block stops of {self.name!r} must rise to {self.cardinality}, but got {stops[1:]}")
        return self


class PairPlan(_Frozen):
    """A pair of columns and what is done with it (OptInter, ICDE 2022, arXiv 2108.01265, sec. 3).

    memorize: an embedding for each of the `crossed` ids of the crossed column `name`, which stand for the `distinct`
    pairs of ids that train holds. factorize: the product of one embedding for each of its two columns, of
    `cardinalities` ids. naive: nothing. open: nothing yet, a search may choose.
    """

    a: str
    b: str
    name: str
    cardinalities: tuple[int, int]
    crossed: int
    distinct: int = 0
    choice: Choice

    @property
    def built(self) -> bool:
        """Whether a model has an input for it."""
        return self.choice in ("memorize", "factorize")


class SharedTable(_Frozen):
    """One hashed table for all fields (Unified Embedding, Coleman et al., NeurIPS 2023, arXiv 2305.12102).

    A value reads `lookups` of the `rows` rows, by hashes of its field's own, and joins them to its `dim` numbers.
    """

    rows: int = Field(ge=1)
    lookups: int = Field(ge=1)
    seed: int = 0


class RouterField(_Frozen):
    """A field that a router reads: its ids from `rows` on, the rarer ones, count as id 0."""

    name: str
    rows: int = Field(ge=1)


class Router(_Frozen):
    """How a row finds the model of its cluster (iHAS, CIKM 2023, arXiv 2309.07967).

    table: the cluster with the largest sum of scores, of which each value of each field has one per cluster.
    centroid: the nearest centroid to what the search clustered, computed from an embedding table of `dim` numbers a
    value: the open gates ("mask"), the gated embeddings ("masked") or the embeddings themselves ("embedding"); each
    gate sees all fields or its own one. hash: at random, but the same for the same ids. all: every model answers, and
    the mean of their logits counts. With `calibrate`, each cluster's logits are scaled and shifted to fit valid.
    """

    kind: Literal["table", "centroid", "hash", "all"]
    fields: tuple[RouterField, ...] = ()
    dim: int = Field(default=0, ge=0)
    space: Literal["mask", "masked", "embedding"] = "mask"
    gate: Literal["all", "field"] = "all"
    seed: int = 0
    calibrate: bool = False


class Cost(_Frozen):
    """What a compact model holds in memory: parameters by kind, and bytes with every index buffer counted."""

    embedding_parameters: int
    dense_parameters: int
    bytes: int

    @property
    def parameters(self) -> int:
        return self.embedding_parameters + self.dense_parameters


class Architecture(_Frozen):
    """Kept dims per field block, in an interaction space of width `dim`, and the backbone's name and options.

    The inputs of built `pairs` have `pair_dim` numbers each. With `shared`, embeddings come from one hashed table
    instead, and every block keeps every dim. With `clusters`, there is a model for each of them, `router` says which
    one a row goes to, and the fields show what any of them keeps.
    """

    version: Literal[1] = 1
    dim: int
    fields: tuple[FieldPlan, ...]
    backbone: dict[str, JsonValue]
    pairs: tuple[PairPlan, ...] = ()
    pair_dim: int = 0
    shared: SharedTable | None = None
    clusters: tuple[Architecture, ...] = ()
    router: Router | None = None
    cost: Cost | None = None

    @model_validator(mode="after")
    def _clusters_fit(self) -> Architecture:
        if bool(self.clusters) != bool(self.router):
            raise ValueError(f"clusters and router must come together, but got {len(self.clusters)} clusters")
        if any(cluster.clusters or cluster.shared or cluster.dim != self.dim for cluster in self.clusters):
            raise ValueError(f"a cluster must be a plain architecture of dim {self.dim}")
        return self

    @model_validator(mode="after")
    def _dims_fit(self) -> Architecture:
        if self.shared and self.dim % self.shared.lookups:
            raise ValueError(f"dim must be a multiple of shared.lookups={self.shared.lookups}, but got {self.dim}")
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
        cut: Cut = "geometric",
    ) -> Architecture:
        """Every dim of every value, with the values of all fields cut into frequency blocks together (DNIS, sec. 3.2).

        The schema's candidates are no fields: they become open pairs.

        Args:
            schema: the fitted schema.
            counts: per field, train count per id, int [cardinality]; ids 1.. are ordered by falling count.
            dim: width D of the interaction space.
            blocks: number of frequency blocks S over all fields; a field has those that its own counts reach.
            backbone: name and options of the backbone.
            cut: "geometric" cuts at ranks N^(s/S) (the authors' Criteo setting is of this form), "equal" at N*s/S.
        """
        if blocks < 1 or dim < 1:
            raise SpaceError(f"embedding.blocks and embedding.dim must be at least 1, but got {blocks=} {dim=}")
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
        own = [(field, count) for field, count in zip(schema.fields, counts, strict=True) if not field.candidate]
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
                    plan.append(Block(stop=stop, level=level, dims=tuple(range(dim))))
                    last = stop
            fields.append(FieldPlan(name=field.name, cardinality=field.cardinality, blocks=tuple(plan)))
        return cls(dim=dim, fields=tuple(fields), backbone=backbone, pairs=pairs)

    @property
    def names(self) -> tuple[str, ...]:
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
            return tuple(dict.fromkeys([*read, *(field.name for field in self.router.fields)]))
        crossed = [pair.name for pair in self.built if pair.choice == "memorize"]
        return (*self.names, *crossed, *self.factors())

    def factors(self) -> dict[str, int]:
        """The columns that factorized pairs have embeddings of, and how many ids each has."""
        found: dict[str, int] = {}
        for pair in self.built:
            if pair.choice == "factorize":
                found |= dict(zip((pair.a, pair.b), pair.cardinalities, strict=True))
        return found

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

    def mask(self) -> Array:
        """Which dims each block keeps: bool [S, D]."""
        blocks = [block for field in self.fields for block in field.blocks]
        mask = np.zeros((len(blocks), self.dim), dtype=bool)
        for row, block in zip(mask, blocks, strict=True):
            row[list(block.dims)] = True
        return mask

    def active(self) -> Array:
        """What the tower sees: dims that a block of its field keeps, then those of built pairs: bool [F+P, D]."""
        active = np.zeros((len(self.fields), self.dim), dtype=bool)
        np.logical_or.at(active, self.field_of_block(), self.mask())
        return np.concatenate([active, self.pair_inputs(len(self.built), self.pair_dim)])

    def pair_inputs(self, pairs: int, pair_dim: int) -> Array:
        """The inputs of pairs of width `pair_dim` in the interaction space, bool [pairs, D]."""
        return np.broadcast_to(np.arange(self.dim) < pair_dim, (pairs, self.dim))

    def with_mask(self, mask: Array, *, dim: int | None = None) -> Architecture:
        """The same fields and blocks with other kept dims, bool [S, D]; a field that keeps nothing goes.

        SpaceError if no field is left.
        """
        fields, at = [], 0
        for field in self.fields:
            blocks = []
            for block in field.blocks:
                blocks.append(block.model_copy(update={"dims": tuple(np.flatnonzero(mask[at]).tolist())}))
                at += 1
            if any(block.dims for block in blocks):
                fields.append(FieldPlan(name=field.name, cardinality=field.cardinality, blocks=tuple(blocks)))
        if not fields:
            raise SpaceError("an architecture must keep at least one dim, but none is left: raise the budget")
        return Architecture(
            dim=dim or self.dim,
            fields=tuple(fields),
            backbone=self.backbone,
            pairs=self.pairs,
            pair_dim=self.pair_dim,
        )

    def with_choices(self, choices: Sequence[Choice], pair_dim: int) -> Architecture:
        """The same fields with other choices, one for each pair, and that many numbers for each built one."""
        pairs = tuple(
            pair.model_copy(update={"choice": choice}) for pair, choice in zip(self.pairs, choices, strict=True)
        )
        built = any(pair.built for pair in pairs)
        return Architecture.model_validate(
            {**self.model_dump(exclude={"cost"}), "pairs": pairs, "pair_dim": pair_dim if built else 0}
        )

    def narrows(self, parent: Architecture) -> bool:
        """Whether every field, block and kept dim here is one of `parent`'s, and every choice one it left open."""
        before = {pair.name: pair.choice for pair in parent.pairs}
        for pair in self.pairs:
            if pair.choice not in ("naive", before.get(pair.name)) and before.get(pair.name) != "open":
                return False
        if not all(cluster.narrows(parent) for cluster in self.clusters):
            return False
        plans = {field.name: field for field in parent.fields}
        for field in self.fields:
            plan = plans.get(field.name)
            if plan is None or [b.stop for b in plan.blocks] != [b.stop for b in field.blocks]:
                return False
            if any(not set(b.dims) <= set(p.dims) for b, p in zip(field.blocks, plan.blocks, strict=True)):
                return False
        return self.dim <= parent.dim

    def embedding_parameters(self, *, first_order: bool) -> int:
        """Embedding parameters; with `first_order`, one more for each value of a block that keeps a dim.

        A shared table has as many as its rows hold, whatever the fields. Pairs have their own beside. With clusters, it
        is the sum over their models, without the router's own.
        """
        if self.clusters:
            return sum(cluster.embedding_parameters(first_order=first_order) for cluster in self.clusters)
        if self.shared:
            own = self.shared.rows * (self.dim // self.shared.lookups + first_order)
        else:
            own = embedding_parameters(self.mask(), self.block_rows(), first_order=first_order)
        return own + self.pair_parameters()

    def pair_parameters(self) -> int:
        """Embedding parameters of the pairs: those of crossed values, and of the values of factorized columns."""
        crossed = sum(pair.crossed for pair in self.built if pair.choice == "memorize")
        return self.pair_dim * (crossed + sum(self.factors().values()))

    def write(self, path: Path) -> None:
        path.write_text(self.model_dump_json(indent=1))

    @classmethod
    def read(cls, path: Path) -> Architecture:
        """The architecture in a JSON file; BundleError names the file and the rule that it breaks."""
        try:
            return cls.model_validate(json.loads(path.read_text()))
        except OSError as error:
            raise BundleError(f"cannot read the architecture {path}: {error.strerror}") from None
        except (ValueError, ValidationError) as error:
            raise BundleError(f"{path} is no valid architecture: {first_line(error)}") from None


def embedding_parameters(mask: Array, rows: Array, *, first_order: bool) -> int:
    """Embedding parameters of kept dims `mask` bool [S, D] over `rows` int [S] values per block."""
    width = mask.sum(axis=1)
    return int((rows * (width + (first_order & (width > 0)))).sum())


def first_line(error: Exception) -> str:
    """The first rule broken, in one line, of a pydantic or JSON error."""
    if isinstance(error, ValidationError):
        detail = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in detail["loc"]) or "the file"
        return f"{place}: {detail['msg'].removeprefix('Value error, ')}"
    return str(error).splitlines()[0]
