"""Surrogate scores: how well a small model of one column alone predicts the label, on rows that it did not see.

scikit-learn's logistic regression and decision tree, and LightGBM (the extra `lightgbm`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Self

import numpy as np

from autoembed.errors import DataError
from autoembed.types import Array

if TYPE_CHECKING:
    from sklearn.base import ClassifierMixin, TransformerMixin

_FOLDS = 3
_SAMPLE = 100_000
_LEAST = 20  # rows of a leaf


def logistic(codes: Array, labels: Array) -> float:
    """Mean AUC - 0.5 over 3 folds of a logistic regression on a column's one-hot values (codes, labels: int [N])."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import OneHotEncoder

    encoder = OneHotEncoder(handle_unknown="ignore")
    return _auc(codes, labels, lambda: LogisticRegression(max_iter=200), lambda: encoder)


def tree(codes: Array, labels: Array) -> float:
    """As `logistic`, of a decision tree on the click rate of each value, learnt on the fold's own train rows."""
    from sklearn.preprocessing import TargetEncoder
    from sklearn.tree import DecisionTreeClassifier

    return _auc(
        codes,
        labels,
        lambda: DecisionTreeClassifier(min_samples_leaf=_LEAST, random_state=0),
        lambda: TargetEncoder(random_state=0),
    )


def lightgbm(codes: Array, labels: Array) -> float:
    """As `logistic`, of 50 boosted trees on the values as categories; DataError if LightGBM is not installed."""
    try:
        from lightgbm import LGBMClassifier
    except ImportError:
        raise DataError("the score lightgbm needs LightGBM: pip install 'autoembed[lightgbm]'") from None

    class Categorical(LGBMClassifier):
        def fit(self, X: Array, y: Array) -> Self:
            fitted: Self = super().fit(X, y, categorical_feature=[0])
            return fitted

    return _auc(
        codes,
        labels,
        lambda: Categorical(n_estimators=50, min_child_samples=_LEAST, n_jobs=1, verbosity=-1, random_state=0),
    )


def _auc(
    codes: Array,
    labels: Array,
    model: Callable[[], ClassifierMixin],
    encoder: Callable[[], TransformerMixin] | None = None,
) -> float:
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline

    step = max(1, len(labels) // _SAMPLE)
    features, labels = codes[::step].reshape(-1, 1), labels[::step]
    if len(np.unique(labels)) != 2:
        raise DataError("surrogate scores need a label of two classes")
    found = []
    for train, test in StratifiedKFold(_FOLDS, shuffle=True, random_state=0).split(labels, labels):
        fitted = (make_pipeline(encoder(), model()) if encoder else model()).fit(features[train], labels[train])
        found.append(roc_auc_score(labels[test], fitted.predict_proba(features[test])[:, 1]))
    return float(np.mean(found)) - 0.5
