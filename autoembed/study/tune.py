"""Trials under Ray Tune: one Tuner per arm, so that every arm gets the same number of trials."""

from __future__ import annotations

import logging
import os
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
import torch
from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

from autoembed.data.dataset import Dataset
from autoembed.errors import AutoembedError, StudyError
from autoembed.space import SearchSpace
from autoembed.study.run_dir import RunDir
from autoembed.study.sampler import FINISHED, OBJECTIVE, search, storage
from autoembed.trial import TrialConfig, run_trial

RUNG = "rung"
GRACE, FACTOR = 2, 3
OBJECT_STORE = 100 * 2**20


class Watcher(Protocol):
    """Who wants to hear of trials, in the driver: MLflow, the progress bar."""

    def started(self, trial: str, arm: str, config: TrialConfig | None) -> None: ...
    def reported(self, trial: str, metrics: Mapping[str, float]) -> None: ...
    def ended(self, trial: str, arm: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the study may use: `address` of a running cluster, or `cpus` of this machine (all by default)."""

    address: str | None = None
    cpus: int | None = None


@contextmanager
def cluster(resources: Resources) -> Iterator[None]:
    """A Ray of the study's own, or the named one; the own one ends with the block, whatever happens."""
    if ray.is_initialized():
        yield
        return
    own = {} if resources.address else {"num_cpus": resources.cpus, "object_store_memory": OBJECT_STORE}
    if not resources.address:
        own["include_dashboard"] = False
    try:
        ray.init(
            address=resources.address or "local",
            log_to_driver=False,
            logging_level="CRITICAL",
            configure_logging=True,
            **own,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise StudyError(f"cannot start Ray: {' '.join(str(error).split())}") from None
    # Tune logs a traceback per failed trial; the reason stands in the trial's error.txt and in the summary.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        ray.shutdown()


def concurrency(space: SearchSpace) -> int:
    """How many trials run at once; StudyError if not even one fits, which Ray would wait for without a word."""
    budget, there = space.budget, ray.cluster_resources()
    cpus, gpus = there.get("CPU", 0), there.get("GPU", 0)
    if budget.cpus_per_trial > cpus:
        raise StudyError(
            f"budget.cpus_per_trial={budget.cpus_per_trial:g} needs more than the {cpus:g} CPUs that there are"
        )
    if budget.gpus_per_trial > gpus:
        raise StudyError(
            f"budget.gpus_per_trial={budget.gpus_per_trial:g} needs more than the {gpus:g} GPUs that there are"
        )
    fit = int(cpus // budget.cpus_per_trial)
    if budget.gpus_per_trial:
        fit = min(fit, int(gpus // budget.gpus_per_trial))
    return min(fit, budget.concurrent or fit)


def wanted(space: SearchSpace, arm: str) -> int:
    """Trials of an arm: the budget's, or one if nothing varies."""
    return space.budget.trials if space.ranges(arm) else 1


def run_arm(
    run: RunDir, space: SearchSpace, arm: str, dataset: Dataset, number: int, watchers: Sequence[Watcher]
) -> None:
    """Runs `number` more trials of an arm and returns when they have ended.

    A trial that fails is recorded as failed and does not end the study.
    """
    budget = space.budget
    at_once = min(concurrency(space), number)
    trainable = tune.with_resources(
        tune.with_parameters(_trial, run=run.path, space=space, dataset=dataset.path),
        {"cpu": budget.cpus_per_trial, "gpu": budget.gpus_per_trial},
    )
    few = number < FACTOR + 1
    scheduler = (
        FIFOScheduler()
        if few
        else AsyncHyperBandScheduler(
            time_attr=RUNG,
            metric=OBJECTIVE,
            mode=space.objective.mode,
            max_t=10**6,
            grace_period=GRACE,
            reduction_factor=FACTOR,
        )
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            num_samples=number,
            max_concurrent_trials=at_once,
            search_alg=search(run, space, arm, storage(run)),
            scheduler=scheduler,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name=arm,
            storage_path=str(run.path / "ray"),
            callbacks=[_Recorder(run, space, watchers)],
            failure_config=tune.FailureConfig(max_failures=0),
            verbose=0,
        ),
    )
    results = tuner.fit()
    for error in results.errors:
        assert error is not None


def _trial(config: dict[str, Any], *, run: Path, space: SearchSpace, dataset: Path) -> None:
    """What a Ray worker runs: one trial from its drawn values to its folder."""
    torch.set_num_threads(max(1, int(space.budget.cpus_per_trial)))
    where = RunDir(run)
    trial = space.config(config["arm"], config["values"], space.seed)
    where.begin_trial(config["trial"], trial)
    reporter = _Reporter(trial, space)
    result, model = run_trial(trial, Dataset.open(dataset), reporter)
    where.finish_trial(config["trial"], result, model)
    value = result.valid.auc if space.objective.metric == "valid_auc" else result.valid.logloss
    tune.report({FINISHED: True, OBJECTIVE: value})


class _Reporter:
    """Passes a trial's epochs to Tune, with the objective of the epoch that would be kept.

    RUNG is what the scheduler compares at. The last epoch has none: a trial that is through is not stopped.
    """

    def __init__(self, trial: TrialConfig, space: SearchSpace) -> None:
        self.epochs, self.metric = trial.train.epochs, space.objective.metric
        self.best_auc, self.objective = float("-inf"), float("nan")

    def __call__(self, values: Mapping[str, float]) -> None:
        report = dict(values)
        if "valid_auc" in report:
            if report["valid_auc"] > self.best_auc:
                self.best_auc, self.objective = report["valid_auc"], report[self.metric]
            report[OBJECTIVE] = self.objective
            if report["retrain_epoch"] < self.epochs:
                report[RUNG] = int(report["retrain_epoch"])
        tune.report(report)


class _Recorder(tune.Callback):  # type: ignore[misc]
    """Records in the run folder, from the driver, the trials that a scheduler stopped or that failed."""

    def __init__(self, run: RunDir, space: SearchSpace, watchers: Sequence[Watcher]) -> None:
        self.run, self.space, self.watchers = run, space, watchers

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks for Tuner.restore, which is not how a study goes on.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        arm = trial.config["arm"]
        try:
            config = self.space.config(arm, trial.config["values"], self.space.seed)
        except AutoembedError:
            config = None
        for watcher in self.watchers:
            watcher.started(trial.config["trial"], arm, config)

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        if result.get(FINISHED):
            return
        for watcher in self.watchers:
            watcher.reported(trial.config["trial"], reported(result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        if self.run.state(name) is None:
            import json

            self.run.mark(name, "pruned", json.dumps(reported(trial.last_result or {})))
        for watcher in self.watchers:
            watcher.ended(name, trial.config["arm"])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        name = trial.config["trial"]
        if self.run.state(name) is None:
            self.run.mark(name, "failed", reason_of(trial.get_error()))
        for watcher in self.watchers:
            watcher.ended(name, trial.config["arm"])


def reported(result: Mapping[str, Any]) -> dict[str, float]:
    """What a trial itself reported, without Ray's bookkeeping."""
    names = ("search_", "warm_", "retrain_", "valid_", "train_loss")
    return {name: float(value) for name, value in result.items() if name.startswith(names)}


def reason_of(error: BaseException | None) -> str:
    """One line that says why a trial failed, and below it the traceback if it is no rule of ours that was broken."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, AutoembedError):
        return str(cause).splitlines()[0]
    if cause is None or isinstance(cause, RayError):
        first = str(cause).splitlines()[0] if cause is not None and str(cause) else "no reason given"
        return f"the trial's process ended: {first}"
    lines = str(cause).splitlines() or [""]
    trace = "".join(traceback.format_exception(cause)) if cause.__traceback__ else str(error)
    return f"{type(cause).__name__}: {lines[0]}\n\n{trace}"


def default_cpus() -> int:
    return os.cpu_count() or 1
