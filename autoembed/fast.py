"""Which fast paths are taken. Each has a plain one, for debugging and for other systems.

Both give the same numbers, but for rounding in served models. The environment variable AUTOEMBED_PLAIN lists those
that are left out, such as "kernels,forks":

- kernels: machine code that is kept in files; plainly, numba compiles it in each process.
- lookups: rows of tables, and texts of requests, read by machine code where models predict on a CPU, and DeepFM's sums
  in a server; plainly, by torch's operations and by Python.
- forks: Ray's workers as forks of one process; plainly, Ray starts each of them.
- towers: large linear layers of served models by oneDNN, with weights in blocks; plainly, by torch's matrix product.
- optimisers: torch's Adam without its wrappers; plainly, with them.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

from autoembed.errors import SpaceError, unknown

VARIABLE = "AUTOEMBED_PLAIN"
PATHS = ("kernels", "lookups", "forks", "towers", "optimisers")


def takes(path: str) -> bool:
    """Whether the fast path of that name is taken; SpaceError if the variable names one that is not there."""
    plain = [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    for name in plain:
        if name not in PATHS:
            raise SpaceError(f"{VARIABLE}: {unknown('path', name, list(PATHS))}")
    return path not in plain


def compiles_lookups() -> bool:
    """Whether the path `lookups` is taken: numba is there, which a small install for serving may lack."""
    return takes("lookups") and all(find_spec(name) for name in ("llvmlite", "numba"))


def cores() -> int:
    """How many processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
