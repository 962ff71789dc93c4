"""Pairs of rows in training: their loss and gradients, how many there are, weights, and batches that hold groups."""

import tracemalloc

import numpy as np
import polars as pl
import pytest
import torch

from autoembed.architecture import Architecture
from autoembed.batches import RowWeights, batches, sampled
from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.errors import TrialError
from autoembed.methods.bilevel import search
from autoembed.methods.method import configure, load
from autoembed.nn.model import CTRModel
from autoembed.pairwise import MOST, PART, PairwiseLoss, pairs
from autoembed.shuffle import GroupsTogether, Shuffle, Stretch
from autoembed.task import CLICKS
from autoembed.training import Teacher, TrainConfig, fit

CPU = torch.device("cpu")
# Dropout would draw other entries, and batch norm has statistics of rows that count once.
PLAIN = {"name": "deepfm", "dropout": 0.0, "batch_norm": False, "hidden": [16]}


def table(rows, seed):
    """Users with ten rows and fewer, some rows without a user, and weights."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, rows // 5, rows), rng.integers(0, 15, rows)
    logit = np.sin(user) + np.cos(item) - 0.5
    return pl.DataFrame(
        {
            "label": (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int),
            "user": [None if value % 9 == 0 else f"u{value}" for value in user],
            "item": [f"i{value}" for value in item],
            "other": [f"o{value % 4}" for value in item],
            "w": rng.integers(0, 4, rows),
        }
    )


def dataset_of(folder, change=lambda frame: frame.drop("w"), **spec):
    folder.mkdir()
    for seed, (split, rows) in enumerate((("train", 900), ("valid", 400), ("test", 400))):
        change(table(rows, seed)).write_parquet(folder / f"{split}.parquet")
    node = {"task": "ranking", "group": "user", "drop": ["user"], "min_count": 1} | spec
    return build_dataset(DataSpec.model_validate(node), folder, folder / "cache")


def repeated(frame):
    return frame[np.repeat(np.arange(len(frame)), frame["w"].to_numpy())].drop("w")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset_of(tmp_path_factory.mktemp("data") / "plain")


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """A dataset with weights, and one of the repeated rows: with the same ids."""
    folder = tmp_path_factory.mktemp("twins")
    weighted = dataset_of(folder / "weighted", lambda frame: frame, weight="w")
    plain = dataset_of(folder / "repeated", repeated)
    copies = np.repeat(np.arange(900), table(900, 0)["w"].to_numpy())
    np.save(plain.path / "train.ids.npy", weighted.ids("train")[copies])
    assert (plain.labels("train") == weighted.labels("train")[copies]).all()
    assert plain.schema.cardinalities == weighted.schema.cardinalities
    return weighted, plain


def small_model(dataset, **options):
    torch.manual_seed(0)
    root = Architecture.full(dataset.schema, dataset.counts, dim=4, blocks=1, backbone=PLAIN | options)
    return CTRModel(dataset.schema, root)


def loss_of(dataset, share=None, seen=None):
    rows = dataset.rows("train") if seen is None else seen
    return PairwiseLoss(dataset, rows, RowWeights(dataset, rows), share, device=CPU, seed=0)


def drawn(rows=120, seed=0):
    """Logits, labels, groups of few rows and weights of a batch."""
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy((rng.random(rows) < 0.3).astype(np.float32))
    groups = torch.from_numpy(rng.integers(-1, 12, rows).astype(np.int32))
    weights = torch.from_numpy(rng.integers(0, 4, rows).astype(np.float32))
    return torch.from_numpy(rng.normal(size=rows)), labels, groups, weights


def by_hand(logits, labels, groups, weights):
    """The sum over clicks of the weighted mean over their pairs, one by one; a tensor with a gradient."""
    total, y, g, w = torch.zeros((), dtype=logits.dtype), labels.tolist(), groups.tolist(), weights.tolist()
    for i in range(len(y)):
        others = [j for j in range(len(y)) if y[i] == 1 and y[j] == 0 and g[i] == g[j] >= 0 and w[j] > 0]
        for j in others:
            share = w[j] / sum(w[k] for k in others)
            total = total + w[i] * share * torch.log(1 + torch.exp(logits[j] - logits[i]))
    return total


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_those_of_all_pairs_one_by_one(weighted):
    logits, labels, groups, weights = drawn()
    own = weights.double() if weighted else None
    logits.requires_grad_(True)
    clicks, others, counts = pairs(labels.double(), groups, own, generator=torch.Generator())
    assert (labels[clicks] == 1).all()
    assert (labels[others] == 0).all()
    assert (groups[clicks] == groups[others]).all()
    found = (torch.nn.functional.softplus(logits[others] - logits[clicks]) * counts).sum()
    wanted = by_hand(logits, labels, groups, weights.double() if weighted else torch.ones(len(labels)).double())
    assert found.item() == pytest.approx(wanted.item(), rel=1e-9)
    one, other = (torch.autograd.grad(value, logits)[0] for value in (found, wanted))
    assert (one - other).abs().max() < 1e-9
    assert (one[(groups < 0)] == 0).all()


def test_a_click_has_at_most_so_many_pairs_and_each_other_row_as_often():
    labels, groups = torch.zeros(1005), torch.zeros(1005, dtype=torch.int32)
    labels[:5], groups[1002:] = 1, 1  # the last three rows have no click
    generator, seen = torch.Generator().manual_seed(0), torch.zeros(1005)
    for _ in range(400):
        clicks, others, counts = pairs(labels, groups, None, generator=generator)
        assert len(clicks) == 5 * MOST
        assert len(torch.unique(1005 * clicks + others)) == len(clicks)
        assert counts.sum().item() == pytest.approx(5)
        seen += torch.bincount(others, minlength=1005)
    assert (seen[:5] == 0).all()
    assert (seen[1002:] == 0).all()
    expected = 400 * 5 * MOST / 997
    assert abs(seen[5:1002] - expected).max() < 6 * expected**0.5
    first, again = (pairs(labels, groups, None, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first[1], again[1])
    # With weights the mean over draws is the weighted mean over all.
    weights, values = torch.rand(1005) + 0.1, torch.randn(1005)
    means = []
    for _ in range(400):
        clicks, others, counts = pairs(labels, groups, weights, generator=generator)
        means.append((values[others] * counts).sum() / weights[:5].sum())
    own, there = weights[5:1002], values[5:1002]
    assert torch.stack(means).mean().item() == pytest.approx((own @ there / own.sum()).item(), abs=0.03)


def test_the_loss_is_the_mean_over_clicks_with_a_partner(data):
    loss = loss_of(data)
    assert loss.share == data.task.pairwise
    labels, groups = (torch.from_numpy(part.copy()) for part in (data.labels("train"), data.groups("train")))
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=len(labels)))
    ones = torch.ones(len(labels)).double()
    with_partner = [
        row for row in np.flatnonzero((labels == 1) & (groups >= 0)) if ((groups == groups[row]) & (labels == 0)).any()
    ]
    wanted = by_hand(logits, labels, groups, ones).item() / len(with_partner)
    assert loss.of(logits, labels, groups, None).item() == pytest.approx(wanted, rel=1e-6)
    rows = torch.tensor(1.5)
    assert loss.total(rows, logits, labels, [groups]).item() == pytest.approx(0.75 + wanted / 2, rel=1e-6)
    members = torch.stack([logits, -logits, 2 * logits], dim=1)
    each = [loss.of(members[:, at], labels, groups, None).item() for at in range(3)]
    assert loss.of(members, labels, groups, None).item() == pytest.approx(np.mean(each), rel=1e-6)
    # By batches: the mean over batches by their rows is that over all, as groups of few rows stay together.
    order, total = loss.order(len(labels), [0]), 0.0
    scores = logits.numpy().astype(np.float32)
    for _, own, codes, logit in batches(data, "train", 100, CPU, rows=order, columns=(data.groups("train"), scores)):
        total += loss.of(logit, own, codes, None).item() * len(own) / len(labels)
    assert total == pytest.approx(wanted, rel=0.04)
    # None of the rows in a batch need be in a group, and the loss has a gradient all the same.
    alone = torch.randn(4, requires_grad=True)
    nothing = loss.of(alone, torch.ones(4), torch.full((4,), -1, dtype=torch.int32), None)
    nothing.backward()
    assert nothing.item() == 0
    assert (alone.grad == 0).all()


def test_rows_without_pairs_leave_nothing_to_rank(data, tmp_path):
    labels, groups = data.labels("train"), data.groups("train")
    with pytest.raises(TrialError, match="must have a group with both labels, but have none: hold out fewer"):
        loss_of(data, seen=np.flatnonzero((labels == 1) | (groups < 0)))
    clicks = build_dataset(DataSpec(), data.path.parents[1], tmp_path / "cache")
    none = loss_of(clicks)
    assert (none.share, none.columns) == (0, ())
    assert isinstance(none.order(10, [0]), Shuffle)
    loss = torch.tensor(2.0)
    assert none.total(loss, loss, loss, []) is loss
    assert loss_of(data, 0.0).columns == ()  # and so a share of 0 is a training of clicks


@pytest.mark.parametrize(
    ("share", "recipe"), [(0.5, {}), (1.0, {}), (0.5, {"positive_weight": 3.0}), (0.5, {"taught": True})]
)
def test_a_step_on_weighted_rows_is_that_of_repeated_rows(twins, share, recipe):
    losses, models = [], []
    for dataset in twins:
        model, told, options, teacher = small_model(dataset), [], dict(recipe), None
        if options.pop("taught", False):
            teacher = Teacher(logits=np.sin(dataset.ids("train").sum(axis=1)).astype(np.float32), weight=0.4)
        train = TrainConfig(epochs=1, lr=0.05, batch_size=100_000, pairwise_weight=share, **options)
        fit(model, dataset, train, device=CPU, seed=0, report=told.append, teacher=teacher)
        losses.append(told[0].loss)
        models.append(model)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    ids = torch.from_numpy(twins[0].ids("train").copy())
    logits = [model.eval()(ids).detach() for model in (*models, small_model(twins[0]))]
    # What is the same in all logits is in no pair, and Adam makes a step of the last digits of its gradient.
    logits = [own - own.mean() for own in logits] if share == 1 else logits
    assert (logits[0] - logits[1]).abs().max() < 2e-3
    assert (logits[0] - logits[2]).abs().max() > 0.02


def test_gradients_of_weighted_rows_are_those_of_repeated_rows(twins):
    found = []
    for dataset in twins:
        model, loss = small_model(dataset).eval(), loss_of(dataset, 1.0)
        labels = torch.from_numpy(dataset.labels("train").copy())
        told = [torch.from_numpy(part.copy()) for part in (*loss.rows.columns, *loss.columns)]
        logits = model(torch.from_numpy(dataset.ids("train").copy()))
        loss.total(torch.zeros(()), logits, labels, told).backward()
        found.append([part.grad for part in model.parameters() if part.grad is not None])
    assert found[0]
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def whole(order):
    return order[np.arange(len(order))]


def test_an_order_holds_groups_together(monkeypatch):
    rng = np.random.default_rng(0)
    groups = np.concatenate([np.repeat(np.arange(40), 10), np.full(100, 40), np.full(50, -1), np.full(33, 41)])
    groups = groups[rng.permutation(len(groups))].astype(np.int32)
    total = len(groups)
    order = whole(GroupsTogether(total, groups, PART, [3, 1]))
    assert np.array_equal(np.sort(order), np.arange(total))
    codes = groups[order]
    stops = np.flatnonzero(np.append(codes[1:] != codes[:-1], True)) + 1
    runs = np.diff(np.append(0, stops))
    firsts = codes[stops - 1]
    assert (runs[(firsts >= 0) & (firsts < 40)] == 10).all()  # 40 groups in as many runs
    assert ((firsts >= 0) & (firsts < 40)).sum() == 40
    assert runs[firsts == 40].min() >= 25  # 100 rows in four parts, two of which may meet
    assert runs[firsts == 41].min() >= 16
    assert (firsts == -1).sum() > 25  # rows in no group lie among the others
    parts = [set(order[codes == 40][:25])]
    for seed in ([3, 2], [3, 3]):
        other = whole(GroupsTogether(total, groups, PART, seed))
        assert not np.array_equal(order, other)
        parts.append(set(other[groups[other] == 40][:25]))
    assert max(len(parts[0] & parts[1]), len(parts[0] & parts[2])) < 15  # a part has other rows in each order
    monkeypatch.setattr("autoembed.shuffle._AT_ONCE", 7)
    assert np.array_equal(order, whole(GroupsTogether(total, groups, PART, [3, 1])))
    part = Stretch(Shuffle(total, 1), 100, 400)
    own = GroupsTogether(part, groups, PART, [0])
    assert np.array_equal(np.sort(whole(own)), np.sort(whole(part)))
    assert len(whole(GroupsTogether(np.zeros(0, dtype=np.int64), groups, PART, [0]))) == 0
    assert whole(GroupsTogether(1, groups, PART, [0])).tolist() == [0]
    with pytest.raises(ValueError, match=r"must be fewer than 2\^32, but got 4294967296"):
        GroupsTogether(1 << 32, groups, PART, [0])


def test_an_order_takes_eight_bytes_a_row_and_little_more():
    rows = 2_000_000
    groups = np.random.default_rng(0).integers(0, rows // 50, rows).astype(np.int32)
    tracemalloc.start()
    try:
        order = GroupsTogether(rows, groups, PART, [0])
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(order) == rows
    assert held < 10 * rows
    assert most < 10 * rows + 60 * 2**20  # a piece of a million rows at a time


def test_samples_of_the_rows_without_a_click_are_scaled_anew(data):
    train, told = TrainConfig(epochs=3, batch_size=64, negative_sampling=0.3, lr=0.01), []
    fit(small_model(data), data, train, device=CPU, seed=0, report=told.append)
    assert all(np.isfinite(event.loss) for event in told)
    rows = sampled(data, 900, 0.3, [1])
    loss = loss_of(data)
    whole = loss.scale
    loss.of_rows(rows)
    assert loss.scale == pytest.approx(loss_of(data, seen=rows).scale)
    assert loss.scale < whole  # clicks are more of the sample


@pytest.mark.parametrize("method", ["dnis", "optinter"])
def test_searches_move_gates_and_weights_by_pairs(data, method, tmp_path):
    """With the share of pairs, gates end elsewhere; both kinds of update, in turn and together."""
    from autoembed.data.crosses import CrossSpec

    if method == "optinter":
        data = data.cross([("item", "other")], CrossSpec(min_count=1), tmp_path, candidates=True)
    gates = []
    for share in (0.0, 1.0):
        torch.manual_seed(0)
        root = Architecture.full(data.schema, data.counts, dim=4, blocks=2, backbone=PLAIN)
        config = configure({"method": method, "epochs": 1} | ({"warm_epochs": 0} if method == "dnis" else {}))
        net = load(method).Supernet(data.schema, root, config, data.counts, 0)
        train = TrainConfig(epochs=1, batch_size=128, lr=0.01, pairwise_weight=share)
        search(net, data, train, device=CPU, seed=0, report=lambda event: None)
        gates.append(torch.cat([gate.detach().reshape(-1) for gate in net.arch_parameters()]))
    assert torch.isfinite(gates[1]).all()
    assert not torch.allclose(*gates)


def test_the_share_of_rows_is_the_loss_of_clicks(data):
    told = []
    for share in (0.0, 1e-9):
        events = []
        train = TrainConfig(epochs=1, batch_size=100_000, pairwise_weight=share)
        fit(small_model(data), data, train, device=CPU, seed=0, report=events.append)
        told.append(events[0].loss)
    labels = torch.from_numpy(data.labels("train").copy())
    logits = small_model(data)(torch.from_numpy(data.ids("train").copy()))
    assert told == pytest.approx([CLICKS.loss(logits, labels).item()] * 2, rel=1e-5)
