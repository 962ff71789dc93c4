"""Searches that lead nowhere are stopped: those no better than chance, and those behind their peers."""

import json
import math
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from mlflow import MlflowClient
from ray.tune.schedulers import TrialScheduler

from autoembed.errors import SpaceError, StudyError
from autoembed.events import EpochEnd, SearchEnd
from autoembed.metrics import Metrics, auc_error, evaluate
from autoembed.space import SearchSpace
from autoembed.study.engine import worker
from autoembed.study.engine.run import Request, run_study
from autoembed.study.engine.scheduler import PerArm
from autoembed.study.engine.worker import (
    ERROR,
    OBJECTIVE,
    PEERS,
    PROXY,
    PROXY_FIRST,
    RUNG,
    SEARCH_RUNG,
    Reporter,
    TrialPruned,
    peers,
)

DNIS = {"method": "dnis", "warm_epochs": 2, "epochs": 2}
LABELS = np.repeat([0.0, 1.0], [600, 400])


@pytest.fixture
def reports(monkeypatch):
    """What reaches Tune."""
    found = []
    monkeypatch.setattr(worker.tune, "report", found.append)
    return found


@pytest.fixture
def reporter(write_space):
    def make(batches=50, **changes):
        space = SearchSpace.read(write_space(**{"stages": [DNIS]} | changes))
        trial = space.config("dnis", {"train.lr": 1e-3})
        return Reporter(trial, space, batches * trial.train.batch_size, LABELS, lambda values: None)

    return make


def warm(epoch, auc, stage=0):
    return EpochEnd(phase="warm", epoch=epoch, loss=0.6, valid=Metrics(auc=auc, logloss=0.6), stage=stage)


def searched(epoch, auc):
    return EpochEnd(phase="search", epoch=epoch, loss=0.6, valid=Metrics(auc=auc, logloss=0.6), stage=0)


def retrained(epoch, auc):
    return EpochEnd(epoch=epoch, loss=0.6, valid=Metrics(auc=auc, logloss=0.6))


def test_the_error_of_an_auc_is_that_of_many_draws():
    assert auc_error(0.5, 400, 600) == pytest.approx(math.sqrt(1001 / (12 * 400 * 600)))
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [300, 200])
    # Exponential scores, which Hanley and McNeil's formula is exact for: AUC = 3 / (3 + 1).
    draws = [evaluate(labels, 1 - np.exp(-rng.exponential(1 + 2 * labels))).auc for _ in range(2000)]
    assert np.mean(draws) == pytest.approx(0.75, abs=0.005)
    assert np.std(draws) == pytest.approx(auc_error(0.75, 200, 300), rel=0.06)


def test_a_search_no_better_than_chance_is_told_after_two_epochs(reporter, reports):
    report = reporter()
    report(warm(1, 0.49))
    assert len(reports) == 1
    with pytest.raises(
        TrialPruned,
        match=r"^no better than chance: warm_valid_auc 0.5180 after 2 epochs, at step 100, is not above 0.5200$",
    ):
        report(warm(2, 0.518))
    report = reporter(batches=30)  # on few rows it takes more epochs to come so far
    for epoch in (1, 2, 3):
        report(warm(epoch, 0.5))
    with pytest.raises(TrialPruned, match="after 4 epochs, at step 120"):
        report(warm(4, 0.5))
    report = reporter(batches=30)  # steps count on from phase to phase, epochs start at 0 in each phase
    for values in (warm(1, 0.5), warm(2, 0.5), searched(1, 0.5)):
        report(values)
    with pytest.raises(TrialPruned, match=r"search_valid_auc 0.5000 after 2 epochs, at step 120"):
        report(searched(2, 0.5))
    report = reporter()
    report(warm(1, 0.57))
    report(warm(2, 0.52))  # the best epoch is the one that is kept
    for quiet in ({"scheduler": "none"}, {"scheduler": {"name": "asha", "search": False}}):
        report = reporter(**quiet)
        for epoch in (1, 2, 3):
            report(warm(epoch, 0.5))
        assert not {PROXY, PEERS, SEARCH_RUNG} & reports[-1].keys()


