"""A disk that fills up, a folder that may not be written to, or SIGKILL, at each write of each command and worker."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import matplotlib.figure
import polars as pl
import pytest

from autoembed import bundle as bundle_module
from autoembed.bundle import load_bundle
from autoembed.methods import warm as warm_module
from autoembed.space import SearchSpace
from autoembed.study import run_dir as run_dir_module
from autoembed.study.engine import worker
from autoembed.study.engine.run import prepare
from autoembed.study.results.leaderboard import Leaderboard
from autoembed.study.run_dir import RunDir

FAULTS = (errno.ENOSPC, errno.EACCES)
ENDINGS = ("parquet", "md", "svg", "png")
# What commands write with, and which of its arguments is the place; of the first ones it is what takes its name.
MOVES = ((os, "replace", 1), (os, "rename", 1), (bundle_module, "exchange", 1))
WRITES = (
    (Path, "write_text", 0),
    (pl.DataFrame, "write_parquet", 1),
    (pl.DataFrame, "write_csv", 1),
    (matplotlib.figure.Figure, "savefig", 1),
    (bundle_module, "save_file", 1),
    (run_dir_module, "save_file", 1),
    (warm_module, "save_file", 1),
    (RunDir, "add_point", None),
    (os, "fsync", None),
    (shutil, "copyfile", 1),
)


class Disk:
    """Counts what is written below a folder, and fails the write of a number, half of which is there then."""

    def __init__(self, monkeypatch, place):
        self.place, self.count, self.fails, self.number = place, 0, -1, 0
        for owner, name, argument in (*MOVES, *WRITES):
            monkeypatch.setattr(owner, name, self._watched(getattr(owner, name), argument, (owner, name, argument)))

    def _watched(self, function, argument, known):
        def write(*words, **named):
            target = None if argument is None else words[argument] if len(words) > argument else None
            if argument is not None and not self._concerns(target):
                return function(*words, **named)
            self.count += 1
            if self.count == self.fails:
                if known in WRITES and target is not None:
                    Path(target).write_bytes(b"half")
                raise OSError(self.number, os.strerror(self.number), None if target is None else str(target))
            return function(*words, **named)

        return write

    def _concerns(self, target):
        return isinstance(target, (str, os.PathLike)) and self.place in Path(target).parents

    def failing(self, command, first=0, stride=1):
        """Runs a command with one of its writes failing, then with the next, until it is through: what it gave.

        Each write in turn fails, or one in `stride`; a full disk and a forbidden folder alternate, from `first` on.
        """
        self.fails = 1 - stride
        while True:
            self.fails, self.count = self.fails + stride, 0
            self.number = FAULTS[(first + self.fails // stride) % 2]
            given = command()
            if self.count < self.fails:
                self.fails = -1
                assert given[0] == 0, given
                return
            yield given


@pytest.fixture
def disk(monkeypatch, tmp_path):
    (tmp_path / "out").mkdir()
    return Disk(monkeypatch, tmp_path / "out")


def contents(place):
    return {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def check_line(number, given):
    status, _, err = given
    assert status == 2, err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert err.splitlines()[-1] == line
    assert os.strerror(number) in line or "no space is left on the disk" in line


@pytest.fixture
def places(finished, tmp_path):
    """What commands read."""
    rows = load_bundle(finished[0].best).example()
    rows.write_parquet(tmp_path / "rows.parquet")
    frame = pl.DataFrame({"y": [0, 1] * 50, "a": [row % 7 for row in range(100)], "b": [row % 5 for row in range(100)]})
    frame.write_parquet(tmp_path / "t.parquet")
    run, _ = finished
    return {"table": tmp_path / "t.parquet", "rows": tmp_path / "rows.parquet", "best": run.best, "run": run.path}


@pytest.mark.parametrize(
    ("words", "name", "writes"),
    [
        (["rank", "{table}", "--label", "y", "--pairs", "1", "--out"], "ranking.parquet", 6),
        (["rank", "{table}", "--label", "y", "--html"], "ranking.html", 2),
        (["rank", "{table}", "--label", "y", "--cross", "1", "--space"], "crossed.yaml", 2),
        (["rank", "--model", "{run}", "--out"], "fields.parquet", 2),
        (["predict", "{best}", "{rows}", "--out"], "scores.parquet", 2),
        (["predict", "{best}", "{rows}", "--out"], "scores.csv", 2),
        (["export", "{run}"], "bundle", 8),
        (["export", "{run}", "--trial", "uniform-1"], "bundle", 8),
    ],
)
def test_a_write_that_fails_leaves_what_was_there(places, cli, disk, words, name, writes):
    """Where there was nothing, there is nothing half; where there was something, it is as it was or whole."""
    command = [*(word.format(**places) for word in words), disk.place / name]
    parts, failed = [], 0
    for given in disk.failing(lambda: cli(*command)):
        check_line(disk.number, given)
        parts.append(contents(disk.place))
        failed += 1
        shutil.rmtree(disk.place)
        disk.place.mkdir()
    assert failed == writes
    whole = contents(disk.place)
    assert all(path.suffix != "" and part[path] == whole[path] for part in parts for path in part)
    assert name == "ranking.parquet" or not any(parts)
    for place in disk.place.rglob("*.*"):
        place.write_bytes(b"earlier") if name != "bundle" else None
    before = contents(disk.place)
    for given in disk.failing(lambda: cli(*command), first=1):
        check_line(disk.number, given)
        now = contents(disk.place)
        assert now.keys() == before.keys()
        assert all(now[path] in (before[path], whole[path]) for path in now)
        assert name == "ranking.parquet" or now == before


@pytest.fixture
def study(finished, disk, monkeypatch, copy_store):
    """A copy of a finished study, with the words that go on with it."""
    run, _ = finished
    own = disk.place / "runs"
    shutil.copytree(run.path, own / "tiny")
    (own / ".cache").symlink_to(run.path.parent / ".cache")
    copy_store(run, disk.place.parent)  # to make one takes seconds
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{disk.place.parent}/mlflow.db")
    return RunDir(own / "tiny"), ("search", run.path.parents[1] / "tiny.yaml", "--runs", own, "--resume")


def without_what_follows(run):
    """Takes away all that follows from a study's trials."""
    shutil.rmtree(run.best, ignore_errors=True)
    for path in run.path.iterdir():
        if path.is_file() and path.name not in ("study.json", "space.yaml", "optuna.db", ".lock"):
            path.unlink()


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_study_whose_files_cannot_be_written_ends_in_one_line_and_goes_on(finished, study, cli, disk, stride):
    run, words = study
    before, failed = contents(run.path / "trials"), 0

    def anew():
        without_what_follows(run)
        return cli(*words)

    for given in disk.failing(anew, stride=stride):
        if given[0] == 0:  # of MLflow's mirror or of the page, without which a study goes on
            told = [given[2].count(start) for start in ("warning: MLflow at ", "warning: report.html could not be ")]
            assert sum(told) == given[2].count("\n") == 1
        else:
            check_line(disk.number, given)
        assert contents(run.path / "trials") == before
        assert {path.name for path in run.path.glob(".*")} == {".lock"}
        for path in run.path.glob("*.json"):
            json.loads(path.read_text())
        assert not run.best.exists() or load_bundle(run.best)
        failed += 1
    assert failed > 20 / stride
    assert Leaderboard.read(run) == finished[1]


