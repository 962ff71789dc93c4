"""Single entries instead of dims of blocks (`granularity: entry`), as DNIS cuts them (arXiv 2006.04466, sec. 3.4).

Each value keeps entries of its own. What is kept within a budget has the largest sum of scores: at one price a byte for
all, a block is open if what its entries are worth beyond their own bytes pays for its bits, places, steps and
first-order weights, and an open block keeps the entries that are worth their bytes. A search over the price meets the
budget (the Lagrangian of a knapsack, Everett, Operations Research 1963), and what is left over goes to the best entries
of open blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, model_validator
from torch import Tensor

from autoembed.architecture import Architecture
from autoembed.errors import SpaceError
from autoembed.nn.sparse import largest
from autoembed.plans import Array
from autoembed.storage import sparse_bytes

if TYPE_CHECKING:
    from autoembed.search.supernet import Supernet

_STEPS = 60


class EntryConfig(BaseModel):
    """The option of methods that can cut single entries: `granularity: entry`. `bits` holds for all that is kept."""

    granularity: Literal["block", "entry"] = "block"

    @model_validator(mode="after")
    def _entries_have_one_rule(self) -> Any:
        if self.granularity == "entry":
            if getattr(self, "choose_by", "weight") != "weight":
                raise ValueError("granularity: entry needs choose_by: weight, but got choose_by: loss")
            if "precisions" in self.model_fields_set:
                raise ValueError("granularity: entry has one number of bits for all: set bits in place of precisions")
        return self


def cuts(net: Supernet) -> bool:
    """Whether a net answers with single entries."""
    return getattr(net.config, "granularity", "block") == "entry"


def choose(net: Supernet, limit: int | None) -> Architecture:
    """The parent with the single entries of the best scores within `limit` bytes, or above the method's threshold.

    Raises:
        SpaceError: there is no limit and no threshold, or the limit holds nothing; or bits are 1, which have no 0.
    """
    bits, scores, rows = net.block_bits(), _blocks(net), net.parent.block_rows()
    if int(bits.min()) == 1:
        raise SpaceError("granularity: entry needs 2 bits or more, but got bits: 1")
    if limit is None and hasattr(net.config, "threshold"):
        return _with(net, np.array([int((one >= net.config.threshold).sum()) for one in scores]), bits)
    left = net.left(limit)
    dims = net.parent.mask().sum(axis=1)

    def cost(block: int, entries: int) -> int:
        return sparse_bytes(
            int(rows[block]),
            int(dims[block]),
            int(bits[block]),
            entries,
            step=net.parent.mixed().step,
            first_order=net.first_order,
        )

    each = bits / 8
    fixed = np.array([cost(block, 1) for block in range(len(bits))]) - each
    ordered = [np.sort(one)[::-1] for one in scores]
    sums = [np.concatenate([[0.0], np.cumsum(one)]) for one in ordered]

    def at(price: float) -> Array:
        counts = np.zeros(len(bits), dtype=np.int64)
        for block, one in enumerate(ordered):
            count = int(np.searchsorted(-one, -price * each[block], side="left"))
            if sums[block][count] > price * (fixed[block] + count * each[block]):
                counts[block] = count
        return counts

    def total(counts: Array) -> int:
        return sum(cost(block, int(count)) for block, count in enumerate(counts))

    low, high = 0.0, max(float(one[0] / each[block]) for block, one in enumerate(ordered)) + 1e-12
    if total(at(low)) > left:
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if total(at(middle)) > left else (low, middle)
    else:
        high = low
    counts = at(high)
    if not counts.any():
        counts = _smallest(fixed + each, left)
    return _with(net, _filled(counts, ordered, each, left - total(counts)), bits)


def _smallest(sizes: Array, left: int) -> Array:
    """One entry of the block that takes the fewest bytes; SpaceError if the budget does not hold it."""
    block = int(sizes.argmin())
    if sizes[block] > left:
        raise SpaceError(
            f"the budget must hold one entry of the smallest block ({int(np.ceil(sizes[block]))} bytes), but got {left}"
        )
    counts = np.zeros(len(sizes), dtype=np.int64)
    counts[block] = 1
    return counts


def _filled(counts: Array, ordered: list[Array], each: Array, left: int) -> Array:
    """The counts with the next best entries of open blocks, as far as the bytes go."""
    open_blocks = np.flatnonzero(counts)
    left -= 2 * len(open_blocks)  # a block's last byte, or two of 3 bits, may not be full
    rest = [ordered[block][counts[block] :] for block in open_blocks]
    owner = np.repeat(open_blocks, [len(one) for one in rest])
    worth = np.concatenate(rest) / each[owner] if len(owner) else np.empty(0)
    best = owner[np.argsort(-worth, kind="stable")][: int((worth > 0).sum())]
    taken = best[: int(np.searchsorted(np.cumsum(each[best]), left, side="right"))]
    return np.asarray(counts + np.bincount(taken, minlength=len(counts)))


def _with(net: Supernet, counts: Array, bits: Array) -> Architecture:
    found = net.parent.with_entries(counts, bits=bits)
    pair_bits = min(net.parent.pair_bits, net.config.bits or 32)
    return found if pair_bits == found.pair_bits else found.replace(pair_bits=pair_bits)


def _blocks(net: Supernet) -> list[Array]:
    """The scores above 0 of each block's open entries, float [entries]."""
    table, parts = _scores(net).cpu().numpy(), []
    for part in np.split(table, net.parent.block_rows().cumsum()[:-1]):
        parts.append(np.append(part[part > 0], 0.0))
    return parts


def _scores(net: Supernet) -> Tensor:
    """What each entry is worth, 0 where it is closed: float [N, D]."""
    rows = torch.as_tensor(net.parent.block_rows(), device=net.weight.device)
    mask = net.mask[:, : net.parent.dim].repeat_interleave(rows, dim=0)
    return net.entry_scores() * mask


@torch.no_grad()
def kept(net: Supernet, architecture: Architecture) -> Tensor:
    """Which of the net's entries a sparse architecture derived from it keeps, bool [N, D (+ 1)]."""
    blocks = np.isin(np.array(net.parent.names)[net.parent.field_of_block()], architecture.names)
    counts = np.zeros(len(blocks), dtype=np.int64)
    counts[blocks] = architecture.block_entries()
    parts = torch.split(_scores(net), net.parent.block_rows().tolist())
    chosen = [largest(part, int(count)) for part, count in zip(parts, counts, strict=True)]
    if net.first_order:
        chosen = [
            torch.nn.functional.pad(one, (0, 1), value=bool(count > 0))
            for one, count in zip(chosen, counts, strict=True)
        ]
    return torch.cat(chosen)
