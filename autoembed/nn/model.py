"""The compact click model, built from a schema and an architecture alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from autoembed.architecture import Architecture, Cost
from autoembed.data.schema import FeatureSchema, Field
from autoembed.errors import BundleError
from autoembed.nn.backbones.base import build, find
from autoembed.nn.embedding import MixedEmbedding, SharedEmbedding
from autoembed.nn.layers import Narrowable


class CTRModel(nn.Module):
    """Encoded rows -> click logits, with tables, tower inputs and fields as small as the architecture says.

    BundleError if the schema lacks one of the architecture's fields or has it with another cardinality.
    """

    columns: Tensor

    def __init__(self, schema: FeatureSchema, architecture: Architecture) -> None:
        super().__init__()
        cardinality = dict(zip(schema.names, schema.cardinalities, strict=True))
        for field in architecture.fields:
            if cardinality.get(field.name) != field.cardinality:
                raise BundleError(
                    f"field {field.name!r} must have {field.cardinality} ids as in the architecture, "
                    f"but the schema has {cardinality.get(field.name, 'no such field')}"
                )
        self.architecture = architecture
        self.first_order = find(str(architecture.backbone["name"])).Backbone.first_order
        kind = SharedEmbedding if architecture.shared else MixedEmbedding
        self.embedding = kind(architecture, first_order=self.first_order)
        self.backbone = build(architecture.backbone, architecture.active())
        columns = [schema.index(name) for name in architecture.names]
        self.all = columns == list(range(len(schema.fields)))
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.int32), persistent=False)

    def forward(self, ids_BF: Tensor) -> Tensor:
        """Ids int [B, F] in the schema's column order -> logits [B]."""
        e = self.embedding(ids_BF if self.all else ids_BF.index_select(1, self.columns))
        if self.first_order:
            out: Tensor = self.backbone(e[..., :-1], e[..., -1])
        else:
            out = self.backbone(e, None)
        return out

    def embedding_weights(self) -> list[nn.Parameter]:
        """The parameters that the embedding regulariser applies to."""
        return list(self.embedding.tables)

    def sparse_gradients(self, sparse: bool) -> None:
        """Whether lookups give the tables sparse gradients."""
        self.embedding.sparse = sparse


def inherit(source: nn.Module, target: nn.Module, fields: Sequence[int]) -> None:
    """Copies a backbone's weights into a narrower one; `fields` gives the source's field of each target field."""
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
        fields=tuple(Field(name=field.name, cardinality=field.cardinality) for field in architecture.fields), label=""
    )
    with torch.device("meta"):
        model = CTRModel(schema, architecture)
    return measure(model)


def measure(model: CTRModel) -> Cost:
    """Parameters and bytes of the tensors that a model really holds."""
    embedding = sum(parameter.numel() for parameter in model.embedding.parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    tensors = [*model.parameters(), *model.buffers()]
    return Cost(
        embedding_parameters=embedding,
        dense_parameters=total - embedding,
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    )
