"""The compact click model, built from a schema and an architecture alone; with clusters, one for each of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoembed.architecture import Architecture
from autoembed.data.schema import FeatureSchema, Field, Multi
from autoembed.errors import BundleError, SpaceError
from autoembed.nn.backbones.base import find
from autoembed.nn.embedding import BlockRows, MixedEmbedding, PairEmbedding, SharedEmbedding, pair_columns
from autoembed.nn.ensemble import build_backbone
from autoembed.nn.heads import Heads, heads_of
from autoembed.nn.layers import Narrowable
from autoembed.nn.projected import ProjectedEmbedding
from autoembed.nn.quantised import PackedLinear, load_layers, quantise_layers
from autoembed.nn.quotient import QuotientRemainderEmbedding
from autoembed.nn.router import build_router, fixed
from autoembed.nn.rows import PackedRows, Rows
from autoembed.nn.sparse import SparseEmbedding, SparseRows
from autoembed.plans import Cost, Pool

# The module of each kind of storage: ids int [B, V] -> float [B, F, D (+ 1)].
STORAGES: dict[str, Callable[..., MixedEmbedding | SharedEmbedding | QuotientRemainderEmbedding]] = {
    "mixed": MixedEmbedding,
    "projected": ProjectedEmbedding,
    "sparse": SparseEmbedding,
    "shared": SharedEmbedding,
    "quotient_remainder": QuotientRemainderEmbedding,
}


class ClickModel(nn.Module):
    """What is trained: a module from ids to logits that tells its embedding tables.

    Attributes:
        heads: the towers of auxiliary labels; None without such labels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads: Heads | None = None

    @property
    def auxiliary_labels(self) -> tuple[str, ...]:
        """The labels that it predicts beside the main one."""
        return () if self.heads is None else self.heads.labels

    def all_logits(self, ids_BV: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` gives for ids, and the logits of auxiliary labels [B, L], from one look-up."""
        raise NotImplementedError

    def train_apart(self, labels: Collection[str]) -> None:
        """Trains the towers of these auxiliary labels without moving what they share with the others."""
        if self.heads is not None:
            self.heads.apart = labels

    def embedding_weights(self) -> Sequence[nn.Parameter]:
        """The tables, which the regulariser applies to."""
        raise NotImplementedError

    def weight_parameters(self) -> list[nn.Parameter]:
        """What training moves: all but a search's gates."""
        raise NotImplementedError

    def sparse_gradients(self, sparse: bool) -> None:
        """Whether lookups give their tables sparse gradients."""
        raise NotImplementedError

    def parts(self) -> list[BlockRows]:
        """Where the tables of fields have the rows of each of their blocks."""
        raise NotImplementedError


class Answers:
    """How a compact model of one cluster answers for ids, and the form of it that is exported (`export.serving`).

    B batch, V column, F field, D dim, K member, C class, L auxiliary label.
    """

    columns: Tensor
    all: bool  # whether these are all columns of the schema, in its order
    values: int  # how many of them are of fields; the others are of pairs
    first_order: bool
    several: bool  # whether the backbone gives the logits of an ensemble's members
    embedding: nn.Module
    pairs: nn.Module | None
    backbone: nn.Module
    heads: Heads | None
    training: bool

    def forward(self, ids_BV: Tensor) -> Tensor:
        """Ids int [B, V] in the schema's column order -> logits [B], or [B, C]; of an ensemble in training [B, K]."""
        return self._of_label(*self._inputs(ids_BV))

    def all_logits(self, ids_BV: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` gives, and the logits of auxiliary labels [B, L]."""
        assert self.heads is not None
        e_BFD, first = self._inputs(ids_BV)
        return self._of_label(e_BFD, first), self.heads(e_BFD)

    def _inputs(self, ids_BV: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the backbone reads, as `joined` gives it."""
        ids = ids_BV if self.all else ids_BV.index_select(1, self.columns)
        e_BFD, pairs = self.embedding(ids[:, : self.values]), None
        if self.pairs is not None:
            pairs = self.pairs(ids[:, self.values :])
        return joined(e_BFD, pairs, first_order=self.first_order)

    def _of_label(self, e_BFD: Tensor, first_BF: Tensor | None) -> Tensor:
        logits: Tensor = self.backbone(e_BFD, first_BF)
        return logits.mean(1) if self.several and not self.training else logits


class CTRModel(Answers, ClickModel):
    """Encoded rows -> click logits, with tables, tower inputs and fields as small as the architecture says.

    A `packed` model serves: its tables hold codes where they have fewer than 32 bits, and it cannot be trained.

    BundleError if the schema lacks one of the architecture's fields or has it with another cardinality.
    """

    embedding: MixedEmbedding | SharedEmbedding | QuotientRemainderEmbedding
    pairs: PairEmbedding | None

    def __init__(self, schema: FeatureSchema, architecture: Architecture, *, packed: bool = False) -> None:
        super().__init__()
        known = {field.name: field for field in schema.fields}
        whole = {*architecture.inputs, *(name for name, pool in architecture.factor_pools().items() if pool)}
        for name, field in _read(architecture).items():
            own = known.get(name)
            # Of numbers, pairs read the first column alone.
            longer = own is not None and name in whole and own.length != field.length
            if own is None or own.cardinality != field.cardinality or longer:
                several = f" and {field.length} columns" if field.length > 1 else ""
                raise BundleError(
                    f"field {name!r} must have {field.cardinality} ids{several} as in the architecture, but the schema "
                    f"has {'no such field' if own is None else f'{own.cardinality} and {own.length}'}"
                )
        self.architecture = architecture
        self.first_order = find(str(architecture.backbone["name"])).Backbone.first_order
        self.embedding = STORAGES[architecture.storage.kind](architecture, first_order=self.first_order, packed=packed)
        self.pairs = None
        if architecture.built:
            self.pairs = PairEmbedding(architecture, packed=packed, interpolated=schema.interpolated)
        self.backbone, self.several = build_backbone(architecture), architecture.ensemble is not None
        self.heads = heads_of(architecture.backbone, architecture.active(), architecture.auxiliary_labels)
        if packed:
            quantise_layers(self.backbone, architecture.tower_bits)
            if self.heads is not None:
                quantise_layers(self.heads, architecture.tower_bits)
        columns = schema.columns(architecture.inputs) + pair_columns(schema, architecture)
        self.values = sum(architecture.lengths)
        self.all = columns == list(range(sum(schema.lengths)))
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.int32), persistent=False)

    def embed(self, ids_BV: Tensor) -> Tensor:
        """Ids int [B, V] in the schema's column order -> the fields' embeddings, float [B, F, D (+ 1)]."""
        out: Tensor = self.embedding(ids_BV.index_select(1, self.columns)[:, : self.values])
        return out

    def embedding_weights(self) -> list[nn.Parameter]:
        """The parameters that the embedding regulariser applies to."""
        return [rows.weight for rows in self.tables() if isinstance(rows, Rows)]

    def tables(self) -> list[nn.Module]:
        """The tables of fields, then of pairs: `Rows` that can be trained, or `PackedRows`."""
        return [*self.embedding.tables, *(self.pairs.tables if self.pairs is not None else [])]

    def slots(self) -> list[Tensor]:
        """For each table, the slot of each of its rows, int [rows]: as long as the tables, made when asked for."""
        return [*self.embedding.slot_of_row(), *(self.pairs.slot_of_row() if self.pairs is not None else [])]

    def weight_parameters(self) -> list[nn.Parameter]:
        """What training moves: all."""
        return list(self.parameters())

    def sparse_gradients(self, sparse: bool) -> None:
        """Whether lookups give the tables sparse gradients."""
        for rows in self.tables():
            if isinstance(rows, Rows):
                rows.sparse = sparse

    def parts(self) -> list[BlockRows]:
        """Where the tables of fields have the rows of each block that keeps a dim; SpaceError if values share rows."""
        if not isinstance(self.embedding, MixedEmbedding):
            raise SpaceError(
                f"values share rows under {self.architecture.storage.kind} storage, and a function of a number gives "
                "rows of its own: set data.numeric_embedding to bins, piecewise or linear, or leave that method out"
            )
        return list(self.embedding.parts(self.architecture))


