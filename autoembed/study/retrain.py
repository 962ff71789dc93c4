"""The architecture of a trial, or of each arm's best one, trained anew over seeds."""

from __future__ import annotations

import statistics
from typing import Any

from autoembed.data.dataset import Dataset
from autoembed.errors import StudyError
from autoembed.metrics import evaluate
from autoembed.nn.model import RoutedModel
from autoembed.space import SearchSpace
from autoembed.study.leaderboard import best, eligible
from autoembed.study.progress import Bar
from autoembed.study.run_dir import RunDir, Trial
from autoembed.training import pick_device, predict
from autoembed.trial import retrain

FILE = "retrain.json"
ARMS = "arms.json"
METRICS = ("valid_auc", "valid_logloss", "test_auc", "test_logloss")


def retrain_seeds(
    run: RunDir, trial_id: str, dataset: Dataset, seeds: int, device: str | None, bar: Bar
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Trains a trial's compact model from fresh weights with seeds 1, 2, ...; a row per seed, and mean and sd.

    The test split is read once per seed, for the weights of the best epoch by valid. Written to retrain.json.
    """
    rows, summary = _over_seeds(run, run.read_trial(trial_id), dataset, seeds, device, bar)
    run.write_json(FILE, {**summary, "seeds": rows})
    return rows, summary


def retrain_arms(
    run: RunDir, space: SearchSpace, dataset: Dataset, seeds: int, device: str | None, bar: Bar
) -> dict[str, Any]:
    """The same for the best trial of each arm, with what sets the arms apart.

    `arms` holds mean, sd and seeds of each. `paired` holds, for each arm but the best by mean valid, the mean and sd
    over seeds of the best one's test metric minus its own, and p of a paired t-test: a seed shuffles the same rows for
    all. Written to arms.json.
    """
    if seeds < 2:
        raise StudyError(f"--trial all compares arms over seeds, so --seeds must be at least 2, but got {seeds}")
    done = eligible(run.trials(), space)
    arms: dict[str, Any] = {}
    for arm in space.arms():
        own = [trial for trial in done if trial.arm == arm]
        if own:
            rows, summary = _over_seeds(run, best(own, space), dataset, seeds, device, bar)
            arms[arm] = {**summary, "seeds": rows}
    if not arms:
        raise StudyError("no trial is done yet")
    sign = 1 if space.objective.mode == "max" else -1
    leader = max(arms, key=lambda arm: sign * arms[arm]["mean"][space.objective.metric])
    metric = space.objective.metric.replace("valid", "test")
    paired = {arm: _paired(arms[leader], found, metric) for arm, found in arms.items() if arm != leader}
    content = {"leader": leader, "metric": metric, "arms": arms, "paired": paired}
    run.write_json(ARMS, content)
    return content


def _paired(leader: dict[str, Any], other: dict[str, Any], metric: str) -> dict[str, float]:
    from scipy.stats import ttest_rel

    first, second = ([row[metric] for row in arm["seeds"]] for arm in (leader, other))
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    # One and the same architecture leaves no gap to test.
    p = float(ttest_rel(first, second).pvalue) if any(gaps) else 1.0
    return {"mean": statistics.mean(gaps), "sd": statistics.stdev(gaps), "p": p}


def _over_seeds(
    run: RunDir, trial: Trial, dataset: Dataset, seeds: int, device: str | None, bar: Bar
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    if seeds < 1:
        raise StudyError(f"--seeds must be at least 1, but got {seeds}")
    result = trial.result
    where = pick_device(device or result.config.device)
    found = run.load_model(trial, dataset.schema)
    router = found.router if isinstance(found, RoutedModel) else None
    rows: list[dict[str, Any]] = []
    for seed in range(1, seeds + 1):
        bar.step("retrain", seed - 1, seeds)
        model, fitted = retrain(
            result.architecture, dataset, result.config.train, where, seed, lambda values: None, router=router
        )
        test = evaluate(dataset.labels("test"), predict(model, dataset, "test", where))
        values = (fitted.valid.auc, fitted.valid.logloss, test.auc, test.logloss)
        rows.append(
            {"seed": seed, **dict(zip(METRICS, values, strict=True)), "best_epoch": fitted.epoch}
            | {"seconds": round(fitted.seconds, 2)}
        )
        bar.step("retrain", seed, seeds)
    columns = {name: [row[name] for row in rows] for name in METRICS}
    summary = {
        "trial": trial.id,
        "mean": {name: statistics.mean(values) for name, values in columns.items()},
        "sd": {name: statistics.stdev(values) if seeds > 1 else 0.0 for name, values in columns.items()},
    }
    return rows, summary
