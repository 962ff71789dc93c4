"""The driver's ear: records how trials end, and passes on what they report."""

from __future__ import annotations

import json
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ray import tune
from ray.exceptions import RayError

from autoembed.errors import AutoembedError
from autoembed.study.run_dir import RunDir
from autoembed.study.worker import FINISHED


class Watcher(Protocol):
    """Who wants to hear of trials: MLflow, the progress bar."""

    def started(self, trial: str, arm: str) -> None: ...
    def reported(self, trial: str, metrics: Mapping[str, float]) -> None: ...
    def ended(self, trial: str) -> None: ...


class Recorder(tune.Callback):  # type: ignore[misc]
    """Marks in the run folder the trials that the scheduler stopped or that failed; a worker marks its own DONE."""

    def __init__(self, run: RunDir, watchers: Sequence[Watcher]) -> None:
        self.run, self.watchers = run, watchers

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for Tuner.restore, which is not how a study goes on.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        for watcher in self.watchers:
            watcher.started(trial.config["trial"], trial.config["arm"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if not result.get(FINISHED):
            for watcher in self.watchers:
                watcher.reported(trial.config["trial"], metrics_of(result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        if self.run.state(name) is None:
            self.run.mark(name, "pruned", json.dumps(metrics_of(trial.last_result or {})))
        self._ended(name)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        if self.run.state(name) is None:
            self.run.mark(name, "failed", reason_of(trial.get_error()))
        self._ended(name)

    def _ended(self, name: str) -> None:
        for watcher in self.watchers:
            watcher.ended(name)


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """What a trial itself reported, without Ray's bookkeeping."""
    names = ("search_", "warm_", "retrain_", "valid_", "train_loss")
    return {name: float(value) for name, value in result.items() if name.startswith(names)}


def reason_of(error: BaseException | None) -> str:
    """Why a trial failed, in the first line; below it the traceback, unless a rule of ours was broken."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, AutoembedError):
        return str(cause).splitlines()[0]
    first = next(iter(str(cause).splitlines()), "") if cause else "no reason given"
    if cause is None or isinstance(cause, RayError):
        return f"the trial's process ended: {first}"
    trace = "".join(traceback.format_exception(cause)) if cause.__traceback__ else str(error)
    return f"{type(cause).__name__}: {first}\n\n{trace}"
