"""Gates over widths and bits: what a block takes at a price, and planted truth."""

import numpy as np
import pytest
import torch

from autoembed.budget import uniform_bytes
from autoembed.errors import SpaceError
from autoembed.methods.dnis_bits import spend
from autoembed.methods.method import configure, load
from autoembed.trial import check, run_trial
from tests.methods.test_contract import root

SIZES = np.array([[0, 10, 20], [0, 100, 200]])


def test_one_price_for_all_meets_a_limit():
    worth = np.array([[0.0, 2.0, 3.0], [0.0, 1.0, 1.5]])
    assert spend(worth, SIZES, 1000).tolist() == [2, 2]
    assert spend(worth, SIZES, 120).tolist() == [2, 1]
    assert spend(worth, SIZES, 119).tolist() == [2, 0]
    assert spend(worth, SIZES, 15).tolist() == [1, 0]


def test_what_the_gates_do_not_want_stays_closed_and_something_always_is_open():
    assert spend(np.array([[0.0, -1.0, -2.0], [0.0, 1.0, 0.5]]), SIZES, 1000).tolist() == [0, 1]
    assert spend(np.array([[0.0, -1.0, -2.0], [0.0, -3.0, -4.0]]), SIZES, 1000).tolist() == [1, 0]


def net_of(planted, **options):
    torch.manual_seed(0)
    stage = configure({"method": "dnis_bits", **options})
    return load("dnis_bits").Supernet(planted.schema, root(planted), stage, planted.counts, 0)


def test_gates_are_the_probabilities_of_prefixes(planted):
    net = net_of(planted)
    assert torch.equal(net.gates(), net.mask)  # open until the search begins
    net.progress = 0.0
    gates = net.gates()
    assert net.widths == (0, 1, 2, 4, 8)
    assert gates[0].tolist() == pytest.approx([0.8, 0.6, 0.4, 0.4, 0.2, 0.2, 0.2, 0.2, 0.8])  # the last: first order
    with torch.no_grad():
        net.width_logits[0, 0] = 50.0
    assert net.gates()[0].abs().max() < 1e-6


def test_the_price_is_of_the_expected_bytes(planted):
    net = net_of(planted, price=1.0)
    with torch.no_grad():
        net.width_logits[:, -1] = 50.0
        net.bit_logits[:, 0] = 50.0
    assert net.penalty().item() == pytest.approx(1.0)
    with torch.no_grad():
        net.width_logits[:, 0] = 200.0
    assert net.penalty().item() == pytest.approx(0.0, abs=1e-6)


def test_a_limit_that_holds_no_dim_is_refused(planted):
    with pytest.raises(SpaceError, match="budget must hold one dim"):
        net_of(planted).choose(1)


def test_noise_gets_fewer_bytes_a_value_than_signal(planted):
    stage = {"method": "dnis_bits", "warm_epochs": 5, "epochs": 5, "guard": "none"}
    trial = check(
        {
            "arm": "dnis_bits",
            "stages": [stage],
            "embedding": {"dim": 8, "blocks": 4},
            "backbone": {"name": "deepfm", "hidden": [16], "dropout": 0.0},
            "train": {"epochs": 5, "lr": 5e-3, "l2": 1e-3, "batch_size": 512},
            "limit": {"embedding_bytes": uniform_bytes(root(planted), 0.25)},
            "device": "cpu",
        }
    )
    result, _ = run_trial(trial, planted, lambda values: None)
    spent = {"noise": [0, 0], "signal": [0, 0]}
    kept = {field.name: field for field in result.architecture.fields}
    for field in planted.schema.fields:
        kind = "noise" if field.name.startswith("noise") else "signal"
        plan = kept.get(field.name)
        stops = [0, *(block.stop for block in plan.blocks)] if plan else []
        bits = sum(
            (block.stop - start) * len(block.dims) * block.bits
            for start, block in zip(stops, plan.blocks if plan else (), strict=False)
        )
        spent[kind][0] += bits
        spent[kind][1] += field.cardinality
    noise, signal = (spent[kind][0] / spent[kind][1] for kind in ("noise", "signal"))
    assert noise < signal / 2