def test_a_report_is_of_the_search_or_of_the_retraining(reporter, reports):
    report = reporter()
    report(warm(1, 0.8))
    report(SearchEnd(extra={"clusters": 2.0}, stage=0))
    report(retrained(1, 0.7))
    report(retrained(2, 0.6))
    searched, settled, first, last = reports
    assert searched[PROXY] == 0.8
    assert not {OBJECTIVE, RUNG} & searched.keys()
    assert not {OBJECTIVE, RUNG, PROXY, SEARCH_RUNG} & settled.keys()
    assert not {PROXY, PEERS, SEARCH_RUNG} & first.keys()
    assert (first[OBJECTIVE], first[RUNG]) == (0.7, 1)  # and not the warm start's 0.8
    assert RUNG not in last


def test_the_figure_is_that_of_the_best_epoch_by_the_objective(reporter, reports):
    def told(epoch, auc, logloss):
        return EpochEnd(epoch=epoch, loss=0.6, valid=Metrics(auc=auc, logloss=logloss))

    for objective, figures in (({}, [0.7, 0.8, 0.8]), ({"minimize": "valid.logloss"}, [0.5, 0.5, 0.4])):
        report = reporter(objective=objective)
        for values in (told(1, 0.7, 0.5), told(2, 0.8, 0.6), told(3, 0.6, 0.4)):
            report(values)
        assert [values[OBJECTIVE] for values in reports] == figures
        reports.clear()


def test_peers_have_come_the_same_way(write_space):
    choice = {"choice": [[DNIS], [{**DNIS, "warm_epochs": 3}], [DNIS, {"method": "ihas", "epochs": 1}]]}
    space = SearchSpace.read(write_space(stages=choice))
    two, three, chain = (
        space.config("auto", {"stages": name, "train.lr": 1e-3}) for name in space.ranges("auto")["stages"].values
    )
    assert peers(two, 0, "warm") == peers(three, 0, "warm") == peers(chain, 0, "warm") == "dnis: warm"
    assert peers(two, 0, "search") == peers(chain, 0, "search") == "dnis 2+2: search"
    assert peers(three, 0, "search") == "dnis 3+2: search"
    assert peers(chain, 1, "warm") == "dnis 2+2, ihas: warm"


def feed(scheduler, name, result, arm="dnis"):
    trial = SimpleNamespace(trial_id=name, config={"arm": arm, "trial": name})
    if name not in feed.added:
        scheduler.on_trial_add(None, trial)
        feed.added.add(name)
    return scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP


@pytest.fixture
def scheduler(write_space):
    feed.added = set()

    def make(trials=9, **changes):
        return PerArm({"dnis": trials, "uniform": trials}, SearchSpace.read(write_space(**changes)))

    return make


def searching(value, kind="dnis: warm", epoch=2, auc=None):
    auc = value if auc is None else auc
    return {PROXY: value, PROXY_FIRST: auc, ERROR: 0.01, PEERS: kind, SEARCH_RUNG: epoch}


def test_the_worst_third_of_the_peers_is_stopped_and_the_first_three_never(scheduler):
    rule = scheduler()
    assert not any(feed(rule, f"a{n}", searching(0.7 - n / 100)) for n in range(3))
    assert feed(rule, "a3", searching(0.6))
    assert rule.reasons == {
        "a3": "behind its peers: warm_valid_auc 0.6000 at epoch 2 is in the worst third of 4 trials, "
        "and 0.1000 of AUC behind the best (dnis: warm)"
    }
    assert not feed(rule, "a4", searching(0.8))
    assert not feed(rule, "a5", searching(0.6, epoch=1))
    assert not feed(rule, "a5", searching(0.6, epoch=3))
    rng = np.random.default_rng(0)
    stopped = sum(feed(rule, f"b{n}", searching(value)) for n, value in enumerate(rng.permutation(300) / 300))
    assert 85 < stopped < 115
    rule = scheduler(objective={"minimize": "valid.logloss"})
    for n, logloss in enumerate((0.5, 0.51, 0.52)):
        assert not feed(rule, f"c{n}", searching(logloss, auc=0.7))
    assert feed(rule, "c4", searching(0.6, auc=0.6))
    assert not feed(rule, "c5", searching(0.4, auc=0.6))


