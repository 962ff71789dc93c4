"""Quality against cost: the trials that no other one beats in both, over all arms, and how to pick one of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from autoembed.errors import StudyError, option
from autoembed.space import SearchSpace
from autoembed.study.results.leaderboard import eligible
from autoembed.study.run_dir import RunDir, Trial
from autoembed.study.show.page import pareto_picture, png
from autoembed.types import Array
from autoembed.writing import beside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICKS = ("knee", "smallest-within X")


@dataclass(frozen=True, kw_only=True)
class ParetoPoint:
    """A trial, its metric on valid, and its cost by the objective's second part, else in bytes."""

    trial: Trial
    quality: float
    cost: float


def points(trials: Iterable[Trial], space: SearchSpace) -> list[ParetoPoint]:
    """Every trial's point."""
    return [
        ParetoPoint(
            trial=trial, quality=space.objective.of(trial.result.valid), cost=space.objective.cost_of(trial.result)
        )
        for trial in trials
    ]


def front(found: Sequence[ParetoPoint], space: SearchSpace) -> list[ParetoPoint]:
    """The points that no other one matches in quality and cost and beats in one of them, by rising cost."""
    sign = 1 if space.objective.mode == "max" else -1
    kept: list[ParetoPoint] = []
    for point in sorted(found, key=lambda point: (point.cost, -sign * point.quality)):
        if not kept or sign * point.quality > sign * kept[-1].quality:
            kept.append(point)
    return kept


@dataclass(frozen=True, kw_only=True)
class Front:
    """The Pareto front of a study's trials: all `points`, and those `kept`, by rising cost."""

    points: list[ParetoPoint]
    kept: list[ParetoPoint]
    metric: str
    cost: str

    @property
    def table(self) -> pl.DataFrame:
        """A row for each trial of the front: trial, the metric, the cost."""
        rows = [{"trial": p.trial.id, self.metric: p.quality, self.cost: p.cost} for p in self.kept]
        return pl.DataFrame(rows, schema={"trial": pl.String, self.metric: pl.Float64, self.cost: pl.Float64})

    @property
    def figure(self) -> Figure:
        """All trials by cost and quality, arm by arm, and the line of the front."""
        arms: dict[str, list[tuple[float, float]]] = {}
        for point in self.points:
            arms.setdefault(point.trial.arm, []).append((point.cost, point.quality))
        return pareto_picture(arms, [(p.cost, p.quality) for p in self.kept], self.metric, self.cost)

    def pick(self, rule: str) -> Trial:
        """A trial of the front, as `pareto.pick`."""
        return pick(self.kept, rule)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()

    def _repr_png_(self) -> bytes:
        return png(self.figure)


def of_run(run: RunDir, space: SearchSpace) -> Front:
    """The front of a study's trials that hold its limit on latency."""
    found = points(eligible(run.trials(), space), space)
    objective = space.objective
    return Front(points=found, kept=front(found, space), metric=objective.metric, cost=objective.cost or "bytes")


def write(run: RunDir, space: SearchSpace) -> None:
    """Writes the front as pareto.json and a picture of all trials as pareto.png to the run folder."""
    found = of_run(run, space)
    run.write_json("pareto.json", found.table.to_dicts())
    with beside(run.path / "pareto.png") as temporary:
        found.figure.savefig(temporary, dpi=120)


def pick(kept: Sequence[ParetoPoint], rule: str) -> Trial:
    """A point of a front by rule.

    knee: the farthest from the line between both ends, quality and the logarithm of cost scaled to 0..1.
    smallest-within X: the cheapest whose quality is at most X from the best. Or a trial's id. StudyError otherwise.
    """
    if not kept:
        raise StudyError("no trial is done yet")
    if rule == "knee":
        quality = _scaled(np.array([point.quality for point in kept]), kept[-1].quality < kept[0].quality)
        cost = _scaled(np.log(np.array([max(point.cost, 1e-9) for point in kept])), False)
        return kept[int(np.argmax(quality - cost))].trial
    word, _, number = rule.partition(" ")
    if word == "smallest-within":
        try:
            room = float(number)
        except ValueError:
            raise StudyError(
                f"{option('pick')} needs a number, as in 'smallest-within 0.001', but got {rule!r}"
            ) from None
        best = kept[-1].quality
        return next(point for point in kept if abs(point.quality - best) <= room + 1e-12).trial
    for point in kept:
        if point.trial.id == rule:
            return point.trial
    names = ", ".join(point.trial.id for point in kept)
    raise StudyError(
        f"{option('pick')} must be {', '.join(PICKS)} or a trial of the Pareto front, {names}, but got {rule!r}"
    )


def _scaled(values: Array, falling: bool) -> Array:
    values = -values if falling else values
    spread = values.max() - values.min()
    return np.asarray((values - values.min()) / spread if spread > 0 else np.zeros(len(values)))
