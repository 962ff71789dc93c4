"""How good predictions are: what a metric is, and the formulas."""

from __future__ import annotations

import math
from collections.abc import ItemsView, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from pydantic import ConfigDict, RootModel

from autoembed.errors import DataError
from autoembed.types import Array, Bools, Floats


class Metrics(RootModel[dict[str, float]]):
    """What a task's metrics are on some rows: `metrics["auc"]`, and `metrics.auc` too.

    Of clicks these are auc, the area under the ROC curve, and logloss, the mean negative log likelihood in nats; of
    ratings rmse and mae, in units of the label; of multiclass cross_entropy in nats, accuracy, and macro_auc.
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

    def shown(self, name: str, absent: str = "-") -> str:
        """A metric with four digits, or `absent` where what was stored does not have it."""
        return f"{self.root[name]:.4f}" if name in self.root else absent


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number that tells how good predictions are.

    Attributes:
        name: as it is stored, such as auc.
        title: as people read it, such as AUC.
        rises: whether more is better.
        in_units: whether it is in units of the label, so that only shares of it are small or large.
    """

    name: str
    title: str
    rises: bool
    in_units: bool = False

    @property
    def monitor(self) -> str:
        """Its name on valid, which training follows and studies optimise."""
        return f"valid_{self.name}"

    @property
    def mode(self) -> Literal["max", "min"]:
        return "max" if self.rises else "min"

    @property
    def sign(self) -> int:
        return 1 if self.rises else -1

    def figure(self, metrics: Metrics) -> float:
        """The value as a number that is better the larger it is."""
        return self.sign * metrics[self.name]

    def best(self, values: Iterable[float]) -> float | None:
        """The best of the values, None if there are none."""
        return max(values, default=None) if self.rises else min(values, default=None)


def evaluate(labels: Array, probabilities: Array, weights: Array | None = None) -> Metrics:
    """Metrics of float [N] probabilities for 0/1 labels [N]; DataError if only one class is there.

    The AUC is exact, ties counted as half. Both are scikit-learn's to the last digit, whose import would cost the
    process of each trial 90 MiB and more than a second. A row of weight 2 counts as two, in both.
    """
    if not np.isin(labels, (0, 1)).all():
        raise DataError("labels must be 0 or 1, but some are not: the encoded data are damaged")
    if weights is not None:
        labels, probabilities, weights = (part[weights > 0] for part in (labels, probabilities, weights))
    if not len(labels) or labels.min() == labels.max():
        raise DataError(f"AUC needs both classes, but all {len(labels)} labels are {labels[:1].sum():g}")
    if not np.isfinite(probabilities).all():
        raise DataError("probabilities must be finite, but some are not")
    chosen = np.where(labels == 1, probabilities, 1 - probabilities)
    eps = np.finfo(chosen.dtype).eps
    losses = -np.log(chosen.clip(eps, 1 - eps))
    loss = losses.mean() if weights is None else np.average(losses, weights=weights.astype(np.float64))
    return Metrics({"auc": _auc(labels, probabilities, weights), "logloss": float(loss)})


def _auc(labels: Array, scores: Array, weights: Array | None = None) -> float:
    order = np.argsort(scores)[::-1]
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    if weights is None:
        ones = np.cumsum(labels[order], dtype=np.float64)[ends]
        zeros = 1 + ends - ones
    else:
        weight, is_one = weights[order].astype(np.float64), labels[order] == 1
        ones, zeros = (np.cumsum(np.where(own, weight, 0.0))[ends] for own in (is_one, ~is_one))
    # Points on a line between others are left out, as scikit-learn does: the sum rounds differently with them.
    corner = np.ones(len(ends), dtype=bool)
    corner[1:-1] = (np.diff(zeros, 2) != 0) | (np.diff(ones, 2) != 0)
    ones, zeros = np.append(0, ones[corner]), np.append(0, zeros[corner])
    return float(np.trapezoid(ones / ones[-1], zeros / zeros[-1]))


def class_aucs(labels: Array, scores: Array, weights: Array | None = None) -> dict[int, float]:
    """The AUC of each class that has rows against all others, by its place; their mean is the macro AUC.

    Classes without rows have none (one against the rest, as scikit-learn's `roc_auc_score` averages it).

    Args:
        labels: the place of each row's class, int [N], two classes or more.
        scores: of each class, float [N, C].
        weights: how often each row counts, above 0 [N].
    """
    return {
        place: _auc((labels == place).astype(np.float32), scores[:, place], weights)
        for place in np.unique(labels).tolist()
    }


def placements(scores: Array, ones: Bools, weights: Array | None = None) -> Floats:
    """Of each row, the share of rows of the other class that it is in the right order with, ties as half: float [N].

    The mean over the rows of either class is the AUC, and their variances give its error (DeLong et al., Biometrics
    1988). With `weights` shares and means are of weights.
    """
    placed = np.empty(len(scores))
    if weights is not None:
        for own, sign in ((ones, 1), (~ones, -1)):
            share = _weight_below(scores[own], scores[~own], weights[~own].astype(np.float64))
            placed[own] = share if sign > 0 else 1 - share
        return placed
    ranks = _ranks(scores)
    for own, sign in ((ones, 1), (~ones, -1)):
        others = len(ones) - int(own.sum())
        share = (ranks[own] - _ranks(scores[own])) / others
        placed[own] = share if sign > 0 else 1 - share
    return placed


