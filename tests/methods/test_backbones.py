"""Every method under every backbone: it ends in a compact model, or refuses with a reason."""

import pytest

from autoembed.data.crosses import CrossSpec
from autoembed.data.dataset import build_dataset
from autoembed.data.spec import DataSpec
from autoembed.errors import SpaceError
from autoembed.methods.method import GateConfig, SearchConfig, load, names
from autoembed.nn.backbones import base
from autoembed.nn.model import cost_of
from autoembed.trial import check, run_trial


def refusal(method, backbone):
    """What a method says to a backbone under which it makes no sense, or None."""
    if load(method).Supernet.chooses_pairs and backbone not in ("dnn", "widedeep", "deepfm", "dcn", "finalmlp"):
        return f"{method} makes inputs of pairs, and backbone {backbone} reads whole fields only: use one of "
    if (method, backbone) == ("unified", "lr"):
        return "embedding.dim must be a multiple of unified's lookups=2, but got 1"
    return None


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    planted = {"rows": 2000, "seed": 1, "marginal": [4, 30], "xor": [3], "noise": [50]}
    spec = {"planted": planted, "split": {"by": "random", "valid": 0.25, "test": 0.25}}
    dataset = build_dataset(DataSpec.model_validate(spec), None, tmp_path_factory.mktemp("tiny"))
    pairs = [("xor_0_a", "xor_0_b"), ("marginal_0", "noise_0")]
    return dataset.cross(pairs, CrossSpec(min_count=2), tmp_path_factory.mktemp("crossed"), candidates=True)


@pytest.mark.parametrize("backbone", base.names())
@pytest.mark.parametrize("method", names())
def test_it_runs_or_says_why_not(tiny, method, backbone):
    stage = {"method": method}
    kind = load(method).Config
    stage |= {"warm_epochs": 1} if issubclass(kind, SearchConfig) else {}
    stage |= {"epochs": 1} if issubclass(kind, GateConfig) else {}
    small = {"hidden": [8]} if "hidden" in base.find(backbone).Config.model_fields else {}
    small |= {"hidden2": [8]} if backbone == "finalmlp" else {}
    node = {
        "arm": method,
        "stages": [stage],
        "embedding": {"dim": 1 if backbone == "lr" else 4, "blocks": 2},
        "backbone": {"name": backbone, **small},
        "train": {"epochs": 1, "batch_size": 500, "lr": 1e-2},
        "limit": {"parameters": 2000}
        if load(method).Supernet.chooses_pairs
        else {"width": 1 if backbone == "lr" else 2},
    }
    if reason := refusal(method, backbone):
        with pytest.raises(SpaceError, match=reason):
            run_trial(check(node), tiny, lambda values: None)
        return
    result, model = run_trial(check(node), tiny, lambda values: None)
    assert result.cost == cost_of(result.architecture)
    assert 0 < result.valid.logloss < 2
    assert model.architecture.backbone["name"] == backbone
