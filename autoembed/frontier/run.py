"""A frontier from a search-space file to its tables and picture."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from autoembed.data.dataset import Dataset
from autoembed.draws import prepare
from autoembed.errors import StudyError, TrialError, option
from autoembed.frontier.curves import Curves
from autoembed.frontier.picture import draw_curves
from autoembed.frontier.points import OF, FrontierPlan, FrontierPoint, Of, measure
from autoembed.frontier.store import PointStore, locked
from autoembed.frontier.tables import Measured, markdown
from autoembed.methods.warm import WarmStarts
from autoembed.space import SearchSpace
from autoembed.types import Progress
from autoembed.writing import beside

Tell = Callable[[int, int, str], None]
PICTURES = ("png", "svg")


@dataclass(frozen=True, kw_only=True)
class FrontierRequest:
    """What the user asked for on the command line; `command` is how, for the page."""

    space: Path
    sizes: tuple[int, ...]
    of: str = "embeddings"
    data: str | None = None
    seeds: int = 5
    first_seed: int = 0
    trials: int | None = None
    jobs: int = 1
    device: str | None = None
    runs: Path = Path("runs")
    out: Path | None = None
    command: str = ""

    @property
    def folder(self) -> Path:
        return self.out or self.runs / f"{self.space.stem}-frontier"

    def plan(self) -> FrontierPlan:
        """StudyError where a number or a word is not what it must be."""
        for name, number in {"seeds": self.seeds, "trials": self.trials, "jobs": self.jobs}.items():
            if number is not None and number < 1:
                raise StudyError(f"{option(name)} must be at least 1, but got {number}")
        if self.first_seed < 0:
            raise StudyError(f"{option('first_seed')} must be at least 0, but got {self.first_seed}")
        if self.of not in OF:
            raise StudyError(f"{option('of')} must be {' or '.join(OF)}, but got {self.of!r}")
        if not self.sizes or min(self.sizes) < 1 or len(set(self.sizes)) < len(self.sizes):
            raise StudyError(f"{option('bytes')} must be different whole numbers above 0, but got {self.sizes}")
        of: Of = "embeddings" if self.of == "embeddings" else "model"
        return FrontierPlan(sizes=tuple(sorted(self.sizes)), of=of, trials=self.trials)


@dataclass(frozen=True, kw_only=True)
class ArmSeed:
    """An arm and a seed, with all that another process needs to measure them."""

    space: SearchSpace
    arm: str
    seed: int
    dataset: Path
    fingerprint: str
    plan: FrontierPlan
    warm: Path


def run_frontier(
    request: FrontierRequest, progress: Progress, tell: Tell, line: Callable[[str], None]
) -> tuple[Path, Curves]:
    """Measures what is still missing, and writes table, page and pictures; the folder and the curves.

    Args:
        request: what is asked for.
        progress: called with (step, done, total) while data are encoded.
        tell: called with (done, total, note) for arms and seeds.
        line: called with a sentence for each arm and seed that is done.

    Raises:
        StudyError: the folder holds another frontier, or the data have changed since.
    """
    plan, space = request.plan(), SearchSpace.read(request.space)
    if request.device is not None:
        space = space.model_copy(update={"device": request.device})
    folder, seeds = request.folder, range(request.first_seed, request.first_seed + request.seeds)
    with locked(folder):
        store = PointStore(folder, space, plan)
        datasets = {seed: prepare(space, request.data, seed, request.runs / ".cache", progress) for seed in seeds}
        for seed, dataset in datasets.items():
            store.check_data(seed, dataset)
        keys = [(arm, seed) for seed in seeds for arm in space.arms()]
        tasks = [
            ArmSeed(
                space=space,
                arm=arm,
                seed=seed,
                dataset=datasets[seed].path,
                fingerprint=datasets[seed].fingerprint,
                plan=plan,
                warm=folder / "warm",
            )
            for arm, seed in keys
            if (arm, seed) not in store.points
        ]
        done = len(keys) - len(tasks)
        tell(done, len(keys), "")

        def started(task: ArmSeed) -> None:
            tell(done, len(keys), f"seed {task.seed} {task.arm}")

        for task, points, seconds in _results(tasks, request.jobs, started):
            store.add(task.arm, task.seed, points, seconds, task.fingerprint)
            done += 1
            tell(done, len(keys), f"seed {task.seed} {task.arm}")
            line(f"seed {task.seed} {task.arm}: {_short(points, space)} ({done} of {len(keys)}, {seconds:.0f} s)")
        shutil.rmtree(folder / "warm", ignore_errors=True)
        curves = Curves(
            space=space,
            plan=plan,
            points=[point for key in keys for point in store.points[key]],
            seconds={key: store.seconds[key] for key in keys},
        )
        first = datasets[seeds[0]]
        facts = Measured(
            title=request.space.stem,
            command=request.command,
            fields=len(first.schema.fields),
            values=sum(first.schema.cardinalities),
            rows={split: first.rows(split) for split in first.splits},
            planted=space.data.planted is not None,
            threads=max(1, torch.get_num_threads() // request.jobs),
            jobs=request.jobs,
        )
        with beside(folder / "frontier.parquet") as temporary:
            curves.table().write_parquet(temporary)
        with beside(folder / "frontier.md") as temporary:
            temporary.write_text(markdown(curves, facts))
        figure = draw_curves(curves, facts.title)
        for ending in PICTURES:
            with beside(folder / f"frontier.{ending}") as temporary:
                figure.savefig(temporary, dpi=200)
    return folder, curves


def _short(points: list[FrontierPoint], space: SearchSpace) -> str:
    """The first metric on test by size, in a line."""
    name = space.data.predicts.metrics[0].name
    return ", ".join(f"{p.size:,} {'gap' if p.test is None else f'{p.test[name]:.4f}'}" for p in points)


def _results(
    tasks: list[ArmSeed], jobs: int, started: Callable[[ArmSeed], None]
) -> Iterator[tuple[ArmSeed, list[FrontierPoint], float]]:
    """Each task with its points and seconds as it is done, in this process or in `jobs` others."""
    if jobs == 1 or len(tasks) < 2:
        for task in tasks:
            started(task)
            yield task, *_measured(task)
        return
    with _workers(jobs) as pool:
        futures = {pool.submit(_measured, task): task for task in tasks}
        try:
            for future in as_completed(futures):
                yield futures[future], *future.result()
        except BrokenProcessPool:
            raise TrialError(
                f"a process that measured ended without a word, as it does when memory runs out: lower {option('jobs')}"
            ) from None


@contextmanager
def _workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that share this one's threads; what they still do is given up where the block is left."""
    pool = ProcessPoolExecutor(
        jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin,
        initargs=(max(1, torch.get_num_threads() // jobs),),
    )
    try:
        yield pool
    except BaseException:
        own = list(pool._processes.values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in own:
            process.terminate()
        raise
    else:
        pool.shutdown()


def _begin(threads: int) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    torch.set_num_threads(threads)


def _measured(task: ArmSeed) -> tuple[list[FrontierPoint], float]:
    start = perf_counter()
    points = measure(
        task.space, task.arm, Dataset.open(task.dataset), task.seed, task.plan, WarmStarts(folder=task.warm)
    )
    return points, perf_counter() - start
