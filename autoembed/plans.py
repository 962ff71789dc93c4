"""The parts of an architecture: what fields and pairs of columns store, and how rows are routed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from autoembed.data.strict import with_new_names

BlockCut = Literal["geometric", "equal"]
Choice = Literal["open", "memorize", "factorize", "naive"]
Bits = Literal[32, 16, 8, 4, 3, 2, 1]
TowerBits = Literal[32, 16, 8]
BITS: tuple[Bits, ...] = (32, 16, 8, 4, 3, 2, 1)
Pooling = Literal["mean", "sum", "max", "attention"]


class Frozen(BaseModel):
    """Base of all parts: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Block(Frozen):
    """Ids up to but without `stop` (the previous block's stop is the first), the dims that they keep, and their bits.

    `level` is the frequency block over all fields that the values belong to, 0 the most frequent. `bits` is how many
    each kept number is stored in, and 0 where no dim is kept. Under sparse storage, `entries` is how many single
    numbers at these dims the values keep together; which ones, the model knows.
    """

    stop: int
    level: int
    dims: tuple[int, ...]
    bits: Literal[32, 16, 8, 4, 3, 2, 1, 0]
    entries: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _default_bits(cls, node: object) -> object:
        if isinstance(node, dict) and "bits" not in node:  # version 1 stored 32 bits everywhere
            return {**node, "bits": 32 if node.get("dims") else 0}
        return node

    @model_validator(mode="after")
    def _bits_go_with_dims(self) -> Block:
        if bool(self.dims) != bool(self.bits):
            raise ValueError(f"bits must be 0 if and only if no dim is kept, but got {self.bits=} {self.dims=}")
        return self


class Pool(Frozen):
    """How the embeddings of a field's values, at most `length` of them, become one.

    By "knots" is of a number: the sum of two, each times its share, which its code holds (`data.knots`).
    """

    length: int = Field(ge=1)
    by: Pooling | Literal["knots"] = "mean"


class Input(Frozen):
    """A field's embedding as a backbone sees it; `pool` is there, and stored, where one value does not make it."""

    name: str
    pool: Pool | None = None

    @property
    def interpolated(self) -> bool:
        """Whether it is of numbers between knots."""
        return self.pool is not None and self.pool.by == "knots"

    @property
    def length(self) -> int:
        """How many columns of the encoded table it is read from."""
        return self.pool.length if self.pool else 1

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        node: dict[str, Any] = handler(self)
        for key in ("pool", "readers"):
            if not node.get(key, True):
                del node[key]
        return node


class TableInputs(Input):
    """A field, and its `readers`: other fields that look their values up in its table."""

    readers: tuple[Input, ...] = ()

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Its own input of the backbone, then its readers'."""
        return (self, *self.readers)

    @property
    def columns(self) -> int:
        """How many columns of the encoded table are looked up in its table."""
        return sum(one.length for one in self.inputs)


class FieldPlan(TableInputs):
    """One field: its blocks cover the ids 0..cardinality-1 in order, frequent values first."""

    cardinality: int
    blocks: tuple[Block, ...]

    @property
    def entries(self) -> int:
        """Entries that its values keep in total, first-order weights left out."""
        starts = [0, *(block.stop for block in self.blocks[:-1])]
        return sum(
            (block.stop - start) * len(block.dims) if block.entries is None else block.entries
            for block, start in zip(self.blocks, starts, strict=True)
        )

    @model_validator(mode="after")
    def _blocks_cover_the_ids(self) -> FieldPlan:
        stops = [0, *(block.stop for block in self.blocks)]
        if any(a >= b for a, b in pairwise(stops)) or stops[-1] != self.cardinality:
            raise ValueError(f"block stops of {self.name!r} must rise to {self.cardinality}, but got {stops[1:]}")
        return self


class PairPlan(Frozen):
    """A pair of columns and what is done with it (OptInter, ICDE 2022, arXiv 2108.01265, sec. 3).

    memorize: an embedding for each of the `crossed` ids of the crossed column `name`, which stand for the `distinct`
    pairs of ids that train holds. factorize: the product of one embedding for each of its two columns, of
    `cardinalities` ids. naive: nothing. open: nothing yet, a search may choose.

    `pools` say how the values of columns that hold several become one in a product. Such a pair has no crossed ids and
    cannot be memorized.
    """

    a: str
    b: str
    name: str
    cardinalities: tuple[int, int]
    crossed: int
    distinct: int = 0
    choice: Choice
    pools: tuple[Pool | None, Pool | None] = (None, None)

    @model_validator(mode="after")
    def _memorizes_crossed_ids(self) -> PairPlan:
        if self.choice == "memorize" and not self.crossed:
            raise ValueError(f"a pair must have crossed ids to be memorized, but {self.name!r} has none")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        node: dict[str, Any] = handler(self)
        if self.pools == (None, None):
            del node["pools"]
        return node

    @property
    def built(self) -> bool:
        """Whether a model has an input for it."""
        return self.choice in ("memorize", "factorize")


class RouterField(TableInputs):
    """A field that a router reads: its ids from `rows` on, the rarer ones, count as id 0."""

    rows: int = Field(ge=1)


class RouterPlan(Frozen):
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


class Ensemble(Frozen):
    """So many models whose logits are averaged, and what they share (TabM, arXiv 2410.24210).

    none: nothing; an architecture has them as `clusters` under a router of kind "all". tables: the embedding tables.
    all: tables and one backbone, but for rank-1 adapters, batch norms and output heads of each member's own.
    """

    members: int = Field(default=1, ge=1, le=64)
    share: Literal["all", "tables", "none"] = "all"


class TowerOptions(Frozen):
    """What is done about the bytes of a backbone's linear layers.

    `bits` is what their weights are served in. With `units: search`, hidden layers may get fewer units where a limit on
    the whole model's bytes is better spent on embeddings.
    """

    bits: TowerBits = 32
    units: Literal["fixed", "search"] = "fixed"

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, values: object) -> object:
        return with_new_names(values, {"widths": "units"})


class Cost(Frozen):
    """What a compact model holds in memory.

    `embedding_parameters` counts the stored entries whatever their bits, `embedding_bytes` what these take with their
    steps, and `bytes` the whole model, index buffers included.
    """

    embedding_parameters: int
    dense_parameters: int
    bytes: int
    embedding_bytes: int

    @model_validator(mode="before")
    @classmethod
    def _version_1_had_32_bits(cls, node: object) -> object:
        if (
            isinstance(node, dict)
            and "embedding_bytes" not in node
            and isinstance(node.get("embedding_parameters"), int)
        ):
            return {**node, "embedding_bytes": 4 * node["embedding_parameters"]}
        return node

    @property
    def parameters(self) -> int:
        return self.embedding_parameters + self.dense_parameters
