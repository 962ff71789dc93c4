"""Every backbone against its formula: values by hand, parameters by count, compact against masked."""

import numpy as np
import pytest
import torch

from autoembed.architecture import Architecture
from autoembed.data.schema import FeatureSchema, Field
from autoembed.errors import SpaceError
from autoembed.nn.backbones.armnet import Entmax
from autoembed.nn.backbones.base import build, configure, names
from autoembed.nn.layers import Dropout, PairLinear, inner_products
from autoembed.testing import BackboneContract

COUNTS = [np.array(c) for c in ([0, 90, 9, 8, 1], [3, 60, 5], [0, 50, 2, 1], [0, 44, 7])]
SCHEMA = FeatureSchema(
    fields=tuple(Field(name=n, cardinality=len(c)) for n, c in zip("abcd", COUNTS, strict=True)), label="y"
)
SMALL = {"hidden": [6, 4], "dropout": 0.0}
OPTIONS = {
    "lr": [{}],
    "fm": [{}],
    "dnn": [SMALL, SMALL | {"batch_norm": False}],
    "widedeep": [SMALL],
    "deepfm": [SMALL],
    "dcn": [SMALL | {"layers": 2}, SMALL | {"layers": 2, "structure": "stacked"}],
    "pnn": [SMALL, SMALL | {"product": "outer"}],
    "autoint": [SMALL | {"layers": 2, "heads": 2, "head_units": 3}, SMALL | {"deep": False, "scale": True}],
    "masknet": [
        {"hidden": [6, 4], "blocks": 2, "block_units": 5, "aggregation": 3, "dropout": 0.0},
        {"hidden": [6, 4], "structure": "serial", "aggregation": 3, "dropout": 0.0},
    ],
    "armnet": [SMALL | {"neurons": 3, "key": 2}, SMALL | {"alpha": 1.0}],
    "finalmlp": [SMALL | {"hidden2": [8], "heads": 2, "gate_units": 3}, SMALL | {"hidden2": [4], "gates": False}],
    "dlrm": [SMALL],
}
CASES = [(name, options) for name, many in OPTIONS.items() for options in many]
F, D = 4, 3


def root(name, options):
    dim = 1 if name == "lr" else D
    return Architecture.full(SCHEMA, COUNTS, dim=dim, blocks=3, cut="equal", backbone={"name": name, **options})


def test_every_backbone_is_tested():
    assert set(OPTIONS) == set(names())


def contract(name, options):
    dim = 1 if name == "lr" else D
    return type(f"Test_{name}", (BackboneContract,), {"options": {"name": name, **options}, "dim": dim})


globals().update({f"Test_{name}_{number}": contract(name, options) for number, (name, options) in enumerate(CASES)})


def mlp(width, hidden, norm=True):
    sizes = [width, *hidden]
    return sum(a * b + b + 2 * b * norm for a, b in zip(sizes, hidden, strict=False)) + hidden[-1] + 1


