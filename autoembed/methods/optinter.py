"""OptInter: memorize, factorize or leave out each pair of columns (Lyu et al., ICDE 2022, arXiv 2108.01265).

Each candidate pair has two inputs, an embedding of its crossed value (memorize) and the product of two embeddings kept
apart from the fields' (factorize); nothing is the third choice (naive). Their mixture with p = softmax(theta / tau)
reaches the tower (sec. 3.3); theta is trained with the weights, and the largest p of each pair is its answer.

As in the paper: both kinds of embeddings, an optimiser of theta's own, tau falling with train steps, Gumbel noise
(`noise`; absent from the authors' code). Ours: theta moves on held-out rows, since on the rows that memorized values
were learnt from they look best even for two columns of noise (`update: joint` is the paper's); it starts at 0 and not
at Xavier's draw, which on small tables exceeds what the search adds; its learning rate is 1e-2 and not 1e-3; a price
for the size of crossed tables (`price`); and a budget. A pair with a multi-valued column has no crossed values: its
choice is between factorize and naive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from autoembed.architecture import Architecture
from autoembed.budget import fill
from autoembed.data.schema import FeatureSchema
from autoembed.errors import SpaceError
from autoembed.methods import pairs, supernet
from autoembed.methods.method import GateConfig
from autoembed.plans import Choice
from autoembed.training import Adam
from autoembed.types import Array

CHOICES: tuple[Choice, ...] = ("memorize", "factorize", "naive")
_COPIES = 4  # a table, its gradient and Adam's two moments


class Config(GateConfig, pairs.PairConfig):
    """Options; `temperature` falls from 1 by `temperature_step` a train step, to `temperature_floor`.

    `price` is added to the loss for each embedding parameter that memorizing would take, times its probability.
    `memory_gb` bounds what the search's pair tables may take with gradients and moments, checked before they are made.
    """

    PAPER: ClassVar[Mapping[str, object]] = {"update": "joint", "noise": "gumbel", "arch_lr": 1e-3, "retrain": "fresh"}

    method: str = "optinter"
    warm_epochs: int = Field(default=0, ge=0)
    epochs: int = Field(default=5, ge=0)
    retrain: Literal["inherit", "fresh", "best"] = "fresh"
    update: Literal["embedding", "all", "joint"] = "all"
    arch_lr: float = Field(default=1e-2, gt=0)
    noise: Literal["none", "gumbel"] = "none"
    temperature_step: float = Field(default=5e-5, ge=0)
    temperature_floor: float = Field(default=1e-2, gt=0, le=1)
    price: float = Field(default=0.0, ge=0)
    memory_gb: float = Field(default=4.0, gt=0)


class Supernet(supernet.Supernet):
    """Both inputs of every open pair, mixed by p."""

    chooses_pairs = True

    rows: Tensor
    crossed: Tensor
    closed: Tensor

    def __init__(
        self, schema: FeatureSchema, parent: Architecture, config: Config, counts: Sequence[Array], seed: int
    ) -> None:
        pairs.require_open(parent, config.method, config.pair_dim)
        self._check_memory(parent, config)
        super().__init__(schema, parent, config, counts, seed)
        self.theta = nn.Parameter(torch.zeros(len(self.inputs), len(CHOICES)))
        self.optimiser = Adam([self.theta], lr=config.arch_lr)
        self.steps = 0
        rows = torch.tensor([float(pair.crossed) for pair in self.inputs])
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("crossed", torch.nonzero(rows)[:, 0], persistent=False)
        closed = torch.zeros(len(rows), len(CHOICES), dtype=torch.bool)
        closed[:, 0] = rows == 0
        self.register_buffer("closed", closed, persistent=False)
        self.chosen: Tensor | None = None

    @staticmethod
    def _check_memory(parent: Architecture, config: Config) -> None:
        memorized, factorized = _everything(parent, config.pair_dim)
        parameters = memorized.pair_parameters() + factorized.pair_parameters()
        needed = parameters * 4 * _COPIES / 2**30
        if needed > config.memory_gb:
            raise SpaceError(
                f"optinter's tables for {len(memorized.built)} pairs need {needed:.1f} GiB, more than "
                f"memory_gb={config.memory_gb:g}: lower features.pairs.top or .cap, or raise .min_count"
            )

    def pair_parts(self) -> list[Architecture]:
        return [part for part in _everything(self.parent, self.config.pair_dim) if part.built]

    def mix(self, parts: Sequence[Tensor]) -> Tensor:
        p = self.probabilities() if self.chosen is None else self.chosen
        *memorized, factorized = parts
        out = p[:, 1:2] * factorized
        for part in memorized:  # none, if no pair has crossed values
            out = p[:, :1] * torch.zeros_like(factorized).index_copy(1, self.crossed, part) + out
        return out

    def probabilities(self) -> Tensor:
        """p of each pair's memorize, factorize and naive: float [P, 3]; noisy while training, if asked for."""
        theta = self.preference()
        if self.config.noise == "gumbel" and self.training:
            theta = theta - torch.empty_like(theta).exponential_().log()
        return torch.softmax(theta / self.temperature, dim=1)

    def preference(self) -> Tensor:
        """theta, of what cannot be chosen minus infinity: float [P, 3]."""
        return self.theta.masked_fill(self.closed, -torch.inf)

    @property
    def temperature(self) -> float:
        return float(max(self.config.temperature_floor, 1 - self.config.temperature_step * self.steps))

    def arch_parameters(self) -> list[nn.Parameter]:
        return [self.theta]

    def penalty(self) -> Tensor:
        size = self.probabilities()[:, 0] @ self.rows * self.config.pair_dim
        out: Tensor = self.config.price * size
        return out

    def step_gates(self, gradients: Sequence[Tensor]) -> None:
        self.theta.grad = gradients[0]
        self.optimiser.step()
        self.steps += 1

    def diagnostics(self) -> dict[str, float]:
        with torch.no_grad():
            p = torch.softmax(self.preference() / self.temperature, dim=1)
            answer = torch.nn.functional.one_hot(p.argmax(1), len(CHOICES)).float().mean(0)
            entropy = -(p * p.clamp_min(1e-12).log()).sum(1).mean()
        shares: dict[str, float] = dict(zip(CHOICES, answer.tolist(), strict=True))
        return {**shares, "entropy": entropy.item(), "temperature": self.temperature}

    def preferences(self) -> Iterable[tuple[int, Sequence[Choice]]]:
        """Pairs by how far their best choice is ahead of naive, with what is at least as good as naive."""
        theta = self.preference().detach().cpu().numpy()
        places = [number for number, pair in enumerate(self.parent.pairs) if pair.choice == "open"]
        for row in np.argsort(-(theta.max(axis=1) - theta[:, -1]), kind="stable"):
            order = [CHOICES[choice] for choice in np.argsort(-theta[row], kind="stable")]
            yield places[row], order[: order.index("naive")]

    def choose(self, limit: int | None) -> Architecture:
        return fill(self.parent_with(self.parent.mask()), self.preferences(), self.config.pair_dim, limit)

    @contextmanager
    def answering(self, architecture: Architecture) -> Iterator[None]:
        choice = {pair.name: pair.choice for pair in architecture.pairs}
        hot = torch.tensor([[float(choice[pair.name] == kind) for kind in CHOICES] for pair in self.inputs])
        before = self.chosen
        try:
            self.chosen = hot.to(self.theta.device)
            with super().answering(architecture):
                yield
        finally:
            self.chosen = before


def _everything(parent: Architecture, pair_dim: int) -> tuple[Architecture, Architecture]:
    """The parent with every open pair memorized that has crossed ids, and with every one factorized."""
    able = [pair.choice == "open" for pair in parent.pairs]
    crossed = [one and pair.crossed > 0 for one, pair in zip(able, parent.pairs, strict=True)]
    memorized = parent.with_choices(["memorize" if one else "naive" for one in crossed], pair_dim)
    return memorized, parent.with_choices(["factorize" if one else "naive" for one in able], pair_dim)
