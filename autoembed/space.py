"""The typed view of search_spaces/*.yaml: literals and ranges, budget and objective. No Ray, no Optuna, no data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, TypedDict, TypeGuard, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from autoembed.budget import Limit
from autoembed.data.crosses import CrossSpec
from autoembed.data.readers import DataSpec
from autoembed.errors import SpaceError, first_line, hinted, unknown
from autoembed.methods.method import load
from autoembed.metrics import Metrics
from autoembed.task import CLICKS, TASKS, Metric, metric_in, metric_of
from autoembed.trial import TrialConfig, TrialResult, check

COSTS = ("bytes", "parameters", "latency_ms")
TRACKERS = ("mlflow", "none")
Kind = Literal["choice", "uniform", "log", "int", "log_int"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_NODES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Range:
    """What a leaf of a search space may be: one of `values` (choice), or a number from `values[0]` to `values[1]`.

    A choice among stages has them as `options` and their names as `values`; the ranges inside an option are drawn only
    where it is taken. `given` tells which options of such choices a range stands in: (place, value).
    """

    kind: Kind
    values: tuple[object, ...]
    options: tuple[object, ...] = ()
    given: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, place: str, node: Mapping[str, object]) -> Range:
        ((kind, values),) = node.items()
        if not isinstance(values, list) or not values:
            raise SpaceError(f"{place}: {kind} must hold a list, but got {values!r}")
        if kind != "choice":
            whole = kind in ("int", "log_int")
            numbers = all(isinstance(v, int if whole else (int, float)) and not isinstance(v, bool) for v in values)
            if len(values) != 2 or not numbers or not values[0] <= values[1]:
                raise SpaceError(f"{place}: {kind} must hold two rising {'whole ' * whole}numbers, but got {values!r}")
            if kind.startswith("log") and values[0] <= 0:
                raise SpaceError(f"{place}: {kind} must start above 0, but got {values!r} (write 1.0e-4, not 1e-4)")
        options = tuple(values) if kind == "choice" and all(map(_is_stage, values)) else ()
        if options:
            values = ["+".join(map(_method, option if isinstance(option, list) else [option])) for option in options]
            values = _numbered(values)
        named = next(one for one in KINDS if one == kind)
        return cls(kind=named, values=tuple(values), options=options)

    def option(self, value: object) -> object:
        """What a value stands for."""
        return self.options[self.values.index(value)] if self.options else value

    @property
    def first(self) -> object:
        return self.values[0]

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest value of a range of numbers."""
        low, high = self.values
        assert isinstance(low, (int, float))
        assert isinstance(high, (int, float))
        return low, high


