"""A study's own Ray as it dies: said at once and in a line of ours, where Ray waits a minute or talks by itself."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ray._private import worker

from autoembed.errors import StudyError, option

# Without one of these a Ray is no more; the others only log.
NEEDED = {"raylet": "raylet", "gcs_server": "GCS"}
AGAIN = "AUTOEMBED_RAY_AGAIN"  # in the environment of a command that has replaced itself
_SHOW_CURSOR = "\n\x1b[?25h"  # which bars hide


class RayLostError(StudyError):
    """A process of the study's own Ray has ended, and all trials that were running with it."""


@contextmanager
def guarded(again: Sequence[str] | None, bye: Callable[[], None]) -> Iterator[None]:
    """Acts at once when a process that Ray needs has ended.

    Where SIGTERM raises SystemExit (`ended_by_sigterm`): off the main thread, and where processes cannot be watched, it
    does nothing.

    Args:
        again: the command that goes on with the study. It replaces this process, as Ray's client may hang or abort by
            then; the second time the process ends. Without a command the block ends by RayLostError.
        bye: called before the process is replaced or ended.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(os, "pidfd_open"):
        yield
        return
    lost: list[str] = []
    main = threading.get_ident()
    with ExitStack() as stack:
        watched = {_closed(stack, os.pidfd_open(pid)): name for name, pid in _processes().items()}
        stop, done = (_closed(stack, end) for end in os.pipe())

        def watch() -> None:
            ended = set(select.select([stop, *watched], [], [])[0])
            if stop in ended:
                return
            lost.append(_line(watched[ended.pop()]))
            if again is None:
                signal.pthread_kill(main, signal.SIGTERM)
            else:
                bye()
                replace(lost[0], again)

        thread = threading.Thread(target=watch, name="guard", daemon=True)
        thread.start()
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException:
            if lost:
                raise RayLostError(f"{lost[0]}: go on with {option('resume', True)}") from None
            raise
        finally:
            os.write(done, b"x")
            thread.join()


def replace(line: str, again: Sequence[str]) -> None:
    """Says what was lost, and has the command take this process's place; ends the process if one has done so before."""
    before = os.environ.get(AGAIN) == "1"
    start = _SHOW_CURSOR if sys.stderr.isatty() else ""
    end = "for the second time: go on with --resume" if before else "Ray is started once more"
    text = f"{start}{'error' if before else 'warning'}: {line}{', ' if before else ': '}{end}\n"
    os.write(sys.stderr.fileno(), text.encode())  # what the main thread holds does not matter
    for processes in worker._global_node.all_processes.values() if worker._global_node else ():
        for one in processes:
            with contextlib.suppress(OSError):
                os.kill(one.process.pid, signal.SIGKILL)
    if before:
        os._exit(2)
    os.environ[AGAIN] = "1"
    os.execv(again[0], list(again))


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps what Ray's processes tell the driver off the terminal: of a worker that died there is a line of ours."""
    before = worker.print_to_stdstream
    worker.print_to_stdstream = lambda *words, **named: None
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def _line(name: str) -> str:
    return f"Ray's {name} has ended: it was killed, or memory ran out"


def _closed(stack: ExitStack, file: int) -> int:
    stack.callback(os.close, file)
    return file


def _processes() -> dict[str, int]:
    """The process numbers of what this Ray needs, by the names that its users know; none of a Ray that was joined."""
    started = worker._global_node.all_processes if worker._global_node else {}
    return {shown: started[kind][0].process.pid for kind, shown in NEEDED.items() if started.get(kind)}
