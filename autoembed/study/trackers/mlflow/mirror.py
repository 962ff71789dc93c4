"""A run folder written to MLflow: a run per study, with a nested run per trial.

Every method may be called again and again, and adds only what MLflow lacks: runs are found by tags that hold the run
folder's identity and the trial's id, points of curves by the time that stands in the folder.
"""

from __future__ import annotations

import json
import logging
import re
import time
import warnings
from collections.abc import Mapping

import polars as pl
from mlflow import MlflowClient
from mlflow.entities import Dataset as LoggedDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag

from autoembed.auxiliary import under_labels
from autoembed.bundle import load_bundle
from autoembed.errors import StudyError
from autoembed.metrics import Metrics
from autoembed.ranking.ranking import Ranking
from autoembed.space import SearchSpace, load_mapping
from autoembed.study.results.leaderboard import METRICS, Leaderboard
from autoembed.study.results.retrain import ARMS
from autoembed.study.run_dir import Ended, RunDir, arm_of
from autoembed.study.show.page import block_matrix, choice_matrix
from autoembed.study.trackers.mlflow.store import ARTIFACTS, make_store, mend_moved, own_store, store
from autoembed.study.trackers.mlflow.view import SAVED_VIEW, curve, description, saved_view
from autoembed.task import columns, under
from autoembed.trial import TrialResult

for _name in ("mlflow", "alembic", "urllib3"):
    logging.getLogger(_name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="mlflow")

CHAMPION = "champion"
REFRESH = "autoembed.refresh"  # of runs and versions: which refresh of a bundle they are
EPOCH = "_epoch"
BATCH = 1000  # what MLflow takes at once
COSTS = ("embedding_parameters", "embedding_bytes", "parameters", "bytes")
# Tags by which a study's runs are found again.
FOLDER, TRIAL = "autoembed.folder", "trial"
# Set when everything of a trial, or the data of a study, is there, to the version of the names that it has.
WHOLE, VERSION = "autoembed.mirrored", "2"
# The time of a trial's first point, by which a run is told from that of a process that was lost.
BEGUN = "autoembed.begun"


