"""Narrow rows through a matrix of their block's own, so that every field has the same inputs of the tower."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoembed.architecture import Architecture
from autoembed.nn.embedding import MixedEmbedding


class ProjectedEmbedding(MixedEmbedding):
    """Tables as of mixed storage; a row of w numbers is multiplied by its block's matrix [w, E] (arXiv 1909.11810).

    E counts the dims up to the last one that any block keeps. Matrices start with a 1 where a kept dim is its own
    input, so a fresh projection gives what mixed storage gives. Each field's blocks stand side by side in a row of
    their widths' sum W, zeros but for the value's own block, and one batched product serves all of them.
    """

    rows: Tensor

    def __init__(self, architecture: Architecture, *, first_order: bool, **options: Any) -> None:
        super().__init__(architecture, first_order=first_order, **options)
        mask, field = architecture.mask(), architecture.field_of_block()
        self.dim, self.fields, self.first_order = architecture.dim, len(architecture.fields), first_order
        self.inputs = 1 + int(np.flatnonzero(mask.any(axis=0))[-1])
        width = mask.sum(axis=1)
        start = width.cumsum() - width
        start -= start[np.searchsorted(field, field)]  # counted within the field
        self.side = int((start + width).max())
        place = start[:, None] + np.arange(self.place.shape[1])
        place[place >= (start + width)[:, None]] = self.side  # the first-order weight, or never read
        rows = np.concatenate([f * self.side + at + np.arange(w) for f, at, w in zip(field, start, width, strict=True)])
        self.columns, self.whole = self.side + first_order, False
        self.register_buffer("place", torch.tensor(place.astype(np.int16)), persistent=False)
        self.register_buffer("rows", torch.tensor(rows), persistent=False)
        self.project = nn.Parameter(torch.tensor(np.eye(self.inputs, dtype=np.float32)[np.nonzero(mask)[1]]))

    def forward(self, ids_BF: Tensor) -> Tensor:
        """Ids int [B, F] -> projected rows, zeros behind them: float [B, F, D (+ 1)]."""
        rows = super().forward(ids_BF)
        wide = self.project.new_zeros(self.fields * self.side, self.inputs).index_copy(0, self.rows, self.project)
        body = torch.bmm(rows[..., : self.side].transpose(0, 1), wide.view(self.fields, self.side, self.inputs))
        parts = [functional.pad(body.transpose(0, 1), (0, self.dim - self.inputs))]
        return torch.cat([*parts, rows[..., self.side :]], dim=2) if self.first_order else parts[0]
