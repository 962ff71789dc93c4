"""The baseline that memorizes every pair, as far as the budget reaches, in the order of the candidates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from autoembed.methods import pairs
from autoembed.plans import Choice


class Config(pairs.PairConfig):
    """The shared options."""

    method: str = "all_memorize"


class Supernet(pairs.Supernet):
    """One wish for all."""

    def preferences(self) -> Iterable[tuple[int, Sequence[Choice]]]:
        return ((number, ("memorize",)) for number in range(len(self.parent.pairs)))
