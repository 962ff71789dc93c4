"""A classifier and a regressor with scikit-learn's interface."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils import check_array
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from autoembed.data.frames import Frame
from autoembed.data.values import key
from autoembed.multiclass import MOST
from autoembed.ratings import Ratings, scale_of
from autoembed.search_estimator import LEAST, SearchEstimator
from autoembed.types import Array, Bools


class AutoEmbedClassifier(ClassifierMixin, SearchEstimator):
    """Searches an architecture on a table, in this process and without Ray, and predicts with the best one.

    The keys of a search space are its parameters, all values literal: for ranges, which need many trials, use
    `autoembed.search`. The best of the searched architecture and the baselines is kept, by valid. Two classes are
    `data.task: clicks`, more are `multiclass`.

    Args:
        label: the name of the label column, if `fit` gets none, and in a bundle.
        stages: the methods of the search; sensitivity if there is a budget, else one uniform width.
        baselines: methods to compare with.
        embedding: `dim`, `blocks` and so on of the widest model.
        backbone: a name, or a mapping with `name` and its options; deepfm by default, dcn with more than two classes.
        train: epochs, lr, batch_size and so on.
        budget: a limit, such as {"bytes": 400_000} of the whole model or {"embedding_bytes": 50_000}.
        data: keys of the `data:` section that say how columns are read, such as {"numeric": ["price"]}.
        valid_size: the share of rows that training is stopped and architectures are chosen by.
        device: auto, cpu, cuda or cuda:N.
        random_state: of the split and of all training.

    Attributes:
        classes_: the labels, sorted.
        bundle_: the model, its architecture and vocabulary; `bundle_.coverage(X)` tells what it knows of a table.
        architecture_: what was chosen.
        results_: the result of each arm by its name.
        failures_: why a baseline could not be trained, by its name.
    """

    task = "clicks"
    other = "AutoEmbedRegressor"

    def predict_proba(self, X: Frame | npt.ArrayLike) -> Array:
        """The probabilities of the classes, float32 [rows, classes]."""
        check_is_fitted(self, "bundle_")
        found = self.bundle_.predict(self._frame(X, reset=False), device=self.device)
        return found if found.ndim == 2 else np.stack([1.0 - found, found], axis=1)

    def predict(self, X: Frame | npt.ArrayLike) -> Array:
        """The most probable class of each row."""
        chances = self.predict_proba(X)
        chosen = chances[:, 1] >= 0.5 if len(self.classes_) == 2 else chances.argmax(axis=1)
        return self.classes_[chosen.astype(np.intp)]

    def _predicts(self) -> dict[str, object]:
        if len(self.classes_) == 2:
            return super()._predicts()
        return {"task": "multiclass", "classes": self._names()}

    def _names(self) -> list[str]:
        """The classes as text, as a table has them."""
        texts = pl.DataFrame({"x": [str(one) for one in self.classes_.tolist()]})
        names = texts.select(key(pl.col("x"), pl.String())).to_series()
        if names.null_count() or names.n_unique() < len(names):
            raise ValueError(f"classes must differ as text, and none be missing, but got {self.classes_.tolist()}")
        return names.to_list()

    def _labels(self, y: Array, counting: Bools | None) -> tuple[Array, Array]:
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y must have two classes or more, but got one class, {self.classes_[0]!r}")
        if len(self.classes_) > MOST:
            raise ValueError(f"y must have at most {MOST} classes, but has {len(self.classes_)}: pool the rare ones")
        counts = np.bincount(labels if counting is None else labels[counting], minlength=len(self.classes_))
        least = LEAST if len(self.classes_) == 2 else 1
        if counts.min() < least:
            weighty = "" if counting is None else " whose sample_weight is above 0"
            raise ValueError(
                f"each class must have at least {least} rows (n_samples){weighty}, but "
                f"{self.classes_[counts.argmin()]!r} has {counts.min()} of n_samples={len(y)}"
            )
        if len(self.classes_) > 2:
            return np.array(self._names())[labels], labels
        return labels.astype(np.int8), labels


class AutoEmbedRegressor(RegressorMixin, SearchEstimator):
    """Searches an architecture for labels that are numbers, and predicts them with the best one.

    The keys of a search space are its parameters, all values literal: for ranges, which need many trials, use
    `autoembed.search`. The best of the searched architecture and the baselines is kept, by RMSE on valid. It is
    `AutoEmbedClassifier` with `data.task: ratings`: squared error, and predictions in units of the label.

    Args:
        label: the name of the label column, if `fit` gets none, and in a bundle.
        stages: the methods of the search; sensitivity if there is a budget, else one uniform width.
        baselines: methods to compare with.
        embedding: `dim`, `blocks` and so on of the widest model.
        backbone: a name, or a mapping with `name` and its options; deepfm by default.
        train: epochs, lr, batch_size and so on.
        budget: a limit, such as {"bytes": 400_000} of the whole model or {"embedding_bytes": 50_000}.
        data: keys of the `data:` section that say how columns are read, such as {"numeric": ["price"]}.
        valid_size: the share of rows that training is stopped and architectures are chosen by.
        device: auto, cpu, cuda or cuda:N.
        random_state: of the split and of all training.

    Attributes:
        bundle_: the model, its architecture and vocabulary; `bundle_.coverage(X)` tells what it knows of a table.
        architecture_: what was chosen.
        results_: the result of each arm by its name.
        failures_: why a baseline could not be trained, by its name.
    """

    task = "ratings"
    other = "AutoEmbedClassifier"

    def predict(self, X: Frame | npt.ArrayLike) -> Array:
        """The label of each row, float32 [rows], in its own units."""
        check_is_fitted(self, "bundle_")
        found: Array = self.bundle_.predict(self._frame(X, reset=False), device=self.device)
        return found

    def _labels(self, y: Array, counting: Bools | None) -> tuple[Array, Array]:
        labels = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y")
        with np.errstate(over="ignore"):  # told below
            labels = labels.astype(np.float32)
        if not np.isfinite(labels).all():
            raise ValueError("y must be finite, but some labels are not, as numbers of 32 bits")
        known, rows = np.unique(labels if counting is None else labels[counting], return_counts=True)
        if len(known) < 2:
            weighty = "" if counting is None else " in rows whose sample_weight is above 0"
            raise ValueError(f"y must have two values or more{weighty}, but all of n_samples={len(y)} are {known[0]:g}")
        return labels, Ratings(scale_of(known, rows)).classes(labels)