class Mirror:
    """The runs of one study in an MLflow store. Raises what the store raises."""

    def __init__(self, run: RunDir, space: SearchSpace) -> None:
        self.run, self.uri = run, store(run.path.parent)
        if self.uri == own_store(run.path.parent):
            make_store(run.path.parent / "mlflow.db")
            mend_moved(run.path.parent)
        self.client = MlflowClient(tracking_uri=self.uri)
        self.experiment = self._experiment()
        facts = run.read_json("dataset.json") or {}
        study = run.read_json("study.json") or {}
        self._common = {
            FOLDER: run.identity,
            "dataset.fingerprint": facts.get("fingerprint"),
            "mlflow.source.git.commit": study.get("commit"),
            "mlflow.source.name": str(run.space),
        }
        self._runs = self._find()
        self._described: set[str] = set()
        self._logged: dict[str, int] = {}
        self._phase: dict[str, str] = {}
        tags = {"autoembed.study": run.name, "arms": ", ".join(space.arms())}
        self.parent = self._ensure("", run.name, tags).info.run_id
        self.client.set_experiment_tag(
            self.experiment, SAVED_VIEW, saved_view(space.objective.metric, grouped=space.data.group is not None)
        )
        self._note(None)

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(self.run.name)
        if found is not None:
            if found.lifecycle_stage != "active":
                raise StudyError(f"its experiment {self.run.name!r} is deleted: restore it, or choose another name")
            return str(found.experiment_id)
        local = self.uri == own_store(self.run.path.parent)
        place = (self.run.path.parent / ARTIFACTS / self.run.name).as_uri() if local else None
        return str(self.client.create_experiment(self.run.name, artifact_location=place))

    def _find(self) -> dict[str, Run]:
        """The runs of this folder that are there, by trial; the study's own under ""."""
        found: dict[str, Run] = {}
        page = None
        while page != "":
            part = self.client.search_runs(
                [self.experiment], f"tags.`{FOLDER}` = '{self.run.identity}'", max_results=1000, page_token=page
            )
            found |= {one.data.tags.get(TRIAL, ""): one for one in part}
            page = part.token or ""
        return found

    def _ensure(self, key: str, name: str, tags: Mapping[str, str]) -> Run:
        if key not in self._runs:
            given = {**self._common, **tags}
            self._runs[key] = self.client.create_run(
                self.experiment, run_name=name, tags={tag: value for tag, value in given.items() if value}
            )
        return self._runs[key]

    def _child(self, trial: str) -> Run:
        tags = {"mlflow.parentRunId": self.parent, "arm": arm_of(trial), TRIAL: trial}
        return self._ensure(trial, trial, tags)

    def _note(self, status: str | None) -> None:
        """Says in the run folder where its mirror is, and whether it is whole."""
        facts = {"tracking_uri": self.uri, "experiment": self.experiment, "parent": self.parent, "status": status}
        self.run.write_json("mlflow.json", facts)

    def live(self, trial: str) -> None:
        """Brings a trial's run up to what its folder holds: parameters, curves, the phase that it is in.

        A trial that was run again from its beginning gets another run in the place of the first, which is deleted:
        points cannot be taken out of a run.
        """
        whole = self.run.curves(trial)
        begun = str(whole[0]["time"]) if whole else None
        if self._child(trial).data.tags.get(BEGUN, begun) != begun:
            self.client.delete_run(self._runs.pop(trial).info.run_id)
            self._described.discard(trial)
            for known in (self._logged, self._phase):
                known.pop(trial, None)
        run = self._child(trial)
        run_id = run.info.run_id
        self._describe(trial, run_id)
        if begun and BEGUN not in run.data.tags:
            self.client.set_tag(run_id, BEGUN, begun)
            run.data.tags[BEGUN] = begun
        metrics: list[Metric] = []
        phase, step = "", 0
        for number, point in enumerate(whole):
            # What a search tells at its end has no epoch: it is of the last one.
            phase = next((name for name in point if name.endswith(EPOCH)), phase)
            step = int(point.get(phase, step))
            if number >= self._logged.get(trial, 0):
                metrics += [
                    Metric(curve(name), float(value), point["time"], step)
                    for name, value in point.items()
                    if name not in ("time", "stage", phase)
                ]
        for place in range(0, len(metrics), BATCH):
            self.client.log_batch(run_id, metrics=metrics[place : place + BATCH])
        self._logged[trial] = len(whole)
        if phase:
            now = phase.removesuffix(EPOCH)
            if self._phase.get(trial) != now:
                self.client.set_tag(run_id, "phase", now)
                self._phase[trial] = now

    def _describe(self, trial: str, run_id: str) -> None:
        """A trial's parameters, and the tags and inputs that they tell, once its configuration is there."""
        path = self.run.trial(trial) / "config.json"
        if trial in self._described or not path.is_file():
            return
        config = json.loads(path.read_text())
        params = [Param(name, str(value)[:6000]) for name, value in flat(config).items()]
        method = "+".join(stage["method"] for stage in config["stages"])
        tags = {"method": method, "backbone": config["backbone"]["name"]}
        self.client.log_batch(run_id, params=params, tags=[RunTag(*tag) for tag in tags.items()])
        self._inputs(run_id)
        self._described.add(trial)

    def _inputs(self, run_id: str) -> None:
        facts = self.run.read_json("dataset.json")
        kinds = {"categorical": "string", "numeric": "double"}
        columns = [
            {"name": field["name"], "type": kinds.get(field["kind"], "string"), "required": False}
            for field in facts["schema"]["fields"]
        ]
        dataset = LoggedDataset(
            name=facts["name"],
            digest=facts["fingerprint"],
            source_type="local",
            source=facts["source"],
            schema=json.dumps({"mlflow_colspec": columns}) if len(columns) <= 1000 else None,
            profile=json.dumps({f"{split}_rows": rows for split, rows in facts["rows"].items()}),
        )
        self.client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def close(self, ended: Ended) -> None:
        """Writes the end of a trial's run: what it was, what came of it, and its status."""
        if self._whole(self._child(ended.id)):
            return
        self.live(ended.id)
        run = self._child(ended.id)
        run_id = run.info.run_id
        folder = self.run.trial(ended.id)
        tags = {}
        if ended.state == "done":
            result = self.run.read_trial(ended.id).result
            self._facts(run, _facts_of(result))
            tags = {"best_epoch": str(result.best_epoch)}
            self.client.log_artifact(run_id, str(folder / "architecture.json"))
            self._pictures(run_id, ended.id)
        tags |= {"state": ended.state, "reason": ended.reason[:5000], WHOLE: VERSION}
        status = {"done": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}[ended.state]
        self.client.set_terminated(run_id, status=status)
        # The last that is written: after a kill in between, a run that is not whole is closed once more.
        self.client.log_batch(run_id, tags=[RunTag(name, text) for name, text in tags.items() if text])
        run.data.tags[WHOLE] = VERSION

    def _whole(self, run: Run) -> bool:
        return bool(run.data.tags.get(WHOLE) == VERSION)

    def _facts(self, run: Run, values: Mapping[str, float | None]) -> None:
        """Logs numbers that have no step, unless the run has them already."""
        known, now = run.data.metrics, int(time.time() * 1000)
        new = {name: float(value) for name, value in values.items() if value is not None and known.get(name) != value}
        if new:
            self.client.log_batch(run.info.run_id, metrics=[Metric(name, new[name], now, 0) for name in new])
            known.update(new)

    def _pictures(self, run_id: str, trial: str) -> None:
        found = self.run.read_trial(trial).result.architecture
        self.client.log_figure(run_id, block_matrix(found, "dims"), "dims.png")
        if found.few_bits:
            self.client.log_figure(run_id, block_matrix(found, "bits"), "bits.png")
        if found.pairs:
            self.client.log_figure(run_id, choice_matrix(found, self.run.synergy()), "pairs.png")

    def catch_up(self) -> None:
        """Closes the runs of all ended trials, and as KILLED those of trials that are no longer running."""
        ended = self.run.ended()
        for trial in ended:
            self.close(trial)
        names = {"", *(trial.id for trial in ended)}
        for trial_id, run in self._runs.items():
            if trial_id not in names and not run.data.tags.get(WHOLE):
                self.client.set_terminated(run.info.run_id, status="KILLED")
                self.client.set_tag(run.info.run_id, WHOLE, VERSION)
                run.data.tags[WHOLE] = VERSION

    def data(self) -> None:
        """Logs the space, the ranking and the dataset on the study's run."""
        run = self._runs[""]
        if self._whole(run):
            return
        self._inputs(self.parent)
        given = load_mapping(self.run.space.read_text())
        # What is there stays: some keys may differ when a study goes on.
        new = {name: value for name, value in flat(given).items() if name not in run.data.params}
        self.client.log_batch(self.parent, params=[Param(name, str(value)[:6000]) for name, value in new.items()])
        for name in ("space.yaml", *sorted(path.name for path in self.run.path.glob("ranking.*"))):
            self.client.log_artifact(self.parent, str(self.run.path / name))
        ranking = Ranking.read(self.run.path / "ranking.parquet")
        self.client.log_text(self.parent, ranking.table.write_csv(), "ranking.csv")
        self.client.set_tag(self.parent, WHOLE, VERSION)
        run.data.tags[WHOLE] = VERSION

    def result(self, board: Leaderboard) -> None:
        """Logs the leaderboard, test metrics of each arm's best trial, and the best bundle as the champion."""
        parent = self._runs[""]
        rows = [row.model_dump(mode="json", exclude=set(METRICS)) for row in board.rows]
        there = board.table.columns
        for plain, row in zip(rows, board.rows, strict=True):
            known = under("valid", row.valid) | under("test", row.test)
            plain |= {name: known.get(name) for name in columns(board.predicts, "valid", "test", there=there)}
            plain |= row.further
            if row.trial and row.test:
                test = under("test", row.test) | _of_labels("test", row.auxiliary_test)
                self._facts(self._child(row.trial), test)
                if row.trial == board.winner:
                    self._facts(parent, _facts_of(self.run.read_trial(row.trial).result) | test)
        table = pl.DataFrame(rows, infer_schema_length=None)
        self.client.log_text(self.parent, table.write_csv(), "leaderboard.csv")
        if parent.data.tags.get("best.trial") != board.winner:
            self._pictures(self.parent, board.winner)
        self._over_seeds()
        if (self.run.path / "pareto.png").is_file():
            for name in ("pareto.png", "pareto.json"):
                self.client.log_artifact(self.parent, str(self.run.path / name))
        if (self.run.path / "report.html").is_file():
            self.client.log_artifact(self.parent, str(self.run.path / "report.html"))
        commands = (
            f"autoembed show {self.run.path}",
            f"autoembed export {self.run.path} OUT",
            f"autoembed predict {self.run.best} TABLE --out scores.parquet",
        )
        ids = {name: run.info.run_id for name, run in self._runs.items()}
        self.client.set_tag(self.parent, "mlflow.note.content", description(board, self.experiment, ids, commands))
        self._champion(board.winner)
        self.client.set_tag(self.parent, "best.trial", board.winner)
        parent.data.tags["best.trial"] = board.winner

    def _over_seeds(self) -> None:
        """Logs mean and sd over seeds on the run of each arm's best trial, and the leading arm's on the study's."""
        found = self.run.read_json(ARMS)
        if found is None:
            return
        for arm, one in found["arms"].items():
            values = {
                f"seeds/{_allowed(name)}_{what}": one[what][name] for what in ("mean", "sd") for name in one[what]
            }
            self._facts(self._child(one["trial"]), values)
            if arm == found["leader"]:
                self._facts(self._runs[""], values)
        self.client.log_artifact(self.parent, str(self.run.path / ARMS))

    def _champion(self, winner: str) -> None:
        """Registers the best bundle under the study's name, unless it is, and points the alias at it.

        The alias of a bundle that was refreshed since stays where it is.
        """
        from autoembed.study.trackers.mlflow.model import log_bundle, register

        name = model_name(self.run)
        tags = {FOLDER: self.run.identity, TRIAL: winner}
        versions = self.client.search_model_versions(f"name = '{name}'", max_results=1000)
        version = next((one.version for one in versions if tags.items() <= one.tags.items()), None)
        if version is None:
            uri = log_bundle(self.uri, self.parent, self.run.best, load_bundle(self.run.best).example())
            version = register(self.client, name, uri, self.parent, tags)
        holder = dict(self.client.get_registered_model(name).aliases).get(CHAMPION)
        refreshed = {one.version for one in versions if REFRESH in one.tags}
        if holder is None or int(holder) not in map(int, refreshed):
            self.client.set_registered_model_alias(name, CHAMPION, version)

    def begin(self) -> None:
        """Shows the study as running, and settles what an earlier driver left: trials that had not ended run again."""
        self.client.update_run(self.parent, status="RUNNING")
        ended = {"", *(trial.id for trial in self.run.ended())}
        for trial in [name for name in self._runs if name not in ended]:
            self.client.delete_run(self._runs.pop(trial).info.run_id)
        self.catch_up()

    def end(self, status: str) -> None:
        """Leaves no run of the study RUNNING, and notes that the mirror is whole."""
        self.catch_up()
        self.client.set_terminated(self.parent, status=status)
        self._note(status)


