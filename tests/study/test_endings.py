"""Ends other than the good one: signals, a dead worker, MLflow away, damaged folders, memory that runs out."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest
import torch
from mlflow import MlflowClient

from autoembed import trial as trial_module
from autoembed.cli import main
from autoembed.errors import BundleError, TrialError
from autoembed.space import SearchSpace
from autoembed.study.engine.run import Request, run_study
from autoembed.study.engine.worker import reason_of
from autoembed.study.run_dir import RunDir
from autoembed.study.show.progress import Bar

LONG = {
    "stages": [{"method": "dnis", "warm_epochs": 1, "epochs": 200}],
    "baselines": [],
    "budget": {"trials": 2, "width": 2},
}


def start(*words):
    """The command line as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "autoembed.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, process, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_study_in_order(write_space, tmp_path, family, sent, status):
    long = {"method": "dnis", "warm_epochs": 1, "epochs": 200}
    space, run = write_space(stages=[{"method": "uniform"}], baselines=[long]), RunDir(tmp_path / "runs" / "tiny")
    driver = start("search", space, "--runs", tmp_path / "runs", "--cpus", "1")
    try:
        wait_for(lambda: run.state("uniform-1") and run.curves("dnis-1"), driver)
        children = family(driver.pid)
        assert any(child.name().startswith("ray::Impl") for child in children)
        if sent == signal.SIGINT:
            # A terminal's Ctrl-C goes to every process of the group.
            os.killpg(driver.pid, sent)
        else:
            driver.send_signal(sent)
        out, err = driver.communicate(timeout=300)
    finally:
        driver.kill()
    assert driver.returncode == status, err
    assert "Traceback" not in err
    if sent == signal.SIGINT:
        assert "--resume" in err
        assert "uniform-1" in out
        assert f"{run.read_trial('uniform-1').result.valid.auc:.4f}" in out
    assert [ended.id for ended in run.ended()] == ["uniform-1"]
    known = run.read_json("mlflow.json")
    runs = MlflowClient(known["tracking_uri"]).search_runs([known["experiment"]])
    assert {found.info.run_name: found.info.status for found in runs} == {
        "tiny": "KILLED",
        "uniform-1": "FINISHED",
        "dnis-1": "KILLED",
    }
    _, alive = psutil.wait_procs(children, timeout=300)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_a_trial_whose_worker_is_killed_is_run_again_once(write_space, tmp_path, family):
    """The first trial's process is killed twice, the second's once."""
    space, run = write_space(**LONG | {"stages": [{"method": "dnis", "epochs": 40}]}), RunDir(tmp_path / "runs/tiny")
    driver = start("search", space, "--runs", tmp_path / "runs", "--cpus", "1")

    def workers():
        return {p.pid: p for p in family(driver.pid) if p.name().startswith("ray::Impl") and p.is_running()}

    killed = set()
    try:
        for name in ("dnis-1", "dnis-1", "dnis-2"):
            wait_for(lambda name=name: run.curves(name) and workers().keys() - killed, driver)
            for pid, worker in workers().items():
                killed.add(pid)
                worker.kill()
            wait_for(lambda name=name: run.state(name) or not workers().keys() & killed, driver)
            (run.trial(name) / "curves.jsonl").unlink(missing_ok=True)
        out, err = driver.communicate(timeout=150)
    finally:
        driver.kill()
    assert driver.returncode == 0, err
    assert [(ended.id, ended.state) for ended in run.ended()] == [("dnis-1", "failed"), ("dnis-2", "done")]
    assert "the trial's process ended 2 times" in run.ended()[0].reason
    assert "1 of 2 trials failed" in out
    known = run.read_json("mlflow.json")
    client = MlflowClient(known["tracking_uri"])
    found = client.search_runs([known["experiment"]])
    assert {one.info.run_name: one.info.status for one in found} == {
        "tiny": "FINISHED",
        "dnis-1": "FAILED",
        "dnis-2": "FINISHED",
    }
    (retried,) = [one.info.run_id for one in found if one.info.run_name == "dnis-2"]
    points = [point["valid_auc"] for point in run.curves("dnis-2") if "valid_auc" in point]
    assert [point.value for point in client.get_metric_history(retried, "retrain/valid_auc")] == points


