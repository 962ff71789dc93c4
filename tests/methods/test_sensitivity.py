"""Sensitivity: what it estimates is what happens, and planted truth is found, long tails included."""

import numpy as np
import pytest
import torch

from autoembed.architecture import Architecture
from autoembed.budget import uniform_bytes
from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.methods.bilevel import search
from autoembed.methods.rises import LossEstimate, Options
from autoembed.methods.sensitivity import Config, Supernet
from autoembed.nn.rows import rounded, rounded_blocks
from autoembed.task import CLICKS
from autoembed.training import TrainConfig
from autoembed.trial import check, run_trial

CPU = torch.device("cpu")
BACKBONE = {"name": "deepfm", "hidden": [16], "dropout": 0.0}


def net_of(dataset, **options):
    torch.manual_seed(0)
    root = Architecture.full(dataset.schema, dataset.counts, dim=8, blocks=4, backbone=BACKBONE)
    net = Supernet(dataset.schema, root, Config(warm_epochs=3, **options), dataset.counts, 0)
    train = TrainConfig(lr=5e-3, l2=1e-3, batch_size=512)
    search(net, dataset, train, device=CPU, seed=0, report=lambda values: None)
    return net


@pytest.fixture(scope="module")
def net(planted):
    return net_of(planted)


def test_what_valid_compares_is_chosen_by_rows_of_train(planted, net):
    _, labels = net.held
    assert len(labels) == round(0.2 * planted.rows("train"))
    on_valid = net_of(planted, held_fraction=0)
    assert len(on_valid.held[1]) == planted.rows("valid")


@pytest.mark.parametrize("basis", ["nested", "plain"])
def test_estimates_rank_choices_as_measurements_do(planted, net, basis):
    """Random choices for all blocks: the rise that was estimated at the full net beside the one that is measured."""
    net = net if basis == "nested" else net_of(planted, basis="plain")
    options, rng = net.options(net.precisions()), np.random.default_rng(0)
    full = np.full(len(options.bytes), len(options.width) - 1)
    tables = net.rounded_tables(net.precisions())
    estimated, measured = [], []
    for _ in range(30):
        state = np.where(rng.random(len(full)) < rng.random(), rng.integers(0, len(options.width), len(full)), full)
        if not options.width[state].any():
            continue
        estimate = net.estimate(tables, options, full)
        for block, option in enumerate(state):
            estimate.take(block, int(option))
        estimated.append(estimate.loss())
        measured.append(net.loss_of(net.with_state(state, options)))
    ranks = [np.argsort(np.argsort(values)) for values in (estimated, measured)]
    assert np.corrcoef(*ranks)[0, 1] > 0.9


def test_the_estimate_by_hand():
    """Two rows of one block, one of another; changes are exact where only one block moves."""
    logits, labels = np.array([0.0, 1.0, -1.0]), np.array([1.0, 0.0, 1.0])
    changes = np.array([[[0.0, -1.0]], [[0.0, -2.0]], [[0.0, 3.0]]])
    estimate = LossEstimate(logits, labels, changes, np.array([[0], [0], [1]]), task=CLICKS, calibrate=False)
    loss = lambda z, y: np.log1p(np.exp(z)) - y * z  # noqa: E731
    rise = (loss(-1.0, 1) - loss(0.0, 1) + loss(-1.0, 0) - loss(1.0, 0)) / 3
    assert estimate.rises(0, np.array([0, 1])) == pytest.approx([0, rise])
    before = estimate.loss()
    estimate.take(0, 1)
    assert estimate.loss() == pytest.approx(before + rise)
    assert estimate.rises(0, np.array([1, 0])) == pytest.approx([0, -rise])


def test_only_the_bytes_that_are_needed_count():
    """A block of 1,000 bytes is not closed for the last 10 when a block of 20 loses less."""
    options = Options(width=np.array([0, 1]), precision=np.array([0, 0]), bytes=np.array([[0, 1000], [0, 20]]))
    logits, labels = np.zeros(4), np.array([1.0, 0, 1, 0])
    # Closing the large block costs more loss, but less per byte.
    changes = np.array([[[1.0, 0]], [[-1.0, 0]], [[-0.1, 0]], [[0.1, 0]]]) * [[[-1]]] * 1.0
    estimate = LossEstimate(logits, labels, changes, np.array([[0], [0], [1], [1]]), task=CLICKS, calibrate=False)
    state = estimate.shrink(np.array([1, 1]), options, 1010, 1010)
    assert state.tolist() == [1, 0]


def test_limits_hold_and_no_answer_is_behind_uniform_in_any_bits(net):
    for width in (0.25, 0.5, 1, 2, 4):
        limit = uniform_bytes(net.parent, width)
        found = net.derive(limit)
        assert found.embedding_bytes(first_order=True) <= limit
        for bits in net.precisions():
            rival = net.uniform_in(bits, limit)
            assert rival is None or net.loss_of(found) <= net.loss_of(rival)


def test_the_guard_answers_with_uniform_and_says_so(planted, monkeypatch):
    net = net_of(planted)
    limit = uniform_bytes(net.parent, 2)
    assert net.answer(limit).notes == ()
    worst = net.parent_with(np.arange(8) < (net.parent.block_rows() < 10)[:, None])  # rare values only
    monkeypatch.setattr(net, "choose", lambda limit: worst)
    answer = net.answer(limit)
    assert answer.architecture == net.uniform(limit)
    assert "the answer is uniform" in answer.notes[0]
    net.config = net.config.model_copy(update={"guard": "none"})
    assert net.answer(limit).architecture == worst


