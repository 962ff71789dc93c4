"""What a Ray worker runs: one trial, from its drawn values to its folder."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray import tune

from autoembed.data.dataset import Dataset
from autoembed.errors import AutoembedError
from autoembed.space import SearchSpace
from autoembed.study.run_dir import RunDir, no_space
from autoembed.trial import TrialConfig, run_trial

OBJECTIVE = "objective"
COST = "cost"
OVER = "over_latency_ms"
FINISHED = "finished"
FAILED = "failed"
NO_SPACE = "no_space"
RUNG = "rung"


def work(config: dict[str, Any], *, run: Path, space: SearchSpace, dataset: Path) -> None:
    """Runs the trial that `config` names, reporting every epoch to Tune.

    Args:
        config: `trial`, its id; `arm`; `values` for the arm's ranges.
        run: the run folder.
        space: the study's search space.
        dataset: the folder of the encoded data, opened as a memory map.
    """
    torch.set_num_threads(max(1, int(space.budget.cpus_per_trial)))
    folder, name = RunDir(run), config["trial"]
    try:
        trial = space.config(config["arm"], config["values"], space.seed)
        folder.begin_trial(name, trial)
        report = Reporter(trial, space, partial(folder.add_point, name))
        result, model = run_trial(trial, Dataset.open(dataset), report)
        folder.finish_trial(name, result, model)
        end: dict[str, Any] = {FINISHED: True, OBJECTIVE: space.objective.of(result.valid)}
        end[COST] = space.objective.cost_of(result)
        if space.budget.latency_ms is not None:
            end[OVER] = result.latency_ms - space.budget.latency_ms
    except Exception as error:
        if no_space(error):
            # Not the trial's fault: it is run again when there is room.
            folder.drop_trial(name)
            end = {NO_SPACE: True}
        else:
            folder.mark(name, "failed", reason_of(error))
            end = {FAILED: True}
    # A failure is told, not raised: Tune runs a trial again that ended without a word, since its process is lost.
    tune.report(end)


def reason_of(error: Exception) -> str:
    """Why a trial failed, in the first line; below it the traceback, unless a rule of ours was broken."""
    if isinstance(error, AutoembedError):
        return str(error).splitlines()[0]
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}\n\n{''.join(traceback.format_exception(error))}"


class Reporter:
    """Passes a trial's epochs to its folder, and to Tune with the objective of the epoch that would be kept.

    RUNG is what the scheduler compares at. The last epoch has none: a trial that is through is not stopped.
    """

    def __init__(self, trial: TrialConfig, space: SearchSpace, keep: Callable[[Mapping[str, float]], None]) -> None:
        self.keep = keep
        self.epochs, self.metric = trial.train.epochs, space.objective.metric
        self.best_auc, self.objective = float("-inf"), float("nan")

    def __call__(self, values: Mapping[str, float]) -> None:
        self.keep(values)
        report = dict(values)
        if "valid_auc" in report:
            if report["valid_auc"] > self.best_auc:
                self.best_auc, self.objective = report["valid_auc"], report[self.metric]
            report[OBJECTIVE] = self.objective
            if report["retrain_epoch"] < self.epochs:
                report[RUNG] = int(report["retrain_epoch"])
        tune.report(report)