@pytest.mark.slow
def test_references_that_a_thread_frees_while_ray_ends_do_not_end_the_process():
    code = """
import gc, ray, threading, time
from autoembed.study.engine.tune import Resources, cluster

def drop():
    while left:
        for _ in range(min(200, len(left))):
            cycle = [left.pop()]
            cycle.append(cycle)
        time.sleep(0.002)

with cluster(Resources(cpus=1)):
    left = [ray.put(number) for number in range(20_000)]
    dropping = threading.Thread(target=drop)
    dropping.start()
    time.sleep(0.02)
assert gc.isenabled()
dropping.join()
gc.collect()
print("ended")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert (ended.returncode, ended.stdout) == (0, "ended\n"), ended.stderr


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 512 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", place], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True, timeout=20)


@pytest.mark.slow
def test_a_full_disk_ends_the_study_in_one_line_and_nothing_is_lost(write_space, tmp_path, small_disk):
    space, run = write_space(baselines=[]), RunDir(tmp_path / "runs" / "tiny")
    command = ("search", space, "--runs", tmp_path / "runs", "--cpus", "1", "--resume", "--trials")
    first = start(*command[:-2], "--trials", "1")
    assert first.wait(timeout=600) == 0, first.communicate()
    shutil.move(run.path / "trials", small_disk / "trials")
    (run.path / "trials").symlink_to(small_disk / "trials")
    done = (run.trial("dnis-1") / "DONE").stat().st_mtime_ns
    # Room for a trial's first files, but not for its weights.
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - 16384))
    full = start(*command, "2")
    _, err = full.communicate(timeout=600)
    assert full.returncode == 2
    assert err.strip().splitlines()[-1].startswith("error: no space is left on the disk of")
    assert "--resume" in err
    assert "Traceback" not in err
    assert [ended.id for ended in run.ended()] == ["dnis-1"]
    known = run.read_json("mlflow.json")
    client = MlflowClient(known["tracking_uri"])
    assert "RUNNING" not in {one.info.status for one in client.search_runs([known["experiment"]])}
    filler.unlink()
    again = start(*command, "2")
    assert again.wait(timeout=600) == 0, again.communicate()
    assert [(ended.arm, ended.state) for ended in run.ended()] == [("dnis", "done"), ("dnis", "done")]
    assert (run.trial("dnis-1") / "DONE").stat().st_mtime_ns == done


HUNGRY = """
from autoembed.methods import dnis

Config = dnis.Config


class Supernet(dnis.Supernet):
    def forward(self, ids):
        raise MemoryError("cannot allocate 80 GB")
