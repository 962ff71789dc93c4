"""A model as servers run it predicts what it did, with fewer layers and the same tables."""

import pytest
import torch
from torch import nn

from autoembed import fast
from autoembed.methods.members import spread
from autoembed.nn.blocked import BlockedLinear, blocked
from autoembed.nn.folding import folded
from autoembed.nn.layers import Tower
from autoembed.nn.model import build_model, pack, start_rounding
from autoembed.nn.one_pass import OnePass
from autoembed.plans import Ensemble
from tests.nn.test_ensemble import CASES, SCHEMA, plain, random_ids, shake

ON_X86 = pytest.mark.skipif(blocked(nn.Linear(128, 128)) is None, reason="no oneDNN, or no x86")


@pytest.mark.parametrize("bits", [32, 4])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_predictions_are_those_of_the_model(name, options, bits):
    trained, ids = shake(build_model(SCHEMA, plain(name, options, bits=bits))), random_ids()
    start_rounding(trained)
    model = pack(trained, SCHEMA).eval()
    with torch.inference_mode():
        wanted = model(ids)
        served = folded(model)
        torch.testing.assert_close(served(ids), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(ids), wanted, rtol=0, atol=0)  # as it was
    assert all(own is other for own, other in zip(served.tables(), model.tables(), strict=True))
    for tower in (module for module in served.modules() if isinstance(module, Tower)):
        assert not any(isinstance(layer, nn.BatchNorm1d) for layer in tower.rest)


def test_deepfm_is_summed_in_one_pass_where_it_has_no_pairs_and_no_further_labels():
    architecture = plain("deepfm", {"hidden": [6, 4]})
    model, ids = shake(build_model(SCHEMA, architecture)).eval(), random_ids()
    served = folded(model)
    assert (type(served.backbone), served.first_order, model.first_order) == (OnePass, False, True)
    with torch.inference_mode():
        torch.testing.assert_close(served(ids), model(ids), rtol=1e-5, atol=1e-5)
        assert served(ids[:0]).shape == (0,)
    several = build_model(SCHEMA, architecture.model_copy(update={"auxiliary_labels": ("other",)})).eval()
    assert type(folded(several).backbone) is type(several.backbone)


@pytest.mark.parametrize("share", ["all", "tables", "none"])
def test_ensembles_and_towers_of_8_bits_are_served(share):
    architecture = plain("deepfm", {"hidden": [6, 4]}).model_copy(update={"tower_bits": 8})
    if share != "none":
        architecture = spread(architecture, Ensemble(members=3, share=share))
    model, ids = pack(shake(build_model(SCHEMA, architecture)), SCHEMA).eval(), random_ids()
    with torch.inference_mode():
        torch.testing.assert_close(folded(model)(ids), model(ids), rtol=1e-4, atol=1e-4)


@ON_X86
@pytest.mark.parametrize("plain_path", ["", "towers"])
def test_large_layers_are_in_blocks_with_the_relus_behind_them(monkeypatch, plain_path):
    monkeypatch.setenv(fast.VARIABLE, plain_path)
    architecture = plain("deepfm", {"hidden": [4096, 128, 128, 8]})
    model, ids = shake(build_model(SCHEMA, architecture)).eval(), random_ids()
    served = folded(model)
    layers = [served.backbone.tower.input.linear, *served.backbone.tower.rest]
    in_blocks = [type(layer) is BlockedLinear for layer in layers]
    # Of small layers, and behind the input, to whose output a backbone may add, the ReLU stands by itself.
    assert in_blocks == ([False] * 8 if plain_path else [True, False, True, True, False, False])
    with torch.inference_mode():
        for _ in range(9):  # the last ones in blocks
            torch.testing.assert_close(served(ids), model(ids), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(served(ids[:1]), model(ids[:1]), rtol=1e-4, atol=1e-4)
        assert served(ids[:0]).shape == (0,)
    assert all(layer.often == {len(ids)} for layer in layers if isinstance(layer, BlockedLinear))


@ON_X86
def test_a_kernel_is_kept_for_a_few_numbers_of_rows_that_come_often():
    layer = BlockedLinear(nn.Linear(128, 128), relu=True)
    for rows in [*range(2000), *[500] * 10, *[3] * 10, *[n for n in range(16, 100) for _ in range(8)]]:
        layer.in_blocks(rows)
    assert layer.often == {500, *range(16, 31)}
    assert layer.in_blocks(500)
    assert not layer.in_blocks(1000)
