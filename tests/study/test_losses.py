"""What a study does when its Ray or a worker is lost: once more, and then the end."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from autoembed.cli.study import _again
from autoembed.errors import StudyError
from autoembed.study.engine import guard, tune
from autoembed.study.engine.guard import RayLostError, guarded
from autoembed.study.engine.recorder import Recorder
from autoembed.study.engine.run import Request, run_study
from autoembed.study.engine.signals import ended_by_sigterm
from autoembed.study.run_dir import RunDir


@pytest.fixture
def rounds(monkeypatch):
    """Replaces Ray by a list: what happens in each round of trials, an error or a number of trials that end."""
    script = []

    def run_trials(folder, space, dataset, left, watchers, clock):
        event = script.pop(0)
        if isinstance(event, Exception):
            raise event
        for number in range(event):
            folder.mark(f"dnis-{number + 1 + len(folder.ended())}", "failed", "for this test")

    monkeypatch.setattr(tune, "cluster", lambda resources: contextlib.nullcontext())
    monkeypatch.setattr(tune, "run_trials", run_trials)
    return script


@pytest.mark.parametrize(
    ("events", "line"),
    [
        ([2], "all 2 trials failed"),
        ([1, 1], "all 2 trials failed"),  # one had no process in the first round
        ([1, 0], "all 1 trials failed"),  # nothing ends any more: no endless loop
        ([0], "no trial of .* has ended: go on with"),
        ([RayLostError("Ray's GCS has ended")], "Ray's GCS has ended"),
    ],
)
def test_trials_that_had_no_process_are_run(write_space, tmp_path, rounds, events, line):
    rounds.extend(events)
    with pytest.raises(StudyError, match=line):
        run_study(Request(space=write_space(baselines=[], tracking="none"), runs=tmp_path / "runs"))
    assert not rounds


def test_a_trial_that_never_began_is_not_marked(tmp_path):
    folder = RunDir(tmp_path)
    recorder = Recorder(folder, [], {})
    trial = SimpleNamespace(config={"trial": "dnis-1", "arm": "dnis"})
    recorder.on_trial_error(0, [], trial)
    assert (folder.state("dnis-1"), recorder.unbegun) == (None, 1)
    folder.trial("dnis-1").mkdir(parents=True)
    (folder.trial("dnis-1") / "config.json").touch()
    recorder.on_trial_error(0, [], trial)
    assert (folder.state("dnis-1"), recorder.unbegun) == ("failed", 1)


@pytest.fixture
def part(monkeypatch):
    """A process that stands for a part of Ray."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        monkeypatch.setattr(guard, "_processes", lambda: {"raylet": process.pid})
        yield process
        process.stdin.close()


def no_words():
    raise AssertionError("the process goes on")


def die(process):
    process.kill()
    time.sleep(60)


def test_the_death_of_a_part_of_ray_ends_the_block_at_once(part):
    before, began = signal.getsignal(signal.SIGTERM), time.monotonic()
    with pytest.raises(RayLostError, match="Ray's raylet has ended"), ended_by_sigterm(), guarded(None, no_words):
        die(part)
    assert time.monotonic() - began < 20
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_block_that_ends_by_itself_is_left_alone(part):
    with ended_by_sigterm(), guarded(None, no_words):
        pass
    part.kill()
    with pytest.raises(SystemExit) as ended, ended_by_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143


def test_another_signal_is_no_death(part):
    with pytest.raises(KeyboardInterrupt), ended_by_sigterm(), guarded(None, no_words):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="own"), ended_by_sigterm(), guarded(None, no_words):
        raise ValueError("own")
    assert not [name for name in os.listdir("/proc/self/task") if name == "guard"]


class GoneError(Exception):
    """Stands for the end of the process."""


def gone(*words):
    raise GoneError(*words)


def test_the_first_loss_replaces_the_process_and_the_second_ends_it(monkeypatch, capfd):
    monkeypatch.setattr(os, "execv", gone)
    monkeypatch.setattr(os, "_exit", gone)
    monkeypatch.setattr(guard.worker, "_global_node", None)
    monkeypatch.setenv(guard.AGAIN, "")
    with pytest.raises(GoneError) as first:
        guard.replace("Ray's GCS has ended", ("python", "--resume"))
    assert first.value.args == ("python", ["python", "--resume"])
    assert capfd.readouterr().err == "warning: Ray's GCS has ended: Ray is started once more\n"
    with pytest.raises(GoneError) as second:
        guard.replace("Ray's GCS has ended", ("python", "--resume"))
    assert second.value.args == (2,)
    assert capfd.readouterr().err == "error: Ray's GCS has ended, for the second time: go on with --resume\n"


def test_a_command_goes_on_without_force(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["autoembed", "search", "a.yaml", "--force", "--cpus", "2"])
    assert _again()[-5:] == ("search", "a.yaml", "--cpus", "2", "--resume")
