"""Whole fields, selected by knock-out on held-out rows."""

import numpy as np
import polars as pl
import pytest
import torch

from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.errors import SpaceError
from autoembed.methods import bilevel
from autoembed.methods.method import configure, load
from autoembed.trial import check, root_architecture, run_trial

CPU = torch.device("cpu")
TRAIN = {"epochs": 2, "lr": 5e-3, "batch_size": 1024, "l2": 2e-3}
SELECT = {"method": "select", "warm_epochs": 8}


def config(*stages, **changes):
    node = {
        "arm": "x",
        "stages": list(stages),
        "embedding": {"dim": 8, "blocks": 4},
        "backbone": {"name": "deepfm", "hidden": [32], "dropout": 0.0},
        "train": TRAIN,
    }
    return check(node | changes)


def searched(dataset, **options):
    trial = config({**SELECT, **options})
    torch.manual_seed(0)
    net = load("select").Supernet(
        dataset.schema, root_architecture(trial, dataset), configure(trial.stages[0]), dataset.counts, 0
    )
    bilevel.search(net, dataset, trial.train, device=CPU, seed=0, report=lambda values: None)
    return net


@pytest.fixture(scope="module")
def planted_fields(planted):
    truth = planted.truth
    return [*truth["marginal"], *(name for pair in truth["xor"] + truth["low_rank"] for name in pair)]


def test_planted_noise_is_closed_and_planted_effects_stay(planted, planted_fields):
    net = searched(planted)
    assert set(net.derive(None).names) == set(planted_fields)
    (note,) = net.notes
    assert note.startswith(f"{len(planted.truth['noise'])} of {len(planted.schema.fields)} fields are closed")
    assert all(name in note for name in planted.truth["noise"])


def test_as_many_fields_stay_as_are_asked_for(planted, planted_fields):
    found = searched(planted, keep=3)
    assert len(found.derive(None).names) == 3
    assert set(found.derive(None).names) < set(planted_fields)
    assert found.derive(None).mask().sum() > 0
    whole = searched(planted, keep=len(planted.schema.fields))
    assert set(whole.derive(None).names) == set(planted.schema.names)
    assert whole.notes == []


def test_of_two_copies_one_stays(tmp_path):
    rng = np.random.default_rng(0)
    a, b, noise = rng.integers(0, 8, (3, 12_000))
    logit = rng.normal(size=8)[a] + rng.normal(size=8)[b]
    frame = pl.DataFrame({"a": a, "copy": a + 100, "b": b, "noise": noise})
    frame = frame.with_columns(label=pl.Series((rng.random(len(a)) < 1 / (1 + np.exp(-logit))).astype(int)))
    frame.write_parquet(tmp_path / "t.parquet")
    spec = {"split": {"by": "random", "valid": 0.2, "test": 0.1}, "categorical": ["a", "copy", "b", "noise"]}
    dataset = build_dataset(DataSpec.model_validate(spec), tmp_path / "t.parquet", tmp_path / "cache")
    names = set(searched(dataset).derive(None).names)
    assert "b" in names
    assert len(names & {"a", "copy"}) >= 1
    assert len(set(searched(dataset, keep=2).derive(None).names) & {"a", "copy"}) == 1


def test_later_stages_go_on_with_what_is_left(planted_pairs):
    dnis = {"method": "dnis", "warm_epochs": 1, "epochs": 1, "width": 4}
    optinter = {"method": "optinter", "warm_epochs": 0, "epochs": 1, "pair_dim": 2}
    result, _ = run_trial(config({**SELECT, "keep": 4}, dnis, optinter), planted_pairs, lambda values: None)
    assert len(result.architecture.names) <= 4
    assert any(note.startswith("select: ") for note in result.notes)
    alone, _ = run_trial(config({**SELECT, "keep": 4}, limit={"width": 2}), planted_pairs, lambda values: None)
    assert len(alone.architecture.names) == 4
    assert (alone.architecture.mask().sum(axis=1) > 2).all()  # the closed fields' bytes went to the others


def test_options_are_checked(planted):
    with pytest.raises(SpaceError, match=r"set keep or margin, but got keep=3 and margin=1"):
        config({**SELECT, "keep": 3, "margin": 1.0})
    with pytest.raises(SpaceError, match=r"select's keep must be at most the 11 fields, but got 12"):
        searched(planted, keep=12)
    net = searched(planted, keep=2, warm_epochs=1)
    with pytest.raises(SpaceError, match=r"select needs a budget of one dim for every value of its 2 fields, \d+ byte"):
        net.derive(3)