def _facts_of(result: TrialResult) -> dict[str, float | None]:
    """What came of a trial, under the names that it has everywhere."""
    costs = {f"cost/{name}": getattr(result.cost, name) for name in COSTS}
    return {
        **under("valid", result.valid),
        **_of_labels("valid", result.auxiliary),
        **costs,
        "cost/latency_ms": result.latency_ms,
        "cost/search_seconds": result.search_seconds,
        "cost/retrain_seconds": result.retrain_seconds,
    }


def _of_labels(split: str, found: Mapping[str, Metrics]) -> dict[str, float]:
    """Metrics of auxiliary labels under names such as test_auc.is_like, as far as MLflow allows them."""
    return {_allowed(name): value for name, value in under_labels(split, found).items()}


def _allowed(name: str) -> str:
    """A metric's name with _ for what MLflow takes in none, and for the slash, by which it groups them."""
    return re.sub(r"[^\w.\- :]", "_", name)


def model_name(run: RunDir) -> str:
    """A study's name as the registry takes it."""
    return run.name.replace(":", "-").replace("'", "-")


def flat(node: object, place: str = "") -> dict[str, object]:
    """Nested plain data as one level of dotted names; lists of plain values stay whole."""
    if isinstance(node, list) and any(isinstance(item, (dict, list)) for item in node):
        node = {str(number): item for number, item in enumerate(node)}
    if not isinstance(node, dict):
        return {place: node}
    found: dict[str, object] = {}
    for key, child in node.items():
        found |= flat(child, f"{place}.{key}" if place else str(key))
    return found
