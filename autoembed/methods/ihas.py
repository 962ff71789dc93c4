"""iHAS: instance-wise gates, clusters of rows, a compact model for each (CIKM 2023, arXiv 2309.07967).

Three stages, as in the paper. Search: a Bernoulli gate for each row, field and dim decides whether the entry of the
row's embedding gets through; the gates' logits are a map of the embeddings. Cluster: k-means puts rows together whose
gates are alike. Retrain: a compact model for each cluster, with the dims that its rows' gates leave open.

No code of the authors is known and the text leaves details open: this is a reconstruction, and what is uncertain is an
option. Ours by measurement, with the paper's as we read it in brackets: the map sees all fields (`gate: field`), since
a gate that sees its own field only cannot close it for the rows of one population; k-means sees the gates
(`cluster_on: masked`, the gated embeddings), whose spread is none of the embeddings' size; and at prediction a small
table of raw ids, distilled from the nearest centroid, finds the cluster (`router: centroid`), for the centroids need a
whole embedding table. Clusters are those of the router that serves, from the masks on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from autoembed.architecture import Architecture
from autoembed.budget import select
from autoembed.data.dataset import Dataset
from autoembed.data.schema import FeatureSchema
from autoembed.errors import SpaceError
from autoembed.methods import supernet
from autoembed.methods.method import GateConfig
from autoembed.nn.model import Model, RoutedModel
from autoembed.nn.router import CentroidRouter, Gates, HashRouter, Router, TableRouter
from autoembed.plans import RouterField, RouterPlan
from autoembed.ranking.scores import score
from autoembed.shuffle import Shuffle
from autoembed.training import Adam
from autoembed.types import Array

_CHUNK = 8192
_UNDECIDED = (0.1, 0.9)
_GAIN = 0.005  # of agreement, for one more field in the router's table


class Config(GateConfig):
    """Options.

    Search: `start` is the logit at which gates start; `sampling` passes a gate's 0 or 1 on with the gradient of its
    Concrete relaxation ("hard") or the relaxation ("soft"), at a temperature that falls from 1 to `temperature_floor`;
    `polarise` weighs the regulariser and `sparsity` the part of it that closes gates.

    Clusters: `clusters` of them by k-means, fitted on `sample` train rows; one with less than `min_share` of them
    joins the others. Without a budget a cluster keeps the dims that are open for `theta` of its rows.

    Router: the table reads at most `router_fields` fields, and `router_rows` ids of each. `calibrate` fits a scale and
    a shift of each cluster's logits on valid.
    """

    PAPER: ClassVar[Mapping[str, object]] = {"gate": "field", "cluster_on": "masked", "router": "centroid"}

    method: str = "ihas"
    warm_epochs: int = Field(default=1, ge=0)
    epochs: int = Field(default=3, ge=0)
    update: Literal["embedding", "all", "joint"] = "joint"
    arch_lr: float = Field(default=1e-2, gt=0)
    gate: Literal["all", "field"] = "all"
    sampling: Literal["hard", "soft"] = "hard"
    start: float = 2.0
    temperature_floor: float = Field(default=0.1, gt=0, le=1)
    polarise: float = Field(default=1e-2, ge=0)
    sparsity: float = Field(default=1.0, ge=0)
    clusters: int = Field(default=2, ge=1, le=64)
    cluster_on: Literal["mask", "masked", "embedding", "random"] = "mask"
    theta: float = Field(default=0.5, gt=0, le=1)
    min_share: float = Field(default=0.05, ge=0, lt=0.5)
    sample: int = Field(default=50_000, ge=100)
    router: Literal["table", "centroid"] = "table"
    router_fields: int = Field(default=4, ge=1)
    router_rows: int = Field(default=1000, ge=1)
    calibrate: bool = False


class Supernet(supernet.Supernet):
    """A full-width model with gates of every row's own."""

    plain_warm_start = True

    makes_clusters = True

    def __init__(
        self, schema: FeatureSchema, parent: Architecture, config: Config, counts: Sequence[Array], seed: int
    ) -> None:
        super().__init__(schema, parent, config, counts, seed)
        self.map = Gates(len(parent.inputs), parent.dim, config.gate, config.start)
        self.optimiser: torch.optim.Optimizer | None = None
        self.pi = torch.zeros(0)
        self.gated = True  # whether rows have gates of their own
        self.clusters: tuple[Architecture, ...] = ()  # the architecture of each cluster, while the net answers as these
        self.kept, self.worth = parent.mask()[None].astype(np.float32), np.zeros((0, 0, 0))

    def gate_rows(self, e_BFC: Tensor) -> Tensor:
        if not self.gated or self.progress is None:
            return e_BFC
        body = e_BFC[..., : self.parent.dim]
        logits = self.map(body)
        if torch.is_grad_enabled():  # what penalty and diagnostics read is of train rows
            self.pi = torch.sigmoid(logits)
        gates = self.draw(logits) if self.training else (logits > 0).float()
        if self.first_order:
            gates = torch.cat([gates, gates.new_ones(*gates.shape[:2], 1)], dim=2)
        return e_BFC * gates

    def draw(self, logits: Tensor) -> Tensor:
        """Binary Concrete gates (Maddison et al., ICLR 2017, sec. 3.2), hard with a straight-through gradient."""
        temperature = self.config.temperature_floor ** (self.progress or 0.0)
        noise = torch.rand_like(logits).clamp_(1e-6, 1 - 1e-6)
        soft = torch.sigmoid((logits + torch.logit(noise)) / temperature)
        return soft if self.config.sampling == "soft" else soft + ((soft > 0.5).float() - soft).detach()

    def arch_parameters(self) -> list[nn.Parameter]:
        return list(self.map.parameters())

    def penalty(self) -> Tensor:
        """The sparse, bi-polarising regulariser: few gates open, and each far from the row's mean."""
        pi = self.pi.flatten(1)
        each = self.config.sparsity * pi - (pi - pi.mean(1, keepdim=True)).abs()
        out: Tensor = self.config.polarise * each.mean()
        return out

    def step_gates(self, gradients: Sequence[Tensor]) -> None:
        if self.optimiser is None:
            self.optimiser = Adam(self.arch_parameters(), lr=self.config.arch_lr)
        for parameter, gradient in zip(self.arch_parameters(), gradients, strict=True):
            parameter.grad = gradient
        self.optimiser.step()

    def diagnostics(self) -> dict[str, float]:
        """Of the last train batch: gates open, gates undecided, and different masks a row (0 if all are the same)."""
        pi = self.pi.detach()
        low, high = _UNDECIDED
        distinct = len(torch.unique((pi > 0.5).flatten(1), dim=0)) - 1
        return {
            "gates_open": (pi > 0.5).float().mean().item(),
            "gates_undecided": ((pi > low) & (pi < high)).float().mean().item(),
            "masks_distinct": distinct / max(len(pi) - 1, 1),
        }

    @torch.no_grad()
    def on_search_end(self, dataset: Dataset, device: torch.device) -> dict[str, float]:
        total = dataset.rows("train")
        order = Shuffle(total, [self.seed, 5])
        rows = order[np.arange(min(total, self.config.sample))]
        ids = torch.from_numpy(dataset.ids("train")[np.sort(rows)]).to(device)
        ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(self.seed)).to(device)]
        self.router, cluster, found = self.find_clusters(ids)
        count = self.router.clusters if self.router is not None else 1
        if count < self.config.clusters:
            self.notes.append(
                f"{count} of clusters={self.config.clusters} are left: the others had less than "
                f"min_share={self.config.min_share:g} of the rows"
            )
        if self.config.epochs and self.diagnostics()["masks_distinct"] == 0:
            self.notes.append("the gates collapsed, all rows have one mask: lower polarise")
        self.kept, self.worth = self.statistics(ids, cluster, count)
        share = torch.bincount(cluster, minlength=count).min().item() / len(ids)
        return {"clusters": float(count), "smallest_share": share, **found}

    def find_clusters(self, ids: Tensor) -> tuple[Router | None, Tensor, dict[str, float]]:
        """The router that serves, none if all rows are of one cluster; the cluster that it gives each row, int64 [N];
        and how often it agrees with the centroids.
        """
        config = self.config
        fields = [
            RouterField(name=field.name, rows=field.cardinality, pool=field.pool, readers=field.readers)
            for field in self.parent.fields
        ]
        if config.clusters == 1:
            return None, ids.new_zeros(len(ids), dtype=torch.int64), {}
        reads_values = config.cluster_on == "random" or config.router == "table"
        if reads_values and all(field.pool for field in fields):
            raise SpaceError("ihas's router reads columns of one value a row, and there is none: set router: centroid")
        if config.cluster_on == "random":
            hashed = tuple(RouterField(name=f.name, rows=f.rows) for f in fields if f.pool is None)
            plan = RouterPlan(kind="hash", fields=hashed, seed=self.seed)
            drawn = HashRouter(self.schema, plan, config.clusters).to(ids.device)
            return drawn, drawn(ids), {}
        single = [field.name for field in fields if field.pool is None]
        centroids = self.centroids(ids, fields)
        while True:
            exact = self.centroid_router(fields, centroids)
            cluster = torch.cat([exact(part) for part in torch.split(ids, _CHUNK)])
            router: Router = exact
            found = {}
            if config.router == "table":
                router = distil(self.schema, single, ids, cluster, len(centroids), config)
                found["router_agreement"] = (router(ids) == cluster).float().mean().item()
                cluster = router(ids)
            share = torch.bincount(cluster, minlength=len(centroids)) / len(ids)
            if share.min() >= config.min_share:
                return router, cluster, found
            centroids = np.delete(centroids, int(share.argmin()), axis=0)
            if len(centroids) == 1:
                return None, torch.zeros_like(cluster), {}

    def centroids(self, ids: Tensor, fields: Sequence[RouterField]) -> Array:
        """k-means of what the rows are clustered on: float [K, F * D]."""
        from sklearn.cluster import MiniBatchKMeans

        router = self.centroid_router(fields, np.zeros((1, len(self.parent.inputs) * self.parent.dim)))
        parts = [router.features(part).cpu().numpy() for part in torch.split(ids, _CHUNK)]
        features = np.concatenate(parts).astype(np.float32)
        kmeans = MiniBatchKMeans(self.config.clusters, batch_size=4096, n_init=5, random_state=self.seed)
        return np.asarray(kmeans.fit(features).cluster_centers_)

    def centroid_router(self, fields: Sequence[RouterField], centroids: Array) -> CentroidRouter:
        config, dim = self.config, self.parent.dim
        plan = RouterPlan(
            kind="centroid", fields=tuple(fields), dim=dim, space=config.cluster_on, gate=config.gate, seed=self.seed
        )
        router = CentroidRouter(self.schema, plan, len(centroids)).to(self.weight.device)
        router.weight.copy_(torch.cat(self.folded(self.mask))[:, :dim])
        router.centroids.copy_(torch.as_tensor(centroids))
        if router.gates is not None:
            router.gates.load_state_dict(self.map.state_dict())
        return router

    def statistics(self, ids: Tensor, cluster: Tensor, clusters: int) -> tuple[Array, Array]:
        """Per cluster, block and dim, over the cluster's rows with a value in the block: the share of open gates, and
        the mean magnitude of what they let through, float [K, S, D] each.
        """
        blocks, dim = len(self.parent.block_rows()), self.parent.dim
        opened, passed = (ids.new_zeros(clusters * blocks, dim, dtype=torch.float32) for _ in range(2))
        rows = ids.new_zeros(clusters * blocks, dtype=torch.float32)
        for part, of in zip(torch.split(ids, _CHUNK), torch.split(cluster, _CHUNK), strict=True):
            own = self.split(part)[0]
            block = self.block_of(own)
            e = functional.embedding(self.places_of(own), self.weight)[..., :dim]
            logits = self.map(self.pooled(e * functional.embedding(block, self.mask[:, :dim]), own))
            if self.pool is not None:
                logits = logits[:, self.pool.input_of_column]
            held = own.flatten() >= 0
            place = (of.unsqueeze(1) * blocks + block).flatten()[held]
            opened.index_add_(0, place, (logits > 0).float().flatten(0, 1)[held])
            passed.index_add_(0, place, (e.abs() * torch.sigmoid(logits)).flatten(0, 1)[held])
            rows.index_add_(0, place, torch.ones_like(place, dtype=torch.float32))
        means = [(total / rows.clamp_min(1).unsqueeze(1)).cpu().numpy() for total in (opened, passed)]
        kept, worth = (mean.reshape(clusters, blocks, dim) for mean in means)
        return kept, worth

    def choose(self, limit: int | None) -> Architecture:
        allowed = np.broadcast_to(self.parent.mask(), self.kept.shape)
        masks = allowed & (self.kept >= self.config.theta) if limit is None else self.within(limit, allowed)
        if self.router is None:
            return self.parent_with(masks[0])
        if not masks.any(axis=(1, 2)).all():
            raise SpaceError(f"each of {len(masks)} clusters must keep a dim: raise the budget or lower clusters")
        plan = self.router.plan.model_copy(update={"calibrate": self.config.calibrate})
        either: Array = np.logical_or.reduce(masks)
        return self.parent_with(either).replace(clusters=tuple(self.parent_with(mask) for mask in masks), router=plan)

    def within(self, limit: int, allowed: Array) -> Array:
        """Kept dims bool [K, S, D] of all clusters, whose bytes and the router's fit the limit together."""
        router = 4 * sum(table.numel() for table in self.router.tables()) if self.router is not None else 0
        pairs = len(allowed) * self.parent.pair_bytes()
        left = limit - router - pairs
        if left <= 0:
            raise SpaceError(
                f"the budget must hold the router's {router} bytes and more, and {pairs} of pairs, which each "
                f"cluster builds, but got {limit}"
            )
        flat, sizes = (-1, self.parent.dim), np.tile(self.block_sizes(), (len(allowed), 1))
        return select(self.worth.reshape(flat), allowed.reshape(flat), sizes, left).reshape(allowed.shape)

    def forward(self, ids_BV: Tensor) -> Tensor:
        if not self.clusters:
            return super().forward(ids_BV)
        assert self.router is not None
        cluster, logits = self.router(ids_BV), torch.zeros(len(ids_BV), device=ids_BV.device)
        clusters, self.clusters = self.clusters, ()
        try:
            for number, own in enumerate(clusters):
                rows = torch.nonzero(cluster == number).squeeze(1)
                with supernet.Supernet.answering(self, own):
                    logits = logits.index_put((rows,), super().forward(ids_BV.index_select(0, rows)))
        finally:
            self.clusters = clusters
        return logits

    @contextmanager
    def answering(self, architecture: Architecture) -> Iterator[None]:
        before = self.gated, self.clusters
        try:
            self.gated, self.clusters = False, architecture.clusters
            if self.clusters:
                yield
            else:
                with super().answering(architecture):
                    yield
        finally:
            self.gated, self.clusters = before

    def compact(self, architecture: Architecture) -> Model:
        if not architecture.clusters:
            return self.cut(architecture, self.mask)
        model = RoutedModel(self.schema, architecture).to(self.weight.device)
        for part, cluster in zip(model.models, architecture.clusters, strict=True):
            part.load_state_dict(self.cut(cluster, self.mask).state_dict())
        if model.router is not None and self.router is not None:
            model.router.load_state_dict(self.router.state_dict())
        return model


