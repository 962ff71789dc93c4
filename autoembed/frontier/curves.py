"""Arms over sizes: means over seeds, how few bytes are enough, and differences that are paired by seed."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from autoembed.frontier.points import FrontierPlan, FrontierPoint
from autoembed.metrics import Metric
from autoembed.space import SearchSpace
from autoembed.task import columns

ENOUGH = 0.001  # of the first metric, on test; a share of it where it is in units of the label
# Columns before those of the metrics and behind them.
_PLACE: dict[str, pl.DataType | type[pl.DataType]] = {"arm": pl.String, "seed": pl.Int64, "size": pl.Int64}
_REST: dict[str, pl.DataType | type[pl.DataType]] = {
    "embedding_bytes": pl.Int64,
    "bytes": pl.Int64,
    "search_seconds": pl.Float64,
    "retrain_seconds": pl.Float64,
    "values": pl.String,
    "notes": pl.List(pl.String),
    "gap": pl.String,
}


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A mean difference over seeds, its standard error and p of a paired t-test; the last two need two seeds."""

    mean: float
    error: float | None
    p: float | None


@dataclass(frozen=True, kw_only=True)
class Curves:
    """All points of a frontier, and the seconds of each (arm, seed)."""

    space: SearchSpace
    plan: FrontierPlan
    points: list[FrontierPoint]
    seconds: dict[tuple[str, int], float]

    @property
    def metric(self) -> str:
        """What is drawn and compared: the objective's metric on test, such as test_auc."""
        return f"test_{self.space.objective.direction.name}"

    @property
    def first(self) -> Metric:
        """The task's first metric, by which sizes are enough or not."""
        return self.space.data.predicts.metrics[0]

    @property
    def _test(self) -> str:
        return f"test_{self.first.name}"

    @property
    def seeds(self) -> list[int]:
        return sorted({point.seed for point in self.points})

    def table(self) -> pl.DataFrame:
        """A row for each arm, seed and size; ranges' values as JSON, numbers null in a gap.

        Metrics within groups have columns if any point has them.
        """
        found = [point.row() for point in self.points]
        there = {name for row in found for name in row}
        metrics = dict.fromkeys(columns(self.space.data.predicts, "valid", "test", there=there), pl.Float64)
        schema = {**_PLACE, **metrics, **_REST}
        rows = [
            {**dict.fromkeys(metrics), **row, "values": json.dumps(point.values)}
            for point, row in zip(self.points, found, strict=True)
        ]
        return pl.DataFrame(rows, schema=schema, orient="row")

    def labels(self) -> dict[str, str]:
        """What an arm is called: its name and, where others have the same but for a number, the options that differ."""
        options = {arm: _options(self.space.template(arm)["stages"]) for arm in self.space.arms()}
        found = {}
        for arm, own in options.items():
            namesakes = [others for other, others in options.items() if _base(other) == _base(arm)]
            differ = [option for option in own if not all(option in others for others in namesakes)]
            found[arm] = f"{arm} ({', '.join(differ)})" if differ else arm
        return found

    def at(self, arm: str, size: int) -> list[FrontierPoint]:
        """The points of an arm and a size that are no gaps, by seed."""
        found = [p for p in self.points if p.arm == arm and p.size == size and p.gap is None]
        return sorted(found, key=lambda point: point.seed)

    def values(self, arm: str, size: int, name: str) -> list[float]:
        """A number of these points."""
        found = [point.number(name) for point in self.at(arm, size)]
        return [value for value in found if value is not None]

    def mean(self, arm: str, size: int, name: str) -> float | None:
        """The mean over seeds; None where a seed has a gap, since means of other seeds would not compare."""
        values = self.values(arm, size, name)
        return statistics.mean(values) if len(values) == len(self.seeds) else None

    def spread(self, arm: str, size: int) -> float:
        """The sd over seeds of the metric, less what a seed does to all arms and sizes alike; 0 with one seed.

        A seed's level is its mean over the points that exist with every seed (Cousineau, TQMP 2005). On planted data,
        where a seed draws the data, levels differ by more than arms do.
        """
        own = [value - self.levels[point.seed] for value, point in self._with_points(arm, size)]
        return statistics.stdev(own) if len(own) > 1 else 0.0

    @cached_property
    def levels(self) -> dict[int, float]:
        """The mean of the metric over all arms and sizes with each seed."""
        places = [(arm, size) for arm in self.space.arms() for size in self.sizes_of(arm)]
        found: dict[int, list[float]] = {}
        for arm, size in places:
            for value, point in self._with_points(arm, size):
                found.setdefault(point.seed, []).append(value)
        return {seed: statistics.mean(values) for seed, values in found.items()}

    def _with_points(self, arm: str, size: int) -> list[tuple[float, FrontierPoint]]:
        return list(zip(self.values(arm, size, self.metric), self.at(arm, size), strict=True))

    def sizes_of(self, arm: str) -> list[int]:
        """The sizes that an arm has a model of with every seed."""
        return [size for size in self.plan.sizes if self.mean(arm, size, self._test) is not None]

    def full(self, arm: str) -> float | None:
        """The mean of the first metric on test of an arm's largest models."""
        sizes = self.sizes_of(arm)
        return self.mean(arm, sizes[-1], self._test) if sizes else None

    def best(self) -> tuple[float, str, int] | None:
        """The best mean of the first metric on test of all arms and sizes, with its arm and size."""
        found = [
            (statistics.mean(self.values(arm, size, self._test)), arm, size)
            for arm in self.space.arms()
            for size in self.sizes_of(arm)
        ]
        return max(found, key=lambda one: (self.first.sign * one[0], *one[1:]), default=None)

    def enough(self, arm: str, goal: float | None) -> int | None:
        """The smallest size at which an arm's mean of the first metric on test is within `ENOUGH` of a goal, if any."""
        if goal is None:
            return None
        slack = ENOUGH * abs(goal) if self.first.in_units else ENOUGH
        for size in self.sizes_of(arm):
            mean = self.mean(arm, size, self._test)
            if mean is not None and self.first.sign * (goal - mean) <= slack * (1 + 1e-9):
                return size
        return None

    def gap_to(self, arm: str, baseline: str, size: int) -> Paired | None:
        """The metric of an arm minus a baseline's, paired by the seeds that both have a model with; None if none."""
        first, second = (
            {p.seed: value for p in self.at(one, size) if (value := p.number(self.metric)) is not None}
            for one in (arm, baseline)
        )
        seeds = sorted(first.keys() & second.keys())
        return paired([first[seed] - second[seed] for seed in seeds]) if seeds else None


def paired(gaps: list[float]) -> Paired:
    """The mean of differences, its standard error, and p of a paired t-test."""
    from scipy.stats import ttest_1samp

    mean = statistics.mean(gaps)
    if len(gaps) < 2:
        return Paired(mean=mean, error=None, p=None)
    error = statistics.stdev(gaps) / len(gaps) ** 0.5
    # Without any spread there is nothing to test by: the same model, or the same lead with every seed.
    return Paired(mean=mean, error=error, p=float(ttest_1samp(gaps, 0).pvalue) if error > 0 else float(mean == 0))


def _base(arm: str) -> str:
    """An arm's name without its number and its variant."""
    return re.sub(r"-\d+$", "", arm.partition("@")[0])


def _options(stages: object) -> list[str]:
    """The options of an arm's stages as text; of stages that are chosen among others there are none to tell."""
    own = [stage for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
    return [f"{name} {_text(value)}" for stage in own for name, value in stage.items() if name != "method"]


def _text(value: object) -> str:
    return " ".join(f"{k} {_text(v)}" for k, v in value.items()) if isinstance(value, dict) else str(value)
