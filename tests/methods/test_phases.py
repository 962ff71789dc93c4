"""Recipes of single phases of a stage, and the refit on all rows."""

import pytest
import torch

from autoembed.errors import SpaceError
from autoembed.events import EpochEnd
from autoembed.methods import bilevel
from autoembed.methods.method import configure, load
from autoembed.metrics import evaluate
from autoembed.training import Adam, PhaseTrain, TrainConfig, fit, predict
from autoembed.trial import check, root_architecture, run_trial

CPU = torch.device("cpu")
DNIS = {"method": "dnis", "warm_epochs": 1, "epochs": 1, "precisions": [32], "retrain": "inherit"}
TRAIN = {"epochs": 1, "lr": 4e-3, "batch_size": 512}


def config(*stages, **changes):
    return check(
        {
            "arm": "x",
            "stages": list(stages),
            "embedding": {"dim": 4, "blocks": 3},
            "backbone": {"name": "deepfm", "hidden": [8], "dropout": 0.0},
            "train": TRAIN,
            "limit": {"width": 2},
            **changes,
        }
    )


def searched(dataset, stage, seed=0, train=None):
    """(net, what it reported)."""
    trial, reports = config(stage, train=TRAIN | (train or {})), []
    torch.manual_seed(seed)
    root = root_architecture(trial, dataset)
    net = load(stage["method"]).Supernet(dataset.schema, root, configure(stage), dataset.counts, seed)
    bilevel.search(net, dataset, trial.train, device=CPU, seed=seed, report=reports.append)
    return net, reports


def test_a_phase_changes_keys_of_the_recipe():
    train = TrainConfig(lr=1e-2, l2=0.1, decay=0.5)
    assert PhaseTrain().of(train) == train
    assert PhaseTrain(lr_factor=0.1, l2=0, decay=1).of(train) == TrainConfig(lr=1e-3, l2=0)
    assert PhaseTrain(lr=0.3, batch_size=7).of(train) == TrainConfig(lr=0.3, l2=0.1, decay=0.5, batch_size=7)
    with pytest.raises(ValueError, match=r"set lr or lr_factor, but got lr=1 and lr_factor=2"):
        PhaseTrain(lr=1, lr_factor=2)
    with pytest.raises(SpaceError, match=r"with sparse it must be 0, but got 0\.1"):
        PhaseTrain(sparse=True).of(train)


def test_what_a_phase_may_not_change_is_named():
    with pytest.raises(SpaceError, match=r"stage dnis: search_train\.epochs"):
        config({**DNIS, "search_train": {"epochs": 3}})
    with pytest.raises(SpaceError, match=r"stage magnitude: search_train"):
        config({"method": "magnitude", "search_train": {"lr": 0.1}})
    with pytest.raises(SpaceError, match=r"with sparse it must be 0, but got 0\.1"):
        config({**DNIS, "inherit_train": {"l2": 0.1}}, train=TRAIN | {"sparse": True})


def test_each_phase_is_trained_by_its_own_recipe(planted, monkeypatch):
    seen = []
    step = Adam.step
    monkeypatch.setattr(Adam, "step", lambda self: (seen.append(self.param_groups[0]["lr"]), step(self))[1])
    stage = {
        **DNIS,
        "warm_train": {"lr": 1e-3},
        "search_train": {"lr_factor": 0.5},
        "refit": True,
        "refit_epochs": 1,
        "refit_train": {"lr": 3e-3},
        "guard": "none",
        "inherit_train": {"lr": 5e-3},
    }
    run_trial(config(stage), planted, lambda values: None)
    assert list(dict.fromkeys(seen)) == [1e-3, 2e-3, 3e-3, 5e-3]
    seen.clear()
    run_trial(config({**stage, "retrain": "fresh"}), planted, lambda values: None)
    assert list(dict.fromkeys(seen)) == [1e-3, 2e-3, 3e-3, 4e-3]


def test_the_learning_rate_of_a_search_falls_by_its_decay(planted, monkeypatch):
    rates = []
    step = Adam.step
    monkeypatch.setattr(Adam, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self))[1])
    options = {"warm_epochs": 0, "epochs": 4, "search_train": {"lr": 1e-3, "decay": 0.5, "min_gain": 1}}
    searched(planted, {**DNIS, **options})
    assert list(dict.fromkeys(rates)) == [1e-3, 5e-4, 2.5e-4]


