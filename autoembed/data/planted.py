"""Tables whose truth is known: which columns matter, which matter only in pairs, and which are noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from autoembed.data.strict import StrictModel

Cardinality = Annotated[int, Field(ge=2)]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LOGIT = "logit"
_RANK = 3
_POPULATION_VALUES = 20
_POPULATION_FIELDS = 3
_POPULATION_CARDINALITY = 10
_ZIPF_FROM = 50
_TAIL_CONTEXT = 20
_HEAD_SHARE = 0.1
_MULTI_MOST = 5


class PlantedSpec(StrictModel):
    """What to plant: a cardinality for each column (marginal, noise, tail, multi) or pair (xor, low_rank, memorize).

    An effect is the standard deviation, over rows, that its column or pair adds to the logit. A tail adds `tail_effect`
    twice: by its column, and by the pair of its column and its context. `label_noise` is of ratings: the standard
    deviation of what no column tells of a label, which no model's RMSE can be below but by luck.
    """

    rows: int = Field(default=60_000, ge=100)
    seed: int = Field(default=0, ge=0)
    marginal: tuple[Cardinality, ...] = (10, 100, 1000)
    xor: tuple[Cardinality, ...] = (10,)
    low_rank: tuple[Cardinality, ...] = (50,)
    memorize: tuple[Cardinality, ...] = ()
    noise: tuple[Cardinality, ...] = (10, 100, 1000, 5000)
    populations: bool = False
    tail: tuple[Cardinality, ...] = ()
    multi: tuple[Cardinality, ...] = ()
    intercept: float = 0.0
    marginal_effect: float = 0.5
    xor_effect: float = 1.0
    low_rank_effect: float = 1.0
    memorize_effect: float = 1.0
    population_effect: float = 1.0
    tail_effect: float = 1.0
    multi_effect: float = 1.0
    label_noise: float = Field(default=1.0, gt=0)

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without noise of the default size: encoded data are found where they were before it could be another."""
        node: dict[str, Any] = handler(self)
        return {key: value for key, value in node.items() if key != "label_noise" or value != 1}


class Populations(TypedDict, total=False):
    """The column that tells the population of a row, the columns that act in each, and its values there."""

    reveals: list[str]
    A: list[str]
    B: list[str]
    values_A: list[str]
    values_B: list[str]


class Truth(TypedDict, total=False):
    """What was planted: columns by kind, pairs as lists.

    `best_auc`, or `best_rmse` of ratings, by split is known once the rows are split.
    """

    marginal: list[str]
    xor: list[list[str]]
    low_rank: list[list[str]]
    memorize: list[list[str]]
    noise: list[str]
    populations: Populations | None
    tail: list[list[str]]
    multi: list[str]
    best_auc: dict[str, float]
    best_rmse: dict[str, float]


def planted(spec: PlantedSpec, *, ratings: bool = False) -> tuple[pl.DataFrame, Truth]:
    """A table with `label`, `logit` (noise-free: it gives the best AUC) and the planted fields, and its truth.

    marginal: an effect per value. xor: sign times sign, and exactly no effect of either column alone. low_rank: the dot
    of two centred vectors of 3. memorize: an effect per pair of values, drawn apart from all others, with no effect of
    either column alone. noise: nothing. populations: the column `population` says by its value whether the row
    is of population A, where the columns a_* act, or of B, where b_* act. Columns of 50 values or more are Zipf.
    tail: a tenth of the values, by Zipf, take half of the rows; the others share the other half evenly. Each value has
    an effect, and a vector of 3 whose dot with a vector of the column `tail_*_context` (20 values) is a second effect,
    so that one number per value says half of what there is to say. multi: lists of 0 to 5 values, the mean of whose
    effects counts. Of `ratings` the label is the logit and normal noise of standard deviation `label_noise`.
    """
    return _Planter(spec).run(ratings)


