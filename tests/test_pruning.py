"""Columns pruned by the ranking, or by what a plain model takes from them."""

import polars as pl
import pytest
import yaml

from autoembed.draws import prepare
from autoembed.errors import SpaceError, StudyError
from autoembed.pruning import kept_fields, plain_config
from autoembed.ranking.ranking import rank
from autoembed.space import SearchSpace

NODE = {
    "data": {
        "planted": {"rows": 30000, "marginal": [4, 30], "xor": [6], "low_rank": [], "noise": [5, 50, 500, 2000]},
        "split": {"by": "random", "valid": 0.2, "test": 0.2},
    },
    "embedding": {"dim": 8},
    "stages": [{"method": "dnis"}],
    "backbone": {"name": "deepfm", "hidden": [32], "dropout": {"uniform": [0.0, 0.2]}},
    "train": {"epochs": 8, "lr": {"log": [1e-3, 9e-3]}, "l2": 1e-4, "batch_size": {"choice": [1024, 256]}},
    "budget": {"width": 0.01},
    "device": "cpu",
}
PLANTED = {"marginal_0", "marginal_1", "xor_0_a", "xor_0_b"}


@pytest.fixture
def space(tmp_path):
    def make(**features):
        path = tmp_path / "s.yaml"
        path.write_text(yaml.safe_dump({**NODE, "features": features}))
        return SearchSpace.read(path)

    return make


def test_a_knockout_keeps_what_matters_in_a_pair_only(space, tmp_path):
    dataset = prepare(space(), None, 3, tmp_path)
    by_itself = kept_fields(space(z=3), rank(dataset), dataset)
    assert not {"xor_0_a", "xor_0_b"} <= set(by_itself)
    out = tmp_path / "scores.parquet"
    told = []
    kept = kept_fields(space(score="knockout", z=2), rank(dataset), dataset, out, lambda *step: told.append(step))
    assert set(kept) == PLANTED
    assert set(pl.read_parquet(out)["field"]) == set(dataset.schema.names)
    assert told[0] == ("model for features", 0, 1)
    assert (
        prepare(space(score="knockout", keep=4), None, 3, tmp_path).schema.names
        == dataset.keep(kept, tmp_path).schema.names
    )
    assert set(kept_fields(space(score="knockout", keep=2, z=2), rank(dataset), dataset)) < PLANTED


def test_saliency_orders_columns_of_as_few_values(space, tmp_path):
    dataset = prepare(space(), None, 3, tmp_path)
    small = dataset.keep([name for name in dataset.schema.names if name not in ("noise_2", "noise_3")], tmp_path)
    assert set(kept_fields(space(score="saliency", keep=4), rank(small), small)) == PLANTED


def test_no_column_above_z_is_an_error(space, tmp_path):
    dataset = prepare(space(), None, 3, tmp_path)
    with pytest.raises(
        StudyError, match=r"no column has a z score above features\.z=10000: .* \(see `autoembed rank`\)"
    ):
        kept_fields(space(z=1e4), rank(dataset), dataset)


@pytest.mark.parametrize(
    ("features", "line"),
    [
        (
            {"score": "saliency", "z": 2},
            r"saliency has no z, since noise has a gradient too: set keep, or score: knockout",
        ),
        ({"score": "knockout"}, r"score: knockout trains a model to prune by: set keep or z"),
        ({"score": "saliency"}, r"score: saliency trains a model to prune by: set keep"),
        ({"score": "gini", "keep": 3}, r"features\.score: Input should be 'adjusted_mi', 'knockout' or 'saliency'"),
    ],
)
def test_what_a_score_needs_is_named(space, features, line):
    with pytest.raises(SpaceError, match=line):
        space(**features)


def test_the_plain_model_has_the_middle_of_ranges_and_no_limit(space):
    config = plain_config(space())
    assert config.train.lr == pytest.approx(3e-3)
    assert config.train.batch_size == 1024
    assert config.backbone["dropout"] == pytest.approx(0.1)
    assert config.embedding.dim == 8
    assert config.limit.width is None
    assert config.stages == ({"method": "uniform"},)
