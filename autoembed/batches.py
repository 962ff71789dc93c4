"""The rows of a dataset as tensors: batch by batch, by their weights, or a sample of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from autoembed.data.dataset import Dataset
from autoembed.data.spec import Split
from autoembed.errors import TrialError
from autoembed.shuffle import RowOrder
from autoembed.types import Array

_MEAN_OF = 1 << 20  # rows whose weights are added up at a time


def batches(
    dataset: Dataset,
    split: Split,
    size: int,
    device: torch.device,
    *,
    rows: RowOrder | None = None,
    least: int = 1,
    columns: Sequence[Array] = (),
) -> Iterator[tuple[Tensor, ...]]:
    """Ids int32 [B, F] and labels float [B], in the order of `rows` (all in file order by default).

    Behind them come the same rows of `columns`, arrays of what else is known of each row of the split. A last batch of
    fewer than `least` rows is left out: batch norm cannot train on a single row.
    """
    table = [torch.from_numpy(column) for column in (dataset.ids(split), dataset.labels(split), *columns)]
    total = len(table[0]) if rows is None else len(rows)
    pin = device.type == "cuda"
    for start in range(0, total, size):
        stop = min(start + size, total)
        if rows is None:
            batch = [column[start:stop] for column in table]
        else:
            if stop - start < least:
                return
            at = torch.from_numpy(rows[np.arange(start, stop)])
            batch = [column.index_select(0, at) for column in table]
        if pin:
            batch = [column.pin_memory() for column in batch]
        yield tuple(column.to(device, non_blocking=True) for column in batch)


class RowWeights:
    """The weights of train's rows for a training, scaled so that their mean is 1 over the rows that are drawn from.

    So a row of weight 2 moves a model as two equal rows would, and the size of the weights says nothing: a batch's loss
    is the mean over its rows of weight times loss, whose expectation is the weighted mean over all rows. A batch is not
    divided by its own sum of weights, which would make rows count more in a batch of light ones.

    Args:
        dataset: whose train split is trained on.
        seen: the rows, or those below a whole number.
    """

    def __init__(self, dataset: Dataset, seen: int | RowOrder) -> None:
        self.all = dataset.weights("train")
        self.scale = 1.0
        self.of_rows(seen)

    def of_rows(self, seen: int | RowOrder) -> None:
        """Scales the weights to the rows of another draw."""
        if self.all is None:
            return
        total, rows = 0.0, seen if isinstance(seen, int) else len(seen)
        for start in range(0, rows, _MEAN_OF):
            places = np.arange(start, min(start + _MEAN_OF, rows))
            total += float(self.all[places if isinstance(seen, int) else seen[places]].sum(dtype=np.float64))
        if not total:
            raise TrialError("the rows that are trained on must have some weight, but have none: hold out fewer")
        self.scale = rows / total

    @property
    def columns(self) -> tuple[Array, ...]:
        """For `batches`."""
        return () if self.all is None else (self.all,)

    def of(self, told: Sequence[Tensor]) -> Tensor | None:
        """The weights of a batch, from what `batches` gives first of all `columns`; None if there are none."""
        return None if self.all is None else told[0] * self.scale


def sampled(dataset: Dataset, rows: int | RowOrder, share: float, seed: Sequence[int]) -> int | RowOrder:
    """The rows of train, or those below a whole number, with a click and a random share of the others."""
    if share == 1:
        return rows
    numbers = np.arange(rows) if isinstance(rows, int) else rows[np.arange(len(rows))]
    ones = dataset.task.classes(dataset.labels("train")[numbers]) == 1
    kept: Array = numbers[ones | (np.random.default_rng(seed).random(len(numbers)) < share)]
    return kept
