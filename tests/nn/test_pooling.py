"""The embeddings of multi-valued fields, in the supernet and in every compact storage."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from autoembed.architecture import Architecture
from autoembed.card import sample_ids
from autoembed.data.knots import ONE, SPAN
from autoembed.data.schema import PAD, FeatureSchema, Field, Multi
from autoembed.errors import SpaceError
from autoembed.export.serving import ServingModel
from autoembed.nn.model import build_model, cost_of, measure, pack, start_rounding
from autoembed.nn.pooling import attend, pool
from autoembed.plans import Pool
from autoembed.storage import MixedStorage, ProjectedStorage, QuotientRemainderStorage, SharedStorage

COUNTS = [np.array(count) for count in ([0, 90, 9, 8, 1], [3, 60, 5, 4], [0, 50, 2, 1])]
SCHEMA = FeatureSchema(
    fields=(
        Field(name="a", cardinality=5),
        Field(name="b", cardinality=4, kind="multi", multi=Multi(length=3)),
        Field(name="c", cardinality=4),
    ),
    label="y",
)


def architecture(by="mean", backbone="fm"):
    return Architecture.full(SCHEMA, COUNTS, dim=4, blocks=2, cut="equal", backbone={"name": backbone}, pool=by)


@pytest.mark.parametrize("by", ["mean", "sum", "max"])
def test_a_field_has_what_its_values_have_together(by):
    model = build_model(SCHEMA, architecture(by))
    ids = torch.tensor([[1, 1, 3, PAD, 2], [0, 2, PAD, PAD, 3], [4, 1, 1, 2, 1]], dtype=torch.int32)
    with torch.no_grad():
        model.embedding.tables[0].weight.normal_()
        found = model.embed(ids)[:, 1]
        each = model.embedding.lookup(ids.clamp_min(0))[:, 1:4]
    together = {"mean": torch.Tensor.mean, "sum": torch.Tensor.sum, "max": torch.amax}[by]
    for row, held in enumerate((2, 1, 3)):
        assert torch.allclose(found[row], together(each[row, :held], 0))


def test_a_row_without_any_value_has_zeros():
    for by in ("mean", "sum", "max"):
        assert not pool(torch.ones(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool), by).any()
    assert not attend(torch.ones(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool), torch.ones(1, 1, 3), 3).any()


READING = FeatureSchema(
    fields=(
        Field(name="a", cardinality=5),
        Field(name="item", cardinality=4),
        Field(name="b", cardinality=4, kind="multi", multi=Multi(length=3), shares="item"),
        Field(name="c", cardinality=4),
    ),
    label="y",
)


def attentive(pool="attention", backbone="fm"):
    counts = [COUNTS[0], COUNTS[1], COUNTS[1], COUNTS[2]]
    return Architecture.full(READING, counts, dim=4, blocks=2, cut="equal", backbone={"name": backbone}, pool=pool)


def test_values_count_by_how_much_they_are_like_what_is_scored():
    model = build_model(READING, attentive())
    ids = torch.tensor([[1, 3, 1, 3, PAD, 2], [0, 2, PAD, PAD, PAD, 3], [4, 1, 1, 2, 1, 1]], dtype=torch.int32)
    with torch.no_grad():
        model.embedding.tables[0].weight.normal_(std=2.0)
        found = model.embed(ids)  # a, item, its reader b, c
        each = model.embedding.lookup(ids.index_select(1, model.columns).clamp_min(0))[:, 1:5]
    for row, held in enumerate((2, 0, 3)):
        target, values = each[row, 0, :4], each[row, 1 : 1 + held]
        weights = (values[:, :4] @ target / 2).softmax(0)
        assert torch.allclose(found[row, 2], weights @ values, atol=1e-6)
    assert not found[1, 2].any()


def test_lists_may_be_pooled_each_in_its_own_way():
    (own,) = (field for field in attentive({"b": "max"}).fields if field.name == "item")
    assert own.readers[0].pool == Pool(length=3, by="max")
    (own,) = (field for field in attentive({}).fields if field.name == "item")
    assert own.readers[0].pool == Pool(length=3, by="mean")
    with pytest.raises(SpaceError, match="unknown multi-valued field 'item': must be one of b"):
        attentive({"item": "max"})
    with pytest.raises(SpaceError, match=r"attention compares the values of 'b' with .* set data\.multi\.b\.shared"):
        architecture("attention")


def test_the_mean_is_that_of_an_embedding_bag():
    torch.manual_seed(0)
    ids = torch.tensor([[2, 0, 1], [3, PAD, PAD]])
    table = torch.randn(4, 5)
    lists = functional.embedding_bag(torch.tensor([2, 0, 1, 3]), table, torch.tensor([0, 3]), mode="mean")
    assert torch.allclose(pool(functional.embedding(ids.clamp_min(0), table), ids >= 0, "mean")[:, 0], lists)


def test_padding_learns_nothing():
    model = build_model(SCHEMA, architecture("sum"))
    model(torch.tensor([[1, 2, PAD, PAD, 1]])).sum().backward()
    touched = model.embedding.tables[0].weight.grad.abs().sum(1).nonzero().flatten().tolist()
    # The three fields' rows stand one after the other: ids 1 of a, 2 of b, 1 of c, and no id 0.
    assert sorted(touched) == [1, 5 + 2, 9 + 1]


def test_cost_counts_a_table_once_whatever_the_rows_hold():
    model = build_model(SCHEMA, architecture())
    assert measure(model) == cost_of(model.architecture)
    single = FeatureSchema(fields=tuple(f.model_copy(update={"multi": None}) for f in SCHEMA.fields), label="y")
    plain = Architecture.full(single, COUNTS, dim=4, blocks=2, cut="equal", backbone={"name": "fm"})
    assert cost_of(plain).embedding_bytes == cost_of(model.architecture).embedding_bytes


def test_what_is_stored_of_other_fields_is_as_before():
    assert "pool" not in architecture().model_dump()["fields"][0]
    assert architecture().model_dump()["fields"][1]["pool"] == {"length": 3, "by": "mean"}
    assert "multi" not in SCHEMA.model_dump()["fields"][0]
    assert Architecture.model_validate_json(architecture("max").model_dump_json()) == architecture("max")


def test_another_length_is_refused():
    longer = SCHEMA.fields[1].model_copy(update={"multi": Multi(length=4)})
    schema = SCHEMA.model_copy(update={"fields": (SCHEMA.fields[0], longer, SCHEMA.fields[2])})
    with pytest.raises(Exception, match="field 'b' must have 4 ids and 3 columns as in the architecture"):
        build_model(schema, architecture())


def test_a_sample_has_rows_of_every_length():
    held = (sample_ids(SCHEMA)[:, 1:4] >= 0).sum(axis=1)
    assert set(held) == {1, 2, 3}
    assert Pool(length=3).by == "mean"


SHARED = FeatureSchema(
    fields=(
        Field(name="a", cardinality=5),
        Field(name="b", cardinality=5, kind="multi", multi=Multi(length=3), shares="a"),
        Field(name="c", cardinality=4),
        Field(name="d", cardinality=5, shares="a"),
    ),
    label="y",
)


def test_fields_that_share_read_one_table_which_is_counted_once():
    counts = [COUNTS[0], COUNTS[0], COUNTS[2], COUNTS[0]]
    whole = Architecture.full(SHARED, counts, dim=4, blocks=2, cut="equal", backbone={"name": "fm"})
    assert (whole.names, whole.inputs, whole.lengths) == (("a", "c"), ("a", "b", "d", "c"), (5, 1))
    assert whole.active().shape == (4, 4)
    model = build_model(SHARED, whole)
    ids = sample_ids(SHARED, 50)
    with torch.no_grad():
        model.embedding.tables[0].weight.normal_()
        e = model.embed(torch.from_numpy(ids))
    same = np.flatnonzero(ids[:, 0] == ids[:, 5])
    assert len(same)
    assert torch.equal(e[same, 0], e[same, 2])
    plain = SHARED.model_copy(update={"fields": (SHARED.fields[0], SHARED.fields[2])})
    own = Architecture.full(plain, counts[::2], dim=4, blocks=2, cut="equal", backbone={"name": "fm"})
    assert cost_of(own).embedding_bytes == cost_of(whole).embedding_bytes
    assert measure(model) == cost_of(whole)
    assert Architecture.model_validate_json(whole.model_dump_json()) == whole


BETWEEN = FeatureSchema(
    fields=(
        Field(name="a", cardinality=5),
        Field(name="x", cardinality=4, kind="numeric", interpolation="piecewise"),
        Field(name="z", cardinality=4, kind="numeric", interpolation="linear"),
        Field(name="c", cardinality=5),
    ),
    label="y",
)
STORAGES = {
    "mixed": MixedStorage(),
    "projected": ProjectedStorage(),
    "shared": SharedStorage(rows=30, lookups=2, seed=1),
    "quotient_remainder": QuotientRemainderStorage(collisions=2, split_above=3),
}


def between(storage):
    """Numbers of two widths and 4 bits, but where one table is for all."""
    counts = [COUNTS[0], COUNTS[1], COUNTS[1], COUNTS[0]]
    full = Architecture.full(BETWEEN, counts, dim=4, blocks=3, cut="equal", backbone={"name": "fm"}, bits=4)
    if storage in ("mixed", "projected"):
        mask = full.mask()
        mask[::2, 2:] = False
        full = full.with_mask(mask)
    return full.replace(storage=STORAGES[storage])


@pytest.mark.parametrize("storage", STORAGES)
def test_a_number_between_knots_has_both_by_their_shares_in_every_storage(storage):
    torch.manual_seed(0)
    model = build_model(BETWEEN, between(storage)).eval()
    with torch.no_grad():
        for rows in model.embedding.tables:
            rows.weight.normal_()
    start_rounding(model)
    model = pack(model, BETWEEN)
    ids = torch.from_numpy(sample_ids(BETWEEN))
    single = torch.where(ids < 0, 0, ids % SPAN)
    share = torch.where(ids < 0, 0, 1 - ids // SPAN / ONE)
    assert ((share > 0.01) & (share < 0.99)).any(0)[1:5].all()
    with torch.no_grad():
        found = model.embed(ids)
        each = model.embedding.lookup(single)
    weighted = each * share[..., None]
    expected = torch.stack([weighted[:, own].sum(1) for own in ([0], [1, 2], [3, 4], [5])], dim=1)
    assert torch.allclose(found, expected, atol=1e-6)
    assert measure(model) == cost_of(model.architecture)
    served = ServingModel(copy.deepcopy(model))
    assert torch.allclose(served(ids.long()), torch.sigmoid(model(ids)), atol=1e-6)


def test_knots_are_stored_as_a_pool_of_two():
    node = between("mixed").model_dump()["fields"][1]
    assert node["pool"] == {"length": 2, "by": "knots"}
    assert Architecture.model_validate_json(between("mixed").model_dump_json()) == between("mixed")
    assert "interpolation" not in SCHEMA.model_dump()["fields"][0]
