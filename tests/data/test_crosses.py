import numpy as np
import polars as pl
import pytest

from autoembed.data.crosses import CrossSpec, frequent_keys, keys_of
from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.data.schema import Cross
from autoembed.data.vocabulary import Vocabulary
from autoembed.errors import DataError


def test_frequent_keys_by_hand():
    keys = np.array([7, 7, 7, 3, 3, 9, 9, 9, 1])
    found, counts = frequent_keys(keys, CrossSpec(min_count=2))
    assert found.tolist() == [7, 9, 3]
    assert counts.tolist() == [1, 3, 3, 2]
    found, counts = frequent_keys(keys, CrossSpec(min_count=1, cap=2))
    assert found.tolist() == [7, 9]
    assert counts.tolist() == [3, 3, 3]


def test_buckets_bound_the_keys_and_collide_evenly():
    a, b = (side.reshape(-1) for side in np.meshgrid(np.arange(300), np.arange(300)))
    keys = keys_of(a, b, 300, Cross(a="a", b="b", buckets=1000))
    counts = np.bincount(keys, minlength=1000)
    assert len(counts) == 1000
    assert 40 < counts.min() <= counts.max() < 160  # 90 on average


def test_crossed_ids_are_the_pairs_of_ids(planted_pairs):
    schema, ids = planted_pairs.schema, planted_pairs.ids("train")
    for field in (field for field in schema.fields if field.cross):
        a, b, crossed = (ids[:, schema.index(name)] for name in (field.cross.a, field.cross.b, field.name))
        frame = (
            pl.DataFrame({"a": a, "b": b, "crossed": crossed})
            .group_by("a", "b")
            .agg(pl.col("crossed").first(), pl.col("crossed").n_unique().alias("ways"), pl.len())
        )
        assert frame["ways"].max() == 1
        known = frame.filter(pl.col("crossed") > 0)
        assert known["crossed"].n_unique() == len(known) == field.cardinality - 1
        assert (known["len"] >= 3).all()
        assert (frame.filter(pl.col("crossed") == 0)["len"] < 3).all()
        assert field.cross.distinct == len(frame)
        counts = planted_pairs.vocabulary.counts(field.name)
        assert (np.diff(counts[1:]) <= 0).all()
        assert counts.sum() == len(ids)


@pytest.mark.parametrize("buckets", [None, 50])
def test_raw_rows_are_encoded_as_the_dataset_is_after_a_round_trip(tmp_path, buckets):
    rng = np.random.default_rng(0)
    table = pl.DataFrame({name: [f"{name}{n}" for n in rng.integers(0, 9, 4000)] for name in "xyz"})
    table = table.with_columns(pl.Series("label", rng.integers(0, 2, 4000)))
    table.write_parquet(tmp_path / "t.parquet")
    spec = {"crosses": {"pairs": [["x", "z"]], "buckets": buckets}, "split": {"by": "random", "seed": 1}}
    dataset = build_dataset(DataSpec.model_validate(spec), tmp_path / "t.parquet", tmp_path / "cache")
    assert dataset.schema.names == ("x", "y", "z", "x*z")
    assert not dataset.schema.fields[3].candidate
    assert dataset.schema.fields[3].cross.distinct == 81  # more than 50 buckets: some collide
    assert dataset.schema.fields[3].cardinality <= (buckets or 81) + 1
    dataset.vocabulary.write(tmp_path / "v.parquet")
    vocabulary = Vocabulary.read(tmp_path / "v.parquet")
    assert vocabulary.columns == ("x", "y", "z")
    ids = vocabulary.encode(table)
    found = np.concatenate([dataset.ids(split) for split in dataset.splits])
    assert sorted(map(tuple, ids)) == sorted(map(tuple, found))
    kept = dataset.keep(["x*z"], tmp_path / "cache")
    assert kept.schema.names == ("x", "z", "x*z")  # a crossed column brings those that it is made of
    assert (kept.vocabulary.encode(table)[:, 2] == ids[:, 3]).all()


def test_unknown_pairs_of_known_values_have_id_0(planted_pairs):
    vocabulary = planted_pairs.vocabulary
    name = "noise_0*noise_1"
    ids = vocabulary.encode_cross(name, np.array([0, 5], np.int32), np.array([49, 10**6], np.int32))
    assert ids[1] == 0


def test_what_cannot_be_crossed_is_one_line(planted_pairs, tmp_path):
    for pairs, line in (
        ([("noise_0", "nosuch")], "unknown column 'nosuch'"),
        ([("noise_0", "noise_0")], "a pair must have two columns, but got 'noise_0' twice"),
        ([("noise_0", "noise_0*noise_1")], "cannot be crossed again"),
        ([("noise_0", "noise_1")], r"crossed column 'noise_0\*noise_1' is there already"),
    ):
        with pytest.raises(DataError, match=line):
            planted_pairs.cross(pairs, CrossSpec(), tmp_path, candidates=True)
