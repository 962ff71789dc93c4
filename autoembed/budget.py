"""What an architecture may cost, and how a budget in bytes is spent on dims and on pairs."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from autoembed.architecture import Architecture
from autoembed.errors import SpaceError
from autoembed.nn.backbones.base import find
from autoembed.plans import Choice
from autoembed.types import Array


class Limit(BaseModel):
    """What an architecture may cost: `bytes` of the whole model in memory, and of its embeddings one of

    - `embedding_bytes`: what their tables take with their steps,
    - `width`: as many bytes as that many 32-bit dims for every value take,
    - `parameters`: as many bytes as that many 32-bit numbers take.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: int | None = Field(default=None, ge=1)
    width: float | None = Field(default=None, gt=0)
    embedding_bytes: int | None = Field(default=None, ge=1)
    bytes: int | None = Field(default=None, ge=1)

    def resolve(self, root: Architecture) -> int | None:
        """The limit in bytes of the embeddings for a root architecture, or None if there is none."""
        if self.embedding_bytes is not None:
            return self.embedding_bytes
        if self.parameters is not None:
            return 4 * self.parameters
        return None if self.width is None else uniform_bytes(root, self.width)


def first_order(architecture: Architecture) -> bool:
    """Whether its backbone has first-order weights."""
    return find(str(architecture.backbone["name"])).Backbone.first_order


def uniform_bytes(parent: Architecture, width: float) -> int:
    """Bytes of `width` dims of 32 bits for every value, first-order weights included."""
    return int(parent.block_rows().sum() * (width + first_order(parent)) * 4)


def select(scores: Array, allowed: Array, sizes: Array, budget: int) -> Array:
    """Kept dims bool [S, D]: entries by falling score, above 0, as far as `budget` bytes reach.

    An entry that does not fit any more is passed over: smaller ones may still fit. SpaceError if nothing fits.

    Args:
        scores: float [S, D].
        allowed: which entries may be kept, bool [S, D].
        sizes: bytes of each block by its width, int [S, D + 1].
        budget: bytes.
    """
    mask = np.zeros(scores.shape, dtype=bool)
    allowed = allowed & (scores > 0)
    left = budget
    for flat in np.argsort(-scores, axis=None, kind="stable"):
        block, dim = divmod(int(flat), scores.shape[1])
        width = int(mask[block].sum())
        price = int(sizes[block, width + 1] - sizes[block, width])
        if allowed[block, dim] and price <= left:
            mask[block, dim] = True
            left -= price
    _require_some(mask, sizes, budget)
    return mask


def by_frequency(counts: Array, rows: Array, dim: int, temperature: float = 0.3) -> Array:
    """The worth of each dim of a block, [S, dim], for widths that follow a power of the values' mean count.

    Args:
        counts: of each block's values together, int [S].
        rows: values of each block, int [S].
        dim: of the full width.
        temperature: the power (Ginart et al., arXiv 1909.11810, sec. 3.3).
    """
    mean = np.maximum(counts / rows, 1e-9)
    wish = (mean / mean.max()) ** temperature
    # The rule opens dim d of a block once c * wish reaches d + 1/2: by falling worth, the largest c is found.
    return np.asarray(wish[:, None] / (np.arange(dim) + 0.5))


def take_in_order(scores: Array, order: Array, counts: Array, sizes: Array, budget: int) -> Array:
    """Kept dims bool [S, D]: each block's dims are taken in the block's own order, and the best next one goes first.

    Args:
        scores: what each block's next dim is worth, float [S, D]: column k is that of the block's k-th dim.
        order: dims of each block in the order in which they are taken, int [S, D].
        counts: how many of these may be taken, int [S].
        sizes: bytes of each block by its width, int [S, D + 1].
        budget: bytes.
    """
    mask = np.zeros(scores.shape, dtype=bool)
    queue = [(-float(scores[block, 0]), block, 0) for block in range(len(scores)) if counts[block]]
    heapq.heapify(queue)
    left = budget
    while queue:
        score, block, width = heapq.heappop(queue)
        price = int(sizes[block, width + 1] - sizes[block, width])
        if score >= 0 or price > left:
            continue  # a block whose next dim does not fit is done, since its dims are taken in order
        mask[block, order[block, width]] = True
        left -= price
        if width + 1 < counts[block]:
            heapq.heappush(queue, (-float(scores[block, width + 1]), block, width + 1))
    _require_some(mask, sizes, budget)
    return mask


def _require_some(mask: Array, sizes: Array, budget: int) -> None:
    if not mask.any():
        raise SpaceError(
            f"the budget must hold one dim of the smallest block with a score above 0 "
            f"(smallest block: {int(sizes[:, 1].min())} bytes), but got {budget}"
        )


def fill(
    parent: Architecture, preferences: Iterable[tuple[int, Sequence[Choice]]], pair_dim: int, budget: int | None
) -> Architecture:
    """The parent with each pair's first preference that fits, pair after pair, and naive for all others.

    A crossed table costs its own rows; a factorized pair only what columns it adds, as pairs share those. A pair
    without crossed ids is not memorized. SpaceError if the fields alone exceed the budget, in bytes.
    """
    left = float("inf")
    if budget is not None:
        fields = parent.embedding_bytes(first_order=first_order(parent))
        left = budget - fields
        if left < 0:
            raise SpaceError(
                f"the fields alone have {fields} embedding bytes, more than the budget of {budget}: "
                "lower embedding.dim, raise the budget, or narrow the fields in a stage before"
            )
    choices: list[Choice] = ["naive"] * len(parent.pairs)
    factors: set[str] = set()
    for number, wished in preferences:
        pair = parent.pairs[number]
        sides = dict(zip((pair.a, pair.b), pair.cardinalities, strict=True))
        for choice in wished:
            if choice == "memorize" and not pair.crossed:
                continue
            new = [size for name, size in sides.items() if name not in factors]
            columns = {"memorize": [pair.crossed], "naive": []}.get(choice, new)
            price = sum(parent.pair_column_bytes(rows, pair_dim) for rows in columns)
            if price <= left:
                choices[number] = choice
                left -= price
                if choice == "factorize":
                    factors |= set(sides)
                break
    return parent.with_choices(choices, pair_dim)
