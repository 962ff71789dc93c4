"""A disk that fills up, or a folder that may not be written to, at each write of each command."""

import errno
import json
import os
import shutil
from pathlib import Path

import matplotlib.figure
import polars as pl
import pytest

from autoembed import bundle as bundle_module
from autoembed.bundle import load_bundle
from autoembed.study import run_dir as run_dir_module
from autoembed.study.results.leaderboard import Leaderboard
from autoembed.study.run_dir import RunDir

FAULTS = (errno.ENOSPC, errno.EACCES)
ENDINGS = ("parquet", "md", "svg", "png")
# What commands write with, and which of its arguments is the place; of the first ones it is what takes its name.
MOVES = ((os, "replace", 1), (os, "rename", 1))
WRITES = (
    (Path, "write_text", 0),
    (pl.DataFrame, "write_parquet", 1),
    (pl.DataFrame, "write_csv", 1),
    (matplotlib.figure.Figure, "savefig", 1),
    (bundle_module, "save_file", 1),
    (run_dir_module, "save_file", 1),
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
        (["predict", "{best}", "{rows}", "--out"], "scores.parquet", 2),
        (["predict", "{best}", "{rows}", "--out"], "scores.csv", 2),
        (["export", "{run}"], "bundle", 6),
        (["export", "{run}", "--trial", "uniform-1"], "bundle", 6),
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
def study(finished, disk, monkeypatch):
    """A copy of a finished study, with the words that go on with it."""
    run, _ = finished
    own = disk.place / "runs"
    shutil.copytree(run.path, own / "tiny")
    (own / ".cache").symlink_to(run.path.parent / ".cache")
    shutil.copy(run.path.parent / "mlflow.db", disk.place.parent)  # to make one takes seconds
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
        if given[0] == 0:  # of MLflow's mirror, without which a study goes on
            assert given[2].count("warning: MLflow at ") == given[2].count("\n") == 1
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
