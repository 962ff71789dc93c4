"""The base of every search method: a full-width model with gates, from which a narrower architecture is derived.

A method is one file in this folder with a `Config` and a `Supernet`. It is found by the file's name; a dotted name
("mypackage.mine") loads one from outside.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional

from autoembed import errors
from autoembed.architecture import Architecture, Array, first_line
from autoembed.data.dataset import Dataset
from autoembed.data.schema import FeatureSchema
from autoembed.nn.backbones.base import build, find
from autoembed.nn.embedding import BlockIndex, MixedEmbedding, PairEmbedding
from autoembed.nn.model import CTRModel, Model, apply, inherit
from autoembed.nn.router import Router
from autoembed.training import PhaseTrain, TrainConfig

BASES = ("supernet", "bilevel", "pairs")


class MethodConfig(BaseModel):
    """Options of a method that decides without training.

    `width` is the stage's own limit where another stage follows: as many embedding parameters as that many dims for
    every value take. The last stage has the study's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str
    width: float | None = Field(default=None, gt=0)


class SearchConfig(MethodConfig):
    """Options of a method that trains a supernet.

    `warm_epochs` at most are spent on plain training with open gates, early stop as in `train`. `retrain` starts the
    compact model from the supernet's weights ("inherit") or anew ("fresh"). With `carry`, a stage after another one
    starts from the weights that this one has trained.

    `warm_train` changes keys of `train` for the warm start, and `inherit_train` for a retraining that starts from the
    supernet's weights; one from fresh weights is by `train` alone.
    """

    warm_epochs: int = Field(default=10, ge=0)
    warm_train: PhaseTrain = PhaseTrain()
    retrain: Literal["inherit", "fresh"] = "inherit"
    inherit_train: PhaseTrain = PhaseTrain()
    carry: bool = True

    @property
    def inherits(self) -> bool:
        """Whether the compact model starts from the supernet's weights."""
        return self.retrain == "inherit"

    def recipes(self, train: TrainConfig) -> dict[str, TrainConfig]:
        """The recipe of each phase, by the option that changes it."""
        names = [name for name in type(self).model_fields if name.endswith("_train")]
        return {name: getattr(self, name).of(train) for name in names}


class GateConfig(SearchConfig):
    """Options of a method whose gates move for `epochs` after the warm start.

    `update` tells which weights move beside them: with "embedding" and "all" they move on train batches, and the gates
    on held-out ones, `arch_fraction` of train; with "joint" all weights and the gates move on the same train batch.
    `search_train` changes keys of `train` for the weights meanwhile.

    With `refit`, the gates rest after the search and the supernet's weights are trained on all rows of train for at
    most `refit_epochs`, early stop as in `train`; `refit_train` changes keys of it. If no epoch is better on valid than
    the weights of before, these stay.
    """

    epochs: int = Field(default=10, ge=0)
    search_train: PhaseTrain = PhaseTrain()
    arch_fraction: float = Field(default=0.2, gt=0, lt=1)
    update: Literal["embedding", "all", "joint"] = "embedding"
    refit: bool = False
    refit_epochs: int = Field(default=5, ge=1)
    refit_train: PhaseTrain = PhaseTrain()


