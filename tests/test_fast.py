"""Fast paths and plain ones give the same numbers, and one variable chooses between them."""

import numpy as np
import pytest
import torch

from autoembed import fast, native
from autoembed.architecture import Architecture
from autoembed.errors import SpaceError
from autoembed.nn.model import CTRModel
from autoembed.ranking.ranking import rank
from autoembed.study.engine import forkserver, tune
from autoembed.training import Adam, Optimiser, TrainConfig, fit

CPU = torch.device("cpu")


def trained(dataset, sparse):
    torch.manual_seed(0)
    backbone = {"name": "deepfm", "hidden": [8], "dropout": 0.0}
    model = CTRModel(
        dataset.schema, Architecture.full(dataset.schema, dataset.counts, dim=4, blocks=2, backbone=backbone)
    )
    kind = type(Optimiser(model, model.weight_parameters(), TrainConfig()).parts[0])
    recipe = TrainConfig(epochs=1, batch_size=512, sparse=sparse)
    fit(model, dataset, recipe, device=CPU, seed=0, report=lambda event: None)
    return kind, model.state_dict()


@pytest.mark.parametrize("sparse", [False, True])
def test_optimisers_with_their_wrappers_move_weights_alike(planted, monkeypatch, sparse):
    kind, weights = trained(planted, sparse)
    monkeypatch.setenv(fast.VARIABLE, "optimisers")
    plain, others = trained(planted, sparse)
    assert (kind, plain) == (Adam, torch.optim.Adam)
    assert all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.mark.slow  # numba compiles all of them
def test_kernels_that_numba_compiles_rank_alike(planted, monkeypatch):
    ranking = rank(planted, pairs=10)
    calls = []
    monkeypatch.setattr(native, "FAST", False)
    by_numba = native.Native._by_numba
    monkeypatch.setattr(native.Native, "_by_numba", lambda self, *given: calls.append(0) or by_numba(self, *given))
    plain = rank(planted, pairs=10)
    assert calls
    assert plain.table.equals(ranking.table)
    assert plain.pairs.select("a", "b").equals(ranking.pairs.select("a", "b"))
    assert np.allclose(plain.pairs["synergy_z"], ranking.pairs["synergy_z"], rtol=1e-9)


@pytest.mark.parametrize("plain", ["", "forks"])
def test_without_forks_ray_starts_its_workers(monkeypatch, plain):
    monkeypatch.setenv(fast.VARIABLE, plain)
    monkeypatch.setattr(tune.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(tune, "guard_token", lambda: None)
    monkeypatch.setattr(tune, "_end", lambda: None)
    given = {}
    monkeypatch.setattr(tune, "_start", lambda options, **_: given.update(options))
    with tune.cluster(tune.Resources(address=None, cpus=1)):
        pass
    forked = given.get("runtime_env", {}).get("py_executable")
    assert forked == (None if plain else forkserver.command())


def test_an_unknown_path_is_named(monkeypatch):
    monkeypatch.setenv(fast.VARIABLE, "kernel")
    with pytest.raises(SpaceError, match=r"AUTOEMBED_PLAIN: unknown path 'kernel'.*kernels"):
        fast.takes("forks")
