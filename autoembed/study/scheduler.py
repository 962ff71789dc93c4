"""Which trials are stopped early: those behind the best third of their arm at epochs 2, 6, 18, ... of retraining."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from autoembed.study.worker import OBJECTIVE, RUNG

GRACE, FACTOR = 2, 3


class PerArm(FIFOScheduler):  # type: ignore[misc]
    """One ASHA (Li et al., MLSys 2020) per arm, so that a baseline never stops a search or the other way round.

    An arm with no more trials than `FACTOR` is left alone: there are too few to compare.
    """

    def __init__(self, trials: Mapping[str, int], mode: str) -> None:
        super().__init__()
        self._arms: dict[str, Any] = {
            arm: AsyncHyperBandScheduler(
                time_attr=RUNG, metric=OBJECTIVE, mode=mode, max_t=10**6, grace_period=GRACE, reduction_factor=FACTOR
            )
            for arm, number in trials.items()
            if number > FACTOR
        }

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
        return f"One ASHA for each of {', '.join(self._arms)}"
