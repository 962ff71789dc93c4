"""`ls` and `watch`: what a folder says of a study that runs, has ended, or was killed."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
from filelock import FileLock
from rich.console import Console

from autoembed.study.overview import look, size_of, studies
from autoembed.study.processes import memory_of
from autoembed.study.show import watching
from autoembed.study.show.watching import sparkline

# As `RunDir.locked` does, without what it takes to import that.
HOLD = """
import json, os, socket, sys
from pathlib import Path
from filelock import FileLock
run = Path(sys.argv[1])
with FileLock(run / ".lock"):
    (run / ".holder.json").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def copied(copied):
    return copied[0]


@pytest.fixture
def holder(copied):
    """A process that holds the folder as one that runs the study does."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, copied.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def begin(run, trial, *points):
    """A trial that has begun and reported."""
    folder = run.trial(trial)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "curves.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))


def unfinish(run):
    (run.path / "leaderboard.json").unlink()


def test_a_finished_study(finished, cli, copied):
    _, board = finished
    found = look(copied)
    assert (found.state, found.total, found.running, found.holder) == ("finished", 4, (), None)
    best = found.best()
    row = next(row for row in board.rows if row.trial == board.winner)
    assert (best.trial, best.value) == (board.winner, row.valid["auc"])
    assert [found.count(state) for state in ("done", "pruned", "failed")] == list(board.trials)
    assert found.bests()[-1] == best.value
    assert found.bests() == sorted(found.bests())
    status, out, _ = cli("watch", copied.path, "--once")
    assert status == 0
    for words in ("finished  4 of 4 trials", f"► {row.arm}", board.winner, f"{best.value:.4f}", "autoembed show"):
        assert words in out
    assert cli("watch", copied.path)[1] == out  # it has ended, so there is nothing to wait for


def test_studies_are_listed_with_what_cannot_be_read(cli, copied, finished, tmp_path):
    runs = copied.path.parent
    (runs / "broken").mkdir()
    (runs / "broken" / "space.yaml").write_text("stages: [")
    (runs / "no study").mkdir()
    assert [run.name for run in studies(runs)] == ["broken", "tiny"]
    rows = {row["study"]: row for row in json.loads(cli("ls", "--runs", runs, "--json")[1])}
    assert rows["tiny"]["state"] == "finished"
    assert rows["tiny"]["best_trial"] == finished[1].winner
    assert rows["tiny"]["bytes"] == size_of(copied.path) > 10_000
    assert rows["broken"]["state"] == "unreadable"
    out = cli("ls", "--runs", runs)[1]
    assert "finished" in out
    assert "broken: " in out
    (tmp_path / "empty").mkdir()
    assert "no studies" in cli("ls", "--runs", tmp_path / "empty")[1]
    assert json.loads(cli("ls", "--runs", tmp_path / "empty", "--json")[1]) == []
    assert cli("ls", "--runs", tmp_path / "none")[0] == 2
    assert cli("watch", tmp_path / "none")[0] == 2


def test_a_running_study_shows_its_trials_and_its_memory(cli, copied, holder):
    unfinish(copied)
    begin(copied, "dnis-3", {"time": 1, "search_epoch": 2, "search_valid_auc": 0.7125})
    found = look(copied)
    assert found.state == "running"
    assert found.holder == (holder.pid, socket.gethostname())
    assert [(one.trial, one.phase, one.epoch, one.value) for one in found.running] == [("dnis-3", "search", 2, 0.7125)]
    assert memory_of(holder.pid).processes == 1
    out = cli("watch", copied.path, "--once")[1]
    for words in ("running", "dnis-3 search 2 0.7125", "memory", "in 1 process"):
        assert words in out


def test_a_study_whose_process_was_killed_is_interrupted(copied, holder):
    unfinish(copied)
    holder.kill()
    holder.wait()
    assert (copied.path / ".holder.json").is_file()  # it had no time to remove it
    assert look(copied).state == "interrupted"
    # Nor does a process that has its number by now hold the folder.
    copied.write_json(".holder.json", {"pid": os.getpid(), "host": socket.gethostname()})
    assert look(copied).state == "interrupted"
    with copied.locked():
        assert look(copied).state == "running"
    copied.write_json(".holder.json", {"pid": 1, "host": "another"})
    with FileLock(copied.path / ".lock"):
        assert look(copied).holder == (1, "another")


def test_a_leaderboard_of_fewer_trials_is_of_a_study_that_was_interrupted(copied):
    copied.mark("dnis-3", "failed", "no luck")
    assert look(copied).state == "interrupted"
    unfinish(copied)
    for trial in copied.ended():
        if trial.state == "done":
            shutil.rmtree(copied.trial(trial.id))
    assert look(copied).state == "failed"
    shutil.rmtree(copied.path / "trials")
    assert look(copied).state == "interrupted"
    assert look(copied).best() is None


def test_the_time_left_goes_by_the_trials_of_this_start(copied, holder):
    unfinish(copied)
    began = look(copied).began
    for ended in copied.ended():  # these are of an earlier start
        for mark in ("DONE", "PRUNED", "error.txt"):
            if (copied.trial(ended.id) / mark).is_file():
                os.utime(copied.trial(ended.id) / mark, (began - 100, began - 100))
    text = (copied.path / "space.yaml").read_text()
    (copied.path / "space.yaml").write_text(text.replace("trials: 2", "trials: 4"))
    found = look(copied)
    assert found.total == 8
    assert found.left(began + 10) is None
    copied.mark("dnis-3", "failed", "no luck")
    assert look(copied).left(began + 10) == pytest.approx(10 * 3, abs=1)
    (copied.path / "space.yaml").write_text(text.replace("trials: 2", "trials: 4\n  minutes: 5"))
    copied.write_json("minutes.json", {"spent": 1.0, "until": began + 15})
    assert look(copied).left(began + 10) == pytest.approx(5, abs=1)


@pytest.mark.parametrize("terminal", [False, True])
def test_watching_ends_with_the_study(copied, holder, terminal):
    board = (copied.path / "leaderboard.json").read_text()
    unfinish(copied)
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            (copied.path / "leaderboard.json").write_text(board)
            holder.kill()
            holder.wait()

    console = Console(record=True, width=120, force_terminal=terminal)
    watching.watch(copied, console, 0.5, sleep)
    text = console.export_text()
    assert looks == [0.5, 0.5]
    assert "finished" in text
    if not terminal:
        assert text.count("running  4 of 4") == 1  # again only when a trial has ended


def test_sparklines():
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([0.7, 0.6, 0.5], sign=-1) == "▁▅█"
    assert sparkline([0.5]) == "▁"
    assert len(sparkline(range(1000))) == 60
    assert sparkline(range(1000))[-1] == "█"


def test_memory_is_of_a_process_and_those_below_it():
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "1\n"
    assert memory_of(process.pid).processes == 2
    assert 1e6 < memory_of(process.pid).bytes < 1e9
    process.communicate("\n")
    assert memory_of(process.pid) is None
