"""The compact click model, built from a schema and an architecture alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoembed.architecture import Architecture, Cost
from autoembed.data.schema import FeatureSchema, Field
from autoembed.errors import BundleError
from autoembed.nn.backbones.base import build, find
from autoembed.nn.embedding import MixedEmbedding, PairEmbedding, SharedEmbedding
from autoembed.nn.layers import Narrowable


class CTRModel(nn.Module):
    """Encoded rows -> click logits, with tables, tower inputs and fields as small as the architecture says.

    BundleError if the schema lacks one of the architecture's fields or has it with another cardinality.
    """

    columns: Tensor

    def __init__(self, schema: FeatureSchema, architecture: Architecture) -> None:
        super().__init__()
        cardinality = dict(zip(schema.names, schema.cardinalities, strict=True))
        for name, size in _sizes(architecture).items():
            if cardinality.get(name) != size:
                raise BundleError(
                    f"field {name!r} must have {size} ids as in the architecture, "
                    f"but the schema has {cardinality.get(name, 'no such field')}"
                )
        self.architecture = architecture
        self.first_order = find(str(architecture.backbone["name"])).Backbone.first_order
        kind = SharedEmbedding if architecture.shared else MixedEmbedding
        self.embedding = kind(architecture, first_order=self.first_order)
        self.pairs = PairEmbedding(architecture) if architecture.built else None
        self.backbone = build(architecture.backbone, architecture.active(), pairs=len(architecture.built))
        columns = [schema.index(name) for name in architecture.columns]
        self.all = columns == list(range(len(schema.fields)))
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.int32), persistent=False)

    def forward(self, ids_BF: Tensor) -> Tensor:
        """Ids int [B, F] in the schema's column order -> logits [B]."""
        ids = ids_BF if self.all else ids_BF.index_select(1, self.columns)
        fields = len(self.architecture.fields)
        e_BFD, pairs = self.embedding(ids[:, :fields]), None
        if self.pairs is not None:
            pairs = self.pairs(ids[:, fields:])
        return apply(self.backbone, e_BFD, pairs, first_order=self.first_order)

    def embedding_weights(self) -> list[nn.Parameter]:
        """The parameters that the embedding regulariser applies to."""
        return [*self.embedding.tables, *(self.pairs.tables if self.pairs is not None else [])]

    def weight_parameters(self) -> list[nn.Parameter]:
        """What training moves: all."""
        return list(self.parameters())

    def sparse_gradients(self, sparse: bool) -> None:
        """Whether lookups give the tables sparse gradients."""
        self.embedding.sparse = sparse
        if self.pairs is not None:
            self.pairs.sparse = sparse


def apply(backbone: nn.Module, e_BFD: Tensor, pairs_BPE: Tensor | None, *, first_order: bool) -> Tensor:
    """A backbone on the embeddings of fields [B, F, D (+ 1)] and the inputs of pairs [B, P, E <= D]: logits [B]."""
    first = None
    if first_order:
        e_BFD, first = e_BFD[..., :-1], e_BFD[..., -1]
    if pairs_BPE is not None:
        wide = functional.pad(pairs_BPE, (0, e_BFD.shape[2] - pairs_BPE.shape[2]))
        e_BFD = torch.cat([e_BFD, wide], dim=1)
    out: Tensor = backbone(e_BFD, first)
    return out


def _sizes(architecture: Architecture) -> dict[str, int]:
    """The ids of each column that a model reads."""
    sizes = {field.name: field.cardinality for field in architecture.fields}
    sizes |= {pair.name: pair.crossed for pair in architecture.built if pair.choice == "memorize"}
    return sizes | architecture.factors()


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
    schema = FeatureSchema(
        fields=tuple(Field(name=name, cardinality=size) for name, size in _sizes(architecture).items()), label=""
    )
    with torch.device("meta"):
        model = CTRModel(schema, architecture)
    return measure(model)


def measure(model: CTRModel) -> Cost:
    """Parameters and bytes of the tensors that a model really holds."""
    embedding = sum(parameter.numel() for parameter in model.embedding_weights())
    total = sum(parameter.numel() for parameter in model.parameters())
    tensors = [*model.parameters(), *model.buffers()]
    return Cost(
        embedding_parameters=embedding,
        dense_parameters=total - embedding,
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    )