def test_seeds_that_cannot_be_written_are_trained_when_they_can(study, cli, disk):
    run, _ = study
    words = ("retrain", run.path, "--trial", "all", "--seeds", "2")
    arms, failed = run.path / "arms.json", 0
    arms.write_text("{}")
    (run.path / "mlflow.json").unlink()  # changes
    before = contents(run.path)
    for given in disk.failing(lambda: cli(*words)):
        if given[0] == 0:
            assert "warning: " in given[2]
            continue
        check_line(disk.number, given)
        assert arms.read_text() == "{}" or "leader" in json.loads(arms.read_text())
        now = contents(run.path) | {Path("arms.json"): b"{}"}
        assert {path: now[path] for path in before} == before
        assert {path.name for path in now.keys() - before.keys()} <= {"arms.partial.json", "mlflow.json", ".lock"}
        failed += 1
    assert failed > 2
    assert set(json.loads(arms.read_text())["arms"]) == {"dnis", "uniform"}
    assert not (run.path / "arms.partial.json").exists()


def test_a_frontier_that_cannot_be_written_goes_on_when_it_can(write_space, cli, disk):
    space = write_space(budget={"trials": 1, "width": 2})
    words = ("frontier", space, "--bytes", "3000", "--seeds", "1", "--runs", disk.place.parent / "runs")
    whole, failed = {}, 0
    for given in disk.failing(lambda: cli(*words, "--out", disk.place / "f")):
        check_line(disk.number, given)
        now = contents(disk.place / "f")
        assert all(now[path] == content for path, content in whole.items())
        names = {path.name for path in now if path.parts[0] != "warm"}
        assert names <= {".lock", "frontier.jsonl", *(f"frontier.{end}" for end in ENDINGS)}
        whole = {path: content for path, content in now.items() if path.suffix == ".parquet"}
        failed += 1
    assert failed > 6
    assert {path.name for path in contents(disk.place / "f")} >= {f"frontier.{end}" for end in ENDINGS}


