"""Runs a study: from its search space to the leaderboard and the best bundle."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from autoembed import __version__
from autoembed.data.crosses import products_of
from autoembed.data.dataset import Dataset, build_dataset, data_changed
from autoembed.data.frames import is_frame, to_lazy
from autoembed.data.vocabulary import ENCODING
from autoembed.errors import StudyError, first_line, option
from autoembed.pruning import FILE, kept_fields
from autoembed.ranking.ranking import rank
from autoembed.space import SearchSpace, load_mapping
from autoembed.study.engine import clock
from autoembed.study.engine.commit import commit_of
from autoembed.study.results import leaderboard, pareto
from autoembed.study.results.bundles import export
from autoembed.study.results.leaderboard import Leaderboard
from autoembed.study.results.retrain import due, retrain_arms
from autoembed.study.run_dir import RunDir, no_space, require_path, write_text
from autoembed.study.show.page import write_page
from autoembed.study.show.progress import Display, Log
from autoembed.study.show.study_page.facts import versions
from autoembed.study.show.study_page.write import write_report
from autoembed.study.trackers.base import Status, Tracker, find
from autoembed.task import metric_of
from autoembed.writing import beside

# What may differ on --resume: how much is run and where, but not what a trial is.
FREE: Mapping[str, set[str] | bool] = {
    "budget": {"trials", "minutes", "concurrent", "cpus_per_trial", "gpus_per_trial"},
    "device": True,
    "final": True,
    "tracking": True,
}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for: a search space or its file, and the data, which may be a frame.

    `again` is the command that goes on with the study, which takes this process's place if the study's own Ray dies.
    """

    space: Path | SearchSpace
    data: object = None
    runs: Path = Path("runs")
    name: str | None = None
    resume: bool = False
    trials: int | None = None
    minutes: float | None = None
    device: str | None = None
    cpus: int | None = None
    address: str | None = None
    dashboard: bool = False
    force: bool = False
    again: tuple[str, ...] | None = None

    @property
    def run(self) -> RunDir:
        """The study's folder; StudyError if its name is none."""
        name = self.name or (self.space.stem if isinstance(self.space, Path) else "study")
        if Path(name).name != name or name.startswith("."):
            raise StudyError(f"{option('name')} must be a plain folder name, but got {name!r}")
        require_path(self.runs)
        return RunDir(self.runs / name)


def run_study(request: Request, shown: Display | None = None) -> tuple[RunDir, Leaderboard]:
    """Runs a study, or what is left of it, tells `shown` how far it is, and returns its folder and leaderboard.

    StudyError if the folder exists without `resume`, if data or space changed since, or if every trial failed.
    """
    space = _space(request)
    run = request.run
    if request.resume and not run.space.exists():
        raise StudyError(
            f"{run.path} holds no study to go on with: leave out {option('resume', True)}, or check name and folder"
        )
    if request.dashboard and request.address:
        raise StudyError(f"{option('dashboard', True)} is of a study's own Ray: leave out {option('address')}")
    if request.force and request.resume:
        raise StudyError(f"{option('force', True)} begins again and {option('resume', True)} goes on: give one of them")
    if not (request.resume or request.force) and run.begun():
        raise StudyError(
            f"{run.path} holds a study already: go on with it by {option('resume', True)}, replace it by "
            f"{option('force', True)}, or choose another name"
        )
    kind = find(space.tracking)  # a module that is not there is told before anything is written
    with _room(run), run.locked(), shown or Log() as bar:
        if request.resume:
            _check_same(run, space)
        else:
            run.clear()  # what a start that failed, or a study that is to be replaced, has left
        write_text(run.space, _space_text(request))
        place = request.space.absolute().parent if isinstance(request.space, Path) else Path.cwd()
        made = {"id": run.identity, "autoembed": __version__, "commit": commit_of(place), "versions": versions()}
        run.write_json("study.json", made)
        dataset = prepare(run, space, _kept(run, request.data), bar)
        board = _complete(run, space)
        if board is None:
            run.sweep()
            board = _run(run, space, dataset, request, bar, kind(run, space, bar.warn))
        elif not kind.is_whole(run):
            tracker = kind(run, space, bar.warn)
            tracker.begin()
            tracker.result(board)
            tracker.finish("FINISHED")
    return run, board


@contextmanager
def _room(run: RunDir) -> Iterator[None]:
    """Turns whatever a full disk led to into one line that says what to do."""
    try:
        yield
    except Exception as error:
        if no_space(error):
            raise StudyError(
                f"no space is left on the disk of {run.path}: free some and go on with {option('resume', True)}; "
                "what has ended is kept"
            ) from None
        raise


