"""Stages that follow one another, limits, and one search read off at several of them."""

import gc

import numpy as np
import pytest
import torch

from autoembed import shrinking
from autoembed.errors import SpaceError
from autoembed.events import EpochEnd
from autoembed.methods.bilevel import search
from autoembed.methods.method import configure, load
from autoembed.methods.supernet import Supernet
from autoembed.metrics import Metrics
from autoembed.nn.model import cost_of
from autoembed.nn.taking_over import take_over
from autoembed.training import TrainConfig
from autoembed.trial import Limit, check, root_architecture, run_limits, run_trial

CPU = torch.device("cpu")
DNIS = {"method": "dnis", "warm_epochs": 1, "epochs": 1, "threshold": 0.004, "precisions": [32]}
OPTINTER = {"method": "optinter", "epochs": 1, "pair_dim": 2}
IHAS = {"method": "ihas", "epochs": 1}
MAGNITUDE = {"method": "magnitude", "warm_epochs": 1}


def config(*stages, **changes):
    return check(
        {
            "arm": "x",
            "stages": list(stages),
            "embedding": {"dim": 6, "blocks": 4},
            "backbone": {"name": "deepfm", "hidden": [16], "dropout": 0.0},
            "train": {"epochs": 1, "lr": 3e-3, "batch_size": 512},
            **changes,
        }
    )


def run(dataset, *stages, **changes):
    return run_trial(config(*stages, **changes), dataset, lambda values: None)


@pytest.mark.parametrize(
    "stages",
    [(DNIS, OPTINTER), (OPTINTER, DNIS), (DNIS, IHAS), (OPTINTER, IHAS), (DNIS, OPTINTER, IHAS), (MAGNITUDE, IHAS)],
    ids=lambda stages: "+".join(stage["method"] for stage in stages),
)
def test_any_chain_narrows_from_stage_to_stage(planted_pairs, stages):
    stages = [{**stage, "width": 4} if stage is MAGNITUDE else stage for stage in stages]
    result, _ = run(planted_pairs, *stages)
    architecture = result.architecture
    assert architecture.narrows(root_architecture(config(*stages), planted_pairs))
    assert result.cost == cost_of(architecture)
    if stages[-1]["method"] == "ihas":
        assert len(architecture.clusters) in (0, 2)
    if OPTINTER in stages:
        assert any(pair.choice != "open" for pair in architecture.pairs)


def test_a_stage_that_needs_a_limit_of_its_own_says_so(planted_pairs):
    with pytest.raises(SpaceError, match=r"magnitude needs a limit: set budget\.bytes"):
        run(planted_pairs, MAGNITUDE, IHAS, limit={"width": 2})


@pytest.mark.parametrize("first", [DNIS, OPTINTER], ids=lambda stage: stage["method"])
def test_weights_are_carried_from_stage_to_stage(planted_pairs, first):
    """Before it has trained, the second stage's net gives the compact model's logits of the first."""
    torch.manual_seed(0)
    root = root_architecture(config(first), planted_pairs)
    counts = planted_pairs.counts
    net = load(first["method"]).Supernet(planted_pairs.schema, root, configure(first), counts, 0)
    search(net, planted_pairs, TrainConfig(epochs=1, batch_size=512), device=CPU, seed=0, report=lambda values: None)
    architecture = net.derive(None)
    second = load("ihas").Supernet(planted_pairs.schema, architecture, configure(IHAS), counts, 0)
    model = net.compact(architecture).eval()
    ids = torch.from_numpy(planted_pairs.ids("valid")[:500])
    with torch.no_grad():
        assert (second.eval()(ids) - model(ids)).abs().max() > 1e-3
        second.load_weights_from(net)
        assert (second(ids) - model(ids)).abs().max() < 1e-5


def test_new_pairs_get_fresh_towers_and_carried_tables(planted_pairs):
    torch.manual_seed(0)
    root = root_architecture(config(DNIS), planted_pairs)
    net = load("dnis").Supernet(planted_pairs.schema, root, configure(DNIS), planted_pairs.counts, 0)
    second = load("optinter").Supernet(planted_pairs.schema, root, configure(OPTINTER), planted_pairs.counts, 0)
    tower = second.backbone.tower.input.linear.weight.clone()
    second.load_weights_from(net)
    assert torch.equal(second.weight, net.weight)
    assert torch.equal(second.backbone.tower.input.linear.weight, tower)


@pytest.mark.parametrize("stage", [DNIS, MAGNITUDE, IHAS, OPTINTER], ids=lambda stage: stage["method"])
def test_a_limit_of_bytes_holds_and_is_used(planted_pairs, stage):
    limit = 100_000 if stage is OPTINTER else 60_000  # it narrows no field
    result, _ = run(planted_pairs, stage, limit={"bytes": limit})
    assert result.cost.bytes <= limit
    # DNIS closes what held-out rows do not miss, however many bytes are left.
    assert stage is OPTINTER or result.cost.bytes > (0.5 if stage is DNIS else 0.8) * limit


def test_a_limit_of_bytes_that_holds_nothing_is_refused(planted_pairs):
    with pytest.raises(SpaceError, match=r"budget"):
        run(planted_pairs, DNIS, limit={"bytes": 500})


@pytest.mark.parametrize("stages", [(DNIS,), (DNIS, OPTINTER), (IHAS,), ({"method": "uniform", "width": 2},)], ids=str)
def test_no_supernet_is_held_while_its_answer_is_retrained(planted_pairs, stages):
    def alive():
        # By type: a dead weak reference among the objects raises when it is asked for its class.
        return [one for one in gc.get_objects() if issubclass(type(one), Supernet)]

    held, others = [], alive()  # which other tests have left

    def report(event):
        if isinstance(event, EpochEnd) and event.phase == "retrain":
            held.extend(one for one in alive() if not any(one is other for other in others))

    run_trial(config(*stages), planted_pairs, report)
    assert not held


