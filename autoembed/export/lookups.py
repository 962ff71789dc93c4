"""What turns raw values into ids, field by field, as JSON that any language reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import numpy as np
import polars as pl

from autoembed.data.vocabulary import Vocabulary


class Categorical(TypedDict):
    """`values` has the text of each id; None at id 0 (unknown) and at `missing`, which is 0 if it has no id.

    With `buckets`, a text without an id has that of the text "#hash:N", N its CRC-32 modulo `buckets`.
    """

    name: str
    kind: Literal["categorical"]
    missing: int
    values: list[str | None]
    buckets: NotRequired[int]


class MultiLookup(TypedDict):
    """As categorical, of each value of a list, or of a text split at `separator`.

    Of a row with more than `length` values, the `first` or the `last` are kept; one with fewer has -1 behind them, and
    one without any has `missing`.
    """

    name: str
    kind: Literal["multi"]
    missing: int
    values: list[str | None]
    separator: str | None
    length: int
    keep: Literal["first", "last"]
    buckets: NotRequired[int]


class Numeric(TypedDict):
    """A number's id is `ids` at the number of `uppers` below it; None as an upper bound means infinity.

    With `knots`, one of each bin or None, a number x has two codes. The knot of its bin is a, that of the next bin on
    the side of x is b, and s is (x - a) / (b - a) in parts of 32768, rounded. The codes are the id of a's bin plus
    65536 s, and that of b's plus 65536 (32768 - s). Where s is 0, or there is no a or b, they are the id of x's bin and
    -1. Where x is missing, they are `missing` and -1. The embedding is that of the first id times 1 - s / 32768, plus
    that of the second times s / 32768.
    """

    name: str
    kind: Literal["numeric"]
    missing: int
    uppers: list[float | None]
    ids: list[int]
    knots: NotRequired[list[float | None]]


class Crossed(TypedDict):
    """The key of a pair of ids is that of `a` times `size` plus that of `b`, hashed into `buckets` if there are any."""

    name: str
    kind: Literal["crossed"]
    missing: int
    a: str
    b: str
    size: int
    buckets: int | None
    keys: list[int]
    ids: list[int]


class Statistic(TypedDict):
    """A row's id is `ids` at its id of the field `of`, whose click rates it has."""

    name: str
    kind: Literal["statistic"]
    missing: int
    of: str
    ids: list[int]


Lookup = Categorical | MultiLookup | Numeric | Crossed | Statistic


def lookups_of(vocabulary: Vocabulary) -> list[Lookup]:
    """The lookup of each field, in the order of the ids; fields that are made of others stand behind them."""
    parts = vocabulary.table().partition_by("field", maintain_order=True)
    return [_lookup(vocabulary, part["field"][0], part["kind"][0], part) for part in parts]


def write_lookups(vocabulary: Vocabulary, folder: Path) -> None:
    """Writes vocabulary.json."""
    (folder / "vocabulary.json").write_text(json.dumps(lookups_of(vocabulary), allow_nan=False) + "\n")


def _lookup(vocabulary: Vocabulary, name: str, kind: str, rows: pl.DataFrame) -> Lookup:
    missing = vocabulary.missing(name)
    hashed = vocabulary.buckets(name)
    if kind == "categorical":
        found = Categorical(name=name, kind="categorical", missing=missing, values=rows["value"].to_list())
        return found if hashed is None else {**found, "buckets": hashed}
    if kind == "multi":
        how = vocabulary.multi(name)
        assert how is not None
        several = MultiLookup(
            name=name,
            kind="multi",
            missing=missing,
            values=rows["value"].to_list(),
            separator=how.separator,
            length=how.length,
            keep=how.keep,
        )
        return several if hashed is None else {**several, "buckets": hashed}
    if kind == "numeric":
        bins = rows.filter(pl.col("upper").is_not_null()).sort("upper")
        uppers = [upper if np.isfinite(upper) else None for upper in bins["upper"].to_list()]
        numeric = Numeric(name=name, kind="numeric", missing=missing, uppers=uppers, ids=bins["id"].to_list())
        knots = vocabulary.knots(name)
        if knots is None:
            return numeric
        return {**numeric, "knots": [knot if np.isfinite(knot) else None for knot in knots.tolist()]}
    if (of := vocabulary.statistic_of(name)) is not None:
        return Statistic(name=name, kind="statistic", missing=missing, of=of, ids=vocabulary.of_ids(name).tolist())
    cross = vocabulary.cross(name)
    assert cross is not None
    keys = rows[1:].select("id", pl.col("value").cast(pl.Int64)).sort("value")
    return Crossed(
        name=name,
        kind="crossed",
        missing=missing,
        a=cross.a,
        b=cross.b,
        size=vocabulary.cardinality(cross.b),
        buckets=cross.buckets,
        keys=keys["value"].to_list(),
        ids=keys["id"].to_list(),
    )
