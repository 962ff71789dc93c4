"""What a tracker is, and how it is found."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Literal, Protocol

from autoembed import plugins
from autoembed.errors import SpaceError
from autoembed.space import TRACKERS, SearchSpace
from autoembed.study.results.leaderboard import Leaderboard
from autoembed.study.run_dir import RunDir

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """Is told of a study while it runs, from one thread of the driver, which it must not hold up.

    The run folder is the truth: a tracker reads from it what a call is about, and raises nothing; what goes wrong is
    told once through `warn`. A study that is resumed makes another tracker, so calls may repeat what was told before.

    Args:
        run: the study's folder.
        space: what is searched.
        warn: shows a line to the user.
    """

    def __init__(self, run: RunDir, space: SearchSpace, warn: Callable[[str], None]) -> None: ...

    @classmethod
    def is_whole(cls, run: RunDir) -> bool:
        """Whether everything of a finished study has been told, so that nothing is left to do."""

    def begin(self) -> None:
        """The folder holds the space, the data and their ranking; trials follow."""

    def update(self, trial: str) -> None:
        """A trial has started, or has reported an epoch."""

    def close(self, trial: str) -> None:
        """A trial has ended, well or not."""

    def result(self, board: Leaderboard) -> None:
        """The study has a leaderboard and a best bundle."""

    def finish(self, status: Status) -> None:
        """The study ends, in whatever way."""


def find(name: str) -> type[Tracker]:
    """A tracker of the package by its name, or the class `Tracker` of a module by its dotted name; SpaceError."""
    if name in TRACKERS:
        home = {"mlflow": "mlflow.tracker"}.get(name, name)
        module = importlib.import_module(f"autoembed.study.trackers.{home}")
    else:
        loaded = plugins.load("tracker", name, "autoembed.study.trackers", TRACKERS, ("Tracker",))
        if loaded is None:
            raise SpaceError(f"the tracker {name!r} is a module from outside: import it first")
        module = loaded
    found: type[Tracker] = module.Tracker
    return found
