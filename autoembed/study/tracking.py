"""A study's mirror in MLflow, written by the driver only: a run per study, with a nested run per trial.

The run folder is the truth. What MLflow lacks, because it was away or the driver was killed, is made good by the next
`catch_up`: at the start and at the end of a study, also of one that is resumed.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import polars as pl
from mlflow import MlflowClient
from mlflow.entities import Dataset as LoggedDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from autoembed.errors import StudyError
from autoembed.ranking.ranking import Ranking
from autoembed.space import SearchSpace
from autoembed.study.leaderboard import Leaderboard
from autoembed.study.page import choice_matrix
from autoembed.study.run_dir import Ended, RunDir, arm_of, store
from autoembed.trial import TrialConfig

for _name in ("mlflow", "alembic"):
    logging.getLogger(_name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="mlflow")

EPOCHS = ("search_epoch", "warm_epoch", "retrain_epoch")


class Tracker:
    """Writes a study to MLflow.

    Opening one raises StudyError if the store cannot be used. After that a failure is told once through `warn`, and the
    study goes on without MLflow.
    """

    def __init__(self, run: RunDir, space: SearchSpace, warn: Callable[[str], None]) -> None:
        self.run, self.warn = run, warn
        self.uri = store(run.path.parent)
        self.client = MlflowClient(tracking_uri=self.uri)
        self._off = False
        known = run.read_json("mlflow.json") or {}
        try:
            if known.get("tracking_uri") != self.uri or not self._knows(known["parent"]):
                known = {"tracking_uri": self.uri, "children": {}, "closed": []}
            self.ids: dict[str, Any] = known
            if "parent" not in known:
                known["experiment"] = self._experiment()
                tags = {"autoembed.study": run.name, "arms": ", ".join(space.arms())}
                known["parent"] = self.client.create_run(known["experiment"], run_name=run.name, tags=tags).info.run_id
                self._save()
            self.client.update_run(self.parent, status="RUNNING")
        except Exception as error:
            raise StudyError(f"cannot use the MLflow store {self.uri}: {_line(error)}") from None

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.run.name)
        if found is not None:
            if found.lifecycle_stage != "active":
                raise StudyError(f"its experiment {self.run.name!r} is deleted: restore it, or choose another --name")
            return str(found.experiment_id)
        local = self.uri.startswith("sqlite:") and "MLFLOW_TRACKING_URI" not in os.environ
        place = (self.run.path.parent / "mlartifacts" / self.run.name).as_uri() if local else None
        return str(self.client.create_experiment(self.run.name, artifact_location=place))

    def _knows(self, run_id: str) -> bool:
        """Whether the store still has a run; it may have been deleted since."""
        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    @property
    def parent(self) -> str:
        return str(self.ids["parent"])

    def _save(self) -> None:
        self.run.write_json("mlflow.json", self.ids)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Lets no failure of MLflow reach the study; after the first one `off` says so."""
        try:
            yield
        except Exception as error:
            self._off = True
            self.warn(
                f"MLflow at {self.uri} failed, so the study goes on without it "
                f"(--resume makes good what it missed): {_line(error)}"
            )

    @property
    def off(self) -> bool:
        return self._off

    def started(self, trial: str, arm: str) -> None:
        if self.off:
            return
        with self._guarded():
            self._child(trial)

    def _child(self, trial: str) -> str:
        """The trial's run, created if there is none."""
        children: dict[str, str] = self.ids["children"]
        if trial not in children:
            tags = {"mlflow.parentRunId": self.parent, "arm": arm_of(trial), "trial": trial}
            created = self.client.create_run(self.ids["experiment"], run_name=trial, tags=tags)
            children[trial] = created.info.run_id
            self._save()
        return children[trial]

    def reported(self, trial: str, metrics: Mapping[str, float]) -> None:
        if self.off:
            return
        step = int(next((metrics[name] for name in EPOCHS if name in metrics), 0))
        values = {name: value for name, value in metrics.items() if name not in EPOCHS}
        with self._guarded():
            self._log(self._child(trial), values, step)

    def _log(self, run_id: str, values: Mapping[str, float | None], step: int = 0) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value in values.items() if value is not None]
        self.client.log_batch(run_id, metrics=metrics)

    def ended(self, trial: str) -> None:
        if self.off:
            return
        with self._guarded():
            self._close(next(ended for ended in self.run.ended() if ended.id == trial))

    def _close(self, ended: Ended) -> None:
        """Writes the end of a trial's run: what it was, what came of it, and its status."""
        run_id = self._child(ended.id)
        folder = self.run.trial(ended.id)
        if (folder / "config.json").is_file():
            config = TrialConfig.model_validate_json((folder / "config.json").read_text())
            params = [Param(name, str(value)[:6000]) for name, value in flat(config.model_dump(mode="json")).items()]
            self.client.log_batch(run_id, params=params)
        if ended.state == "done":
            result = self.run.read_trial(ended.id).result
            self._log(
                run_id,
                {
                    "final_valid_auc": result.valid.auc,
                    "final_valid_logloss": result.valid.logloss,
                    "best_epoch": result.best_epoch,
                    "embedding_parameters": result.cost.embedding_parameters,
                    "parameters": result.cost.parameters,
                    "bytes": result.cost.bytes,
                    "search_seconds": result.search_seconds,
                    "retrain_seconds": result.retrain_seconds,
                },
            )
            self.client.log_artifact(run_id, str(folder / "architecture.json"))
        tags = [RunTag("state", ended.state)]
        if ended.reason:
            tags.append(RunTag("reason", ended.reason[:5000]))
        self.client.log_batch(run_id, tags=tags)
        status = {"done": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}[ended.state]
        self.client.set_terminated(run_id, status=status)
        self.ids["closed"].append(ended.id)
        self._save()

    def catch_up(self) -> None:
        """Closes the runs of all ended trials, and as KILLED those of trials that are no longer running."""
        if self.off:
            return
        with self._guarded():
            ended = self.run.ended()
            closed = set(self.ids["closed"])
            for trial in ended:
                if trial.id not in closed:
                    self._close(trial)
            names = {trial.id for trial in ended}
            for trial_id, run_id in self.ids["children"].items():
                if trial_id not in names and trial_id not in closed:
                    self.client.set_terminated(run_id, status="KILLED")
                    self.ids["closed"].append(trial_id)
            self._save()

    def data(self) -> None:
        """Logs the space, the ranking and the dataset's fingerprint on the study's run."""
        if self.off or self.ids.get("data"):
            return
        with self._guarded():
            facts = self.run.read_json("dataset.json")
            dataset = LoggedDataset(
                name=facts["name"], digest=facts["fingerprint"], source_type="local", source=facts["source"]
            )
            self.client.log_inputs(self.parent, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
            self.client.set_tag(self.parent, "dataset.fingerprint", facts["fingerprint"])
            for name in ("space.yaml", "ranking.parquet", "ranking.html"):
                self.client.log_artifact(self.parent, str(self.run.path / name))
            ranking = Ranking.read(self.run.path / "ranking.parquet")
            self.client.log_text(self.parent, ranking.table.write_csv(), "ranking.csv")
            self.ids["data"] = True
            self._save()

    def result(self, board: Leaderboard, example: pl.DataFrame) -> None:
        """Logs the leaderboard, test metrics of each arm's best trial, and the best bundle as a model."""
        if self.off:
            return
        with self._guarded():
            from autoembed.study.mlflow_model import log_bundle

            rows = [row.model_dump(mode="json", exclude={"valid", "test"}) for row in board.rows]
            for plain, row in zip(rows, board.rows, strict=True):
                for split, metrics in (("valid", row.valid), ("test", row.test)):
                    for name in ("auc", "logloss"):
                        plain[f"{split}_{name}"] = getattr(metrics, name, None)
                if row.trial and row.test:
                    test = {"test_auc": row.test.auc, "test_logloss": row.test.logloss}
                    self._log(self._child(row.trial), test)
                    if row.trial == board.winner:
                        self._log(self.parent, {"best_" + name: plain[name] for name in BEST} | test)
            self.client.log_text(self.parent, pl.DataFrame(rows).write_csv(), "leaderboard.csv")
            if self.ids.get("model") != board.winner:
                self.client.set_tag(self.parent, "best.trial", board.winner)
                best = self.run.read_trial(board.winner).result.architecture
                if best.pairs:
                    self.client.log_figure(self.parent, choice_matrix(best, self.run.synergy()), "pairs.png")
                log_bundle(self.uri, self.parent, self.run.best, example)
                self.ids["model"] = board.winner
                self._save()

    def finish(self, status: str) -> None:
        """Leaves no run of the study RUNNING."""
        self.catch_up()
        if self.off:
            return
        with self._guarded():
            self.client.set_terminated(self.parent, status=status)
            self.ids["status"] = status
            self._save()


BEST = ("valid_auc", "valid_logloss", "embedding_parameters", "parameters", "bytes")


def flat(node: Any, place: str = "") -> dict[str, Any]:
    """Nested plain data as one level of dotted names; lists of plain values stay whole."""
    if isinstance(node, list) and any(isinstance(item, (dict, list)) for item in node):
        node = {str(number): item for number, item in enumerate(node)}
    if not isinstance(node, dict):
        return {place: node}
    found: dict[str, Any] = {}
    for key, child in node.items():
        found |= flat(child, f"{place}.{key}" if place else str(key))
    return found


def _line(error: BaseException) -> str:
    """The first line of an error, without the tail that urllib3 adds."""
    lines = str(error).splitlines()
    return lines[0].split(" (Caused by")[0][:200] if lines else type(error).__name__
