"""What is damaged or lost: flipped bytes, killed makers of stores and folders, starts that failed."""

import errno
import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from autoembed.bundle import load_bundle, sha256
from autoembed.data.dataset import Dataset
from autoembed.errors import BundleError, DataError, StudyError
from autoembed.metrics import evaluate
from autoembed.study.engine.run import Request, run_study
from autoembed.study.run_dir import RunDir
from autoembed.study.study import Study
from autoembed.study.trackers.mlflow import store as moved
from autoembed.study.trackers.mlflow.store import make_store
from autoembed.writing import beside, scratch


def flip(path, place=-3):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["train.ids.npy", "test.labels.npy", "valid.ids.npy", "counts.npy"])
def test_a_flipped_byte_of_the_encoded_data_is_found(finished, tmp_path, name):
    run, _ = finished
    cache = Path(shutil.copytree(run.path.parent / ".cache", tmp_path / "cache"))
    folder = next(path for path in cache.iterdir() if (path / "dataset.json").is_file())
    Dataset.open(folder).verify()
    flip(folder / name)
    with pytest.raises(DataError, match=r"is corrupt \(its .*\): remove the folder and build it again"):
        Dataset.open(folder).verify()


def test_labels_that_are_none_give_no_metric():
    with pytest.raises(DataError, match="labels must be 0 or 1"):
        evaluate(np.array([0.0, 1.0, 2.0]), np.array([0.1, 0.2, 0.3]))


def test_weights_that_are_not_finite_are_refused(finished, tmp_path):
    bundle = Path(shutil.copytree(finished[0].best, tmp_path / "bundle"))
    weights = load_file(bundle / "weights.safetensors")
    name = next(name for name, tensor in weights.items() if tensor.is_floating_point())
    weights[name].view(-1)[0] = float("nan")
    save_file(weights, bundle / "weights.safetensors")
    manifest = (bundle / "manifest.json").read_text()
    before = sha256(finished[0].best / "weights.safetensors")
    (bundle / "manifest.json").write_text(manifest.replace(before, sha256(bundle / "weights.safetensors")))
    with pytest.raises(BundleError, match="are not all finite"):
        load_bundle(bundle)


def test_weights_can_be_read_by_whom_their_neighbours_can(finished):
    run, board = finished
    for folder, neighbour in ((run.best, "schema.json"), (run.trial(board.winner), "result.json")):
        modes = {stat.S_IMODE((folder / name).stat().st_mode) for name in ("weights.safetensors", neighbour)}
        assert len(modes) == 1


def test_a_store_is_whole_or_not_there(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from autoembed.study.trackers.mlflow import store as moved; "
        "import mlflow.store.tracking.sqlalchemy_store as s; "
        "s.SqlAlchemyStore = lambda uri, root: (open(uri.removeprefix('sqlite:///'), 'w').close(), os._exit(9)); "
        "moved.make_store(Path(sys.argv[1]))"
    )
    store = tmp_path / "runs" / "mlflow.db"
    killed = subprocess.run([sys.executable, "-c", code, store], timeout=300)
    assert killed.returncode == 9
    assert not store.exists()
    left = [path.name for path in store.parent.iterdir() if path.name.startswith(".autoembed-")]
    assert len(left) == 1
    make_store(store)
    assert not [path.name for path in store.parent.iterdir() if path.name.startswith(".autoembed-")]
    assert MlflowClient(f"sqlite:///{store}").search_experiments()
    before = store.stat().st_mtime_ns
    make_store(store)
    assert store.stat().st_mtime_ns == before


def test_a_damaged_store_says_what_to_move_away(finished, cli, tmp_path, monkeypatch):
    run = RunDir(Path(shutil.copytree(finished[0].path, tmp_path / "runs" / "tiny")))
    store = tmp_path / "runs" / "mlflow.db"
    with sqlite3.connect(store) as made:
        made.execute("CREATE TABLE _alembic_tmp_trace_tags (key TEXT)")
        made.execute("CREATE TABLE alembic_version (version_num TEXT)")
    monkeypatch.setattr(moved, "mend_moved", lambda runs: [])
    status, _, err = cli("sync", run.path)
    assert (status, err.count("\n")) == (2, 1)


