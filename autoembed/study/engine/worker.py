"""What a Ray worker runs: one trial, from its drawn values to its folder."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
from ray import tune

from autoembed.data.dataset import Dataset
from autoembed.errors import AutoembedError
from autoembed.events import EpochEnd, Event, Phase, values_of
from autoembed.methods.method import configure
from autoembed.methods.warm import WarmStarts
from autoembed.space import SearchSpace
from autoembed.study.run_dir import RunDir, no_space
from autoembed.task import metric_of
from autoembed.trial import TrialConfig, run_trial
from autoembed.types import Array

OBJECTIVE = "objective"
COST = "cost"
OVER = "over_latency_ms"
FINISHED = "finished"
FAILED = "failed"
NO_SPACE = "no_space"
RUNG = "rung"
STOPPED = "stopped"
ENDS = (FINISHED, FAILED, STOPPED, NO_SPACE)  # what the last report of a trial has one of
# What searches are compared by, never together with OBJECTIVE and RUNG.
PROXY = "proxy"
PROXY_FIRST = "proxy_first"  # the task's first metric, which tells whether anything was learnt
ERROR = "proxy_error"
PEERS = "peers"
SEARCH_RUNG = "proxy_rung"
GRACE = 2  # epochs of a phase before a trial may be stopped
STEPS = 100  # of searching: on small data the first epochs are too few for a good draw to leave chance
COMPARED = ("warm", "search", "retrain")  # phases by which trials are compared


# What a trial has reported as Tune passes it on, with keys of Tune's own of any type.
Result = dict[str, Any]


class Drawn(TypedDict):
    """What Tune gives a worker: the trial's id, its arm, and values for the arm's ranges."""

    trial: str
    arm: str
    values: dict[str, object]


def work(config: Drawn, *, run: Path, space: SearchSpace, dataset: Path) -> None:
    """Runs the trial that `config` names, reporting every epoch to Tune.

    Args:
        config: `trial`, its id; `arm`; `values` for the arm's ranges.
        run: the run folder.
        space: the study's search space.
        dataset: the folder of the encoded data, opened as a memory map.
    """
    torch.set_num_threads(max(1, int(space.budget.cpus_per_trial)))
    folder, name = RunDir(run), config["trial"]
    end: dict[str, float]
    try:
        trial = space.config(config["arm"], config["values"], space.seed)
        folder.begin_trial(name, trial)
        data = Dataset.open(dataset)
        report = Reporter(
            trial,
            space,
            data.rows("train"),
            data.labels("valid"),
            partial(folder.add_point, name),
            data.weights("valid"),
            data.groups("valid"),
        )
        result, model = run_trial(trial, data, report, WarmStarts(folder=folder.warm))
        folder.finish_trial(name, result, model)
        end = {FINISHED: True, OBJECTIVE: space.objective.of(result.valid)}
        end[COST] = space.objective.cost_of(result)
        if space.budget.latency_ms is not None:
            end[OVER] = result.latency_ms - space.budget.latency_ms
    except TrialPruned as stop:
        folder.mark(name, "pruned", str(stop))
        end = {STOPPED: True}
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


class TrialPruned(Exception):  # noqa: N818
    """A search that is no better than chance; the text is the reason, in one line."""


class Reporter:
    """Passes a trial's epochs to its folder and to Tune, with the metric of the phase's best epoch so far.

    While retraining that is OBJECTIVE, compared at RUNG. The last epoch has none: a trial that is through is not
    stopped. While searching it is PROXY, compared at SEARCH_RUNG among those with the same PEERS, with the phase's best
    value of the task's first metric beside it and its standard error. Raises TrialPruned.

    Args:
        trial: what is run.
        space: the study's.
        rows: of train, with what a search holds out: steps are at most as many.
        labels: of valid.
        keep: takes the values of each report first.
        weights: of valid's rows, if they have some.
        groups: of valid's rows, if they are in some.
    """

    def __init__(
        self,
        trial: TrialConfig,
        space: SearchSpace,
        rows: int,
        labels: Array,
        keep: Callable[[Mapping[str, float]], None],
        weights: Array | None = None,
        groups: Array | None = None,
    ) -> None:
        self.keep, self.trial, self.task = keep, trial, space.data.predicts
        self.labels, self.weights, self.groups = labels, weights, groups
        self.metric, self.first = metric_of(trial.monitor), self.task.metrics[0]
        self.stops = space.scheduler.stops_searches
        self.batches, self.steps = math.ceil(rows / trial.train.batch_size), 0
        self.best: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        values = values_of(event)
        self.keep(values)
        report: dict[str, float | str] = dict(values)
        if isinstance(event, EpochEnd) and event.phase in COMPARED:
            report |= self._compared(event, event.phase, event.epoch)
        tune.report(report)

    def _compared(self, event: EpochEnd, phase: Phase, epoch: int) -> dict[str, float | str]:
        """What schedulers compare; raises TrialPruned."""
        for one in (self.metric, self.first):
            value = event.valid[one.name]
            before = value if epoch == 1 else self.best[one.name]
            self.best[one.name] = max(before, value) if one.rises else min(before, value)
        figure, first = self.best[self.metric.name], self.best[self.first.name]
        if phase == "retrain":
            last = epoch >= self.trial.train.epochs
            return {OBJECTIVE: figure} if last else {OBJECTIVE: figure, RUNG: epoch}
        if not self.stops:
            return {}
        self.steps += self.batches
        bound = self.task.hopeless(first, self.labels, self.weights, self.groups)
        if epoch >= GRACE and self.steps >= STEPS and bound is not None:
            raise TrialPruned(
                f"no better than chance: {phase}_{self.first.monitor} {first:.4f} after {epoch} epochs, at step "
                f"{self.steps}, is not {'above' if self.first.rises else 'below'} {bound:.4f}"
            )
        report: dict[str, float | str] = {PROXY: figure, PROXY_FIRST: first, SEARCH_RUNG: epoch}
        return report | {
            ERROR: self.task.error(first, self.labels, self.weights, self.groups),
            PEERS: peers(self.trial, event.stage or 0, phase),
        }


def peers(trial: TrialConfig, stage: int, phase: str) -> str:
    """What a search has in common with those that it may be compared with: methods and epochs of all phases so far."""
    done = []
    for number, options in enumerate(trial.stages[: stage + 1]):
        method = configure(options)
        epochs = "+".join(str(getattr(method, name, 0)) for name in ("warm_epochs", "epochs"))
        # How long the search of the gates will go on matters from its beginning, since temperatures fall with it.
        done.append(method.method if number == stage and phase == "warm" else f"{method.method} {epochs}")
    return f"{', '.join(done)}: {phase}"
