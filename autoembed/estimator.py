"""A classifier with scikit-learn's interface: fit searches, retrains and keeps the best architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from autoembed.architecture import Architecture
from autoembed.bundle import Bundle, load_bundle, write_bundle
from autoembed.data.dataset import build_dataset
from autoembed.data.frames import Frame, is_frame, to_lazy
from autoembed.errors import SpaceError
from autoembed.space import SearchSpace
from autoembed.trial import TrialResult, run_trial
from autoembed.types import Array, Bools
from autoembed.writing import scratch

_LEAST = 2  # rows of a class
_WEIGHT = "sample_weight"  # the column of weights, in a bundle too


class AutoEmbedClassifier(ClassifierMixin, BaseEstimator):
    """Searches an architecture on a table, in this process and without Ray, and predicts with the best one.

    The keys of a search space are its parameters, all values literal: for ranges, which need many trials, use
    `autoembed.search`. The best of the searched architecture and the baselines is kept, by valid.

    Args:
        label: the name of the label column, if `fit` gets none, and in a bundle.
        stages: the methods of the search; sensitivity if there is a budget, else one uniform width.
        baselines: methods to compare with.
        embedding: `dim`, `blocks` and so on of the widest model.
        backbone: a name, or a mapping with `name` and its options.
        train: epochs, lr, batch_size and so on.
        budget: a limit, such as {"bytes": 400_000} of the whole model or {"embedding_bytes": 50_000}.
        data: keys of the `data:` section that say how columns are read, such as {"numeric": ["price"]}.
        valid_size: the share of rows that training is stopped and architectures are chosen by.
        device: auto, cpu, cuda or cuda:N.
        random_state: of the split and of all training.

    Attributes:
        classes_: both labels.
        bundle_: the model, its architecture and vocabulary; `bundle_.coverage(X)` tells what it knows of a table.
        architecture_: what was chosen.
        results_: the result of each arm by its name.
        failures_: why a baseline could not be trained, by its name.
    """

    def __init__(
        self,
        *,
        label: str = "label",
        stages: Sequence[Mapping[str, object]] | None = None,
        baselines: Sequence[str | dict[str, object] | list[dict[str, object]]] = (),
        embedding: Mapping[str, object] | None = None,
        backbone: str | Mapping[str, object] = "deepfm",
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

    def __sklearn_tags__(self) -> object:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        return tags

    def fit(
        self, X: Frame | npt.ArrayLike, y: npt.ArrayLike | None = None, sample_weight: npt.ArrayLike | None = None
    ) -> Self:
        """Searches, retrains and keeps the best.

        Args:
            X: a frame of Polars or pandas, or numbers [rows, columns].
            y: the labels [rows], of two classes; the column `label` of X if there are none.
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
        labels = self._labels(y, frame.height, None if weights is None else weights > 0)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        space = self._space(None if weights is None else _WEIGHT)
        rows = frame.with_columns(pl.Series(self.label, labels))
        if weights is not None:
            rows = rows.with_columns(pl.Series(_WEIGHT, weights))
        valid = self._valid_rows(labels, seed, None if weights is None else weights > 0)
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
                metrics={"valid": self.results_[best].valid.model_dump()},
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

    def predict_proba(self, X: Frame | npt.ArrayLike) -> Array:
        """The probabilities of both classes, float32 [rows, 2]."""
        check_is_fitted(self, "bundle_")
        clicks = self.bundle_.predict(self._frame(X, reset=False), device=self.device)
        return np.stack([1.0 - clicks, clicks], axis=1)

    def predict(self, X: Frame | npt.ArrayLike) -> Array:
        """The more probable class of each row."""
        chosen = self.predict_proba(X)[:, 1] >= 0.5
        return self.classes_[chosen.astype(np.intp)]

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

    def _valid_rows(self, labels: Array, seed: int, counting: Bools | None) -> Bools:
        """Which rows are for valid, bool [rows]: their share of each class, and two of it at least.

        All of them, which are then for train too, where a class has too few to be shared out. Rows that are not
        `counting`, whose weight is 0, are for train.
        """
        own = np.ones(len(labels), dtype=bool) if counting is None else counting
        if np.bincount(labels[own]).min() < 2 * _LEAST:
            return np.ones(len(labels), dtype=bool)
        taken = np.zeros(len(labels), dtype=bool)
        for label in (0, 1):
            places = np.random.default_rng(seed + label).permutation(np.flatnonzero(own & (labels == label)))
            taken[places[: max(_LEAST, round(self.valid_size * len(places)))]] = True
        return taken

    def _space(self, weight: str | None = None) -> SearchSpace:
        stages = self.stages or [{"method": "sensitivity" if self.budget else "uniform"}]
        space = SearchSpace.parse(
            {
                "data": {**(self.data or {}), "label": self.label} | ({"weight": weight} if weight else {}),
                "stages": [dict(stage) for stage in stages],
                "baselines": list(self.baselines),
                "embedding": dict(self.embedding or {}),
                "backbone": self.backbone,
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

    def _labels(self, y: npt.ArrayLike, rows: int, counting: Bools | None) -> Array:
        """The labels as 0 and 1, int8 [rows]; of `counting` rows there must be enough."""
        check_classification_targets(y)
        given: Array = column_or_1d(y, warn=True)
        if len(given) != rows:
            raise ValueError(f"X and y must have as many rows, but have {rows} and {len(given)}")
        self.classes_, labels = np.unique(given, return_inverse=True)
        if len(self.classes_) > 2:
            kind = type_of_target(given)
            raise ValueError(f"Only binary classification is supported. The type of the target is {kind}.")
        if len(self.classes_) < 2:
            raise ValueError(f"y must have two classes, but got one class, {self.classes_[0]!r}")
        counts = np.bincount(labels if counting is None else labels[counting], minlength=2)
        if counts.min() < _LEAST:
            weighty = "" if counting is None else " whose sample_weight is above 0"
            raise ValueError(
                f"each class must have at least {_LEAST} rows (n_samples){weighty}, but "
                f"{self.classes_[counts.argmin()]!r} has {counts.min()} of n_samples={rows}"
            )
        return labels.astype(np.int8)
