"""Compiled look-ups give what torch's operations give, to the last bit, and know when they may not be taken."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from autoembed.architecture import Architecture
from autoembed.candidates import projected
from autoembed.data.schema import FeatureSchema, Field, Multi
from autoembed.nn import embedding
from autoembed.nn.folding import folded
from autoembed.nn.model import build_model
from autoembed.nn.rows import Rows
from autoembed.plans import BITS

SIZES = [8, 3, 40]
SCHEMA = FeatureSchema(
    fields=tuple(Field(name=name, cardinality=size) for name, size in zip("abc", SIZES, strict=True)), label="label"
)
COUNTS = [np.arange(size, 0, -1) for size in SIZES]
IDS = torch.tensor(np.random.default_rng(0).integers(0, SIZES, (50, 3)), dtype=torch.int32)
MASKS = {
    "whole": np.ones((1, 9), dtype=bool),
    "prefixes": np.arange(9) < np.array([[9], [4], [1]]),
    "scattered": np.array([[1, 0, 1, 1, 0, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 1, 1, 0, 0]]) > 0,
}


def model(bits=4, kept="scattered", step="row", name="deepfm", packed=True):
    """A model with drawn numbers: every code and step may come."""
    backbone = {"name": name, "hidden": [6]}
    full = Architecture.full(SCHEMA, COUNTS, dim=9, blocks=3, cut="equal", backbone=backbone, bits=bits, step=step)
    mask = np.resize(MASKS[kept], (len(full.block_rows()), 9))
    full = full.with_mask(mask)
    built = build_model(SCHEMA, full, packed=packed).eval()
    torch.manual_seed(0)
    for rows in built.embedding.tables:
        for tensor in [*rows.buffers(), *rows.parameters()]:
            drawn = torch.randint(0, 256, tensor.shape) if tensor.dtype == torch.uint8 else torch.rand(tensor.shape)
            tensor.data.copy_(drawn)
    return built


def plainly(model, ids=IDS):
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(embedding, "FAST", False)
        return model.embed(ids)


def compiled(model, ids=IDS):
    with torch.no_grad():
        assert model.embedding.is_compiled(ids)
        return model.embed(ids)


@pytest.mark.parametrize(
    ("bits", "kept"), [(bits, kept) for bits in BITS for kept in MASKS if bits < 16 or kept != "whole"]
)
@pytest.mark.parametrize("name", ["deepfm", "dnn"])
def test_numbers_are_those_of_torch(bits, kept, name):
    own = model(bits, kept, name=name)
    assert torch.equal(compiled(own), plainly(own))
    assert torch.equal(compiled(own, IDS.long()), plainly(own, IDS.long()))


@pytest.mark.parametrize("step", ["row", "block", "dim"])
@pytest.mark.parametrize("bits", [8, 3, 1])
def test_numbers_are_those_of_torch_with_every_kind_of_step(bits, step):
    own = model(bits, "prefixes", step)
    assert torch.equal(compiled(own), plainly(own))


def test_projected_rows_are_read_too():
    own = build_model(SCHEMA, projected(model(32, "prefixes").architecture)).eval()
    torch.manual_seed(0)
    for parameter in own.parameters():
        parameter.data.normal_()
    assert own.architecture.storage.kind == "projected"
    assert torch.equal(compiled(own), plainly(own))


def test_a_column_of_lists_reads_its_values(tmp_path):
    schema = FeatureSchema(
        fields=(*SCHEMA.fields[:2], Field(name="c", cardinality=40, multi=Multi(length=3))), label="label"
    )
    own = Architecture.full(schema, COUNTS, dim=4, blocks=2, backbone={"name": "deepfm", "hidden": [6]}, bits=8)
    own = build_model(schema, own, packed=True).eval()
    ids = torch.cat([IDS, IDS[:, 2:].roll(1, 0), torch.full((50, 1), -1, dtype=torch.int32)], dim=1)
    assert torch.equal(compiled(own, ids), plainly(own, ids))


@pytest.mark.parametrize(("column", "id"), [(0, 8), (1, 3), (2, -1), (2, 2**30)])
def test_an_id_that_a_column_does_not_have_is_no_read_beyond_the_table(column, id):
    wrong = IDS.clone()
    wrong[7, column] = id
    with pytest.raises(IndexError, match=f"column {column} has no id {id}"):
        compiled(model(kept="prefixes"), wrong)


@pytest.mark.parametrize("bits", [32, 16])
def test_one_table_of_floats_is_left_to_torch_but_where_it_is_served(bits):
    trained = model(bits, "whole")
    served = folded(trained)
    with torch.no_grad():
        assert not trained.embedding.is_compiled(IDS)
    assert torch.equal(compiled(served), plainly(trained))


def test_a_model_that_learns_or_is_traced_takes_torchs_operations():
    trained = model(32, packed=False)
    assert not trained.embedding.is_compiled(IDS)
    trained(IDS).sum().backward()
    assert all(rows.weight.grad is not None for rows in trained.embedding.tables)
    with torch.no_grad():
        seen = []
        torch.compile(lambda ids: (seen.append(trained.embedding.is_compiled(IDS)), ids)[1], backend="eager")(IDS)
        assert seen == [False]


def test_a_traced_model_keeps_reading():
    own = model(32, "prefixes")
    with torch.no_grad():
        traced = torch.jit.trace(own, IDS[:10], check_trace=False)
        assert torch.allclose(traced(IDS[10:20]), own(IDS[10:20]))


def test_weights_that_move_or_are_replaced_are_read_where_they_are():
    own = model(32, "prefixes", packed=False)
    before = compiled(own).clone()
    for rows in own.embedding.tables:
        rows.weight.data.mul_(2)
    assert torch.equal(compiled(own), 2 * before)
    for rows in own.embedding.tables:
        rows.weight = torch.nn.Parameter(rows.weight.detach() * 2)
    assert torch.equal(compiled(own), 4 * before)
    other = copy.deepcopy(own)
    for rows in other.embedding.tables:
        rows.weight.data.zero_()
    assert torch.equal(compiled(own), 4 * before)
    assert not compiled(other).any()


def test_rows_that_are_rounded_in_training_take_torchs_operations():
    rounding = model(4, packed=False)
    assert all(type(rows) is Rows for rows in rounding.embedding.tables)
    with torch.no_grad():
        assert not rounding.embedding.is_compiled(IDS)


def test_threads_do_not_disturb_one_another():
    own = model()
    batches = [IDS[torch.randperm(50, generator=torch.Generator().manual_seed(n))] for n in range(40)]
    expected = [plainly(own, ids) for ids in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda ids: compiled(own, ids), batches))
    assert all(map(torch.equal, found, expected))
