"""DeepFM as servers run it: its sums over fields and the input of its tower, by one compiled pass over embeddings."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from autoembed.native import View, summing
from autoembed.nn.backbones.deepfm import Backbone
from autoembed.types import Array


class OnePass(nn.Module):
    """A `Backbone` for predictions on a CPU, whose numbers differ by rounding.

    It takes first-order weights as lookups give them, behind the dims of each field, and no pairs.
    """

    def __init__(self, own: Backbone) -> None:
        super().__init__()
        self.tower, self.bias = own.tower, own.bias

    def forward(self, e_BFC: Tensor, first_BF: None) -> Tensor:
        """Embeddings [B, F, D + 1] -> logits [B]."""
        rows, fields, columns = e_BFC.shape
        flat, sums = torch.empty(rows, fields, columns - 1), torch.empty(rows)
        work = np.empty(columns - 1, np.float32)
        sum_up(View(e_BFC.contiguous().numpy()), View(flat.numpy()), View(sums.numpy()), work)
        out: Tensor = sums + self.bias + self.tower(flat)
        return out


@summing
def sum_up(e: Array, flat: Array, sums: Array, work: Array) -> None:
    """Copies the dims of e float32 [B, F, D + 1], and adds up its other parts.

    flat float32 [B, F, D]: the dims; sums float32 [B]: first-order weights and the factorization machine; work float32
    [D].
    """
    dims = flat.shape[2]
    half = np.float32(0.5)
    for b in range(e.shape[0]):
        first, squares, total = np.float32(0), np.float32(0), np.float32(0)
        for d in range(dims):
            work[d] = 0
        for f in range(e.shape[1]):
            first += e[b, f, dims]
            for d in range(dims):
                value = e[b, f, d]
                flat[b, f, d] = value
                work[d] += value
                squares += value * value
        for d in range(dims):
            total += work[d] * work[d]
        sums[b] = first + half * (total - squares)
