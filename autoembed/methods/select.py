"""Selection of whole fields by knock-out, for a stage before those that choose dims, pairs or clusters.

A supernet is trained, fields that make held-out rows worse are closed, the supernet is trained on, and so on: a net
that overfits noise has not learned yet what takes longer, such as effects of pairs. Then fields go that held-out rows
do not need. A field is knocked out by giving all rows its mean embedding, after KAN-KO (arXiv 2509.23366;
`autoembed.knockout`). Fields go one at a time, the least needed first, and each is measured again with those before it
knocked out: of two copies, one stays (backward elimination).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from autoembed.architecture import Architecture
from autoembed.data.dataset import Dataset
from autoembed.data.schema import FeatureSchema
from autoembed.errors import SpaceError
from autoembed.methods import supernet
from autoembed.methods.method import SearchConfig
from autoembed.methods.supernet import Answer
from autoembed.metrics import mean_and_error
from autoembed.training import PhaseTrain
from autoembed.types import Array

_CHUNK = 4096


class Config(SearchConfig):
    """Options.

    `rounds` times at most, fields that make held-out rows worse by more than a standard error are closed, and the
    supernet is trained on by `round_train`. Then `keep` fields stay at most, those whose knock-out raises the loss of
    held-out rows most; without `keep`, those whose rise is more than `margin` standard errors above 0, one in any case.
    Dims are not chosen: a stage that ends here keeps as many of them for every value as the budget holds.
    """

    method: str = "select"
    keep: int | None = Field(default=None, ge=1)
    margin: float = Field(default=2.0, ge=0)
    rounds: int = Field(default=3, ge=1)
    round_train: PhaseTrain = PhaseTrain()

    @model_validator(mode="after")
    def _one_rule(self) -> Config:
        if self.keep is not None and "margin" in self.model_fields_set:
            raise ValueError(f"set keep or margin, but got keep={self.keep} and margin={self.margin:g}")
        return self


class Supernet(supernet.Supernet):
    """A full-width model that closes fields."""

    plain_warm_start = True
    share: Tensor

    def __init__(
        self, schema: FeatureSchema, parent: Architecture, config: Config, counts: Sequence[Array], seed: int
    ) -> None:
        super().__init__(schema, parent, config, counts, seed)
        if config.keep is not None and config.keep > len(parent.fields):
            raise SpaceError(f"select's keep must be at most the {len(parent.fields)} fields, but got {config.keep}")
        own = [np.asarray(counts[schema.index(name)], dtype=np.float64) for name in parent.names]
        share = np.concatenate([count / max(count.sum(), 1) for count in own])
        self.register_buffer("share", torch.tensor(share, dtype=torch.float32), persistent=False)
        self._fell: dict[str, str] = {}

    @property
    def rounds(self) -> int:
        return int(self.config.rounds)

    def prune(self) -> bool:
        """Closes the fields that make held-out rows worse, and not by chance alone; whether there were any."""
        return self._close(_in_errors, self.config.keep or 1, -1.0)

    def on_search_end(self, dataset: Dataset, device: torch.device) -> dict[str, float]:
        """Closes what else the rule does not keep."""
        if self.config.keep is not None:
            self._close(_in_nats, self.config.keep, np.inf)
        else:
            self._close(_in_errors, 1, self.config.margin)
        kept = self.open_fields()
        closed = [name for name, stays in zip(self.parent.names, kept, strict=True) if not stays]
        if shown := ", ".join(self._fell[name] for name in closed if name in self._fell):
            self.notes.append(
                f"{len(closed)} of {len(kept)} fields are closed, by how held-out rows' loss rises without it: {shown}"
            )
        return {"fields": float(kept.sum())}

    @torch.no_grad()
    def _close(self, worth_of: Callable[[Array, Array | None], float], keep: int, bound: float) -> bool:
        """Closes the fields worth at most `bound`, the least one first, while more than `keep` are open."""
        knock = _Knockouts(self)
        weights, fields = knock.weights, np.flatnonzero(self.open_fields()).tolist()
        queue = [(worth_of(knock.rise([field]), weights), field, 0) for field in fields]
        heapq.heapify(queue)
        closed: list[int] = []
        while len(queue) > keep:
            worth, field, seen = heapq.heappop(queue)
            if worth > bound:
                break
            rise = knock.rise([*closed, field], closed)
            if seen < len(closed):
                # Others have gone since: a copy of it may have been among them.
                heapq.heappush(queue, (worth_of(rise, weights), field, len(closed)))
                continue
            closed.append(field)
            name, nats, errors = self.parent.names[field], _in_nats(rise, weights), _in_errors(rise, weights)
            self._fell[name] = f"{name} {nats:.2g} ({errors:.1f} standard errors)"
        if not closed:
            return False
        mask = self.mask[:, : self.parent.dim].cpu().numpy() > 0
        mask[np.isin(self.parent.field_of_block(), closed)] = False
        self.mask.mul_(torch.as_tensor(self._with_first_order(mask), device=self.mask.device))
        self.keep_alive(mask)
        return True

    def open_fields(self) -> Array:
        """Which fields have an open entry: bool [F]."""
        found = np.zeros(len(self.parent.fields), dtype=bool)
        np.logical_or.at(found, self.parent.field_of_block(), self.mask[:, : self.parent.dim].cpu().numpy().any(axis=1))
        return found

    def scores(self) -> Array:
        """The mean magnitude of each block's dim."""
        return np.asarray(self.block_means(self.weight[:, : self.parent.dim].abs()))

    def answer(self, limit: int | None) -> Answer:
        return Answer(architecture=self.choose(limit))

    def choose(self, limit: int | None) -> Architecture:
        """The open fields; within a limit, as many dims for each of their values as it holds."""
        kept = self.mask[:, : self.parent.dim].cpu().numpy() > 0
        if limit is None:
            return self.parent_with(kept)
        sizes, most, left = self.block_sizes(), kept.sum(axis=1), self.left(limit)
        rows = np.arange(len(kept))
        total = np.array([sizes[rows, np.minimum(most, width)].sum() for width in range(self.parent.dim + 1)])
        width = int((total <= left).sum()) - 1
        if width < 1:
            raise SpaceError(
                f"select needs a budget of one dim for every value of its {int(self.open_fields().sum())} fields, "
                f"{int(total[1]) + self.parent.pair_bytes()} bytes, but got {limit}"
            )
        rank = np.argsort(-(self.scores() * self.parent.block_rows()[:, None] * kept).sum(axis=0), kind="stable")
        ranked = kept[:, rank]
        out = np.zeros_like(kept)
        out[:, rank] = ranked & (ranked.cumsum(axis=1) <= width)
        return self.parent_with(out)