class RoutedModel(ClickModel):
    """A compact model for each cluster, and a router that tells which one answers for a row.

    Their weights are disjoint, so one training on the pooled loss trains each of them on its own rows, and the logits
    of all rows are of one scale.
    """

    def __init__(self, schema: FeatureSchema, architecture: Architecture, *, packed: bool = False) -> None:
        super().__init__()
        assert architecture.router is not None
        if architecture.auxiliary_labels:
            raise SpaceError(
                "data.auxiliary_labels does not go with a model for each cluster or member: leave one of them out"
            )
        for field in architecture.router.fields:
            if field.name not in schema.names or schema.fields[schema.index(field.name)].cardinality < field.rows:
                raise BundleError(f"the router's field {field.name!r} must have {field.rows} ids in the schema")
        self.architecture = architecture
        self.clusters = nn.ModuleList(CTRModel(schema, cluster, packed=packed) for cluster in architecture.clusters)
        self.router = build_router(schema, architecture.router, len(self.clusters))
        self.calibration: nn.Parameter | None = None
        if architecture.router.calibrate:
            self.calibration = fixed(2, len(self.clusters))
            self.calibration.data[0] = 1

    @property
    def models(self) -> list[CTRModel]:
        return cast(list[CTRModel], list(self.clusters))

    def forward(self, ids_BV: Tensor) -> Tensor:
        """Ids int [B, V] in the schema's column order -> logits [B]; of an ensemble in training, [B, K]."""
        if self.router is None:
            logits = torch.stack([model(ids_BV) for model in self.clusters], dim=1)
            return logits if self.training else logits.mean(1)
        cluster = self.router(ids_BV)
        logits = torch.zeros(len(ids_BV), device=ids_BV.device)
        for number, model in enumerate(self.clusters):
            rows = torch.nonzero(cluster == number).squeeze(1)
            if len(rows):
                # Batch norm cannot train on a single row, which is scored as in prediction.
                model.train(self.training and len(rows) > 1)
                logits = logits.index_put((rows,), model(ids_BV.index_select(0, rows)).float())
        if self.calibration is not None:
            scale, shift = self.calibration[:, cluster]
            logits = logits * scale + shift
        return logits

    def embedding_weights(self) -> list[nn.Parameter]:
        """The tables of every model, then the router's, which no training moves."""
        own = [table for model in self.models for table in model.embedding_weights()]
        return own + (self.router.tables() if self.router is not None else [])

    def weight_parameters(self) -> list[nn.Parameter]:
        """What training moves: the models."""
        return list(self.clusters.parameters())

    def sparse_gradients(self, sparse: bool) -> None:
        """Whether lookups give the models' tables sparse gradients."""
        for model in self.models:
            model.sparse_gradients(sparse)

    def parts(self) -> list[BlockRows]:
        """Where the models' tables have the rows of each block that keeps a dim."""
        return [replace(part, member=number) for number, model in enumerate(self.models) for part in model.parts()]