def test_a_refit_trains_the_weights_on_all_rows_and_leaves_the_gates(planted, monkeypatch):
    plain, _ = searched(planted, DNIS)
    taken = []

    def watch(net, dataset, recipe, **options):
        taken.append((recipe.epochs, options.get("rows"), options.get("start")))
        return fit(net, dataset, recipe, **options)

    monkeypatch.setattr(bilevel, "fit", watch)
    net, reports = searched(planted, {**DNIS, "refit": True, "refit_epochs": 2})
    assert torch.equal(net.alpha, plain.alpha)
    assert net.alpha.requires_grad
    assert not torch.equal(net.weight, plain.weight)
    (_, warm, _), (epochs, rows, start) = taken
    assert (len(warm), rows, epochs) == (round(0.8 * planted.rows("train")), None, 2)
    before = evaluate(planted.labels("valid"), predict(plain, planted, "valid", CPU))
    assert start == before
    told = [event for event in reports if event.phase == "refit"]
    assert [event.epoch for event in told] == [1, 2]
    after = evaluate(planted.labels("valid"), predict(net, planted, "valid", CPU))
    assert after.auc == max([before.auc, *(event.valid.auc for event in told)])


def test_weights_that_no_epoch_of_a_refit_betters_stay(planted):
    plain, _ = searched(planted, DNIS)
    net, _ = searched(planted, {**DNIS, "refit": True, "refit_train": {"lr": 10}})
    for a, b in zip(net.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", ["ihas", "optinter"])
def test_other_methods_refit_too(planted_pairs, method):
    stage = {"method": method, "warm_epochs": 0, "epochs": 1, "refit": True, "refit_epochs": 1}
    reports = []
    limit = {"width": 2} if method == "ihas" else {}
    result, _ = run_trial(config(stage, limit=limit), planted_pairs, reports.append)
    phases = [event.phase for event in reports if isinstance(event, EpochEnd)]
    assert phases == ["search", "refit", "retrain"]
    assert result.valid.auc > 0.5


def test_ranges_work_inside_the_recipe_of_a_phase(tmp_path):
    from autoembed.space import SearchSpace

    (tmp_path / "s.yaml").write_text(
        "data: {path: x.csv, label: y}\n"
        "stages: [{method: dnis, search_train: {lr: {log: [1.0e-5, 1.0e-3]}}, refit: {choice: [true, false]}}]\n"
        "budget: {width: 2}\n"
    )
    space = SearchSpace.read(tmp_path / "s.yaml")
    assert set(space.ranges("dnis")) == {"stages.0.search_train.lr", "stages.0.refit"}
    trial = space.config("dnis", {"stages.0.search_train.lr": 1e-4, "stages.0.refit": True})
    assert configure(trial.stages[0]).search_train == PhaseTrain(lr=1e-4)


def test_without_a_search_no_row_is_held_out_of_the_warm_start(planted, monkeypatch):
    taken = []
    monkeypatch.setattr(bilevel, "fit", lambda net, dataset, recipe, rows, **options: taken.append(len(rows)))
    for epochs in (1, 0):
        searched(planted, {**DNIS, "epochs": epochs})
    assert taken == [14400, 18000]


def test_a_preset_sets_what_the_paper_says_and_the_stage_comes_first():
    assert configure({"method": "dnis"}).choose_by == "loss"
    paper = configure({"method": "dnis", "preset": "paper"})
    assert (paper.choose_by, paper.share, paper.guard, paper.retrain) == ("weight", "global", "none", "fresh")
    assert configure({"method": "dnis", "preset": "paper", "share": "field"}).share == "field"
    assert configure({"method": "ihas", "preset": "paper"}).cluster_on == "masked"
    assert configure({"method": "optinter", "preset": "paper"}).update == "joint"
    with pytest.raises(SpaceError, match="preset: paper must be of one of dnis, ihas, optinter"):
        configure({"method": "magnitude", "preset": "paper"})
    with pytest.raises(SpaceError, match="preset"):
        configure({"method": "dnis", "preset": "papper"})


@pytest.mark.parametrize("method", ["dnis", "ihas"])
def test_a_preset_runs(method, planted):
    stage = {"method": method, "preset": "paper", "warm_epochs": 1, "epochs": 1}
    result, _ = run_trial(config(stage, limit={"width": 4}), planted, lambda values: None)
    assert result.cost.bytes > 0
