"""Rows of several widths, projected onto the inputs that all fields have."""

import numpy as np
import pytest
import torch

from autoembed.architecture import Architecture
from autoembed.candidates import projected
from autoembed.errors import SpaceError
from autoembed.methods.method import configure, load
from autoembed.nn.model import build_model, cost_of, measure, pack, start_rounding
from autoembed.storage import ProjectedStorage
from autoembed.training import TrainConfig, fit

CPU = torch.device("cpu")


def narrow(dataset, bits=32, backbone="deepfm", dim=7):
    """Prefixes of widths 0 to 5 of 7 dims; some fields keep nothing but in one block."""
    options = {"name": backbone, **({} if backbone == "fm" else {"hidden": [16], "dropout": 0.0})}
    root = Architecture.full(dataset.schema, dataset.counts, dim=dim, blocks=4, backbone=options, bits=bits)
    width = np.random.default_rng(0).integers(0, 6, len(root.block_rows()))
    width[0] = 5
    return root.with_mask(np.arange(dim) < width[:, None])


def moved(model):
    """A model whose weights are all drawn at random, matrices among them."""
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return model.eval()


def by_hand(model, ids):
    """The embeddings of ids [B, F], one at a time."""
    architecture, embedding = model.architecture, model.embedding
    rows = torch.zeros(*ids.shape, architecture.dim + 1)
    slots = super(type(embedding), embedding).lookup(ids)
    first = 0
    fields, mask = architecture.field_of_block(), architecture.mask()
    ranges, place = architecture.block_ranges(), dict.fromkeys(range(len(architecture.fields)), 0)
    for block, width in enumerate(mask.sum(axis=1).tolist()):
        field, (start, stop) = int(fields[block]), ranges[block].tolist()
        hit = (ids[:, field] >= start) & (ids[:, field] < stop)
        if width == embedding.inputs:
            rows[hit, field, :width] = slots[hit, field, embedding.side : embedding.side + width]
            rows[hit, field, -1] = slots[hit, field, -1]
            continue
        matrix, at = embedding.project[first : first + width], place[field]
        rows[hit, field, : embedding.inputs] = slots[hit, field, at : at + width] @ matrix
        rows[hit, field, -1] = slots[hit, field, -1]
        first, place[field] = first + width, at + width
    return rows


@pytest.mark.parametrize("backbone", ["deepfm", "dnn", "fm", "dcn", "pnn"])
def test_a_fresh_projection_gives_what_kept_positions_give(planted, backbone):
    kept = narrow(planted, backbone=backbone)
    found = projected(kept)
    assert found.storage == ProjectedStorage()
    assert projected(found) is found
    plain, model = (build_model(planted.schema, one).eval() for one in (kept, found))
    for own, theirs in zip(model.tables(), plain.tables(), strict=True):
        own.load_state_dict(theirs.state_dict())
    ids = torch.from_numpy(planted.ids("valid")[:500])[:, [planted.schema.index(name) for name in found.names]]
    assert torch.equal(model.embedding(ids), plain.embedding(ids))
    assert found.active().sum() == 5 * len(found.fields) >= kept.active().sum()


@pytest.mark.parametrize("backbone", ["deepfm", "dcn"])
def test_it_inherits_from_a_net_whose_parent_was_narrow(planted, backbone):
    """The tower has inputs then that the net's has not: they read zeros until the matrices move."""
    parent = narrow(planted, backbone=backbone)
    net = load("magnitude").Supernet(planted.schema, parent, configure({"method": "magnitude"}), planted.counts, 0)
    moved(net)
    found = net.derive(parent.embedding_bytes(first_order=net.first_order) * 3 // 4)
    model = net.compact(projected(found)).eval()
    assert found.active().sum() < projected(found).active().sum()
    ids = torch.from_numpy(planted.ids("valid")[:500])
    with torch.no_grad(), net.answering(found):
        assert (model(ids) - net(ids)).abs().max() < 1e-5


def test_rows_are_multiplied_by_their_blocks_matrix(planted):
    model = moved(build_model(planted.schema, projected(narrow(planted))))
    own = [planted.schema.index(name) for name in model.architecture.names]
    ids = torch.from_numpy(planted.ids("valid")[:200])[:, own]
    with torch.no_grad():
        assert (model.embedding(ids) - by_hand(model, ids)).abs().max() < 1e-5


@pytest.mark.parametrize("bits", [32, 16, 8, 4, 3, 2, 1])
def test_it_is_trained_packed_and_costs_what_it_says(planted, bits):
    found = projected(narrow(planted, bits))
    model = build_model(planted.schema, found)
    before = model.embedding.project.detach().clone()
    fit(model, planted, TrainConfig(epochs=1, lr=3e-3), device=CPU, seed=0, report=lambda values: None)
    assert not torch.equal(model.embedding.project, before)
    start_rounding(model)
    packed, ids = pack(model.eval(), planted.schema), torch.from_numpy(planted.ids("valid")[:500])
    with torch.no_grad():
        assert (packed(ids) - model(ids)).abs().max() < 1e-5
    assert measure(packed) == cost_of(found)
    kept = found.replace(storage=found.mixed())
    assert cost_of(found).embedding_bytes == cost_of(kept).embedding_bytes
    width = found.mask().sum(axis=1)
    matrices = 5 * int(width[width < 5].sum())
    hidden = 16 * int(found.active().sum() - kept.active().sum())
    assert cost_of(found).dense_parameters == cost_of(kept).dense_parameters + matrices + hidden


def test_one_width_and_shared_tables_stay_and_single_entries_are_refused(planted):
    same = narrow(planted)
    same = same.with_mask(np.arange(7) < np.full((len(same.block_rows()), 1), 3))
    assert projected(same) is same
    entries = same.with_entries(np.ones(len(same.block_rows()), dtype=np.int64), bits=same.block_bits())
    with pytest.raises(SpaceError, match="needs whole rows"):
        projected(entries)
