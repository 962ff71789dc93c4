"""Rows of few bits: packing loses no code, and a packed model predicts what the trained one did."""

import numpy as np
import pytest
import torch

from autoembed.architecture import Architecture
from autoembed.data.schema import FeatureSchema, Field
from autoembed.nn.model import build_model, cost_of, measure, pack, start_rounding
from autoembed.nn.rows import PackedRows, Rows, best_step, fake_quantise, levels, lowest, row_steps, unpack
from autoembed.nn.rows import pack as pack_codes
from autoembed.plans import BITS, PairPlan
from autoembed.storage import SharedStorage, row_bytes, table_bytes

COUNTS = [np.array([0, 100, 50, 9, 8, 7, 1, 1]), np.array([3, 100, 1]), np.array([0, 60, 1, 1, 1])]
SCHEMA = FeatureSchema(
    fields=tuple(Field(name=name, cardinality=len(count)) for name, count in zip("abc", COUNTS, strict=True)),
    label="label",
)
FEW = [bits for bits in BITS if bits <= 8]


def full(bits=32, step="row", name="deepfm"):
    backbone = {"name": name, "hidden": [6, 5], "dropout": 0.0}
    return Architecture.full(SCHEMA, COUNTS, dim=4, blocks=3, cut="equal", backbone=backbone, bits=bits, step=step)


def random_ids(rows, seed=0):
    rng = np.random.default_rng(seed)
    return torch.tensor(np.stack([rng.integers(0, len(c), rows) for c in COUNTS], axis=1), dtype=torch.int32)


