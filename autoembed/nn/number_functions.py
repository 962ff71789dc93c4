"""Embeddings as functions of a number's quantile: waves, or soft bins.

A quantile is the share of train's rows with a smaller number, 0..1. Shapes: F fields, K quantiles of each, C numbers of
an embedding and perhaps a first-order weight. Each field has weights of its own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_STD = 0.01  # of the embeddings of a fresh function, as of a fresh table
_SKIP = 0.1  # AutoDis, table 5: how much of a hidden layer's input is added to its output


def _normal(*shape: int, std: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape).normal_(std=std))


class Periodic(nn.Module):
    """Sines and cosines of learnt frequencies, a linear layer, perhaps a ReLU (arXiv 2203.05556, sec. 3.3).

    These are the "PLR" and "PL" of Gorishniy et al. A first-order weight has no ReLU: a number may speak against.

    Args:
        fields: how many fields.
        width: C.
        frequencies: how many of each field.
        sigma: frequencies start as a normal draw of this standard deviation, in waves over all of train's rows.
        relu: of how many of the first of C numbers negative ones become 0.
    """

    def __init__(self, fields: int, width: int, *, frequencies: int, sigma: float, relu: int) -> None:
        super().__init__()
        self.relu = relu
        self.frequency = _normal(fields, 1, frequencies, std=sigma)
        self.weight = _normal(fields, 2 * frequencies, width, std=_STD / frequencies**0.5)
        self.bias = nn.Parameter(torch.zeros(fields, 1, width))

    def forward(self, quantile_FK: Tensor) -> Tensor:
        """Quantiles float [F, K] -> embeddings float [F, K, C]."""
        wave = 2 * math.pi * quantile_FK.unsqueeze(2) * self.frequency
        out = torch.baddbmm(self.bias, torch.cat([wave.sin(), wave.cos()], dim=2), self.weight)
        return torch.cat([out[..., : self.relu].relu(), out[..., self.relu :]], dim=2)


class SoftBins(nn.Module):
    """The weighted mean of some embeddings, by weights that a small net gives (AutoDis, arXiv 2012.08986, sec. 3.2).

    A hidden layer with a part of its input added, then a softmax. Its layers have biases, which the paper's do not:
    without them one soft bin would have the largest weight of all numbers of a sign.

    Args:
        fields: how many fields.
        width: C.
        bins: how many embeddings each field has.
        temperature: what the net's outputs are divided by before the softmax.
    """

    def __init__(self, fields: int, width: int, *, bins: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.slope, self.shift = _normal(fields, 1, bins), _normal(fields, 1, bins)
        self.mix = _normal(fields, bins, bins, std=bins**-0.5)
        self.bias = nn.Parameter(torch.zeros(fields, 1, bins))
        self.weight = _normal(fields, bins, width, std=_STD)

    def forward(self, quantile_FK: Tensor) -> Tensor:
        """Quantiles float [F, K] -> embeddings float [F, K, C]."""
        hidden = functional.leaky_relu((2 * quantile_FK.unsqueeze(2) - 1) * self.slope + self.shift)
        logits = torch.baddbmm(self.bias, hidden, self.mix) + _SKIP * hidden
        return torch.bmm((logits / self.temperature).softmax(dim=2), self.weight)