@pytest.mark.parametrize("stage", [DNIS, IHAS], ids=lambda stage: stage["method"])
def test_one_search_is_read_off_at_several_limits(planted_pairs, stage):
    limits = [Limit(width=3), Limit(width=1), Limit(width=2)]
    found = run_limits(config(stage), limits, planted_pairs, lambda values: None)
    assert [result.config.limit for result, _ in found] == limits
    costs = [result.cost.embedding_parameters for result, _ in found]
    assert costs[0] > costs[2] > costs[1]
    alone, _ = run(planted_pairs, stage, limit={"width": 2})
    assert alone.architecture == found[2][0].architecture
    assert all(result.latency_ms > 0 for result, _ in found)


def test_sizes_are_trained_on_from_the_largest_down(planted_pairs, monkeypatch):
    seen = []

    def watch(model, wide):
        done = take_over(model, wide)
        seen.append((model.architecture.cost or cost_of(model.architecture), cost_of(wide.architecture), done))
        return done

    monkeypatch.setattr(shrinking, "take_over", watch)
    epochs = []
    limits = [Limit(width=1), Limit(width=4), Limit(width=2)]
    stage = {"method": "magnitude", "warm_epochs": 2, "guard": "none"}
    found = run_limits(config(stage), limits, planted_pairs, epochs.append, epochs=2)
    assert [result.config.limit for result, _ in found] == limits
    assert [(own.bytes < wide.bytes, done) for own, wide, done in seen] == [(True, True)] * 2
    assert len([event for event in epochs if event.phase == "retrain"]) == 3 + 2 + 2
    notes = [result.notes[-1] for result, _ in found]
    assert notes[1] == "magnitude: trained for 2 epochs from the weights of the supernet"
    assert notes[0].startswith("magnitude: trained for 3 epochs from the weights of ")
    assert all(result.config.train == config(stage).train for result, _ in found)


@pytest.mark.parametrize(("own", "whose"), [(0.5, "the next larger size"), (0.9, "the supernet")])
def test_a_size_starts_from_the_weights_that_are_better_on_valid(planted_pairs, monkeypatch, own, whose):
    values = iter([own, 0.7])
    monkeypatch.setattr(shrinking, "on_valid", lambda *_: Metrics({"auc": next(values), "logloss": 0.5}))
    stage = {"method": "magnitude", "warm_epochs": 1, "guard": "none"}
    limits = [Limit(width=4), Limit(width=2)]
    _, (result, _) = run_limits(config(stage), limits, planted_pairs, lambda values: None, epochs=1)
    assert result.notes[-1] == f"magnitude: trained for 2 epochs from the weights of {whose}"


def test_the_smallest_of_equal_sizes_gets_its_epoch(planted_pairs):
    limits = [Limit(embedding_bytes=10**7), Limit(embedding_bytes=10**8)]
    stage = {"method": "magnitude", "warm_epochs": 1, "guard": "none"}
    (one, model), (_, other) = run_limits(config(stage), limits, planted_pairs, lambda values: None, epochs=1)
    assert model is other
    assert one.notes[-1] == "magnitude: trained for 2 epochs from the weights of the supernet"


def test_only_a_searched_supernet_is_trained_on(planted_pairs, monkeypatch):
    monkeypatch.setattr("autoembed.trial.search", None)  # it is said before anything is searched
    for stage, epochs, words in (
        ({"method": "uniform"}, 2, "uniform trains none"),
        (MAGNITUDE, 0, "epochs must be at least 1, but got 0"),
    ):
        with pytest.raises(SpaceError, match=words):
            run_limits(config(stage), [Limit(width=2)], planted_pairs, lambda values: None, epochs=epochs)


def test_a_limit_that_is_too_small_leaves_the_others_their_results(planted_pairs):
    small, large = run_limits(
        config(DNIS), [Limit(embedding_bytes=3), Limit(embedding_bytes=4000)], planted_pairs, lambda values: None
    )
    assert isinstance(small, SpaceError)
    assert large[0].cost.embedding_bytes <= 4000


def test_equal_architectures_are_retrained_once(planted_pairs):
    epochs = []
    limits = [Limit(embedding_bytes=10**7), Limit(embedding_bytes=10**8)]
    one, other = run_limits(config({"method": "uniform"}), limits, planted_pairs, epochs.append)
    assert [found.config.limit for found, _ in (one, other)] == limits
    assert one[1] is other[1]
    assert max(event.epoch for event in epochs) == len(epochs)


def test_the_uniform_rival_is_retrained_and_kept_where_it_is_better(planted_pairs, monkeypatch):
    """A supernet that has learned nothing finds a poor choice as good as any."""
    kind = load("sensitivity").Supernet

    def worst(net, limit):
        noise = np.array([name.startswith("noise") for name in net.parent.names])[net.parent.field_of_block()]
        return net.parent_with(np.arange(net.parent.dim) < noise[:, None])

    monkeypatch.setattr(kind, "choose", worst)
    monkeypatch.setattr(kind, "loss_of", lambda net, architecture, **rows: 0.0)
    stage = {"method": "sensitivity", "warm_epochs": 1, "rounds": 0}
    result, _ = run(planted_pairs, stage, limit={"width": 2})
    assert len(set(result.architecture.block_bits().tolist())) == 1
    assert any("better on valid than its own choice: it is the answer" in note for note in result.notes)
    result, _ = run(planted_pairs, {**stage, "guard": "measured"}, limit={"width": 2})
    assert not result.notes
    assert all(name.startswith("noise") for name in result.architecture.names)
