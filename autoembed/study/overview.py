"""How far studies are, read from their folders alone: what `ls` and `watch` show.

A folder may be written to meanwhile: what is not whole yet is as if it were not there.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from autoembed.errors import AutoembedError
from autoembed.space import SearchSpace
from autoembed.study.results.leaderboard import Leaderboard
from autoembed.study.results.retrain import PARTIAL
from autoembed.study.run_dir import CURVES, MARKS, RunDir, arm_of
from autoembed.task import metric_of
from autoembed.writing import is_alive

State = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """A trial that has ended: when (seconds since 1970), how, and the objective's metric on valid if it is done."""

    trial: str
    arm: str
    state: str
    when: float
    value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A trial that has begun and not ended: the phase and epoch it is in, and its last metric on valid."""

    trial: str
    arm: str
    phase: str
    epoch: int
    value: float | None


@dataclass(frozen=True, kw_only=True)
class Overview:
    """A study at a moment.

    Attributes:
        state: `running` by a living process; `finished` with a leaderboard of all trials that have ended; `failed` if
            none of those that ended is done; else `interrupted`.
        metric: the objective's metric on valid, such as valid_auc.
        total: trials of the whole budget.
        ended: the trials that have ended, in the order in which they did.
        running: those that have begun.
        began: when the process that runs it began; None if none does.
        holder: the process that runs it, and its host.
        seeds: (retrained, all) of the retraining over seeds that is under way, else None.
        until: when no new trial is begun any more, in a study with a budget of time that is running; else None.
        when: the last change.
    """

    run: RunDir
    state: State
    metric: str
    arms: tuple[str, ...]
    total: int
    ended: tuple[Result, ...]
    running: tuple[Progress, ...]
    began: float | None
    holder: tuple[int, str] | None
    seeds: tuple[int, int] | None
    until: float | None
    when: float

    def count(self, state: str, arm: str | None = None) -> int:
        return sum(one.state == state and arm in (None, one.arm) for one in self.ended)

    def best(self, arm: str | None = None) -> Result | None:
        """The best trial by valid, of an arm or of all."""
        done = [one for one in self.ended if one.value is not None and arm in (None, one.arm)]
        sign = metric_of(self.metric).sign
        return max(done, key=lambda one: sign * (one.value or 0.0), default=None)

    def bests(self) -> list[float]:
        """The best value so far after each trial that was done."""
        sign, found = metric_of(self.metric).sign, list[float]()
        for one in self.ended:
            if one.value is not None:
                found.append(one.value if not found or sign * (one.value - found[-1]) > 0 else found[-1])
        return found

    def left(self, now: float) -> float | None:
        """About how many seconds its trials will take on, by those that ended since the process began; None if none."""
        if self.began is None or self.state != "running":
            return None
        since = [one for one in self.ended if one.when >= self.began]
        missing = self.total - len(self.ended)
        if missing <= 0:
            return 0.0
        rate = (now - self.began) / len(since) if since else None
        guess = None if rate is None else rate * missing
        if self.until is None:
            return guess
        return max(0.0, self.until - now) if guess is None else min(guess, max(0.0, self.until - now))


def look(run: RunDir) -> Overview:
    """A study as it is now; AutoembedError if its search space cannot be read."""
    space = SearchSpace.read(run.space)
    objective = space.objective
    ended, running = [], []
    for folder in sorted((run.path / "trials").glob("*-*")):
        mark = _ended(folder, objective.metric, space.budget.latency_ms)
        if mark is not None:
            ended.append(mark)
        elif (folder / "config.json").is_file():
            running.append(_progress(folder, objective.metric))
    ended.sort(key=lambda one: one.when)
    holder, began = _holder(run)
    board = None
    with contextlib.suppress(AutoembedError):
        board = Leaderboard.read(run)
    alive = holder is not None
    times = [path.stat().st_mtime for path in (run.space, run.path / "leaderboard.json") if path.is_file()]
    return Overview(
        run=run,
        state=_state(alive, board, ended, running),
        metric=objective.metric,
        arms=space.arms(),
        total=sum(map(space.trials, space.arms())),
        ended=tuple(ended),
        running=tuple(running) if alive else (),
        began=began,
        holder=holder,
        seeds=_seeds(run, space, {one.arm for one in ended if one.state == "done"}) if alive else None,
        until=_until(run) if alive and space.budget.minutes is not None else None,
        when=max([*times, *(one.when for one in ended)], default=0.0),
    )


def studies(runs: Path) -> list[RunDir]:
    """The studies of a folder, by name."""
    return [RunDir(path.parent) for path in sorted(runs.glob("*/space.yaml"))]


def size_of(folder: Path) -> int:
    """Bytes of all files of a folder, as far as they can be seen."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def _state(alive: bool, board: Leaderboard | None, ended: Sequence[Result], running: Sequence[Progress]) -> State:
    if alive:
        return "running"
    if board is not None and sum(board.trials) == len(ended) and not running:
        return "finished"
    if ended and not running and not any(one.state == "done" for one in ended):
        return "failed"
    return "interrupted"


def _holder(run: RunDir) -> tuple[tuple[int, str] | None, float | None]:
    """The process and host that hold the folder, and since when; None if nobody does.

    A process that was killed leaves its note and holds nothing. Only where there is a note is the lock tried, and for a
    moment: a study that begins right then would find it taken.
    """
    path = run.path / ".holder.json"
    try:
        facts, began = json.loads(path.read_text()), path.stat().st_mtime
        holder = int(facts["pid"]), str(facts["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, None
    if holder[1] == socket.gethostname() and not is_alive(holder[0]):
        return None, None
    lock = FileLock(run.path / ".lock", timeout=0)
    try:
        with lock:
            return None, None
    except Timeout:
        return holder, began
    except OSError:  # a folder of another user's: its note is all there is
        return holder, began


def _ended(folder: Path, metric: str, limit: float | None) -> Result | None:
    for state, name in MARKS.items():
        try:
            when = (folder / name).stat().st_mtime
        except OSError:
            continue
        value = _value(folder, metric, limit) if state == "done" else None
        return Result(trial=folder.name, arm=arm_of(folder.name), state=state, when=when, value=value)
    return None


def _value(folder: Path, metric: str, limit: float | None) -> float | None:
    """The metric on valid, None over the limit on latency; reading a trial as such would hash its weights."""
    try:
        result = json.loads((folder / "result.json").read_text())
        if limit is not None and result["latency_ms"] > limit:
            return None
        return float(result["valid"][metric.partition("_")[2]])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _progress(folder: Path, metric: str) -> Progress:
    point: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        lines = (folder / CURVES).read_text().split("\n")[:-1]
        point = json.loads(lines[-1]) if lines else {}
    phase = next((name.removesuffix("_epoch") for name in point if name.endswith("_epoch")), "")
    value = point.get(metric if phase == "retrain" else f"{phase}_{metric}")
    epoch = int(point.get(f"{phase}_epoch", 0))
    return Progress(trial=folder.name, arm=arm_of(folder.name), phase=phase, epoch=epoch, value=value)


def _until(run: RunDir) -> float | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return float(json.loads((run.path / "minutes.json").read_text())["until"])
    return None


def _seeds(run: RunDir, space: SearchSpace, arms: set[str]) -> tuple[int, int] | None:
    if space.final is None:
        return None
    try:
        known = json.loads((run.path / PARTIAL).read_text())
        return sum(len(rows) for rows in known.values()), space.final.seeds * len(arms)
    except (OSError, ValueError, AttributeError, TypeError):
        return None
