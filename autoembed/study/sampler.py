"""Optuna's side of a study: one TPE study per arm in the run folder's optuna.db, driven by Ray Tune."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from autoembed.space import Range, SearchSpace
from autoembed.study.run_dir import RunDir, trial_id

optuna.logging.set_verbosity(optuna.logging.ERROR)

OBJECTIVE = "objective"
FINISHED = "finished"


class Search(OptunaSearch):  # type: ignore[misc]
    """OptunaSearch that compares retrained metrics only.

    Reports of the search phase carry no objective and are passed over. A trial that the scheduler stopped is told as
    pruned and one that failed as failed, whatever they reported last.
    """

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if OBJECTIVE in result and not result.get(FINISHED):
            super().on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        finished = bool(result and result.get(FINISHED)) and not error
        super().on_trial_complete(trial_id, result if finished else None, error)

    def save(self, checkpoint_path: str) -> None:
        # Tune's snapshot for Tuner.restore; the study itself stands in optuna.db.
        Path(checkpoint_path).touch()


def storage(run: RunDir) -> optuna.storages.RDBStorage:
    return optuna.storages.RDBStorage(run.optuna)


def search(run: RunDir, space: SearchSpace, arm: str, store: optuna.storages.BaseStorage) -> Search:
    """The searcher of an arm, which goes on where its Optuna study ended."""
    mode = space.objective.mode
    study = optuna.create_study(
        study_name=arm,
        storage=store,
        direction="maximize" if mode == "max" else "minimize",
        load_if_exists=True,
    )
    _reconcile(study, run, arm)
    # A sampler seeded alike would draw the first trials once more.
    seed = space.seed + 1000 * len(study.trials)
    sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return Search(
        space=suggester(arm, space.ranges(arm)),
        metric=OBJECTIVE,
        mode=mode,
        storage=store,
        study_name=arm,
        sampler=sampler,
    )


def suggester(arm: str, ranges: dict[str, Range]) -> Callable[[Any], dict[str, Any]]:
    """A define-by-run space: draws every range, and names the trial by Optuna's number."""

    def suggest(trial: Any) -> dict[str, Any]:
        values = {place: draw(trial, place, leaf) for place, leaf in ranges.items()}
        return {"trial": trial_id(arm, trial.number + 1), "arm": arm, "values": values}

    return suggest


def draw(trial: Any, place: str, leaf: Range) -> Any:
    """One value of a range; a choice is drawn by its JSON text, since Optuna stores plain values only."""
    if leaf.kind == "choice":
        texts = [json.dumps(value) for value in leaf.values]
        return leaf.values[texts.index(trial.suggest_categorical(place, texts))]
    low, high = leaf.values
    if leaf.kind in ("int", "log_int"):
        return trial.suggest_int(place, low, high, log=leaf.kind == "log_int")
    return trial.suggest_float(place, low, high, log=leaf.kind == "log")


def _reconcile(study: optuna.Study, run: RunDir, arm: str) -> None:
    """Settles the trials that a killed driver left running: by the run folder if they ended, else again in the queue."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        name = trial_id(arm, trial.number + 1)
        state = run.state(name)
        if state == "done":
            valid = run.read_trial(name).result.valid
            value = valid.auc if study.direction == optuna.study.StudyDirection.MAXIMIZE else valid.logloss
            study.tell(trial.number, value)
        elif state == "pruned":
            study.tell(trial.number, state=TrialState.PRUNED)
        else:
            study.tell(trial.number, state=TrialState.FAIL)
            if state is None and trial.params:
                study.enqueue_trial(trial.params)
