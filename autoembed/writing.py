"""Files that are whole or not there, and folders for a while that no killed process leaves behind for ever."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SCRATCH = ".autoembed-"


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
            if pid.isdecimal() and not _alive(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
