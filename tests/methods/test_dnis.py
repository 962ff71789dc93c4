"""DNIS by hand: what a gate step does, what is cut, and that planted noise is found."""

import numpy as np
import pytest
import torch

from autoembed.architecture import Architecture
from autoembed.budget import select, uniform_bytes
from autoembed.methods.dnis import Config, Supernet
from autoembed.trial import check, run_trial

BACKBONE = {"name": "deepfm", "hidden": [4], "dropout": 0.0}


def net_for(dataset, **options):
    torch.manual_seed(0)
    root = Architecture.full(dataset.schema, dataset.counts, dim=4, blocks=3, backbone=BACKBONE)
    return Supernet(dataset.schema, root, Config(**options), dataset.counts, 0)


def test_a_gate_step_is_normalised_row_by_row_and_clamped(planted):
    net = net_for(planted, arch_lr=0.25)
    push = torch.tensor([[4.0, -4.0, 0.0, 0.0], [1e-3, 1e-3, 2e-3, 0.0]])
    gradient = torch.cat([push, torch.zeros(len(net.alpha) - 2, 4)])
    net.step_gates([gradient])
    # Row means of |gradient| are 2 and 1e-3: steps 2, -2, 0, 0 and 1, 1, 2, 0 times 0.25; alpha starts at 1.
    expected = torch.tensor([[0.5, 1.0, 1.0, 1.0], [0.75, 0.75, 0.5, 1.0]])
    assert torch.allclose(net.alpha[:2], expected, atol=1e-4)
    assert (net.alpha[2:] == 1).all()
    for _ in range(5):
        net.step_gates([gradient])
    assert net.alpha.min() == 0


def test_l1_alone_closes_gates(planted):
    net = net_for(planted, arch_lr=0.1)
    net.step_gates(torch.autograd.grad(net.penalty(), [net.alpha]))
    assert torch.allclose(net.alpha, torch.full_like(net.alpha, 0.9), atol=1e-3)


def test_share_global_has_one_row_per_frequency_block(planted):
    own, shared = net_for(planted), net_for(planted, share="global")
    assert len(own.alpha) == len(own.parent.block_rows())
    assert len(shared.alpha) == 3
    with torch.no_grad():
        shared.alpha[1] = 0.25
    levels = shared.parent.block_levels()
    assert (shared.gates()[levels == 1, :4] == 0.25).all()
    assert (shared.gates()[levels != 1, :4] == 1).all()


def test_first_order_weights_are_not_gated(planted):
    net = net_for(planted)
    with torch.no_grad():
        net.alpha.zero_()
    assert (net.gates()[:, :4] == 0).all()
    assert (net.gates()[:, 4] == 1).all()


def test_threshold_and_budget_keep_the_largest_scores(planted):
    net = net_for(planted, threshold=0.5)
    with torch.no_grad():
        net.weight.fill_(1.0)
        net.alpha.copy_(torch.linspace(0, 1, net.alpha.numel()).reshape_as(net.alpha))
    kept = net.alpha.detach().numpy() >= 0.5
    by_threshold = net.derive(None)
    assert by_threshold.mask().sum() == kept.sum()
    budget = uniform_bytes(net_for(planted).parent, 1)
    parent = net_for(planted).parent
    rows, sizes = parent.block_rows(), net_for(planted).block_sizes()
    mask = select(net_for(planted).mask[:, :4].numpy(), parent.mask(), sizes, budget)
    assert 4 * (rows * (mask.sum(1) + mask.any(1))).sum() <= budget


def test_select_by_hand(planted):
    root = net_for(planted).parent
    rows, sizes, scores = root.block_rows(), net_for(planted).block_sizes(), np.zeros(root.mask().shape)
    scores[2, 1], scores[0, 3], scores[1, 0] = 3, 2, 1
    # The budget holds the first entry with its first-order weight and the second, not the third.
    budget = 4 * int(2 * rows[2] + 2 * rows[0])
    mask = select(scores, root.mask(), sizes, budget)
    assert [tuple(at) for at in np.argwhere(mask)] == sorted([(2, 1), (0, 3)])
    # Entries that score 0 are never kept, however large the budget.
    assert select(scores, root.mask(), sizes, 10**9).sum() == 3


def trial(dataset, method, seed, **options):
    config = check(
        {
            "arm": method,
            "stages": [{"method": method, **options}],
            "embedding": {"dim": 8, "blocks": 4},
            "backbone": {"name": "deepfm", "hidden": [32], "dropout": 0.0},
            "train": {"epochs": 6, "lr": 5e-3, "l2": 2e-3, "batch_size": 512},
            "limit": {"width": 1},
            "seed": seed,
        }
    )
    return run_trial(config, dataset, lambda values: None)[0]


def noise_share(architecture, truth):
    sizes = {}
    for field in architecture.fields:
        stops = [0, *(block.stop for block in field.blocks)]
        sizes[field.name] = sum(
            (stop - start) * len(block.dims) for start, stop, block in zip(stops, stops[1:], field.blocks, strict=False)
        )
    return sum(size for name, size in sizes.items() if name in truth["noise"]) / sum(sizes.values())


@pytest.mark.timeout(280)
@pytest.mark.parametrize("seeds", [(1, 2), pytest.param(range(4), marks=pytest.mark.slow)], ids=["two", "four"])
def test_planted_noise_is_cut_and_uniform_beaten(planted, seeds):
    """At equal parameters, mean over seeds: valid AUC above uniform's, noise columns' share of parameters far below."""
    gaps, shares, uniform_shares = [], [], []
    for seed in seeds:
        dnis = trial(planted, "dnis", seed, warm_epochs=4, epochs=8, precisions=[32])
        uniform = trial(planted, "uniform", seed)
        assert dnis.cost.embedding_bytes <= uniform.cost.embedding_bytes
        gaps.append(dnis.valid.auc - uniform.valid.auc)
        shares.append(noise_share(dnis.architecture, planted.truth))
        uniform_shares.append(noise_share(uniform.architecture, planted.truth))
    assert np.mean(gaps) > 0.003, gaps
    assert np.mean(shares) < 0.6 * np.mean(uniform_shares), (shares, uniform_shares)