class PairSpec(CrossSpec):
    """Which pairs are candidates: the `top` by synergy, or all; and which of their crossed values get ids."""

    top: int | Literal["all"] = 60

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
    """`trials` per arm, baselines too, and limits: on the embeddings as parameters, a uniform width or their bytes, on
    `bytes` of the whole model and on `latency_ms` for 1,000 rows, which is measured. All but the last may be ranges.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trials: int = Field(default=8, ge=1)
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
    return tuple(f"valid.{one.name}" for task in TASKS for one in task.metrics if one.mode == mode)


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


def _placed(train: Mapping[str, object]) -> dict[str, object]:
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
    train: Annotated[dict[str, object], AfterValidator(_placed)] = {}


def load_yaml(text: str) -> object:
    """Plain data from YAML; yaml.YAMLError as well where aliases make more of a text than anyone would write."""
    node = yaml.safe_load(text)
    sizes: dict[int, int] = {}

    def size(part: object) -> int:
        if not isinstance(part, (dict, list)):
            return 1
        if id(part) not in sizes:
            sizes[id(part)] = _NODES  # a part that holds itself has no end
            sizes[id(part)] = 1 + sum(map(size, part.values() if isinstance(part, dict) else part))
        return sizes[id(part)]

    if size(node) >= _NODES:
        raise yaml.YAMLError(f"its aliases make more than {_NODES:,} values of it")
    return node


def load_mapping(text: str) -> dict[str, object]:
    """As `load_yaml`, of a text that holds a mapping."""
    node = load_yaml(text)
    assert isinstance(node, dict)
    return node


class Template(TypedDict):
    """The configuration of a trial with ranges in it."""

    arm: str
    stages: object
    embedding: dict[str, object]
    backbone: object
    ensemble: dict[str, object]
    tower: dict[str, object]
    train: dict[str, object]
    monitor: str
    limit: dict[str, object]
    device: object


class SearchSpace(BaseModel):
    """A search-space file.

    Below stages, baselines, embedding, backbone, ensemble, tower, train and variants any leaf may be a range.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataSpec = DataSpec()
    features: FeatureSpec = FeatureSpec()
    embedding: dict[str, object] = {}
    stages: object
    baselines: list[str | dict[str, object] | list[dict[str, object]]] = []
    backbone: object = "deepfm"
    ensemble: dict[str, object] = {}
    tower: dict[str, object] = {}
    train: Annotated[dict[str, object], AfterValidator(_placed)] = {}
    variants: dict[Annotated[str, StringConstraints(pattern=r"^\w+$")], Variant] = {}
    budget: Budget = Budget()
    objective: Objective = Objective()
    sampler: Literal["tpe", "nsga2", "random"] = "tpe"
    scheduler: Scheduler = Scheduler()
    final: Final | None = None
    tracking: str = "mlflow"
    seed: int = 0
    device: object = "auto"

    @field_validator("tracking")
    @classmethod
    def _tracker(cls, tracking: str) -> str:
        if "." not in tracking and tracking not in TRACKERS:
            raise ValueError(f"{unknown('tracker', tracking, list(TRACKERS))}, or the dotted name of a module")
        return tracking

    @field_validator("stages")
    @classmethod
    def _stages_are_mappings(cls, stages: object) -> object:
        """A list of stages, any of them a choice among stages; or a choice among such lists."""
        if _is_range(stages):
            options = stages.get("choice", ())
            lists = options if isinstance(options, list) and all(isinstance(o, list) for o in options) else ()
        else:
            lists = [stages]
        if not lists or not all(isinstance(s, list) and s and all(isinstance(x, dict) for x in s) for s in lists):
            raise ValueError(f"must be a list of stages, or a choice among such lists, but got {stages!r}")
        return stages

    @classmethod
    def read(cls, path: Path) -> SearchSpace:
        """The space in a YAML file; SpaceError names the file and the rule that it breaks."""
        try:
            node = load_yaml(path.read_text())
        except OSError as error:
            raise SpaceError(f"cannot read the search space {path}: {error.strerror}") from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
            raise SpaceError(f"{path}{where} is not valid YAML: {error.problem or error.context}") from None
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise SpaceError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(node, dict):
            raise SpaceError(f"{path} must hold a mapping with keys {', '.join(cls.model_fields)}")
        try:
            return cls.parse(node)
        except SpaceError as error:
            raise SpaceError(f"{path}: {error}") from None

    @classmethod
    def parse(cls, node: Mapping[str, object]) -> SearchSpace:
        """The space that a mapping describes, as a file would; SpaceError names the rule that it breaks."""
        for key in node:
            if key not in cls.model_fields:
                raise SpaceError(unknown("key", str(key), list(cls.model_fields)))
        try:
            return cls.model_validate(node).checked()
        except ValidationError as error:
            raise SpaceError(hinted(first_line(error, cls))) from None
        except SpaceError as error:
            raise SpaceError(hinted(str(error))) from None

    def checked(self) -> SearchSpace:
        """The space; SpaceError unless every choice and both ends of every range make a valid trial."""
        metric_in(self.data.task, self.objective.metric)
        for arm in self.arms():
            for config in self.corners(arm):
                self.require_pairs(check(config))
        return self

    def text(self) -> str:
        """The space as YAML, from which `read` makes it again."""
        node = self.model_dump(mode="json", exclude_unset=True)
        return str(yaml.safe_dump(node, sort_keys=False, width=120))

    def require_pairs(self, config: TrialConfig) -> None:
        """SpaceError if a stage chooses for pairs and `features.pairs` proposes none."""
        for stage in config.stages:
            if self.features.pairs is None and load(str(stage["method"])).Supernet.chooses_pairs:
                raise SpaceError(f"{stage['method']} needs candidate pairs: set features.pairs, such as {{top: 60}}")

    def arms(self) -> tuple[str, ...]:
        """What is compared: the stages' methods joined by "+", then each baseline; a name's second is NAME-2.

        Stages that Optuna chooses are called auto. With variants, all of these under each: NAME@VARIANT.
        """
        stages = self.stages if isinstance(self.stages, list) else []  # else it is a choice among lists
        chosen = not stages or any(map(_is_range, stages))
        searched = "auto" if chosen else "+".join(map(_method, stages))
        others = ["+".join(map(_method, b)) if isinstance(b, list) else _method(b) for b in self.baselines]
        arms = _numbered([searched, *others])
        return tuple(f"{arm}@{variant}" for variant in self.variants for arm in arms) or tuple(arms)

    def template(self, arm: str) -> Template:
        """The trial configuration of an arm as nested plain data with ranges still in their YAML form."""
        arms = self.arms()
        if arm not in arms:
            raise SpaceError(unknown("arm", arm, list(arms)))
        number = arms.index(arm) % (1 + len(self.baselines))
        variant = self.variants.get(arm.rpartition("@")[2], Variant())
        backbone = variant.backbone or self.backbone
        if number == 0:
            stages = self.stages
        else:
            baseline = self.baselines[number - 1]
            if isinstance(baseline, str):
                baseline = {"method": baseline}
            stages = baseline if isinstance(baseline, list) else [baseline]
        named = isinstance(backbone, dict) and "name" in backbone
        return {
            "arm": arm,
            "stages": stages,
            "embedding": self.embedding | variant.embedding,
            "backbone": backbone if named else {"name": backbone},
            "ensemble": self.ensemble | variant.ensemble,
            "tower": self.tower | variant.tower,
            "train": self.train | variant.train,
            "monitor": self.objective.metric,
            "limit": self.budget.model_dump(include=set(Limit.model_fields)),
            "device": self.device,
        }

    def ranges(self, arm: str) -> dict[str, Range]:
        """The ranges of an arm by dotted place, such as {"train.lr": Range(...), "stages.0.l1": Range(...)}.

        One inside an option of a choice has the option's name in its place: "stages.0.dnis.l1".
        """
        return dict(_ranges("", self.template(arm), ()))

    def draw(self, arm: str, pick: Callable[[str, Range], object]) -> dict[str, object]:
        """The values of an arm's ranges as `pick` gives them, asked only for those that the choices before leave."""
        values: dict[str, object] = {}

        def note(place: str, leaf: Range) -> object:
            values[place] = pick(place, leaf)
            return values[place]

        self.filled(self.template(arm), note)
        return values

    def config(self, arm: str, values: Mapping[str, object], seed: int = 0) -> TrialConfig:
        """The trial configuration with `values` for the ranges; a range without a value is an error."""
        return check({**self._with(arm, values), "seed": seed})

    def corners(self, arm: str) -> Iterator[dict[str, object]]:
        """Configurations that show every choice and both ends of every number once, to check them before a study."""
        ranges = self.ranges(arm)
        base = {place: leaf.first for place, leaf in ranges.items()}
        yield self._with(arm, base)
        for place, leaf in ranges.items():
            for value in leaf.values if leaf.given else leaf.values[1:]:
                yield self._with(arm, {**base, **dict(leaf.given), place: value})

    def filled(self, template: Mapping[str, object], pick: Callable[[str, Range], object]) -> dict[str, object]:
        """A template such as `template` gives, with what `pick` says for each range in it."""
        return {key: _filled(key, child, pick) for key, child in template.items()}

    def _with(self, arm: str, values: Mapping[str, object]) -> dict[str, object]:
        return self.filled(self.template(arm), lambda place, leaf: values[place])


