"""The baseline that a search over pairs must beat: random choices, in random order, within the same budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import get_args

import numpy as np

from autoembed.methods import pairs
from autoembed.plans import Choice


class Config(pairs.PairConfig):
    """The shared options; another seed draws another architecture."""

    method: str = "random_pairs"


class Supernet(pairs.Supernet):
    """Each pair's preferences are the three choices in random order."""

    def preferences(self) -> Iterable[tuple[int, Sequence[Choice]]]:
        rng = np.random.default_rng([self.seed, 5])
        options: list[Choice] = [choice for choice in get_args(Choice) if choice != "open"]
        for number in rng.permutation(len(self.parent.pairs)):
            yield int(number), [options[place] for place in rng.permutation(len(options))]
