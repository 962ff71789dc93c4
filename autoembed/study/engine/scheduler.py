"""Which trials are stopped early: those that fall behind in their own arm.

While retraining, by the compact model's metric on valid. asha: behind the best third at epochs 2, 6, 18, ...
median: behind the median of the others' means. While searching, by the supernet's and once: the worst third at epoch 2
of the first phase that has one, if the best peer is ahead by more than a standard error of the task's first metric.
Nothing is stopped where trials are compared by a cost as well: a cheap one may be behind for good reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from autoembed.space import SearchSpace
from autoembed.study.engine.clock import Clock
from autoembed.study.engine.worker import (
    ENDS,
    ERROR,
    GRACE,
    OBJECTIVE,
    PEERS,
    PROXY,
    PROXY_FIRST,
    RUNG,
    SEARCH_RUNG,
    Result,
)

FACTOR = 3
SEARCH_FACTOR = 1.5  # stops the worst third, once: how good a search's model is tells little of the retrained one


class PerArm(FIFOScheduler):
    """One scheduler per arm, ASHA (Li et al., MLSys 2020) or the median rule (Golovin et al., KDD 2017), so that a
    baseline never stops a search or the other way round; and an ASHA with a single rung for each kind of peers.

    An arm with no more trials than `FACTOR` is left alone, and so are the first `FACTOR` of its peers: there are too
    few to compare. `reasons` tells why a trial was stopped, by its id. When the `clock` says that it is late,
    every trial is cut off at its next report.
    """

    def __init__(self, trials: Mapping[str, int], space: SearchSpace, clock: Clock | None = None) -> None:
        super().__init__()
        self._clock = clock
        own = space.scheduler.name != "none" and not space.objective.cost
        self._space = space
        self._arms: dict[str, TrialScheduler] = {
            arm: _rule(space) for arm, number in trials.items() if own and number > FACTOR
        }
        self._searches: dict[tuple[str, str], TrialScheduler] = {}
        self._firsts: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self._compared: set[str] = set()
        self.reasons: dict[str, str] = {}

    def _of(self, trial: Trial) -> TrialScheduler | None:
        return self._arms.get(trial.config["arm"])

    def on_trial_add(self, controller: TuneController, trial: Trial) -> None:
        if scheduler := self._of(trial):
            scheduler.on_trial_add(controller, trial)

    def on_trial_result(self, controller: TuneController, trial: Trial, result: Result) -> str:
        scheduler = self._of(trial)
        if self._clock is not None and self._clock.late and not any(result.get(end) for end in ENDS):
            self._clock.cut.add(trial.config["trial"])
            return str(TrialScheduler.STOP)
        if scheduler is None:
            return str(TrialScheduler.CONTINUE)
        if PROXY in result:
            return self._on_search(controller, trial, result)
        action = str(scheduler.on_trial_result(controller, trial, result))
        if action == TrialScheduler.STOP:
            figure = f"{self._space.objective.metric} {result[OBJECTIVE]:.4f}"
            self.reasons[trial.config["trial"]] = f"behind its arm: {figure} at epoch {result[RUNG]} of retraining"
        return action

    def _on_search(self, controller: TuneController, trial: Trial, result: Result) -> str:
        go_on = str(TrialScheduler.CONTINUE)
        if result[SEARCH_RUNG] != GRACE or trial.trial_id in self._compared:
            return go_on
        self._compared.add(trial.trial_id)
        kind, value = (trial.config["arm"], result[PEERS]), result[PROXY_FIRST]
        if kind not in self._searches:
            self._searches[kind] = _search_rule(self._space)
        rule, before = self._searches[kind], self._firsts[kind]
        rule.on_trial_add(controller, trial)
        worst = rule.on_trial_result(controller, trial, result) == TrialScheduler.STOP
        before.append(value)
        first = self._space.data.predicts.metrics[0]
        lead = first.sign * ((max if first.rises else min)(before) - value)
        if len(before) <= FACTOR or not worst or lead <= result[ERROR]:
            return go_on
        phase = result[PEERS].rpartition(" ")[2]
        self.reasons[trial.config["trial"]] = (
            f"behind its peers: {phase}_{self._space.objective.metric} {result[PROXY]:.4f} at epoch {GRACE} is in the "
            f"worst third of {len(before)} trials, and {lead:.4f} of {first.title} behind the best ({result[PEERS]})"
        )
        return str(TrialScheduler.STOP)

    def on_trial_complete(self, controller: TuneController, trial: Trial, result: Result) -> None:
        if scheduler := self._of(trial):
            scheduler.on_trial_complete(controller, trial, result)

    def save(self, checkpoint_path: str) -> None:
        raise NotImplementedError

    def debug_string(self) -> str:
        return f"One scheduler for each of {', '.join(self._arms)}"


def _rule(space: SearchSpace) -> TrialScheduler:
    common: dict[str, str | int] = {
        "time_attr": RUNG,
        "metric": OBJECTIVE,
        "mode": space.objective.mode,
        "grace_period": GRACE,
    }
    if space.scheduler.name == "median":
        return MedianStoppingRule(min_samples_required=FACTOR, **common)
    return AsyncHyperBandScheduler(max_t=10**6, reduction_factor=FACTOR, **common)


def _search_rule(space: SearchSpace) -> TrialScheduler:
    return AsyncHyperBandScheduler(
        time_attr=SEARCH_RUNG,
        metric=PROXY,
        mode=space.objective.mode,
        grace_period=GRACE,
        max_t=GRACE,
        reduction_factor=SEARCH_FACTOR,
        stop_last_trials=False,
    )
