"""What a table's columns are: names, kinds, cardinalities, and those beside the fields. No paths, tensors or widths."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic import Field as Key

from autoembed.data.knots import COLUMNS, Ids, Interpolation, plain
from autoembed.errors import DataError
from autoembed.multiclass import LabelClasses, Multiclass
from autoembed.ratings import LabelScale, Ratings
from autoembed.task import CLICKS, RANKINGS, Task

Kind = Literal["categorical", "numeric", "crossed", "multi", "statistic"]
PAD = -1  # in the encoded columns of a multi-valued field that a row has no value for


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


class Multi(BaseModel):
    """How the values of a multi-valued column are read: at most `length` of them, the `first` or the `last`.

    They are a list, or text with `separator` between values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    separator: str | None = None
    length: int = Key(ge=1)
    keep: Literal["first", "last"] = "last"


class Field(BaseModel):
    """One input column.

    `cardinality` counts the ids of the column, id 0 (unknown or rare) included; it is 0 until a vocabulary is fitted.
    A crossed column names its pair. A `candidate` is no field: a crossed one that a search may memorize, or one that
    other columns are made of. A multi-valued one has `multi.length` columns of the encoded table: its values' ids, then
    PAD. One that `shares` has the ids of another field, and its embeddings are looked up in the other's table. Rare and
    unknown values of one with `buckets` are hashed into so many ids. One that is the `statistic_of` another has the
    bins of its click rates. A numeric one with an `interpolation` has two columns, as `data.knots` says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Kind = "categorical"
    cardinality: int = 0
    cross: Cross | None = None
    candidate: bool = False
    multi: Multi | None = None
    shares: str | None = None
    buckets: int | None = None
    statistic_of: str | None = None
    interpolation: Interpolation | None = None

    @property
    def length(self) -> int:
        """How many columns of the encoded table the field has."""
        if self.interpolation:
            return COLUMNS
        return self.multi.length if self.multi else 1

    @property
    def derived(self) -> bool:
        """Whether its ids are made from those of other fields, and no raw table has the column."""
        return self.cross is not None or self.statistic_of is not None

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what only some fields have: what was stored before there were such fields reads the same."""
        node: dict[str, Any] = handler(self)
        later = ("multi", "shares", "buckets", "statistic_of", "interpolation")
        return {key: value for key, value in node.items() if value is not None or key not in later}


class FeatureSchema(BaseModel):
    """The input columns in the order of the encoded table, the label column, and those of time, weight and group.

    The last three need not be there. The group may be a field too. Labels that are numbers have `ratings`, what those
    of train are like, and labels of three classes or more have `classes`. `products` are pairs with a multi-valued
    field: they have no crossed column, but a search may factorize them. `auxiliary_labels` are columns of clicks that
    models predict beside the label. With `ranking` rows are ranked within groups.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fields: tuple[Field, ...]
    label: str
    time: str | None = None
    weight: str | None = None
    group: str | None = None
    ranking: bool = False
    ratings: LabelScale | None = None
    classes: LabelClasses | None = None
    products: tuple[tuple[str, str], ...] = ()
    auxiliary_labels: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> FeatureSchema:
        names = self.names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"field names must be unique, but these stand twice: {', '.join(twice)}")
        if self.label in names:
            raise ValueError(f"the label must not be a field, but {self.label!r} is both")
        if self.weight in names:
            raise ValueError(f"the weight must not be a field, but {self.weight!r} is both")
        both = sorted(set(self.auxiliary_labels) & set(names))
        if both:
            raise ValueError(f"auxiliary labels must not be fields, but these are both: {', '.join(both)}")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is not there: so it was stored before there were such."""
        node: dict[str, Any] = handler(self)
        later = ("weight", "group", "ranking", "ratings", "classes", "products", "auxiliary_labels")
        return {key: value for key, value in node.items() if value or key not in later}

    @property
    def sides(self) -> tuple[str, ...]:
        """What is stored of each row beside its ids, as `data.sides.KINDS` names it."""
        there = {
            "labels": True,
            "weights": self.weight is not None,
            "groups": self.group is not None,
            "auxiliary": bool(self.auxiliary_labels),
        }
        return tuple(name for name, held in there.items() if held)

    def side_shape(self, name: str, rows: int) -> tuple[int, ...]:
        """The shape of what is stored of so many rows under one of the names of `sides`."""
        return (rows, len(self.auxiliary_labels)) if name == "auxiliary" else (rows,)

    @property
    def task(self) -> Task:
        """What is predicted."""
        if self.ranking:
            return RANKINGS
        if self.classes is not None:
            return Multiclass(self.classes)
        return CLICKS if self.ratings is None else Ratings(self.ratings)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        return tuple(field.cardinality for field in self.fields)

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many columns of the encoded table each field has."""
        return tuple(field.length for field in self.fields)

    def columns(self, names: Iterable[str]) -> list[int]:
        """The columns of the encoded table that hold these fields, field by field; DataError if one is no field."""
        found: list[int] = []
        for name in names:
            place = self.index(name)
            start = sum(self.lengths[:place])
            found += range(start, start + self.lengths[place])
        return found

    def one(self, ids: Ids, name: str) -> Ids:
        """The ids of a field with one value a row in encoded rows int32 [N, V]; of numbers between knots, the bins."""
        own = ids[:, self.first_columns([name])[0]]
        return plain(own) if name in self.interpolated else own

    def first_columns(self, names: Iterable[str]) -> list[int]:
        """The first column of the encoded table of each of these fields: all, of those with one value a row."""
        return [sum(self.lengths[: self.index(name)]) for name in names]

    @property
    def interpolated(self) -> frozenset[str]:
        """The fields of numbers between knots."""
        return frozenset(field.name for field in self.fields if field.interpolation)

    def index(self, name: str) -> int:
        """Which of the fields `name` is; DataError if it is none."""
        try:
            return self.names.index(name)
        except ValueError:
            raise DataError(f"unknown column {name!r}: the fields are {', '.join(self.names)}") from None

    def keep(self, names: Iterable[str]) -> FeatureSchema:
        """The schema of these fields, in the order in which they stand, and of those that they need.

        These are the columns of a crossed one, the field whose click rates another one has, and the one whose table it
        reads.
        """
        wanted = set(names)
        wanted |= {of for name in wanted if (of := self.fields[self.index(name)].statistic_of)}
        for name in list(wanted):
            cross = self.fields[self.index(name)].cross
            wanted |= {cross.a, cross.b} if cross else set()
        for name in list(wanted):
            shares = self.fields[self.index(name)].shares
            wanted |= {shares} if shares else set()
        fields = tuple(field for field in self.fields if field.name in wanted)
        products = tuple(pair for pair in self.products if wanted.issuperset(pair))
        return self.model_copy(update={"fields": fields, "products": products})

    def fingerprint(self) -> str:
        """16 hex digits that change with any name, kind, order or cardinality."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]
