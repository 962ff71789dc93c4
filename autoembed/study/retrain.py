"""A trial's architecture, trained anew over seeds."""

from __future__ import annotations

import statistics
from typing import Any

from autoembed.data.dataset import Dataset
from autoembed.errors import StudyError
from autoembed.metrics import evaluate
from autoembed.nn.model import RoutedModel
from autoembed.study.progress import Bar
from autoembed.study.run_dir import RunDir
from autoembed.training import pick_device, predict
from autoembed.trial import retrain

FILE = "retrain.json"
METRICS = ("valid_auc", "valid_logloss", "test_auc", "test_logloss")


def retrain_seeds(
    run: RunDir, trial_id: str, dataset: Dataset, seeds: int, device: str | None, bar: Bar
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Trains a trial's compact model from fresh weights with seeds 1, 2, ...; a row per seed, and mean and sd.

    The test split is read once per seed, for the weights of the best epoch by valid. Written to retrain.json.
    """
    if seeds < 1:
        raise StudyError(f"--seeds must be at least 1, but got {seeds}")
    trial = run.read_trial(trial_id)
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
        "trial": trial_id,
        "mean": {name: statistics.mean(values) for name, values in columns.items()},
        "sd": {name: statistics.stdev(values) if seeds > 1 else 0.0 for name, values in columns.items()},
    }
    run.write_json(FILE, {**summary, "seeds": rows})
    return rows, summary
