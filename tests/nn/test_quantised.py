"""Linear layers that are served in 8 or 16 bits: what is stored, what it costs, and how far logits move."""

import numpy as np
import pytest
import torch

from autoembed.architecture import Architecture
from autoembed.bundle import load_bundle, write_bundle
from autoembed.data.schema import FeatureSchema, Field
from autoembed.errors import SpaceError
from autoembed.methods.members import spread
from autoembed.nn.backbones.base import names
from autoembed.nn.model import build_model, cost_of, measure, pack, start_rounding
from autoembed.nn.quantised import PackedLinear
from autoembed.plans import Ensemble
from autoembed.training import predict
from autoembed.trial import check, run_trial

CPU = torch.device("cpu")
COUNTS = [np.array(c) for c in ([0, 90, 9, 8, 1], [3, 60, 5], [0, 50, 2, 1], [0, 44, 7])]
SCHEMA = FeatureSchema(
    fields=tuple(Field(name=n, cardinality=len(c)) for n, c in zip("abcd", COUNTS, strict=True)), label="y"
)
DEEP = sorted({*names()} - {"lr", "fm"})


def architecture(name, tower_bits, **changes):
    full = Architecture.full(SCHEMA, COUNTS, dim=4, blocks=2, backbone={"name": name, "hidden": [16, 8]})
    return full.replace(tower_bits=tower_bits, **changes)


def random_ids(rows=300):
    rng = np.random.default_rng(0)
    return torch.tensor(np.stack([rng.integers(0, len(c), rows) for c in COUNTS], axis=1), dtype=torch.int32)


def made(plan):
    torch.manual_seed(0)
    model = build_model(SCHEMA, plan)
    with torch.no_grad():
        for table in model.embedding_weights():
            table.normal_()
    return model.eval()


def test_codes_by_hand():
    plain = torch.nn.Linear(3, 2)
    with torch.no_grad():
        plain.weight.copy_(torch.tensor([[1.27, -0.64, 0.004], [0.0, 0.0, 0.0]]))
        plain.bias.copy_(torch.tensor([0.5, -1.0]))
    packed = PackedLinear(plain, 8)
    packed.load(plain)
    assert packed.codes.tolist() == [[127, -64, 0], [0, 0, 0]]
    assert packed.codes.dtype == torch.int8
    assert packed(torch.tensor([[1.0, 1.0, 9.0]])).tolist()[0] == pytest.approx([0.5 + 1.27 - 0.64, -1.0])
    with torch.no_grad():
        assert (packed(torch.eye(3)) - plain(torch.eye(3))).abs().max() <= 0.5 * 0.01 + 1e-7  # half a step


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("share", [None, "all", "tables", "none"])
def test_every_backbone_is_served_in_fewer_bits(name, bits, share):
    plan, wide = architecture(name, bits), architecture(name, 32)
    if share:
        plan, wide = (spread(one, Ensemble(members=3, share=share)) for one in (plan, wide))
    model, ids = made(plan), random_ids()
    packed = pack(model, SCHEMA)
    with torch.no_grad():
        gap = (packed(ids) - model(ids)).abs().max() / model(ids).std()
    assert 0 < gap < {16: 0.02, 8: 0.4}[bits]
    cost = measure(packed)
    assert cost == cost_of(plan)
    assert cost.dense_parameters == cost_of(wide).dense_parameters
    assert cost.bytes < cost_of(wide).bytes
    assert cost_of(wide) == measure(pack(made(wide), SCHEMA))


def test_bytes_by_hand():
    wide, narrow = (cost_of(architecture("dnn", bits)) for bits in (32, 8))
    weights, outputs = 16 * 16 + 16 * 8, 16 + 8  # the layer of one output stays
    assert wide.bytes - narrow.bytes == 3 * weights - 4 * outputs
    assert wide.bytes - cost_of(architecture("dnn", 16)).bytes == 2 * weights


@pytest.mark.parametrize("name", ["lr", "fm"])
def test_a_backbone_without_layers_is_refused(name):
    node = {"arm": "x", "stages": [{"method": "uniform"}], "backbone": {"name": name}, "embedding": {"dim": 1}}
    with pytest.raises(SpaceError, match=r"tower.bits: 8 needs a backbone with linear layers: use 32"):
        check(node | {"tower": {"bits": 8}})


@pytest.mark.parametrize("bits", [16, 8])
def test_a_trial_measures_what_it_serves_and_its_bundle_predicts_the_same(planted, tmp_path, bits):
    config = {
        "arm": "x",
        "stages": [{"method": "magnitude", "warm_epochs": 1, "bits": 4}],
        "embedding": {"dim": 6, "blocks": 3},
        "backbone": {"name": "deepfm", "hidden": [64, 32], "dropout": 0.0},
        "train": {"epochs": 2, "lr": 3e-3, "batch_size": 512},
        "limit": {"bytes": 40_000},
        "device": "cpu",
    }
    found = {}
    for tower in (32, bits):
        result, model = run_trial(check(config | {"tower": {"bits": tower}}), planted, lambda values: None)
        assert measure(model) == result.cost
        assert result.cost.bytes <= 40_000
        p = predict(model, planted, "valid", CPU)
        labels = planted.labels("valid")
        logloss = -np.mean(np.log(np.where(labels == 1, p, 1 - p)))
        assert result.valid.logloss == pytest.approx(logloss, abs=1e-6)
        found[tower] = result
    assert found[bits].cost.embedding_bytes > found[32].cost.embedding_bytes  # what the tower leaves
    path = write_bundle(
        tmp_path / "b",
        schema=planted.schema,
        vocabulary=planted.vocabulary,
        architecture=result.architecture,
        model=model,
        data={},
        metrics={},
        provenance={},
    )
    assert np.abs(predict(load_bundle(path).model, planted, "valid", CPU) - p).max() < 1e-6


def test_few_bits_in_tables_and_layers_pack_together():
    full = Architecture.full(SCHEMA, COUNTS, dim=4, blocks=2, backbone={"name": "deepfm", "hidden": [16]}, bits=4)
    model = made(full.replace(tower_bits=8))
    start_rounding(model)
    packed = pack(model, SCHEMA)
    assert measure(packed) == cost_of(model.architecture)
    assert (packed(random_ids()) - model(random_ids())).abs().max() < 0.05
