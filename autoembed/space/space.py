"""The typed view of search_spaces/*.yaml: literals and ranges, budget and objective. No Ray, no Optuna, no data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, TypedDict

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from autoembed.budget import Limit
from autoembed.data.readers import DataSpec
from autoembed.errors import SpaceError, first_line, hinted, unknown
from autoembed.knot_rows import NumberFunctions
from autoembed.methods.method import load
from autoembed.nn.backbones.base import DEFAULT, OF_CLASSES
from autoembed.shipped import space_file
from autoembed.space.leaves import Range, filled, is_range, method_of, numbered, ranges_in
from autoembed.space.sections import Budget, FeatureSpec, Final, Objective, Scheduler, Variant, placed
from autoembed.space.text import load_yaml
from autoembed.task import TASKS, metric_in
from autoembed.trial import TrialConfig, check, check_labels, check_outputs

TRACKERS = ("mlflow", "none")


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
    backbone: object = DEFAULT
    ensemble: dict[str, object] = {}
    tower: dict[str, object] = {}
    train: Annotated[dict[str, object], AfterValidator(placed)] = {}
    variants: dict[Annotated[str, StringConstraints(pattern=r"^\w+$")], Variant] = {}
    budget: Budget = Budget()
    objective: Objective = Objective()
    sampler: Literal["tpe", "nsga2", "random"] = "tpe"
    scheduler: Scheduler = Scheduler()
    final: Final | None = None
    tracking: str = "mlflow"
    seed: int = 0
    device: object = "auto"

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_task(cls, node: object) -> object:
        """Where no objective is set, the task's default one; where no backbone is, one that has its outputs."""
        if not isinstance(node, dict):
            return node
        data = node.get("data")
        name = data.get("task") if isinstance(data, dict) else getattr(data, "task", None)
        task = next((task for task in TASKS[1:] if task.name == name), None)
        if task is None:
            return node
        found, own = dict(node), task.objective
        if not found.get("objective"):
            found["objective"] = {"maximize" if own.rises else "minimize": f"valid.{own.name}"}
        if task.outputs > 1:
            found.setdefault("backbone", OF_CLASSES)
        return found

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
        if is_range(stages):
            options = stages.get("choice", ())
            lists = options if isinstance(options, list) and all(isinstance(o, list) for o in options) else ()
        else:
            lists = [stages]
        if not lists or not all(isinstance(s, list) and s and all(isinstance(x, dict) for x in s) for s in lists):
            raise ValueError(f"must be a list of stages, or a choice among such lists, but got {stages!r}")
        return stages

    @classmethod
    def read(cls, path: str | Path) -> SearchSpace:
        """The space in a YAML file, or one that ships, such as "quickstart".

        SpaceError names the file and the rule that it breaks, or lists the names that ship.
        """
        path = space_file(Path(path))
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
        metric_in(self.data.predicts, self.objective.metric, self.data.group)
        for arm in self.arms():
            for config in self.corners(arm):
                self.require_pairs(trial := check(config))
                self.require_functions(trial)
                recipe = trial.train
                self.data.predicts.check_recipe(
                    recipe.positive_weight, recipe.negative_sampling, recipe.pairwise_weight
                )
                check_labels(trial, self.data.auxiliary_labels)
                check_outputs(trial, self.data.predicts.outputs)
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

    def require_functions(self, config: TrialConfig) -> None:
        """SpaceError if numbers are embedded by functions in rows that values share, or `train.numbers` is of none."""
        functions: Sequence[str] = self.data.functions
        chosen = config.train.numbers.function
        if chosen is not None:
            if not self.data.has_knots:
                raise SpaceError(
                    f"train.numbers.function: {chosen} is of numbers between knots, and there are none: set "
                    "data.numeric_embedding to piecewise, or leave it out"
                )
            functions = () if chosen == "free" else (chosen,)
        elif not functions and config.train.numbers != NumberFunctions():
            raise SpaceError(
                "train.numbers is of functions of numbers, and there are none: set data.numeric_embedding to periodic "
                "or soft_bins, or leave train.numbers out"
            )
        for stage in config.stages:
            if functions and load(str(stage["method"])).Supernet.shares_rows:
                raise SpaceError(
                    f"values share rows under {stage['method']}, and numeric_embedding: {functions[0]} gives numbers "
                    "rows of their own: set bins, piecewise or linear, or leave that method out"
                )

    def arms(self) -> tuple[str, ...]:
        """What is compared: the stages' methods joined by "+", then each baseline; a name's second is NAME-2.

        Stages that Optuna chooses are called auto. With variants, all of these under each: NAME@VARIANT.
        """
        stages = self.stages if isinstance(self.stages, list) else []  # else it is a choice among lists
        chosen = not stages or any(map(is_range, stages))
        searched = "auto" if chosen else "+".join(map(method_of, stages))
        others = ["+".join(map(method_of, b)) if isinstance(b, list) else method_of(b) for b in self.baselines]
        arms = numbered([searched, *others])
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
        return dict(ranges_in("", self.template(arm), ()))

    def trials(self, arm: str) -> int:
        """How many trials an arm has: the budget's, or one where nothing varies."""
        return self.budget.trials if self.ranges(arm) else 1

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
        return {key: filled(key, child, pick) for key, child in template.items()}

    def _with(self, arm: str, values: Mapping[str, object]) -> dict[str, object]:
        return self.filled(self.template(arm), lambda place, leaf: values[place])
