"""FinalMLP (Mao et al., AAAI 2023, sec. 3): two towers on gated features, joined by bilinear heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from autoembed.errors import SpaceError
from autoembed.nn.backbones import base
from autoembed.nn.layers import InputLinear, OutputLinear, hidden_layers
from autoembed.types import Array


class Config(base.DeepConfig):
    """`hidden` and `hidden2` are the towers' hidden units, each last number a multiple of `heads`.

    With `gates`, each tower sees its entries times 2 sigmoid of a gate network of `gate_units` units, which reads a
    learned vector (the paper's choice when no field is named as context).
    """

    renamed: ClassVar[Mapping[str, str]] = {"gate_width": "gate_units"}

    name: str = "finalmlp"
    hidden2: tuple[int, ...] = Field(default=(400,), min_length=1)
    heads: int = Field(default=1, ge=1)
    gates: bool = True
    gate_units: int = Field(default=64, ge=1)


class Gate(nn.Module):
    """One number in (0, 2) for each active entry, the same for all rows; 1 at the start."""

    reads_rows: ClassVar[bool] = False  # so an ensemble's members share it

    def __init__(self, active: Array, units: int) -> None:
        super().__init__()
        self.context = nn.Parameter(torch.zeros(active.shape[1]))
        self.hidden = nn.Linear(active.shape[1], units)
        self.output = OutputLinear(active, units)
        nn.init.zeros_(self.output.linear.bias)

    def forward(self, e_BFD: Tensor) -> Tensor:
        values = 2 * torch.sigmoid(self.output(torch.relu(self.hidden(self.context))))
        flat = e_BFD.new_ones(e_BFD.shape[1] * e_BFD.shape[2]).scatter(0, self.output.index, values.to(e_BFD.dtype))
        return e_BFD * flat.view_as(e_BFD[0])


class Backbone(base.Backbone):
    """Logit = b + w1 x + w2 y + sum over heads of x_h' W_h y_h, x and y the towers' last layers."""

    takes_pairs: ClassVar[bool] = True

    def __init__(self, config: Config, active: Array) -> None:
        super().__init__(config, active)
        sizes = config.hidden[-1], config.hidden2[-1]
        for size in sizes:
            if size % config.heads:
                raise SpaceError(f"finalmlp's last widths must be multiples of heads={config.heads}, but got {size}")
        self.heads = config.heads
        self.gates = nn.ModuleList(Gate(active, config.gate_units) for _ in sizes) if config.gates else None
        towers = config.hidden, config.hidden2
        self.streams = nn.ModuleList(_Stream(active, hidden, config) for hidden in towers)
        self.x, self.y = nn.Linear(sizes[0], 1), nn.Linear(sizes[1], 1, bias=False)
        self.xy = nn.Parameter(torch.empty(config.heads, sizes[0] // config.heads, sizes[1] // config.heads))
        nn.init.xavier_normal_(self.xy)

    def forward(self, e_BFD: Tensor, first_BF: Tensor | None) -> Tensor:
        inputs = [gate(e_BFD) for gate in self.gates] if self.gates is not None else [e_BFD, e_BFD]
        x, y = (stream(e) for stream, e in zip(self.streams, inputs, strict=True))
        heads = [part.unflatten(1, (self.heads, -1)) for part in (x, y)]
        bilinear = torch.einsum("bhi,hij,bhj->b", heads[0], self.xy, heads[1])
        out: Tensor = (self.x(x) + self.y(y)).squeeze(1) + bilinear
        return out


class _Stream(nn.Module):
    def __init__(self, active: Array, hidden: tuple[int, ...], config: Config) -> None:
        super().__init__()
        self.input = InputLinear(active, hidden[0])
        self.rest = hidden_layers(hidden, dropout=config.dropout, batch_norm=config.batch_norm)

    def forward(self, e_BFD: Tensor) -> Tensor:
        out: Tensor = self.rest(self.input(e_BFD))
        return out
