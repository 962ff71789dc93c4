import contextlib
import json
import os
import shutil
import socket
import sqlite3
from pathlib import Path

import psutil
import pytest
import yaml

import autoembed.study  # noqa: F401  (before any test module imports ray, which reads its environment once)
from autoembed.cli import main
from autoembed.study.run_dir import RunDir

SPACE = {
    "data": {
        "planted": {"rows": 8000, "seed": 0, "marginal": [5, 50], "xor": [4], "low_rank": [10], "noise": [10, 200]},
        "split": {"by": "random", "valid": 0.2, "test": 0.2},
    },
    "embedding": {"dim": 6, "blocks": 3},
    "stages": [
        {"method": "dnis", "warm_epochs": 1, "epochs": 1, "precisions": [32], "retrain": "inherit", "guard": "measured"}
    ],
    "baselines": ["uniform"],
    "backbone": {"name": "deepfm", "hidden": [16], "dropout": 0.0},
    "train": {"epochs": 2, "lr": {"log": [1.0e-3, 1.0e-2]}, "batch_size": 512},
    "budget": {"trials": 2, "width": 2},
}


@pytest.fixture(scope="session")
def ray_here():
    """One Ray for all studies of this process."""
    from autoembed.study.engine.tune import Resources, cluster

    with cluster(Resources(cpus=2)):
        yield


@pytest.fixture
def family():
    """Finds the children of a process, and its Ray's workers, which are those of a fork server."""

    def find(pid):
        found = {child.pid: child for child in psutil.Process(pid).children(recursive=True)}
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if "forkserver.py" in " ".join(one.cmdline()) and int(one.environ()["RAY_RAYLET_PID"]) in found:
                    found |= {child.pid: child for child in (one, *one.children(recursive=True))}
        return list(found.values())

    return find


@pytest.fixture(autouse=True)
def _store():
    """mlflow.set_tracking_uri writes to the environment, where the next test's study would read it.

    And MLflow keeps where a run's artifacts are by the run's id alone, which is the same in a copied store.
    """
    from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

    os.environ.pop("MLFLOW_TRACKING_URI", None)
    _artifact_repos_cache.clear()
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture
def write_space(tmp_path):
    """Writes a small space with some sections changed; its path."""

    def write(name="tiny", **changes):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(SPACE | changes))
        return path

    return write


@pytest.fixture(scope="session")
def finished(tmp_path_factory, ray_here):
    """A finished small study: (run folder, leaderboard)."""
    from autoembed.study.engine.run import Request, run_study

    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(SPACE))
    return run_study(Request(space=folder / "tiny.yaml", runs=folder / "runs"))


@pytest.fixture
def copy_store():
    """Copies MLflow's store of a study; artifacts that are added to the copy stand beside it."""

    def copy(run, folder):
        shutil.copy(run.path.parent / "mlflow.db", folder)
        with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as store, store:
            for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
                places = (str(run.path.parent), str(folder))
                store.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", places)

    return copy


@pytest.fixture
def copied(finished, tmp_path):
    """The finished study's folder in another place, for changes: (run folder, leaderboard)."""
    run, board = finished
    return RunDir(Path(shutil.copytree(run.path, tmp_path / "runs" / run.name))), board


@pytest.fixture(autouse=True)
def _finished_stays_as_it_was(request):
    """The finished study is shared: a test that changes it would decide by the order of tests what others find."""
    if "finished" not in request.fixturenames:
        yield
        return
    run, _ = request.getfixturevalue("finished")
    before = everything(run)
    yield
    after = everything(run)
    for what, was in before.items():
        assert after[what] == was, what


def everything(run):
    """Names of the files of a study, and what MLflow's store says of it."""
    parent = json.loads((run.path / "mlflow.json").read_text())["parent"]
    artifacts = run.path.parent.glob(f"mlartifacts/*/{parent}/**/*")
    found = {"files": sorted(run.path.rglob("*")), "artifacts": sorted(artifacts)}
    with contextlib.closing(sqlite3.connect(f"file:{run.path.parent / 'mlflow.db'}?mode=ro", uri=True)) as store:
        for table in ("params", "tags", "latest_metrics", "metrics"):
            rows = store.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", [parent]).fetchall()
            found[table] = sorted(map(str, rows))
    return found


@pytest.fixture
def unused_port():
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call(monkeypatch, capsys, *words):
    """(exit status, stdout, stderr) of the command line in this process."""
    monkeypatch.setattr("sys.argv", ["autoembed", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    out = capsys.readouterr()
    return ended.value.code, out.out, out.err


@pytest.fixture
def cli(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *words: call(monkeypatch, capsys, *words)
