"""Crossed columns: a pair of columns as one, whose values are the pairs of ids that train holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from autoembed.data.schema import Cross, FeatureSchema
from autoembed.data.strict import StrictModel
from autoembed.errors import DataError
from autoembed.types import Array

Keys = npt.NDArray[np.int64]

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class CrossSpec(StrictModel):
    """Which crossed values get ids of their own; all others share id 0.

    A value needs `min_count` train rows, and a pair has its `cap` most frequent ones at most. With `buckets`, values
    are hashed into that many instead, and what collides shares an id.
    """

    min_count: int = Field(default=5, ge=1)
    cap: int | None = Field(default=20_000, ge=1)
    buckets: int | None = Field(default=None, ge=2)


def name_of(a: str, b: str) -> str:
    """The name of the crossed column of two columns."""
    return f"{a}*{b}"


def products_of(schema: FeatureSchema, wanted: Literal["all"] | Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs with a multi-valued column that a search may factorize: those that are named, or all there are.

    DataError if a name is no column, or both columns of a pair have one value a row.
    """
    lists = {field.name for field in schema.fields if field.multi}
    if isinstance(wanted, str):
        return [(a, b) for a, b in combinations(schema.names, 2) if lists & {a, b}]
    for a, b in wanted:
        for name in (a, b):
            schema.index(name)
        if not lists & {a, b}:
            raise DataError(
                f"features.pairs.lists is of pairs with a multi-valued column, but {a!r} and {b!r} have one value a "
                "row: leave that pair to features.pairs.top"
            )
    return list(wanted)


def keys_of(a: Array, b: Array, cardinality_b: int, cross: Cross) -> Keys:
    """The key of each row's pair of ids, int64 [rows]: a * cardinality of b + b, or its bucket."""
    keys: Keys = a.astype(np.int64) * cardinality_b + b
    if cross.buckets is None:
        return keys
    mixed = keys.astype(np.uint64) * _FACTOR
    return np.asarray(((mixed ^ (mixed >> np.uint64(29))) % np.uint64(cross.buckets)).astype(np.int64))


def frequent_keys(keys: Keys, spec: CrossSpec) -> tuple[Keys, Keys]:
    """The keys that get ids, by falling count (ties by key), and the train rows of id 0 and of each of them."""
    found, counts = np.unique(keys, return_counts=True)
    order = np.lexsort((found, -counts))
    kept = order[counts[order] >= (1 if spec.buckets else spec.min_count)]
    if spec.cap is not None and spec.buckets is None:
        kept = kept[: spec.cap]
    rare = len(keys) - int(counts[kept].sum())
    return found[kept], np.concatenate([[rare], counts[kept]]).astype(np.int64)
