"""The file that keeps what was measured, so that an interrupted frontier goes on: a line for each arm and seed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from autoembed import __version__
from autoembed.data.dataset import Dataset, data_changed
from autoembed.data.vocabulary import ENCODING
from autoembed.errors import StudyError
from autoembed.frontier.points import FrontierPlan, FrontierPoint
from autoembed.space import SearchSpace

FILE = "frontier.jsonl"
# What may differ when a frontier goes on: it does not change what is measured.
_FREE: Mapping[str, set[str] | bool] = {
    "budget": {"trials", "latency_ms", "concurrent", "cpus_per_trial", "gpus_per_trial"},
    "device": True,
    "sampler": True,
    "scheduler": True,
    "final": True,
}


class PointStore:
    """`frontier.jsonl` in a folder: first what is measured, then the points of each arm and seed.

    Attributes:
        points: those that are done, by (arm, seed).
        seconds: what each took, by (arm, seed).
    """

    def __init__(self, folder: Path, space: SearchSpace, plan: FrontierPlan) -> None:
        self.path = folder / FILE
        self.points: dict[tuple[str, int], list[FrontierPoint]] = {}
        self.seconds: dict[tuple[str, int], float] = {}
        self._data: dict[int, tuple[str, int | None]] = {}
        head = {"version of autoembed": __version__, **_plan_of(space, plan)}
        head = json.loads(json.dumps(head))
        if not self.path.exists() or not self._read(head):
            self.path.write_text(json.dumps(head) + "\n")

    def _read(self, head: Mapping[str, object]) -> bool:
        """Reads what is done; whether there is anything. A last line that was cut is taken away."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            if lines:
                self._check(lines[0], head)
            for line in lines[1:]:
                key = line["arm"], line["seed"]
                self.points[key] = [FrontierPoint.model_validate(point) for point in line["points"]]
                self.seconds[key] = line["seconds"]
                self._data[line["seed"]] = line["data"], line.get("encoding")
        except (ValueError, KeyError, TypeError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise StudyError(f"{self.path} is corrupt ({reason}): remove it, or choose another folder") from None
        return bool(lines)

    def _check(self, before: Mapping[str, object], now: Mapping[str, object]) -> None:
        for key in (*now, *before):
            if before.get(key) != now.get(key):
                raise StudyError(f"{self.path} was begun with another {key}: restore it, or choose another folder")

    def check_data(self, seed: int, dataset: Dataset) -> None:
        """StudyError if what is done with a seed was measured on other data."""
        before, encoding = self._data.get(seed, (dataset.fingerprint, None))
        if before != dataset.fingerprint:
            reason = data_changed(self.path, dataset, before, encoding)
            raise StudyError(f"{reason}: restore them or that version, or choose another folder")

    def add(self, arm: str, seed: int, points: list[FrontierPoint], seconds: float, fingerprint: str) -> None:
        """Keeps the points of an arm and a seed."""
        self.points[arm, seed], self.seconds[arm, seed] = points, seconds
        self._data[seed] = fingerprint, ENCODING
        line = {"arm": arm, "seed": seed, "data": fingerprint, "encoding": ENCODING, "seconds": round(seconds, 2)}
        text = json.dumps({**line, "points": [point.row() for point in points]})
        with self.path.open("a") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())


def _plan_of(space: SearchSpace, plan: FrontierPlan) -> dict[str, object]:
    facts = space.model_dump(mode="json", exclude=_FREE)
    facts["data"].pop("path", None)  # the fingerprint of the data tells more
    named = {f"search space ({key} differs)": value for key, value in facts.items()}
    trials = {arm: plan.draws(space, arm) for arm in space.arms()}
    return {**named, "list of --bytes": sorted(plan.sizes), "--of": plan.of, "number of --trials": trials}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and holds it for this process; StudyError if another one does."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudyError(f"cannot make the folder {folder}: {error.strerror}") from None
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise StudyError(f"another process is at work in {folder}: wait for it, or choose another folder") from None
    try:
        yield
    finally:
        lock.release()
