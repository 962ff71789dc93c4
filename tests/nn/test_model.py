import numpy as np
import pytest
import torch

from autoembed.architecture import Architecture
from autoembed.data.schema import FeatureSchema, Field, Multi
from autoembed.errors import BundleError, SpaceError
from autoembed.nn.backbones.base import build
from autoembed.nn.embedding import BlockIndex, MixedEmbedding
from autoembed.nn.layers import factorization_machine
from autoembed.nn.model import CTRModel, cost_of, measure
from autoembed.nn.taking_over import take_over
from autoembed.storage import SharedStorage

BACKBONE = {"name": "deepfm", "hidden": [6, 5], "dropout": 0.0}
COUNTS = [np.array([0, 100, 50, 9, 8, 7, 1, 1]), np.array([3, 100, 1]), np.array([0, 60, 1, 1, 1])]
SCHEMA = FeatureSchema(
    fields=tuple(Field(name=name, cardinality=len(count)) for name, count in zip("abc", COUNTS, strict=True)),
    label="label",
)
FULL = Architecture.full(SCHEMA, COUNTS, dim=4, blocks=3, cut="equal", backbone=BACKBONE)


def random_ids(rows, seed=0):
    rng = np.random.default_rng(seed)
    return torch.tensor(np.stack([rng.integers(0, len(c), rows) for c in COUNTS], axis=1), dtype=torch.int32)


def test_block_index_agrees_with_a_walk_through_the_blocks():
    ids, ranges, fields = random_ids(200), FULL.block_ranges(), FULL.field_of_block()
    found = BlockIndex(FULL)(ids)
    for row, blocks in zip(ids.tolist(), found.tolist(), strict=True):
        for field, (value, block) in enumerate(zip(row, blocks, strict=True)):
            assert fields[block] == field
            assert ranges[block][0] <= value < ranges[block][1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("first_order", [True, False])
def test_mixed_embedding_equals_the_masked_full_table(seed, first_order):
    mask = np.random.default_rng(seed).random(FULL.mask().shape) < 0.5
    mask[[0, 3, 5]] |= np.eye(4, dtype=bool)[:3]  # every field keeps something
    architecture = FULL.with_mask(mask)
    columns = np.concatenate([mask, mask.any(axis=1, keepdims=True)], axis=1) if first_order else mask
    dense = [torch.randn(len(count), columns.shape[1]) for count in COUNTS]
    embedding = MixedEmbedding(architecture, first_order=first_order)
    embedding.load_dense(dict(enumerate(dense)), architecture)
    ids = random_ids(300, seed)
    expected = torch.zeros(300, 3, columns.shape[1])
    for number, (field, (start, stop)) in enumerate(zip(FULL.field_of_block(), FULL.block_ranges(), strict=True)):
        hit = (ids[:, field] >= start) & (ids[:, field] < stop)
        expected[hit, field] = dense[field][ids[hit, field].long()] * torch.tensor(columns[number]).float()
    assert torch.equal(embedding(ids), expected)


LISTS = FeatureSchema(
    fields=(*SCHEMA.fields, Field(name="d", cardinality=len(COUNTS[0]), shares="a", multi=Multi(length=3))),
    label="label",
)


@pytest.mark.parametrize("schema", [SCHEMA, LISTS], ids=["plain", "lists"])
@pytest.mark.parametrize("name", ["deepfm", "dcn", "pnn", "masknet"])
def test_a_narrow_model_takes_over_what_it_keeps_of_a_wide_one(name, schema):
    """It predicts what the wide one does, once this one's other dims are zero; a field without dims is left out."""
    counts = [*COUNTS, np.zeros(0)][: len(schema.fields)]
    backbone = {"name": name, "hidden": [6, 5], "dropout": 0.0}
    full = Architecture.full(schema, counts, dim=4, blocks=3, cut="equal", backbone=backbone)
    full = full.replace(auxiliary_labels=("like",))
    mask = np.arange(4) < np.random.default_rng(0).integers(0, 4, len(full.mask()))[:, None]
    mask[full.field_of_block() == 1] = False
    mask[0, :3] = True
    torch.manual_seed(0)
    wide, narrow = CTRModel(schema, full), CTRModel(schema, full.with_mask(mask))
    dense = {}
    for number, (field, (start, stop)) in enumerate(zip(full.field_of_block(), full.block_ranges(), strict=True)):
        own = dense.setdefault(int(field), torch.randn(len(counts[field]), 4 + wide.first_order))
        kept = np.append(mask[number], [mask[number].any()] * wide.first_order)
        own[start:stop] *= torch.tensor(kept).float()
    wide.embedding.load_dense(dense, full)
    assert take_over(narrow, wide)
    ids = random_ids(60)
    ids = torch.cat([ids, torch.randint(0, 8, (60, 3)).int()], dim=1) if schema is LISTS else ids
    with torch.no_grad():
        for own, theirs in zip(narrow.eval().all_logits(ids), wide.eval().all_logits(ids), strict=True):
            assert torch.allclose(own, theirs, atol=1e-6)


def test_nothing_is_taken_over_from_another_model():
    narrow = CTRModel(SCHEMA, FULL.with_mask(FULL.mask() & (np.arange(4) < 2)))
    before = narrow.state_dict()["embedding.tables.0.weight"].clone()
    others = {
        "other dims": FULL.with_mask(FULL.mask() & (np.arange(4) > 0)),
        "another tower": FULL.replace(backbone={**BACKBONE, "hidden": [7, 5]}),
        "other blocks": Architecture.full(SCHEMA, COUNTS, dim=4, blocks=2, cut="equal", backbone=BACKBONE),
        "shared rows": FULL.replace(storage=SharedStorage(rows=40, lookups=1)),
    }
    for other in others.values():
        assert not take_over(narrow, CTRModel(SCHEMA, other))
    assert torch.equal(narrow.state_dict()["embedding.tables.0.weight"], before)


def test_whole_and_mixed_lookups_train_the_same_rows():
    mixed, whole = MixedEmbedding(FULL, first_order=False), MixedEmbedding(FULL, first_order=False)
    whole.load_state_dict(mixed.state_dict())
    assert whole.whole
    mixed.whole = False
    ids = random_ids(50)
    for embedding in (mixed, whole):
        embedding(ids).square().sum().backward()
    assert torch.allclose(mixed.tables[0].weight.grad, whole.tables[0].weight.grad)


def test_factorization_machine_is_the_sum_of_pairwise_products():
    e = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, -6.0]]])
    assert factorization_machine(e).item() == (1 * 3 + 2 * 4) + (1 * 5 - 2 * 6) + (3 * 5 - 4 * 6)