def spread(model, seed=0):
    """Weights as large as training makes them."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


@pytest.mark.parametrize("bits", FEW)
@pytest.mark.parametrize("width", [1, 3, 4, 7, 16])
def test_packing_loses_no_code(bits, width):
    code = torch.tensor(np.random.default_rng(width).integers(0, 2**bits, (50, width)), dtype=torch.uint8)
    packed = pack_codes(code, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (50, row_bytes(width, bits))
    assert torch.equal(unpack(packed, width, bits), code.float() + lowest(bits))


def test_bytes_by_hand():
    assert [row_bytes(20, bits) for bits in BITS] == [80, 40, 20, 10, 5 + 3, 5, 3]
    # 100 rows of 20 numbers in 2 bits with a step a row, and first-order weights in 4 bits with one step.
    assert table_bytes(100, 20, 2, step="row", first_order=True) == 100 * 5 + 100 * 2 + (50 + 4)
    assert table_bytes(100, 20, 2, step="dim", first_order=False) == 100 * 5 + 4 * 20
    assert table_bytes(100, 20, 32, step="row", first_order=True) == 100 * 21 * 4
    assert table_bytes(100, 0, 2, step="row", first_order=True) == 0


@pytest.mark.parametrize("bits", FEW)
def test_levels_are_symmetric_and_the_nearest_one_is_taken(bits):
    scaled = torch.linspace(-300, 300, 6001)
    found = levels(scaled, bits)
    count = 2 if bits == 1 else 2**bits - 1
    grid = torch.arange(count) + lowest(bits)
    assert torch.equal(grid, -grid.flip(0))
    assert set(found.tolist()) == set(grid.tolist())
    nearest = (scaled[:, None] - grid).abs().amin(1)
    assert torch.allclose((scaled - found).abs(), nearest, atol=1e-4)


def test_a_step_has_the_least_error_and_more_bits_err_less():
    value = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    errors = []
    for bits in sorted(FEW):
        steps = row_steps(value, bits)
        error = ((levels(value / steps, bits) * steps - value) ** 2).sum(1)
        for factor in (0.8, 1.25):
            other = steps * factor
            assert error.mean() <= ((levels(value / other, bits) * other - value) ** 2).sum(1).mean() * 1.001
        errors.append(error.mean().item())
    assert errors == sorted(errors, reverse=True)
    shared = best_step(value, 4, per_column=False)
    assert shared.shape == (1, 1)
    assert best_step(value, 4, per_column=True).shape == (1, 8)


def test_gradients_pass_straight_through_within_the_range():
    value = torch.tensor([0.9, 0.1, -5.0], requires_grad=True)
    step = torch.tensor(0.5, requires_grad=True)
    out = fake_quantise(value, step, 3)  # levels -3 .. 3 steps
    assert torch.allclose(out, torch.tensor([1.0, 0.0, -1.5]))
    out.sum().backward()
    assert value.grad.tolist() == [1, 1, 0]
    # LSQ, eq. 3: round(v/s) - v/s within the range, the level itself outside.
    assert step.grad.item() == pytest.approx((2 - 1.8) + (0 - 0.2) + -3)


@pytest.mark.parametrize("step", ["row", "block", "dim"])
@pytest.mark.parametrize("bits", BITS)
def test_a_packed_model_predicts_what_the_trained_one_did(bits, step):
    model = spread(build_model(SCHEMA, full(bits, step))).eval()
    ids = random_ids(300)
    with torch.no_grad():
        plain = model(ids)
        start_rounding(model)
        trained = model(ids)
        packed = pack(model, SCHEMA)
        assert (packed(ids) - trained).abs().max() < 1e-5
        if bits >= 16:
            assert torch.allclose(plain, trained, atol=0.05)
    assert measure(packed) == cost_of(full(bits, step))
    again = build_model(SCHEMA, full(bits, step), packed=True)
    again.load_state_dict(packed.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(ids), packed(ids))
    assert cost_of(full(bits, step)).embedding_bytes == full(bits, step).embedding_bytes(first_order=True)


@pytest.mark.parametrize("name", ["deepfm", "dcn", "autoint", "masknet"])
def test_blocks_of_different_bits_and_widths(name):
    architecture = full(name=name)
    mask = np.random.default_rng(0).random(architecture.mask().shape) < 0.7
    bits = np.array([32, 8, 4, 3, 2, 1, 16])
    architecture = architecture.with_mask(mask, bits=bits)
    model = spread(build_model(SCHEMA, architecture)).eval()
    start_rounding(model)
    ids = random_ids(200)
    packed = pack(model, SCHEMA)
    with torch.no_grad():
        assert (packed(ids) - model(ids)).abs().max() < 1e-4
    assert measure(packed) == cost_of(architecture)


def test_pairs_and_shared_tables_have_bits_too():
    pair = PairPlan(a="a", b="b", name="a b", cardinalities=(8, 3), crossed=20, choice="memorize")
    product = PairPlan(a="a", b="c", name="a c", cardinalities=(8, 5), crossed=9, choice="factorize")
    schema = FeatureSchema(fields=(*SCHEMA.fields, Field(name="a b", cardinality=20)), label="label")
    architecture = full(4).replace(pairs=(pair, product), pair_dim=3)
    assert architecture.pair_bits == 4
    shared = full().replace(storage=SharedStorage(rows=50, lookups=2, bits=2))
    for one, ids in ((architecture, torch.cat([random_ids(90), random_ids(90)[:, :1]], 1)), (shared, random_ids(90))):
        model = spread(build_model(schema, one)).eval()
        start_rounding(model)
        packed = pack(model, schema)
        with torch.no_grad():
            assert (packed(ids) - model(ids)).abs().max() < 1e-4
        cost = measure(packed)
        assert cost == cost_of(one)
        assert cost.embedding_bytes == one.embedding_bytes(first_order=True)


def test_training_with_rounded_lookups_moves_weights_and_steps():
    rows = Rows(6, 4, first_order=True, bits=2, step="block", slots=2)
    slot = torch.tensor([0, 0, 0, 0, 1, 1])
    with torch.no_grad():
        rows.weight.normal_()
    rows.start_rounding(slot)
    rows(torch.arange(6), slot).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in rows.parameters())
    assert {name for name, _ in rows.named_parameters()} == {"weight", "log_step", "first_log_step"}


@pytest.mark.parametrize("bits", BITS[1:])
@pytest.mark.parametrize("width", [1, 2, 5, 16])
def test_no_rows_are_read_as_none(bits, width):
    rows = PackedRows(10, width, first_order=True, bits=bits)
    none = torch.zeros(0, dtype=torch.int32)
    assert rows(none, none).shape == (0, width + 1)
