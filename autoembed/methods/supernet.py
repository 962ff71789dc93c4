"""The base of every search method: a gated net, and the architectures that are read off it.

Methods subclass it, each in a file of its own (`autoembed.methods.method`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from autoembed import errors
from autoembed.architecture import Architecture
from autoembed.budget import by_frequency, select, take_in_order
from autoembed.data.dataset import Dataset
from autoembed.methods import entries
from autoembed.methods.gated import GatedNet
from autoembed.methods.method import WidthConfig
from autoembed.nn.embedding import MixedEmbedding
from autoembed.nn.model import CTRModel, Model, inherit
from autoembed.nn.rows import rounded, rounded_blocks
from autoembed.types import Array

_CHUNK = 4096


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An architecture, and what a user should know of how it was chosen, in whole sentences."""

    architecture: Architecture
    notes: tuple[str, ...] = ()


class Supernet(GatedNet):
    """A gated net, how its gates are trained, and what it answers within a budget; `derive` only narrows the parent.

    A method that `chooses_pairs` closes the open pairs of its parent; other methods ignore open pairs. One with a
    `plain_warm_start` changes nothing here until its gates move, so that methods can share one. One that `shares_rows`
    answers with tables in which no value has rows of its own.
    """

    chooses_pairs: ClassVar[bool] = False
    plain_warm_start: ClassVar[bool] = False
    makes_clusters: ClassVar[bool] = False
    shares_rows: ClassVar[bool] = False

    def penalty(self) -> Tensor:
        """What the search adds to the loss that moves the gates; a scalar."""
        return self.weight.new_zeros(())

    def step_gates(self, gradients: Sequence[Tensor]) -> None:
        """Updates the gates from the gradients of `arch_parameters`; a method with gates overrides it."""
        raise NotImplementedError

    @property
    def rounds(self) -> int:
        """How often at most the search prunes and trains on."""
        return 0

    def prune(self) -> bool:
        """Closes entries that make held-out rows worse; whether there were any."""
        raise NotImplementedError

    def on_search_end(self, dataset: Dataset, device: torch.device) -> dict[str, float]:
        """Called once when weights and gates have moved, for what a method reads off the data; numbers to report."""
        return {}

    def diagnostics(self) -> dict[str, float]:
        """Numbers to watch while the gates move, reported after each epoch."""
        return {}

    def scores(self) -> Array:
        """How much each block's dim is worth, float [S, D]; the largest are kept."""
        raise NotImplementedError

    def entry_scores(self) -> Tensor:
        """How much each entry is worth where single ones are cut, float [N, D]: its size, gates folded in."""
        return torch.cat(self.folded(self.gates()))[:, : self.parent.dim].detach().abs()

    def derive(self, limit: int | None) -> Architecture:
        """The answer within `limit` bytes of embeddings; without one, by the method's own threshold.

        A pure function of the net: nothing here changes.
        """
        return self.answer(limit).architecture

    def answer(self, limit: int | None) -> Answer:
        """What `derive` gives, with notes: the uniform architecture where that one is better on held-out rows."""
        own = entries.choose(self, limit) if entries.cuts(self) else self.choose(limit)
        if limit is None or self.held is None or self.config.guard == "none":
            return Answer(architecture=own)
        rival = self.uniform(limit)
        if rival is None or rival == own:
            return Answer(architecture=own)
        if len(own.fields) == 1 < len(self.parent.fields):
            note = f"its own choice keeps {own.names[0]!r} alone, and models cross fields: the answer is uniform"
            return Answer(architecture=rival, notes=(note,))
        ours, theirs = self.loss_of(own), self.loss_of(rival)
        if ours <= theirs:
            return Answer(architecture=own)
        width = int(rival.mask().sum(axis=1).max())
        note = (
            f"within {limit:,} bytes its own choice has a loss of {ours:.4f} on held-out rows, and {width} dims for "
            f"every value {theirs:.4f}: the answer is uniform"
        )
        return Answer(architecture=rival, notes=(note,))

    def rivals(self) -> dict[str, Callable[[int], Architecture | None]]:
        """Simple architectures within a limit that are retrained beside the answer, under what they are called.

        These are the one of `uniform`, the uniform one in the most bits, and widths by frequency: a supernet may
        misjudge how well a narrow model is once it is trained alone.
        """
        if not isinstance(self.config, WidthConfig) or self.config.guard != "retrained" or self.held is None:
            return {}
        return {
            "the uniform architecture": self.uniform,
            "the uniform architecture in the most bits": partial(self.uniform_in, None),
            "the architecture with widths by frequency": self.frequent,
        }

    def choose(self, limit: int | None) -> Architecture:
        """The method's own choice within `limit` bytes of embeddings, or by its threshold."""
        return self.parent_with(self.spend(self.scores(), self.left(limit)))

    def left(self, limit: int | None) -> int:
        """Bytes that a limit leaves to the fields; SpaceError if there is none."""
        if limit is None:
            raise errors.SpaceError(
                f"{self.config.method} needs a limit: set budget.bytes, budget.embedding_bytes or budget.width"
            )
        return limit - self.parent.pair_bytes()

    def spend(self, scores: Array, left: int) -> Array:
        """Kept dims bool [S, D] of the best scores that `left` bytes hold, by the order of dims and their returns."""
        allowed, sizes = self.parent.mask(), self.block_sizes()
        if not isinstance(self.config, WidthConfig):
            return select(scores, allowed, sizes, left)
        scores = np.where(allowed, scores, -1.0)
        # Closed dims are last; a nested basis has its order, and a prefix counts its best part so far.
        order = np.argsort(~allowed if self.nested else -scores, axis=1, kind="stable")
        worth = np.take_along_axis(scores, order, axis=1)
        if self.nested:
            worth = np.maximum.accumulate(worth[:, ::-1], axis=1)[:, ::-1]
        if self.config.returns == "diminishing":
            worth = worth / np.sqrt(np.arange(1, worth.shape[1] + 1))
        return take_in_order(worth, order, allowed.sum(axis=1), sizes, left)

    def block_bits(self, bits: int | None = None) -> Array:
        """The bits of each block in what is derived, at most `bits` or the stage's own: int [S]."""
        own: Array = np.minimum(self.parent.block_bits(), bits or self.config.bits or 32)
        return np.where(own, own, 32)

    def block_sizes(self, bits: int | None = None) -> Array:
        """Bytes of each block by its width, int [S, D + 1]."""
        parent, own = self.parent, self.block_bits(bits)
        return parent.mixed().sizes(parent.block_rows(), parent.dim, own, first_order=self.first_order)

    def parent_with(self, mask: Array, bits: Array | None = None) -> Architecture:
        """The parent with kept dims bool [S, D] and the bits of each block, int [S]."""
        found = self.parent.with_mask(mask & self.parent.mask(), bits=self.block_bits() if bits is None else bits)
        pair_bits = min(self.parent.pair_bits, self.config.bits or 32)
        return found if pair_bits == found.pair_bits else found.replace(pair_bits=pair_bits)

    def uniform(self, limit: int) -> Architecture | None:
        """The uniform architecture that the method's own choice is compared with; None if the limit holds none."""
        return self.uniform_in(None, limit)

    def uniform_in(self, bits: int | None, limit: int) -> Architecture | None:
        """The same number of dims for every value, in at most so many bits; None if the limit does not hold one dim.

        In a plain basis they are those with the highest scores over all values, each block counted by its values.
        """
        allowed, left = self.parent.mask(), self.left(limit)
        sizes = self.block_sizes(bits)
        width = int((sizes.sum(axis=0) <= left).sum()) - 1
        if width < 1:
            return None
        order = np.arange(self.parent.dim)
        if not self.nested:
            order = np.argsort(-(self.scores() * self.parent.block_rows()[:, None]).sum(axis=0), kind="stable")
        ranked = allowed[:, order]
        kept = np.zeros_like(allowed)
        kept[:, order] = ranked & (ranked.cumsum(axis=1) <= width)
        return self.parent_with(kept, self.block_bits(bits))

    def frequent(self, limit: int) -> Architecture | None:
        """Widths by how often a block's values occur, which the method's own choice is compared with."""
        return self.frequent_in(None, limit)

    def frequent_in(self, bits: int | None, limit: int) -> Architecture | None:
        """Widths by frequency in at most so many bits; None if the limit does not hold one dim of each block."""
        allowed, left, sizes = self.parent.mask(), self.left(limit), self.block_sizes(bits)
        if int(sizes[:, 1].sum()) > left:
            return None
        order = np.argsort(~allowed if self.nested else -np.where(allowed, self.scores(), -1.0), axis=1, kind="stable")
        worth = by_frequency(self.block_counts, self.parent.block_rows(), self.parent.dim)
        kept = take_in_order(worth, order, allowed.sum(axis=1), sizes, left)
        return self.parent_with(kept, self.block_bits(bits))

    @contextmanager
    def answering(self, architecture: Architecture) -> Iterator[None]:
        """Within it, the net gives the logits of the compact model that it has for an architecture derived from it."""
        weight, folded, alive = self.weight.data, self._folded, self.backbone.alive.clone()
        mask = self.mask_of(architecture)
        try:
            self.weight.data, self._folded = self.table_of(architecture), True
            self.keep_alive(mask)
            yield
        finally:
            self.weight.data, self._folded = weight, folded
            self.backbone.alive.copy_(alive)

    def keep_alive(self, mask: Array) -> None:
        """Tells the backbone which fields still have an entry of `mask` bool [S, D]."""
        alive = np.zeros(len(self.parent.fields), dtype=bool)
        np.logical_or.at(alive, self.parent.field_of_block(), mask.any(axis=1))
        alive = alive[self.parent.field_of_input()]
        self.backbone.alive[: len(alive)] = torch.tensor(alive)

    @torch.no_grad()
    def table_of(self, architecture: Architecture) -> Tensor:
        """The weights as the compact model has them, gates folded in, rounded to their bits: float [N, D (+ 1)]."""
        mask = self.mask_of(architecture)
        gates = self.gates() * torch.tensor(self._with_first_order(mask), device=self.weight.device)
        table = torch.cat(self.folded(gates))
        if architecture.storage.kind == "sparse":
            table = table * entries.kept(self, architecture)
        names = np.array(self.parent.names)[self.parent.field_of_block()]
        bits = np.zeros(len(mask), dtype=np.int64)
        bits[np.isin(names, architecture.names)] = architecture.block_bits()
        step, dim = architecture.mixed().step, self.parent.dim
        rows = self.parent.block_rows()
        for own in np.unique(bits[(bits > 0) & (bits < 32)]).tolist():
            blocks = np.flatnonzero(bits == own)
            if own == 1 or step != "row":  # what is closed would move the others' steps, or become half a step
                for block in blocks:
                    at = torch.as_tensor(np.arange(rows[block]) + rows[:block].sum(), device=table.device)
                    kept = torch.as_tensor(np.flatnonzero(mask[block]), device=table.device)
                    body, first = rounded(table[at][:, kept], table[at][:, dim:], own, step)
                    table[at[:, None], kept] = body
                    table[at, dim:] = first
                continue
            at = torch.as_tensor(np.flatnonzero(np.repeat(bits == own, rows)), device=table.device)
            table[at] = rounded_blocks(table[at], dim, rows[blocks].tolist(), own, step)
        return table

    @torch.no_grad()
    def loss_of(self, architecture: Architecture, *, rows: int | None = None) -> float:
        """The mean loss on held-out rows of an architecture derived from here, with this net's weights.

        Logits are scaled and shifted to fit these rows first. With `rows`, at most so many of them count.
        """
        ids, labels, weights = self.held_rows(rows)
        training = self.training
        self.eval()
        with self.answering(architecture):
            logits = torch.cat([self(part) for part in torch.split(ids, _CHUNK)])
        self.train(training)
        own, answers = logits.double().cpu().numpy(), labels.cpu().numpy()
        counts = None if weights is None else weights.cpu().numpy()
        scale, shift = self.schema.task.calibration(answers, own, counts)
        return float(np.average(self.schema.task.losses(answers, scale * own + shift), weights=counts))

    def held_rows(self, rows: int | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Ids, labels and weights of the held-out rows, or of at most so many of them, evenly spread."""
        assert self.held is not None
        every = 1 if rows is None else -(-len(self.held[1]) // rows)
        ids, labels = (part[::every] for part in self.held)
        return ids, labels, None if self.held_weights is None else self.held_weights[::every]

    def compact(self, architecture: Architecture) -> Model:
        """The compact model of an architecture derived here, with this net's weights, gates folded in.

        It depends on the net and the architecture alone, not on what was derived before.
        """
        return self.cut(architecture, self.gates())

    @torch.no_grad()
    def cut(self, architecture: Architecture, gates: Tensor) -> CTRModel:
        """The compact model of a plain architecture with this net's weights times `gates` float [S, D (+ 1)]."""
        model = CTRModel(self.schema, architecture).to(self.weight.device)
        assert isinstance(model.embedding, MixedEmbedding), "a hashed table has no rows of a value's own to inherit"
        tables = self.folded(gates)
        fields = [self.parent.names.index(name) for name in architecture.names]
        inputs = self.places([*architecture.inputs, *(pair.name for pair in architecture.built)])
        if architecture.storage.kind == "sparse":
            kept = entries.kept(self, architecture)
            tables = tuple(part * own for part, own in zip(tables, torch.split(kept, [*map(len, tables)]), strict=True))
        model.embedding.load_dense({number: tables[field] for number, field in enumerate(fields)}, architecture)
        if model.pairs is not None:
            model.pairs.load(self.pair_tables())
        inherit(self.backbone, model.backbone, inputs)
        if self.heads is not None and model.heads is not None:
            inherit(self.heads, model.heads, inputs)
        return model
