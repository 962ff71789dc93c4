"""A Ray Tune callback that records how trials end and passes on what they report."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence, Set
from typing import Protocol

from ray import tune
from ray.tune.experiment import Trial

from autoembed.study.engine.worker import FAILED, FINISHED, NO_SPACE, STOPPED, Result
from autoembed.study.run_dir import RunDir
from autoembed.study.trackers.base import Tracker

RETRIES = 1  # how often a trial is run again whose process was lost


class Watcher(Protocol):
    """Who wants to hear of trials: MLflow, the progress bar."""

    def started(self, trial: str, arm: str) -> None: ...
    def reported(self, trial: str, metrics: Mapping[str, float]) -> None: ...
    def ended(self, trial: str) -> None: ...
    def warn(self, text: str) -> None: ...


class Told:
    """Tells a tracker what a watcher hears."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def started(self, trial: str, arm: str) -> None:
        self._tracker.update(trial)

    def reported(self, trial: str, metrics: Mapping[str, float]) -> None:
        self._tracker.update(trial)

    def ended(self, trial: str) -> None:
        self._tracker.close(trial)

    def warn(self, text: str) -> None:
        pass


class Recorder(tune.Callback):
    """Marks in the run folder trials that the scheduler stopped or whose process died; a worker marks the others.

    Trials that were `cut` off leave nothing: they are as if they had not begun. `unbegun` counts trials that Tune gave
    up before they began, since the process that they were to share had died.
    """

    def __init__(
        self, run: RunDir, watchers: Sequence[Watcher], reasons: Mapping[str, str], cut: Set[str] = frozenset()
    ) -> None:
        self.run, self.watchers, self.reasons, self.cut = run, watchers, reasons, cut
        self.unbegun = 0

    def __getstate__(self) -> dict[str, object]:
        # Tune pickles its callbacks for Tuner.restore, which is not how a study goes on.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        for watcher in self.watchers:
            watcher.started(trial.config["trial"], trial.config["arm"])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: Result, **info: object
    ) -> None:
        if result.get(NO_SPACE):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.run.path))
        if not any(result.get(end) for end in (FINISHED, FAILED, STOPPED)):
            for watcher in self.watchers:
                watcher.reported(trial.config["trial"], metrics_of(result))

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        name = trial.config["trial"]
        if self.run.state(name) is None and name in self.cut:
            self.run.drop_trial(name)
            return
        if self.run.state(name) is None:
            reason = self.reasons.get(name, "Ray Tune stopped it")
            self.run.mark(name, "pruned", f"{reason}\n{json.dumps(metrics_of(trial.last_result or {}))}")
        self._ended(name)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        line = f"the process of trial {trial.config['trial']} ended (killed, or out of memory): the trial is run again"
        for watcher in self.watchers:
            watcher.warn(line)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: object) -> None:
        name = trial.config["trial"]
        if not self.run.has_begun(name):
            self.unbegun += 1
            return
        if self.run.state(name) is None:
            # A worker writes its own reason: without one, its process is gone.
            reason = (
                f"the trial's process ended {RETRIES + 1} times: it was killed, or memory ran out, or its node is gone"
            )
            self.run.mark(name, "failed", reason)
        self._ended(name)

    def _ended(self, name: str) -> None:
        for watcher in self.watchers:
            watcher.ended(name)


def metrics_of(result: Result) -> dict[str, float]:
    """What a trial itself reported, without Ray's bookkeeping."""
    names = ("search_", "warm_", "refit_", "teacher_", "retrain_", "valid_", "train_loss")
    return {name: float(value) for name, value in result.items() if name.startswith(names)}
