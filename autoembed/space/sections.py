"""The sections of a search-space file, but for `data`, which the data layer has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from autoembed.data.crosses import CrossSpec
from autoembed.metrics import Metric, Metrics
from autoembed.space.leaves import KINDS
from autoembed.task import CLICKS, TASKS, metric_of
from autoembed.trial import TrialResult

COSTS = ("bytes", "parameters", "latency_ms")


class PairSpec(CrossSpec):
    """Which pairs are candidates: the `top` by synergy, or all; and which of their crossed values get ids.

    `lists` are further candidates, of a multi-valued column and another one, by name or all of them. They have no
    synergy and no crossed values: a search factorizes them or leaves them out.
    """

    top: int | Literal["all"] = 60
    lists: Literal["all"] | tuple[tuple[str, str], ...] = ()

    @field_validator("top")
    @classmethod
    def _some(cls, top: int | str) -> int | str:
        if isinstance(top, int) and top < 1:
            raise ValueError(f"must be at least 1 or all, but got {top}")
        return top


class FeatureSpec(BaseModel):
    """How columns are pruned before a study: the `keep` best, those with a z score above `z`, or neither.

    `score` tells by what: `adjusted_mi`, the ranking's; or what a plain model that is trained for it takes from each
    column (`pruning`). `knockout` is the rise of valid's logloss without the column, and its z that over its standard
    error; `saliency`, a mean gradient norm, is above 0 for noise too and has no z. With `pairs`, the ranking also
    proposes the pairs of columns that a method such as optinter chooses for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: Literal["adjusted_mi", "knockout", "saliency"] = "adjusted_mi"
    keep: int | None = Field(default=None, ge=1)
    z: float | None = None
    pairs: PairSpec | None = None

    @model_validator(mode="after")
    def _prunes(self) -> FeatureSpec:
        if self.score == "saliency" and self.z is not None:
            raise ValueError(
                f"saliency has no z, since noise has a gradient too: set keep, or score: knockout, but got z={self.z:g}"
            )
        if self.score != "adjusted_mi" and self.keep is None and self.z is None:
            names = "keep" if self.score == "saliency" else "keep or z"
            raise ValueError(f"score: {self.score} trains a model to prune by: set {names}")
        return self


class Budget(BaseModel):
    """`trials` per arm, baselines too, the `minutes` after which none begins, and limits.

    These are on the embeddings as parameters, a uniform width or their bytes, on `bytes` of the whole model and on
    `latency_ms` for 1,000 rows, which is measured. All but the last may be ranges.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int = Field(default=8, ge=1)
    minutes: float | None = Field(default=None, gt=0)
    parameters: int | dict[str, object] | None = None
    width: float | dict[str, object] | None = None
    embedding_bytes: int | dict[str, object] | None = None
    bytes: int | dict[str, object] | None = None
    latency_ms: float | None = Field(default=None, gt=0)
    concurrent: int | None = Field(default=None, ge=1)
    cpus_per_trial: float = Field(default=1, gt=0)
    gpus_per_trial: float = Field(default=0, ge=0)


def _metrics(mode: Literal["max", "min"]) -> tuple[str, ...]:
    """The metrics of all tasks that an objective may maximise, or minimise."""
    every = (one for task in TASKS for one in (*task.metrics, *task.grouped))
    return tuple(dict.fromkeys(f"valid.{one.name}" for one in every if one.mode == mode))


class Objective(BaseModel):
    """What the driver optimises: the retrained model's metric on valid, and beside it a cost, if one is named.

    With a cost the trials that no other one beats in both form a Pareto front.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    maximize: str | None = None
    minimize: str | tuple[str, ...] | None = None

    @field_validator("maximize", "minimize")
    @classmethod
    def _known(cls, names: str | tuple[str, ...] | None, info: ValidationInfo) -> str | tuple[str, ...] | None:
        known = _metrics("max") if info.field_name == "maximize" else (*_metrics("min"), *COSTS)
        for name in (names,) if isinstance(names, str) else names or ():
            if name not in known:
                raise ValueError(f"must be {' or '.join(map(repr, known))}, but got {name!r}")
        return names

    @field_validator("minimize")
    @classmethod
    def _one_of_each(cls, minimize: str | tuple[str, ...] | None, info: ValidationInfo) -> str | tuple[str, ...] | None:
        names = [minimize] if isinstance(minimize, str) else list(minimize or ())
        if info.data.get("maximize"):
            names.insert(0, info.data["maximize"])
        costs = sum(name in COSTS for name in names)
        if names and (len(names) - costs != 1 or costs > 1):
            raise ValueError(
                f"objective must have one metric, {' or '.join(_metrics('max'))} to maximize or "
                f"{' or '.join(_metrics('min'))} to minimize, and at most one cost of {', '.join(COSTS)}, but has "
                f"{names}"
            )
        return minimize

    @property
    def _minimized(self) -> tuple[str, ...]:
        return (self.minimize,) if isinstance(self.minimize, str) else self.minimize or ()

    @property
    def metric(self) -> str:
        """The metric's name, such as valid_auc."""
        named = [name for name in (self.maximize, *self._minimized) if name and name not in COSTS]
        return named[0].replace(".", "_") if named else CLICKS.metrics[0].monitor

    @property
    def direction(self) -> Metric:
        """The metric itself, which knows which of two values is better."""
        return metric_of(self.metric)

    @property
    def mode(self) -> Literal["max", "min"]:
        return self.direction.mode

    @property
    def cost(self) -> str | None:
        """The cost to minimise beside the metric: bytes, parameters or latency_ms."""
        return next((name for name in self._minimized if name in COSTS), None)

    def of(self, valid: Metrics) -> float:
        """The value to optimise of a retrained model's metrics on valid."""
        return valid[self.direction.name]

    def cost_of(self, result: TrialResult) -> float:
        """What a trial's model costs by the named cost, else in bytes."""
        if self.cost == "latency_ms":
            return result.latency_ms
        return float(result.cost.parameters if self.cost == "parameters" else result.cost.bytes)


class Scheduler(BaseModel):
    """Which rule stops trials behind their arm in retraining, and whether hopeless searches are stopped as well."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["asha", "median", "none"] = "asha"
    search: bool = True

    @model_validator(mode="before")
    @classmethod
    def _named(cls, node: object) -> object:
        return {"name": node} if isinstance(node, str) else node

    @property
    def stops_searches(self) -> bool:
        return self.search and self.name != "none"


class Final(BaseModel):
    """The study's end: each arm's best trial is retrained from fresh weights with so many seeds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seeds: int = Field(ge=2)


def placed(train: Mapping[str, object]) -> dict[str, object]:
    """The section with absolute paths of teachers: a trial's process works in another folder."""

    def placed(node: object, key: str = "") -> object:
        if isinstance(node, dict):
            return {name: placed(child, name if name not in KINDS else key) for name, child in node.items()}
        if isinstance(node, list):
            return [placed(child, key) for child in node]
        if key == "teacher" and isinstance(node, str) and node != "search":
            return str(Path(node).expanduser().absolute())
        return node

    return {key: placed(child) if key == "distill" else child for key, child in train.items()}


class Variant(BaseModel):
    """What a variant changes: keys of `embedding`, `ensemble`, `tower` and `train`, and the whole `backbone`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding: dict[str, object] = {}
    ensemble: dict[str, object] = {}
    tower: dict[str, object] = {}
    backbone: object = None
    train: Annotated[dict[str, object], AfterValidator(placed)] = {}
