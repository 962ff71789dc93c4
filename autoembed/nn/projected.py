"""Narrow rows through a matrix of their block's own, so that every field has the same inputs of the tower."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from autoembed.architecture import Architecture
from autoembed.nn.embedding import MixedEmbedding


class ProjectedEmbedding(MixedEmbedding):
    """Tables as of mixed storage; a row of w numbers is multiplied by its block's matrix [w, E] (arXiv 1909.11810).

    E counts the dims up to the last one that any block keeps; rows of E numbers are the inputs themselves. Matrices
    start with a 1 where a kept dim is its own input, so a fresh projection gives what mixed storage gives.

    A field's narrow blocks stand side by side in a row of their widths' sum W, zeros but for the value's own block, so
    that one batched product serves them all. Wide rows stand behind them.
    """

    rows: Tensor

    def __init__(self, architecture: Architecture, *, first_order: bool, packed: bool = False) -> None:
        super().__init__(architecture, first_order=first_order, packed=packed)
        mask, field = architecture.mask(), architecture.field_of_block()
        self.dim, self.fields, self.first_order = architecture.dim, len(architecture.fields), first_order
        self.inputs = 1 + int(np.flatnonzero(mask.any(axis=0))[-1])
        width = mask.sum(axis=1)
        narrow = np.where(width < self.inputs, width, 0)
        start = narrow.cumsum() - narrow
        start -= start[np.searchsorted(field, field)]  # counted within the field
        self.side = int((start + narrow).max())
        self.columns, self.whole = self.side + self.inputs + first_order, False
        start[width == self.inputs] = self.side
        place = start[:, None] + np.arange(self.place.shape[1])
        place[place >= (start + width)[:, None]] = self.columns - 1  # the first-order weight, or never read
        rows = [f * self.side + at + np.arange(w) for f, at, w in zip(field, start, narrow, strict=True)]
        starts_at = np.nonzero(mask[narrow > 0])[1]
        self.register_buffer("place", torch.tensor(place.astype(np.int16)), persistent=False)
        self.register_buffer("rows", torch.tensor(np.concatenate(rows)), persistent=False)
        self.project = nn.Parameter(torch.tensor(np.eye(self.inputs, dtype=np.float32)[starts_at]))

    def lookup(self, ids_BV: Tensor) -> Tensor:
        """Ids int [B, V] -> projected rows, zeros behind them: float [B, V, D (+ 1)]."""
        rows = super().lookup(ids_BV)
        matrices = self.project.new_zeros(self.fields * self.side, self.inputs).index_copy(0, self.rows, self.project)
        narrow, wide = rows[..., : self.side], rows[..., self.side : self.side + self.inputs]
        each = matrices.view(self.fields, self.side, self.inputs)
        if self.pool is not None:
            each = each[self.pool.field_of_column]
        body = torch.bmm(narrow.transpose(0, 1), each).transpose(0, 1)
        parts = [body + wide]
        if self.inputs < self.dim:
            parts.append(body.new_zeros(*ids_BV.shape, self.dim - self.inputs))
        if self.first_order:
            parts.append(rows[..., -1:])
        return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
