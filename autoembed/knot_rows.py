"""Rows of numbers that are not free while a model is trained: a function of the number gives them.

The rows stand in the model's own tables all the time. Each step takes what the loss asks of them as what it asks of the
function's weights, moves these, and writes the rows again. So the model that is trained, measured and stored is one of
numbers between knots (`data.knots`), and the function is not needed any more.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from autoembed.data.dataset import Dataset
from autoembed.data.knots import FUNCTIONS, Function, Interpolation
from autoembed.nn.model import ClickModel
from autoembed.nn.number_functions import Periodic, SoftBins


class NumberFunctions(BaseModel):
    """Options of the functions that embed numbers (`data.numeric_embedding` periodic and soft_bins).

    Args:
        function: of all columns between knots, piecewise ones too, in the place of what the data say; `free` is none.
        frequencies: sines, and as many cosines, of each periodic column.
        sigma: frequencies start as a normal draw of this standard deviation, in waves over all rows of train: the
            larger, the faster may the label change with the number.
        relu: whether negative numbers of a periodic column's embeddings become 0, as in the paper.
        soft_bins: embeddings that the one of a number in a column of soft_bins is the mean of.
        temperature: how soft: near 0 a number has one of them, and many make their plain mean.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    function: Literal["free"] | Function | None = None
    frequencies: int = Field(default=16, ge=1)
    sigma: float = Field(default=2.0, gt=0)
    relu: bool = True
    soft_bins: int = Field(default=16, ge=2)
    temperature: float = Field(default=0.3, gt=0)

    def kind_of(self, interpolation: Interpolation | None) -> Interpolation | None:
        """How a column's numbers are embedded whose data say `interpolation`."""
        if self.function is None or interpolation in (None, "linear"):
            return interpolation
        return "piecewise" if self.function == "free" else self.function


class KnotRows:
    """The rows of a fresh model that functions of numbers give, and these functions.

    A model of several members has a function for each of them. What is missing and what is unknown have free rows.
    """

    def __init__(self, model: ClickModel, dataset: Dataset, options: NumberFunctions, kind: Function) -> None:
        names = {field.name for field in dataset.schema.fields if options.kind_of(field.interpolation) == kind}
        parts = [part for part in model.parts() if part.field in names]
        owners = list(dict.fromkeys((part.member, part.field) for part in parts))
        vocabulary = dataset.vocabulary_of(names)
        every = [vocabulary.quantiles(name) for _, name in owners]
        knots = [np.flatnonzero(~np.isnan(quantiles)) for quantiles in every]
        most = max(map(len, knots))
        padded = np.zeros((len(every), most), dtype=np.float32)
        for own, quantiles, ids in zip(padded, every, knots, strict=True):
            own[: len(ids)] = quantiles[ids]
        device = parts[0].table.device
        self.width = width = 1 + max(column for part in parts for column in part.columns)
        self.quantiles = torch.from_numpy(padded).to(device)
        self.function: Periodic | SoftBins
        if kind == "periodic":
            self.function = Periodic(
                len(owners),
                width,
                frequencies=options.frequencies,
                sigma=options.sigma,
                relu=parts[0].dim if options.relu else 0,
            )
        else:
            self.function = SoftBins(len(owners), width, bins=options.soft_bins, temperature=options.temperature)
        self.function.to(device)
        self.parts: list[tuple[nn.Parameter, Tensor, Tensor]] = []  # table, its rows [N], their outputs [N, W]
        for part in parts:
            owner = owners.index((part.member, part.field))
            held = np.flatnonzero((knots[owner] >= part.ids.start) & (knots[owner] < part.ids.stop))
            rows = part.rows.start + knots[owner][held] - part.ids.start
            outputs = (owner * most + held)[:, None] * width + np.array(part.columns)
            self.parts.append((part.table, torch.from_numpy(rows).to(device), torch.from_numpy(outputs).to(device)))
        self.write()

    def parameters(self) -> list[nn.Parameter]:
        """The functions' weights."""
        return list(self.function.parameters())

    def pull(self) -> None:
        """Turns the gradients of the rows into those of the functions' weights."""
        gradient = torch.zeros(self.quantiles.numel() * self.width, device=self.quantiles.device)
        for table, rows, outputs in self.parts:
            if table.grad is None:  # a cluster's table that no row of the batch went to has none
                continue
            own = table.grad.index_select(0, rows)
            gradient[outputs] = own.to_dense() if own.is_sparse else own
            if not own.is_sparse:
                table.grad.index_fill_(0, rows, 0.0)
        out = self.function(self.quantiles)
        out.backward(gradient.view_as(out))

    @torch.no_grad()
    def write(self) -> None:
        """Writes what the functions give into the rows."""
        out = self.function(self.quantiles).flatten()
        for table, rows, outputs in self.parts:
            table.index_copy_(0, rows, out[outputs])


def knot_rows(model: ClickModel, dataset: Dataset, options: NumberFunctions) -> list[KnotRows]:
    """The rows of a fresh model that functions of numbers give, for each kind of function that there is."""
    kind_of = {field.name: options.kind_of(field.interpolation) for field in dataset.schema.fields}
    if not set(FUNCTIONS) & set(kind_of.values()):
        return []
    kinds = {kind_of[part.field] for part in model.parts()}
    return [KnotRows(model, dataset, options, kind) for kind in FUNCTIONS if kind in kinds]