P = F * (F - 1) // 2
N = F * D
FORMULAS = {
    "lr": 1,
    "fm": 1,
    "dnn": mlp(N, [6, 4]),
    "widedeep": mlp(N, [6, 4]),
    "deepfm": mlp(N, [6, 4]) + 1,
    "dcn": mlp(N, [6, 4]) + 2 * (N * N + N) + N,
    "pnn": mlp(N + P, [6, 4]),
    "autoint": mlp(N, [6, 4]) + 4 * D * 6 + 4 * 6 * 6 + F * 6 + 1,
    "masknet": 2 * D + 2 * ((N * 3 + 3) + (3 * N + N) + N * 5 + 2 * 5) + (2 * 5 * 6 + 6) + (6 * 4 + 4) + 4 + 1,
    "armnet": D * 2 + 3 * 2 + 3 * F + 2 * 3 + mlp(3 * D, [6, 4]),
    "finalmlp": (mlp(N, [6, 4]) - 5) + (mlp(N, [8]) - 9) + 5 + 8 + 4 * 8 // 2 + 2 * (D + D * 3 + 3 + 3 * N + N),
    "dlrm": mlp(P, [6, 4]),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_parameters_follow_the_formula(name):
    backbone = build({"name": name, **OPTIONS[name][0]}, np.ones((F, 1 if name == "lr" else D), bool))
    assert sum(parameter.numel() for parameter in backbone.parameters()) == FORMULAS[name]


def constant(backbone, value):
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.fill_(value)
    return backbone.eval()


def test_lr_and_fm_by_hand():
    lr = constant(build({"name": "lr"}, np.ones((2, 1), bool)), 0.5)
    assert lr(torch.tensor([[[2.0], [3.0]]]), None).item() == 5.5
    fm = constant(build({"name": "fm"}, np.ones((2, 2), bool)), 0.5)
    e = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert fm(e, torch.tensor([[10.0, 20.0]])).item() == 0.5 + 30 + 11


PLAIN = {"hidden": [1], "dropout": 0.0, "batch_norm": False}


def test_dnn_and_widedeep_by_hand():
    e = torch.tensor([[[2.0], [3.0]]])
    dnn = constant(build({"name": "dnn", **PLAIN}, np.ones((2, 1), bool)), 0.5)
    # relu(.5 * 2 + .5 * 3 + .5) = 3; .5 * 3 + .5 = 2
    assert dnn(e, None).item() == 2.0
    wide = constant(build({"name": "widedeep", **PLAIN}, np.ones((2, 1), bool)), 0.5)
    assert wide(e, torch.tensor([[1.0, 2.0]])).item() == 5.0


def test_dcn_by_hand():
    e = torch.tensor([[[2.0], [3.0]]])
    options = {"name": "dcn", **PLAIN, "layers": 2}
    # W = .5 everywhere, b = .5. Layer 1: W x0 + b = 3; x1 = x0 * 3 + x0 = (8, 12). Layer 2: .5 * 20 + .5 = 10.5;
    # x2 = (2, 3) * 10.5 + (8, 12) = (29, 43.5).
    parallel = constant(build(options, np.ones((2, 1), bool)), 0.5)
    assert parallel(e, None).item() == pytest.approx(0.5 * (29 + 43.5) + (0.5 * 3 + 0.5))
    stacked = constant(build({**options, "structure": "stacked"}, np.ones((2, 1), bool)), 0.5)
    assert stacked(e, None).item() == pytest.approx(0.5 * (0.5 * 72.5 + 0.5) + 0.5)


def test_pnn_and_dlrm_by_hand():
    e = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, -6.0]]])
    products = [1 * 3 + 2 * 4, 1 * 5 - 2 * 6, 3 * 5 - 4 * 6]
    assert inner_products(e).tolist() == [products]
    inner = constant(build({"name": "pnn", **PLAIN}, np.ones((3, 2), bool)), 0.5)
    hidden = max(0, 0.5 * e.sum().item() + 0.5 + 0.5 * sum(products))
    assert inner(e, None).item() == pytest.approx(0.5 * hidden + 0.5)
    outer = constant(build({"name": "pnn", "product": "outer", **PLAIN}, np.ones((3, 2), bool)), 0.5)
    total = e.sum(1)[0]
    hidden = 0.5 * e.sum().item() + 0.5 + 0.5 * torch.outer(total, total).sum().item()
    assert outer(e, None).item() == pytest.approx(0.5 * max(0, hidden) + 0.5)
    dlrm = constant(build({"name": "dlrm", **PLAIN}, np.ones((3, 2), bool)), 0.5)
    assert dlrm(e, None).item() == pytest.approx(0.5 * max(0, 0.5 * sum(products) + 0.5) + 0.5)


def test_autoint_by_hand():
    options = {"name": "autoint", "layers": 1, "heads": 1, "head_units": 1, "deep": False}
    model = constant(build(options, np.ones((2, 1), bool)), 1.0)
    e = torch.tensor([[[0.0], [1.0]]])
    # q = k = v = e. Field 0: equal scores, mean .5, residual 0. Field 1: weights 1/(1+e), e/(1+e); residual 1.
    p = np.e / (1 + np.e)
    assert model(e, None).item() == pytest.approx(0.5 + (p + 1) + 1)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("autoint", "width", "head_units"),
        ("finalmlp", "gate_width", "gate_units"),
        ("masknet", "block_width", "block_units"),
    ],
)
def test_options_are_read_under_the_names_of_earlier_versions(name, old, new):
    assert configure({"name": name, old: 3}) == configure({"name": name, new: 3})
    with pytest.raises(SpaceError, match=f"{old} is the earlier name of {new}: give one of them"):
        configure({"name": name, old: 3, new: 3})


