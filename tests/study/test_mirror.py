"""The mirror in MLflow: what stands there, that it can be rebuilt without duplicates, and stores that fail."""

import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import mlflow
import psutil
import pytest
from mlflow import MlflowClient

from autoembed.bundle import load_bundle
from autoembed.space import SearchSpace
from autoembed.study.engine.run import Request, run_study
from autoembed.study.show.progress import Bar
from autoembed.study.trackers.mlflow import tracker as tracking
from autoembed.study.trackers.mlflow.mirror import Mirror
from autoembed.study.trackers.mlflow.store import mend_moved
from autoembed.study.trackers.mlflow.view import SAVED_VIEW


def content(uri, run):
    """All that MLflow holds of a study, without what only the time of writing decides."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(run.name).experiment_id
    found = {}
    for one in client.search_runs([experiment]):
        histories = {name: client.get_metric_history(one.info.run_id, name) for name in one.data.metrics}
        name = one.info.run_name
        assert name not in found, f"{name} is there twice"
        found[name] = {
            "status": one.info.status,
            "params": one.data.params,
            "tags": {
                k: re.sub(r"#/experiments/\d+/runs/\w+", "RUN", v)
                for k, v in one.data.tags.items()
                if k not in ("mlflow.parentRunId", "mlflow.log-model.history")
            },
            "curves": {name: [(point.step, point.value) for point in points] for name, points in histories.items()},
            "artifacts": sorted(file.path for file in client.list_artifacts(one.info.run_id)),
            "inputs": [(i.dataset.name, i.dataset.digest) for i in one.inputs.dataset_inputs],
        }
    listed = client.search_model_versions(f"name = '{run.name}'")
    versions = [client.get_model_version(run.name, one.version) for one in listed]
    return found | {"versions": sorted((int(one.version), tuple(one.aliases), one.tags["trial"]) for one in versions)}


@pytest.mark.parametrize(
    "call", ["set_terminated", *(pytest.param(name, marks=pytest.mark.slow) for name in ("log_batch", "set_tag"))]
)
def test_a_mirror_that_is_killed_at_a_call_leaves_no_run_running(copied, tmp_path, monkeypatch, call):
    """At each call of that name which closing a trial makes; the next mirror makes it good."""
    run, _ = copied
    shutil.copy(run.read_json("mlflow.json")["tracking_uri"].removeprefix("sqlite:///"), tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    calls, real = [0], getattr(MlflowClient, call)

    def killed(*words, **named):
        calls[0] -= 1
        if calls[0] == 0:
            raise KeyboardInterrupt
        return real(*words, **named)

    mirror = Mirror(run, SearchSpace.read(run.space))
    for number in range(1, 100):
        mirror.client.delete_run(mirror._runs.pop("dnis-1").info.run_id)
        with monkeypatch.context() as patch:
            patch.setattr(MlflowClient, call, killed)
            calls[0] = number
            with contextlib.suppress(KeyboardInterrupt):
                mirror.catch_up()
        mirror = Mirror(run, SearchSpace.read(run.space))
        mirror.catch_up()
        found = mirror.client.search_runs([mirror.experiment])
        assert {one.info.status for one in found if one.data.tags.get("arm")} == {"FINISHED"}
        if calls[0] > 0:
            break
    assert 1 < number < 100


def test_runs_have_tags_inputs_curves_and_pictures(finished):
    run, board = finished
    mirrored = content(run.read_json("mlflow.json")["tracking_uri"], run)
    trial = mirrored["dnis-1"]
    fingerprint = run.read_json("dataset.json")["fingerprint"]
    assert trial["tags"].items() >= {
        "method": "dnis", "arm": "dnis", "phase": "retrain", "backbone": "deepfm", "state": "done", "trial": "dnis-1",
        "dataset.fingerprint": fingerprint, "autoembed.folder": run.identity,
    }.items()  # fmt: skip
    assert trial["inputs"] == mirrored[run.name]["inputs"] == [("planted", fingerprint)]
    assert {"search/alpha_mean", "search/alpha_zero", "warm/valid_auc", "retrain/valid_auc"} <= set(trial["curves"])
    assert "dims.png" in trial["artifacts"]
    assert "dims.png" in mirrored[run.name]["artifacts"]
    assert mirrored["uniform-1"]["tags"]["method"] == "uniform"
    assert mirrored["versions"] == [(1, ("champion",), board.winner)]


def test_the_objective_has_one_name_and_the_table_is_sorted_by_it(finished):
    run, board = finished
    client = MlflowClient(run.read_json("mlflow.json")["tracking_uri"])
    view = json.loads(client.get_experiment_by_name(run.name).tags[SAVED_VIEW])
    assert view["orderByKey"] == f"metrics.`{board.metric}`"
    mirrored = content(client.tracking_uri, run)
    best = max(mirrored[row.trial]["curves"]["valid_auc"][0][1] for row in board.rows)
    assert mirrored[run.name]["curves"]["valid_auc"] == [(0, best)]
    names = {column[9:-1] for column in view["selectedColumns"] if column.startswith("metrics.")}
    assert names <= set(mirrored[board.winner]["curves"])
    assert {"arm", "state"} <= set(mirrored[board.winner]["tags"])


def test_a_study_is_described_by_its_leaderboard(finished):
    run, board = finished
    study = content(run.read_json("mlflow.json")["tracking_uri"], run)[run.name]
    text = study["tags"]["mlflow.note.content"]
    for row in board.rows:
        assert f"[{row.trial}](RUN)" in text
        assert f"{row.test.auc:.4f}" in text
    assert study["params"]["train.lr.log"] == "[0.001, 0.01]"


def test_a_moved_folder_still_finds_its_artifacts(finished, tmp_path):
    runs = Path(shutil.copytree(finished[0].path.parent, tmp_path / "moved"))
    with contextlib.closing(sqlite3.connect(runs / "mlflow.db")) as store, store:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            old = finished[0].path.parent.as_uri()
            store.execute(f"UPDATE {table} SET {column} = replace({column}, '{old}', 'file:///gone/runs')")
    assert mend_moved(runs) == ["/gone/runs"]
    assert mend_moved(runs) == []
    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment.artifact_location.startswith(runs.as_uri())
    for one in client.search_runs([experiment.experiment_id]):
        assert client.list_artifacts(one.info.run_id)


def test_what_another_place_holds_is_left_alone(finished):
    assert mend_moved(finished[0].path.parent) == []


def test_a_study_in_a_repository_has_its_commit(write_space, tmp_path):
    space = write_space()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    from autoembed.study.engine.commit import commit_of

    assert commit_of(tmp_path) is None
    for words in (["init", "-q"], ["add", space.name], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True, timeout=20)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, timeout=20, capture_output=True, text=True).stdout
    assert commit_of(tmp_path) == head.strip()
    space.write_text("changed")
    assert commit_of(tmp_path) == f"{head.strip()}-dirty"


def test_the_champion_loads_by_its_alias_and_predicts(finished):
    run, _ = finished
    mlflow.set_tracking_uri(run.read_json("mlflow.json")["tracking_uri"])
    example = load_bundle(run.best).example()
    scores = mlflow.pyfunc.load_model(f"models:/{run.name}@champion").predict(example.to_pandas())
    assert scores["prediction"][0] == pytest.approx(load_bundle(run.best).predict(example)[0])


def test_sync_rebuilds_the_mirror_and_twice_is_once(copied, finished, cli, tmp_path, monkeypatch):
    run, _ = copied
    live = content(finished[0].read_json("mlflow.json")["tracking_uri"], run)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    for _ in range(2):
        status, out, err = cli("sync", run.path)
        assert (status, err) == (0, "")
        assert "4 trials stand in the MLflow store" in out
        rebuilt = content(f"sqlite:///{tmp_path}/other.db", run)
        for one in rebuilt.values():
            if isinstance(one, dict):
                for name in {"mlflow.source.name", "mlflow.note.content"} & one["tags"].keys():
                    one["tags"][name] = one["tags"][name].replace(str(run.path), str(finished[0].path))
        assert rebuilt == live
    # Without its notes a folder still knows its runs.
    (run.path / "mlflow.json").unlink()
    assert cli("sync", run.path)[0] == 0
    assert len(content(f"sqlite:///{tmp_path}/other.db", run)) == len(live)


def test_sync_closes_what_a_killed_driver_left_running(copied, cli, tmp_path, monkeypatch):
    run, _ = copied
    uri = f"sqlite:///{tmp_path}/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for name in ("leaderboard.json", "trials/dnis-2/DONE"):
        (run.path / name).unlink()
    mirror = Mirror(run, SearchSpace.read(run.space))
    mirror.begin()
    mirror.live("dnis-2")
    assert {one["status"] for name, one in content(uri, run).items() if name in ("tiny", "dnis-2")} == {"RUNNING"}
    assert cli("sync", run.path)[0] == 0
    after = content(uri, run)
    assert {name: one["status"] for name, one in after.items() if name != "versions"} == {
        "tiny": "KILLED", "dnis-1": "FINISHED", "dnis-2": "KILLED", "uniform-1": "FINISHED", "uniform-2": "FINISHED"
    }  # fmt: skip
    assert [step for step, _ in after["dnis-2"]["curves"]["retrain/valid_auc"]] == [1, 2]


@pytest.mark.parametrize("away", [False, True])
def test_a_trial_that_was_run_again_has_one_curve(copied, finished, cli, tmp_path, monkeypatch, away):
    """Its process was lost after three points; MLflow sees the second one begin, or is away until it has ended."""
    run, _ = copied
    uri, trial = f"sqlite:///{tmp_path}/other.db", run.trial("dnis-2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    curves, done = (trial / "curves.jsonl").read_text(), (trial / "DONE").read_text()
    lost = [{"time": 1000 + epoch, "retrain_epoch": epoch, "valid_auc": 0.9, "lost": 1.0} for epoch in (1, 2, 3)]
    (trial / "curves.jsonl").write_text("".join(json.dumps(point) + "\n" for point in lost))
    (trial / "DONE").unlink()
    mirror = Mirror(run, SearchSpace.read(run.space))
    mirror.begin()
    mirror.live("dnis-2")
    assert content(uri, run)["dnis-2"]["curves"]["retrain/lost"] == [(1, 1.0), (2, 1.0), (3, 1.0)]
    (trial / "curves.jsonl").unlink()
    for end in (0, 1, 2, None):
        (trial / "curves.jsonl").write_text("".join(curves.splitlines(keepends=True)[:end]))
        if not away:
            mirror.live("dnis-2")
            assert ("retrain/valid_auc" in content(uri, run)["dnis-2"]["curves"]) == (end is None)
    (trial / "DONE").write_text(done)
    assert cli("sync", run.path)[0] == 0
    live = content(finished[0].read_json("mlflow.json")["tracking_uri"], run)["dnis-2"]
    found = content(uri, run)["dnis-2"]
    for one in (live, found):
        del one["tags"]["mlflow.source.name"]
    assert found == live


def test_sync_says_why_it_cannot(copied, cli, tmp_path, monkeypatch):
    run, _ = copied
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    status, _, err = cli("sync", run.path)
    assert status == 2
    assert err.startswith("error: cannot write to the MLflow store http://127.0.0.1:9")
    assert err.count("\n") == 1
    status, _, err = cli("retrain", run.path, "--trial", "all", "--seeds", "2")
    assert (status, (run.path / "arms.json").is_file()) == (0, True)
    assert err.startswith("warning: cannot write to the MLflow store http://127.0.0.1:9")
    assert err.rstrip().endswith(f"`autoembed sync {run.path}` writes it when that is mended")
    with run.locked():
        assert f"process {os.getpid()}" in cli("sync", run.path)[2]
    (run.path / "dataset.json").unlink()
    assert "nothing to write to MLflow yet" in cli("sync", run.path)[2]


def test_a_study_does_not_wait_for_a_server_that_hangs(write_space, ray_here, tmp_path, monkeypatch, capsys):
    """The server takes connections and answers after a minute: the study ends with one warning, its trials done."""

    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            awake.wait(60)

        do_POST = do_GET  # noqa: N815

    awake = threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    space = write_space(baselines=[])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(tracking, "PATIENCE", 2.0)
    try:
        start = time.monotonic()
        _, board = run_study(Request(space=space, runs=tmp_path / "runs"), Bar())
        assert time.monotonic() - start < 50
    finally:
        awake.set()
        server.shutdown()
        server.server_close()
    err = capsys.readouterr().err
    assert err.count("warning: ") == 1
    assert "autoembed sync" in err
    assert board.trials[0] == 2


@contextlib.contextmanager
def serving(store, port):
    """A real MLflow server on loopback: its address."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{store}/server.db"]
    command += ["--artifacts-destination", f"{store}/artifacts", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(
        [*command, "--workers", "1"],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        answers(f"http://127.0.0.1:{port}/health", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        end(server)


def answers(url, process, seconds=120):
    deadline = time.monotonic() + seconds
    while True:
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "the server did not answer"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            assert answer.status == 200
            return
        time.sleep(0.2)


def end(process):
    """Ends a process of ours and its children, by their ids."""
    family = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs([psutil.Process(one.pid) for one in family[1:]], timeout=10)
    for one in alive:
        one.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=10)
    process.kill()
    process.wait(timeout=10)


@pytest.mark.slow
def test_a_real_server_that_comes_and_goes(write_space, ray_here, tmp_path, unused_port, cli, monkeypatch, capsys):
    space = write_space()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{unused_port}")
    # Down from the start: one warning, and the study is whole.
    run, board = run_study(Request(space=space, runs=tmp_path / "runs"), Bar())
    err = capsys.readouterr().err
    assert err.count("warning: ") == 1
    assert board.trials[0] == 4
    with serving(tmp_path, unused_port) as uri:
        for _ in range(2):
            assert cli("sync", run.path)[0] == 0
        rebuilt = content(uri, run)
        assert len(rebuilt) == 6
        assert rebuilt["versions"] == [(1, ("champion",), board.winner)]
        # Up: the same study under another name is mirrored live, and its model loads over HTTP.
        other, _ = run_study(Request(space=space, runs=tmp_path / "runs", name="live"))
        assert "warning" not in capsys.readouterr().err
        live = content(uri, other)
        for name in set(live) - {"versions", "live"}:
            for part in ("params", "artifacts", "inputs", "status"):
                assert live[name][part] == rebuilt[name][part]
        mlflow.set_tracking_uri(uri)
        example = load_bundle(other.best).example()
        scores = mlflow.pyfunc.load_model("models:/live@champion").predict(example.to_pandas())
        assert scores["prediction"][0] == pytest.approx(load_bundle(other.best).predict(example)[0])
