"""Quotient-remainder embeddings as a method: what it answers, and what becomes of its models."""

import io

import numpy as np
import polars as pl
import pytest
from rich.console import Console

import autoembed as ae
from autoembed.architecture import Architecture
from autoembed.budget import uniform_bytes
from autoembed.data.schema import FeatureSchema, Field
from autoembed.errors import SpaceError
from autoembed.methods.method import configure, load
from autoembed.nn.model import cost_of
from autoembed.refreshing import refresh
from autoembed.reuse import train_architecture
from autoembed.study.show.architectures import show_architecture

SIZES = (3000, 500, 150, 4)
SCHEMA = FeatureSchema(
    fields=tuple(Field(name=f"f{place}", cardinality=size) for place, size in enumerate(SIZES)), label="y"
)
COUNTS = [np.arange(size)[::-1].copy() for size in SIZES]


def root(dim=8, bits=32):
    return Architecture.full(SCHEMA, COUNTS, dim=dim, blocks=3, backbone={"name": "deepfm", "hidden": [4]}, bits=bits)


def net_for(parent, **options):
    config = configure({"method": "quotient_remainder", **options})
    return load(config.method).Supernet(SCHEMA, parent, config, COUNTS, 0)


@pytest.mark.parametrize("width", [2, 3.5, 6])
@pytest.mark.parametrize("bits", [32, 4])
def test_a_budget_is_filled_but_for_a_row_of_each_field(width, bits):
    parent = root(bits=bits)
    limit = uniform_bytes(parent, width) * bits // 32
    found = net_for(parent).derive(limit)
    parts = {field.name: found.storage.parts(field.cardinality) for field in found.fields}
    assert [len(own) for own in parts.values()] == [2, 2, 1, 1]
    spent = cost_of(found).embedding_bytes
    assert limit - 4 * cost_of(root()).embedding_bytes / sum(SIZES) <= spent <= limit
    # As many values share a row in both fields: the fields shrink alike.
    assert 3000 / parts["f0"][0] == pytest.approx(500 / parts["f1"][0], rel=0.02)
    assert found.storage.bits == bits
    assert {block.bits for field in found.fields for block in field.blocks} == {bits}


def test_a_budget_that_holds_all_rows_splits_none():
    found = net_for(root()).derive(uniform_bytes(root(), 8))
    assert all(len(found.storage.parts(size)) == 1 for size in SIZES)
    assert cost_of(found).embedding_bytes == cost_of(root()).embedding_bytes


def test_a_field_is_split_above_a_number_of_values():
    found = net_for(root(), split_above=100, combine="add").derive(uniform_bytes(root(), 2))
    assert [len(found.storage.parts(size)) for size in SIZES] == [2, 2, 2, 1]
    assert found.storage.combine == "add"


def test_dims_that_its_parent_has_closed_take_no_bytes():
    parent = root()
    found = net_for(parent.with_mask(parent.mask() & (np.arange(8) < 3))).derive(uniform_bytes(parent, 2))
    assert found.dim == 3
    assert cost_of(found).embedding_parameters % (3 + 1) == 0


def test_below_the_fewest_rows_it_has_fewer_dims():
    # 55 + 55, 23 + 22, 150 and 4 rows of so many dims and a first-order weight, in 4 bytes each
    for limit, dim in ((11124, 8), (11123, 7), (309 * 4 * 4, 3), (309 * 2 * 4, 1)):
        found = net_for(root()).derive(limit)
        assert found.dim == dim
        assert {block.dims for field in found.fields for block in field.blocks} == {tuple(range(dim))}
        assert limit * 0.8 < cost_of(found).embedding_bytes <= limit
    with pytest.raises(SpaceError, match=r"a budget of one dim in the fewest rows, 2472 bytes, but got 2471: raise it"):
        net_for(root()).derive(2471)


