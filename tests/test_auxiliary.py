"""Several labels at once: towers on shared embeddings, their losses and gaps, weights, what a search values."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch.nn import functional

from autoembed import training
from autoembed.architecture import Architecture
from autoembed.auxiliary import (
    AuxiliaryLosses,
    auxiliary_metrics,
    check_stopping,
    columns_of,
    predict_auxiliary,
    under_labels,
)
from autoembed.batches import RowWeights, batches
from autoembed.data.crosses import CrossSpec
from autoembed.errors import SpaceError, TrialError
from autoembed.methods.bilevel import search
from autoembed.methods.method import configure, load
from autoembed.metrics import Metrics
from autoembed.nn.model import build_model, cost_of, measure, pack
from autoembed.shuffle import Stretch
from autoembed.space import SearchSpace
from autoembed.task import CLICKS
from autoembed.training import TrainConfig, fit, metrics_on
from autoembed.trial import check, run_trial
from tests.purchases import PLAIN, dataset_of, gaps

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Purchases with clicks beside them, which are known in two of three rows."""
    return dataset_of(tmp_path_factory.mktemp("data") / "both", change=gaps, auxiliary_labels=["click"])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same without the clicks: with the same ids."""
    folder = tmp_path_factory.mktemp("alone") / "one"
    return dataset_of(folder, change=gaps, drop=["w", "known", "click"])


def full(dataset, **options):
    return Architecture.full(dataset.schema, dataset.counts, dim=4, blocks=2, backbone=PLAIN | options)


def model_of(dataset, seed=0, **options):
    torch.manual_seed(seed)
    return build_model(dataset.schema, full(dataset, **options))


def trained(model, dataset, **train):
    config = TrainConfig(**{"epochs": 2, "batch_size": 512, "lr": 0.01, **train})
    return fit(model, dataset, config, device=CPU, seed=1, report=lambda event: None)


def test_the_logits_of_the_label_are_those_of_forward_and_cost_counts_the_towers(data, alone):
    model, plain = model_of(data).eval(), model_of(alone).eval()
    assert model.auxiliary_labels == ("click",)
    assert plain.auxiliary_labels == ()
    ids = torch.from_numpy(data.ids("valid")[:64])
    main, further = model.all_logits(ids)
    assert torch.equal(main, model(ids))
    assert torch.equal(main, plain(ids))  # the same weights, whatever comes beside them
    assert further.shape == (64, 1)
    e_BFD = model.embed(ids)[..., :-1]
    assert torch.equal(further[:, 0], model.heads.towers[0](e_BFD))
    cost = cost_of(model.architecture)
    tower = sum(p.numel() for p in model.heads.parameters())
    assert tower == 8 * 16 + 16 + 16 + 1
    assert cost == measure(pack(model, data.schema))
    assert cost.dense_parameters - cost_of(plain.architecture).dense_parameters == tower
    assert cost.bytes >= cost_of(plain.architecture).bytes + 4 * tower
    read = Architecture.model_validate_json(model.architecture.model_dump_json())
    assert read == model.architecture
    # So were architectures stored before there were auxiliary labels.
    assert "auxiliary_labels" not in json.loads(plain.architecture.model_dump_json())


def test_a_label_of_weight_0_moves_nothing_but_its_own_tower(data, alone):
    model, plain = model_of(data), model_of(alone)
    before = {name: tensor.clone() for name, tensor in model.heads.state_dict().items()}
    trained(model, data, auxiliary_weights=0.0)
    trained(plain, alone)
    own, theirs = model.state_dict(), plain.state_dict()
    assert max((own[name] - theirs[name]).abs().max() for name in theirs) < 1e-6
    assert all(not torch.equal(tensor, before[name]) for name, tensor in model.heads.state_dict().items())
    moved = model_of(data)
    trained(moved, data)
    assert max((moved.state_dict()[name] - theirs[name]).abs().max() for name in theirs) > 1e-2


@pytest.mark.parametrize("weighted", [False, True])
def test_a_loss_is_the_mean_over_the_rows_that_know_the_label(weighted, tmp_path):
    data = dataset_of(tmp_path / "w", change=gaps, auxiliary_labels=["click"], drop=["known"], weight="w")
    if not weighted:
        data = dataset_of(tmp_path / "w", change=gaps, auxiliary_labels=["click"])
    model = model_of(data)
    weights = RowWeights(data, rows := data.rows("train"))
    losses = AuxiliaryLosses(model, data, rows, weights, 1.0)
    columns = (*weights.columns, *losses.columns)
    ids, _, *told = next(batches(data, "train", rows, CPU, columns=columns))
    both = model.all_logits(ids)
    found = losses.of(both[1], told[-1], weights.of(told))
    known = ~told[-1][:, 0].isnan()
    own = told[0][known] if weighted else torch.ones(int(known.sum()))
    chances = both[1][known, 0].sigmoid().detach().numpy()
    wanted = log_loss(told[-1][known, 0].numpy(), chances, sample_weight=own.numpy())
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    # By gradients: as if the rows without the label were not there.
    gradient = torch.autograd.grad(found.sum(), model.embedding_weights(), retain_graph=True)
    each = functional.binary_cross_entropy_with_logits(both[1][known, 0], told[-1][known, 0], reduction="none")
    alone = torch.autograd.grad((each * own).sum() / own.sum(), model.embedding_weights())
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(gradient, alone, strict=True))
    total = losses.total(torch.tensor(0.25), both, told, weights.of(told))
    assert total.item() == pytest.approx(0.25 + found.item(), rel=1e-6)


def test_small_batches_have_the_same_mean(data):
    """Each batch counts by its rows, whatever it knows, so that the mean over batches is that over rows."""
    model, rows = model_of(data).eval(), data.rows("train")
    weights = RowWeights(data, rows)
    losses = AuxiliaryLosses(model, data, rows, weights, {"click": 0.5})
    total = 0.0
    for ids, _, told in batches(data, "train", 100, CPU, columns=losses.columns):
        total += losses.of(model.all_logits(ids)[1], told, None).item() * len(ids) / rows
    labels, chances = data.auxiliary("train")[:, 0], predict_auxiliary(model, data, "train", CPU)[:, 0]
    known = ~np.isnan(labels)
    assert total == pytest.approx(log_loss(labels[known], chances[known]), rel=1e-5)
    assert losses.fixed.tolist() == [0.5]


def test_metrics_are_of_the_rows_that_know_the_label(data):
    model = model_of(data)
    trained(model, data)
    found = auxiliary_metrics(model, data, "test", CPU)["click"]
    labels, chances = data.auxiliary("test")[:, 0], predict_auxiliary(model, data, "test", CPU)[:, 0]
    known = ~np.isnan(labels)
    assert found.auc == pytest.approx(roc_auc_score(labels[known], chances[known]), abs=1e-9)
    assert found.logloss == pytest.approx(log_loss(labels[known], chances[known]), abs=1e-6)
    assert under_labels("test", {"click": found}) == {
        "test_auc.click": found.auc,
        "test_logloss.click": found.logloss,
    }
    assert auxiliary_metrics(model_of(data), data, "test", CPU)["click"].auc < found.auc


@pytest.mark.parametrize(("stop_by", "kept"), [("label", 3), ("all_labels", 2)])
def test_training_keeps_the_best_epoch_of_the_label_or_of_all(data, monkeypatch, stop_by, kept):
    own, other = iter([0.6, 0.7, 0.71, 0.6]), iter([0.7, 0.8, 0.7, 0.7])
    monkeypatch.setattr(training, "on_valid", lambda *_: Metrics(auc=next(own), logloss=0.5))
    monkeypatch.setattr(training, "auxiliary_metrics", lambda *_: {"click": Metrics(auc=next(other), logloss=0.5)})
    fitted = trained(model_of(data), data, epochs=4, patience=4, stop_by=stop_by)
    assert fitted.epoch == kept
    assert fitted.valid.auc == [0.6, 0.7, 0.71, 0.6][kept - 1]


def test_all_labels_must_have_the_metric(data):
    config = TrainConfig(epochs=1, stop_by="all_labels")
    own = {"device": CPU, "seed": 0, "report": lambda event: None}
    with pytest.raises(SpaceError, match="a metric that all labels have, valid AUC or valid logloss, but"):
        check_stopping(("click",), "all_labels", CLICKS.grouped[0])
    assert fit(model_of(data), data, config, monitor="valid_logloss", **own).epoch == 1


def test_uncertainty_weighs_losses_by_their_inverse(data):
    """Constant losses: at rest exp(s) = 2 L, so that weights are as L_label / L (Kendall et al., eq. 10)."""
    model, rows = model_of(data), data.rows("train")
    losses = AuxiliaryLosses(model, data, rows, RowWeights(data, rows), "uncertainty")
    assert losses.uncertainty.weights().tolist() == [1.0]
    for _ in range(1000):
        losses.uncertainty.see(torch.tensor([0.1, 0.4]))
    assert torch.allclose(losses.uncertainty.log_variance.exp(), torch.tensor([0.2, 0.8]), rtol=1e-3)
    assert losses.uncertainty.weights().item() == pytest.approx(0.25, rel=1e-3)
    # Of the held-out rows of a search the weights are those of its train rows, which alone move them.
    held = AuxiliaryLosses(model, data, 500, RowWeights(data, 500), "uncertainty", like=losses)
    ids, _, told = next(batches(data, "train", 500, CPU, columns=held.columns))
    both, before = model.all_logits(ids), losses.uncertainty.log_variance.clone()
    total = held.total(torch.tensor(1.0), both, [told], None)
    assert total.item() == pytest.approx(1 + 0.25 * held.of(both[1], told, None).item(), rel=1e-3)
    assert torch.equal(losses.uncertainty.log_variance, before)
    losses.total(torch.tensor(1.0), both, [told], None)
    assert not torch.equal(losses.uncertainty.log_variance, before)
    fitted = trained(model, data, auxiliary_weights="uncertainty")
    assert fitted.valid == metrics_on(model, data, "valid", CPU)


def test_frequent_clicks_help_rare_purchases_and_noise_does_little_harm(tmp_path):
    """3 % of the rows are purchases, by the same truth as half of the rows are clicks; or clicks are noise."""
    rows = (20000, 10000, 20000)
    parts = {
        "alone": dataset_of(tmp_path / "alone", rows, drop=["w", "known", "click"]),
        "both": dataset_of(tmp_path / "both", rows, auxiliary_labels=["click"]),
        "noise": dataset_of(tmp_path / "noise", rows, auxiliary_labels=["click"], noise=True),
    }
    found = {name: [] for name in parts}
    for seed in range(3):
        for name, data in parts.items():
            model = model_of(data, seed, name="dnn")
            weights = "uncertainty" if name == "noise" else 1.0
            trained(model, data, epochs=5, batch_size=1024, auxiliary_weights=weights)
            found[name].append(metrics_on(model, data, "test", CPU).auc)
    auc = {name: np.array(values) for name, values in found.items()}
    assert (auc["both"] - auc["alone"]).min() > 0.015
    assert (auc["noise"] - auc["alone"]).mean() > -0.003


@pytest.mark.parametrize(
    "stage",
    [
        {"method": "uniform"},
        {"method": "sensitivity", "warm_epochs": 1},
        {"method": "dnis", "warm_epochs": 1, "epochs": 1},
        {
            "method": "dnis",
            "warm_epochs": 1,
            "epochs": 1,
            "update": "joint",
            "granularity": "entry",
            "choose_by": "weight",
        },
        {"method": "dnis_bits", "warm_epochs": 1, "epochs": 1},
        {"method": "select", "warm_epochs": 1},
        {"method": "quotient_remainder"},
    ],
    ids=lambda stage: "-".join(str(value) for value in stage.values()),
)
def test_a_search_has_the_towers_too_and_the_compact_model_its_weights(stage, data):
    """The supernet trains on all labels, and the compact model that it gives says the same of all of them."""
    config = configure(stage)
    torch.manual_seed(0)
    net = load(config.method).Supernet(data.schema, full(data), config, data.counts, 0)
    before = None if net.heads is None else net.heads.towers[0].input.linear.weight.clone()
    search(net, data, TrainConfig(batch_size=512, lr=0.01), device=CPU, seed=0, report=lambda event: None)
    found = net.derive(6000)
    assert found.auxiliary_labels == ("click",)
    if config.method == "quotient_remainder":
        return
    if config.method != "uniform":
        assert not torch.equal(before, net.heads.towers[0].input.linear.weight)
    model = net.compact(found).eval()
    ids = torch.from_numpy(data.ids("valid")[:200])
    with torch.no_grad(), net.answering(found):
        for ours, theirs in zip(model.all_logits(ids), net.eval().all_logits(ids), strict=True):
            assert (ours - theirs).abs().max() < (0.2 if found.few_bits else 1e-5)


@pytest.mark.parametrize("method", ["optinter", "dnis"])
def test_towers_read_the_inputs_of_pairs(method, data, tmp_path):
    """A pair that is open, or that the stage before has memorized, is an input of the towers as well."""
    crossed = data.cross([("user", "item")], CrossSpec(min_count=1), tmp_path, candidates=True)
    parent = full(crossed)
    if method == "dnis":
        parent = parent.with_choices(["memorize"], 2)
    options = {"pair_dim": 2} if method == "optinter" else {"precisions": [32]}
    config = configure({"method": method, "warm_epochs": 1, "epochs": 1, **options})
    torch.manual_seed(0)
    net = load(method).Supernet(crossed.schema, parent, config, crossed.counts, 0)
    search(net, crossed, TrainConfig(batch_size=512, lr=0.01), device=CPU, seed=0, report=lambda event: None)
    found = net.derive(100_000 if method == "dnis" else None)
    model = net.compact(found).eval()
    own = model.architecture.active().sum()
    assert model.heads.towers[0].input.size == own == 8 + 2 * len(found.built)
    assert net.heads.towers[0].input.size == 8 + 2
    if method == "dnis":
        ids = torch.from_numpy(crossed.ids("valid")[:100])
        with torch.no_grad(), net.answering(found):
            for ours, theirs in zip(model.all_logits(ids), net.eval().all_logits(ids), strict=True):
                assert (ours - theirs).abs().max() < 1e-5


def test_a_next_stage_takes_the_towers_over(data):
    config = configure({"method": "dnis", "warm_epochs": 1, "epochs": 1})
    first = load("dnis").Supernet(data.schema, full(data), config, data.counts, 0)
    trained(first, data)
    second = load("dnis").Supernet(data.schema, full(data), config, data.counts, 1)
    second.load_weights_from(first)
    ids = torch.from_numpy(data.ids("valid")[:50])
    for ours, theirs in zip(second.eval().all_logits(ids), first.eval().all_logits(ids), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("share", ["tables", "all"])
def test_an_ensemble_has_one_tower_for_each_label(share, data):
    config = check(
        {
            "arm": "x",
            "stages": [{"method": "sensitivity", "warm_epochs": 1, "guard": "none"}],
            "embedding": {"dim": 4, "blocks": 2},
            "backbone": PLAIN,
            "ensemble": {"members": 2, "share": share},
            "train": {"epochs": 1, "batch_size": 512, "lr": 0.01},
            "limit": {"width": 2},
        }
    )
    result, model = run_trial(config, data, lambda event: None)
    assert result.auxiliary["click"] == auxiliary_metrics(model, data, "valid", CPU)["click"]
    ids = torch.from_numpy(data.ids("valid")[:10])
    assert model.eval().all_logits(ids)[1].shape == (10, 1)
    assert model.train().all_logits(ids)[0].shape == (10, 2)


def test_few_bits_and_a_teacher_go_with_auxiliary_labels(data):
    config = check(
        {
            "arm": "x",
            "stages": [{"method": "uniform", "bits": 4}],
            "embedding": {"dim": 4, "blocks": 2},
            "backbone": PLAIN,
            "tower": {"bits": 8},
            "train": {"epochs": 1, "batch_size": 512, "distill": {"teacher": {"ensemble": 1}}},
            "limit": {"width": 2},
        }
    )
    result, model = run_trial(config, data, lambda event: None)
    assert result.cost == cost_of(result.architecture)
    assert type(model.heads.towers[0].input.linear).__name__ == "PackedLinear"
    assert set(result.auxiliary) == {"click"}
    read = type(result).model_validate_json(result.model_dump_json())
    assert read.auxiliary == result.auxiliary


def test_results_without_auxiliary_labels_are_stored_as_before(alone):
    config = check({"arm": "x", "stages": [{"method": "uniform"}], "backbone": PLAIN, "train": {"epochs": 1}})
    result, _ = run_trial(config, alone, lambda event: None)
    assert not json.loads(result.model_dump_json()).keys() & {"auxiliary"}


def test_rows_that_know_no_label_cannot_be_trained_on(data):
    model, rows = model_of(data), np.flatnonzero(np.isnan(data.auxiliary("train")[:, 0]))
    seen = Stretch(rows, 0, len(rows))
    with pytest.raises(TrialError, match="auxiliary label 'click' must be known in some of the rows"):
        AuxiliaryLosses(model, data, seen, RowWeights(data, seen), 1.0)


def test_data_without_a_models_label_are_refused(data, alone):
    with pytest.raises(SpaceError, match="the model predicts the auxiliary label 'click', which the data do not have"):
        columns_of(alone, "train", ("click",))
    with pytest.raises(SpaceError, match="'like', which the data do not have"):
        columns_of(data, "train", ("like",))


SPACE = {"data": {"auxiliary_labels": ["click"]}, "stages": [{"method": "uniform"}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {"auxiliary_weights": {"clack": 1}}}, "auxiliary_weights: unknown auxiliary label 'clack'"),
        ({"train": {"auxiliary_weights": -1}}, "auxiliary_weights"),
        ({"train": {"auxiliary_weights": "learnt"}}, "auxiliary_weights"),
        (
            {"train": {"negative_sampling": 0.5}},
            "negative_sampling draws rows by the label, and other rates of 'click'",
        ),
        (
            {"data": {}, "train": {"stop_by": "all_labels"}},
            "stop_by: all_labels is of data.auxiliary_labels",
        ),
        ({"data": {}, "train": {"auxiliary_weights": 0.5}}, "weighs data.auxiliary_labels, and there are none"),
        ({"backbone": "fm"}, "have the hidden layers of the backbone, and fm has none: use one of armnet, autoint"),
        ({"tower": {"units": "search"}}, "does not go with tower.units: search: leave one of them out"),
        ({"stages": [{"method": "ihas"}]}, r"does not go with a model for each cluster \(ihas\)"),
        ({"ensemble": {"members": 2, "share": "none"}}, "does not go with ensemble.share: none"),
    ],
)
def test_what_does_not_go_with_auxiliary_labels_is_refused(change, message):
    with pytest.raises(SpaceError, match=message):
        SearchSpace.parse(SPACE | change)


def test_weights_may_be_ranges():
    space = SearchSpace.parse(
        SPACE | {"train": {"auxiliary_weights": {"choice": [0, 0.3, "uncertainty", {"click": 0.5}]}}}
    )
    assert space.config("uniform", {"train.auxiliary_weights": "uncertainty"}).train.auxiliary_weights == "uncertainty"
    named = SearchSpace.parse(SPACE | {"train": {"auxiliary_weights": {"click": {"log": [0.01, 1.0]}}}})
    assert set(named.ranges("uniform")) == {"train.auxiliary_weights.click"}
