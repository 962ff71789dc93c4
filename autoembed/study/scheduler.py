"""Which trials are stopped early: those that fall behind in their own arm, by retrained metrics only.

asha: behind the best third at epochs 2, 6, 18, ... of retraining. median: behind the median of the others' means.
Nothing is stopped where trials are compared by a cost as well: a cheap one may be behind for good reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from autoembed.space import SearchSpace
from autoembed.study.worker import OBJECTIVE, RUNG

GRACE, FACTOR = 2, 3


class PerArm(FIFOScheduler):  # type: ignore[misc]
    """One scheduler per arm, ASHA (Li et al., MLSys 2020) or the median rule (Golovin et al., KDD 2017), so that a
    baseline never stops a search or the other way round.

    An arm with no more trials than `FACTOR` is left alone: there are too few to compare.
    """

    def __init__(self, trials: Mapping[str, int], space: SearchSpace) -> None:
        super().__init__()
        own = space.scheduler != "none" and not space.objective.cost
        self._arms: dict[str, Any] = {arm: _rule(space) for arm, number in trials.items() if own and number > FACTOR}

    def _of(self, trial: Any) -> Any:
        return self._arms.get(trial.config["arm"])

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        if scheduler := self._of(trial):
            scheduler.on_trial_add(controller, trial)

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        scheduler = self._of(trial)
        return str(scheduler.on_trial_result(controller, trial, result)) if scheduler else TrialScheduler.CONTINUE

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if scheduler := self._of(trial):
            scheduler.on_trial_complete(controller, trial, result)

    def save(self, checkpoint_path: str) -> None:
        raise NotImplementedError

    def debug_string(self) -> str:
        return f"One scheduler for each of {', '.join(self._arms)}"


def _rule(space: SearchSpace) -> TrialScheduler:
    common: dict[str, Any] = {
        "time_attr": RUNG,
        "metric": OBJECTIVE,
        "mode": space.objective.mode,
        "grace_period": GRACE,
    }
    if space.scheduler == "median":
        return MedianStoppingRule(min_samples_required=FACTOR, **common)
    return AsyncHyperBandScheduler(max_t=10**6, reduction_factor=FACTOR, **common)
