"""Memory of a study's processes on this machine, from /proc: its driver, its Ray, and the trials."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """How many processes a study has, and the bytes they hold, what several share counted once."""

    processes: int
    bytes: int


def memory_of(pid: int) -> Memory | None:
    """Of a process, all below it, and its Ray's workers, which are forks of a server; None where that is not told."""
    parents: dict[int, int] = {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
    if pid not in parents:
        return None
    family = _below({pid}, parents)
    servers = {one for one in parents if one not in family and _raylet(one) in family}
    family |= _below(servers, parents)
    held = [own for one in family if (own := _bytes(one)) is not None]
    return Memory(processes=len(held), bytes=sum(held)) if held else None


def _below(roots: set[int], parents: dict[int, int]) -> set[int]:
    """The processes and all that descend from them."""
    found = set(roots)
    while more := {one for one, parent in parents.items() if parent in found and one not in found}:
        found |= more
    return found


def _raylet(pid: int) -> int | None:
    """The raylet that a process belongs to, by its environment."""
    try:
        for entry in (_PROC / str(pid) / "environ").read_bytes().split(b"\0"):
            if entry.startswith(b"RAY_RAYLET_PID="):
                return int(entry.partition(b"=")[2])
    except (OSError, ValueError):
        pass
    return None


def _bytes(pid: int) -> int | None:
    """The share of a process in the memory that it uses (PSS), or all of it where shares are not told."""
    folder = _PROC / str(pid)
    try:
        for line in (folder / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        pass
    try:
        return int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
