"""What every backbone is: a Config, whether it wants first-order weights, and a module from embeddings to logits.

A backbone is one file in this folder with a `Config` and a `Backbone`. It is found by the file's name; a dotted name
("mypackage.mine") loads one from outside.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from autoembed import errors, plugins
from autoembed.data.strict import with_new_names
from autoembed.errors import first_line
from autoembed.nn.layers import Tower
from autoembed.types import Array


class BackboneConfig(BaseModel):
    """Options of a backbone; `name` is the name of its file or of its module.

    `renamed` maps the names that options had in earlier versions to those they have: stored files keep the old ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    renamed: ClassVar[Mapping[str, str]] = {}

    name: str

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, values: object) -> object:
        return with_new_names(values, cls.renamed)


class DeepConfig(BackboneConfig):
    """A tower of `hidden` layers with `dropout` and, by default, batch norm."""

    hidden: tuple[int, ...] = Field(default=(400, 400, 400), min_length=1)
    dropout: float = Field(default=0.2, ge=0, lt=1)
    batch_norm: bool = True

    def tower(self, active: Array, outputs: int = 1) -> Tower:
        return Tower(active, self.hidden, dropout=self.dropout, batch_norm=self.batch_norm, outputs=outputs)


class Backbone(nn.Module):
    """Base of the backbones; `active` bool [F, D] tells which embedding entries may differ from zero.

    One that `takes_pairs` has a part that reads any entries side by side: the inputs of pairs stand there behind the
    fields, and its other parts leave them out. One that `gives_classes` ends with linear layers alone, which give as
    many logits as it is told `outputs`; others are built without that argument.
    """

    first_order: ClassVar[bool] = False
    takes_pairs: ClassVar[bool] = False
    gives_classes: ClassVar[bool] = False

    alive: Tensor

    def __init__(self, config: object, active: Array, outputs: int = 1) -> None:
        super().__init__()
        # Fields that still keep an entry. A compact model has no others; a supernet closes some when it is narrowed,
        # and where a field of zeros would still count (attention, norms), a backbone masks by this.
        self.register_buffer("alive", torch.ones(len(active), dtype=torch.bool), persistent=False)

    def forward(self, e_BFD: Tensor, first_BF: Tensor | None) -> Tensor:
        """Embeddings [B, F, D] and first-order weights [B, F] -> logits [B], or [B, outputs] of several."""
        raise NotImplementedError


DEFAULT, OF_CLASSES = "deepfm", "dcn"  # where a space names none; the second one gives classes


def names() -> list[str]:
    """The backbones that ship with the package."""
    import autoembed.nn.backbones as package

    return [module.name for module in pkgutil.iter_modules(package.__path__) if module.name != "base"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The two classes of a backbone's file."""

    Config: type[BackboneConfig]
    Backbone: type[Backbone]


class Unloaded(BackboneConfig):
    """Options of a backbone from outside whose module is not imported: whatever stands there."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Absent(Backbone):
    """A backbone from outside whose module is not imported: it cannot be built."""

    def __init__(self, config: BackboneConfig, active: Array) -> None:
        raise errors.SpaceError(
            f"the backbone {config.name!r} is a module from outside that a file names: import it first "
            f"(`autoembed --import {config.name} COMMAND`)"
        )


def find(name: str) -> Kind:
    """The backbone in `backbones/<name>.py`, or in a module by its dotted name; SpaceError lists the known ones."""
    module = plugins.load("backbone", name, "autoembed.nn.backbones", names(), ("Config", "Backbone"))
    if module is None:
        return Kind(Config=Unloaded, Backbone=Absent)
    return Kind(Config=module.Config, Backbone=module.Backbone)


def configure(options: Mapping[str, object]) -> BackboneConfig:
    """The validated Config of a backbone section; SpaceError names the rule and the allowed options."""
    kind = find(str(options.get("name")))
    try:
        return kind.Config.model_validate(dict(options))
    except ValidationError as error:
        allowed = ", ".join(sorted(kind.Config.model_fields))
        raise errors.SpaceError(f"backbone.{first_line(error)} (options: {allowed})") from None


def build(options: Mapping[str, object], active: Array, *, pairs: int = 0, outputs: int = 1) -> Backbone:
    """A backbone with fresh weights for the active entries bool [F, D], the last `pairs` of the F being pairs.

    SpaceError if it takes no pairs, or gives one logit a row and `outputs` are more.
    """
    name = str(options.get("name"))
    kind = find(name)
    if pairs:
        require_pairs(name, "this architecture")
    if outputs == 1:
        return kind.Backbone(configure(options), active)
    require_classes(name)
    return kind.Backbone(configure(options), active, outputs)


def tower(options: Mapping[str, object], active: Array) -> Tower:
    """A plain tower with the hidden layers of a backbone, on the active entries bool [F, D].

    SpaceError if the backbone has none.
    """
    config = configure(options)
    hidden, dropout = (getattr(config, name, None) for name in ("hidden", "dropout"))
    if hidden is None or dropout is None:
        able = ", ".join(name for name in names() if "hidden" in find(name).Config.model_fields)
        raise errors.SpaceError(
            f"the towers of data.auxiliary_labels have the hidden layers of the backbone, and {config.name} has none: "
            f"use one of {able}"
        )
    return Tower(active, hidden, dropout=dropout, batch_norm=getattr(config, "batch_norm", False))


def require_pairs(name: str, who: str) -> None:
    """SpaceError unless a backbone takes inputs of pairs, which `who` makes."""
    if not find(name).Backbone.takes_pairs:
        able = ", ".join(other for other in names() if find(other).Backbone.takes_pairs)
        raise errors.SpaceError(
            f"{who} makes inputs of pairs, and backbone {name} reads whole fields only: use one of {able}"
        )


def require_classes(name: str) -> None:
    """SpaceError unless a backbone can give a logit for each of several classes."""
    if not find(name).Backbone.gives_classes:
        able = ", ".join(other for other in names() if find(other).Backbone.gives_classes)
        raise errors.SpaceError(
            f"data.task: multiclass needs a logit for each class, and backbone {name} sums numbers to one: use one of "
            f"{able}"
        )
