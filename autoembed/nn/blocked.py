"""Linear layers whose weights lie in blocks as oneDNN reads them, for predictions on an x86 processor.

torch's own matrix product on a CPU puts weights into blocks at each call, and adds the bias and the ReLU in passes of
their own. What is called here are the operations that torch's compiler makes of such layers; they need no compiler.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor, nn

from autoembed.fast import takes

_LEAST = 1 << 14  # weights: below, a call's own cost is more than what is saved


class BlockedLinear(nn.Module):
    """A linear layer, or one with the ReLU behind it; its numbers differ by rounding."""

    def __init__(self, plain: nn.Linear, *, relu: bool) -> None:
        super().__init__()
        self.blocks = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach())
        self.bias = None if plain.bias is None else plain.bias.detach()
        self.then = "relu" if relu else "none"

    def forward(self, x: Tensor) -> Tensor:
        """[B, in] -> [B, out]."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.blocks, self.bias, self.then, [], "")
        return out


def blocked(layer: nn.Module, *, relu: bool = False) -> nn.Module | None:
    """A layer in this form; None where it is no linear one, is small, or this torch or processor has no such form."""
    if type(layer) is not nn.Linear or layer.weight.numel() < _LEAST or not _able(layer.weight):
        return None
    return BlockedLinear(layer, relu=relu)


def _able(weight: Tensor) -> bool:
    known = all(hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise"))
    here = weight.device.type == "cpu" and weight.dtype == torch.float32 and platform.machine() in ("x86_64", "AMD64")
    return takes("towers") and here and known and torch.backends.mkldnn.is_available()
