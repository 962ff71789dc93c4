"""What a study found: the best trial of each arm by valid, and what it reaches on test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from autoembed.architecture import Architecture
from autoembed.auxiliary import auxiliary_metrics, under_labels
from autoembed.data.dataset import Dataset
from autoembed.data.planted import Populations, Truth
from autoembed.data.spec import TaskName
from autoembed.errors import StudyError, first_line, option
from autoembed.metrics import Metrics
from autoembed.space import SearchSpace
from autoembed.study.run_dir import RunDir, Trial
from autoembed.task import Monitor, Task, TaskMetrics, columns, task_named, task_of, under
from autoembed.training import metrics_on, pick_device

FILE = "leaderboard.json"
METRICS = ("valid", "test", "auxiliary_valid", "auxiliary_test")  # of a row; each of them has columns of its own


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Row(_Frozen):
    """One arm: its best trial by valid, or none if all of its trials failed.

    `test_auc_error` is the standard error of the task's first metric on test, by the rows of test alone. The metrics of
    auxiliary labels stand by label, and are stored where there are such.
    """

    arm: str
    done: int
    pruned: int
    failed: int
    trial: str | None = None
    valid: TaskMetrics | None = None
    test: TaskMetrics | None = None
    auxiliary_valid: dict[str, TaskMetrics] = {}
    auxiliary_test: dict[str, TaskMetrics] = {}
    test_auc_error: float | None = None
    embedding_parameters: int | None = None
    embedding_bytes: int | None = None
    parameters: int | None = None
    bytes: int | None = None
    search_seconds: float | None = None
    retrain_seconds: float | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without auxiliary labels that are not there: so it was stored before there were such."""
        node: dict[str, Any] = handler(self)
        return {key: value for key, value in node.items() if value or not key.startswith("auxiliary_")}

    @property
    def further(self) -> dict[str, float]:
        """The metrics of auxiliary labels, under names such as test_auc.is_like."""
        return under_labels("valid", self.auxiliary_valid) | under_labels("test", self.auxiliary_test)

    @property
    def test_error(self) -> float | None:
        """The standard error of the task's first metric on test."""
        return self.test_auc_error


class Group(_Frozen):
    """What was planted in a group of columns, and what was found of it.

    `kept_share` is the share of the group's full embedding that the search kept, `parameter_share` the group's share
    of all that it kept.
    """

    name: str
    planted: int
    ranked: int
    kept_share: float
    parameter_share: float


class Leaderboard(_Frozen):
    """One row per arm; `winner` is the trial with the best objective on valid, `note` tells of a study cut short.

    `task` is what `data.task` says; earlier commits did not store it, and had a metric of one task alone.
    """

    metric: Monitor
    task: TaskName | None = None
    winner: str
    rows: tuple[Row, ...]
    groups: tuple[Group, ...] = ()
    best_test_auc: float | None = None
    best_test_rmse: float | None = None
    note: str | None = None

    @property
    def predicts(self) -> Task:
        """What is predicted."""
        return task_of(self.metric) if self.task is None else task_named(self.task)

    @property
    def further(self) -> list[str]:
        """The names of the metrics of auxiliary labels that any row has."""
        return list(dict.fromkeys(name for row in self.rows for name in row.further))

    @property
    def bound(self) -> float | None:
        """The best that any model can expect of the task's first metric on test, on planted data."""
        return self.best_test_auc if self.best_test_rmse is None else self.best_test_rmse

    @property
    def told_bound(self) -> str | None:
        """The bound in a sentence; None of data that are not planted."""
        if self.bound is None:
            return None
        first = self.predicts.metrics[0]
        side = "above" if first.rises else "below"
        return f"No model can expect a test {first.title} {side} {self.bound:.4f} on these planted data."

    @classmethod
    def read(cls, run: RunDir, *, rebuilt: bool = False) -> Leaderboard | None:
        """The leaderboard as it was written at the end of the study, or None; StudyError if it is corrupt.

        Where it is `rebuilt`, a corrupt one is as if it were not there.
        """
        content = run.read_json(FILE, rebuilt=rebuilt)
        try:
            return None if content is None else cls.model_validate(content)
        except ValidationError as error:
            if rebuilt:
                return None
            raise StudyError(
                f"{run.path / FILE} is corrupt ({first_line(error)}): delete it, then {option('resume', True)}"
            ) from None

    @property
    def table(self) -> pl.DataFrame:
        """A row for each arm: its best trial by valid, its metrics and cost."""
        rows = []
        there = {name for row in self.rows for name in under("valid", row.valid) | under("test", row.test)}
        for row in self.rows:
            known = under("valid", row.valid) | under("test", row.test)
            metrics = {name: known.get(name) for name in columns(self.predicts, "valid", "test", there=there)}
            rows.append(
                {"arm": row.arm, "trial": row.trial, **metrics, **row.further}
                | row.model_dump(exclude={"arm", "trial", *METRICS})
            )
        return pl.DataFrame(rows, infer_schema_length=None)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()

    @property
    def trials(self) -> tuple[int, int, int]:
        """Trials that are done, pruned and failed, all arms together."""
        done, pruned, failed = (sum(getattr(row, state) for row in self.rows) for state in ("done", "pruned", "failed"))
        return done, pruned, failed


