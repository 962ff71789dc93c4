"""Single entries of rows: chosen within a budget, trained, packed, stored and read."""

import numpy as np
import polars as pl
import pytest
import torch

from autoembed.architecture import Architecture
from autoembed.budget import uniform_bytes
from autoembed.bundle import load_bundle, write_bundle
from autoembed.errors import BundleError, SpaceError
from autoembed.methods import entries
from autoembed.methods.bilevel import search
from autoembed.methods.method import configure, load
from autoembed.metrics import evaluate
from autoembed.nn.model import build_model, cost_of, keep_as, measure, pack, start_rounding
from autoembed.nn.sparse import PackedSparseRows, SparseRows
from autoembed.training import TrainConfig, predict
from autoembed.trial import check, run_trial

CPU = torch.device("cpu")
TRAIN = TrainConfig(epochs=1, lr=3e-3, batch_size=512)
METHODS = {
    "dnis": {"choose_by": "weight", "epochs": 1},
    "magnitude": {},
    "sensitivity": {"rounds": 1},
}


def searched(dataset, method, backbone="deepfm", bits=32, step="row", **options):
    stage = {"method": method, "granularity": "entry", "warm_epochs": 1, "bits": bits, **METHODS[method], **options}
    parent = Architecture.full(
        dataset.schema,
        dataset.counts,
        dim=9,
        blocks=4,
        step=step,
        backbone={"name": backbone, **({} if backbone in ("lr", "fm") else {"hidden": [16]})},
    )
    torch.manual_seed(0)
    net = load(method).Supernet(dataset.schema, parent, configure(stage), dataset.counts, 0)
    search(net, dataset, TRAIN, device=CPU, seed=0, report=lambda values: None)
    return net.eval()


def same(net, architecture, dataset):
    """Whether masked supernet, compact and packed model agree, and the packed one costs what the architecture says."""
    model = net.compact(architecture).eval()
    ids = torch.from_numpy(dataset.ids("valid")[:2000])
    start_rounding(model)
    packed = pack(model, dataset.schema).eval()
    with torch.no_grad(), net.answering(architecture):
        assert (model(ids) - net(ids)).abs().max() < 1e-4  # batch norms magnify rounding
        assert (packed(ids) - model(ids)).abs().max() < 1e-6
    assert measure(packed) == cost_of(architecture)
    return packed


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_is_met_and_used_by_the_best_entries(planted, method):
    net = searched(planted, method)
    budget = uniform_bytes(net.parent, 1)
    found = entries.choose(net, budget)
    spent = cost_of(found).embedding_bytes
    assert spent <= budget
    assert spent >= 0.95 * budget or net.rounds  # what pruning has closed is not kept
    assert found.narrows(net.parent)
    assert found.storage.kind == "sparse"
    assert entries.choose(net, budget) == found
    same(net, found, planted)
    kept, scores = entries.kept(net, found)[:, : net.parent.dim], entries._scores(net)
    for part, score in zip(*(torch.split(t, net.parent.block_rows().tolist()) for t in (kept, scores)), strict=True):
        if part.any() and not part.all():
            assert score[part].min() >= score[~part].max()
    assert kept.any(dim=1).float().mean() < 1  # rows of one block keep numbers of entries of their own
    assert len(set(kept.sum(dim=1).tolist())) > 3


@pytest.mark.parametrize("bits", [32, 16, 8, 4, 3, 2])
@pytest.mark.parametrize("step", ["row", "block", "dim"])
def test_bits_and_steps(planted, bits, step):
    if bits >= 16 and step != "row":
        pytest.skip("numbers of so many bits have no steps")
    net = searched(planted, "magnitude", bits=bits, step=step)
    found = entries.choose(net, uniform_bytes(net.parent, 0.7))
    assert found.block_bits()[found.block_entries() > 0].tolist() == [bits] * int((found.block_entries() > 0).sum())
    same(net, found, planted)


@pytest.mark.parametrize("backbone", ["widedeep", "fm", "dnn", "dcn", "autoint", "finalmlp", "dlrm"])
def test_backbones(planted, backbone):
    net = searched(planted, "magnitude", backbone=backbone, bits=4)
    same(net, entries.choose(net, uniform_bytes(net.parent, 0.7)), planted)


