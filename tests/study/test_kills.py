"""Studies that are killed: the driver at many moments of its life, a trial's worker, the raylet, the fork server."""

import contextlib
import hashlib
import json
import random
import subprocess
import sys
import time
from collections import Counter

import optuna
import psutil
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from autoembed.bundle import load_bundle
from autoembed.study.results.leaderboard import Leaderboard
from autoembed.study.run_dir import RunDir

KILLS, SECONDS = 20, 200  # the driver is killed so often, or less often on a machine where that takes longer
ENDS = 10  # and so often when all trials have ended
TRIALS = 12  # of each arm
# Drivers are forks of a process that has imported all that they need: a start is most of a small study's life.
DRIVERS = """
import gc, json, os, signal, sys
import autoembed.cli, autoembed.study.show.report, autoembed.study.study
import autoembed.study.engine.tune, autoembed.study.trackers.mlflow.tracker

gc.freeze()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    words, out = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(file, stream)
        sys.argv = ["autoembed", *words]
        autoembed.cli.main()
    print(pid, flush=True)
"""

pytestmark = pytest.mark.slow


class Driver:
    """A study's process, and what it prints."""

    def __init__(self, pid, out):
        self.process, self.out = psutil.Process(pid), out

    def alive(self):
        return self.process.is_running()

    def text(self):
        return self.out.read_text()

    def wait(self, seconds=300):
        self.process.wait(seconds)
        return self.text()


