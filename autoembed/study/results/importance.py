"""Which ranges of an arm matter: the share of the objective's variance over trials that each range accounts for."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import TrialState

from autoembed.study.run_dir import RunDir

LEAST = 4  # trials without which nothing is said


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How many trials of an arm it is of, and the share of each range that all of them drew, the largest first."""

    trials: int
    shares: dict[str, float]


def importances(run: RunDir, arms: tuple[str, ...]) -> dict[str, Importance]:
    """fANOVA (Hutter et al., ICML 2014) by arm; arms with fewer than LEAST trials, or without ranges, are left out."""
    if not (run.path / "optuna.db").is_file():
        return {}
    storage = optuna.storages.RDBStorage(run.optuna)
    found = {}
    try:
        for arm in arms:
            with suppress(KeyError):  # an arm that has not begun has no Optuna study
                study = optuna.load_study(study_name=arm, storage=storage)
                if (own := _of(study)) is not None:
                    found[arm] = own
    finally:
        storage.remove_session()
        storage.engine.dispose()
    return found


def _of(study: optuna.Study) -> Importance | None:
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values = {trial.values[0] for trial in done if trial.values}
    if len(done) < LEAST or len(values) < 2 or not set.intersection(*(set(trial.params) for trial in done)):
        return None
    evaluator = FanovaImportanceEvaluator(seed=0)
    shares = get_param_importances(study, evaluator=evaluator, target=lambda trial: float(trial.values[0]))
    return (
        Importance(trials=len(done), shares={name: float(share) for name, share in shares.items()}) if shares else None
    )