def _weight_below(scores: Array, others: Array, weights: Floats) -> Floats:
    """The share of the weight of `others` that lies below each of the scores, ties as half: float [N]."""
    order = np.argsort(others, kind="stable")
    upto, ranked = np.concatenate([[0.0], np.cumsum(weights[order])]), others[order]
    below, above = (upto[np.searchsorted(ranked, scores, side)] for side in ("left", "right"))
    share: Floats = (below + above) / 2 / upto[-1]
    return share


def _ranks(scores: Array) -> Floats:
    return pl.Series(scores).rank("average").to_numpy()


def auc_error(auc: float, ones: float, zeros: float) -> float:
    """Standard error of an AUC over so many rows of each class (Hanley and McNeil, Radiology 1982)."""
    return math.sqrt(_auc_variance(auc, np.array([ones]), np.array([zeros]))[0])


def group_auc_error(auc: float, labels: Array, groups: Array, weights: Array | None = None) -> float:
    """Standard error of a `group_auc` by the rows alone: that of groups which all have this AUC.

    Labels 0 or 1 [N], groups int [N], below 0 for none. With `weights`, of the effective rows of each class of a group.
    DataError if no group has both classes.
    """
    own = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    counts = (groups >= 0) & (own > 0)
    if not counts.any():
        raise DataError("group AUC needs a group with both classes, but no row has a group")
    codes, own = np.unique(groups[counts], return_inverse=True)[1], own[counts]
    sums, rows = [], []
    for one in (True, False):
        weight = np.where((labels[counts] > 0.5) == one, own, 0.0)
        sums.append(np.bincount(codes, weight))
        rows.append(np.square(sums[-1]) / np.maximum(np.bincount(codes, np.square(weight)), np.finfo(float).tiny))
    both = (sums[0] > 0) & (sums[1] > 0)
    if not both.any():
        raise DataError(f"group AUC needs a group with both classes, but none of {len(both)} has both")
    share = (sums[0] + sums[1])[both] / (sums[0] + sums[1])[both].sum()
    return math.sqrt(float(np.square(share) @ _auc_variance(auc, rows[0][both], rows[1][both])))


def _auc_variance(auc: float, ones: Floats, zeros: Floats) -> Floats:
    above, below = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (ones - 1) * (above - auc**2) + (zeros - 1) * (below - auc**2)
    found: Floats = np.maximum(variance, 0.0) / (ones * zeros)
    return found


def effective_rows(weights: Array) -> float:
    """How many rows of equal weight tell as much: the square of the sum of weights over the sum of their squares.

    Kish (Survey Sampling, 1965). It is the number of rows where all weights are the same, whatever they are: a row of
    weight 2 has been seen once.
    """
    weights = weights.astype(np.float64)
    return float(weights.sum() ** 2 / np.square(weights).sum())


def mean_and_error(values: Array, weights: Array | None = None) -> tuple[float, float]:
    """The mean of values [N] and its standard error; with `weights`, those of the weighted mean.

    That is sqrt(sum w^2 (v - m)^2) / sum w, the error of a ratio of sums. 0 for a single row.
    """
    if len(values) < 2:
        return float(values.mean()), 0.0
    if weights is None:
        return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
    share = weights / weights.sum(dtype=np.float64)
    mean = float(share @ values)
    spread = float(np.square(share) @ np.square(values - mean))
    return mean, math.sqrt(spread * len(values) / (len(values) - 1))


def scale_and_shift(labels: Array, logits: Array, weights: Array | None = None, steps: int = 20) -> tuple[float, float]:
    """The scale and shift of float [N] logits with the least logloss (Platt 1999), by Newton's method.

    The loss under them tells how well rows are told apart, whatever the scale of the logits: an overfitted model is
    too sure of itself, and whatever makes its logits smaller would look like an improvement.
    """
    x = np.stack([logits, np.ones_like(logits)], axis=1).astype(np.float64)
    found = np.array([1.0, 0.0])
    share = None if weights is None else weights / weights.mean(dtype=np.float64)
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(x @ found, -30, 30)))
        bend, gap = p * (1 - p), p - labels
        if share is not None:
            bend, gap = share * bend, share * gap
        curvature = (x * bend[:, None]).T @ x + 1e-6 * np.eye(2)
        step = np.linalg.solve(curvature, x.T @ gap)
        found -= np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-8:
            break
    return float(found[0]), float(found[1])


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


def group_auc(labels: Array, probabilities: Array, groups: Array, weights: Array | None = None) -> tuple[float, int]:
    """Mean AUC within groups (users, say), weighted by their rows, and the number of groups that count.

    Groups with one class only say nothing about order and are left out (Zhou et al., KDD 2018, sec. 6.2). With
    `weights`, a row of weight 2 counts as two, in a group and between them. DataError if no group is left.
    """
    return GroupedRows(labels, probabilities, groups, weights).auc()


