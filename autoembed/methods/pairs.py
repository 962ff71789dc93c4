"""What methods that choose for pairs share: their options, and what they ask of a parent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import Field

from autoembed.architecture import Architecture
from autoembed.budget import fill
from autoembed.errors import SpaceError
from autoembed.methods import supernet
from autoembed.methods.method import MethodConfig
from autoembed.plans import Choice


class PairConfig(MethodConfig):
    """`pair_dim` is the width of each built pair's input, at most `embedding.dim`."""

    pair_dim: int = Field(default=4, ge=1)


class Supernet(supernet.Supernet):
    """Decides without training: each pair gets the first of its preferences that the budget still holds."""

    chooses_pairs = True

    def pair_parts(self) -> list[Architecture]:
        require_open(self.parent, self.config.method, self.config.pair_dim)
        return []

    def preferences(self) -> Iterable[tuple[int, Sequence[Choice]]]:
        """Pairs in the order in which they are served, with what each would be, best first."""
        raise NotImplementedError

    def choose(self, limit: int | None) -> Architecture:
        return fill(self.parent_with(self.parent.mask()), self.preferences(), self.config.pair_dim, limit)


def require_open(parent: Architecture, method: str, pair_dim: int) -> None:
    """SpaceError unless all pairs of the parent are open or naive, one is open, and `pair_dim` fits."""
    if parent.built:
        raise SpaceError(f"{method} must be the only stage that chooses for pairs, but one before it has built some")
    if not any(pair.choice == "open" for pair in parent.pairs):
        raise SpaceError(f"{method} needs candidate pairs: set features.pairs, such as features.pairs.top: 60")
    if pair_dim > parent.dim:
        raise SpaceError(f"{method}'s pair_dim must be at most embedding.dim={parent.dim}, but got {pair_dim}")
