"""What a study shows while it runs: bars on a terminal, or records of the logger `autoembed`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Literal, Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from autoembed.metrics import Metric
from autoembed.task import titled


class Display(Protocol):
    """Who is told how far a study is; a context, which ends with what it shows."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]: ...
    def step(self, phase: str, done: int, total: int, note: str = "") -> None: ...
    def tell(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def line(self, text: str) -> None: ...
    def trials(self, done: int, total: int, metric: Metric, best: float | None = None) -> None: ...
    def started(self, trial: str, arm: str) -> None: ...
    def reported(self, trial: str, metrics: Mapping[str, float]) -> None: ...
    def ended(self, trial: str) -> None: ...


class Log:
    """Tells the logger `autoembed`: notes and trials as information, warnings as warnings."""

    def __init__(self) -> None:
        self._logger = logging.getLogger("autoembed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        return False

    def step(self, phase: str, done: int, total: int, note: str = "") -> None:
        self._logger.debug("%s: %d of %d %s", phase, done, total, note)

    def tell(self, text: str) -> None:
        self._logger.info("%s", text)

    def warn(self, text: str) -> None:
        self._logger.warning("%s", text)

    def line(self, text: str) -> None:
        self._logger.info("%s", text)

    def trials(self, done: int, total: int, metric: Metric, best: float | None = None) -> None:
        self._logger.info("%d of %d trials have ended before", done, total)

    def started(self, trial: str, arm: str) -> None:
        self._logger.info("trial %s has started", trial)

    def reported(self, trial: str, metrics: Mapping[str, float]) -> None:
        self._logger.debug("trial %s: %s", trial, metrics)

    def ended(self, trial: str) -> None:
        self._logger.info("trial %s has ended", trial)


class Verbose(Log):
    """Shows all that the logger is told, each epoch of each trial too, as a line with the time on stderr."""

    def __enter__(self) -> Self:
        self._handler = logging.StreamHandler()
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._logger.addHandler(self._handler)
        self._before = self._logger.level
        self._logger.setLevel(logging.DEBUG)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self._logger.setLevel(self._before)
        self._logger.removeHandler(self._handler)
        return False


class Quiet(Log):
    """Shows warnings and nothing else."""

    def warn(self, text: str) -> None:
        print(f"warning: {text}", file=sys.stderr, flush=True)


def display(progress: bool) -> Display:
    """Bars on a terminal if `progress` is asked for, else the log."""
    return Bar() if progress else Log()


class Bar:
    """One line per phase: encode, rank, trials, retrain, final; with `lines`, also plain text for each trial that has
    ended."""

    def __init__(self, *, lines: bool = False) -> None:
        self._lines = lines
        self._console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=12, table_column=Column(min_width=12)),
            MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=13)),
            TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            expand=True,
            console=self._console,
            disable=not sys.stderr.isatty(),
        )
        self._tasks: dict[str, TaskID] = {}
        self._best: float | None = None
        self._running: list[str] = []

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self._progress.stop()
        return False

    def step(self, phase: str, done: int, total: int, note: str = "") -> None:
        """Sets how far a phase is."""
        if phase not in self._tasks:
            for task in self._tasks.values():  # a stage that follows another says that this one is over
                self._progress.update(task, completed=self._progress.tasks[task].total)
            self._tasks[phase] = self._progress.add_task(f"{phase:<14}", note="")
        self._progress.update(self._tasks[phase], completed=done, total=total, note=note)

    def tell(self, text: str) -> None:
        """Prints a line above the bars, on a terminal or not: what was taken and what was guessed."""
        self._console.print(f"  {text}", style="dim", highlight=False, soft_wrap=True, markup=False)

    def warn(self, text: str) -> None:
        """Prints a warning above the bars, on a terminal or not."""
        self._console.print(f"warning: {text}", style="yellow", highlight=False, soft_wrap=True, markup=False)

    def trials(self, done: int, total: int, metric: Metric, best: float | None = None) -> None:
        """Opens the line of the trials, `done` of which had ended before, with this best value of a metric on valid."""
        self._done, self._total, self._metric, self._best, self._running = done, total, metric, best, []
        self.step("trials", done, total)

    def started(self, trial: str, arm: str) -> None:
        self._running.append(trial)
        self._show()

    def reported(self, trial: str, metrics: Mapping[str, float]) -> None:
        value = metrics.get(self._metric.monitor)
        if value is not None and (self._best is None or self._metric.sign * (value - self._best) > 0):
            self._best = value
            self._show()

    def ended(self, trial: str) -> None:
        self._done += 1
        if trial in self._running:
            self._running.remove(trial)
        self._show()
        best = "none yet" if self._best is None else f"{self._best:.4f}"
        self.line(
            f"trial {trial} has ended, {self._done} of {self._total}; best {titled(self._metric.monitor)} so far {best}"
        )

    def line(self, text: str) -> None:
        """Prints a line where lines were asked for."""
        if self._lines:
            print(text, flush=True)

    def _show(self) -> None:
        best = "" if self._best is None else f"best {titled(self._metric.monitor)} {self._best:.4f} · "
        self.step("trials", self._done, self._total, f"{best}{', '.join(self._running)}")