class GroupedRows:
    """Rows in the order of their scores within groups, for metrics of that order.

    Rows of a group that share a score are one tie. A row of weight 2 is two equal rows.

    Args:
        labels: 0 or 1 [N].
        probabilities: float [N].
        groups: of each row, such as a user [N].
        weights: how often each row counts [N], once by default.
    """

    def __init__(self, labels: Array, probabilities: Array, groups: Array, weights: Array | None = None) -> None:
        one = labels == 1
        own = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
        codes = pl.Series(groups).rank("dense").fill_null(0).to_numpy()
        order = np.lexsort((probabilities, codes))
        group, score, weight = codes[order], probabilities[order], own[order]
        new = np.append(True, group[1:] != group[:-1])
        tie = np.flatnonzero(np.append(True, (score[1:] != score[:-1]) | new[1:]))
        # Of each tie, groups one after the other and from the lowest score up: its clicks and its other rows.
        self.ones = np.add.reduceat(np.where(one[order], weight, 0.0), tie)
        self.zeros = np.add.reduceat(np.where(one[order], 0.0, weight), tie)
        self.starts = np.searchsorted(tie, np.flatnonzero(new))
        self.sizes = np.diff(np.append(self.starts, len(tie)))
        self.clicks, self.others = (np.add.reduceat(part, self.starts) for part in (self.ones, self.zeros))

    def auc(self) -> tuple[float, int]:
        """As `group_auc` has it."""
        # A click beats the others below it, and half of those beside it.
        won = np.add.reduceat(self.ones * (self._before(self.zeros) + self.zeros / 2), self.starts)
        counts = (self.clicks > 0) & (self.others > 0)
        if not counts.any():
            raise DataError(f"group AUC needs a group with both classes, but none of {len(self.starts)} has both")
        aucs = won[counts] / (self.clicks[counts] * self.others[counts])
        return float(np.average(aucs, weights=(self.clicks + self.others)[counts])), int(counts.sum())

    def top(self, k: int) -> tuple[float, float, int]:
        """NDCG@k and HR@k, and the number of groups that count: all that have a click, each once.

        NDCG@k is the sum of 1 / log2(1 + place) over the clicks among the first k rows of a group, over that of the
        best order (Jarvelin and Kekalainen, 2002). HR@k, the hit rate, is the share of groups with a click among these.
        Both are means over all orders of rows that share a score (McSherry and Najork, ECIR 2008), as in scikit-learn.

        With weights a row takes as many places as it weighs, so that here their size matters and not their ratios
        alone. DataError if no group has a click.
        """
        counts = self.clicks > 0
        if not counts.any():
            raise DataError(f"NDCG needs a group with a click, but none of {len(self.starts)} has one")
        rows = self.ones + self.zeros
        stops = np.repeat(self.clicks + self.others, self.sizes) - self._before(rows)
        firsts = stops - rows  # how many rows of the group are before the tie, from the top
        reached = (firsts < k) & (rows > 0)
        ones, zeros, rows, firsts, stops = (part[reached] for part in (self.ones, self.zeros, rows, firsts, stops))
        group = np.repeat(np.arange(len(self.starts)), self.sizes)[reached]
        places = np.arange(k + 1)
        gained = np.append(0.0, np.cumsum(1 / np.log2(places[:k] + 2)))  # by the first 0..k places
        found = ones / rows * (np.interp(stops, places, gained) - np.interp(firsts, places, gained))
        gains = np.bincount(group, found, minlength=len(self.starts))[counts]
        missed = np.ones(len(self.starts))
        # Groups are in order, and so are their ties: chances of no click are multiplied group by group.
        some = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
        missed[group[some]] = np.multiply.reduceat(_no_click(ones, zeros, np.minimum(k - firsts, rows), k), some)
        best = np.interp(self.clicks[counts], places, gained)
        return float((gains / best).mean()), float(1 - missed[counts].mean()), int(counts.sum())

    def _before(self, values: Floats) -> Floats:
        """Of each tie, the sum over the ties of its group below it."""
        upto = np.cumsum(values) - values
        below: Floats = upto - np.repeat(upto[self.starts], self.sizes)
        return below


def _no_click(ones: Floats, zeros: Floats, drawn: Floats, k: int) -> Floats:
    """The chance that so many of each tie's rows, drawn without putting back, are all zeros: float [ties].

    A part of a row is drawn with that chance.
    """
    some = (ones > 0) & (drawn < ones + zeros)  # the others are drawn whole, or have no click
    chance = np.where(ones > 0, 0.0, 1.0)
    own, left, drawn = np.ones(int(some.sum())), zeros[some], drawn[some]
    rows = left + ones[some]
    for place in range(k):
        zero = (left - place).clip(0) / (rows - place).clip(1e-9)
        own *= 1 - (drawn - place).clip(0, 1) * (1 - zero.clip(0, 1))
    chance[some] = own
    return chance
