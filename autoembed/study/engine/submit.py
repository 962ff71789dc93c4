"""Studies as jobs of a Ray cluster: the driver runs there, and this machine only submits, follows and stops it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

import autoembed
from autoembed.errors import StudyError
from autoembed.space import SearchSpace
from autoembed.study.engine.ray_access import MODE, has_token, mode_for_cluster
from autoembed.study.run_dir import require_path

for _name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
    logging.getLogger(_name).setLevel(logging.WARNING)

REQUEST = 60.0  # seconds that the cluster may take to answer
POLL = 1.0
STOP = 90.0  # seconds that a study may take to end in order
PACKAGE = Path(autoembed.__file__).parent
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
# An address that was asked for overrides these.
ADDRESSES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to run on the cluster: `options` of `autoembed search`, and what its nodes need beside what they have."""

    space: Path
    runs: Path
    options: Mapping[str, str | None]
    resume: bool = False
    package: str = "source"
    requirements: Path | None = None
    modules: Sequence[Path] = ()
    variables: Mapping[str, str] | None = None

    def entrypoint(self) -> str:
        words = ["python", "-m", "autoembed.cli", "search", self.space.name, "--address", "auto", "--lines"]
        words += ["--runs", str(self.runs)]
        for option, value in self.options.items():
            words += [] if value is None else [option, value]
        return shlex.join(words + ["--resume"] * self.resume)

    def environment(self, folder: Path, own: Mapping[str, str] | None = None) -> dict[str, object]:
        """Ray's runtime_env: `folder`, which gets the space file and nothing else, the packages, and variables."""
        shutil.copy(self.space, folder / self.space.name)
        modules = [str(path.absolute()) for path in self.modules]
        pip = pinned(self.requirements.read_text().splitlines()) if self.requirements else []
        if self.package == "source":
            modules.append(str(PACKAGE))
        elif self.package != "installed":
            pip += pinned([self.package])
        variables = dict(own or {}) | {"RAY_JOB_STOP_WAIT_TIME_S": f"{STOP:.0f}"} | dict(self.variables or {})
        found: dict[str, object] = {
            "working_dir": str(folder),
            "env_vars": variables,
            "excludes": ["__pycache__", "*.pyc"],
        }
        return found | ({"py_modules": modules} if modules else {}) | ({"pip": pip} if pip else {})


def pinned(lines: Sequence[str]) -> list[str]:
    """Requirements without comments; StudyError if one has no version: nodes that join later would get another."""
    wanted = [line.split(" #")[0].strip() for line in lines]
    wanted = [line for line in wanted if line and not line.startswith("#")]
    for line in wanted:
        if not line.startswith("-") and "==" not in line and " @ " not in line:
            raise StudyError(f"requirements must be pinned by ==, but got {line!r}")
    return wanted


def check(job: Job) -> None:
    """StudyError for what cannot work on a cluster, before anything is sent."""
    space = SearchSpace.read(job.space)
    require_path(job.runs)
    if not job.runs.is_absolute():
        raise StudyError(f"--runs must be an absolute path that all nodes of the cluster share, but got {job.runs}")
    given = job.options.get("--data") or space.data.path or ()
    for data in (given,) if isinstance(given, str) else given:
        if not data.startswith("package:") and not Path(data).is_absolute():
            raise StudyError(f"--data must be an absolute path that the cluster sees, but got {data}")
    for module in job.modules:
        if not module.exists():
            raise StudyError(f"--module must name a Python file's or package's folder, but {module} does not exist")


class _Client(JobSubmissionClient):
    """Ray's client, with a limit on how long it waits."""

    def _do_request(self, *words: object, **named: object) -> object:
        return super()._do_request(*words, **{"timeout": REQUEST} | named)


class Cluster:
    """The job server of a Ray cluster; StudyError in one line for whatever it refuses."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        if not re.match(r"https?://[^/]+$", self.address):
            raise StudyError(f"--address must be the Ray dashboard's, such as http://HOST:8265, but got {address}")
        self.mode = mode_for_cluster()
        with self._asking(), _without(ADDRESSES):
            self._client = _Client(self.address)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError:
            if not has_token():
                raise StudyError(
                    f"the cluster at {self.address} asks for a token, and this machine has none: set "
                    "RAY_AUTH_TOKEN_PATH to a file with the cluster's (`ray get-auth-token` prints it there)"
                ) from None
            raise StudyError(
                f"the cluster at {self.address} refuses this machine's token: set RAY_AUTH_TOKEN_PATH to a file with "
                "the cluster's (`ray get-auth-token` prints it there)"
            ) from None
        except OSError as error:
            raise StudyError(
                f"no Ray job server answers at {self.address} ({type(error).__name__}): is this the dashboard's "
                "address, and has its head ray[default]?"
            ) from None
        except RuntimeError as error:
            raise StudyError(f"the Ray job server at {self.address}: {_line(str(error))}") from None

    def submit(self, job: Job) -> str:
        """Starts a job; its id."""
        with tempfile.TemporaryDirectory() as folder, self._asking():
            environment = job.environment(Path(folder), {MODE: self.mode})
            return str(self._client.submit_job(entrypoint=job.entrypoint(), runtime_env=environment))

    def status(self, job: str) -> tuple[str, str]:
        """A job's status, and Ray's word on it."""
        with self._asking():
            found = self._client.get_job_info(job)
        return str(found.status.value), _line(found.message or "")

    def logs(self, job: str) -> str:
        with self._asking():
            return str(self._client.get_job_logs(job))

    def follow(self, job: str, say: Callable[[str], None]) -> None:
        """Passes on what a job prints until it ends; StudyError if it does not end well."""
        shown, status, message = 0, "", ""
        while status not in ENDED:
            status, message = self.status(job)
            text = self.logs(job)
            if len(text) > shown:
                say(text[shown:])
                shown = len(text)
            if status not in ENDED:
                time.sleep(POLL)
        if status != "SUCCEEDED":
            raise StudyError(f"job {job} {status}: {message}")

    def stop(self, job: str) -> str:
        """Ends a job in order, as SIGTERM does, and waits for it; its status."""
        with self._asking():
            self._client.stop_job(job)
        deadline = time.monotonic() + STOP + 10
        while (status := self.status(job)[0]) not in ENDED:
            if time.monotonic() > deadline:
                raise StudyError(f"job {job} is still {status} after {STOP:g} s: see `autoembed job logs {job}`")
            time.sleep(POLL)
        return status


@contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


def _line(text: str) -> str:
    """What a job server says, on one line and without the logs that it adds."""
    with contextlib.suppress(IndexError):
        text = text.split(", last available logs")[0].strip().splitlines()[-1]
    return text[:300]


def variables(options: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE options as a mapping, with this machine's MLflow server, if it has one, underneath."""
    wrong = [option for option in options if not re.match(r"\w+=", option)]
    if wrong:
        raise StudyError(f"--env must be KEY=VALUE, but got {wrong[0]!r}")
    store = os.environ.get("MLFLOW_TRACKING_URI", "")
    found = {"MLFLOW_TRACKING_URI": store} if store.startswith("http") else {}
    return found | dict(option.split("=", 1) for option in options)