def test_a_lead_within_the_error_stops_nothing_and_a_trial_is_compared_once(scheduler):
    rule = scheduler()
    for n in range(3):
        assert not feed(rule, f"a{n}", searching(0.7 + n / 1000))
    assert not feed(rule, "b", searching(0.693))
    assert not feed(rule, "a0", searching(0.1, "dnis 2+4: search"))  # it is through
    for n in range(5):
        assert not feed(rule, f"c{n}", searching(0.9, "dnis 2+4: search"))
    assert feed(rule, "d", searching(0.69))


def test_other_schedules_and_arms_are_no_peers(scheduler):
    rule = scheduler()
    for n in range(5):
        assert not feed(rule, f"a{n}", searching(0.9, "dnis 2+4: search"))
    assert not feed(rule, "b", searching(0.1, "dnis 4+4: search"))
    assert not feed(rule, "c", searching(0.1, "dnis: warm"))
    assert not feed(rule, "d", searching(0.1, "dnis 2+4: search"), arm="uniform")
    assert feed(rule, "e", searching(0.1, "dnis 2+4: search"))


def test_retrained_and_searched_metrics_never_meet(scheduler):
    rule = scheduler()
    for n in range(5):
        assert not feed(rule, f"a{n}", searching(0.9))
    # Behind every search, but the first retrained ones that there are.
    assert not feed(rule, "a0", {OBJECTIVE: 0.6, RUNG: 2})
    assert not feed(rule, "a1", {OBJECTIVE: 0.61, RUNG: 2})
    assert feed(rule, "a2", {OBJECTIVE: 0.5, RUNG: 2})
    assert rule.reasons["a2"] == "behind its arm: valid_auc 0.5000 at epoch 2 of retraining"
    # Ahead of every retrained one, and still the worst of the searches.
    assert feed(rule, "a6", searching(0.8, auc=0.8))
    seen = [
        {value for _, recorded in one._brackets[0]._rungs for value in recorded.values()}
        for one in (rule._arms["dnis"], *rule._searches.values())
    ]
    assert seen == [{0.6, 0.61, 0.5}, {0.9, 0.8}]


def test_few_trials_a_cost_and_none_stop_no_search(scheduler):
    for rule in (
        scheduler(3),
        scheduler(scheduler="none"),
        scheduler(objective={"minimize": ["valid.logloss", "bytes"]}),
    ):
        assert not any(feed(rule, f"a{n}", searching(0.9 - n / 10)) for n in range(6))


def test_the_scheduler_is_a_name_or_has_options(write_space):
    for given, name, stops in (
        ("asha", "asha", True),
        ("median", "median", True),
        ("none", "none", False),
        ({"search": False}, "asha", False),
        ({"name": "median", "search": True}, "median", True),
    ):
        found = SearchSpace.read(write_space(scheduler=given)).scheduler
        assert (found.name, found.stops_searches) == (name, stops)
    with pytest.raises(SpaceError, match=r"scheduler.name: Input should be 'asha', 'median' or 'none'"):
        SearchSpace.read(write_space(scheduler="ash"))
    with pytest.raises(SpaceError, match=r"scheduler.searches: unknown key: must be one of name, search"):
        SearchSpace.read(write_space(scheduler={"searches": False}))


