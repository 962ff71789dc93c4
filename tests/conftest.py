from pathlib import Path

import pytest
import torch

from autoembed import errors
from autoembed.data.crosses import CrossSpec
from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """A file's tests run in one process, since they share what they have trained; those of studies, which share a Ray,
    are one group, and the first, as it is the longest."""
    studies = Path(__file__).parent / "study"
    items.sort(key=lambda item: studies not in item.path.parents)
    for item in items:
        item.add_marker(pytest.mark.xdist_group("study" if studies in item.path.parents else str(item.path)))


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """A small planted data set: effects alone, one XOR pair, one low-rank pair, and noise up to 2,000 values."""
    spec = {
        "planted": {
            "rows": 30000,
            "seed": 3,
            "marginal": [4, 30, 300],
            "xor": [6],
            "low_rank": [20],
            "noise": [5, 50, 500, 2000],
        },
        "split": {"by": "random", "valid": 0.2, "test": 0.2},
    }
    return build_dataset(DataSpec.model_validate(spec), None, tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="session")
def planted_pairs(planted, tmp_path_factory):
    """The planted data with candidate pairs: XOR, low-rank, effects alone, noise."""
    pairs = [
        ("xor_0_a", "xor_0_b"),
        ("low_rank_0_a", "low_rank_0_b"),
        ("marginal_0", "noise_1"),
        ("noise_0", "noise_1"),
    ]
    return planted.cross(pairs, CrossSpec(min_count=3), tmp_path_factory.mktemp("crossed"), candidates=True)


@pytest.fixture(autouse=True)
def _library_errors(monkeypatch):
    """Errors name arguments, unless the test calls the command line."""
    monkeypatch.setattr(errors, "_flags", False)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """These models are small: a second thread costs more than it brings."""
    torch.set_num_threads(1)