def _left(run: RunDir, space: SearchSpace) -> dict[str, int]:
    """Trials to run per arm: the budget's, or one where nothing varies, less those that have ended in any way.

    None where the budget of time is spent.
    """
    return dict.fromkeys(space.arms(), 0) if clock.is_over(run, space) else _missing(run, space)


def _missing(run: RunDir, space: SearchSpace) -> dict[str, int]:
    ended = Counter(trial.arm for trial in run.ended())
    return {arm: max(0, space.trials(arm) - ended[arm]) for arm in space.arms()}


def _complete(run: RunDir, space: SearchSpace) -> Leaderboard | None:
    """The leaderboard of a study of which nothing is left to run or to write; else None."""
    board = Leaderboard.read(run, rebuilt=True)
    ended = {trial.id for trial in run.ended()}
    if any(_left(run, space).values()) or board is None or sum(board.trials) != len(ended):
        return None
    if not (run.best / "manifest.json").is_file() or due(run, space, board):
        return None
    return board


def _run(
    run: RunDir, space: SearchSpace, dataset: Dataset, request: Request, bar: Display, tracker: Tracker
) -> Leaderboard:
    """Trials, leaderboard and best bundle; the tracker is told of the end, whatever it is."""
    status: Status = "FAILED"
    try:
        tracker.begin()
        _run_trials(run, space, dataset, request, bar, tracker)
        bar.step("final", 0, 3)
        note = clock.note(run, space, sum(_missing(run, space).values()))
        if note:
            bar.tell(note)
        board = leaderboard.build(run, space, dataset, note)
        if space.objective.cost:
            pareto.write(run, space)
        bar.step("final", 1, 3)
        export(run, space, dataset, board.winner, run.best)
        if space.final and due(run, space, board):
            retrain_arms(run, space, dataset, space.final.seeds, None, bar)
        _report(run, space, bar)
        tracker.result(board)
        bar.step("final", 2, 3)
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
    bar.step("final", 3, 3)
    return board


def _report(run: RunDir, space: SearchSpace, bar: Display) -> None:
    """Writes the study's page; a study that has found its answer does not fail for want of it."""
    try:
        write_report(run, space)
    except Exception as error:
        if no_space(error):
            raise
        bar.warn(f"report.html could not be written ({first_line(error)}): `autoembed report {run.path}` tries again")


def _kept(run: RunDir, data: object) -> str | None:
    """The place of the data; a frame is written to the run folder, where retraining finds it again."""
    if not is_frame(data):
        return None if data is None else str(data)
    with beside(run.frame) as temporary:
        to_lazy(data).sink_parquet(temporary)
    return str(run.frame)


def _space(request: Request) -> SearchSpace:
    space = SearchSpace.read(request.space) if isinstance(request.space, Path) else request.space.checked()
    if request.trials is not None and request.trials < 1:
        raise StudyError(f"{option('trials')} must be at least 1, but got {request.trials}")
    if request.minutes is not None and not request.minutes > 0:
        raise StudyError(f"{option('minutes')} must be above 0, but got {request.minutes:g}")
    if budget := _budget(request):
        space = space.model_copy(update={"budget": space.budget.model_copy(update=budget)})
    if request.device is not None:
        space = space.model_copy(update={"device": request.device})
    return space


def _budget(request: Request) -> dict[str, float]:
    """The keys of the budget that the request overrides."""
    given = {"trials": request.trials, "minutes": request.minutes}
    return {name: value for name, value in given.items() if value is not None}


def _space_text(request: Request) -> str:
    """The search-space file as it was run: verbatim, unless options or arguments override it."""
    text = request.space.read_text() if isinstance(request.space, Path) else request.space.text()
    over = _budget(request)
    if not over and request.device is None:
        return text
    node = load_mapping(text)
    if over:
        budget = node.get("budget", {})
        assert isinstance(budget, dict)
        node["budget"] = {**budget, **over}
    if request.device is not None:
        node["device"] = request.device
    given = "options of the command line" if option("trials").startswith("--") else "arguments"
    return f"# As run, with {given}.\n{yaml.safe_dump(node, sort_keys=False)}"


def _check_same(run: RunDir, space: SearchSpace) -> None:
    before, now = (s.model_dump(exclude=FREE) for s in (SearchSpace.read(run.space), space))
    for key in now:
        if before[key] != now[key]:
            raise StudyError(
                f"{run.path} was begun with another search space ({key} differs): restore it, or choose another name"
            )