@pytest.mark.slow
def test_trials_that_cannot_learn_end_while_searching_and_the_winner_stays(write_space, ray_here, tmp_path, cli):
    changes = {
        "data": {
            "planted": {"rows": 20000, "seed": 0, "marginal": [20, 50], "xor": [], "low_rank": [], "noise": [10]},
            "split": {"by": "random", "valid": 0.2, "test": 0.2},
        },
        "stages": [DNIS | {"precisions": [32], "guard": "measured"}],
        "baselines": [],
        "train": {"epochs": 3, "lr": {"choice": [1.0e-9, 3.0e-3, 5.0e-3]}, "batch_size": 128},
        "budget": {"trials": 5, "width": 2, "concurrent": 1},
        "seed": 5,
        "sampler": "random",
    }
    whole = run_study(Request(space=write_space("whole", **changes, scheduler={"search": False}), runs=tmp_path / "r"))
    run, board = run_study(Request(space=write_space("short", **changes), runs=tmp_path / "r"))
    dead = [
        name
        for name in (f"dnis-{n}" for n in range(1, 6))
        if run.state(name) == "pruned" and not any("retrain_epoch" in p for p in run.curves(name))
    ]
    lrs = {
        path.parent.name: json.loads(path.read_text())["train"]["lr"] for path in run.path.glob("trials/*/config.json")
    }
    hopeless = {name for name, lr in lrs.items() if lr < 1e-6}
    assert hopeless
    assert hopeless <= set(dead)
    assert board.winner == whole[1].winner
    assert board.rows[0].valid == whole[1].rows[0].valid
    reasons = {ended.id: ended.reason for ended in run.ended()}
    assert any(reasons[name].startswith("no better than chance: warm_valid_auc 0.") for name in dead)
    assert all(reasons[name].startswith(("no better than chance: ", "behind its peers: ")) for name in dead)
    assert board.rows[0].pruned == sum(ended.state == "pruned" for ended in run.ended())

    study = optuna.load_study(study_name="dnis", storage=run.optuna)
    told = {f"dnis-{trial.number + 1}": trial for trial in study.trials}
    for name in dead:
        assert told[name].state == optuna.trial.TrialState.PRUNED
        assert (told[name].values, told[name].intermediate_values) == (None, {})

    status, out, _ = cli("show", run.path)
    assert status == 0
    assert f"{board.rows[0].pruned} of 5 trials were stopped:" in out
    assert "no better than chance: warm_valid_auc" in out
    known = run.read_json("mlflow.json")
    for child in MlflowClient(known["tracking_uri"]).search_runs([known["experiment"]]):
        if child.data.tags.get("trial") in dead:
            assert (child.info.status, child.data.tags["state"]) == ("FINISHED", "pruned")
            assert child.data.tags["reason"] == reasons[child.data.tags["trial"]]
            assert child.data.tags["phase"] in ("warm", "search")

    again, _ = run_study(Request(space=tmp_path / "short.yaml", runs=tmp_path / "r", resume=True, trials=9))
    assert len(again.ended()) == 9
    assert {name: again.state(name) for name in dead} == dict.fromkeys(dead, "pruned")


def test_a_study_of_hopeless_searches_says_what_to_do(write_space, ray_here, tmp_path):
    data = {
        "planted": {"rows": 20000, "seed": 0, "marginal": [], "xor": [], "low_rank": [], "noise": [10, 50]},
        "split": {"by": "random", "valid": 0.2, "test": 0.2},
    }
    space = write_space(data=data, stages=[DNIS], baselines=[], train={"epochs": 1, "lr": 1e-3, "batch_size": 256})
    first = r"none of 1 trials ended well, 1 were stopped; the first, dnis-1: no better than chance: "
    advice = r"try other ranges, more valid rows, or scheduler: \{search: false\}"
    with pytest.raises(StudyError, match=f"^{first}.*: {advice}$"):
        run_study(Request(space=space, runs=tmp_path / "runs"))
