"""What an arm reaches at each of several sizes with one seed: one search for all of them, and a retraining for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from autoembed.budget import Limit
from autoembed.data.dataset import Dataset
from autoembed.draws import draw
from autoembed.errors import SpaceError, TrialError
from autoembed.methods.warm import WarmStarts
from autoembed.nn.model import Model
from autoembed.space import SearchSpace
from autoembed.task import TaskMetrics, under
from autoembed.training import metrics_on, pick_device
from autoembed.trial import TrialConfig, TrialResult, run_limits

Of = Literal["embeddings", "model"]
OF: tuple[Of, ...] = ("embeddings", "model")


class FrontierPoint(BaseModel):
    """An arm, a seed and a size in bytes, and what was measured there; numbers are None in a gap of the curve.

    `search_seconds` are of the one search that all sizes of a draw share, `values` what was drawn for the ranges, and
    `gap` says why the arm has no model of that size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str
    seed: int
    size: int
    valid: TaskMetrics | None = None
    test: TaskMetrics | None = None
    embedding_bytes: int | None = None
    bytes: int | None = None
    search_seconds: float | None = None
    retrain_seconds: float | None = None
    values: dict[str, object] = {}
    notes: tuple[str, ...] = ()
    gap: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, node: dict[str, object]) -> dict[str, object]:
        """Metrics from the columns that they are stored in: valid_auc and so on, null in a gap."""
        node = dict(node)
        for split in ("valid", "test"):
            names = [name for name in node if name.startswith(f"{split}_")]
            own = {name.removeprefix(f"{split}_"): node.pop(name) for name in names}
            if any(value is not None for value in own.values()):
                node[split] = own
        return node

    def row(self) -> dict[str, object]:
        """What is stored: metrics have columns of their own, none in a gap."""
        node = self.model_dump(mode="json")
        metrics = under("valid", self.valid) | under("test", self.test)
        head = {name: node.pop(name) for name in ("arm", "seed", "size")}
        return head | metrics | {name: value for name, value in node.items() if name not in ("valid", "test")}

    def number(self, name: str) -> float | None:
        """A number by its column's name; None in a gap."""
        metrics = under("valid", self.valid) | under("test", self.test)
        found: float | None = metrics.get(name, getattr(self, name, None))
        return found


@dataclass(frozen=True, kw_only=True)
class FrontierPlan:
    """What is measured: at which sizes in bytes, of what, with how many draws from the ranges for an arm and seed."""

    sizes: tuple[int, ...]
    of: Of = "embeddings"
    trials: int | None = None

    def limit(self, size: int) -> Limit:
        return Limit(embedding_bytes=size) if self.of == "embeddings" else Limit(bytes=size)

    def draws(self, space: SearchSpace, arm: str) -> int:
        """The draws of an arm: the budget's trials unless the plan has its own, and one where nothing varies."""
        return (self.trials or space.budget.trials) if space.ranges(arm) else 1


def measure(
    space: SearchSpace, arm: str, dataset: Dataset, seed: int, plan: FrontierPlan, warm: WarmStarts | None = None
) -> list[FrontierPoint]:
    """The points of an arm and a seed, by rising size.

    For each size the draw with the best objective on valid is taken, and test is read once, for that one. A draw whose
    training fails is left out, with a note. Arms that have the folder `warm` in common train equal warm starts once.
    TrialError if training fails for all draws.
    """
    rng = np.random.default_rng([seed, space.arms().index(arm)])
    better = space.objective.direction.figure
    best: dict[int, tuple[TrialResult, Model, dict[str, object]]] = {}
    gaps: dict[int, str] = {}
    failed: list[str] = []
    draws = plan.draws(space, arm)
    for _ in range(draws):
        values = draw(space.ranges(arm), rng)
        try:
            found, small = _within(space.config(arm, values, seed), plan, dataset, warm)
        except TrialError as error:
            failed.append(str(error))
            continue
        gaps |= small
        for size, (result, model) in found.items():
            if size not in best or better(result.valid) > better(best[size][0].valid):
                best[size] = result, model, values
    if len(failed) == draws:
        raise TrialError(f"arm {arm}, seed {seed}: {failed[0]}")
    left_out = [f"{len(failed)} of {draws} draws failed, the first one: {failed[0]}"] if failed else []
    points = []
    for size in sorted(plan.sizes):
        if size not in best:
            points.append(FrontierPoint(arm=arm, seed=seed, size=size, gap=gaps[size], notes=tuple(left_out)))
            continue
        result, model, values = best[size]
        test = metrics_on(model, dataset, "test", pick_device(result.config.device))
        points.append(
            FrontierPoint(
                arm=arm,
                seed=seed,
                size=size,
                valid=result.valid,
                test=test,
                embedding_bytes=result.cost.embedding_bytes,
                bytes=result.cost.bytes,
                search_seconds=result.search_seconds,
                retrain_seconds=result.retrain_seconds,
                values=values,
                notes=(*left_out, *result.notes),
            )
        )
    return points


def _within(
    config: TrialConfig, plan: FrontierPlan, dataset: Dataset, warm: WarmStarts | None
) -> tuple[dict[int, tuple[TrialResult, Model]], dict[int, str]]:
    """The result and model of each size that the arm can hold, and of the others why it cannot."""
    results: dict[int, tuple[TrialResult, Model]] = {}
    gaps: dict[int, str] = {}
    found = run_limits(config, [plan.limit(size) for size in plan.sizes], dataset, lambda values: None, warm)
    for size, one in zip(plan.sizes, found, strict=True):
        if isinstance(one, SpaceError):
            gaps[size] = str(one)
        else:
            results[size] = one
    return results, gaps
