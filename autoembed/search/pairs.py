"""What methods that choose for pairs share: their options, and how choices are fitted into a budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import Field

from autoembed.architecture import Architecture, Choice
from autoembed.errors import SpaceError
from autoembed.nn.backbones.base import find
from autoembed.search import supernet


class PairConfig(supernet.MethodConfig):
    """`pair_dim` is the width of each built pair's input, at most `embedding.dim`."""

    pair_dim: int = Field(default=4, ge=1)


class Supernet(supernet.Supernet):
    """Decides without training: each pair gets the first of its wishes that the budget still holds."""

    makes_pairs = True

    def pair_parts(self) -> list[Architecture]:
        require_open(self.parent, self.config.method, self.config.pair_dim)
        return []

    def wishes(self) -> Iterable[tuple[int, Sequence[Choice]]]:
        """Pairs in the order in which they are served, with what each would be, best first."""
        raise NotImplementedError

    def derive(self, budget: int | None) -> Architecture:
        return fill(self.parent, self.wishes(), self.config.pair_dim, budget)


def require_open(parent: Architecture, method: str, pair_dim: int) -> None:
    """SpaceError unless all pairs of the parent are open or naive, one is open, and `pair_dim` fits."""
    if parent.built:
        raise SpaceError(f"{method} must be the only stage that chooses for pairs, but one before it has built some")
    if not any(pair.choice == "open" for pair in parent.pairs):
        raise SpaceError(f"{method} needs candidate pairs: set features.pairs, such as features.pairs.top: 60")
    if pair_dim > parent.dim:
        raise SpaceError(f"{method}'s pair_dim must be at most embedding.dim={parent.dim}, but got {pair_dim}")


def fill(
    parent: Architecture, wishes: Iterable[tuple[int, Sequence[Choice]]], pair_dim: int, budget: int | None
) -> Architecture:
    """The parent with each pair's first wish that fits, pair after pair, and naive for all others.

    A crossed table costs its own rows; a factorized pair only what columns it adds, as pairs share those. SpaceError if
    the fields alone exceed the budget.
    """
    left = float("inf")
    if budget is not None:
        fields = parent.embedding_parameters(first_order=find(str(parent.backbone["name"])).Backbone.first_order)
        left = budget - fields
        if left < 0:
            raise SpaceError(
                f"the fields alone have {fields} embedding parameters, more than the budget of {budget}: "
                "lower embedding.dim, raise the budget, or narrow the fields in a stage before"
            )
    choices: list[Choice] = ["naive"] * len(parent.pairs)
    factors: set[str] = set()
    for number, wished in wishes:
        pair = parent.pairs[number]
        sides = dict(zip((pair.a, pair.b), pair.cardinalities, strict=True))
        for choice in wished:
            rows = {"memorize": pair.crossed, "naive": 0}.get(
                choice, sum(size for name, size in sides.items() if name not in factors)
            )
            if pair_dim * rows <= left:
                choices[number] = choice
                left -= pair_dim * rows
                if choice == "factorize":
                    factors |= set(sides)
                break
    return parent.with_choices(choices, pair_dim)