@pytest.fixture
def trial(finished, disk, monkeypatch):
    """Runs one trial as a worker does, in a copy of a study; what it told Tune at its end."""
    run = RunDir(shutil.copytree(finished[0].path, disk.place / "tiny"))
    space = SearchSpace.read(run.space)
    dataset = prepare(finished[0], space, None).path
    told = []
    monkeypatch.setattr(worker.tune, "report", told.append)

    def work():
        shutil.rmtree(run.warm, ignore_errors=True)
        shutil.rmtree(run.trial("dnis-3"), ignore_errors=True)
        told.clear()
        worker.work(
            {"trial": "dnis-3", "arm": "dnis", "values": {"train.lr": 0.003}},
            run=run.path,
            space=space,
            dataset=dataset,
        )
        return (0 if told[-1].get(worker.FINISHED) else 2), told[-1], ""

    return run, work


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_trial_that_cannot_be_written_fails_or_waits_for_room(trial, disk, stride):
    """Forbidden: it failed, with the reason. No room: it is taken away and told, so that it is run again."""
    run, work = trial
    before, failed = contents(run.path / "trials"), 0
    for _, end, _ in disk.failing(work, stride=stride):
        now = contents(run.path / "trials")
        assert {path: now[path] for path in before} == before
        if disk.number == errno.ENOSPC:
            assert end == {worker.NO_SPACE: True}
            assert now == before
        else:
            assert end == {worker.FAILED: True}
            assert "Permission denied" in (run.trial("dnis-3") / "error.txt").read_text()
        assert not [path for path in contents(run.warm) if path.suffix not in (".lock", ".safetensors")]
        failed += 1
    assert failed > 12 / stride
    assert run.read_trial("dnis-3").result.valid.auc > 0.5


# Commands as forks of a process that has imported what they need; each is killed at a write below a folder.
KILLED = """
import gc, json, os, shutil, signal, sys
from pathlib import Path

import matplotlib.figure
import polars as pl
import autoembed.cli, autoembed.bundle, autoembed.estimator, autoembed.study.show.report, autoembed.study.study

WRITES = ((os, "replace", 1), (os, "rename", 1), (Path, "write_text", 0), (pl.DataFrame, "write_parquet", 1),
          (pl.DataFrame, "write_csv", 1), (matplotlib.figure.Figure, "savefig", 1), (autoembed.bundle, "save_file", 1),
          (shutil, "copyfile", 1))

def kill_at(place, number):
    count = [0]
    def watched(function, argument, moves):
        def write(*words, **named):
            target = words[argument] if len(words) > argument else None
            if isinstance(target, (str, os.PathLike)) and Path(place) in Path(target).parents:
                count[0] += 1
                if count[0] == abs(number):
                    if number < 0:  # after the write, else before or in the midst of it
                        function(*words, **named)
                    elif not moves:
                        Path(target).write_bytes(b"half") if function is not wrote else wrote(words[0], "half")
                    os.kill(os.getpid(), signal.SIGKILL)
            return function(*words, **named)
        return write
    wrote = Path.write_text
    for owner, name, argument in WRITES:
        setattr(owner, name, watched(getattr(owner, name), argument, owner is os))

gc.freeze()
for line in sys.stdin:
    words, place, number, out = json.loads(line)
    pid = os.fork()
    if pid == 0:
        file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(file, stream)
        kill_at(place, number)
        sys.argv = ["autoembed", *words]
        autoembed.cli.main()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def killer():
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def killed(killer, tmp_path):
    """Runs a command that is killed at its first write, then at its second, and so on, and after each; yields until
    the command is through."""

    def kills(command, place):
        out = tmp_path / "out.txt"
        for number in range(1, 100):
            for sign in (1, -1):
                line = json.dumps([[str(word) for word in command], str(place), sign * number, str(out)])
                killer.stdin.write(f"{line}\n")
                killer.stdin.flush()
                status = int(killer.stdout.readline())
                if status != -signal.SIGKILL:
                    assert status == 0, out.read_text()
                    return
                yield

    return kills


def seen(place):
    """The contents of what is there under a name of its own, without what a killed process has left beside it."""
    return {
        path: content for path, content in contents(place).items() if not any(p.startswith(".") for p in path.parts)
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["rank", "{table}", "--label", "y", "--pairs", "1", "--out"], "ranking.parquet"),
        (["rank", "{table}", "--label", "y", "--html"], "ranking.html"),
        (["rank", "{table}", "--label", "y", "--cross", "1", "--space"], "crossed.yaml"),
        (["rank", "--model", "{run}", "--out"], "fields.parquet"),
        (["predict", "{best}", "{rows}", "--out"], "scores.parquet"),
        (["predict", "{best}", "{rows}", "--out"], "scores.csv"),
        (["export", "{run}"], "bundle"),
    ],
)
def test_a_command_that_is_killed_leaves_nothing_half(places, disk, killed, words, name):
    """What has its name is what was there or whole, and a bundle that was there is one at any moment."""
    command = [*(word.format(**places) for word in words), disk.place / name]
    for _ in killed(command, disk.place):
        pass
    whole = seen(disk.place)
    kills = 0
    for _ in killed(command, disk.place):
        assert name == "ranking.parquet" or seen(disk.place).keys() == whole.keys()
        if name == "bundle":
            load_bundle(disk.place / name)
        kills += 1
    assert kills
    assert seen(disk.place).keys() == whole.keys()
    assert not [path for path in contents(disk.place) if any(part.startswith(".autoembed-") for part in path.parts)]
