"""Single entries instead of dims of blocks (`granularity: entry`), as DNIS cuts them (arXiv 2006.04466, sec. 3.4).

Each value keeps entries of its own. An open block pays for a bit for each entry, for places of rows, steps and
first-order weights, whatever it keeps. Blocks open by the price a byte at which their entries pay for all of that; for
each of the sets of blocks that a falling price opens, the entries of the best scores a byte fill the budget, and the
set with the largest sum of scores is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch
from pydantic import BaseModel, model_validator
from torch import Tensor

from autoembed.architecture import Architecture
from autoembed.errors import SpaceError
from autoembed.nn.sparse import largest
from autoembed.storage import sparse_bytes
from autoembed.types import Array

if TYPE_CHECKING:
    from autoembed.methods.supernet import Supernet

_PREFIXES = 16  # of the blocks by price that are tried


class EntryConfig(BaseModel):
    """The option of methods that can cut single entries.

    Args:
        granularity: `block` cuts dims of whole blocks, `entry` single entries, which all have the stage's `bits`.
    """

    granularity: Literal["block", "entry"] = "block"

    @model_validator(mode="after")
    def _entries_have_one_rule(self) -> Self:
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

    # A byte more for each block, or two for 3 bits: its last ones may not be full.
    spare = np.where(bits == 3, 2, bits < 8)
    each = bits / 8
    fixed = np.array([cost(block, 1) for block in range(len(bits))]) - each + spare
    counts = best_counts([np.sort(one)[::-1] for one in scores], fixed, each, left)
    return _with(net, counts, bits)


def best_counts(ordered: list[Array], fixed: Array, each: Array, left: int) -> Array:
    """How many entries of each block to keep, int [S].

    Args:
        ordered: the scores of each block's entries, falling, float [entries].
        fixed: bytes of an open block without its entries, float [S].
        each: bytes of one entry, float [S].
        left: bytes for all.

    Raises:
        SpaceError: no block with one entry fits.
    """
    prices = np.array([_opens_at(one, f, e) for one, f, e in zip(ordered, fixed, each, strict=True)])
    order = np.argsort(-prices, kind="stable")
    order = order[prices[order] > 0]
    owner = np.repeat(np.arange(len(ordered)), [len(one) for one in ordered])
    worth = np.concatenate(ordered) / each[owner]
    rank = np.argsort(-worth, kind="stable")
    rank = rank[worth[rank] > 0]
    owner, gain = owner[rank], (worth * each[owner])[rank]
    size = each[owner]
    affordable = np.flatnonzero(np.cumsum(fixed[order]) < left)
    best, counts = 0.0, np.zeros(len(ordered), dtype=np.int64)
    for last in affordable[-_PREFIXES:]:
        opened = np.isin(np.arange(len(ordered)), order[: last + 1])
        own = np.flatnonzero(opened[owner])
        taken = own[: int(np.searchsorted(np.cumsum(size[own]), left - fixed[opened].sum(), side="right"))]
        value = float(gain[taken].sum())
        if value > best:
            best, counts = value, np.bincount(owner[taken], minlength=len(ordered))
    return counts if counts.any() else _smallest(fixed + each, left)


def _opens_at(scores: Array, fixed: float, each: float) -> float:
    """The highest price a byte at which a block's entries, scores falling, pay for themselves and for it; 0 for none.

    That is the best of the sums of its first scores over the bytes that they and the block take.
    """
    return float((np.cumsum(scores) / (fixed + each * np.arange(1, len(scores) + 1))).max(initial=0.0))


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
