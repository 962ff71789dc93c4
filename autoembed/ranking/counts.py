"""Contingency counts of every column with the label: they add up, over chunks and over machines, in any order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

_CHUNK_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True)
class LabelCounts:
    """Per field, the rows of each id and the positive ones among them: int64 [cardinality] each."""

    rows: tuple[Counts, ...]
    positives: tuple[Counts, ...]

    def __add__(self, other: LabelCounts) -> LabelCounts:
        return LabelCounts(
            rows=tuple(a + b for a, b in zip(self.rows, other.rows, strict=True)),
            positives=tuple(a + b for a, b in zip(self.positives, other.positives, strict=True)),
        )


def count_labels(
    ids: npt.NDArray[np.int32], labels: npt.NDArray[np.float32], cardinalities: tuple[int, ...]
) -> LabelCounts:
    """Count ids [rows, F] against labels [rows] of 0 and 1, a chunk of rows at a time, so that memory stays flat."""
    rows = [np.zeros(size, dtype=np.int64) for size in cardinalities]
    positives = [np.zeros(size, dtype=np.int64) for size in cardinalities]
    step = max(1, _CHUNK_BYTES // (4 * max(1, len(cardinalities))))
    for start in range(0, len(ids), step):
        chunk = np.ascontiguousarray(ids[start : start + step].T)
        clicked = labels[start : start + step] > 0.5
        for field, size in enumerate(cardinalities):
            rows[field] += np.bincount(chunk[field], minlength=size)
            positives[field] += np.bincount(chunk[field][clicked], minlength=size)
    return LabelCounts(rows=tuple(rows), positives=tuple(positives))
