"""The run folder of a study: the truth about it. MLflow only mirrors what stands here.

runs/<study>/ study.json, space.yaml, data.parquet (if the data were a frame), dataset.json, ranking.parquet,
  ranking.html, report.html, mlflow.json, optuna.db, leaderboard.json, retrain.json, arms.json, arms.partial.json,
  pareto.json, pareto.png, minutes.json (what is spent of a budget of time)
  trials/<id>/ config.json, curves.jsonl, result.json, architecture.json, weights.safetensors, and
    DONE | PRUNED | error.txt
  best/ (a bundle), ray/ (Ray's own state), warm/ (warm starts that trials share, while they run)
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl
from filelock import FileLock, Timeout
from pydantic import ValidationError
from safetensors.torch import save_file

from autoembed.architecture import Architecture
from autoembed.bundle import load_model, sha256, weights_of
from autoembed.data.schema import FeatureSchema
from autoembed.errors import BundleError, StudyError, first_line, option, unknown
from autoembed.nn.model import Model
from autoembed.ranking.ranking import Ranking
from autoembed.trial import TrialConfig, TrialResult
from autoembed.writing import as_open_as

State = Literal["done", "pruned", "failed"]
MARKS: dict[State, str] = {"done": "DONE", "pruned": "PRUNED", "failed": "error.txt"}
HASHED = ("result.json", "weights.safetensors")
_HOLD = (".lock", ".holder.json")
# What a study writes, beside its tables of the ranking and of fields.
_OWN = {
    *("study.json", "space.yaml", "dataset.json", "mlflow.json", "optuna.db", "leaderboard.json", "retrain.json"),
    *(
        "data.parquet",
        "arms.json",
        "arms.partial.json",
        "pareto.json",
        "pareto.png",
        "report.html",
        "minutes.json",
        "trials",
        "best",
        "ray",
        "warm",
        *_HOLD,
    ),
}
_TABLES = ("ranking.", "field_scores.")
CURVES = "curves.jsonl"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial that ended well: its id, its folder and its result."""

    id: str
    path: Path
    result: TrialResult

    @property
    def arm(self) -> str:
        return self.result.config.arm

    @property
    def config(self) -> TrialConfig:
        return self.result.config

    @property
    def architecture(self) -> Architecture:
        return self.result.architecture

    @property
    def curves(self) -> pl.DataFrame:
        """What the trial reported epoch by epoch: `time` in milliseconds, the epoch of a phase, its metrics."""
        return pl.DataFrame(_points(self.path), infer_schema_length=None)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A trial that has ended, well or not; `reason` is of a failed or pruned one."""

    id: str
    arm: str
    state: State
    reason: str = ""


class RunDir:
    """One study's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @classmethod
    def existing(cls, path: Path) -> RunDir:
        """The folder of a study; StudyError if there is none at `path`."""
        run = cls(path)
        if not run.space.is_file():
            others = sorted(p.parent.name for p in run.path.parent.glob("*/space.yaml"))
            known = f" (there are {', '.join(others)} in {path.parent})" if others else ""
            raise StudyError(f"{path} is not a run folder: it has no space.yaml{known}")
        return run

    @property
    def name(self) -> str:
        return self.path.name

    def synergy(self) -> pl.DataFrame | None:
        """The study's ranked pairs, or None if it ranked none."""
        path = self.path / "ranking.parquet"
        return Ranking.read(path).pairs if path.is_file() else None

    @property
    def identity(self) -> str:
        """What stays the same when the folder is moved or renamed; made when it is first asked for."""
        facts = self.read_json("study.json")
        if facts is None:
            facts = {"id": uuid.uuid4().hex}
            self.write_json("study.json", facts)
        return str(facts["id"])

    def begun(self) -> bool:
        """Whether a trial has ended or run here; StudyError if the folder is another thing than a study's."""
        if self.path.is_dir() and any(self.path.iterdir()) and not self.is_study():
            raise StudyError(f"{self.path} is not a study's folder: choose another name or folder")
        return any((self.path / "trials").glob("*"))

    def is_study(self) -> bool:
        """Whether the folder is a study's, or has been left by one that could not begin."""
        names = {path.name for path in self.path.iterdir()}
        return {"study.json", "space.yaml"} <= names or all(map(_is_own, names))

    def clear(self) -> None:
        """Removes what a study has written, but what holds the folder; StudyError if the folder is another thing."""
        if not self.is_study():
            raise StudyError(f"{self.path} is not a study's folder: choose another name or folder")
        for path in self.path.iterdir():
            if path.name in _HOLD or not _is_own(path.name):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    @property
    def space(self) -> Path:
        return self.path / "space.yaml"

    @property
    def frame(self) -> Path:
        """The data, where they were given as a frame."""
        return self.path / "data.parquet"

    @property
    def warm(self) -> Path:
        return self.path / "warm"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def optuna(self) -> str:
        return f"sqlite:///{self.path / 'optuna.db'}"

    def trial(self, trial_id: str) -> Path:
        return self.path / "trials" / trial_id

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process; StudyError if another one does. A dead process holds nothing."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            holder = self.read_json(".holder.json") or {}
            who = "process {pid} on {host}".format_map({"pid": "?", "host": "?"} | holder)
            raise StudyError(f"{who} is running the study in {self.path}: wait for it or end it") from None
        try:
            self.write_json(".holder.json", {"pid": os.getpid(), "host": socket.gethostname()})
            yield
        finally:
            (self.path / ".holder.json").unlink(missing_ok=True)
            lock.release()

    def write_json(self, name: str, content: object) -> None:
        write_text(self.path / name, json.dumps(content, indent=1) + "\n")

    def read_json(self, name: str, *, rebuilt: bool = False) -> Any:  # what JSON holds, the reader knows
        """The content of a JSON file of the folder, or None if it is not there; StudyError if it is corrupt.

        One that is `rebuilt` from others is as if it were not there.
        """
        path = self.path / name
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            if rebuilt and not isinstance(error, OSError):
                return None
            raise StudyError(f"cannot read {path}: {first_line(error)}") from None

    def begin_trial(self, trial_id: str, config: TrialConfig) -> None:
        folder = self.trial(trial_id)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.json", config.model_dump_json(indent=1) + "\n")
        # A trial whose process was lost is run again from its beginning.
        (folder / CURVES).unlink(missing_ok=True)

    def has_begun(self, trial_id: str) -> bool:
        """Whether a process has ever been at work on a trial, or it has ended."""
        return (self.trial(trial_id) / "config.json").is_file() or self.state(trial_id) is not None

    def add_point(self, trial_id: str, values: Mapping[str, float]) -> None:
        """Appends what a trial reported of an epoch to its curves, with the time in milliseconds."""
        point = {"time": int(time.time() * 1000), **values}
        with (self.trial(trial_id) / CURVES).open("a") as file:
            file.write(json.dumps(point) + "\n")

    def curves(self, trial_id: str) -> list[dict[str, float]]:
        """What a trial reported, epoch by epoch; a line that is still being written is left out."""
        return _points(self.trial(trial_id))

    def finish_trial(self, trial_id: str, result: TrialResult, model: Model) -> None:
        """Writes a trial so that a kill at any moment leaves it either without DONE or whole."""
        folder = self.trial(trial_id)
        write_text(folder / "result.json", result.model_dump_json(indent=1) + "\n")
        result.architecture.write(folder / "architecture.json")
        save_file(weights_of(model), folder / "weights.safetensors")
        as_open_as(folder / "weights.safetensors", folder / "result.json")
        for name in ("architecture.json", "weights.safetensors"):
            _sync(folder / name)
        write_text(folder / "DONE", json.dumps({name: sha256(folder / name) for name in HASHED}) + "\n")

    def drop_trial(self, trial_id: str) -> None:
        """Removes a trial that has not ended, which makes room on a disk that is full."""
        shutil.rmtree(self.trial(trial_id), ignore_errors=True)

    def mark(self, trial_id: str, state: Literal["pruned", "failed"], text: str) -> None:
        """Records that a trial ended without a result: the reason in the first line, then what else is known."""
        folder = self.trial(trial_id)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / MARKS[state], text.rstrip() + "\n")

    def state(self, trial_id: str) -> State | None:
        """How a trial ended, or None if it did not."""
        for state, mark in MARKS.items():
            if (self.trial(trial_id) / mark).is_file():
                return state
        return None

    def ended(self) -> list[Ended]:
        """Every trial that has ended, in the order of arm and number."""
        found = []
        for folder in self._folders():
            state = self.state(folder.name)
            if state is None:
                continue
            text = "" if state == "done" else (folder / MARKS[state]).read_text()
            reason = "" if state == "done" else next(iter(text.splitlines()), "its reason was not written")
            found.append(Ended(id=folder.name, arm=arm_of(folder.name), state=state, reason=reason))
        return found

    def trials(self) -> list[Trial]:
        """The trials that ended well; BundleError names one that cannot be read and says how to go on."""
        return [self.read_trial(ended.id) for ended in self.ended() if ended.state == "done"]

    def read_trial(self, trial_id: str) -> Trial:
        """One trial that ended well; StudyError if there is none of that id, BundleError if its files are corrupt."""
        folder = self.trial(trial_id)
        if self.state(trial_id) != "done":
            done = [ended.id for ended in self.ended() if ended.state == "done"]
            raise StudyError(unknown("trial", trial_id, done) if done else f"no trial of {self.path} is done yet")
        advice = f"delete {folder} and go on with {option('resume', True)}"
        try:
            sums = json.loads((folder / "DONE").read_text())
            for name in HASHED:
                if sums[name] != sha256(folder / name):
                    raise BundleError(f"{folder / name} has changed since the trial ended: {advice}")
            result = TrialResult.model_validate_json((folder / "result.json").read_text())
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise BundleError(f"trial {trial_id} cannot be read ({first_line(error)}): {advice}") from None
        return Trial(id=trial_id, path=folder, result=result)

    def load_model(self, trial: Trial, schema: FeatureSchema) -> Model:
        """The retrained compact model of a trial, on the CPU."""
        return load_model(schema, trial.result.architecture, self.trial(trial.id) / "weights.safetensors")

    def sweep(self) -> None:
        """Removes the folders of trials that were running when the study was killed."""
        for folder in self._folders():
            if self.state(folder.name) is None:
                shutil.rmtree(folder)

    def _folders(self) -> list[Path]:
        folders = [path for path in (self.path / "trials").glob("*") if path.is_dir()]
        for path in folders:
            if not path.name.rpartition("-")[2].isdecimal():
                raise StudyError(f"{path} is not a trial's folder (ARM-NUMBER): move it away")
        return sorted(folders, key=lambda path: (arm_of(path.name), int(path.name.rpartition("-")[2])))


def _points(folder: Path) -> list[dict[str, float]]:
    try:
        lines = (folder / CURVES).read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


def _is_own(name: str) -> bool:
    return name in _OWN or name.startswith(_TABLES)


def trial_id(arm: str, number: int) -> str:
    """The name of an arm's trial, counted from 1."""
    return f"{arm}-{number}"


def arm_of(trial_id: str) -> str:
    return trial_id.rpartition("-")[0]


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def require_path(runs: Path) -> None:
    """StudyError for a URI: trials write to the run folder as to any other."""
    if re.match(r"\w+:/", str(runs)):
        raise StudyError(
            f"{option('runs')} must be a path, which a cluster's nodes share, but got the URI {runs}: mount it"
        )


def no_space(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error: Python's own, or one that only says so (safetensors, SQLite, Tune)."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in ("No space left on device", "disk is full", "Disk quota exceeded")):
            return True
        error = error.__cause__ or error.__context__
    return False


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
