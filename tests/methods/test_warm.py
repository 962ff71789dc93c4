"""Warm starts that searches share."""

import pytest

from autoembed.budget import Limit
from autoembed.data.dataset import build_dataset
from autoembed.data.spec import DataSpec
from autoembed.methods.method import load
from autoembed.methods.warm import WarmStarts
from autoembed.plans import TowerOptions
from autoembed.trial import check, run_trial

TRAIN = {"epochs": 2, "lr": 4e-3, "batch_size": 512}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Rows enough to train on: what a key holds does not depend on them."""
    planted = {"rows": 4000, "seed": 3, "marginal": [4, 30], "xor": [6], "low_rank": [], "noise": [5, 50]}
    spec = DataSpec.model_validate({"planted": planted, "split": {"by": "random", "valid": 0.2, "test": 0.2}})
    return build_dataset(spec, None, tmp_path_factory.mktemp("small"))


def config(method, seed=0, **options):
    return check(
        {
            "arm": method,
            "stages": [{"method": method, "warm_epochs": 2, **options}],
            "embedding": {"dim": 8, "blocks": 3},
            "backbone": {"name": "deepfm", "hidden": [8], "dropout": 0.2},
            "train": TRAIN,
            "limit": {"width": 2},
            "seed": seed,
        }
    )


def result(trial, dataset, warm):
    seen = []
    found, _ = run_trial(trial, dataset, seen.append, warm)
    return found.model_dump(exclude={"search_seconds", "retrain_seconds", "latency_ms"}), seen


def trained(folder):
    return len(list(folder.glob("*.safetensors")))


def test_a_shared_warm_start_changes_nothing_but_the_time(small, tmp_path):
    warm = WarmStarts(folder=tmp_path)
    for trial in (config("magnitude"), config("sensitivity", prefixes="field", held_fraction=0)):
        assert result(trial, small, warm) == result(trial, small, None)
    assert trained(tmp_path) == 1
    again = result(config("magnitude"), small, warm)  # read, with the epochs told once more
    assert again == result(config("magnitude"), small, None)
    assert sum(event.phase == "warm" for event in again[1]) == 2


def test_whatever_decides_a_warm_start_is_in_its_key(small, tmp_path):
    warm = WarmStarts(folder=tmp_path)
    trials = [
        config("magnitude"),
        config("magnitude", seed=1),
        config("magnitude", basis="plain"),
        config("magnitude", prefixes="block"),
        config("magnitude", warm_train={"lr": 1e-3}),
        config("magnitude", warm_epochs=1),
        config("dnis", epochs=1),  # a fifth of train is held out for its gates
        config("magnitude").model_copy(update={"tower": TowerOptions(units="search"), "limit": Limit(bytes=30_000)}),
    ]
    for trial in trials:
        result(trial, small, warm)
    assert trained(tmp_path) == len(trials)
    result(config("dnis", epochs=1, arch_lr=1e-3), small, warm)  # gates move after it
    assert trained(tmp_path) == len(trials)


def test_a_file_that_cannot_be_read_is_made_anew_and_old_ones_go(planted, tmp_path):
    plain = result(config("magnitude"), planted, WarmStarts(folder=tmp_path))
    (path,) = tmp_path.glob("*.safetensors")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2])
    assert result(config("magnitude"), planted, WarmStarts(folder=tmp_path)) == plain
    assert path.stat().st_size == size
    result(config("magnitude", seed=1), planted, WarmStarts(folder=tmp_path, most=int(2.5 * size)))
    assert trained(tmp_path) == 2
    result(config("magnitude", seed=2), planted, WarmStarts(folder=tmp_path, most=int(2.5 * size)))
    assert trained(tmp_path) == 2
    result(config("magnitude", seed=3), planted, WarmStarts(folder=tmp_path / "small", most=size))
    assert not (tmp_path / "small").exists()


def test_only_plain_warm_starts_are_shared_between_methods():
    assert load("sensitivity").Supernet.plain_warm_start
    assert not load("optinter").Supernet.plain_warm_start
