"""The baseline that leaves every pair out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autoembed.methods import pairs
from autoembed.plans import Choice


class Config(pairs.PairConfig):
    """The shared options."""

    method: str = "all_naive"


class Supernet(pairs.Supernet):
    """One wish for all."""

    def preferences(self) -> Iterable[tuple[int, Sequence[Choice]]]:
        return ((number, ("naive",)) for number in range(len(self.parent.pairs)))