class Supernet(nn.Module):
    """A full-width click model under a parent architecture.

    Args:
        schema: the encoded table's schema.
        parent: what may be kept; `derive` only narrows it.
        config: the method's own options.
        counts: per field of the schema, train count per id, int [cardinality].
        seed: for methods that draw.

    Attributes:
        notes: what a user should know of how the search went, in whole sentences.
        router: what tells rows of one cluster from those of another, if a method finds clusters.
        progress: how far the search of the gates is, 0..1; None before it has begun.
        weight: float [N, D (+ 1 with first-order weights)], one row a value, fields of `parent` in order.
        mask: float [S, D (+ 1)], 0 where an entry is closed.

    A method that `makes_pairs` closes the open pairs of its parent; to the others they are nothing.
    """

    makes_pairs: ClassVar[bool] = False

    columns: Tensor
    offsets: Tensor
    mask: Tensor

    def __init__(
        self, schema: FeatureSchema, parent: Architecture, config: Any, counts: Sequence[Array], seed: int
    ) -> None:
        super().__init__()
        if parent.shared:
            raise errors.SpaceError(f"{config.method} cannot narrow a shared table: make unified the last stage")
        if parent.clusters:
            raise errors.SpaceError(f"{config.method} cannot narrow clusters: make the stage that finds them the last")
        self.parent, self.config, self.seed = parent, config, seed
        self.progress: float | None = None
        self.router: Router | None = None
        self.notes: list[str] = []
        self.schema = schema
        self.sparse = False
        fields = [schema.index(name) for name in parent.names]
        self.block_counts = _block_counts(parent, [counts[column] for column in fields])
        self.first_order = find(str(parent.backbone["name"])).Backbone.first_order
        cardinality = np.array([field.cardinality for field in parent.fields])
        width = parent.dim + self.first_order
        self.weight = nn.Parameter(torch.empty(int(cardinality.sum()), width).normal_(std=0.01))
        self.block = BlockIndex(parent)
        parts = self.pair_parts()
        self._pairs = nn.ModuleList(PairEmbedding(part) for part in parts)
        self.inputs = parts[0].built if parts else ()
        pair_inputs = parent.pair_inputs(len(self.inputs), parts[0].pair_dim if parts else 0)
        active = np.concatenate([parent.active()[: len(parent.fields)], pair_inputs])
        self.backbone = build(parent.backbone, active, pairs=len(self.inputs))
        own = [[schema.index(name) for name in part.columns[len(part.fields) :]] for part in parts]
        self.sizes = [len(fields), *(len(part) for part in own)]
        columns = fields + [column for part in own for column in part]
        offsets = np.concatenate([[0], cardinality.cumsum()[:-1]])
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.int32), persistent=False)
        self.register_buffer("mask", torch.tensor(self._with_first_order(parent.mask())), persistent=False)

    def _with_first_order(self, mask: Array) -> Array:
        if self.first_order:
            mask = np.concatenate([mask, mask.any(axis=1, keepdims=True)], axis=1)
        return mask.astype(np.float32)

    def pair_parts(self) -> list[Architecture]:
        """The architectures whose built pairs, the same ones in each, the net has inputs for."""
        return [self.parent] if self.parent.built else []

    @property
    def pairs(self) -> list[PairEmbedding]:
        """The pairs' tables, for each of `pair_parts`."""
        return cast(list[PairEmbedding], list(self._pairs))

    def mix(self, parts: Sequence[Tensor]) -> Tensor:
        """The inputs of pairs from those of each of `pair_parts`, all [B, P, E]."""
        return parts[0]

    def gates(self) -> Tensor:
        """What the entries of each block are multiplied by: float [S, D (+ 1)]."""
        return self.mask

    def forward(self, ids_BF: Tensor) -> Tensor:
        """Ids int [B, F] in the schema's column order -> logits [B]."""
        ids, *rest = torch.split(ids_BF.index_select(1, self.columns), self.sizes, dim=1)
        e = functional.embedding(ids + self.offsets, self.weight, sparse=self.sparse)
        e = self.gate(e, self.block(ids))
        parts = [part(columns) for part, columns in zip(self.pairs, rest, strict=True)]
        return apply(self.backbone, e, self.mix(parts) if parts else None, first_order=self.first_order)

    def gate(self, e_BFC: Tensor, block_BF: Tensor) -> Tensor:
        """Embeddings [B, F, D (+ 1)] of values in these blocks, times what their gates let through."""
        return e_BFC * functional.embedding(block_BF, self.gates())

    def embedding_weights(self) -> list[nn.Parameter]:
        return [self.weight, *(table for part in self.pairs for table in part.tables)]

    def sparse_gradients(self, sparse: bool) -> None:
        """Whether lookups give the tables sparse gradients."""
        self.sparse = sparse
        for part in self.pairs:
            part.sparse = sparse

    def arch_parameters(self) -> list[nn.Parameter]:
        """The gates' parameters, disjoint from the weights'."""
        return []

    def weight_parameters(self) -> list[nn.Parameter]:
        arch = {id(parameter) for parameter in self.arch_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in arch]

    def penalty(self) -> Tensor:
        """What the search adds to the loss that moves the gates; a scalar."""
        return self.weight.new_zeros(())

    def step_gates(self, gradients: Sequence[Tensor]) -> None:
        """Updates the gates from the gradients of `arch_parameters`; a method with gates overrides it."""
        raise NotImplementedError

    def settle(self, dataset: Dataset, device: torch.device) -> dict[str, float]:
        """Called once when weights and gates have moved, for what a method reads off train rows; numbers to report."""
        return {}

    def diagnostics(self) -> dict[str, float]:
        """Numbers to watch while the gates move, reported after each epoch."""
        return {}

    def scores(self) -> Array:
        """How much each block's dim is worth, float [S, D]; the largest are kept."""
        raise NotImplementedError

    def derive(self, budget: int | None) -> Architecture:
        """The best entries within `budget` embedding parameters; without one, by the method's own threshold."""
        if budget is None:
            raise errors.SpaceError(f"{self.config.method} needs budget.parameters or budget.width")
        left = budget - self.parent.pair_parameters()
        allowed, rows = self.parent.mask(), self.parent.block_rows()
        mask = select(self.scores(), allowed, rows, left, first_order=self.first_order)
        return self.narrow_to(mask)

    def narrow_to(self, mask: Array) -> Architecture:
        """The parent with kept dims bool [S, D]; from here on the supernet is masked to them."""
        mask = mask & self.parent.mask()
        architecture = self.parent.with_mask(mask)
        self.wear(mask)
        return architecture

    def wear(self, mask: Array) -> None:
        """Masks the supernet to kept dims bool [S, D]; a field that keeps none counts for nothing."""
        self.mask.copy_(torch.tensor(self._with_first_order(mask)))
        alive = np.zeros(len(self.parent.fields), dtype=bool)
        np.logical_or.at(alive, self.parent.field_of_block(), mask.any(axis=1))
        self.backbone.alive[: len(alive)] = torch.tensor(alive)

    def reopen(self) -> None:
        """Undoes `derive`, so that another budget may be tried."""
        self.wear(self.parent.mask())

    @torch.no_grad()
    def receive(self, source: Supernet) -> None:
        """Takes over the weights of a net from whose answer the parent here was narrowed.

        Tables come with their gates folded in; the backbone comes if the source has all of its inputs.
        """
        if source.parent.dim != self.parent.dim or source.first_order != self.first_order:
            return
        tables, fields = source.folded(source.gates()), source.places(self.parent.names)
        self.weight.copy_(torch.cat([tables[field] for field in fields]))
        own = source.pair_tables()
        for pairs in self.pairs:
            pairs.load({name: own.get(name, part) for name, part in pairs.own().items()})
        inputs = [pair.name for pair in self.inputs]
        if set(inputs) <= {pair.name for pair in source.inputs}:
            inherit(source.backbone, self.backbone, fields + source.places(inputs))

    def folded(self, gates: Tensor) -> tuple[Tensor, ...]:
        """The weights times `gates` float [S, D (+ 1)], per field of the parent float [cardinality, D (+ 1)]."""
        rows = torch.as_tensor(self.parent.block_rows(), device=self.weight.device)
        table = self.weight * gates.repeat_interleave(rows, dim=0)
        return torch.split(table, [field.cardinality for field in self.parent.fields])

    def places(self, names: Sequence[str]) -> list[int]:
        """Where fields and inputs of pairs stand among those of the backbone here."""
        own = [*self.parent.names, *(pair.name for pair in self.inputs)]
        return [own.index(name) for name in names]

    def pair_tables(self) -> dict[tuple[str, str], Tensor]:
        """What every one of the pairs' modules holds, by kind and column."""
        return {name: part for pairs in self.pairs for name, part in pairs.own().items()}

    def compact(self, architecture: Architecture) -> Model:
        """The compact model of an architecture derived here, with this net's weights, gates folded in."""
        return self.cut(architecture, self.gates())

    @torch.no_grad()
    def cut(self, architecture: Architecture, gates: Tensor) -> CTRModel:
        """The compact model of a plain architecture with this net's weights times `gates` float [S, D (+ 1)]."""
        model = CTRModel(self.schema, architecture).to(self.weight.device)
        assert isinstance(model.embedding, MixedEmbedding), "a hashed table has no rows of a value's own to inherit"
        tables, fields = self.folded(gates), self.places(architecture.names)
        model.embedding.load_dense({number: tables[field] for number, field in enumerate(fields)}, architecture)
        if model.pairs is not None:
            model.pairs.load(self.pair_tables())
            fields += self.places([pair.name for pair in architecture.built])
        inherit(self.backbone, model.backbone, fields)
        return model

    @torch.no_grad()
    def block_means(self, table: Tensor) -> Array:
        """Mean over each block's values of a table [N, C]: float [S, C]."""
        rows = torch.as_tensor(self.parent.block_rows(), device=table.device)
        block = torch.repeat_interleave(torch.arange(len(rows), device=table.device), rows)
        total = table.new_zeros(len(rows), table.shape[1]).index_add_(0, block, table)
        means: Array = (total / rows.unsqueeze(1)).cpu().numpy()
        return means


