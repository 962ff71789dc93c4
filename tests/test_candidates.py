"""What fits into a limit on the whole model, by uniform rows of few bits, of which a model has far fewer bytes."""

import pytest
import torch

from autoembed.architecture import Architecture
from autoembed.budget import Limit
from autoembed.candidates import within
from autoembed.errors import SpaceError
from autoembed.methods.method import configure, load
from autoembed.nn.model import cost_of


@pytest.fixture(scope="module")
def sizes(planted):
    """A net of uniform rows of 4 bits, two to a byte, beside a large tower, and the bytes of its model by width."""
    backbone = {"name": "dnn", "hidden": [64, 32], "dropout": 0.0}
    root = Architecture.full(planted.schema, planted.counts, dim=16, blocks=3, backbone=backbone)
    torch.manual_seed(0)
    stage = {"method": "uniform", "bits": 4}
    net = load("uniform").Supernet(planted.schema, root, configure(stage), planted.counts, 0)
    widths = {}
    for budget in range(1, 200_000, 200):
        try:
            found = net.answer(budget).architecture
        except SpaceError:
            continue
        widths[int(found.mask().sum(axis=1).max())] = cost_of(found).bytes
    return net, widths


def asked(net):
    """The net's answers, and the budgets that it was asked for."""
    budgets = []

    def ask(limit):
        budgets.append(limit)
        return net.answer(limit)

    return ask, budgets


@pytest.mark.parametrize("width", [2, 4, 8, 16])
def test_a_limit_that_holds_a_width_finds_it_in_a_few_questions(sizes, width):
    net, widths = sizes
    ask, budgets = asked(net)
    found = within(ask, Limit(bytes=widths[width]), net.parent).architecture
    assert int(found.mask().sum(axis=1).max()) == width
    assert len(budgets) <= 14, budgets


def test_a_limit_below_the_smallest_rows_is_refused(sizes):
    net, widths = sizes
    ask, budgets = asked(net)
    with pytest.raises(SpaceError, match=r"budget\.bytes must hold the backbone and one dim, but [\d,]+ are 1 too few"):
        within(ask, Limit(bytes=widths[2] - 1), net.parent)
    assert len(budgets) <= 25, budgets
