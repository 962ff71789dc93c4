"""A study's budget of time: no trial begins after it, and those that run then have a while to end.

What has been spent stands in minutes.json of the run folder, so that a study that goes on has what is left. Encoding
and ranking before the trials, and the comparison after them, are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from autoembed.errors import option
from autoembed.space import SearchSpace
from autoembed.study.run_dir import RunDir

FILE = "minutes.json"
_GRACE, _LEAST = 0.25, 60.0  # of the budget, and in seconds


class Clock:
    """Hears of trials as a watcher does, and keeps the time that they take.

    `cut` holds the trials that were still running when their time was over. They count as not begun: a study that goes
    on with more minutes runs them again.
    """

    def __init__(self, run: RunDir, space: SearchSpace) -> None:
        self._run = run
        self._limit = None if space.budget.minutes is None else 60 * space.budget.minutes
        self._before = spent(run)
        self._began = time.monotonic()
        self.cut: set[str] = set()
        self._keep()

    @property
    def over(self) -> bool:
        """Whether no new trial may begin."""
        return self._limit is not None and self._spent() >= self._limit

    @property
    def late(self) -> bool:
        """Whether trials that are running must end."""
        return self._limit is not None and self._spent() >= self._limit + grace(self._limit)

    def stop(self) -> None:
        """The trials are over."""
        self._keep()

    def _spent(self) -> float:
        return self._before + time.monotonic() - self._began

    def _keep(self) -> None:
        if self._limit is None:
            return
        seconds = self._spent()
        # What trials take to end is on top, so that a study goes on for all that it is given more.
        held = min(self._limit, round(seconds, 1))
        self._run.write_json(FILE, {"spent": held, "until": time.time() + self._limit - seconds})

    def started(self, trial: str, arm: str) -> None:
        self._keep()

    def reported(self, trial: str, metrics: Mapping[str, float]) -> None:
        pass

    def ended(self, trial: str) -> None:
        self._keep()

    def warn(self, text: str) -> None:
        pass


def grace(limit: float) -> float:
    """Seconds that trials have to end after a budget of so many seconds."""
    return max(_LEAST, _GRACE * limit)


def spent(run: RunDir) -> float:
    """Seconds that the trials of a study have taken, as far as a budget of time has counted them."""
    return float((run.read_json(FILE, rebuilt=True) or {}).get("spent", 0.0))


def is_over(run: RunDir, space: SearchSpace) -> bool:
    """Whether a study's budget of time is spent."""
    return space.budget.minutes is not None and spent(run) >= 60 * space.budget.minutes


def note(run: RunDir, space: SearchSpace, missing: int) -> str | None:
    """What to know of a study whose time was over with so many trials `missing`; None if it was not."""
    if not missing or not is_over(run, space):
        return None
    ended = len(run.ended())
    return (
        f"The budget of {space.budget.minutes:g} minutes was spent when {ended} of {ended + missing} trials had ended: "
        f"{option('resume', True)} with more {option('minutes')} goes on"
    )
