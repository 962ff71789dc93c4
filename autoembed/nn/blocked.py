"""Linear layers whose weights lie in blocks as oneDNN reads them, for predictions on an x86 processor.

torch's own matrix product on a CPU puts weights into blocks at each call, and adds the bias and the ReLU in passes of
their own. What is called here are the operations that torch's compiler makes of such layers; they need no compiler.
"""

from __future__ import annotations

import platform
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoembed.fast import takes

_LEAST = 1 << 14  # weights: below, a call's own cost is more than what is saved
_ROWS = 16
# oneDNN makes a kernel for each number of rows, which takes a millisecond and half a megabyte that it keeps.
_KERNELS = 16
_OFTEN = 8


class BlockedLinear(nn.Module):
    """A linear layer, or one with the ReLU behind it; its numbers differ by rounding.

    Numbers of rows that come often, as of a service that ranks 500 candidates, are computed in blocks, up to a few such
    numbers; others, and those of a few rows, as before.
    """

    def __init__(self, plain: nn.Linear, *, relu: bool) -> None:
        super().__init__()
        self.plain, self.relu = plain, relu
        self.blocks = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach())
        self.seen: Counter[int] = Counter()
        self.often: set[int] = set()

    def forward(self, x: Tensor) -> Tensor:
        """[B, in] -> [B, out]."""
        if self.in_blocks(len(x)):
            then, bias = "relu" if self.relu else "none", self.plain.bias
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.blocks, bias, then, [], "")
            return out
        out = self.plain(x)
        return functional.relu_(out) if self.relu else out

    def in_blocks(self, rows: int) -> bool:
        """Whether so many rows, which have come once more, are computed in blocks."""
        if rows in self.often:
            return True
        if rows < _ROWS or len(self.often) >= _KERNELS:
            return False
        self.seen[rows] += 1
        if self.seen[rows] == _OFTEN:
            self.often.add(rows)
        return rows in self.often


def blocked(layer: nn.Module, *, relu: bool = False) -> nn.Module | None:
    """A layer in this form; None where it is no linear one, is small, or this torch or processor has no such form."""
    if type(layer) is not nn.Linear or layer.weight.numel() < _LEAST or not _able(layer.weight):
        return None
    return BlockedLinear(layer, relu=relu)


def _able(weight: Tensor) -> bool:
    known = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    here = weight.device.type == "cpu" and weight.dtype == torch.float32 and platform.machine() in ("x86_64", "AMD64")
    return takes("towers") and here and known and torch.backends.mkldnn.is_available()
