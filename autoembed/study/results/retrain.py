"""The architecture of a trial, or of each arm's best one, trained again over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from typing import TypedDict

from autoembed.auxiliary import auxiliary_metrics, under_labels
from autoembed.data.dataset import Dataset
from autoembed.errors import StudyError, option
from autoembed.nn.model import RoutedModel
from autoembed.retraining import retrain
from autoembed.space import SearchSpace
from autoembed.study.results.leaderboard import Leaderboard, best, eligible
from autoembed.study.run_dir import RunDir, Trial
from autoembed.study.show.progress import Display
from autoembed.task import Task, columns, of_labels, under
from autoembed.training import metrics_on, pick_device
from autoembed.trial import teacher_of

FILE = "retrain.json"
ARMS = "arms.json"
PARTIAL = "arms.partial.json"


SeedRow = dict[str, float]  # seed, the metrics on valid and test, those of auxiliary labels, best_epoch, seconds


class ArmSeeds(TypedDict):
    """The trial that was retrained, mean and sd of each metric, and a row for each seed."""

    trial: str
    mean: dict[str, float]
    sd: dict[str, float]
    seeds: list[SeedRow]


class Gap(TypedDict):
    """How far the leader is ahead over seeds, and p of a paired t-test."""

    mean: float
    sd: float
    p: float


class ArmsContent(TypedDict):
    """The content of arms.json."""

    leader: str
    metric: str
    arms: dict[str, ArmSeeds]
    paired: dict[str, Gap]


def retrain_seeds(
    run: RunDir, trial_id: str, dataset: Dataset, seeds: int, device: str | None, bar: Display
) -> list[SeedRow]:
    """Trains a trial's compact model from fresh weights with seeds 1, 2, ...; a row per seed.

    The test split is read once per seed, for the weights of the best epoch by valid. Written to retrain.json, with mean
    and sd.
    """
    if seeds < 1:
        raise StudyError(f"{option('seeds')} must be at least 1, but got {seeds}")
    rows: list[SeedRow] = []
    bar.step("retrain", 0, seeds)
    for row in _over_seeds(run, run.read_trial(trial_id), dataset, range(1, seeds + 1), device):
        rows.append(row)
        bar.step("retrain", len(rows), seeds)
    run.write_json(FILE, _summary(trial_id, rows, dataset.task))
    return rows


def retrain_arms(
    run: RunDir, space: SearchSpace, dataset: Dataset, seeds: int, device: str | None, bar: Display
) -> ArmsContent:
    """The same for the best trial of each arm, with what sets the arms apart.

    `arms` holds mean, sd and seeds of each. `paired` holds, for each arm but the best by mean valid, the mean and sd
    over seeds of the best one's test metric minus its own, and p of a paired t-test: a seed shuffles the same rows for
    all. Written to arms.json; what an interrupted call has done stands in arms.partial.json and is not done again.
    """
    if seeds < 2:
        raise StudyError(
            f"{option('trial', 'all')} compares arms over seeds, so {option('seeds')} must be at least 2, but got "
            f"{seeds}"
        )
    done = eligible(run.trials(), space)
    owns = {arm: [trial for trial in done if trial.arm == arm] for arm in space.arms()}
    chosen = {arm: best(own, space) for arm, own in owns.items() if own}
    if not chosen:
        raise StudyError("no trial is done yet")
    known: dict[str, list[SeedRow]] = run.read_json(PARTIAL) or {}
    rows = {arm: known.get(trial.id, [])[:seeds] for arm, trial in chosen.items()}
    total = seeds * len(chosen)
    for arm, trial in chosen.items():
        bar.step("retrain", sum(map(len, rows.values())), total)
        for row in _over_seeds(run, trial, dataset, range(len(rows[arm]) + 1, seeds + 1), device):
            rows[arm].append(row)
            run.write_json(PARTIAL, {chosen[one].id: own for one, own in rows.items()})
            ready = sum(map(len, rows.values()))
            bar.step("retrain", ready, total)
            bar.line(f"{trial.id} is retrained with seed {row['seed']}, {ready} of {total}")
    arms = {arm: _summary(trial.id, rows[arm], dataset.task) for arm, trial in chosen.items()}
    leader = max(arms, key=lambda arm: space.objective.direction.sign * arms[arm]["mean"][space.objective.metric])
    metric = space.objective.metric.replace("valid", "test")
    paired = {arm: _paired(arms[leader], found, metric) for arm, found in arms.items() if arm != leader}
    content: ArmsContent = {"leader": leader, "metric": metric, "arms": arms, "paired": paired}
    run.write_json(ARMS, content)
    (run.path / PARTIAL).unlink(missing_ok=True)
    return content


def due(run: RunDir, space: SearchSpace, board: Leaderboard) -> bool:
    """Whether the search space asks for each arm's best trial over seeds, and the folder does not hold it."""
    if space.final is None:
        return False
    arms = (run.read_json(ARMS) or {"arms": {}})["arms"]
    held = {arm: one["trial"] for arm, one in arms.items() if len(one["seeds"]) >= space.final.seeds}
    return held != {row.arm: row.trial for row in board.rows if row.trial}


def _paired(leader: ArmSeeds, other: ArmSeeds, metric: str) -> Gap:
    from scipy.stats import ttest_rel

    first, second = ([row[metric] for row in arm["seeds"]] for arm in (leader, other))
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    # One and the same architecture leaves no gap to test.
    p = float(ttest_rel(first, second).pvalue) if any(gaps) else 1.0
    return {"mean": statistics.mean(gaps), "sd": statistics.stdev(gaps), "p": p}


def _over_seeds(
    run: RunDir, trial: Trial, dataset: Dataset, seeds: Iterable[int], device: str | None
) -> Iterator[SeedRow]:
    """A row per seed, as it is ready."""
    result = trial.result
    where = pick_device(device or result.config.device)
    found = run.load_model(trial, dataset.schema)
    router = found.router if isinstance(found, RoutedModel) else None
    seeds = list(seeds)
    teacher = teacher_of(result.config, dataset, where) if seeds else None
    for seed in seeds:
        model, fitted = retrain(
            result.architecture,
            dataset,
            result.config.train,
            where,
            seed,
            lambda values: None,
            router=router,
            monitor=result.config.monitor,
            teacher=teacher,
            like=found,
        )
        test = metrics_on(model, dataset, "test", where)
        yield {
            "seed": seed,
            **under("valid", fitted.valid),
            **under("test", test),
            **under_labels("valid", auxiliary_metrics(model, dataset, "valid", where)),
            **under_labels("test", auxiliary_metrics(model, dataset, "test", where)),
            "best_epoch": fitted.epoch,
            "seconds": round(fitted.seconds, 2),
        }


def _summary(trial_id: str, rows: list[SeedRow], task: Task) -> ArmSeeds:
    names = [*columns(task, "valid", "test", there=rows[0]), *of_labels(rows[0], "valid", "test")]
    found = {name: [row[name] for row in rows] for name in names}
    return {
        "trial": trial_id,
        "mean": {name: statistics.mean(values) for name, values in found.items()},
        "sd": {name: statistics.stdev(values) if len(rows) > 1 else 0.0 for name, values in found.items()},
        "seeds": rows,
    }