def test_a_folder_of_a_dead_process_is_swept_and_of_a_living_one_is_not(tmp_path):
    code = "import sys, os; from pathlib import Path; from autoembed.writing import scratch\n"
    code += "with scratch(Path(sys.argv[1])): os._exit(0)"
    subprocess.run([sys.executable, "-c", code, tmp_path], timeout=600, check=True)
    assert len(list(tmp_path.iterdir())) == 1
    with scratch(tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own]
        with scratch(tmp_path) as other:
            assert {own, other} == set(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_a_file_is_whole_or_not_there(tmp_path):
    (tmp_path / "a.txt").write_text("before")

    def fill():
        with beside(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        fill()
    assert (tmp_path / "a.txt").read_text() == "before"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_typo_does_not_take_the_name(write_space, tmp_path, ray_here):
    space = write_space()
    right = yaml.safe_load(space.read_text())
    wrong = right | {"data": {"path": str(tmp_path / "absent.csv")}}
    space.write_text(yaml.safe_dump(wrong))
    request = Request(space=space, runs=tmp_path / "runs")
    with pytest.raises(DataError, match="no such file"):
        run_study(request)
    space.write_text(yaml.safe_dump(right | {"budget": {"trials": 1, "width": 2}}))
    run, board = run_study(request)
    assert board.trials == (2, 0, 0)
    with pytest.raises(StudyError, match="go on with it by resume=True, replace it by force=True"):
        run_study(request)
    trial = (run.trial("dnis-1") / "DONE").stat().st_mtime_ns
    _, again = run_study(Request(space=space, runs=tmp_path / "runs", force=True))
    assert again.trials == (2, 0, 0)
    assert (run.trial("dnis-1") / "DONE").stat().st_mtime_ns != trial
    with pytest.raises(StudyError, match="give one of them"):
        run_study(Request(space=space, runs=tmp_path / "runs", force=True, resume=True))


def test_a_folder_that_is_no_study_is_left_alone(write_space, tmp_path):
    space = write_space()
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "thesis.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(StudyError, match="is not a study's folder: choose another name or folder"):
            run_study(Request(space=space, runs=tmp_path / "runs", force=force))
    (tmp_path / "runs" / "tiny" / "space.yaml").write_text("not a study's: it has no study.json beside it")
    with pytest.raises(StudyError, match="is not a study's folder"):
        run_study(Request(space=space, runs=tmp_path / "runs", force=True))
    assert (tmp_path / "runs" / "tiny" / "thesis.txt").read_text() == "mine"


def test_clearing_a_study_leaves_what_others_have_put_there(finished, tmp_path):
    run = RunDir(Path(shutil.copytree(finished[0].path, tmp_path / "tiny")))
    (run.path / "notes.md").write_text("mine")
    run.clear()
    assert {path.name for path in run.path.iterdir()} - {".lock", ".holder.json"} == {"notes.md"}


def test_a_run_folder_imports_no_module_that_it_names(finished, cli, tmp_path, monkeypatch):
    run = RunDir(Path(shutil.copytree(finished[0].path, tmp_path / "runs" / "tiny")))
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    space = yaml.safe_load(run.space.read_text())
    space["baselines"] = ["uniform", {"method": "evil.code", "option": 1}]
    run.space.write_text(yaml.safe_dump(space))
    assert cli("show", run.path)[0] == 0
    study = Study.open(run.path)
    assert study.export(tmp_path / "own").manifest.provenance["trial"] == study.best.id
    assert "imported" not in cli("export", run.path, tmp_path / "bundle", "--trial", "dnis-1", "--data", "")[2]
    assert "evil" not in sys.modules


def test_errors_of_the_system_and_of_libraries_are_one_line(cli, tmp_path, monkeypatch, finished):
    from autoembed import bundle

    faults = {
        OSError(errno.ENOSPC, "No space left on device", "/x"): "No space left on device: /x (free some space",
        PermissionError(errno.EACCES, "Permission denied", "/x"): "Permission denied: /x (choose another place",
        MemoryError(): "memory ran out",
        RecursionError("deep"): "nested too deeply",
    }
    for fault, line in faults.items():

        def fail(path, fault=fault):
            raise fault

        monkeypatch.setattr(bundle, "load_bundle", fail)
        status, _, err = cli("predict", finished[0].best, tmp_path / "t.csv")
        assert (status, err.count("\n")) == (2, 1), err
        assert line in err


@pytest.mark.parametrize("says_goodbye", [True, False])
def test_a_process_that_ends_at_once_has_a_last_word(says_goodbye):
    end = "pass" if says_goodbye else "import os; os._exit(1)"
    code = f"from autoembed.study.engine.last_word import last_word\nwith last_word():\n    {end}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert ended.returncode == (0 if says_goodbye else 1)
    assert ("go on with `autoembed search ... --resume`" in ended.stderr) == (not says_goodbye)


@pytest.mark.slow
def test_ray_listens_on_loopback_and_its_token_is_its_users(tmp_path, monkeypatch):
    """In a process of its own, as this one has a Ray already."""
    code = """
import json, psutil, ray, stat, sys
from pathlib import Path
from autoembed.study.engine.tune import Resources, cluster
with cluster(Resources(cpus=1)):
    ray.get(ray.remote(lambda: 1).remote())
    me = psutil.Process()
    open_ = [c for p in [me, *me.children(recursive=True)] for c in p.net_connections("inet")]
    found = {c.laddr.ip for c in open_ if c.status == "LISTEN"}
token = Path.home() / ".ray" / "auth_token"
print(json.dumps([sorted(found), [oct(stat.S_IMODE(path.stat().st_mode)) for path in (token.parent, token)]]))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment["HOME"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=800, env=environment, check=True
    )
    listening, modes = json.loads(done.stdout.splitlines()[-1])
    assert set(listening) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert modes == ["0o700", "0o600"]


def test_the_best_bundle_is_exported_without_the_data(finished, cli, tmp_path):
    run = RunDir(Path(shutil.copytree(finished[0].path, tmp_path / "runs" / "tiny")))
    space = yaml.safe_load(run.space.read_text())
    run.space.write_text(yaml.safe_dump(space | {"data": {"path": str(tmp_path / "gone.csv")}}))
    status, _, err = cli("export", run.path, tmp_path / "bundle")
    assert (status, err) == (0, "")
    assert load_bundle(tmp_path / "bundle").manifest == load_bundle(run.best).manifest
    assert "no such file" in cli("export", run.path, tmp_path / "other", "--trial", "uniform-1")[2]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").touch()
    assert "exists and is not a bundle" in cli("export", run.path, tmp_path / "mine")[2]


@pytest.mark.parametrize("name", ["leaderboard.json", "mlflow.json"])
def test_what_can_be_rebuilt_is_rebuilt(write_space, tmp_path, ray_here, name):
    space = write_space(budget={"trials": 1, "width": 2})
    run, board = run_study(Request(space=space, runs=tmp_path / "runs"))
    whole = (run.path / name).read_text()
    (run.path / name).write_text(whole[: len(whole) // 2])
    _, again = run_study(Request(space=space, runs=tmp_path / "runs", resume=True))
    assert again == board
    assert json.loads((run.path / name).read_text()) == json.loads(whole)


def test_a_trial_that_was_interrupted_keeps_its_number_and_values(write_space, tmp_path):
    import optuna

    from autoembed.space import SearchSpace
    from autoembed.study.engine.sampler import _search

    space, run = SearchSpace.read(write_space()), RunDir(tmp_path / "study")
    run.path.mkdir()
    storage = optuna.storages.RDBStorage(run.optuna)
    begun = [_search(run, space, "dnis", storage)]
    first, second = (begun[0].suggest(name) for name in ("a", "b"))
    assert (first["trial"], second["trial"]) == ("dnis-1", "dnis-2")
    run.mark("dnis-1", "pruned", "behind")
    for _ in range(2):  # killed, resumed, killed and resumed once more
        begun.append(_search(run, space, "dnis", storage))
        again = begun[-1].suggest("c")
        assert again == second
    assert begun[-1].suggest("d")["trial"] == "dnis-3"
