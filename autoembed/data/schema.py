"""What a table's columns are: names, kinds, cardinalities, label and time. No paths, no tensors, no widths."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, model_validator

from autoembed.errors import DataError
from autoembed.task import CLICKS, Task

Kind = Literal["categorical", "numeric", "crossed"]


class Cross(BaseModel):
    """The two columns of a crossed column, and how many buckets their pairs are hashed into, if they are.

    `distinct` counts the pairs of ids that train holds: more than the crossed column's ids if rare ones share id 0, or
    if pairs collide in a bucket.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    a: str
    b: str
    buckets: int | None = None
    distinct: int = 0


class Field(BaseModel):
    """One input column.

    `cardinality` counts the ids of the column, id 0 (unknown or rare) included; it is 0 until a vocabulary is fitted.
    A crossed column names its pair. A `candidate` is one that a search may memorize, and no field until then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Kind = "categorical"
    cardinality: int = 0
    cross: Cross | None = None
    candidate: bool = False


class FeatureSchema(BaseModel):
    """The input columns in the order of the encoded table, the label column, and the time column if there is one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fields: tuple[Field, ...]
    label: str
    time: str | None = None

    @model_validator(mode="after")
    def _names_are_unique(self) -> FeatureSchema:
        names = self.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"field names must be unique, but these stand twice: {', '.join(twice)}")
        if self.label in names:
            raise ValueError(f"the label must not be a field, but {self.label!r} is both")
        return self

    @property
    def task(self) -> Task:
        """What is predicted; clicks so far."""
        return CLICKS

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        return tuple(field.cardinality for field in self.fields)

    def index(self, name: str) -> int:
        """The column of `name` in the encoded table; DataError if it is no field."""
        try:
            return self.names.index(name)
        except ValueError:
            raise DataError(f"unknown column {name!r}: the fields are {', '.join(self.names)}") from None

    def keep(self, names: Iterable[str]) -> FeatureSchema:
        """The schema of these fields, and of those that crossed ones are made of, in the order in which they stand."""
        wanted = set(names)
        for name in list(wanted):
            if cross := self.fields[self.index(name)].cross:
                wanted |= {cross.a, cross.b}
        return self.model_copy(update={"fields": tuple(field for field in self.fields if field.name in wanted)})

    def fingerprint(self) -> str:
        """16 hex digits that change with any name, kind, order or cardinality."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]
