"""How good predicted click probabilities are."""

from __future__ import annotations

import math
from collections.abc import ItemsView

import numpy as np
import polars as pl
from pydantic import ConfigDict, RootModel

from autoembed.errors import DataError
from autoembed.types import Array, Bools, Floats


class Metrics(RootModel[dict[str, float]]):
    """What a task's metrics are on some rows: `metrics["auc"]`, and `metrics.auc` too.

    Of clicks these are auc, the area under the ROC curve, and logloss, the mean negative log likelihood in nats.
    """

    model_config = ConfigDict(frozen=True)

    def __getitem__(self, name: str) -> float:
        return self.root[name]

    def __getattr__(self, name: str) -> float:
        known: dict[str, float] = self.__dict__.get("root", {})
        if name in known:
            return known[name]
        raise AttributeError(f"there is no metric {name!r}: the metrics are {', '.join(known)}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.root)

    def items(self) -> ItemsView[str, float]:
        return self.root.items()


def evaluate(labels: Array, probabilities: Array) -> Metrics:
    """Metrics of float [N] probabilities for 0/1 labels [N]; DataError if only one class is there.

    The AUC is exact, ties counted as half. Both are scikit-learn's to the last digit, whose import would cost the
    process of each trial 90 MiB and more than a second.
    """
    if not np.isin(labels, (0, 1)).all():
        raise DataError("labels must be 0 or 1, but some are not: the encoded data are damaged")
    if labels.min() == labels.max():
        raise DataError(f"AUC needs both classes, but all {len(labels)} labels are {labels[0]:g}")
    if not np.isfinite(probabilities).all():
        raise DataError("probabilities must be finite, but some are not")
    chosen = np.where(labels == 1, probabilities, 1 - probabilities)
    eps = np.finfo(chosen.dtype).eps
    loss = -np.log(chosen.clip(eps, 1 - eps)).mean()
    return Metrics({"auc": _auc(labels, probabilities), "logloss": float(loss)})


def _auc(labels: Array, scores: Array) -> float:
    order = np.argsort(scores)[::-1]
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    ones = np.cumsum(labels[order], dtype=np.float64)[ends]
    zeros = 1 + ends - ones
    # Points on a line between others are left out, as scikit-learn does: the sum rounds differently with them.
    corner = np.ones(len(ends), dtype=bool)
    corner[1:-1] = (np.diff(zeros, 2) != 0) | (np.diff(ones, 2) != 0)
    ones, zeros = np.append(0, ones[corner]), np.append(0, zeros[corner])
    return float(np.trapezoid(ones / ones[-1], zeros / zeros[-1]))


def placements(scores: Array, ones: Bools) -> Floats:
    """Of each row, the share of rows of the other class that it is in the right order with, ties as half: float [N].

    The mean over the rows of either class is the AUC, and their variances give its error (DeLong et al., Biometrics
    1988).
    """
    placed = np.empty(len(scores))
    ranks = _ranks(scores)
    for own, sign in ((ones, 1), (~ones, -1)):
        others = len(ones) - int(own.sum())
        share = (ranks[own] - _ranks(scores[own])) / others
        placed[own] = share if sign > 0 else 1 - share
    return placed


def _ranks(scores: Array) -> Floats:
    return pl.Series(scores).rank("average").to_numpy()


def auc_error(auc: float, ones: int, zeros: int) -> float:
    """Standard error of an AUC over so many rows of each class (Hanley and McNeil, Radiology 1982)."""
    above, below = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (ones - 1) * (above - auc**2) + (zeros - 1) * (below - auc**2)
    return math.sqrt(max(variance, 0.0) / (ones * zeros))


def scale_and_shift(labels: Array, logits: Array, steps: int = 20) -> tuple[float, float]:
    """The scale and shift of float [N] logits with the least logloss (Platt 1999), by Newton's method.

    The loss under them tells how well rows are told apart, whatever the scale of the logits: an overfitted model is
    too sure of itself, and whatever makes its logits smaller would look like an improvement.
    """
    x = np.stack([logits, np.ones_like(logits)], axis=1).astype(np.float64)
    weights = np.array([1.0, 0.0])
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        curvature = (x * (p * (1 - p))[:, None]).T @ x + 1e-6 * np.eye(2)
        step = np.linalg.solve(curvature, x.T @ (p - labels))
        weights -= np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-8:
            break
    return float(weights[0]), float(weights[1])


def log_losses(labels: Array, logits: Array) -> Array:
    """The logloss of each row in nats: float [N]."""
    losses: Array = np.logaddexp(0, logits) - labels * logits
    return losses


def calibration_error(labels: Array, probabilities: Array, bins: int = 20) -> float:
    """Expected calibration error (Naeini et al., AAAI 2015): the mean gap between clicks and predictions of a bin.

    Bins hold equally many rows, since click probabilities crowd near zero.
    """
    order = np.argsort(probabilities, kind="stable")
    parts = zip(np.array_split(labels[order], bins), np.array_split(probabilities[order], bins), strict=True)
    return float(sum(abs(y.mean() - p.mean()) * len(y) for y, p in parts if len(y)) / len(labels))


def group_auc(labels: Array, probabilities: Array, groups: Array) -> tuple[float, int]:
    """Mean AUC within groups (users, say), weighted by their rows, and the number of groups that count.

    Groups with one class only say nothing about order and are left out (Zhou et al., KDD 2018, sec. 6.2). DataError if
    none is left.
    """
    table = pl.DataFrame({"group": groups, "label": labels.astype(np.int8), "p": probabilities})
    ranked = table.with_columns(pl.col("p").rank("average").over("group").alias("rank"))
    per_group = (
        ranked.group_by("group")
        .agg(
            pl.len().alias("rows"),
            pl.col("label").cast(pl.Float64).sum().alias("ones"),
            pl.col("rank").filter(pl.col("label") == 1).sum().alias("ranks"),
        )
        .filter((pl.col("ones") > 0) & (pl.col("ones") < pl.col("rows")))
    )
    if per_group.is_empty():
        raise DataError(f"group AUC needs a group with both classes, but none of {table['group'].n_unique()} has both")
    ones, rows = per_group["ones"].to_numpy(), per_group["rows"].to_numpy()
    aucs = (per_group["ranks"].to_numpy() - ones * (ones + 1) / 2) / (ones * (rows - ones))
    return float(np.average(aucs, weights=rows)), len(aucs)