Model = CTRModel | RoutedModel


def build_model(schema: FeatureSchema, architecture: Architecture, *, packed: bool = False) -> Model:
    """The compact model of an architecture, with fresh weights; `packed` to load what was stored."""
    kind = RoutedModel if architecture.clusters else CTRModel
    return kind(schema, architecture, packed=packed)


def members(model: Model) -> list[CTRModel]:
    """The model itself, or the models of its clusters."""
    return model.models if isinstance(model, RoutedModel) else [model]


def has_few_bits(model: Model) -> bool:
    """Whether any table has numbers of fewer than 32 bits."""
    tables = [rows for member in members(model) for rows in member.tables()]
    return any(isinstance(rows, PackedRows) or (isinstance(rows, Rows) and rows.bits < 32) for rows in tables)


def keep_as(model: Model, like: Model | None) -> None:
    """A fresh model of a sparse architecture keeps the entries that another model of it keeps; others are as they are.

    BundleError if it has single entries and there is no other model.
    """
    for number, member in enumerate(members(model)):
        if isinstance(member.embedding, SparseEmbedding):
            other = None if like is None else members(like)[number].embedding
            if not isinstance(other, SparseEmbedding):
                raise BundleError(
                    "the architecture keeps single entries, but not which: train it from the trial's model"
                )
            member.embedding.keep_as(other)


def start_rounding(model: Model) -> None:
    """From here on the model looks up rounded numbers where its architecture has few bits."""
    for member in members(model):
        for rows, slot in zip(member.tables(), member.slots(), strict=True):
            if isinstance(rows, Rows):
                rows.start_rounding(slot)


def rounds_layers(model: Model) -> bool:
    """Whether packing rounds the weights of linear layers."""
    return any(member.architecture.tower_bits < 32 for member in members(model))