@pytest.fixture(scope="module")
def drivers():
    with subprocess.Popen(
        [sys.executable, "-c", DRIVERS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def start(drivers, tmp_path):
    """Starts a driver by the words of its command line; those that still run at the end are killed."""
    made = []

    def begin(*words):
        out = tmp_path / f"out-{len(made)}.txt"
        drivers.stdin.write(json.dumps([[str(word) for word in words], str(out)]) + "\n")
        drivers.stdin.flush()
        made.append(Driver(int(drivers.stdout.readline()), out))
        return made[-1]

    yield begin
    for driver in made:
        if driver.alive():
            driver.process.kill()


def contents(run):
    """The hash of each file of the trials that have ended."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for ended in run.ended()
        for path in run.trial(ended.id).iterdir()
    }


def wait_until(condition, driver, seconds=200):
    """Whether it became true while the driver lived."""
    end = time.monotonic() + seconds
    while driver.alive():
        if condition():
            return True
        assert time.monotonic() < end, driver.text()
        time.sleep(0.02)
    return False


def check_whole(run, arms, trials):
    """No trial is missing, there twice or half, neither in the folder nor in what stands beside it."""
    names = [f"{arm}-{number}" for arm in arms for number in range(1, trials + 1)]
    assert sorted(path.name for path in (run.path / "trials").iterdir()) == sorted(names)
    assert {trial.id for trial in run.trials()} == set(names)
    board = Leaderboard.read(run)
    assert board.trials == (len(names), 0, 0)
    assert {row.arm for row in board.rows} == set(arms)
    assert load_bundle(run.best).manifest.provenance["trial"] == board.winner
    for arm in arms:
        study = optuna.load_study(study_name=arm, storage=run.optuna)
        assert Counter(trial.state for trial in study.trials)[TrialState.COMPLETE] == trials
        assert all(trial.state.is_finished() for trial in study.trials)
    known = run.read_json("mlflow.json")
    found = MlflowClient(known["tracking_uri"]).search_runs([known["experiment"]])
    assert sorted(one.info.run_name for one in found) == sorted([run.name, *names])
    assert {one.info.status for one in found} == {"FINISHED"}


def test_a_driver_that_is_killed_again_and_again_loses_no_trial(write_space, tmp_path, start):
    """Early in its life, when trials are at work, and when all have ended; each time --resume goes on."""
    space, run = write_space(budget={"trials": TRIALS, "width": 2}), RunDir(tmp_path / "runs" / "tiny")
    words = ("search", space, "--runs", tmp_path / "runs", "--cpus", "2", "--lines")
    chance, began, kept, kills = random.Random(0), time.monotonic(), {}, Counter()

    def kill(moment, ended, longest):
        """Kills a driver some time after so many trials have ended; whether it was still alive."""
        nonlocal kept
        driver = start(*words, *(["--resume"] if run.space.exists() else []))
        wait_until(lambda: not ended or len(run.ended()) >= ended, driver)
        time.sleep(chance.uniform(0, longest))
        kept = contents(run)
        if alive := driver.alive():
            driver.process.kill()
            kills[moment] += 1
        driver.wait()
        assert "Traceback" not in driver.text()
        assert {path: digest for path, digest in contents(run).items() if path in kept} == kept
        assert {one.state for one in run.ended()} <= {"done"}
        run.trials()  # each can be read
        return alive

    while kills.total() < KILLS and time.monotonic() < began + SECONDS and len(run.ended()) < 2 * TRIALS - 2:
        if kills.total() % 3 == 0:
            kill("start", 0, 15)
        else:
            kill("trials", len(run.ended()) + 1, 2)
    while kills["end"] < ENDS and kill("end", 2 * TRIALS, 1):
        pass
    text = start(*words, "--resume").wait()
    print(f"{dict(kills)} in {time.monotonic() - began:.0f} s")
    assert "best bundle" in text, text
    assert {path: digest for path, digest in contents(run).items() if path in kept} == kept
    check_whole(run, ("dnis", "uniform"), TRIALS)


def named(driver, family, name):
    """The driver's processes whose name or command has a word."""
    found = []
    for process in family(driver.process.pid):
        with contextlib.suppress(psutil.Error):
            if name in process.name() or name in " ".join(process.cmdline()):
                found.append(process)
    return found


def at_work(run):
    """Whether a trial has reported an epoch and not ended."""
    return any(run.curves(path.name) and not run.state(path.name) for path in (run.path / "trials").glob("*"))


@pytest.mark.parametrize("victims", [["ray::Impl"], ["forkserver.py", "ray::Impl"]])
def test_a_study_outlives_its_worker_and_its_fork_server(write_space, tmp_path, start, family, victims):
    """Killed in the midst of a trial: Tune gives up at once a trial whose worker dies between two."""
    space = write_space(stages=[{"method": "dnis", "warm_epochs": 1, "epochs": 20}], baselines=[])
    run = RunDir(tmp_path / "runs" / "tiny")
    driver = start("search", space, "--runs", tmp_path / "runs", "--cpus", "1", "--lines")
    assert wait_until(lambda: at_work(run), driver), driver.text()
    # The workers are found by the fork server, so before it is killed.
    found = [named(driver, family, victim) for victim in victims]
    assert all(found)
    for processes in found:
        for process in processes:
            process.kill()
    text = driver.wait()
    assert "Traceback" not in text
    assert "best bundle" in text, text
    check_whole(run, ("dnis",), 2)


def kill_part(driver, family, name):
    """Kills a process of the driver's Ray."""
    found = [one for one in named(driver, family, name) if one.name() == name]
    (process,) = [one for one in found if one.status() != psutil.STATUS_ZOMBIE]
    process.kill()


@pytest.mark.parametrize(("part", "told"), [("raylet", "raylet"), ("gcs_server", "GCS")])
def test_a_study_outlives_one_death_of_its_ray_and_says_so(write_space, tmp_path, start, family, part, told):
    space, run = write_space(budget={"trials": 5, "width": 2}), RunDir(tmp_path / "runs" / "tiny")
    driver = start("search", space, "--runs", tmp_path / "runs", "--cpus", "2", "--lines")
    assert wait_until(lambda: run.path.exists() and len(run.ended()) > 1, driver), driver.text()
    kept = contents(run)
    kill_part(driver, family, part)
    text = driver.wait()
    own = [line for line in text.splitlines() if "Ray's" in line or "raylet" in line]
    assert own == [f"warning: Ray's {told} has ended: it was killed, or memory ran out: Ray is started once more"]
    assert "best bundle" in text, text
    assert "Traceback" not in text
    assert {path: digest for path, digest in contents(run).items() if path in kept} == kept
    check_whole(run, ("dnis", "uniform"), 5)


def test_a_second_death_of_ray_ends_the_study_in_one_line_and_it_goes_on(write_space, tmp_path, start, family):
    space, run = write_space(budget={"trials": 8, "width": 2}), RunDir(tmp_path / "runs" / "tiny")
    words = ("search", space, "--runs", tmp_path / "runs", "--cpus", "2", "--lines")
    driver = start(*words)
    assert wait_until(lambda: run.path.exists() and len(run.ended()) > 1, driver), driver.text()
    kill_part(driver, family, "raylet")
    assert wait_until(lambda: "once more" in driver.text(), driver), driver.text()
    before = len(run.ended())
    assert wait_until(lambda: len(run.ended()) > before, driver), driver.text()
    kept = contents(run)
    kill_part(driver, family, "gcs_server")
    driver.wait()
    last = driver.text().rstrip().splitlines()[-1]
    assert last == (
        "error: Ray's GCS has ended: it was killed, or memory ran out, for the second time: go on with --resume"
    )
    assert "Traceback" not in driver.text()
    text = start(*words, "--resume").wait()
    assert "best bundle" in text, text
    assert {path: digest for path, digest in contents(run).items() if path in kept} == kept
    check_whole(run, ("dnis", "uniform"), 8)


def test_a_trial_whose_process_dies_between_two_trials_is_run(write_space, tmp_path, start, family):
    """Tune gives up a trial at once whose process is dead before it begins: that is no trial that failed."""
    space = write_space(stages=[{"method": "dnis", "warm_epochs": 1, "epochs": 3}], baselines=[])
    run = RunDir(tmp_path / "runs" / "tiny")
    driver = start("search", space, "--runs", tmp_path / "runs", "--cpus", "1", "--trials", "6", "--lines")
    for ended in (1, 3):
        assert wait_until(lambda ended=ended: run.path.exists() and len(run.ended()) >= ended, driver), driver.text()
        for process in named(driver, family, "ray::Impl"):
            process.kill()
    text = driver.wait()
    assert "best bundle" in text, text
    check_whole(run, ("dnis",), 6)