def _method(baseline: str | dict[str, object]) -> str:
    method = baseline if isinstance(baseline, str) else baseline.get("method", "")
    if not isinstance(method, str):
        raise SpaceError(f"method must be one name, but got {method!r}: list the others under baselines")
    return method


def _is_range(node: object) -> TypeGuard[dict[str, object]]:
    return isinstance(node, dict) and len(node) == 1 and next(iter(node)) in KINDS


def _is_stage(option: object) -> bool:
    """Whether an option of a choice is a stage or a list of stages."""
    stages = option if isinstance(option, list) else [option]
    return bool(stages) and all(isinstance(stage, dict) and "method" in stage for stage in stages)


def _numbered(names: Sequence[str]) -> list[str]:
    """Names made unique: the second of NAME is NAME-2."""
    before = [names[:place].count(name) for place, name in enumerate(names)]
    return [f"{name}-{n + 1}" if n else name for name, n in zip(names, before, strict=True)]


def _ranges(place: str, node: object, given: tuple[tuple[str, str], ...]) -> Iterator[tuple[str, Range]]:
    if _is_range(node):
        leaf = replace(Range.parse(place, node), given=given)
        yield place, leaf
        for name, option in zip(leaf.values, leaf.options, strict=False):
            yield from _ranges(f"{place}.{name}", option, (*given, (place, str(name))))
    elif isinstance(node, (dict, list, tuple)):
        for key, child in _items(node):
            yield from _ranges(f"{place}.{key}" if place else str(key), child, given)


def _filled(place: str, node: object, pick: Callable[[str, Range], object]) -> object:
    if _is_range(node):
        leaf = Range.parse(place, node)
        value = pick(place, leaf)
        return _filled(f"{place}.{value}", leaf.option(value), pick) if leaf.options else value
    if isinstance(node, dict):
        return {key: _filled(f"{place}.{key}" if place else str(key), child, pick) for key, child in node.items()}
    if isinstance(node, (list, tuple)):
        return [_filled(f"{place}.{key}" if place else str(key), child, pick) for key, child in enumerate(node)]
    return node


def _items(node: dict[str, object] | Sequence[object]) -> Iterator[tuple[object, object]]:
    return iter(node.items()) if isinstance(node, dict) else iter(enumerate(node))