@torch.no_grad()
def pack(model: Model, schema: FeatureSchema) -> Model:
    """The same model with packed tables and layers; itself where every number has 32 bits."""
    sparse = any(isinstance(rows, SparseRows) for member in members(model) for rows in member.tables())
    if not (sparse or has_few_bits(model) or rounds_layers(model)):
        return model
    packed = build_model(schema, model.architecture, packed=True).to(next(model.parameters()).device)
    for member, own in zip(members(packed), members(model), strict=True):
        for rows, slot, into in zip(own.tables(), own.slots(), member.tables(), strict=True):
            if isinstance(rows, Rows) and isinstance(into, PackedRows):
                rows.pack_into(into, slot)
            else:
                into.load_state_dict(rows.state_dict())
    state, done = packed.state_dict(), load_layers(packed, model)
    for name, tensor in model.state_dict().items():
        if ".tables." not in name and name not in done:
            state[name].copy_(tensor)
    return packed.train(model.training)


def joined(e_BFD: Tensor, pairs_BPE: Tensor | None, *, first_order: bool) -> tuple[Tensor, Tensor | None]:
    """What a backbone reads of the embeddings of fields [B, F, D (+ 1)] and the inputs of pairs [B, P, E <= D].

    Embeddings of fields and pairs [B, F + P, D], and first-order weights [B, F], if there are such.
    """
    first = None
    if first_order:
        e_BFD, first = e_BFD[..., :-1], e_BFD[..., -1]
    if pairs_BPE is not None:
        wide = functional.pad(pairs_BPE, (0, e_BFD.shape[2] - pairs_BPE.shape[2]))
        e_BFD = torch.cat([e_BFD, wide], dim=1)
    return e_BFD, first


def _read(architecture: Architecture) -> dict[str, Field]:
    """The fields that a model reads, as far as it knows them."""

    def known(name: str, cardinality: int, pool: Pool | None = None) -> Field:
        if pool is not None and pool.by == "knots":
            return Field(name=name, cardinality=cardinality, interpolation="piecewise")
        return Field(name=name, cardinality=cardinality, multi=None if pool is None else Multi(length=pool.length))

    if architecture.router:
        routed = [(one, field.rows) for field in architecture.router.fields for one in field.inputs]
        read = {one.name: known(one.name, rows, one.pool) for one, rows in routed}
        for cluster in architecture.clusters:
            read |= _read(cluster)
        return read
    sizes = {pair.name: pair.crossed for pair in architecture.built if pair.choice == "memorize"}
    inputs = [(one, field.cardinality) for field in architecture.fields for one in field.inputs]
    fields = {one.name: known(one.name, size, one.pool) for one, size in inputs}
    pools = architecture.factor_pools()
    return {
        name: known(name, size, pools.get(name)) for name, size in (sizes | architecture.factors()).items()
    } | fields


def inherit(source: nn.Module, target: nn.Module, fields: Sequence[int]) -> None:
    """Copies a backbone's weights into a narrower one; `fields` gives the source's field of each target field.

    Pairs are fields behind the others here.
    """
    state = source.state_dict()
    narrow = {name: module for name, module in target.named_modules() if isinstance(module, Narrowable)}
    for name, module in narrow.items():
        module.inherit(source.get_submodule(name), fields)
    with torch.no_grad():
        for name, tensor in target.state_dict().items():
            if not any(name.startswith(f"{prefix}.") for prefix in narrow):
                tensor.copy_(state[name])


def cost_of(architecture: Architecture) -> Cost:
    """Parameters and bytes of the compact model, index buffers included, without allocating it."""
    schema = FeatureSchema(fields=tuple(_read(architecture).values()), label="")
    with torch.device("meta"):
        model = build_model(schema, architecture, packed=True)
    return measure(model)


def measure(model: Model) -> Cost:
    """Parameters and bytes of the tensors that a model really holds, packed or with 32 bits everywhere."""
    tables = [module for module in model.modules() if isinstance(module, Rows | PackedRows)]
    router = model.router.tables() if isinstance(model, RoutedModel) and model.router is not None else []
    held = [tensor for rows in tables for tensor in (*rows.parameters(), *rows.buffers())]
    inside = {id(tensor) for tensor in (*held, *router)}
    layers = [layer for layer in model.modules() if isinstance(layer, PackedLinear)]
    return Cost(
        embedding_parameters=sum(rows.entries for rows in tables) + sum(table.numel() for table in router),
        dense_parameters=sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in inside)
        + sum(layer.entries for layer in layers),
        bytes=_bytes([*model.parameters(), *model.buffers()]),
        embedding_bytes=_bytes([*held, *router]),
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
