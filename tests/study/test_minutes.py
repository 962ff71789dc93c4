"""A budget of time: no trial begins after it, those that run are cut off in the end, and a study goes on with more."""

import json

import pytest

from autoembed.errors import SpaceError, StudyError
from autoembed.space import SearchSpace
from autoembed.study.engine import clock
from autoembed.study.engine.clock import Clock
from autoembed.study.engine.recorder import Recorder
from autoembed.study.engine.run import Request, run_study
from autoembed.study.engine.sampler import searcher
from autoembed.study.engine.scheduler import PerArm
from autoembed.study.overview import look
from autoembed.study.run_dir import RunDir


@pytest.fixture
def run(tmp_path):
    (tmp_path / "study" / "trials").mkdir(parents=True)
    return RunDir(tmp_path / "study")


@pytest.fixture
def space(write_space):
    return SearchSpace.read(write_space(budget={"trials": 2, "width": 2, "minutes": 4}))


class Time:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now

    def time(self):
        return 1_000_000 + self.now


@pytest.fixture
def at(monkeypatch):
    time = Time()
    monkeypatch.setattr(clock, "time", time)
    return time


def test_time_is_counted_over_all_starts(run, space, at):
    first = Clock(run, space)
    assert not first.over
    at.now += 100
    first.ended("dnis-1")
    at.now += 50  # lost: the process is killed
    second = Clock(run, space)
    assert run.read_json("minutes.json") == {"spent": 100.0, "until": at.time() + 140}
    at.now += 139
    assert not second.over
    at.now += 1
    assert second.over
    assert not second.late
    at.now += 60  # a quarter of 4 minutes, and at least one
    assert second.late
    second.stop()
    assert clock.is_over(run, space)
    more = space.model_copy(update={"budget": space.budget.model_copy(update={"minutes": 5})})
    assert not clock.is_over(run, more)
    assert not Clock(run, more).over  # the time to end is on top
    assert "4 minutes was spent when 0 of 3 trials had ended" in clock.note(run, space, 3)
    assert clock.note(run, space, 0) is None
    assert clock.grace(3600) == 900


def test_without_a_budget_of_time_there_is_no_end(run, write_space, at):
    endless = Clock(run, SearchSpace.read(write_space()))
    at.now += 1e9
    assert not endless.over
    assert not endless.late
    assert not (run.path / "minutes.json").exists()


class Trial:
    def __init__(self, name):
        self.trial_id, self.config, self.last_result = name, {"trial": name, "arm": "dnis"}, {}


def test_no_trial_is_drawn_after_it_and_late_ones_leave_nothing(run, space, at):
    time = Clock(run, space)
    arms, scheduler = searcher(run, space, {"dnis": 3}, time), PerArm({"dnis": 3}, space, time)
    name = arms.suggest("a")["trial"]
    run.begin_trial(name, space.config("dnis", {"train.lr": 0.01}, 0))
    at.now += 241
    assert arms.suggest("b") == "FINISHED"
    assert scheduler.on_trial_result(None, Trial(name), {"valid_auc": 0.6}) == "CONTINUE"
    at.now += 60
    assert scheduler.on_trial_result(None, Trial(name), {"finished": True}) == "CONTINUE"
    assert scheduler.on_trial_result(None, Trial(name), {"valid_auc": 0.6}) == "STOP"
    heard = []
    Recorder(run, [Heard(heard)], {}, time.cut).on_trial_complete(0, [], Trial(name))
    arms.on_trial_complete("a", {"valid_auc": 0.6})
    arms.close()
    assert not run.trial(name).exists()
    assert heard == []
    again = searcher(run, space, {"dnis": 3})
    assert again.suggest("c")["trial"] == name  # it is run again, with its values
    again.close()


class Heard:
    def __init__(self, heard):
        self.ended = heard.append


def test_a_study_ends_in_time_and_goes_on_with_more(write_space, tmp_path, ray_here, monkeypatch, cli):
    """Its time is over as soon as a trial has ended."""
    path = write_space(budget={"trials": 3, "width": 2, "concurrent": 1})
    real = Clock.ended

    def ended(self, trial):
        self._before += 3600
        real(self, trial)

    monkeypatch.setattr(Clock, "ended", ended)
    request = Request(space=path, runs=tmp_path / "runs", minutes=5)
    run, board = run_study(request)
    done = len(run.ended())
    assert 1 <= done < 6
    assert sum(board.trials) == done
    assert f"The budget of 5 minutes was spent when {done} of 6 trials had ended" in board.note
    assert (run.best / "manifest.json").is_file()
    assert "minutes: 5" in run.space.read_text()
    assert look(run).state == "finished"
    assert run.read_json("mlflow.json")["status"] == "FINISHED"
    assert board.note in cli("show", run.path)[1]
    assert board.note.split(":")[0] in (run.path / "report.html").read_text()
    same, again = run_study(Request(space=path, runs=tmp_path / "runs", minutes=5, resume=True))
    assert (len(same.ended()), again) == (done, board)  # there is no time left
    monkeypatch.setattr(Clock, "ended", real)
    whole, full = run_study(Request(space=path, runs=tmp_path / "runs", minutes=600, resume=True))
    assert len(whole.ended()) == 6
    assert full.note is None


def test_wrong_minutes_are_refused(write_space, tmp_path, cli):
    with pytest.raises(SpaceError, match="minutes"):
        SearchSpace.read(write_space(budget={"minutes": 0}))
    with pytest.raises(StudyError, match="minutes must be above 0, but got -1"):
        run_study(Request(space=write_space(), runs=tmp_path / "runs", minutes=-1))
    status, _, err = cli("search", write_space(), "--runs", tmp_path / "runs", "--minutes", "0")
    assert status == 2
    assert "--minutes must be above 0" in err
    assert json.loads(cli("ls", "--runs", tmp_path, "--json")[1]) == []
