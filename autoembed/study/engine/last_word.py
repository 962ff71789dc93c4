"""A line of ours where Ray ends a study's process by itself: without its raylet it exits with a line of C++."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

LINE = (
    "error: the study's process ended at once: it was killed, or a process of its Ray was, or memory ran out. What has "
    "ended is kept: go on with `autoembed search ... --resume`"
)
# Reads until the study says goodbye, or is gone without a word.
_CODE = "import sys\nif not sys.stdin.buffer.read(): sys.stderr.write(sys.argv[1] + '\\n')"


@contextmanager
def last_word() -> Iterator[Callable[[], None]]:
    """Within it, a process of its own tells on stderr if this one ends without reaching the end of the block.

    What it gives is called where the process is about to end, or to be replaced, with words of its own.
    """
    command = [sys.executable, "-I", "-S", "-c", _CODE, LINE]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert watcher.stdin is not None

    def bye() -> None:
        assert watcher.stdin is not None
        with suppress(OSError, ValueError), watcher.stdin as pipe:  # it may have been killed itself
            pipe.write(b"bye")

    try:
        yield bye
    finally:
        bye()
        watcher.wait()
