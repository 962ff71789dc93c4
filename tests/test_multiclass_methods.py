"""Methods, backbones, teachers and knock-outs with several classes, on small data whose truth is known."""

import numpy as np
import pytest
import torch

from autoembed.architecture import Architecture
from autoembed.data.crosses import CrossSpec
from autoembed.errors import SpaceError
from autoembed.knockout import field_scores
from autoembed.methods.bilevel import search
from autoembed.methods.method import configure, load, names
from autoembed.nn.backbones import base
from autoembed.nn.model import CTRModel, build_model, cost_of, measure, pack, start_rounding
from autoembed.testing import BackboneContract
from autoembed.training import TrainConfig, metrics_on
from autoembed.trial import check, prepared_teacher, root_architecture, run_limits, run_trial
from tests.actions import PLAIN, TRAIN, dataset_of, entropy_of, table

CPU = torch.device("cpu")
CLASSES = [name for name in base.names() if base.find(name).Backbone.gives_classes]
CLUSTERS = [name for name in names() if load(name).Supernet.makes_clusters]
PAIRS = [name for name in names() if load(name).Supernet.chooses_pairs]
OTHERS = [name for name in names() if name not in (*CLUSTERS, *PAIRS)]
MONITOR = {"monitor": "valid_cross_entropy"}
SHORT = {"epochs": 1, "batch_size": 256, "lr": 0.01}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return dataset_of(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def pairs(dataset, tmp_path_factory):
    chosen = [("user", "item"), ("place", "noise")]
    return dataset.cross(chosen, CrossSpec(min_count=3), tmp_path_factory.mktemp("crossed"), candidates=True)


def trial(data, stage, *, train=TRAIN, **options):
    node = {"arm": "x", "stages": [stage], "monitor": "valid_cross_entropy", "backbone": PLAIN, "train": train}
    node |= {"embedding": {"dim": 8, "blocks": 3}, "limit": {"width": 3}}
    return run_trial(check(node | options), data, lambda event: None)


def short(method):
    """A stage of one epoch of each phase."""
    known = type(configure({"method": method})).model_fields
    return {"method": method} | {name: 1 for name in ("warm_epochs", "epochs", "rounds") if name in known}


@pytest.mark.parametrize("method", OTHERS)
def test_every_method_but_those_of_clusters_answers_within_the_budget(method, dataset):
    result, model = trial(dataset, short(method), train=SHORT)
    assert result.architecture.outputs == 4
    assert result.cost.embedding_bytes <= 12 * sum(dataset.schema.cardinalities)
    assert measure(model) == cost_of(result.architecture)
    ids = torch.from_numpy(dataset.ids("test")[:7])
    assert model(ids).shape == (7, 4)
    assert model.train()(ids).shape == (7, 4)


def test_single_entries_are_kept(dataset):
    """By their sizes, and by the curvature of the loss of all classes."""
    for method, options in {"dnis": {"choose_by": "weight"}, "sensitivity": {"bits": 8}}.items():
        result, model = trial(dataset, short(method) | options | {"granularity": "entry"}, train=SHORT)
        assert result.architecture.storage.kind in ("sparse", "mixed")  # or what is uniform is better
        assert measure(model) == cost_of(result.architecture)


def test_a_packed_model_answers_as_the_rounded_one_does(dataset):
    config = check(
        {"arm": "x", "stages": [{"method": "uniform"}], "backbone": PLAIN, "embedding": {"dim": 4, "bits": 4}}
    )
    model = build_model(dataset.schema, root_architecture(config, dataset))
    ids = torch.from_numpy(dataset.ids("test")[:200])
    start_rounding(model)
    with torch.no_grad():
        assert torch.allclose(pack(model, dataset.schema).eval()(ids), model.eval()(ids), atol=1e-5)


@pytest.mark.parametrize("method", PAIRS)
def test_methods_choose_for_pairs(method, pairs):
    result, model = trial(pairs, short(method), train=SHORT, limit={})
    assert measure(model) == cost_of(result.architecture)
    assert 0.5 < result.valid.cross_entropy < 1.5


@pytest.mark.parametrize("method", CLUSTERS)
def test_methods_that_make_several_models_are_refused_before_any_training(method, dataset):
    with pytest.raises(SpaceError, match=rf"does not go with the method {method}, which makes several models"):
        trial(dataset, {"method": method})


def test_ensembles_and_backbones_of_one_logit_are_refused(dataset):
    for share in ("none", "tables", "all"):
        with pytest.raises(SpaceError, match=r"does not go with ensemble\.members: 2"):
            trial(dataset, {"method": "uniform"}, ensemble={"members": 2, "share": share})
    for name in set(base.names()) - set(CLASSES):
        with pytest.raises(SpaceError, match=f"backbone {name} sums numbers to one: use one of {', '.join(CLASSES)}"):
            trial(dataset, {"method": "uniform"}, backbone={"name": name}, embedding={"dim": 1})
    for key, value in (("positive_weight", 2), ("negative_sampling", 0.5)):
        with pytest.raises(SpaceError, match=f"{key} is of clicks"):
            trial(dataset, {"method": "uniform"}, train={key: value})


@pytest.mark.parametrize("method", ["sensitivity", "dnis"])
def test_the_column_of_noise_is_closed_and_quality_comes_near_the_best(method, dataset):
    """Widths are chosen by the exact loss of logits of all classes, changed to first order."""
    result, model = trial(dataset, {"method": method, "guard": "none"})
    kept = {field.name: field.entries / field.cardinality for field in result.architecture.fields}
    assert kept.get("noise", 0) < 0.34 * np.mean([kept[name] for name in ("user", "item", "place")])
    found = metrics_on(model, dataset, "test", CPU).cross_entropy
    assert found < entropy_of(table(8000, 0)) + 0.09


def test_select_closes_the_column_of_noise(dataset):
    result, _ = trial(dataset, {"method": "select", "keep": 3}, limit={})
    assert set(result.architecture.names) == {"user", "item", "place"}


def test_changes_of_logits_are_those_of_each_class(dataset):
    """What an option of a block would change, beside the compact model that has it."""
    torch.manual_seed(0)
    root = Architecture.full(dataset.schema, dataset.counts, dim=4, blocks=2, backbone={**PLAIN, "layers": 1})
    config = configure({"method": "sensitivity", "warm_epochs": 1, "rounds": 0, "precisions": [32]})
    net = load("sensitivity").Supernet(dataset.schema, root, config, dataset.counts, 0)
    search(net, dataset, TrainConfig(**SHORT), device=CPU, seed=0, report=lambda event: None)
    options = net.options((32,))
    state = net.open_state(options)
    estimate = net.estimate(net.rounded_tables((32,)), options, state, rows=500)
    narrow = state.copy()
    narrow[0] = int(np.flatnonzero(options.width == 2)[0])
    ids, *_ = net.held_rows(500)
    with torch.no_grad(), net.eval().answering(net.with_state(narrow, options)):
        exact = net(ids).numpy()
    with torch.no_grad(), net.answering(net.with_state(state, options)):
        whole = net(ids).numpy()
    before = estimate.logits.copy()
    estimate.take(0, int(narrow[0]))
    moved = (estimate.logits - before) / estimate.scale
    assert moved.shape == (len(ids), 4)
    off = np.abs(moved - (exact - whole)).mean(0) / np.abs(exact - whole).mean(0)
    assert (off < 0.4).all(), off


@pytest.mark.parametrize("name", CLASSES)
def test_every_backbone_with_classes_passes_the_contract(name, dataset):
    """Compact equals masked, and each class has weights of its own, for four outputs."""
    torch.manual_seed(0)
    parent = Architecture.full(
        BackboneContract.schema, BackboneContract.counts, dim=3, blocks=3, cut="equal", backbone=small(name)
    ).replace(outputs=4)
    net = load("uniform").Supernet(
        BackboneContract.schema, parent, configure({"method": "uniform"}), BackboneContract.counts, 0
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.5)
    mask = np.asarray(np.random.default_rng(1).random(parent.mask().shape) < 0.6)
    mask[parent.field_of_block() == 2] = False
    architecture = net.parent_with(mask)
    model, ids = net.compact(architecture).eval(), BackboneContract().ids()
    with torch.no_grad(), net.eval().answering(architecture):
        found = net(ids)
        assert torch.allclose(model(ids), found, atol=1e-4)
    assert found.shape == (200, 4)
    assert len(torch.unique(found[0])) == 4
    assert measure(model) == cost_of(architecture)
    net.train()(ids).sum().backward()
    assert all(parameter.grad is not None for parameter in net.backbone.parameters())
    rounded = CTRModel(BackboneContract.schema, architecture.replace(tower_bits=8)).eval()
    rounded.load_state_dict(model.state_dict())
    packed = pack(rounded, BackboneContract.schema)
    assert measure(packed) == cost_of(architecture.replace(tower_bits=8))
    assert packed(ids).shape == (200, 4)


def small(name):
    known = base.find(name).Config.model_fields
    sizes = {"hidden": [6], "dropout": 0.0, "block_units": 5, "blocks": 2, "aggregation": 4, "head_units": 3}
    sizes |= {"neurons": 3, "key": 2, "layers": 1}
    return {"name": name} | {option: value for option, value in sizes.items() if option in known}


def test_teachers_have_a_logit_for_each_class(dataset):
    taught = TRAIN | {"distill": {"teacher": {"ensemble": 2}, "weight": 0.5}}
    config = check(
        {"arm": "x", "stages": [{"method": "uniform"}], "backbone": PLAIN, "train": {**taught, "epochs": 1}} | MONITOR
    )
    teacher = prepared_teacher(config, dataset, CPU, lambda event: None)
    assert teacher.logits.shape == (dataset.rows("train"), 4)
    result, _ = trial(dataset, {"method": "uniform"}, train=taught)
    plain, _ = trial(dataset, {"method": "uniform"})
    assert result.valid.cross_entropy < plain.valid.cross_entropy + 0.01


def test_several_sizes_are_trained_on_from_one_search(dataset):
    config = check(
        {
            "arm": "x",
            "stages": [{"method": "sensitivity", "warm_epochs": 3, "rounds": 1}],
            "monitor": "valid_cross_entropy",
            "backbone": PLAIN,
            "train": TRAIN,
            "embedding": {"dim": 8, "blocks": 3},
        }
    )
    limits = [config.limit.model_copy(update={"width": width}) for width in (1.0, 3.0)]
    found = run_limits(config, limits, dataset, lambda event: None, epochs=1)
    assert all(result.valid.cross_entropy < 1.1 for result, _ in found)


def test_knock_outs_find_the_columns_that_say_something(dataset):
    _, model = trial(dataset, {"method": "uniform"})
    scores = field_scores(model, dataset)
    assert scores["field"].to_list()[-1] == "noise"
    assert scores["cross_entropy_rise"][0] > 10 * scores["cross_entropy_se"][0]
    assert scores["macro_auc_fall"][0] > 5 * scores["macro_auc_se"][0]
    assert scores["accuracy_fall"][0] > 0.05
