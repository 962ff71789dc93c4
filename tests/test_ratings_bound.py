"""Planted ratings have noise of a known size, below whose RMSE no model can be: how near a short training comes."""

import json

import numpy as np
import pytest

from autoembed.data.dataset import build_dataset
from autoembed.data.spec import DataSpec
from autoembed.errors import DataError
from autoembed.study.results.leaderboard import Leaderboard
from autoembed.training import metrics_on, pick_device, predict
from autoembed.trial import check, run_trial

CPU = pick_device("cpu")
NOISE = 0.8
TRAIN = {"epochs": 8, "batch_size": 256, "lr": 5e-3, "l2": 1e-2, "decay": 0.3}
BYTES = 4800  # of 7,740 that all values have with 8 dims


def planted_ratings(cache, seed=0, **keys):
    """Half of the rows have one of the 90 rare values of `tail_0`, each of which says as much as a frequent one."""
    node = {"rows": 24000, "marginal": [10, 30], "xor": [], "low_rank": [], "noise": [50], "tail": [100], **keys}
    spec = {"task": "ratings", "planted": node | {"label_noise": NOISE, "seed": seed}, "split": {"by": "random"}}
    return build_dataset(DataSpec.checked(spec), None, cache)


def trained(dataset, method, limit, **options):
    config = {
        "arm": method,
        "stages": [{"method": method, **options}],
        "monitor": "valid_rmse",
        "train": TRAIN,
        "embedding": {"dim": 8},
        "limit": limit,
        "backbone": {"name": "deepfm", "hidden": [32], "dropout": 0.0},
    }
    result, model = run_trial(check(config), dataset, lambda values: None)
    errors = predict(model, dataset, "test", CPU) - dataset.labels("test")
    bound = dataset.truth["best_rmse"]["test"]
    dims = {field.name: [len(block.dims) for block in field.blocks] for field in result.architecture.fields}
    rare = dataset.ids("test")[:, dataset.schema.index("tail_0")] > 10
    found = {
        "over the bound": metrics_on(model, dataset, "test", CPU).rmse / bound,
        "of rare values": float(np.sqrt(np.square(errors[rare]).mean())) / bound,
        "dims of rare values": dims["tail_0"][-1],
        "dims of noise": np.mean(dims.get("noise_0", [0])),
    }
    print(method, {name: round(float(value), 3) for name, value in found.items()})
    return found


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return planted_ratings(tmp_path_factory.mktemp("bound"))


def test_the_bound_is_the_noise_that_was_planted(dataset):
    for split in ("train", "valid", "test"):
        rows = dataset.rows(split)
        assert dataset.truth["best_rmse"][split] == pytest.approx(NOISE, abs=4 * NOISE / np.sqrt(2 * rows))
    assert "best_auc" not in dataset.truth
    assert dataset.labels("test").std() > 2 * NOISE


def test_a_short_training_comes_near_the_bound(dataset):
    assert 0.99 < trained(dataset, "uniform", {})["over the bound"] < 1.06


def test_a_searched_architecture_keeps_the_long_tail_and_comes_within_five_percent(dataset):
    by_rows = trained(dataset, "frequency", {"embedding_bytes": BYTES})
    found = trained(dataset, "magnitude", {"embedding_bytes": BYTES}, warm_epochs=4)
    assert 0.99 < found["over the bound"] < 1.05
    assert found["of rare values"] < 1.06
    assert found["dims of rare values"] >= 5 > found["dims of noise"]
    assert by_rows["dims of rare values"] < found["dims of rare values"]
    assert by_rows["of rare values"] > found["of rare values"] + 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_within_few_bytes_the_tail_is_worth_more_than_what_is_frequent(tmp_path, seed):
    data, limit = planted_ratings(tmp_path, seed), {"embedding_bytes": 1600}
    found = trained(data, "sensitivity", limit, warm_epochs=4)
    assert found["over the bound"] < 1.06
    assert found["dims of rare values"] >= 5 > found["dims of noise"]
    assert trained(data, "frequency", limit)["over the bound"] > found["over the bound"] + 0.1


def test_noise_of_the_default_size_leaves_encoded_data_where_they_were(tmp_path):
    plain = DataSpec.checked({"planted": {"rows": 500}})
    assert "label_noise" not in json.dumps(plain.model_dump(mode="json"))
    with pytest.raises(DataError, match=r"label_noise is the noise of ratings: set task: ratings, or leave it out"):
        DataSpec.checked({"planted": {"rows": 500, "label_noise": 0.5}})
    with pytest.raises(DataError, match="greater than 0"):
        DataSpec.checked({"task": "ratings", "planted": {"rows": 500, "label_noise": 0}})


def test_a_leaderboard_tells_the_bound_and_its_side():
    ratings = Leaderboard(metric="valid_rmse", winner="x", rows=(), best_test_rmse=0.8)
    assert ratings.told_bound == "No model can expect a test RMSE below 0.8000 on these planted data."
    clicks = Leaderboard(metric="valid_auc", winner="x", rows=(), best_test_auc=0.8)
    assert clicks.told_bound == "No model can expect a test AUC above 0.8000 on these planted data."
    assert Leaderboard(metric="valid_rmse", winner="x", rows=()).told_bound is None
