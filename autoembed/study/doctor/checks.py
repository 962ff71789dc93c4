"""One check for each thing that a study, a ranking or a server needs, with what to do where it is missing."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal
from urllib.request import urlopen

from packaging.requirements import Requirement

from autoembed import __version__
from autoembed.errors import first_line
from autoembed.fast import cores
from autoembed.study.doctor.own_ray import try_ray

State = Literal["OK", "warning", "problem"]
GB = 1e9
_PORTS = {"ui": 5000, "serve": 8000}
_SHOWN = ("torch", "ray", "optuna", "polars", "mlflow")
_SHM = 0.2 * GB  # Ray's store of objects takes half of it


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was looked at, what was found, and what to do unless it is OK."""

    name: str
    state: State
    found: str
    remedy: str = ""


def checks(runs: Path, patience: float) -> Iterator[Check]:
    """Every check, as it is done; none of them raises.

    Args:
        runs: the folder of the studies.
        patience: seconds that Ray may take to start, to run a task and to end.
    """
    todo: list[tuple[str, Callable[[], Check]]] = [
        ("python", _python),
        ("packages", _packages),
        ("CPUs", _cpus),
        ("GPU", _gpu),
        ("memory", _memory),
        ("disk", lambda: _disk(runs)),
        ("/dev/shm", _shared_memory),
        ("kernels", _kernels),
        ("MLflow", lambda: _store(runs)),
        *((f"port of {name}", lambda name=name, port=port: _port(name, port)) for name, port in _PORTS.items()),
        *((f"extra {name}", lambda name=name: _extra(name)) for name in _extras()),
        ("Ray", lambda: _ray(patience)),
    ]
    for name, check in todo:
        try:
            yield check()
        except Exception as error:
            yield Check(
                name=name, state="problem", found=f"could not be looked at: {first_line(error)}", remedy="report it"
            )


def _python() -> Check:
    found = f"{platform.python_version()} at {sys.executable}, autoembed {__version__}"
    return Check(name="python", state="OK", found=found)


def _packages() -> Check:
    """The packages that autoembed requires, in versions that it takes."""
    shown = ", ".join(f"{name} {version(name)}" for name in _SHOWN if _installed(name))
    wrong = [str(one) for one in _required() if one.marker is None and not _met(one)]
    if not wrong:
        return Check(name="packages", state="OK", found=shown)
    words = " ".join(f"'{one}'" for one in wrong)
    found = f"{shown}; missing or of another version: {', '.join(wrong)}"
    return Check(name="packages", state="problem", found=found, remedy=f"pip install {words}")


def _required(package: str = "autoembed") -> list[Requirement]:
    try:
        return [Requirement(line) for line in requires(package) or ()]
    except PackageNotFoundError:  # run from its source without being installed
        return []


def _met(one: Requirement) -> bool:
    """Whether a requirement is there, with all that its own extras ask for."""
    if not (_installed(one.name) and one.specifier.contains(version(one.name), prereleases=True)):
        return False
    return all(_met(part) for extra in one.extras for part in _of_extra(one.name, extra))


def _of_extra(package: str, extra: str) -> list[Requirement]:
    """What a package requires with an extra and not without it."""
    conditional = [one for one in _required(package) if one.marker is not None]
    return [
        one
        for one in conditional
        if one.marker and one.marker.evaluate({"extra": extra}) and not one.marker.evaluate({"extra": ""})
    ]


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def _extras() -> list[str]:
    """The optional parts that a user may want: not what only tests and examples need."""
    found = {str(one.marker).partition("extra == ")[2].strip("\"'") for one in _required() if one.marker}
    return sorted(found - {"", "test", "demo"})


def _extra(name: str) -> Check:
    own = _of_extra("autoembed", name)
    missing = [one.name for one in own if not _met(one)]
    if not missing:
        return Check(
            name=f"extra {name}", state="OK", found=", ".join(f"{one.name} {version(one.name)}" for one in own)
        )
    return Check(
        name=f"extra {name}",
        state="warning",
        found=f"optional, and not here: {', '.join(missing)}",
        remedy=f"pip install 'autoembed[{name}]', if you want it",
    )


def _cpus() -> Check:
    there, own = os.cpu_count() or 1, cores()
    quota = _quota()
    found = f"{own} of {there} may be used" if own < there else f"{there}"
    if quota is not None and quota < own - 0.01:
        return Check(
            name="CPUs",
            state="warning",
            found=f"{found}, but the container is held to {quota:g}",
            remedy=f"search with --cpus {max(1, int(quota))} if trials are slow",
        )
    if own < there:
        return Check(name="CPUs", state="warning", found=found, remedy=f"search with --cpus {own}: Ray may count all")
    return Check(name="CPUs", state="OK", found=found)


