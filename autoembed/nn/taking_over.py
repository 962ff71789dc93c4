"""Weights that one compact model takes over from another: of single fields, or of a narrower model from a wider one."""

from __future__ import annotations

import torch
from torch import Tensor

from autoembed.data.schema import PAD
from autoembed.nn.embedding import MixedEmbedding, starts
from autoembed.nn.model import CTRModel, Model, inherit
from autoembed.plans import FieldPlan

_CHUNK = 4096  # ids that are looked up at a time


@torch.no_grad()
def looked_up(model: CTRModel, name: str, ids: Tensor) -> Tensor:
    """What a field's own ids int32 [N, columns of the field] are looked up as, alone: float [N, D (+ 1)]."""
    inputs = [one for field in model.architecture.fields for one in field.inputs]
    columns, place = starts([one.length for one in inputs]), model.architecture.inputs.index(name)
    found = []
    for part in torch.split(ids, _CHUNK):
        every = torch.full((len(part), sum(model.architecture.lengths)), PAD, dtype=torch.int32, device=part.device)
        every[:, columns] = 0
        every[:, columns[place] : columns[place] + part.shape[1]] = part
        found.append(model.embedding(every)[:, place])
    return torch.cat(found)


def take_over(model: Model, wide: Model) -> bool:
    """Copies the weights of a wider model into one that keeps some of its dims and fields; whether that could be done.

    It could not where one of them has clusters, pairs, members, layers of few bits or rows that are not `mixed`, nor
    where the wide model lacks a field or dim, or has another tower.
    """
    own, theirs = model.architecture, wide.architecture
    if not isinstance(model, CTRModel) or not isinstance(wide, CTRModel) or own.backbone != theirs.backbone:
        return False
    if not isinstance(model.embedding, MixedEmbedding) or not isinstance(wide.embedding, MixedEmbedding):
        return False
    if any(one.built or one.ensemble or one.tower_bits < 32 for one in (own, theirs)):
        return False
    if own.auxiliary_labels != theirs.auxiliary_labels:
        return False
    known = {field.name: field for field in theirs.fields}
    if not all(field.name in known and _is_part(field, known[field.name]) for field in own.fields):
        return False
    device = next(wide.parameters()).device
    dense = {}
    for number, field in enumerate(own.fields):
        ids = torch.full((field.cardinality, field.length), PAD, dtype=torch.int32, device=device)
        ids[:, 0] = torch.arange(field.cardinality)
        dense[number] = looked_up(wide, field.name, ids)
    model.embedding.load_dense(dense, own)
    places = [theirs.inputs.index(name) for name in own.inputs]
    inherit(wide.backbone, model.backbone, places)
    if wide.heads is not None and model.heads is not None:
        inherit(wide.heads, model.heads, places)
    return True


def _is_part(field: FieldPlan, wide: FieldPlan) -> bool:
    """Whether the same columns have the same blocks, and no dim that the wide field has not."""
    if [(one.name, one.pool) for one in field.inputs] != [(one.name, one.pool) for one in wide.inputs]:
        return False
    same = [block.stop for block in field.blocks] == [block.stop for block in wide.blocks]
    return same and all(set(a.dims) <= set(b.dims) for a, b in zip(field.blocks, wide.blocks, strict=True))