def test_precisions_are_bounded_by_the_stage_s_own_bits(planted, net):
    assert net.precisions() == (8, 4, 3, 2)
    assert net_of(planted, bits=4).precisions() == (4, 3, 2)
    bits = {block.bits for field in net.derive(uniform_bytes(net.parent, 1)).fields for block in field.blocks}
    assert bits <= {0, 8, 4, 3, 2}


TAIL = {
    "planted": {"rows": 48_000, "marginal": [10], "xor": [], "low_rank": [20], "noise": [50, 1000], "tail": [2000]},
    "split": {"by": "random", "valid": 0.15, "test": 0.15},
}
ARMS = {
    "uniform": {"method": "uniform"},
    "magnitude": {"method": "magnitude"},
    "dnis": {"method": "dnis", "epochs": 3, "precisions": [32]},
    "dnis-weight": {"method": "dnis", "epochs": 3, "choose_by": "weight"},
    "sensitivity": {"method": "sensitivity", "precisions": [32]},
    "bits": {"method": "sensitivity"},
}


def trial(dataset, seed, stage, **train):
    config = check(
        {
            "arm": stage["method"],
            "stages": [stage],
            "embedding": {"dim": 16, "blocks": 6},
            "backbone": {"name": "deepfm", "hidden": [32], "dropout": 0.0},
            "train": {"epochs": 10, "lr": 3e-3, "l2": 3e-3, "batch_size": 1024, **train},
            "limit": {"embedding_bytes": 26_000},
            "seed": seed,
        }
    )
    return run_trial(config, dataset, lambda values: None)[0]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("names", "seeds"),
    [(("uniform", "dnis", "bits"), 1), pytest.param(tuple(ARMS), 3, marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_no_method_loses_a_long_tail(tmp_path, names, seeds):
    """Thousands of values with 5 to 50 rows each that matter: at equal bytes no searched arm is behind uniform."""
    arms = {name: ARMS[name] for name in names}
    found = {arm: [] for arm in arms}
    for seed in range(seeds):
        spec = TAIL | {"planted": TAIL["planted"] | {"seed": seed}}
        dataset = build_dataset(DataSpec.model_validate(spec), None, tmp_path / str(seed))
        for arm, stage in arms.items():
            result = trial(dataset, seed, stage)
            assert result.cost.embedding_bytes <= 26_000
            found[arm].append(result.valid.auc)
            tail = next(field for field in result.architecture.fields if field.name == "tail_0")
            assert tail.blocks[-1].dims, (arm, tail)  # 1,600 values of about 12 rows each
    means = {arm: np.mean(aucs) for arm, aucs in found.items()}
    assert all(mean > means["uniform"] - 0.001 for mean in means.values()), found
    assert means["bits"] > means["uniform"] + 0.005, found


def test_blocks_that_no_row_misses_are_closed(planted):
    """A budget for everything in 8 bits: noise of thousands of values is no reason to spend it."""
    net = net_of(planted)
    everything = net.parent.with_mask(net.parent.mask(), bits=np.full(len(net.parent.block_rows()), 8))
    found = net.choose(10**7)
    assert found.embedding_bytes(first_order=True) < 0.9 * everything.embedding_bytes(first_order=True)
    assert net.loss_of(found) <= net.loss_of(everything) + 1e-4


def test_only_the_last_measurement_takes_all_held_out_rows(net, monkeypatch):
    """Moves that are far from the budget are told apart by fewer rows."""
    monkeypatch.setattr("autoembed.methods.measured._ROUGH", 500)
    seen, estimate = [], net.estimate
    monkeypatch.setattr(net, "estimate", lambda *args, **options: seen.append(estimate(*args, **options)) or seen[-1])
    monkeypatch.setattr(net, "config", net.config.model_copy(update={"shrink": 0.95}))
    net.choose(200)
    assert len(seen) > 1
    assert all(one.total <= 500 for one in seen[:-1])
    assert seen[-1].total == len(net.held[1])


@pytest.mark.parametrize("step", ["row", "dim"])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_blocks_rounded_at_once_are_as_rounded_alone(bits, step):
    torch.manual_seed(0)
    table, sizes = torch.randn(30, 6), [10, 1, 19]
    alone = [torch.cat(rounded(part[:, :5], part[:, 5:], bits, step), dim=1) for part in torch.split(table, sizes)]
    torch.testing.assert_close(rounded_blocks(table, 5, sizes, bits, step), torch.cat(alone))


@pytest.mark.parametrize(("prefixes", "share"), [("field", 0.75), ("block", 0.5)])
def test_a_nested_basis_draws_widths_for_each_field_or_block(planted, prefixes, share):
    net = net_of(planted, prefixes=prefixes)
    torch.manual_seed(0)
    drawn = torch.stack([net.draw_prefixes() for _ in range(2000)])
    whole = drawn.flatten(1).all(dim=1)
    assert whole.float().mean() == pytest.approx(share, abs=0.04)
    widths = drawn[~whole][:, :, : net.parent.dim].sum(2)
    assert set(widths.unique().tolist()) == {1, 2, 4, 8}
    fields = torch.as_tensor(net.parent.field_of_block())
    together = [(widths[:, fields == field] == widths[:, fields == field][:, :1]).all() for field in fields.unique()]
    assert all(together) == (prefixes == "field")
    assert (widths != widths[:, :1]).any()