def eligible(trials: Iterable[Trial], space: SearchSpace) -> list[Trial]:
    """The trials that hold the limit on latency, all if there is none."""
    limit = space.budget.latency_ms
    return [trial for trial in trials if limit is None or trial.result.latency_ms <= limit]


def best(trials: Iterable[Trial], space: SearchSpace) -> Trial:
    """The trial with the best metric on valid, the earliest of equals; StudyError if there is none.

    With a limit on latency, it is the best of those that hold it.
    """
    done = list(trials)
    trials = eligible(done, space)
    if done and not trials:
        least = min(trial.result.latency_ms for trial in done)
        raise StudyError(
            f"no trial holds budget.latency_ms={space.budget.latency_ms:g}, the fastest takes {least:.2f} ms for 1,000 "
            "rows: raise it"
        )
    ranked = sorted(trials, key=lambda trial: -space.objective.direction.figure(trial.result.valid))
    if not ranked:
        raise StudyError("no trial is done yet")
    return ranked[0]


def build(run: RunDir, space: SearchSpace, dataset: Dataset, note: str | None = None) -> Leaderboard:
    """Compares the arms, and reads the test split for each arm's best trial, once: what was read before is kept."""
    before = Leaderboard.read(run, rebuilt=True)
    known = {row.trial: (row.test, row.auxiliary_test) for row in before.rows if row.test} if before else {}
    counts = Counter((ended.arm, ended.state) for ended in run.ended())
    trials = run.trials()
    rows, champions = [], []
    labels, weights, in_groups = dataset.labels("test"), dataset.weights("test"), dataset.groups("test")
    for arm in space.arms():
        row = Row(arm=arm, done=counts[arm, "done"], pruned=counts[arm, "pruned"], failed=counts[arm, "failed"])
        own = [trial for trial in eligible(trials, space) if trial.arm == arm]
        if own:
            champion = best(own, space)
            champions.append(champion)
            cost = champion.result.cost
            test, further = known.get(champion.id) or on_test(run, champion, dataset, str(space.device))
            found = {
                "trial": champion.id,
                "valid": champion.result.valid,
                "test": test,
                "auxiliary_valid": champion.result.auxiliary,
                "auxiliary_test": further,
                "test_auc_error": dataset.task.error(test[dataset.task.metrics[0].name], labels, weights, in_groups),
                "embedding_parameters": cost.embedding_parameters,
                "embedding_bytes": cost.embedding_bytes,
                "parameters": cost.parameters,
                "bytes": cost.bytes,
                "search_seconds": round(champion.result.search_seconds, 2),
                "retrain_seconds": round(champion.result.retrain_seconds, 2),
            }
            row = row.model_copy(update=found)
        rows.append(row)
    winner = best(champions or trials, space)
    truth = dataset.truth or Truth()
    searched = next((trial for trial in champions if trial.arm == space.arms()[0]), None)
    board = Leaderboard(
        metric=space.objective.metric,
        task=space.data.task,
        winner=winner.id,
        rows=tuple(rows),
        groups=groups(truth, dataset, searched.result.architecture) if truth and searched else (),
        best_test_auc=truth.get("best_auc", {}).get("test"),
        best_test_rmse=truth.get("best_rmse", {}).get("test"),
        note=note,
    )
    run.write_json(FILE, board.model_dump(mode="json"))
    return board


def on_test(run: RunDir, trial: Trial, dataset: Dataset, device: str) -> tuple[Metrics, dict[str, Metrics]]:
    """How a trial's saved weights do on the test split, and on its auxiliary labels."""
    where = pick_device(device)
    model = run.load_model(trial, dataset.schema).to(where)
    return metrics_on(model, dataset, "test", where), auxiliary_metrics(model, dataset, "test", where)


def groups(truth: Truth, dataset: Dataset, architecture: Architecture) -> tuple[Group, ...]:
    """Planted beside found, for the groups that were planted."""
    kept = {field.name: field.entries for field in architecture.fields}
    cardinality = dict(zip(dataset.schema.names, dataset.schema.cardinalities, strict=True))
    total = sum(kept.values())
    found = []
    for name, planted in planted_columns(truth).items():
        ranked = [column for column in planted if column in cardinality]
        full = architecture.dim * sum(cardinality[column] for column in ranked)
        own = sum(kept.get(column, 0) for column in ranked)
        found.append(
            Group(
                name=name,
                planted=len(planted),
                ranked=len(ranked),
                kept_share=own / full if full else 0.0,
                parameter_share=own / total if total else 0.0,
            )
        )
    return tuple(found)


def planted_columns(truth: Truth) -> dict[str, list[str]]:
    """The planted columns by group, pairs laid flat."""
    populations = truth.get("populations") or Populations()
    found = {
        "marginal": truth.get("marginal", []),
        "xor": _flat(truth.get("xor", [])),
        "low_rank": _flat(truth.get("low_rank", [])),
        "memorize": _flat(truth.get("memorize", [])),
        "tail": _flat(truth.get("tail", [])),
        "multi": truth.get("multi", []),
        "noise": truth.get("noise", []),
        "populations": [*populations.get("reveals", []), *populations.get("A", []), *populations.get("B", [])],
    }
    return {name: columns for name, columns in found.items() if columns}


def _flat(groups: Iterable[Iterable[str]]) -> list[str]:
    return [column for group in groups for column in group]
