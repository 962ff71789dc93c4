"""Linear layers that are served from fewer bits than they were trained in.

Weights only: 8 bits are codes -127..127 with a scale for each output, set by the output's largest weight (as in vLLM's
and torchao's weight-only int8), 16 bits are half precision. Activations stay in 32 bits, and so do layers of one
output, which are small and add straight to the logit.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from autoembed.errors import SpaceError
from autoembed.plans import TowerBits

_LARGEST = 127
_LEAST = 1e-12


class PackedLinear(nn.Module):
    """A linear layer to serve, with zeros as weights until it is loaded; it cannot be trained."""

    codes: Tensor
    scale: Tensor

    def __init__(self, plain: nn.Linear, bits: Literal[16, 8]) -> None:
        super().__init__()
        shape, device = plain.weight.shape, plain.weight.device
        self.bits = bits
        kind = torch.int8 if bits == 8 else torch.float16
        self.register_buffer("codes", torch.zeros(shape, dtype=kind, device=device))
        if bits == 8:
            self.register_buffer("scale", torch.zeros(shape[0], device=device))
        self.bias = None if plain.bias is None else nn.Parameter(torch.zeros_like(plain.bias))

    @property
    def entries(self) -> int:
        """Weights, the bias left out."""
        return self.codes.numel()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if self.bits == 16:
            return functional.linear(x, self.codes.to(x.dtype), self.bias)
        out = functional.linear(x, self.codes.to(x.dtype)) * self.scale
        return out if self.bias is None else out + self.bias

    @torch.no_grad()
    def load(self, plain: nn.Linear) -> None:
        """Takes over a trained layer's weights, rounded."""
        if self.bits == 16:
            self.codes.copy_(plain.weight)
        else:
            self.scale.copy_(plain.weight.abs().amax(1).clamp_min(_LEAST) / _LARGEST)
            self.codes.copy_((plain.weight / self.scale[:, None]).round())
        if self.bias is not None:
            self.bias.copy_(plain.bias)


def quantise_layers(backbone: nn.Module, bits: TowerBits) -> None:
    """Replaces the linear layers of a backbone in place, those of one output left out.

    SpaceError if it has none.
    """
    if bits == 32:
        return
    found = [
        (path, layer)
        for path, layer in backbone.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features > 1
    ]
    if not found:
        raise SpaceError(f"tower.bits: {bits} needs a backbone with linear layers: use 32")
    for path, layer in found:
        parent, _, name = path.rpartition(".")
        setattr(backbone.get_submodule(parent), name, PackedLinear(layer, bits))


def load_layers(packed: nn.Module, trained: nn.Module) -> set[str]:
    """Loads every replaced layer from a model of the same shape; the names of the tensors that are then in place."""
    done = set()
    for path, layer in packed.named_modules():
        if isinstance(layer, PackedLinear):
            layer.load(cast(nn.Linear, trained.get_submodule(path)))
            done |= {f"{path}.weight", f"{path}.bias"}
    return done