def distil(
    schema: FeatureSchema, names: Sequence[str], ids: Tensor, cluster: Tensor, clusters: int, config: Config
) -> TableRouter:
    """A table over few raw ids that tells the cluster of a row.

    Fields are tried by falling adjusted mutual information with the cluster, and one more is read only if it brings
    agreement on rows that the table was not fitted on.

    Args:
        schema: the encoded table's schema.
        names: fields that it may read, of one value a row.
        ids: int [N, V] in the schema's column order.
        cluster: what to tell, int64 [N].
        clusters: K.
        config: the method's options.
    """
    labels, told = cluster.cpu().numpy(), []
    cardinality = dict(zip(schema.names, schema.cardinalities, strict=True))
    for name in names:
        rows = min(cardinality[name], config.router_rows)
        (column,) = schema.columns([name])
        codes = ids[:, column].cpu().numpy()
        codes = np.where(codes < rows, codes, 0).astype(np.int64)
        table = np.bincount(codes * clusters + labels, minlength=rows * clusters).reshape(rows, clusters)
        worth = score(table).score if (table.sum(axis=0) > 0).sum() > 1 else 0.0
        told.append((worth, RouterField(name=name, rows=rows)))
    told.sort(key=lambda pair: -pair[0])
    held = len(ids) // 5
    best, agreement = None, 0.0
    for count in range(1, min(config.router_fields, len(told)) + 1):
        plan = RouterPlan(kind="table", fields=tuple(field for _, field in told[:count]))
        router = TableRouter(schema, plan, clusters).to(ids.device)
        fit_table(router, ids[held:], cluster[held:])
        found = (router(ids[:held]) == cluster[:held]).float().mean().item()
        if best is not None and found < agreement + _GAIN:
            break
        best, agreement = router, found
    assert best is not None
    return best


@torch.enable_grad()
def fit_table(router: TableRouter, ids: Tensor, cluster: Tensor, steps: int = 150) -> None:
    """Fits a table's scores by multinomial logistic regression, whole batches, Adam."""
    weights = [router.score.requires_grad_(True), router.bias.requires_grad_(True)]
    optimiser = Adam(weights, lr=0.1, weight_decay=1e-5)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = functional.cross_entropy(router.scores(ids), cluster)
        loss.backward()
        optimiser.step()
    for weight in weights:
        weight.requires_grad_(False).grad = None