"""


@pytest.mark.slow
def test_a_method_of_ones_own_that_runs_out_of_memory_fails_alone(write_space, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "hungry.py").write_text(HUNGRY)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    space, run = write_space(stages=[{"method": "mine.hungry"}]), RunDir(tmp_path / "runs" / "tiny")
    driver = start("search", space, "--runs", tmp_path / "runs", "--cpus", "2", "--trials", "1")
    out, err = driver.communicate(timeout=150)
    assert driver.returncode == 0, err
    assert [(ended.id, ended.state) for ended in run.ended()] == [("mine.hungry-1", "failed"), ("uniform-1", "done")]
    assert "memory ran out (cannot allocate 80 GB): lower embedding.dim=6, train.batch_size=512" in out


def test_mlflow_that_goes_away_is_one_warning(write_space, ray_here, tmp_path, monkeypatch, capsys):
    def away(*words, **named):
        raise ConnectionError("no route to host\nand more")

    space = write_space(baselines=[])
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", away)
        run, board = run_study(Request(space=space, runs=tmp_path / "runs"), Bar())
    err = capsys.readouterr().err
    assert err.count("warning: ") == 1
    assert "no route to host" in err
    assert "and more" not in err
    assert board.trials[0] == 2
    assert run.read_json("mlflow.json").get("status") is None
    run_study(Request(space=space, runs=tmp_path / "runs", resume=True))
    known = run.read_json("mlflow.json")
    found = MlflowClient(known["tracking_uri"]).search_runs([known["experiment"]])
    assert [one.info.status for one in found] == ["FINISHED"] * 3
    assert all("valid_auc" in one.data.metrics for one in found if one.data.tags.get("arm"))


def test_a_mirror_that_was_deleted_is_written_anew(finished, tmp_path, monkeypatch):
    run, _ = finished
    before = (run.path / "mlflow.json").read_text()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    try:
        run_study(Request(space=run.path.parents[1] / "tiny.yaml", runs=run.path.parent, resume=True))
        found = MlflowClient(f"sqlite:///{tmp_path}/other.db").search_runs([run.read_json("mlflow.json")["experiment"]])
        assert sorted(one.info.run_name for one in found) == sorted(["tiny", *(trial.id for trial in run.trials())])
        assert {one.info.status for one in found} == {"FINISHED"}
    finally:
        (run.path / "mlflow.json").write_text(before)


def test_a_damaged_run_folder_is_named_with_what_to_do(finished, cli, tmp_path):
    run = RunDir(shutil.copytree(finished[0].path, tmp_path / "runs" / "tiny"))
    (run.path / "trials" / "notes").mkdir()
    (run.path / "trials" / "uniform-9").mkdir()
    (run.path / "trials" / "uniform-9" / "error.txt").touch()
    (run.path / "leaderboard.json").write_text("{}")
    assert re.search(r"leaderboard.json is corrupt .*: delete it, then --resume\n$", cli("show", run.path)[2])
    (run.path / "leaderboard.json").unlink()
    assert re.search(r"trials/notes is not a trial's folder \(ARM-NUMBER\): move it away\n$", cli("show", run.path)[2])
    (run.path / "trials" / "notes").rmdir()
    status, out, _ = cli("show", run.path)
    assert status == 0
    assert "its reason was not written" in out
    (run.trial("dnis-1") / "result.json").write_text("{}")
    assert "delete" in cli("show", run.path)[2]


def test_a_damaged_trial_is_named_with_what_to_do(write_space, ray_here, tmp_path):
    space = write_space(baselines=[])
    run, _ = run_study(Request(space=space, runs=tmp_path / "runs", trials=1))
    with (run.trial("dnis-1") / "weights.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(
        BundleError, match=r"weights.safetensors has changed .*: delete .*dnis-1 and go on with (--resume|resume=True)"
    ):
        run.trials()
    (run.trial("dnis-1") / "DONE").unlink()
    run, board = run_study(Request(space=space, runs=tmp_path / "runs", trials=1, resume=True))
    assert [trial.id for trial in run.trials()] == ["dnis-2"]
    assert board.winner == "dnis-2"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB."),
    ],
)
def test_memory_that_runs_out_is_told_with_what_to_lower(write_space, planted, monkeypatch, error):
    def full(*words, **options):
        raise error

    monkeypatch.setattr(trial_module, "_run", full)
    space = SearchSpace.read(write_space())
    with pytest.raises(TrialError, match="memory ran out") as raised:
        trial_module.run_trial(space.config("uniform", {"train.lr": 1e-3}), planted, lambda values: None)
    assert reason_of(raised.value).count("embedding.dim=6") == 1
    assert "\n" not in reason_of(raised.value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--resume",), "holds no study to go on with"),
        (("--name", "a/b"), "must be a plain folder name, but got 'a/b'"),
        (("--name", ".cache"), "must be a plain folder name"),
        (("--trials", "0"), "--trials must be at least 1, but got 0"),
    ],
)
def test_names_and_numbers_that_cannot_be(write_space, tmp_path, monkeypatch, capsys, words, line):
    monkeypatch.setattr("sys.argv", ["autoembed", "search", str(write_space()), "--runs", str(tmp_path / "r"), *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") == 1


def test_two_arms_of_one_method_stay_apart(write_space):
    space = SearchSpace.read(
        write_space(baselines=["uniform", {"method": "dnis", "share": "global"}, {"method": "dnis", "l1": 0.1}])
    )
    assert space.arms() == ("dnis", "uniform", "dnis-2", "dnis-3")
    assert space.template("dnis-3")["stages"] == [{"method": "dnis", "l1": 0.1}]


def test_a_port_in_use_is_told_at_once(finished, cli):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, _, err = cli("ui", "--runs", finished[0].path.parent, "--port", port)
    assert (status, err) == (
        2,
        f"error: port {port} of 127.0.0.1 cannot be had (Address already in use): choose another --port\n",
    )


@pytest.mark.slow
def test_the_ui_serves_and_leaves_nothing_behind(finished, unused_port):
    run, _ = finished
    server = start("ui", "--runs", run.path.parent, "--port", unused_port)

    try:
        told = [server.stdout.readline() for _ in range(3)]
        assert told[0] == "MLflow starts ...\n"
        assert told[1].startswith("tiny ")
        assert "/runs?workflowType=machine_learning&viewStateShareKey=autoembed" in told[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/health", timeout=300) as answer:
            assert answer.status == 200
        children = psutil.Process(server.pid).children(recursive=True)
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=300)
    finally:
        server.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