class _Knockouts:
    """The loss of held-out rows when fields have their mean embedding in all rows, logits scaled and shifted to fit."""

    def __init__(self, net: Supernet) -> None:
        assert net.held is not None
        self.net = net
        table = torch.cat(net.folded(net.gates()))
        sizes = [field.cardinality for field in net.parent.fields]
        weighted = torch.split(table * net.share[:, None], sizes)
        self.means_FC = torch.stack([part.sum(dim=0) for part in weighted])
        self.table, self.field_of_input = table, net.parent.field_of_input()
        self.before: dict[tuple[int, ...], Array] = {}
        self.weights = None if net.held_weights is None else net.held_weights.cpu().numpy()

    def rise(self, fields: Sequence[int], without: Sequence[int] = ()) -> Array:
        """The rise of each held-out row's loss when `fields` are knocked out, over when `without` are: float [N]."""
        key = tuple(without)
        if key not in self.before:
            self.before = {key: self._losses(without)}
        return np.asarray(self._losses(fields) - self.before[key])

    def _losses(self, fields: Sequence[int]) -> Array:
        net = self.net
        assert net.held is not None
        ids, labels = net.held
        logits = []
        for part in torch.split(ids, _CHUNK):
            own, *rest = net.split(part)
            e_BFC = net.pooled(functional.embedding(net.places_of(own), self.table), own)
            inputs = np.flatnonzero(np.isin(self.field_of_input, fields))
            e_BFC[:, inputs] = self.means_FC[self.field_of_input[inputs]]
            logits.append(net.logits(e_BFC, rest))
        found, clicks = torch.cat(logits).double().cpu().numpy(), labels.cpu().numpy()
        # An overfitted net is too sure of itself: whatever made its logits smaller would look like an improvement.
        scale, shift = net.schema.task.calibration(clicks, found, self.weights)
        return np.asarray(net.schema.task.losses(clicks, scale * found + shift))


def _in_nats(rise: Array, weights: Array | None) -> float:
    return mean_and_error(rise, weights)[0]


def _in_errors(rise: Array, weights: Array | None) -> float:
    """The mean rise over its standard error."""
    mean, error = mean_and_error(rise, weights)
    return mean / error if error > 0 else 0.0