def _quota() -> float | None:
    """CPUs that a container may use, where cgroups say so."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) / int(period)


def _gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(one) for one in range(torch.cuda.device_count()))
        return Check(name="GPU", state="OK", found=names)
    if Path("/dev/nvidia0").exists():
        return Check(
            name="GPU",
            state="warning",
            found="there is one that torch cannot use",
            remedy="install a torch for its driver (https://pytorch.org/get-started), or search with --device cpu",
        )
    return Check(name="GPU", state="OK", found="none: trials run on the CPU")


def _memory() -> Check:
    free = _available()
    if free is None:
        return Check(name="memory", state="OK", found="not told by this system")
    found = f"{free / GB:.1f} GB available"
    if free < 0.7 * GB:
        return Check(name="memory", state="problem", found=found, remedy="end other programs: Ray alone takes 0.5 GB")
    if free < 2 * GB:
        return Check(name="memory", state="warning", found=found, remedy="run few trials at once (budget.concurrent)")
    return Check(name="memory", state="OK", found=found)


def _available() -> float | None:
    """Bytes that programs may still take, by the system and by the container's limit."""
    found: list[float] = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            found.append(float(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text())))
    except (OSError, ValueError):
        pass
    return min(found, default=None)


def _disk(runs: Path) -> Check:
    there = _nearest(runs)
    free = shutil.disk_usage(there).free
    found = f"{free / GB:.1f} GB free under {runs}"
    if not os.access(there, os.W_OK):
        return Check(name="disk", state="problem", found=f"{there} may not be written", remedy="give another --runs")
    if free < 0.5 * GB:
        return Check(name="disk", state="problem", found=found, remedy="free some, or give --runs on another disk")
    if free < 5 * GB:
        return Check(name="disk", state="warning", found=found, remedy="enough for small studies: watch it")
    return Check(name="disk", state="OK", found=found)


def _nearest(path: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    whole = path.absolute()
    return next(one for one in (whole, *whole.parents) if one.is_dir())


def _shared_memory() -> Check:
    place = Path("/dev/shm")  # where Ray keeps its objects
    if not place.is_dir():
        return Check(name="/dev/shm", state="OK", found="none on this system, and none needed")
    facts = shutil.disk_usage(place)
    found = f"{facts.free / GB:.2f} of {facts.total / GB:.2f} GB free"
    if facts.free < _SHM:
        remedy = "start the container with --shm-size 1g: Ray takes a slower place in its stead"
        return Check(name="/dev/shm", state="warning", found=found, remedy=remedy)
    return Check(name="/dev/shm", state="OK", found=found)


def _kernels() -> Check:
    from autoembed.native import FAST, cache_folder

    if not FAST:
        return Check(name="kernels", state="OK", found="left out by AUTOEMBED_PLAIN: numba compiles in each process")
    folder = cache_folder()
    if folder is None:
        remedy = "set XDG_CACHE_HOME to a folder that only you can write: each start compiles again without one"
        return Check(name="kernels", state="warning", found="compiled code can be kept nowhere", remedy=remedy)
    kept = sum(1 for path in folder.glob("*") if path.suffix not in (".pyc", ".py"))
    return Check(name="kernels", state="OK", found=f"{kept} compiled functions in {folder}")


def _store(runs: Path) -> Check:
    from autoembed.study.trackers.mlflow.store import store

    uri = store(runs)
    if uri.startswith(("http://", "https://")):
        try:
            with urlopen(f"{uri.rstrip('/')}/health", timeout=10):
                return Check(name="MLflow", state="OK", found=f"{uri} answers")
        except OSError as error:
            remedy = "start it, or unset MLFLOW_TRACKING_URI; studies go on without it, and `autoembed sync` makes good"
            found = f"{uri} does not answer ({first_line(error)})"
            return Check(name="MLflow", state="warning", found=found, remedy=remedy)
    path = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///"):
        return Check(name="MLflow", state="OK", found=f"{uri}, which was not looked at")
    if not path.is_file():
        if os.access(_nearest(path.parent), os.W_OK):
            return Check(name="MLflow", state="OK", found=f"the first study makes {path}")
        return Check(name="MLflow", state="problem", found=f"{path} cannot be made", remedy="give another --runs")
    try:
        with closing(sqlite3.connect(path, timeout=5)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    except sqlite3.Error as error:
        remedy = "mend its rights, or move it away: `autoembed sync RUN` writes each study again"
        return Check(name="MLflow", state="problem", found=f"{path} cannot be written ({error})", remedy=remedy)
    return Check(name="MLflow", state="OK", found=f"{path} can be written")


def _port(name: str, port: int) -> Check:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Check(
                name=f"port of {name}",
                state="warning",
                found=f"{port} is not free ({error.strerror})",
                remedy=f"autoembed {name} --port {port + 1}",
            )
    return Check(name=f"port of {name}", state="OK", found=f"{port} is free")


def _ray(patience: float) -> Check:
    seconds, reason = try_ray(patience)
    if reason is None:
        return Check(name="Ray", state="OK", found=f"started, ran a task and ended in {seconds:.1f} s")
    remedy = "look into /tmp/ray/session_latest/logs; a proxy, a full /tmp or too little memory are common reasons"
    return Check(name="Ray", state="problem", found=reason, remedy=remedy)
