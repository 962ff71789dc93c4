"""SIGTERM as an orderly end: what `finally` promises is kept, as after Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Turns SIGTERM into SystemExit with status 143 inside the block; off the main thread it changes nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    received = []

    def end(number: int, frame: object) -> None:
        received.append(number)
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except SystemExit:
        # ray.wait raises a SystemExit of its own in the place of ours.
        if received:
            sys.exit(128 + received[0])
        raise
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)
