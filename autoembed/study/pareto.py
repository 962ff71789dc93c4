"""Quality against cost: the trials that no other one beats in both, over all arms, and how to pick one of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from autoembed.errors import StudyError, option
from autoembed.plans import Array
from autoembed.space import SearchSpace
from autoembed.study.leaderboard import eligible
from autoembed.study.page import pareto_picture
from autoembed.study.run_dir import RunDir, Trial
from autoembed.writing import beside

PICKS = ("knee", "smallest-within X")


@dataclass(frozen=True, kw_only=True)
class Point:
    """A trial, its metric on valid, and its cost by the objective's second part, else in bytes."""

    trial: Trial
    quality: float
    cost: float


def points(trials: Iterable[Trial], space: SearchSpace) -> list[Point]:
    """Every trial's point."""
    return [
        Point(trial=trial, quality=space.objective.of(trial.result.valid), cost=space.objective.cost_of(trial.result))
        for trial in trials
    ]


def front(found: Sequence[Point], space: SearchSpace) -> list[Point]:
    """The points that no other one matches in quality and cost and beats in one of them, by rising cost."""
    sign = 1 if space.objective.mode == "max" else -1
    kept: list[Point] = []
    for point in sorted(found, key=lambda point: (point.cost, -sign * point.quality)):
        if not kept or sign * point.quality > sign * kept[-1].quality:
            kept.append(point)
    return kept


def of_run(run: RunDir, space: SearchSpace) -> tuple[list[Point], list[Point]]:
    """The points of a study's trials, and of its front."""
    found = points(eligible(run.trials(), space), space)
    return found, front(found, space)


def write(run: RunDir, space: SearchSpace) -> None:
    """Writes the front as pareto.json and a picture of all trials as pareto.png to the run folder."""
    found, kept = of_run(run, space)
    cost = space.objective.cost or "bytes"
    rows = [{"trial": p.trial.id, space.objective.metric: p.quality, cost: p.cost} for p in kept]
    run.write_json("pareto.json", rows)
    arms = {p.trial.arm: [(q.cost, q.quality) for q in found if q.trial.arm == p.trial.arm] for p in found}
    picture = pareto_picture(arms, [(p.cost, p.quality) for p in kept], space.objective.metric, cost)
    with beside(run.path / "pareto.png") as temporary:
        picture.savefig(temporary, dpi=120)


def pick(kept: Sequence[Point], rule: str) -> Trial:
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
