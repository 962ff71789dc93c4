"""What comparisons over seeds share: the data of a seed, and random draws from the ranges of a search space."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from autoembed.data.crosses import products_of
from autoembed.data.dataset import Dataset, build_dataset
from autoembed.pruning import kept_fields
from autoembed.ranking.ranking import rank
from autoembed.space import Range, SearchSpace
from autoembed.types import Progress


def draw(ranges: Mapping[str, Range], rng: np.random.Generator) -> dict[str, object]:
    """A value for each range, by place: evenly, or evenly in the logarithm."""
    values: dict[str, object] = {}
    for place, leaf in ranges.items():
        if leaf.kind == "choice":
            values[place] = leaf.values[rng.integers(len(leaf.values))]
            continue
        low, high = leaf.ends
        if leaf.kind == "uniform":
            values[place] = float(rng.uniform(low, high))
        elif leaf.kind == "int":
            values[place] = int(rng.integers(int(low), int(high) + 1))
        else:
            value = float(np.exp(rng.uniform(np.log(low), np.log(high))))
            values[place] = round(value) if leaf.kind == "log_int" else value
    return values


def prepare(
    space: SearchSpace, data: str | Path | None, seed: int, cache: str | Path, progress: Progress | None = None
) -> Dataset:
    """The data of a seed: encoded, cut down to the columns that the ranking keeps, with candidate pairs.

    On planted data the seed draws the data too; other data are the same for every seed.

    Args:
        space: the search space.
        data: a file or directory that overrides `data.path`, or None.
        seed: the seed.
        cache: where encoded data sets live.
        progress: called with (step, done, total).
    """
    spec = space.data
    if spec.planted is not None:
        spec = spec.model_copy(update={"planted": spec.planted.model_copy(update={"seed": seed})})
    dataset = build_dataset(spec, data, cache, progress)
    features = space.features
    if features.z is not None or features.keep is not None:
        dataset = dataset.keep(kept_fields(space, rank(dataset), dataset, progress=progress), cache)
    if features.pairs is not None:
        ranked = rank(dataset, pairs=features.pairs.top).pairs
        assert ranked is not None
        products, named = products_of(dataset.schema, features.pairs.lists), ranked.select("a", "b").rows()
        dataset = dataset.cross(named, features.pairs, cache, candidates=True, products=products)
    return dataset
