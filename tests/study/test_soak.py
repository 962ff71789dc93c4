"""What a long study leaves behind when it has ended: nothing but its run folder."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil
import pytest

TRIALS = 30  # of each of two arms
RAYS = "/logs/python-core-driver"
# After a first study, since libraries keep open what they open once (Ray's log, fonts, the store's connections): what
# a long one leaves open in its process.
STUDY = """
import json, os, sys, threading
from pathlib import Path
import autoembed.study.trackers.mlflow.tracker, autoembed.study.engine.tune
from autoembed.study.engine.run import Request, run_study

def held():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            pass
    return found

def study(name, trials):
    request = Request(space=Path(sys.argv[1]), runs=Path(sys.argv[2]), name=name, trials=trials, cpus=2)
    return run_study(request)[1].trials

study("first", 1)
before, threads = held(), threading.active_count()
trials = study("tiny", int(sys.argv[3]))
after = held()
more = [after[name].partition(":")[0] for name in after if before.get(name) != after[name]]
less = [before[name] for name in before if before[name] != after.get(name)]
print(json.dumps([trials, more, less, threading.active_count() - threads]))
"""


@pytest.fixture
def temporary():
    """A temporary folder of this test's own, with a path that is short enough for Ray's sockets."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))
    yield place
    shutil.rmtree(place)


def marked(mark):
    """The processes that have inherited a mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if mark in process.environ().values() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_study_of_many_trials_leaves_nothing_but_its_folder(write_space, tmp_path, temporary):
    space = write_space()
    mark, shared, began = uuid.uuid4().hex, set(os.listdir("/dev/shm")), time.monotonic()
    environment = os.environ | {"TMPDIR": str(temporary), "SOAK": mark}
    command = [sys.executable, "-c", STUDY, str(space), str(tmp_path / "runs"), str(TRIALS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    took = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    trials, opened, closed, threads = json.loads(done.stdout.splitlines()[-1])
    assert trials == [2 * TRIALS, 0, 0]
    end = time.monotonic() + 20
    while marked(mark) and time.monotonic() < end:
        time.sleep(0.2)
    print(f"{took:.0f} s, {2 * TRIALS} trials; {opened=}, {closed=}, {threads=}, {os.listdir(temporary)}")
    assert marked(mark) == []
    # Ray keeps its own log of the process open, and of each start a connection or two, however many the trials are.
    assert sorted(name for name in opened if RAYS not in name) in ([], ["socket"], ["socket"] * 2)
    assert len(closed) == sum(RAYS in name for name in opened) == 1
    assert threads <= 0
    assert set(os.listdir("/dev/shm")) <= shared
    assert set(os.listdir(temporary)) <= {"ray"}  # Ray keeps its logs
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert names == {"first", "tiny", ".cache", "mlflow.db", "mlartifacts", ".mlflow.lock"}
    assert not list((tmp_path / "runs").rglob(".autoembed-*"))
    assert not (tmp_path / "runs" / "tiny" / "warm").exists()
