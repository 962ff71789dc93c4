"""Routers: which cluster's model answers for a row (iHAS, CIKM 2023, arXiv 2309.07967, third stage).

A router is fitted by a search and then fixed: its tensors are no weights that training moves, but they are parameters
of the model, stored with it and counted. K clusters.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoembed.data.schema import FeatureSchema
from autoembed.nn.embedding import PRIME, starts
from autoembed.nn.pooling import pooling_of
from autoembed.plans import RouterPlan


def fixed(*shape: int) -> nn.Parameter:
    """A tensor that is stored and counted, and that training does not move."""
    return nn.Parameter(torch.zeros(*shape), requires_grad=False)


class Router(nn.Module):
    """Base of the routers: `forward` takes ids int [B, V] in the schema's column order to clusters int64 [B]."""

    columns: Tensor
    offsets: Tensor

    def __init__(self, schema: FeatureSchema, plan: RouterPlan, clusters: int) -> None:
        super().__init__()
        self.plan, self.clusters = plan, clusters
        sizes = [field.rows for field in plan.fields]
        self.rows = sum(sizes)
        inputs = [one.name for field in plan.fields for one in field.inputs]
        columns = schema.columns(inputs)
        offsets = np.repeat(starts(sizes), [field.columns for field in plan.fields])
        for name, values in (("columns", columns), ("offsets", offsets), ("sizes", sizes)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.int32), persistent=False)

    def tables(self) -> list[nn.Parameter]:
        """What it holds for each value of its fields."""
        return []

    def forward(self, ids_BV: Tensor) -> Tensor:
        raise NotImplementedError


class TableRouter(Router):
    """An additive table over raw ids: the cluster with the largest bias + sum of its values' scores.

    It is distilled from another router, and small, since it reads few fields and the frequent values of each.
    """

    sizes: Tensor

    def __init__(self, schema: FeatureSchema, plan: RouterPlan, clusters: int) -> None:
        super().__init__(schema, plan, clusters)
        self.score, self.bias = fixed(self.rows, clusters), fixed(clusters)

    def tables(self) -> list[nn.Parameter]:
        return [self.score]

    def scores(self, ids_BV: Tensor) -> Tensor:
        """Ids int [B, V] -> float [B, K]."""
        ids = ids_BV.index_select(1, self.columns)
        ids = torch.where(ids < self.sizes, ids, 0)
        out: Tensor = functional.embedding(ids + self.offsets, self.score).sum(1) + self.bias
        return out

    def forward(self, ids_BV: Tensor) -> Tensor:
        return self.scores(ids_BV).argmax(1)


class Gates(nn.Module):
    """The logits of instance-wise gates, from a linear map of normalised embeddings: [B, F, D] -> [B, F, D].

    The map sees all fields together ("all"), or each field's gates see that field only ("field").
    """

    def __init__(self, fields: int, dim: int, kind: str, start: float = 0.0) -> None:
        super().__init__()
        self.kind = kind
        shape = (fields * dim, fields * dim) if kind == "all" else (fields, dim, dim)
        self.weight = nn.Parameter(torch.zeros(*shape))
        self.bias = nn.Parameter(torch.full((fields, dim), start))

    def forward(self, e_BFD: Tensor) -> Tensor:
        # Embeddings start near 0 and grow: without the norm, the map would see next to nothing for epochs.
        if self.kind == "all":
            x = functional.layer_norm(e_BFD, e_BFD.shape[1:])
            return (x.flatten(1) @ self.weight).view_as(e_BFD) + self.bias
        x = functional.layer_norm(e_BFD, e_BFD.shape[2:])
        return torch.einsum("bfd,fde->bfe", x, self.weight) + self.bias


class CentroidRouter(Router):
    """The search's own way: the nearest centroid to a row's gates or embeddings. It holds a whole embedding table.

    Entries that are 0 in the table are closed for good.
    """

    def __init__(self, schema: FeatureSchema, plan: RouterPlan, clusters: int) -> None:
        super().__init__(schema, plan, clusters)
        fields = sum(len(field.inputs) for field in plan.fields)
        self.weight, self.centroids = fixed(self.rows, plan.dim), fixed(clusters, fields * plan.dim)
        self.gates = None if plan.space == "embedding" else Gates(fields, plan.dim, plan.gate).requires_grad_(False)
        self.pool = pooling_of(plan.fields, plan.dim)

    def tables(self) -> list[nn.Parameter]:
        return [self.weight]

    def features(self, ids_BV: Tensor) -> Tensor:
        """Ids int [B, V] -> what the centroids are of, float [B, fields * D]."""
        ids = ids_BV.index_select(1, self.columns)
        if self.pool is None:
            e = functional.embedding(ids + self.offsets, self.weight)
        else:
            e = self.pool(functional.embedding(self.pool.ids(ids) + self.offsets, self.weight), ids)
        if self.gates is not None:
            open_ = (self.gates(e) > 0) & (e != 0)
            e = open_.float() if self.plan.space == "mask" else e * open_
        return e.flatten(1)

    def forward(self, ids_BV: Tensor) -> Tensor:
        x = self.features(ids_BV)
        return (x @ self.centroids.T - self.centroids.square().sum(1) / 2).argmax(1)


class HashRouter(Router):
    """A cluster drawn by a hash of a row's ids (Carter and Wegman's universal hashing), for a control."""

    factor: Tensor

    def __init__(self, schema: FeatureSchema, plan: RouterPlan, clusters: int) -> None:
        super().__init__(schema, plan, clusters)
        factor = np.random.default_rng(plan.seed).integers(1, PRIME, len(plan.fields))
        self.register_buffer("factor", torch.tensor(factor), persistent=False)

    def forward(self, ids_BV: Tensor) -> Tensor:
        hashed = (ids_BV.index_select(1, self.columns).long() + 1) * self.factor % PRIME
        return hashed.sum(1) % PRIME % self.clusters


KINDS: dict[str, type[Router]] = {"table": TableRouter, "centroid": CentroidRouter, "hash": HashRouter}


def build_router(schema: FeatureSchema, plan: RouterPlan, clusters: int) -> Router | None:
    """The router of a plan; none where every model answers for every row."""
    return None if plan.kind == "all" else KINDS[plan.kind](schema, plan, clusters)
