"""Optuna's side of a study: one Optuna study per arm in the run folder's optuna.db, driven by Ray Tune."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from autoembed.space import Range, SearchSpace
from autoembed.study.engine.clock import Clock
from autoembed.study.engine.worker import COST, FAILED, FINISHED, OBJECTIVE, OVER, Drawn, Result
from autoembed.study.run_dir import RunDir, trial_id

AGAIN = "again"  # of a trial that is run again: the name that it had

optuna.logging.set_verbosity(optuna.logging.ERROR)
# On a busy machine a draw may wait for the disk: Tune takes that for a training and warns.
warnings.filterwarnings("ignore", "Define-by-run function passed", UserWarning)


class Arms(Searcher):
    """The arms' searchers as one, so that all trials share one Tuner and its worker processes.

    The next trial is of the arm with the most left to do, so the arms fill up evenly. One that Tune gives up before it
    has `begun`, or that the `clock` has cut off, is not told to Optuna: the next searcher finds it running, and queues
    it again under its name.
    """

    def __init__(
        self,
        searches: Mapping[str, OptunaSearch],
        left: Mapping[str, int],
        mode: str,
        begun: Callable[[str], bool],
        storage: optuna.storages.RDBStorage,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(metric=OBJECTIVE, mode=mode)
        self._searches, self._left, self._begun, self._storage = searches, dict(left), begun, storage
        self._clock = clock
        self._arm: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Drawn | str | None:
        arm = max(self._left, key=lambda name: self._left[name])
        if not self._left[arm] or (self._clock is not None and self._clock.over):
            return str(Searcher.FINISHED)
        self._left[arm] -= 1
        self._arm[trial_id] = arm
        drawn: Drawn | None = self._searches[arm].suggest(trial_id)
        if drawn is not None:
            self._names[trial_id] = str(drawn["trial"])
        return drawn

    def on_trial_result(self, trial_id: str, result: Result) -> None:
        self._searches[self._arm[trial_id]].on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: Result | None = None, error: bool = False) -> None:
        if self._clock is not None and self._names[trial_id] in self._clock.cut:
            return
        if not error or self._begun(self._names[trial_id]):
            self._searches[self._arm[trial_id]].on_trial_complete(trial_id, result, error)

    def close(self) -> None:
        """Lets go of optuna.db, which a write that was interrupted would keep locked."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def save(self, checkpoint_path: str) -> None:
        # Tune's snapshot for Tuner.restore; the studies themselves stand in optuna.db.
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError


class Search(OptunaSearch):
    """OptunaSearch that compares retrained metrics only.

    Reports of the search phase carry no objective and are passed over. A trial that the scheduler stopped is told as
    pruned and one that failed as failed, whatever they reported last.
    """

    def on_trial_result(self, trial_id: str, result: Result) -> None:
        if OBJECTIVE in result and not result.get(FINISHED):
            super().on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: Result | None = None, error: bool = False) -> None:
        ended = {} if error or result is None else result
        failed = error or bool(ended.get(FAILED))
        if OVER in ended and trial_id in self._ot_trials:
            self._ot_trials[trial_id].set_constraint(OVER, ended[OVER])
        super().on_trial_complete(trial_id, ended if ended.get(FINISHED) else None, failed)


def searcher(run: RunDir, space: SearchSpace, left: Mapping[str, int], clock: Clock | None = None) -> Arms:
    """The searcher of a study with `left` trials to run per arm; it goes on where the Optuna studies ended."""
    storage = optuna.storages.RDBStorage(run.optuna)
    searches = {arm: _search(run, space, arm, storage) for arm in left}
    return Arms(searches, left, space.objective.mode, run.has_begun, storage, clock)


def _search(run: RunDir, space: SearchSpace, arm: str, storage: optuna.storages.BaseStorage) -> Search:
    modes = [space.objective.mode, *(["min"] if space.objective.cost else [])]
    directions = ["maximize" if mode == "max" else "minimize" for mode in modes]
    study = optuna.create_study(study_name=arm, storage=storage, directions=directions, load_if_exists=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([name for name in (space.objective.metric, space.objective.cost) if name])
    _reconcile(study, run, space)
    # A sampler seeded alike would draw the first trials once more.
    sampler = make_sampler(space, space.seed + 1000 * len(study.trials))
    return Search(
        space=suggester(arm, space),
        metric=[OBJECTIVE, COST] if space.objective.cost else OBJECTIVE,
        mode=modes if space.objective.cost else modes[0],
        storage=storage,
        study_name=arm,
        sampler=sampler,
    )


def make_sampler(space: SearchSpace, seed: int) -> optuna.samplers.BaseSampler:
    """The sampler that a space names; it reads from the trials how far they are over a limit on latency."""
    if space.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if space.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=16)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def suggester(arm: str, space: SearchSpace) -> Callable[[optuna.Trial], Drawn]:
    """A define-by-run space: draws the ranges that earlier choices leave, and names the trial."""

    def suggest(trial: optuna.Trial) -> Drawn:
        values = space.draw(arm, lambda place, leaf: draw(trial, place, leaf))
        name = _name(trial, trial.study)
        trial.set_user_attr("trial", name)
        return {"trial": name, "arm": arm, "values": values}

    return suggest


def _name(trial: optuna.Trial | optuna.trial.FrozenTrial, study: optuna.Study) -> str:
    """A trial's name by its number; one that was interrupted keeps its name when it is run again."""
    if AGAIN in trial.user_attrs:
        return str(trial.user_attrs[AGAIN])
    before = study.get_trials(deepcopy=False)[: trial.number]
    return trial_id(study.study_name, 1 + sum(AGAIN not in other.user_attrs for other in before))


def draw(trial: optuna.Trial, place: str, leaf: Range) -> object:
    """One value of a range; a choice is drawn by its JSON text, since Optuna stores plain values only."""
    if leaf.kind == "choice":
        texts = [json.dumps(value) for value in leaf.values]
        return leaf.values[texts.index(trial.suggest_categorical(place, texts))]
    low, high = leaf.ends
    if leaf.kind in ("int", "log_int"):
        return trial.suggest_int(place, low, high, log=leaf.kind == "log_int")
    return trial.suggest_float(place, low, high, log=leaf.kind == "log")


def _reconcile(study: optuna.Study, run: RunDir, space: SearchSpace) -> None:
    """Settles trials that a killed driver left running: by the run folder if they ended, else again in the queue."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        name = _name(trial, study)
        state = run.state(name)
        if state == "done":
            result = run.read_trial(name).result
            values = [space.objective.of(result.valid)]
            if space.budget.latency_ms is not None:
                over = result.latency_ms - space.budget.latency_ms
                optuna.trial.Trial(study, trial._trial_id).set_constraint(OVER, over)
            study.tell(trial.number, [*values, *([space.objective.cost_of(result)] if space.objective.cost else [])])
        elif state == "pruned":
            study.tell(trial.number, state=TrialState.PRUNED)
        else:
            study.tell(trial.number, state=TrialState.FAIL)
            if state is None:
                study.enqueue_trial(trial.params, user_attrs={AGAIN: name})
