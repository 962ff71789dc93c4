"""Trials under Ray Tune."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from autoembed.data.dataset import Dataset
from autoembed.errors import StudyError, first_line, option
from autoembed.fast import takes
from autoembed.space import SearchSpace
from autoembed.study.engine import forkserver
from autoembed.study.engine.clock import Clock
from autoembed.study.engine.guard import guarded, quiet
from autoembed.study.engine.last_word import last_word
from autoembed.study.engine.ray_access import LOOPBACK, guard_token, on_loopback
from autoembed.study.engine.recorder import RETRIES, Recorder, Watcher
from autoembed.study.engine.sampler import searcher
from autoembed.study.engine.scheduler import PerArm
from autoembed.study.engine.signals import ended_by_sigterm
from autoembed.study.engine.worker import work
from autoembed.study.run_dir import RunDir

OBJECT_STORE = 100 * 2**20
ANSWER = 120.0  # seconds that a node may take to start a worker


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a study may use: a running cluster by `address`, or else `cpus` of this machine (all by default).

    `dashboard` serves Ray's dashboard of a Ray of its own, on loopback. `again` is the command that takes this
    process's place if a Ray of its own dies.
    """

    address: str | None = None
    cpus: int | None = None
    dashboard: bool = False
    again: tuple[str, ...] | None = None


@contextmanager
def cluster(resources: Resources) -> Iterator[str | None]:
    """A Ray of the study's own, or the named one; the own one ends with the block, whatever happens.

    A Ray that this process has started already is used as it is. RayLostError if the
    study's own one dies and there is no command to go on with. Yields the address of the dashboard that was asked for.
    """
    if ray.is_initialized():
        yield None
        return
    own: dict[str, object] = {}
    if not resources.address:
        own = {"num_cpus": resources.cpus, "object_store_memory": OBJECT_STORE, "include_dashboard": False}
        own["_node_ip_address"] = LOOPBACK
        if resources.dashboard:
            own |= {"include_dashboard": True, "dashboard_host": LOOPBACK}
        guard_token()
        if takes("forks") and (forked := forkserver.command()):
            own["runtime_env"] = {"py_executable": forked}
    # Without an address Ray would join any cluster that it finds on the machine.
    options = {"address": resources.address or "local", "log_to_driver": False, "logging_level": "CRITICAL"} | own
    url = _start(options, twice=not resources.address)
    # Tune logs a traceback per failed trial; the reason stands in the trial's error.txt and in the summary.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    try:
        # Ray's own handler, which ray.init has just set, would abort the process.
        with quiet(), last_word() as bye, ended_by_sigterm(), _guard(resources, bye):
            yield f"http://{url}" if resources.dashboard and url else None
    finally:
        _end()


def _guard(resources: Resources, bye: Callable[[], None]) -> AbstractContextManager[None]:
    return nullcontext() if resources.address else guarded(resources.again, bye)


def _start(options: Mapping[str, object], *, twice: bool) -> str:
    """Starts Ray or joins it, once more if one of our own does not start in time; StudyError if it does not.

    The address of its dashboard, empty if there is none.
    """
    try:
        with on_loopback() if options["address"] == "local" else nullcontext():
            return str(ray.init(**options).dashboard_url or "")
    except ValueError as error:  # what it was asked for is wrong, and will be so again
        raise StudyError(f"cannot start Ray: {first_line(error)}") from None
    except Exception as error:  # Ray raises its bare class where a process of its own is late
        ray.shutdown()
        if twice:
            logging.getLogger(__name__).warning("Ray did not start (%s): once more", first_line(error))
            return _start(options, twice=False)
        there = "start Ray" if options["address"] == "local" else f"join the Ray cluster at {options['address']}"
        raise StudyError(f"cannot {there}: {' '.join(str(error).split())[:500]}") from None


def _end() -> None:
    """Shuts Ray down while no thread collects garbage: to free an object reference in the midst of it would make Ray
    exit the process with status 1."""
    gc.collect()
    collects = gc.isenabled()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if collects:
            gc.enable()


def concurrency(space: SearchSpace) -> int:
    """How many trials run at once; StudyError if not even one fits, which Ray would wait for without a word."""
    budget, there = space.budget, ray.cluster_resources()
    limits = []
    for key, name in (("cpus_per_trial", "CPU"), ("gpus_per_trial", "GPU")):
        wants, has = getattr(budget, key), there.get(name, 0)
        if wants > has:
            raise StudyError(f"budget.{key} must not exceed the {has:g} {name}s that there are, but is {wants:g}")
        if wants:
            limits.append(int(has // wants))
    return min(*limits, budget.concurrent or limits[0])


def require_shared(run: RunDir) -> None:
    """StudyError names a node that does not see the run folder, where its trials would write."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) < 2:
        return
    look = ray.remote(num_cpus=0, max_retries=0)(_sees)
    answers = []
    for node in nodes:
        place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        answer = look.options(scheduling_strategy=place).remote(run.path, run.identity)
        answers.append((node["NodeManagerAddress"], answer))
    for address, answer in answers:
        try:
            if ray.get(answer, timeout=ANSWER):
                continue
        except ray.exceptions.RayError as error:
            raise StudyError(f"node {address} of the cluster cannot run autoembed: {_last_line(error)}") from None
        raise StudyError(
            f"node {address} does not see {run.path}: choose {option('runs')} on storage that all nodes share"
        )


def _sees(path: Path, identity: str) -> bool:
    try:
        return bool(json.loads((path / "study.json").read_text())["id"] == identity)
    except (OSError, ValueError):
        return False


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def run_trials(
    run: RunDir,
    space: SearchSpace,
    dataset: Dataset,
    left: Mapping[str, int],
    watchers: Sequence[Watcher],
    clock: Clock | None = None,
) -> None:
    """Runs `left` more trials of each arm and returns when they have ended, or when the `clock` is over.

    A trial that fails is recorded as failed and does not end the study. One whose process was lost is run again; one
    that had no process yet, since that died between two trials, is left to run.
    """
    require_shared(run)
    budget = space.budget
    trainable = tune.with_resources(
        tune.with_parameters(work, run=run.path, space=space, dataset=dataset.path),
        {"cpu": budget.cpus_per_trial, "gpu": budget.gpus_per_trial},
    )
    scheduler, search = PerArm(left, space, clock), searcher(run, space, left, clock)
    recorder = Recorder(run, watchers, scheduler.reasons, clock.cut if clock else frozenset())
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            num_samples=sum(left.values()),
            max_concurrent_trials=concurrency(space),
            search_alg=search,
            scheduler=scheduler,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(run.path / "ray"),
            callbacks=[recorder],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    )
    try:
        results = tuner.fit()
    finally:
        search.close()
    unrecorded = [error for error in results.errors if error is not None]
    ended = sum(trial.state == "failed" for trial in run.ended())
    if len(unrecorded) > ended + recorder.unbegun:
        raise StudyError(f"Ray Tune ended with an error: {_last_line(unrecorded[0])}")