def write_planted(spec: PlantedSpec, out_dir: str | Path) -> Path:
    """Write table.parquet (label and fields), logit.npy and truth.json into `out_dir`, a place for `data.path`."""
    frame, truth = planted(spec)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    frame.drop(LOGIT).write_parquet(out / "table.parquet")
    np.save(out / "logit.npy", frame[LOGIT].to_numpy(), allow_pickle=False)
    (out / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")
    return out


class _Planter:
    def __init__(self, spec: PlantedSpec) -> None:
        self.spec = spec
        self.rng = np.random.default_rng(spec.seed)
        self.columns: dict[str, pl.Series] = {}
        self.logit: Floats = np.full(spec.rows, spec.intercept)

    def run(self, ratings: bool) -> tuple[pl.DataFrame, Truth]:
        spec = self.spec
        truth: Truth = {"marginal": [], "xor": [], "low_rank": [], "memorize": [], "noise": []}
        truth["populations"] = None
        for i, size in enumerate(spec.marginal):
            truth["marginal"].append(self._marginal(f"marginal_{i}", size, spec.marginal_effect))
        for i, size in enumerate(spec.xor):
            truth["xor"].append(self._xor(f"xor_{i}", size))
        for i, size in enumerate(spec.low_rank):
            truth["low_rank"].append(self._low_rank(f"low_rank_{i}", size))
        for i, size in enumerate(spec.memorize):
            truth["memorize"].append(self._memorize(f"memorize_{i}", size))
        for i, size in enumerate(spec.noise):
            self._add(f"noise_{i}", self._draw(size), size)
            truth["noise"].append(f"noise_{i}")
        if spec.populations:
            truth["populations"] = self._populations()
        # Last: a tail leaves the other columns of a seed as they are.
        truth["tail"] = [self._tail(f"tail_{i}", size) for i, size in enumerate(spec.tail)]
        if spec.multi:
            truth["multi"] = [self._multi(f"multi_{i}", size) for i, size in enumerate(spec.multi)]
        if ratings:
            numbers = self.logit + spec.label_noise * self.rng.normal(size=spec.rows)
            return pl.DataFrame({"label": numbers, LOGIT: self.logit, **self.columns}), truth
        label = (self.rng.random(spec.rows) < 1 / (1 + np.exp(-self.logit))).astype(np.int8)
        return pl.DataFrame({"label": label, LOGIT: self.logit, **self.columns}), truth

    def _draw(self, size: int) -> Ints:
        return self.rng.choice(size, size=self.spec.rows, p=self._mass(size))

    def _mass(self, size: int) -> Floats:
        mass = 1 / np.arange(1, size + 1) if size >= _ZIPF_FROM else np.ones(size)
        out: Floats = mass / mass.sum()
        return out

    def _add(self, name: str, values: Ints, size: int) -> Ints:
        """Store the column as text whose numbers are shuffled, so that they say nothing of frequency or effect."""
        self.columns[name] = self._named(values, size)
        return values

    def _named(self, values: Ints, size: int) -> pl.Series:
        width = len(str(size - 1))
        names = pl.Series([f"v{number:0{width}d}" for number in self.rng.permutation(size)])
        return names.gather(values)

    def _scaled(self, contribution: Floats, effect: float) -> Floats:
        centred: Floats = contribution - contribution.mean()
        spread = float(centred.std())
        return centred * (effect / spread) if spread > 0 else centred

    def _marginal(self, name: str, size: int, effect: float) -> str:
        values = self._add(name, self._draw(size), size)
        self.logit += self._scaled(self.rng.normal(size=size)[values], effect)
        return name

    def _signed(self, name: str, size: int) -> Ints:
        """A column whose values carry a sign that is a fair coin, so that the other column hides it exactly."""
        sign = self.rng.integers(0, 2, self.spec.rows)
        values = np.empty(self.spec.rows, dtype=np.int64)
        for bit in (0, 1):
            rows = np.flatnonzero(sign == bit)
            half = (size + 1 - bit) // 2
            mass = 1 / np.arange(1, half + 1) if size >= _ZIPF_FROM else np.ones(half)
            values[rows] = 2 * self.rng.choice(half, size=len(rows), p=mass / mass.sum()) + bit
        self._add(name, values, size)
        return 2 * sign - 1

    def _xor(self, name: str, size: int) -> list[str]:
        a, b = f"{name}_a", f"{name}_b"
        self.logit += self.spec.xor_effect * self._signed(a, size) * self._signed(b, size)
        return [a, b]

    def _low_rank(self, name: str, size: int) -> list[str]:
        pair = [f"{name}_a", f"{name}_b"]
        rows = [self._vectors(self._add(column, self._draw(size), size), size) for column in pair]
        self.logit += self._scaled((rows[0] * rows[1]).sum(axis=1), self.spec.low_rank_effect)
        return pair

    def _vectors(self, values: Ints, size: int) -> Floats:
        """A vector of 3 for each value, centred over rows: no column of a pair has an effect of its own. [rows, 3]"""
        vectors = self.rng.normal(size=(size, _RANK))[values]
        centred: Floats = vectors - vectors.mean(axis=0)
        return centred

    def _tail(self, name: str, size: int) -> list[str]:
        pair = [name, f"{name}_context"]
        head = max(1, round(size * _HEAD_SHARE))
        mass = np.append(1 / np.arange(1, head + 1), np.ones(size - head))
        mass[:head] /= mass[:head].sum()
        mass[head:] /= mass[head:].sum()
        values = self._add(pair[0], self.rng.choice(size, size=self.spec.rows, p=mass / mass.sum()), size)
        context = self._add(pair[1], self.rng.integers(0, _TAIL_CONTEXT, self.spec.rows), _TAIL_CONTEXT)
        self.logit += self._scaled(self.rng.normal(size=size)[values], self.spec.tail_effect)
        dot = (self._vectors(values, size) * self._vectors(context, _TAIL_CONTEXT)).sum(axis=1)
        self.logit += self._scaled(dot, self.spec.tail_effect)
        return pair

    def _multi(self, name: str, size: int) -> str:
        lengths = self.rng.integers(0, _MULTI_MOST + 1, self.spec.rows)
        rows = np.repeat(np.arange(self.spec.rows), lengths)
        values = self.rng.choice(size, size=len(rows), p=self._mass(size))
        effects = np.bincount(rows, self.rng.normal(size=size)[values], self.spec.rows) / np.maximum(lengths, 1)
        self.logit += self._scaled(effects, self.spec.multi_effect)
        flat = pl.DataFrame({"row": rows, "value": self._named(values, size)})
        lists = flat.group_by("row", maintain_order=True).agg("value")
        every = pl.DataFrame({"row": np.arange(self.spec.rows)})
        self.columns[name] = every.join(lists, on="row", how="left", maintain_order="left")["value"].fill_null([])
        return name

    def _memorize(self, name: str, size: int) -> list[str]:
        pair = [f"{name}_a", f"{name}_b"]
        a, b = (self._add(column, self.rng.integers(0, size, self.spec.rows), size) for column in pair)
        table = self.rng.normal(size=(size, size))
        table -= table.mean(axis=0)
        table -= table.mean(axis=1, keepdims=True)
        self.logit += self._scaled(table[a, b], self.spec.memorize_effect)
        return pair

    def _populations(self) -> Populations:
        values = self._add("population", self._draw(_POPULATION_VALUES), _POPULATION_VALUES)
        in_b = values >= _POPULATION_VALUES // 2
        acting, values_of = {}, {}
        for population, rows in (("a", ~in_b), ("b", in_b)):
            before = self.logit.copy()
            fields = [
                self._marginal(f"{population}_{i}", _POPULATION_CARDINALITY, self.spec.population_effect)
                for i in range(_POPULATION_FIELDS)
            ]
            self.logit = np.where(rows, self.logit, before)
            acting[population] = fields
            values_of[population] = sorted(self.columns["population"].filter(pl.Series(rows)).unique())
        return {
            "reveals": ["population"],
            "A": acting["a"],
            "values_A": values_of["a"],
            "B": acting["b"],
            "values_B": values_of["b"],
        }
