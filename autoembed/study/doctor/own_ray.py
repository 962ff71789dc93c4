"""Starts a Ray as a study does, has it run a task, and ends it: in a process of its own, which can be given up."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time

_GRACE = 20.0  # seconds to end in order


def try_ray(patience: float) -> tuple[float, str | None]:
    """How many seconds it took, and why it failed, if it did."""
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "autoembed.study.doctor.own_ray"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            _, told = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            _end(process)
            return time.monotonic() - began, f"did not start, run a task and end within {patience:g} s"
        except BaseException:
            _end(process)
            raise
    took = time.monotonic() - began
    if process.returncode == 0:
        return took, None
    lines = told.strip().splitlines()
    return took, lines[-1][:300] if lines else f"its process ended with status {process.returncode}"


def _end(process: subprocess.Popen[str]) -> None:
    """In order if it can, so that Ray's own processes end with it."""
    process.terminate()
    try:
        process.communicate(timeout=_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_GRACE)


def _answer() -> int:
    return 42


def main() -> None:
    """What the process does."""
    from autoembed.study.engine.tune import Resources, cluster

    with cluster(Resources(cpus=1)):
        import ray

        # By name: what this file, run as a program, defines would travel as a copy.
        task = ray.remote(num_cpus=1, max_retries=0)(_answer)
        if ray.get(task.remote()) != 42:
            sys.exit("a task gave another answer than it should")


if __name__ == "__main__":
    main()
