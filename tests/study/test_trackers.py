"""Who is told of a study."""

import re
import sys
from pathlib import Path

import pytest

from autoembed.errors import SpaceError
from autoembed.space import SearchSpace
from autoembed.study.engine.run import Request, run_study
from autoembed.study.study import Study
from autoembed.study.trackers.base import find

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"


def test_nobody_need_be_told(write_space, ray_here, tmp_path, cli):
    space = write_space(tracking="none", baselines=[])
    run, _ = run_study(Request(space=space, runs=tmp_path / "runs"))
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"tiny", ".cache"}
    assert not (run.path / "mlflow.json").exists()
    assert "MLflow" not in cli("show", run.path)[1]
    assert (tmp_path / "runs" / "mlflow.db").as_posix() in Study.open(run.path).sync()  # for those who want it later
    assert run.read_json("mlflow.json")["status"] == "FINISHED"


def test_a_tracker_of_ones_own_is_told_in_order(write_space, ray_here, tmp_path, monkeypatch):
    text = next(text for name, text in re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
                if name == "my_package/lines.py")  # fmt: skip
    (tmp_path / "own_tracker").mkdir()
    (tmp_path / "own_tracker" / "__init__.py").touch()
    (tmp_path / "own_tracker" / "lines.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    space = write_space(tracking="own_tracker.lines", baselines=[])
    _, board = run_study(Request(space=space, runs=tmp_path / "runs"))
    told = (tmp_path / "runs" / "tiny.txt").read_text().splitlines()
    assert told[0] == "study tiny"
    assert sorted(told[1:3]) == ["dnis-1 done", "dnis-2 done"]
    assert told[3:] == [f"best {board.winner}", "FINISHED"]
    run_study(Request(space=space, runs=tmp_path / "runs", resume=True))
    assert (tmp_path / "runs" / "tiny.txt").read_text().splitlines() == told
    (tmp_path / "runs" / "tiny.txt").unlink()
    run_study(Request(space=space, runs=tmp_path / "runs", resume=True))
    again = (tmp_path / "runs" / "tiny.txt").read_text().splitlines()
    assert again == ["study tiny", f"best {board.winner}", "FINISHED"]
    sys.modules.pop("own_tracker.lines")


def test_unknown_trackers_are_named(write_space):
    with pytest.raises(SpaceError, match="tracking: unknown tracker 'wandb': must be one of mlflow, none"):
        SearchSpace.read(write_space(tracking="wandb"))
    with pytest.raises(SpaceError, match=r"cannot load the tracker 'no\.such'"):
        find("no.such")
    with pytest.raises(SpaceError, match=r"the tracker module 'os\.path' must define Tracker"):
        find("os.path")
