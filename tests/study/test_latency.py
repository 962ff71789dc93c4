"""A limit on latency as Optuna hears of it, from the trial itself and from the run folder on --resume."""

import shutil

import optuna
import pytest

from autoembed.space import SearchSpace
from autoembed.study.engine.run import Request, run_study
from autoembed.study.engine.sampler import searcher
from autoembed.study.engine.worker import OVER
from autoembed.study.run_dir import RunDir


def told(run, arm="dnis"):
    return [trial.constraints for trial in optuna.load_study(study_name=arm, storage=run.optuna).trials]


def excess(run, limit):
    return [{OVER: pytest.approx(run.read_trial(f"dnis-{n}").result.latency_ms - limit)} for n in (1, 2)]


def test_a_trial_tells_how_far_it_is_over(write_space, ray_here, tmp_path):
    space = write_space(baselines=[], budget={"trials": 2, "width": 2, "latency_ms": 1e6})
    run, _ = run_study(Request(space=space, runs=tmp_path / "runs"))
    assert told(run) == excess(run, 1e6)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_a_trial_that_ended_without_its_driver_is_told_with_its_excess(finished, write_space, tmp_path, sampler):
    run = RunDir(shutil.copytree(finished[0].path, tmp_path / "runs" / "tiny"))
    (run.path / "optuna.db").unlink()
    left = optuna.create_study(study_name="dnis", storage=run.optuna, direction="maximize")
    for _ in range(2):
        left.ask()
    limit = max(run.read_trial(f"dnis-{n}").result.latency_ms for n in (1, 2)) - 1e-6
    budget = {"trials": 3, "width": 2, "latency_ms": limit}
    arms = searcher(run, SearchSpace.read(write_space(budget=budget, sampler=sampler)), {"dnis": 1})
    assert told(run) == excess(run, limit)
    assert sorted(constraint[OVER] > 0 for constraint in told(run)) == [False, True]
    assert arms.suggest("next")["trial"] == "dnis-3"
