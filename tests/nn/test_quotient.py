"""Embeddings of remainders and quotients against numpy, and their bytes."""

import copy

import numpy as np
import pytest
import torch

from autoembed.architecture import Architecture
from autoembed.data.schema import PAD, FeatureSchema, Field, Multi
from autoembed.export.serving import ServingModel
from autoembed.nn.model import build_model, cost_of, measure, pack, start_rounding
from autoembed.storage import QuotientRemainderStorage

SIZES = {"a": 101, "b": 5, "c": 40, "d": 12}
SCHEMA = FeatureSchema(
    fields=(
        Field(name="a", cardinality=101),
        Field(name="b", cardinality=5),
        Field(name="c", cardinality=40, kind="multi", multi=Multi(length=3)),
        Field(name="d", cardinality=12),
    ),
    label="y",
)
COUNTS = [np.arange(size)[::-1].copy() for size in SIZES.values()]


def architecture(collisions, *, combine="mult", bits=32, step="row", backbone="fm"):
    full = Architecture.full(SCHEMA, COUNTS, dim=4, blocks=2, cut="equal", backbone={"name": backbone}, bits=bits)
    storage = QuotientRemainderStorage(collisions=collisions, split_above=12, combine=combine, bits=bits, step=step)
    return full.replace(storage=storage)


def ids(rows=300):
    rng = np.random.default_rng(0)
    found = [rng.integers(0, size, rows) for size in (101, 5, 40, 40, 40, 12)]
    found[4][::3] = PAD
    return torch.tensor(np.stack(found, axis=1), dtype=torch.int32)


def test_the_rows_of_a_field_are_as_many_as_its_collisions_and_its_root_ask_for():
    for size in [*range(1, 60), 101, 997, 4096]:
        for collisions in (1, 1.5, 2, 3.7, 10, 60, 5000):
            parts = QuotientRemainderStorage(collisions=collisions, split_above=1).parts(size)
            m = max(np.ceil(size / collisions), np.ceil(np.sqrt(size)))
            assert sum(parts) == min(size, m + np.ceil(size / m)), (size, collisions)
            assert len(parts) == 1 or parts == (m, np.ceil(size / m))
            assert QuotientRemainderStorage(collisions=collisions, split_above=size).parts(size) == (size,)
    assert QuotientRemainderStorage(collisions=1e9).parts(1_000_000) == (1000, 1000)


@pytest.mark.parametrize("combine", ["mult", "add"])
@pytest.mark.parametrize("backbone", ["fm", "dnn"])
def test_a_value_has_its_remainder_and_its_quotient(combine, backbone):
    torch.manual_seed(0)
    model = build_model(SCHEMA, architecture(4, combine=combine, backbone=backbone))
    table = model.embedding.tables[0].weight.detach().normal_().numpy()
    parts = {"a": (26, 4), "b": (5,), "c": (10, 4), "d": (12,)}
    assert {name: model.architecture.storage.parts(size) for name, size in SIZES.items()} == parts
    assert len(table) == 30 + 5 + 14 + 12
    start = {"a": 0, "b": 30, "c": 35, "d": 49}
    given = ids()
    with torch.no_grad():
        found = model.embedding.lookup(given.clamp_min(0)).numpy()
    for column, name in enumerate(["a", "b", "c", "c", "c", "d"]):
        for row, one in enumerate(given[:, column].clamp_min(0).tolist()):
            m, s = parts[name][0], start[name]
            own = table[s + one % m]
            if len(parts[name]) == 2:
                other = table[s + m + one // m]
                product = own * other
                product[4:] = (own + other)[4:]  # first-order weights
                own = own + other if combine == "add" else product
            np.testing.assert_allclose(found[row, column], own, atol=1e-6)


@pytest.mark.parametrize("combine", ["mult", "add"])
def test_every_value_has_an_embedding_of_its_own(combine):
    torch.manual_seed(0)
    model = build_model(SCHEMA, architecture(9, combine=combine))
    every = torch.zeros(101, 6, dtype=torch.int32)
    every[:, 0] = torch.arange(101)
    with torch.no_grad():
        found = model.embedding.lookup(every)[:, 0]
    assert len(np.unique(found.numpy().round(7), axis=0)) == 101


@pytest.mark.parametrize("collisions", [1, 2.5, 4, 100])
@pytest.mark.parametrize(
    ("bits", "step"), [(32, "row"), (16, "row"), (8, "row"), (4, "block"), (3, "dim"), (2, "row"), (1, "row")]
)
def test_packed_it_predicts_the_same_and_costs_what_is_counted(collisions, bits, step):
    torch.manual_seed(0)
    plan = architecture(collisions, bits=bits, step=step)
    model = build_model(SCHEMA, plan).eval()
    with torch.no_grad():
        model.embedding.tables[0].weight.normal_()
    start_rounding(model)
    packed, given = pack(model, SCHEMA), ids()
    with torch.no_grad():
        expected = model(given)
        assert (packed(given) - expected).abs().max() < 1e-4
        served = ServingModel(copy.deepcopy(packed))(given.long())
    assert (served - torch.sigmoid(expected)).abs().max() < 1e-5
    cost = measure(packed)
    assert cost == cost_of(plan)
    assert cost.embedding_bytes == plan.embedding_bytes(first_order=True)
    assert cost.embedding_parameters == plan.embedding_parameters(first_order=True)
    each = [plan.storage.parameters([field], 4, first_order=True) for field in plan.fields]
    assert sum(each) == cost.embedding_parameters


def test_a_batch_moves_the_rows_of_its_values_alone():
    """Sparse gradients, as for tables that are too large to touch at every step."""
    model = build_model(SCHEMA, architecture(4))
    model.sparse_gradients(True)
    given = torch.tensor([[60, 1, 3, PAD, PAD, 2]], dtype=torch.int32)
    model.train()(given).sum().backward()
    gradient = model.embedding.tables[0].weight.grad
    assert gradient.is_sparse
    # 60 is 8 + 2 * 26; 3 and the place of no value, id 0, are below 10.
    touched = {8, 26 + 2, 30 + 1, 35 + 3, 35 + 0, 35 + 10, 49 + 2}
    assert set(gradient.coalesce().indices()[0].tolist()) == touched


def test_where_all_values_have_rows_it_is_the_plain_table():
    model = build_model(SCHEMA, architecture(1))
    plain = build_model(
        SCHEMA, Architecture.full(SCHEMA, COUNTS, dim=4, blocks=1, cut="equal", backbone={"name": "fm"})
    )
    assert cost_of(model.architecture).embedding_bytes == cost_of(plain.architecture).embedding_bytes
    with torch.no_grad():
        plain.embedding.tables[0].weight.copy_(model.embedding.tables[0].weight)
        assert torch.equal(model.embed(ids()), plain.embed(ids()))


def test_products_start_at_the_scale_of_plain_rows():
    torch.manual_seed(0)
    table = build_model(SCHEMA, architecture(4)).embedding.tables[0].weight.detach()
    assert table[:30, :4].std().item() == pytest.approx(0.1, rel=0.5)  # of a, which is split
    assert table[30:35, :4].std().item() == pytest.approx(0.01, rel=0.5)
    sums = build_model(SCHEMA, architecture(4, combine="add")).embedding.tables[0].weight.detach()
    assert sums[:, :4].std().item() == pytest.approx(0.01, rel=0.5)
