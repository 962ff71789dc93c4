"""A study's mirror in MLflow while the study runs, written by a thread of the driver's so that no trial waits for it.

The run folder is the truth. What MLflow lacks, because it was away or slow or the driver was killed, is made good by
the end of the study, by `--resume` and by `autoembed sync`.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Lock, Thread

from autoembed.errors import StudyError
from autoembed.space import SearchSpace
from autoembed.study.results.leaderboard import Leaderboard
from autoembed.study.run_dir import RunDir
from autoembed.study.trackers.base import Status
from autoembed.study.trackers.mlflow.mirror import Mirror
from autoembed.study.trackers.mlflow.store import store

PATIENCE = 60.0  # seconds that the end of a study waits for MLflow

Step = Callable[[Mirror], object]


class Tracker:
    """Hands a study's events to a Mirror, one after the other.

    The first failure is told through `warn`, and MLflow is left alone until `finish`, which tries once more to write
    everything.
    """

    def __init__(self, run: RunDir, space: SearchSpace, warn: Callable[[str], None]) -> None:
        self.run, self.space, self._warn = run, space, warn
        # Until the end has been written, the mirror is not known to be whole.
        run.write_json("mlflow.json", (run.read_json("mlflow.json", rebuilt=True) or {}) | {"status": None})
        self._mirror: Mirror | None = None
        self._off = self._closing = False
        self._board: Leaderboard | None = None
        self._pending: set[str] = set()
        self._lock = Lock()
        self._last: Step | None = None
        self._steps: SimpleQueue[Step | None] = SimpleQueue()
        self._ended = Event()
        Thread(target=self._work, name="mlflow", daemon=True).start()
        self._do(Mirror.begin)

    def _do(self, step: Step) -> None:
        self._steps.put(step)

    def _work(self) -> None:
        while (step := self._steps.get()) is not None:
            if not self._off and not self._closing:
                self._try(step)
        if self._off:
            # What failed may work again; a mirror that is opened again knows what is there.
            self._mirror = None
        if self._last is not None:
            self._try(self._last)
        self._ended.set()

    def _try(self, step: Step) -> None:
        try:
            if self._mirror is None:
                self._mirror = Mirror(self.run, self.space)
            step(self._mirror)
        except Exception as error:
            self._fail(line_of(error))

    def _fail(self, reason: str) -> None:
        with self._lock:
            first, self._off = not self._off, True
        if first:
            self._warn(
                f"MLflow at {store(self.run.path.parent)} failed, so the study goes on without it "
                f"(`autoembed sync {self.run.path}` makes good what it missed): {reason}"
            )

    @classmethod
    def is_whole(cls, run: RunDir) -> bool:
        facts = run.read_json("mlflow.json", rebuilt=True) or {}
        return facts.get("tracking_uri") == store(run.path.parent) and facts.get("status") == "FINISHED"

    def begin(self) -> None:
        self._do(Mirror.data)

    def update(self, trial: str) -> None:
        """Asks for a trial to be brought up to date, once, however many of its reports wait."""
        with self._lock:
            if trial in self._pending:
                return
            self._pending.add(trial)

        def step(mirror: Mirror) -> None:
            with self._lock:
                self._pending.discard(trial)
            mirror.live(trial)

        self._do(step)

    def close(self, trial: str) -> None:
        self._do(lambda mirror: mirror.close(next(ended for ended in self.run.ended() if ended.id == trial)))

    def result(self, board: Leaderboard) -> None:
        self._board = board

    def finish(self, status: Status) -> None:
        """Writes the end, and what has not been written yet; waits for it, but not longer than PATIENCE."""

        def last(mirror: Mirror) -> None:
            write_all(mirror, self._board, status)

        self._last, self._closing = last, True
        self._steps.put(None)
        if not self._ended.wait(PATIENCE):
            self._fail(f"it took more than {PATIENCE:g} s to write the end")


def sync(run: RunDir, space: SearchSpace) -> str:
    """Writes to MLflow what it lacks of a run folder; where that is. StudyError if it cannot be done."""
    if not (run.path / "dataset.json").is_file():
        raise StudyError(f"{run.path} holds nothing to write to MLflow yet: go on with `autoembed search ... --resume`")
    board = Leaderboard.read(run)
    try:
        mirror = Mirror(run, space)
        write_all(mirror, board, "KILLED" if board is None else "FINISHED")
    except Exception as error:
        raise StudyError(f"cannot write to the MLflow store {store(run.path.parent)}: {line_of(error)}") from None
    return mirror.uri


def write_all(mirror: Mirror, board: Leaderboard | None, status: str) -> None:
    """Everything that a run folder holds, and the end of its runs."""
    mirror.data()
    mirror.catch_up()
    if board is not None:
        mirror.result(board)
    mirror.end(status)


def line_of(error: BaseException) -> str:
    """The first line of an error, without the tail that urllib3 adds, and what to do about a damaged store."""
    lines = str(error).splitlines()
    line = lines[0].split(" (Caused by")[0][:200] if lines else type(error).__name__
    if "_alembic_tmp_" in str(error) or "database disk image is malformed" in str(error):
        line += "; the store is damaged: move its file away, and `autoembed sync RUN` writes each study again"
    return line