def _block_counts(architecture: Architecture, counts: Sequence[Array]) -> Array:
    """Train rows whose value lies in each block: int [S]."""
    per_block = [
        int(counts[field][start:stop].sum())
        for field, (start, stop) in zip(architecture.field_of_block(), architecture.block_ranges(), strict=True)
    ]
    return np.array(per_block)


def select(scores: Array, allowed: Array, rows: Array, budget: int, *, first_order: bool) -> Array:
    """Kept dims bool [S, D]: entries by falling score, above 0, as far as `budget` embedding parameters reach.

    An entry costs one parameter for each value of its block, and a block's first entry as many again for first-order
    weights. An entry that no longer fits is passed over: smaller ones may still fit. SpaceError if nothing fits.

    Args:
        scores: float [S, D].
        allowed: which entries may be kept, bool [S, D].
        rows: values of each block, int [S].
        budget: embedding parameters.
        first_order: whether the model has first-order weights.
    """
    mask = np.zeros(scores.shape, dtype=bool)
    allowed = allowed & (scores > 0)
    left = budget
    for flat in np.argsort(-scores, axis=None, kind="stable"):
        block, dim = divmod(int(flat), scores.shape[1])
        price = int(rows[block]) * (1 + (first_order and not mask[block].any()))
        if allowed[block, dim] and price <= left:
            mask[block, dim] = True
            left -= price
    if not mask.any():
        least = int(rows.min()) * (1 + first_order)
        raise errors.SpaceError(
            f"the budget must hold one dim of the smallest block with a score above 0 "
            f"(smallest block: {least} parameters), but got {budget}"
        )
    return mask


