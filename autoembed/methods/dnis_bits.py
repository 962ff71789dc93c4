"""DNIS with gates over ordered widths and bits: how wide and how precise each block is, moved by gradient.

The selection layer of DNIS (arXiv 2006.04466) gates single dims. Here each block has a softmax over widths, prefixes of
the dims as in AutoDim (arXiv 2006.14827), and one over bits, as in MPE (arXiv 2409.20305). An embedding is the mixture
of its rounded forms, times the probability that its block is as wide as each dim. Both softmaxes move on held-out
batches by the loss and a price for the expected bytes, in DNIS's bilevel loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from autoembed.architecture import Architecture
from autoembed.data.schema import FeatureSchema
from autoembed.errors import SpaceError
from autoembed.methods import measured
from autoembed.methods.method import GateConfig
from autoembed.nn.rows import levels, lowest
from autoembed.training import Adam
from autoembed.types import Array


class Config(measured.MeasuredConfig, GateConfig):
    """Options.

    `price` is what all bytes of the full width in the most bits add to the loss that moves the gates. A budget is met
    by the gates ("gate": each block takes what its probabilities favour at one price a byte for all, as high as the
    budget needs) or by what widths and bits cost the gated net in loss ("loss").
    """

    method: str = "dnis_bits"
    basis: Literal["nested"] = "nested"
    arch_lr: float = Field(default=3e-2, gt=0)
    price: float = Field(default=1e-2, ge=0)
    choose_by: Literal["gate", "loss"] = "gate"


class Supernet(measured.Supernet):
    """A full-width model with a softmax over widths and one over bits for each block, both even at the start."""

    cost: Tensor

    def __init__(
        self, schema: FeatureSchema, parent: Architecture, config: Config, counts: Sequence[Array], seed: int
    ) -> None:
        super().__init__(schema, parent, config, counts, seed)
        dim = parent.dim
        self.widths = (0, *sorted({2**power for power in range(dim.bit_length()) if 2**power < dim} | {dim}))
        blocks, found = len(parent.block_rows()), self.precisions()
        self.width_logits = nn.Parameter(torch.zeros(blocks, len(self.widths)))
        self.bit_logits = nn.Parameter(torch.zeros(blocks, len(found)))
        self.optimiser = Adam([self.width_logits, self.bit_logits], lr=config.arch_lr)
        self.sizes_of = np.stack([self.block_sizes(bits)[:, self.widths] for bits in found], axis=2)
        cost = self.sizes_of / self.sizes_of.max(axis=(1, 2)).sum()
        self.register_buffer("cost", torch.tensor(cost, dtype=torch.float32), persistent=False)

    def probabilities(self) -> tuple[Tensor, Tensor]:
        """Of each block's widths, float [S, W], and of its bits, float [S, P]."""
        return self.width_logits.softmax(1), self.bit_logits.softmax(1)

    def gates(self) -> Tensor:
        """The probability that a block keeps each dim: float [S, D (+ 1)]; 1 until the search begins."""
        if self.progress is None:
            return self.mask
        width = torch.tensor(self.widths, device=self.mask.device)
        places = torch.arange(self.parent.dim + self.first_order, device=self.mask.device)
        places[self.parent.dim :] = 0  # a first-order weight is there wherever a dim is
        seen = (width.unsqueeze(1) > places).float()
        return self.probabilities()[0] @ seen * self.mask

    def gate(self, e_BVC: Tensor, ids_BV: Tensor) -> Tensor:
        if not self._folded and self.progress is not None:
            e_BVC = self.mixture(e_BVC, self.block_of(ids_BV))
        return super().gate(e_BVC, ids_BV)

    def mixture(self, e_BVC: Tensor, block_BV: Tensor) -> Tensor:
        """Embeddings [B, V, D (+ 1)] as the mean of their rounded forms, weighted by their blocks' probabilities."""
        body = e_BVC[..., : self.parent.dim]
        share = self.probabilities()[1][block_BV]
        size = body.detach().abs().mean(dim=2, keepdim=True).clamp_min(1e-12)
        error = torch.zeros_like(body)
        for place, bits in enumerate(self.precisions()):
            step = 2 * size / max(-lowest(bits), 1.0) ** 0.5  # as LSQ (arXiv 1902.08153) starts its steps
            error = error + share[..., place : place + 1] * (levels(body / step, bits) * step - body).detach()
        return torch.cat([body + error, e_BVC[..., self.parent.dim :]], dim=2)

    def arch_parameters(self) -> list[nn.Parameter]:
        return [self.width_logits, self.bit_logits]

    def penalty(self) -> Tensor:
        width, bits = self.probabilities()
        out: Tensor = self.config.price * torch.einsum("sw,sp,swp->", width, bits, self.cost)
        return out

    def step_gates(self, gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(self.arch_parameters(), gradients, strict=True):
            parameter.grad = gradient
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def diagnostics(self) -> dict[str, float]:
        width, bits = (part.detach() for part in self.probabilities())
        widths = torch.tensor(self.widths, device=width.device, dtype=width.dtype)
        precisions = torch.tensor(self.precisions(), device=bits.device, dtype=bits.dtype)
        return {
            "width_mean": (width @ widths).mean().item(),
            "bits_mean": (bits @ precisions).mean().item(),
            "bytes_share": torch.einsum("sw,sp,swp->", width, bits, self.cost).item(),
        }

    def choose(self, limit: int | None) -> Architecture:
        if limit is not None and self.config.choose_by == "loss":
            return super().choose(limit)
        width, bits = (part.detach().clamp_min(1e-30).log().cpu().numpy() for part in self.probabilities())
        blocks, sizes = len(width), self.sizes_of.reshape(len(width), -1)
        worth = (width[:, :, None] + bits[:, None, :]).reshape(blocks, -1).astype(np.float64)
        left = sizes.sum() if limit is None else self.left(limit)
        cheapest = self.sizes_of[:, 1].min()
        if cheapest > left:
            raise SpaceError(f"the budget must hold one dim of the smallest block ({cheapest} bytes), but got {left}")
        option = spend(worth, sizes, int(left))
        width_of, place = np.unravel_index(option, self.sizes_of.shape[1:])
        kept = np.arange(self.parent.dim) < np.array(self.widths)[width_of][:, None]
        return self.parent_with(kept, np.array(self.precisions())[place])


def spend(worth: Array, sizes: Array, limit: int) -> Array:
    """An option for each block, int [S], of at most `limit` bytes together.

    Each takes what is worth most at one price a byte for all, the lowest that meets the limit. What the last step of
    the price leaves over goes to the changes that are worth most per byte.

    Args:
        worth: of each block's options, float [S, O].
        sizes: bytes of each block's options, int [S, O].
        limit: bytes.
    """
    every = np.arange(len(worth))

    def at(price: float) -> tuple[Array, int]:
        option = (worth - price * sizes).argmax(axis=1)
        return option, int(sizes[every, option].sum())

    low, high = 0.0, 1e-9
    while at(high)[1] > limit:
        low, high = high, high * 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[1] > limit else (low, middle)
    option, spent = at(low) if at(low)[1] <= limit else at(high)
    while True:
        gain = worth - worth[every, option][:, None]
        more = sizes - sizes[every, option][:, None]
        able = (more > 0) & (more <= limit - spent) & ((gain > 0) | (spent == 0))
        if not able.any():
            return option
        value = gain if spent == 0 else gain / np.maximum(more, 1)
        block, best = np.unravel_index(np.where(able, value, -np.inf).argmax(), worth.shape)
        spent += int(more[block, best])
        option[block] = best