def test_bytes_by_hand(planted):
    net = searched(planted, "magnitude", bits=4)
    found = entries.choose(net, uniform_bytes(net.parent, 0.5))
    mask, rows, kept = found.mask().sum(axis=1), found.block_rows(), found.block_entries()
    assert set(mask[kept > 0]) == {9}
    open_rows, blocks = int(rows[kept > 0].sum()), int((kept > 0).sum())
    # A row: two bytes of bits, one of its place, two of its step. 8 rows: four bytes of a place. An entry: half a byte,
    # as a first-order weight.
    by_hand = 5 * open_rows + 4 * -(-open_rows // 8) + -(-int(kept.sum()) // 2) + -(-open_rows // 2) + 4 * blocks
    assert cost_of(found).embedding_bytes == by_hand == found.embedding_bytes(first_order=True)
    assert cost_of(found).embedding_parameters == int(kept.sum()) + open_rows
    assert found.embedding_parameters(first_order=True) == int(kept.sum()) + open_rows


@pytest.mark.parametrize("quantised", [{}, {"bits": 4}])
@pytest.mark.parametrize("way", ["inherit", "fresh"])
def test_a_trial_ends_in_a_bundle_that_predicts_the_same(planted, tmp_path, way, quantised):
    stage = {
        "method": "dnis",
        "granularity": "entry",
        "guard": "none",
        "warm_epochs": 2,
        "retrain": way,
        **METHODS["dnis"],
        **quantised,
    }
    config = check(
        {
            "arm": "dnis",
            "stages": [stage],
            "embedding": {"dim": 8, "blocks": 4},
            "backbone": {"name": "deepfm", "hidden": [16]},
            "train": {"epochs": 2, "lr": 3e-3, "batch_size": 512},
            "limit": {"width": 1},
        }
    )
    result, model = run_trial(config, planted, lambda values: None)
    assert result.architecture.storage.kind == "sparse"
    assert all(isinstance(rows, PackedSparseRows) for rows in model.embedding.tables)
    assert result.valid.auc > 0.6
    scores = predict(model, planted, "valid", CPU)
    assert evaluate(planted.labels("valid"), scores).auc == pytest.approx(result.valid.auc, abs=1e-6)
    architecture = result.architecture
    architecture.write(tmp_path / "a.json")
    assert Architecture.read(tmp_path / "a.json") == architecture
    write_bundle(
        tmp_path / "bundle",
        schema=planted.schema,
        vocabulary=planted.vocabulary,
        architecture=architecture,
        model=model,
        data={},
        metrics={},
        provenance={},
    )
    again = load_bundle(tmp_path / "bundle")
    assert measure(again.model) == cost_of(architecture)
    columns = [planted.schema.index(name) for name in again.schema.names]
    ids = torch.from_numpy(planted.ids("valid")[:, columns].copy())
    with torch.no_grad():
        assert np.abs(torch.sigmoid(again.model(ids)).numpy() - scores).max() < 1e-6


def test_fresh_weights_need_a_model_that_says_which_entries(planted):
    net = searched(planted, "magnitude")
    found = entries.choose(net, uniform_bytes(net.parent, 1))
    trained = net.compact(found)
    fresh = build_model(planted.schema, found)
    with pytest.raises(BundleError, match="keeps single entries, but not which"):
        keep_as(fresh, None)
    for like in (trained, pack(trained, planted.schema)):
        fresh = build_model(planted.schema, found)
        keep_as(fresh, like)
        for own, theirs in zip(fresh.tables(), trained.tables(), strict=True):
            assert isinstance(own, SparseRows)
            assert torch.equal(own.kept, theirs.kept)
            assert not own.weight[:, : own.width][~own.kept].any()


def test_what_entries_cannot_have_is_named(planted):
    with pytest.raises(SpaceError, match="granularity: entry needs choose_by: weight, but got choose_by: loss"):
        configure({"method": "dnis", "granularity": "entry"})
    with pytest.raises(SpaceError, match=r"entry has one number of bits for all: set bits in place of precisions"):
        configure({"method": "sensitivity", "granularity": "entry", "precisions": [4]})
    net = searched(planted, "magnitude", bits=1)
    with pytest.raises(SpaceError, match="granularity: entry needs 2 bits or more, but got bits: 1"):
        entries.choose(net, 10_000)
    net = searched(planted, "magnitude")
    with pytest.raises(
        SpaceError, match=r"the budget must hold one entry of the smallest block \(\d+ bytes\), but got 3"
    ):
        net.derive(3)
    with pytest.raises(SpaceError, match=r"magnitude needs a limit: set budget\.bytes"):
        net.derive(None)
    found = entries.choose(net, uniform_bytes(net.parent, 1))
    with pytest.raises(SpaceError, match="random cannot narrow single entries: make granularity: entry the last"):
        load("random").Supernet(planted.schema, found, configure({"method": "random"}), planted.counts, 0)


def test_dnis_has_its_threshold_without_a_budget(planted):
    net = searched(planted, "dnis", threshold=0.02)
    found = net.derive(None)
    assert int(found.block_entries().sum()) == int((entries._scores(net) >= 0.02).sum())
    assert found.narrows(net.parent)


def test_entries_are_stored_as_counts(planted):
    net = searched(planted, "magnitude")
    found = entries.choose(net, uniform_bytes(net.parent, 1))
    node = found.model_dump(mode="json")
    node["fields"][0]["blocks"][0]["entries"] = 10**9
    with pytest.raises(ValueError, match=r"entries of a block of '.*' must be 1\.\.\d+ under sparse storage"):
        Architecture.model_validate(node)
    assert pl.DataFrame({"n": found.block_entries()})["n"].max() > 0


def test_blocks_open_by_what_their_entries_are_worth_a_byte():
    strong, tail = np.full(10, 5.0), np.full(200, 1.0)
    fixed, each = np.array([10.0, 100.0]), np.array([1.0, 1.0])

    def counts(left):
        return entries.best_counts([strong, tail], fixed, each, left).tolist()

    assert counts(20) == [10, 0]
    assert counts(115) == [10, 0]  # with the tail open, 5 bytes were left for entries
    assert counts(150) == [10, 30]
    assert counts(1000) == [10, 200]
    assert counts(11) == [1, 0]
    with pytest.raises(SpaceError, match=r"one entry of the smallest block \(11 bytes\), but got 10"):
        counts(10)