def prepare(run: RunDir, space: SearchSpace, data: str | None, bar: Display | None = None) -> Dataset:
    """The study's dataset: encoded, ranked and cut down to the columns that the ranking keeps.

    A folder that has a dataset.json is held to it: StudyError if the data have changed.
    """
    facts = run.read_json("dataset.json")
    if data is None and run.frame.is_file():
        data = str(run.frame)
    elif facts and data is None and facts["data"]:
        data = facts["data"]
    cache = run.path.parent / ".cache"
    spec = space.data
    if data == str(run.frame):
        spec = spec.model_copy(update={"format": "parquet", "files": None})
    dataset = build_dataset(spec, data, cache, bar.step if bar else None)
    if bar:
        for note in dataset.notes:
            bar.tell(note)
    if facts is None:
        if bar:
            bar.step("rank", 0, 1)
        ranking = rank(dataset)
        kept = kept_fields(space, ranking, dataset, run.path / FILE, bar.step if bar else None)
        pairs = []
        if space.features.pairs is not None:
            # Pairs are of kept columns: those of a pruned one could not be built.
            ranked = rank(dataset.keep(kept, cache), pairs=space.features.pairs.top).pairs
            assert ranked is not None
            ranking, pairs = replace(ranking, pairs=ranked), [list(pair) for pair in ranked.select("a", "b").rows()]
        if bar:
            for note in ranking.notes:
                bar.tell(note)
        ranking.write(run.path / "ranking.parquet")
        write_page(run.path / "ranking.html", ranking, f"{run.name}: columns by adjusted mutual information")
        run.write_json("dataset.json", _facts(space, dataset, data, kept, pairs))
        if bar:
            bar.step("rank", 1, 1)
    else:
        if facts["fingerprint"] != dataset.fingerprint:
            reason = data_changed(run.path, dataset, facts["fingerprint"], facts.get("encoding"))
            raise StudyError(f"{reason}: restore them or that version, or choose another name")
        kept, pairs = facts["fields"], facts["pairs"]
    dataset = dataset.keep(kept, cache)
    if space.features.pairs is None:
        return dataset
    products = products_of(dataset.schema, space.features.pairs.lists)
    named = [(a, b) for a, b in pairs]
    return dataset.cross(named, space.features.pairs, cache, candidates=True, products=products)


def _facts(
    space: SearchSpace, dataset: Dataset, data: str | None, kept: list[str], pairs: list[list[str]]
) -> dict[str, object]:
    return {
        "name": space.data.name(data),
        "fingerprint": dataset.fingerprint,
        "encoding": ENCODING,
        "data": _absolute(data),
        "source": str(data or space.data.path or "planted"),
        "rows": {split: dataset.rows(split) for split in dataset.splits},
        "fields": kept,
        "pairs": pairs,
        "schema": dataset.schema.model_dump(mode="json"),
    }


def _run_trials(
    run: RunDir, space: SearchSpace, dataset: Dataset, request: Request, bar: Display, tracker: Tracker
) -> None:
    """Runs what the budget still asks for; StudyError if no trial at all ended well."""
    from autoembed.study.engine import tune
    from autoembed.study.engine.recorder import Told

    resources = tune.Resources(
        address=request.address, cpus=request.cpus, dashboard=request.dashboard, again=request.again
    )
    metric = metric_of(space.objective.metric)
    time = clock.Clock(run, space)
    while True:
        before, todo = len(run.ended()), _left(run, space)
        done = metric.best(trial.result.valid[metric.name] for trial in run.trials())
        bar.trials(before, before + sum(todo.values()), metric, best=done)
        if not any(todo.values()):
            break
        with tune.cluster(resources) as dashboard:
            if dashboard:
                bar.tell(f"Ray's dashboard: {dashboard}")
            tune.run_trials(run, space, dataset, todo, [bar, Told(tracker), time], time)
        time.stop()
        if len(run.ended()) == before:  # what is left had no process; if that goes on, it helps nobody
            break
    shutil.rmtree(run.warm, ignore_errors=True)
    ended = run.ended()
    if not any(trial.state == "done" for trial in ended):
        failed, stopped = ([trial for trial in ended if trial.state == state] for state in ("failed", "pruned"))
        if not ended and clock.is_over(run, space):
            raise StudyError(
                f"no trial of {run.path} has ended within {space.budget.minutes:g} minutes: go on with "
                f"{option('resume', True)} and more {option('minutes')}"
            )
        if not ended:
            raise StudyError(f"no trial of {run.path} has ended: go on with {option('resume', True)}")
        if not stopped:
            raise StudyError(f"all {len(ended)} trials failed; the first, {failed[0].id}: {failed[0].reason}")
        raise StudyError(
            f"none of {len(ended)} trials ended well, {len(stopped)} were stopped; the first, {stopped[0].id}: "
            f"{stopped[0].reason}: try other ranges, more valid rows, or scheduler: {{search: false}}"
        )


def _absolute(data: str | None) -> str | None:
    return data if data is None or data.startswith("package:") else str(Path(data).absolute())