def test_deepfm_by_hand():
    backbone = build({"name": "deepfm", "hidden": [2], "batch_norm": False, "dropout": 0.0}, np.ones((2, 1), bool))
    with torch.no_grad():
        backbone.bias.fill_(0.5)
        backbone.tower.input.linear.weight.copy_(torch.tensor([[1.0, -1.0], [2.0, 1.0]]))
        backbone.tower.input.linear.bias.copy_(torch.tensor([0.0, 1.0]))
        backbone.tower.output.weight.copy_(torch.tensor([[3.0, -1.0]]))
        backbone.tower.output.bias.fill_(0.25)
    e, first = torch.tensor([[[2.0], [3.0]]]), torch.tensor([[10.0, 20.0]])
    # tower: relu(2-3)=0, relu(4+3+1)=8 -> 0*3 - 8 + .25; FM: 2*3; first order: 30; bias .5
    assert backbone(e, first).item() == pytest.approx(-8 + 0.25 + 6 + 30 + 0.5)


def test_the_tower_pays_for_active_entries_only():
    mask = FULL.mask() & False
    mask[0, 1] = mask[1, 2] = mask[3, 0] = True
    model = CTRModel(SCHEMA, FULL.with_mask(mask))
    assert model.backbone.tower.input.linear.in_features == 3


def test_a_schema_that_does_not_fit_is_refused():
    other = FeatureSchema(fields=(Field(name="a", cardinality=9),), label="label")
    with pytest.raises(BundleError, match=r"field 'a' must have 8 ids .* has 9"):
        CTRModel(other, FULL)
    with pytest.raises(BundleError, match="no such field"):
        CTRModel(SCHEMA.keep(["a", "b"]), FULL)


def test_unknown_backbones_and_options_are_named():
    with pytest.raises(SpaceError, match=r"unknown backbone 'deepfn': must be one of .*deepfm"):
        build({"name": "deepfn"}, np.ones((1, 1), bool))
    with pytest.raises(SpaceError, match=r"backbone.hiden.*options: .*hidden"):
        build({"name": "deepfm", "hiden": [3]}, np.ones((1, 1), bool))


def test_a_shared_table_is_read_by_hashes_of_each_fields_own():
    architecture = FULL.replace(storage=SharedStorage(rows=50, lookups=2, seed=1))
    model = CTRModel(SCHEMA, architecture)
    assert (
        measure(model).embedding_parameters == 50 * (4 // 2 + 1) == architecture.embedding_parameters(first_order=True)
    )
    assert measure(model) == cost_of(architecture)
    ids = random_ids(100)
    rows = model.embedding.hashes(ids)
    assert rows.shape == (100, 3, 2)
    assert 0 <= rows.min() <= rows.max() < 50
    out, table = model.embedding(ids), model.embedding.tables[0].weight
    for b, f in [(0, 0), (7, 2)]:
        first, second = table[rows[b, f, 0]], table[rows[b, f, 1]]
        assert torch.equal(out[b, f], torch.cat([first[:2], second[:2], first[2:] + second[2:]]))
    same = torch.full((1, 3), 1, dtype=torch.int32)
    assert len({tuple(pair) for pair in model.embedding.hashes(same)[0].tolist()}) == 3
    # Hashes are spread: 1,000 ids of one field reach most of the rows.
    many = torch.stack([torch.arange(1000), torch.zeros(1000), torch.zeros(1000)], dim=1).int()
    assert len(model.embedding.hashes(many)[:, 0, 0].unique()) == 50


def test_shared_lookups_must_divide_the_width():
    with pytest.raises(ValueError, match=r"multiple of storage.lookups=3, but got 4"):
        Architecture(**FULL.model_dump() | {"storage": {"kind": "shared", "rows": 5, "lookups": 3}})
