"""What the classifier and the regressor share: fit searches, retrains and keeps the best architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.base import BaseEstimator
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from autoembed.architecture import Architecture
from autoembed.auxiliary import recorded
from autoembed.bundle import Bundle, load_bundle, write_bundle
from autoembed.data.dataset import build_dataset
from autoembed.data.frames import Frame, is_frame, to_lazy
from autoembed.data.spec import TaskName
from autoembed.errors import SpaceError
from autoembed.space import SearchSpace
from autoembed.trial import TrialResult, run_trial
from autoembed.types import Array, Bools
from autoembed.writing import scratch

LEAST = 2  # rows of a class that a split has
_WEIGHT = "sample_weight"  # the column of weights, in a bundle too


class SearchEstimator(BaseEstimator, ABC):
    """A model with scikit-learn's interface; a subclass says what labels are, and predicts.

    `task` is its `data.task`, and `other` the class for the other one.
    """

    task: ClassVar[TaskName]
    other: ClassVar[str]

    def __init__(
        self,
        *,
        label: str = "label",
        stages: Sequence[Mapping[str, object]] | None = None,
        baselines: Sequence[str | dict[str, object] | list[dict[str, object]]] = (),
        embedding: Mapping[str, object] | None = None,
        backbone: str | Mapping[str, object] | None = None,
        train: Mapping[str, object] | None = None,
        budget: Mapping[str, object] | None = None,
        data: Mapping[str, object] | None = None,
        valid_size: float = 0.15,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.label = label
        self.stages = stages
        self.baselines = baselines
        self.embedding = embedding
        self.backbone = backbone
        self.train = train
        self.budget = budget
        self.data = data
        self.valid_size = valid_size
        self.device = device
        self.random_state = random_state

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        return tags

    @abstractmethod
    def _labels(self, y: Array, counting: Bools | None) -> tuple[Array, Array]:
        """The labels [rows] as they are stored, and the class of each, 0, 1, ..., by which rows are shared out.

        `counting` says which rows have a weight above 0, all without it. ValueError if nothing can be learnt of them.
        """

    def _predicts(self) -> dict[str, object]:
        """The keys of `data:` that say what is predicted, once labels are known."""
        return {"task": self.task}

    def fit(
        self, X: Frame | npt.ArrayLike, y: npt.ArrayLike | None = None, sample_weight: npt.ArrayLike | None = None
    ) -> Self:
        """Searches, retrains and keeps the best.

        Args:
            X: a frame of Polars or pandas, or numbers [rows, columns].
            y: the labels [rows]; the column `label` of X if there are none.
            sample_weight: how often each row counts [rows], in losses and metrics; once by default. It acts as a column
                that `data.weight` names does, and is called sample_weight in a bundle.

        Raises:
            ValueError: X or y are not as they must be.
            SpaceError: a parameter breaks a rule of search spaces, or has a range.
        """
        frame = self._frame(X, reset=True, labelled=y is None)
        if y is None:
            if self.label not in frame.columns:
                raise ValueError(
                    f"{type(self).__name__} requires y to be passed, but the target y is None, and X has no column "
                    f"{self.label!r}"
                )
            y, frame = frame[self.label].to_numpy(), frame.drop(self.label)
            self._name_columns(frame.columns)
        weights = self._weights(sample_weight, frame)
        given: Array = column_or_1d(y, warn=True)
        if len(given) != frame.height:
            raise ValueError(f"X and y must have as many rows, but have {frame.height} and {len(given)}")
        counting = None if weights is None else weights > 0
        labels, classes = self._labels(given, counting)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        space = self._space(None if weights is None else _WEIGHT)
        rows = frame.with_columns(pl.Series(self.label, labels))
        if weights is not None:
            rows = rows.with_columns(pl.Series(_WEIGHT, weights))
        valid = self._valid_rows(classes, seed, counting)
        with scratch() as folder:
            train = valid if valid.all() else ~valid
            for split, taken in {"train": train, "valid": valid, "test": valid}.items():
                rows.filter(taken).write_parquet(folder / f"{split}.parquet")
            dataset = build_dataset(space.data, str(folder), folder / "cache")
            self.results_: dict[str, TrialResult] = {}
            self.failures_: dict[str, str] = {}
            models = {}
            for arm in space.arms():
                config = space.config(arm, {}, seed)
                try:
                    self.results_[arm], models[arm] = run_trial(config, dataset, lambda values: None)
                except SpaceError as error:  # a budget may be too small for a baseline
                    if arm == space.arms()[0]:
                        raise
                    self.failures_[arm] = str(error)
            sign = 1 if space.objective.mode == "max" else -1
            best = max(self.results_, key=lambda arm: sign * space.objective.of(self.results_[arm].valid))
            write_bundle(
                folder / "bundle",
                schema=dataset.schema,
                vocabulary=dataset.vocabulary,
                architecture=self.results_[best].architecture,
                model=models[best],
                data=space.data.model_dump(mode="json", exclude={"path", "planted", "split", "files", "crosses"}),
                metrics=recorded("valid", self.results_[best].valid, self.results_[best].auxiliary),
                provenance={
                    "trial": best,
                    "fingerprint": dataset.fingerprint,
                    "train": self.results_[best].config.train.model_dump(mode="json"),
                },
            )
            self.bundle_: Bundle = load_bundle(folder / "bundle")
        return self

    @property
    def architecture_(self) -> Architecture:
        """The architecture of the best model."""
        check_is_fitted(self, "bundle_")
        return self.bundle_.architecture

    def export(self, out: str | Path) -> Bundle:
        """Writes the model as a bundle, for `autoembed predict` and `autoembed.load_bundle`."""
        check_is_fitted(self, "bundle_")
        own = self.bundle_
        manifest = own.manifest
        write_bundle(
            Path(out),
            schema=own.schema,
            vocabulary=own.vocabulary,
            architecture=own.architecture,
            model=own.model,
            data=manifest.data,
            metrics=manifest.metrics,
            provenance=manifest.provenance,
        )
        return load_bundle(out)

    def _valid_rows(self, classes: Array, seed: int, counting: Bools | None) -> Bools:
        """Which rows are for valid, bool [rows]: their share of each class, and two of it at least.

        Classes with too few rows to be shared out are for train. All rows are for both if fewer than two classes have
        more. Rows that are not `counting`, whose weight is 0, are for train.
        """
        own = np.ones(len(classes), dtype=bool) if counting is None else counting
        shared = np.flatnonzero(np.bincount(classes[own]) >= 2 * LEAST)
        if len(shared) < 2:
            return np.ones(len(classes), dtype=bool)
        taken = np.zeros(len(classes), dtype=bool)
        for one in shared.tolist():
            places = np.random.default_rng(seed + one).permutation(np.flatnonzero(own & (classes == one)))
            taken[places[: max(LEAST, round(self.valid_size * len(places)))]] = True
        return taken

    def _space(self, weight: str | None = None) -> SearchSpace:
        stages = self.stages or [{"method": "sensitivity" if self.budget else "uniform"}]
        predicts = self._predicts()
        data: dict[str, object] = {**predicts, **(self.data or {}), "label": self.label}
        if data["task"] != predicts["task"]:
            other = "autoembed.search, with a table that has the groups" if data["task"] == "ranking" else self.other
            raise SpaceError(
                f"data.task of {type(self).__name__} must be {predicts['task']}, but got {data['task']!r}: leave it "
                f"out, or use {other}"
            )
        space = SearchSpace.parse(
            {
                "data": data | ({"weight": weight} if weight else {}),
                "stages": [dict(stage) for stage in stages],
                "baselines": list(self.baselines),
                "embedding": dict(self.embedding or {}),
                **({} if self.backbone is None else {"backbone": self.backbone}),
                "train": dict(self.train or {}),
                "budget": dict(self.budget or {}),
                "device": self.device,
            }
        )
        for arm in space.arms():
            if ranges := space.ranges(arm):
                raise SpaceError(
                    f"{next(iter(ranges))} is a range, which one training cannot try: use autoembed.search"
                )
        return space

    def _frame(self, X: Frame | npt.ArrayLike, *, reset: bool, labelled: bool = False) -> pl.DataFrame:
        """X as a frame: its own columns, or x0, x1, ... of numbers."""
        if is_frame(X):
            frame = to_lazy(X).collect()
            if not frame.height or not frame.width:
                raise ValueError(f"X must have rows and columns, but its shape is {frame.shape}")
            if reset:
                self._name_columns(frame.columns)
            return frame
        found = validate_data(self, X, reset=reset, dtype="numeric", ensure_all_finite="allow-nan")
        return pl.DataFrame({f"x{place}": found[:, place] for place in range(found.shape[1])}, nan_to_null=True)

    def _name_columns(self, names: Sequence[str]) -> None:
        self.feature_names_in_ = np.array(names, dtype=object)
        self.n_features_in_ = len(names)

    def _weights(self, sample_weight: npt.ArrayLike | None, frame: pl.DataFrame) -> Array | None:
        """The weights, float32 [rows], or None if each row counts once."""
        if sample_weight is None:
            return None
        if named := (self.data or {}).get("weight"):
            raise ValueError(f"weights must come from sample_weight or from data.weight ({named!r}), but got both")
        if _WEIGHT in frame.columns:
            raise ValueError(f"X must have no column {_WEIGHT!r} if fit gets a sample_weight: rename the column")
        with np.errstate(over="ignore"):  # told below
            weights = np.asarray(sample_weight).astype(np.float32)
        if weights.shape != (frame.height,):
            raise ValueError(
                f"sample_weight must have a weight for each row, ({frame.height},), but its shape is {weights.shape}"
            )
        if not np.isfinite(weights).all():
            raise ValueError("sample_weight must be finite, but some weights are not, as numbers of 32 bits")
        if weights.min() < 0:
            raise ValueError(f"sample_weight must be 0 or more, but the least weight is {weights.min():g}")
        if not weights.any():
            raise ValueError("sample_weight must be above 0 in some rows, but all weights are zero")
        return weights