def clicks(seed, users, rows=3000):
    """Users and items that have an effect each."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(*users, rows), rng.integers(0, 30, rows)
    rate = 1 / (1 + np.exp(-np.sin(user) * 2 - np.cos(item)))
    columns = {"user": [f"u{one}" for one in user], "item": item}
    return pl.DataFrame(columns | {"label": (rng.random(rows) < rate).astype(int)})


def fitted(table, folder, **changes):
    model = ae.AutoEmbedClassifier(
        **{
            "embedding": {"dim": 4},
            "backbone": {"name": "deepfm", "hidden": [8]},
            "train": {"epochs": 4, "lr": 1e-2, "batch_size": 256},
            "stages": [{"method": "quotient_remainder"}],
            "budget": {"embedding_bytes": 9000},
            "random_state": 0,
        }
        | changes
    )
    return model.fit(table).export(folder)


@pytest.mark.parametrize("buckets", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_unseen_values_of_a_hashed_field_have_embeddings_of_their_own_in_small_tables(tmp_path, buckets):
    table, few = clicks(0, (0, 400)), {"budget": {"embedding_bytes": 50_000}}
    unseen = pl.DataFrame({"user": [f"new{one}" for one in range(60)], "item": [3] * 60})
    hashed = fitted(table, tmp_path / "hashed", data={"hash": {"user": buckets}}, **few)
    (user,) = (field for field in hashed.architecture.fields if field.name == "user")
    assert user.cardinality > buckets
    assert sum(hashed.architecture.storage.parts(user.cardinality)) < 2500
    assert hashed.architecture.cost.embedding_bytes <= 50_000
    assert len(np.unique(hashed.vocabulary.encode(unseen)[:, hashed.schema.index("user")])) == 60
    assert len(np.unique(hashed.predict(unseen))) == 60
    plain = fitted(table, tmp_path / "plain")
    assert len(np.unique(plain.predict(unseen))) == 1


def test_its_architecture_is_trained_on_other_data_but_its_weights_stay(tmp_path):
    bundle = fitted(clicks(0, (0, 400)), tmp_path / "bundle")
    clicks(1, (100, 700)).write_parquet(tmp_path / "later.parquet")
    done = train_architecture(tmp_path / "bundle", tmp_path / "later.parquet", tmp_path / "cold", label="label")
    assert done.bundle.architecture.storage == bundle.architecture.storage
    assert done.bundle.architecture.fields[0].cardinality > bundle.architecture.fields[0].cardinality
    line = "weights of clusters, of rows that values share and of layers in few bits cannot be taken over"
    with pytest.raises(SpaceError, match=line):
        train_architecture(tmp_path / "bundle", tmp_path / "later.parquet", tmp_path / "warm", label="label", warm=True)
    with pytest.raises(SpaceError, match=line):
        refresh(tmp_path / "bundle", tmp_path / "later.parquet", tmp_path / "fresh")


def test_a_student_and_its_teachers_may_all_be_split(tmp_path):
    train = {"epochs": 2, "lr": 1e-2, "batch_size": 256, "distill": {"teacher": {"ensemble": 2}, "weight": 0.5}}
    stages = [{"method": "quotient_remainder", "bits": 4}]
    bundle = fitted(
        clicks(0, (0, 400)), tmp_path / "taught", train=train, stages=stages, budget={"embedding_bytes": 1700}
    )
    assert bundle.architecture.storage.bits == 4
    assert len(bundle.architecture.storage.parts(bundle.architecture.fields[0].cardinality)) == 2


def test_what_is_shown_of_it_says_which_fields_are_split_and_what_they_take():
    found = net_for(root()).derive(uniform_bytes(root(), 2))
    console = Console(file=io.StringIO(), width=120)
    show_architecture(console, found.replace(cost=cost_of(found)), "one")
    shown = console.file.getvalue()
    assert "rows of remainders and quotients (`mult`) for f0, f1" in shown
    rows = sum(found.storage.parts(3000))
    (line,) = (line.split() for line in shown.splitlines() if line.split()[:1] == ["f0"])
    assert line[-3:] == [f"{rows * 8:,}", f"{rows / 3000:.0%}", f"{rows * 9 * 4:,}"]