def uniform_budget(parent: Architecture, width: float) -> int:
    """Embedding parameters of `width` dims for every value."""
    first_order = find(str(parent.backbone["name"])).Backbone.first_order
    return int(parent.block_rows().sum() * (width + first_order))


def names() -> list[str]:
    """The methods that ship with the package, baselines included."""
    import autoembed.search as package

    return [module.name for module in pkgutil.iter_modules(package.__path__) if module.name not in BASES]


@dataclass(frozen=True, kw_only=True)
class Method:
    """The two classes of a method's file."""

    Config: type[MethodConfig]
    Supernet: type[Supernet]


def load(method: str) -> Method:
    """A method by file name, or by dotted module name; SpaceError lists the known ones."""
    if "." in method:
        try:
            module = importlib.import_module(method)
        except ImportError as error:
            raise errors.SpaceError(f"cannot load the method {method!r}: {error}") from None
        if not (isinstance(getattr(module, "Supernet", None), type) and hasattr(module, "Config")):
            raise errors.SpaceError(f"the method module {method!r} must define Config and Supernet")
    elif method in names():
        module = importlib.import_module(f"autoembed.search.{method}")
    else:
        raise errors.SpaceError(errors.unknown("method", method, names()))
    return Method(Config=module.Config, Supernet=module.Supernet)


def configure(stage: Mapping[str, Any]) -> MethodConfig:
    """The validated Config of a stage such as {"method": "dnis", "epochs": 5}; SpaceError names rule and options."""
    if "method" not in stage:
        raise errors.SpaceError(f"a stage must name its method, but got {dict(stage)}")
    kind = load(str(stage["method"]))
    try:
        return kind.Config.model_validate(dict(stage))
    except ValidationError as error:
        allowed = ", ".join(sorted(kind.Config.model_fields))
        raise errors.SpaceError(f"stage {stage['method']}: {first_line(error)} (options: {allowed})") from None