def test_masknet_by_hand():
    """The serial model against the paper's equations, written out with numpy."""
    torch.manual_seed(0)
    options = {"name": "masknet", "structure": "serial", "hidden": [3, 2], "aggregation": 4, "dropout": 0.0}
    model = build(options, np.ones((2, 3), bool)).eval()
    e = torch.randn(5, 2, 3)

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)

    w = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    flat = e.numpy().reshape(5, 6)

    def block(place, x):
        inner = np.maximum(0, flat @ w[f"{place}.guide.linear.weight"].T + w[f"{place}.guide.linear.bias"])
        linear = "mask.linear" if f"{place}.mask.linear.weight" in w else "mask"
        mask = inner @ w[f"{place}.{linear}.weight"].T + w[f"{place}.{linear}.bias"]
        out = "linear.linear" if f"{place}.linear.linear.weight" in w else "linear"
        return np.maximum(0, norm((mask * x) @ w[f"{place}.{out}.weight"].T))

    x = block("further.0", block("first.0", norm(e.numpy()).reshape(5, 6)))
    expected = x @ w["output.weight"].T + w["output.bias"]
    assert np.allclose(model(e, None).detach().numpy(), expected[:, 0], atol=1e-5)


def test_armnet_by_hand():
    options = {"name": "armnet", **PLAIN, "neurons": 1, "key": 1, "alpha": 1.0}
    model = constant(build(options, np.ones((2, 1), bool)), 1.0)
    model.norm.eps = 0.0
    e = torch.tensor([[[0.0], [1.0]]])
    # softmax(0, 1) = (1 - p, p), values 1: exp(p); batch norm with weight 1, bias 1; relu(x + 1) + 1.
    p = np.e / (1 + np.e)
    assert model(e, None).item() == pytest.approx(np.exp(p) + 1 + 1 + 1, rel=1e-6)


def test_finalmlp_by_hand():
    options = {"name": "finalmlp", **PLAIN, "hidden2": [1], "gates": False}
    model = constant(build(options, np.ones((2, 1), bool)), 0.5)
    e = torch.tensor([[[2.0], [3.0]]])
    # Both streams give relu(.5 * 5 + .5) = 3: .5 * 3 + .5 + .5 * 3 + .5 * 9.
    assert model(e, None).item() == pytest.approx(1.5 + 0.5 + 1.5 + 4.5)


@pytest.mark.parametrize("alpha", [1.3, 1.7, 2.0])
def test_entmax_is_a_distribution_with_the_right_slope(alpha):
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    p = Entmax.apply(x, alpha)
    assert torch.allclose(p.sum(-1), torch.ones(4, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda z: Entmax.apply(z, alpha), (x,), eps=1e-6, atol=1e-4)
    assert torch.equal(Entmax.apply(torch.tensor([[0.0, 5.0]]), 2.0), torch.tensor([[0.0, 1.0]]))
    # p = ((alpha - 1) x - threshold)_+^(1 / (alpha - 1)) with one threshold for a row, long rows too.
    x = torch.randn(3, 1000, dtype=torch.float64)
    p = Entmax.apply(x, alpha)
    for row, values in zip(p, x, strict=True):
        thresholds = ((alpha - 1) * values - row ** (alpha - 1))[row > 0]
        assert thresholds.max() - thresholds.min() < 1e-9
        assert ((alpha - 1) * values[row == 0] <= thresholds.max() + 1e-9).all()


def test_dropout_drops_its_share_and_keeps_the_mean():
    layer, x = Dropout(0.3), torch.ones(1001, 101, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert torch.equal(x.grad, y)
    assert sorted(y.unique().tolist()) == pytest.approx([0, 1 / 0.7])
    # Four entries share a draw: each of the four places drops 30 % (sd .0029), independently of its neighbour.
    dropped = (y.flatten()[:100_000].view(-1, 4) == 0).float()
    assert (dropped.mean(0) - 0.3).abs().max() < 0.012
    assert (torch.corrcoef(dropped.T) - torch.eye(4)).abs().max() < 0.025
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)


def test_pair_columns_follow_their_fields():
    wide, narrow = PairLinear(5, 2), PairLinear(3, 2)
    narrow.inherit(wide, [0, 2, 4])
    order = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    columns = [order.index(pair) for pair in [(0, 2), (0, 4), (2, 4)]]
    assert torch.equal(narrow.linear.weight, wide.linear.weight[:, columns])


def test_what_makes_no_sense_is_refused_with_a_reason():
    with pytest.raises(SpaceError, match=r"lr has one weight for each value.*embedding.dim: 1 \(got 8\)"):
        build({"name": "lr"}, np.ones((2, 8), bool))
    with pytest.raises(SpaceError, match=r"multiples of heads=3, but got 400"):
        build({"name": "finalmlp", "heads": 3}, np.ones((2, 8), bool))
    with pytest.raises(SpaceError, match=r"at least 2, but got 1"):
        build({"name": "dlrm"}, np.ones((1, 8), bool))
