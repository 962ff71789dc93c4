"""What stands beside the ids of each row: its label and auxiliary ones, its weight, and the group it belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import polars as pl

from autoembed.data.spec import DataSpec, Split
from autoembed.data.values import MISSING, check_dtype, col, key
from autoembed.errors import DataError
from autoembed.types import Array

Sides = Mapping[str, Array]  # arrays [rows], of auxiliary labels [rows, L], under the names of `KINDS`
Groups = npt.NDArray[np.int32]

# In the order in which they are hashed.
KINDS: Mapping[str, type[np.generic]] = {
    "labels": np.float32,
    "weights": np.float32,
    "groups": np.int32,
    "auxiliary": np.float32,  # NaN where a row's label is missing
}
NO_GROUP = -1  # of rows whose group is missing


def weight_of(frames: Mapping[Split, pl.LazyFrame], spec: DataSpec) -> pl.Expr | None:
    """The expression that is each row's weight, Float32, after a look at all weights; None without data.weight.

    `frames` are tables with their label as `label_of` has it: rows without one need no weight.

    Raises:
        DataError: a weight is missing, no number, infinite or below 0.
    """
    if spec.weight is None:
        return None
    name, dtype = spec.weight, frames["train"].collect_schema()[spec.weight]
    if not (dtype.is_numeric() or dtype == pl.String):
        raise DataError(f"the weight must be a number, but column {name!r} is {dtype}: name a column of numbers")
    weight = col(name).cast(pl.Float64, strict=False)
    gone = col(name).is_null()
    if dtype == pl.String:
        gone |= col(name).is_in(MISSING)
    elif dtype.is_float():
        gone |= col(name).is_nan()
    facts = pl.concat(
        [
            frame.filter(col(spec.label).is_not_null()).select(
                gone.sum().alias("missing"),
                col(name).filter(~gone & weight.is_null()).cast(pl.String).first().alias("text"),
                (weight.cast(pl.Float32, strict=False).is_infinite() & ~gone).sum().alias("infinite"),
                weight.filter(weight < 0).min().alias("below"),
            )
            for frame in frames.values()
        ]
    ).collect(engine="streaming")
    if missing := int(facts["missing"].sum()):
        raise DataError(
            f"weight {name!r} is missing in {missing} rows: give each row one; a weight of 0 leaves its row out"
        )
    texts = facts["text"].drop_nulls()
    if len(texts):
        raise DataError(f"weight {name!r} must be a number, but has {texts[0]!r}: name a column of numbers")
    if infinite := int(facts["infinite"].sum()):
        raise DataError(f"weight {name!r} must be finite, but is not in {infinite} rows: give these a finite weight")
    below = facts["below"].drop_nulls()
    if len(below):
        raise DataError(
            f"weight {name!r} must be 0 or more, but has {float(below.min()):g}: give rows that shall not count 0"  # type: ignore[arg-type]
        )
    return weight.cast(pl.Float32)


class GroupCodes:
    """Codes of a column's values, the same in all splits, whatever the order of rows; memory grows with the values.

    DataError if the column holds lists.
    """

    def __init__(self, frames: Iterable[pl.LazyFrame], name: str) -> None:
        parts = list(frames)
        self.name, self.dtype = name, parts[0].collect_schema()[name]
        check_dtype(name, self.dtype)
        values = [frame.select(key(col(name), self.dtype).alias("value")).unique() for frame in parts]
        found = pl.concat(values).unique().drop_nulls().collect(engine="streaming")
        self.codes = pl.Enum(found.to_series().sort())

    def encode(self, chunk: pl.DataFrame) -> Groups:
        """int32 [rows], NO_GROUP where the value is missing."""
        text = chunk.select(key(col(self.name), self.dtype).alias("value")).to_series()
        codes: Groups = text.cast(self.codes).to_physical().cast(pl.Int32).fill_null(NO_GROUP).to_numpy()
        return codes
