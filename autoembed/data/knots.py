"""Numbers between knots: the two bins that a number lies between, each with its share of it.

The embedding of a number is (1 - t) of one knot's and t of the next one's, as in a piecewise-linear encoding
(Gorishniy et al., arXiv 2203.05556). The encoded table has two columns for such a field. Each holds an id and, in parts
of ONE and times SPAN, what is missing of a whole share: a plain id is a whole value, and PAD is none. The first id is
that of the number's bin.

A bin of a single value has no knot: a value that is frequent, or says much about the label, is often a category, such
as no gain at all, and other numbers are not like it. No number is interpolated towards it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from autoembed.errors import DataError

Function = Literal["periodic", "soft_bins"]
Interpolation = Literal["piecewise", "linear"] | Function
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int32]

FUNCTIONS: tuple[Function, ...] = ("periodic", "soft_bins")  # of the number: they give the rows of knots
SPAN = 1 << 16  # ids are below it
ONE = 1 << 15  # the parts of a whole share
COLUMNS = 2  # of the encoded table
_PAD = -1
_TAIL = 0.005  # of the rows are beyond each of the two knots of a line


@dataclass(frozen=True, kw_only=True)
class Knots:
    """The median of each bin's rows, and which bins have a single value: these medians are no knots."""

    medians: Floats
    single: npt.NDArray[np.bool_]

    @property
    def places(self) -> Floats:
        """The knot of each bin, NaN for none."""
        found: Floats = np.where(self.single, np.nan, self.medians)
        return found

    @property
    def texts(self) -> list[str]:
        """For each bin its knot, or behind "=" its value."""
        values = zip(self.medians.tolist(), self.single.tolist(), strict=True)
        return [f"={value!r}" if single else repr(value) for value, single in values]

    @classmethod
    def of_texts(cls, texts: Sequence[str]) -> Knots:
        return cls(
            medians=np.array([float(text.removeprefix("=")) for text in texts]),
            single=np.array([text.startswith("=") for text in texts]),
        )


def of_bins(values: Floats, counts: Counts, uppers: Floats) -> Knots:
    """The knots of bins; a median is the least value that half of the rows do not exceed.

    Args:
        values: the distinct values of train, ascending; every bin has one.
        counts: train rows of each.
        uppers: ascending upper bounds (inclusive) of the bins.
    """
    upto = np.cumsum(counts)
    last = np.searchsorted(values, uppers, side="right") - 1
    ends = upto[last]
    starts = np.append(0, ends[:-1])
    medians = values[np.searchsorted(upto, starts + (ends - starts + 1) // 2)]
    return Knots(medians=medians, single=last == np.append(-1, last[:-1]) + 1)


def line(values: Floats, counts: Counts) -> tuple[Floats, Knots]:
    """The upper bounds and knots of a line: the values that half a percent of the rows are below, and above.

    Where these are one value, the knots are the least and the largest. A column without finite values has the knot 0.
    """
    finite = np.isfinite(values)
    values, counts = (values[finite], counts[finite]) if finite.any() else (np.zeros(1), np.ones(1, dtype=np.int64))
    upto = np.cumsum(counts)
    low, high = (values[np.searchsorted(upto, share * upto[-1])] for share in (_TAIL, 1 - _TAIL))
    if low == high:
        low, high = values[0], values[-1]
    if low == high:
        return np.array([np.inf]), Knots(medians=np.array([low]), single=np.zeros(1, dtype=bool))
    ends = Knots(medians=np.array([low, high]), single=np.zeros(2, dtype=bool))
    return np.array([low / 2 + high / 2, np.inf]), ends


def check_size(name: str, knots: int) -> None:
    """DataError if a field has more knots than codes can tell apart."""
    if knots > SPAN - 2:
        raise DataError(
            f"numeric_embedding of {name!r} must have at most {SPAN - 2} knots, but has {knots}: lower data.bins"
        )


def encode(values: Floats, uppers: Floats, knots: Floats, ids: Ids, missing: int) -> Ids:
    """The codes of numbers [N], NaN where one is missing: int32 [N, 2].

    A number that has no knot on one side is its bin.

    Args:
        values: the numbers.
        uppers: ascending upper bounds of the bins, the last infinite.
        knots: the knot of each bin, NaN for none.
        ids: the id of each bin.
        missing: the id of missing.
    """
    out = np.full((len(values), COLUMNS), _PAD, dtype=np.int32)
    gone = np.isnan(values)
    x = np.where(gone, 0.0, values)
    place = np.searchsorted(uppers, x)
    own = knots[place]
    other = np.clip(place + np.where(x > own, 1, -1), 0, len(knots) - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = knots[other] / 2 - own / 2  # halves: the distance of two numbers may be none
        share = np.where((gap == 0) | ~np.isfinite(gap), 0.0, (x / 2 - own / 2) / gap)
    parts = np.minimum(np.floor(share * ONE + 0.5), ONE - 1).astype(np.int32)
    between = (parts > 0) & ~gone
    out[:, 0] = np.where(gone, missing, ids[place] + parts * SPAN)
    out[between, 1] = (ids[other] + (ONE - parts) * SPAN)[between]
    return out


def plain(codes: Ids) -> Ids:
    """The ids in codes, int32 of any shape; PAD as it stands."""
    found: Ids = np.where(codes < 0, codes, codes % SPAN).astype(np.int32)
    return found
