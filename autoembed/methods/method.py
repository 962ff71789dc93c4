"""What a method is: its options and how it is found.

A method is one file in this folder with a `Config` and a `Supernet`. It is found by the file's name; a dotted name
("mypackage.mine") loads one from outside.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from autoembed import errors, plugins
from autoembed.errors import first_line
from autoembed.plans import Bits
from autoembed.training import PhaseTrain, TrainConfig

if TYPE_CHECKING:
    from autoembed.methods.supernet import Supernet

BASES = ("method", "gated", "supernet", "bilevel", "entries", "measured", "members", "pairs", "rises", "tower", "warm")


class MethodConfig(BaseModel):
    """Options of a method that decides without training.

    Args:
        method: the name of a file in this folder, or a dotted module name.
        preset: `paper` sets the options of a published method as its authors describe them; options that the stage sets
            override it.
        width: the stage's own limit if another stage follows: as many bytes as that many 32-bit dims for every value
            take. The last stage has the study's budget.
        bits: of each stored number, at most those of the stage before, which are the default.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    PAPER: ClassVar[Mapping[str, object]] = {}

    method: str
    preset: Literal["paper"] | None = None
    width: float | None = Field(default=None, gt=0)
    bits: Bits | None = None


class SearchConfig(MethodConfig):
    """Options of a method that trains a supernet.

    Args:
        warm_epochs: of plain training with open gates at most; it stops early as `train` does.
        warm_train: keys of `train` that the warm start overrides.
        retrain: the compact model starts from the supernet's weights (`inherit`) or from fresh ones (`fresh`), or is
            trained both ways and the better on valid is kept (`best`).
        inherit_train: keys of `train` that a retraining from the supernet's weights overrides.
        carry: whether the next stage starts from the weights that this one has trained.
    """

    warm_epochs: int = Field(default=10, ge=0)
    warm_train: PhaseTrain = PhaseTrain()
    retrain: Literal["inherit", "fresh", "best"] = "inherit"
    inherit_train: PhaseTrain = PhaseTrain()
    carry: bool = True

    @property
    def held_out(self) -> float:
        """The share of train's rows that no weight is trained on while the method searches."""
        return 0.0

    @property
    def inherits(self) -> bool:
        """Whether a compact model starts from the supernet's weights."""
        return self.retrain != "fresh"

    def recipes(self, train: TrainConfig) -> dict[str, TrainConfig]:
        """The recipe of each phase, by the option that changes it."""
        names = [name for name in type(self).model_fields if name.endswith("_train")]
        return {name: getattr(self, name).of(train) for name in names}


class GateConfig(SearchConfig):
    """Options of a method that searches gates after the warm start.

    Args:
        epochs: of the search.
        search_train: keys of `train` that the search overrides, for the weights.
        arch_fraction: the share of train's rows that is held out for the gates.
        update: what moves beside the gates: the embeddings (`embedding`) or all weights (`all`) on train batches while
            the gates move on held-out ones, or all weights and gates on the same train batch (`joint`).
        refit: after the search, train the weights on all rows of train with fixed gates. If no epoch is better on valid
            than the weights before, these stay.
        refit_epochs: of the refit at most; it stops early as `train` does.
        refit_train: keys of `train` that the refit overrides.
    """

    epochs: int = Field(default=10, ge=0)
    search_train: PhaseTrain = PhaseTrain()
    arch_fraction: float = Field(default=0.2, gt=0, lt=1)
    update: Literal["embedding", "all", "joint"] = "embedding"
    refit: bool = False
    refit_epochs: int = Field(default=5, ge=1)
    refit_train: PhaseTrain = PhaseTrain()

    @property
    def held_out(self) -> float:
        return self.arch_fraction if self.epochs and self.update != "joint" else 0.0


class WidthConfig(SearchConfig):
    """Options of a trained method that chooses how many dims each block keeps.

    Args:
        basis: `nested` trains with prefixes of the dims, so that dims are ordered and a block keeps the first ones. In
            a `plain` basis dims have no order, and each block keeps its best.
        prefixes: of a nested basis: one batch in four gives each field a width of its own (`field`), which makes better
            models of every width; or every second batch gives one to each block (`block`), which shows better which
            blocks are not needed.
        returns: with `diminishing` returns the k-th dim of a block counts 1/sqrt(k) of its score, since the first dim
            of a block is worth far more than its twentieth; `flat` takes scores as they are.
        guard: compares the answer with rivals of the same bytes and takes the best: with uniform rows by the supernet's
            loss on held-out rows (`measured`); with these and with widths by frequency, all retrained, on valid
            (`retrained`); or with nothing (`none`).
    """

    retrain: Literal["inherit", "fresh", "best"] = "best"
    basis: Literal["plain", "nested"] = "nested"
    prefixes: Literal["field", "block"] = "field"
    returns: Literal["diminishing", "flat"] = "diminishing"
    guard: Literal["retrained", "measured", "none"] = "measured"

    @field_validator("guard", mode="before")
    @classmethod
    def _once_a_switch(cls, guard: object) -> object:
        return {True: "measured", False: "none"}[guard] if isinstance(guard, bool) else guard


def names() -> list[str]:
    """The methods that ship with the package, baselines included."""
    import autoembed.methods as package

    return [module.name for module in pkgutil.iter_modules(package.__path__) if module.name not in BASES]


@dataclass(frozen=True, kw_only=True)
class Method:
    """The two classes of a method's file."""

    Config: type[MethodConfig]
    Supernet: type[Supernet]


class Unloaded(MethodConfig):
    """Options of a method from outside whose module is not imported: whatever stands there."""

    model_config = ConfigDict(frozen=True, extra="allow")


def load(method: str) -> Method:
    """A method by file name, or by dotted module name; SpaceError lists the known ones."""
    module = plugins.load("method", method, "autoembed.methods", names(), ("Config", "Supernet"))
    if module is not None:
        return Method(Config=module.Config, Supernet=module.Supernet)
    from autoembed.methods.supernet import Supernet

    return Method(Config=Unloaded, Supernet=Supernet)


def configure(stage: Mapping[str, object]) -> MethodConfig:
    """The validated Config of a stage such as {"method": "dnis", "epochs": 5}; SpaceError names rule and options."""
    if "method" not in stage:
        raise errors.SpaceError(f"a stage must name its method, but got {dict(stage)}")
    kind = load(str(stage["method"]))
    preset = vars(kind.Config).get("PAPER", {}) if stage.get("preset") == "paper" else {}
    if stage.get("preset") == "paper" and not preset:
        able = ", ".join(name for name in names() if "PAPER" in vars(load(name).Config))
        raise errors.SpaceError(f"preset: paper must be of one of {able}, but stage {stage['method']} has it")
    try:
        return kind.Config.model_validate({**preset, **stage})
    except ValidationError as error:
        allowed = ", ".join(sorted(kind.Config.model_fields))
        raise errors.SpaceError(f"stage {stage['method']}: {first_line(error)} (options: {allowed})") from None
