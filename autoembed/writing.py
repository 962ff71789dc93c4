"""Files that are whole or not there, and folders for a while that no killed process leaves behind for ever."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SCRATCH = ".autoembed-"
_HERE, _EXCHANGE = -100, 2  # of Linux: AT_FDCWD, RENAME_EXCHANGE


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A name in the folder of `path` to write to, renamed to it at the end; after an error nothing is left.

    The folder is made if need be. The ending stays, as writers go by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def exchange(one: Path, other: Path) -> bool:
    """Swaps the names of two folders in one step, so that both are there at any moment; whether this system can."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "renameat2"):
        return False
    first, second = (ctypes.c_char_p(os.fsencode(path)) for path in (one, other))
    return bool(libc.renameat2(_HERE, first, _HERE, second, _EXCHANGE) == 0)


def as_open_as(path: Path, neighbour: Path) -> None:
    """Gives a file the mode of another: some libraries let only the owner read what they write."""
    path.chmod(neighbour.stat().st_mode & 0o777)


@contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """A folder for a while, in `parent` or where the system has its own; those of dead processes here are removed."""
    where = Path(tempfile.gettempdir()) if parent is None else parent
    where.mkdir(parents=True, exist_ok=True)
    _sweep(where)
    folder = Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{socket.gethostname()}-{os.getpid()}-", dir=where))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(where: Path) -> None:
    own = f"{_SCRATCH}{socket.gethostname()}-"
    with contextlib.suppress(OSError):
        for folder in where.glob(f"{own}*"):
            pid = folder.name.removeprefix(own).partition("-")[0]
            if pid.isdecimal() and not is_alive(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)


def is_alive(pid: int) -> bool:
    """Whether there is a process of this number on this machine, whoever's it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
