"""What every method must do; a new file in autoembed/methods/ is tested unasked."""

import numpy as np
import pytest
import torch

from autoembed.architecture import Architecture
from autoembed.budget import uniform_bytes
from autoembed.errors import SpaceError
from autoembed.methods.bilevel import search, split_train
from autoembed.methods.method import configure, load, names
from autoembed.testing import MethodContract
from autoembed.training import TrainConfig

CPU = torch.device("cpu")
TRAIN = TrainConfig(epochs=1, lr=3e-3, batch_size=512)


def contract(method, task="clicks"):
    config = configure({"method": method})
    free = method in ("uniform", "select") or any(hasattr(config, name) for name in ("threshold", "theta", "price"))
    node = {"stage": {"method": method}, "needs_no_budget": free, "task": task}
    kind = type(f"Test_{method}_of_{task}", (MethodContract,), node)
    return kind if task == "clicks" or (task == "ratings" and method in QUICK) else pytest.mark.slow(kind)


QUICK = ("dnis", "optinter", "sensitivity")  # of ratings, by gates, for pairs and by losses; the others are slow tests
for task in ("clicks", "ratings", "ranking"):
    globals().update({f"Test_{method}_of_{task}": contract(method, task) for method in names()})


def root(dataset):
    backbone = {"name": "deepfm", "hidden": [16], "dropout": 0.0}
    return Architecture.full(dataset.schema, dataset.counts, dim=8, blocks=4, backbone=backbone)


def test_unknown_methods_and_options_are_named():
    with pytest.raises(SpaceError, match=r"unknown method 'dnsi': must be one of all_factorize, .*dnis, .*frequency"):
        configure({"method": "dnsi"})
    with pytest.raises(SpaceError, match=r"stage dnis: l2.*options: arch_fraction"):
        configure({"method": "dnis", "l2": 3})
    with pytest.raises(SpaceError, match=r"cannot load the method 'no\.such'"):
        configure({"method": "no.such"})


def test_epochs_of_a_search_belong_to_methods_with_gates(planted_pairs):
    with pytest.raises(SpaceError, match=r"stage magnitude: epochs.*options: basis, bits, carry, .*warm_epochs"):
        configure({"method": "magnitude", "epochs": 3})
    config = configure({"method": "dnis", "warm_epochs": 0, "arch_fraction": 1e-9})
    net = load("dnis").Supernet(planted_pairs.schema, root(planted_pairs), config, planted_pairs.counts, 0)
    with pytest.raises(SpaceError, match=r"arch_fraction must hold out at least one of 18000 rows, but got 1e-09"):
        search(net, planted_pairs, TRAIN, device=CPU, seed=0, report=lambda values: None)


def test_a_dotted_name_loads_a_method_from_outside(tmp_path, monkeypatch, planted_pairs):
    (tmp_path / "mine_for_test.py").write_text("from autoembed.methods.random import Supernet, Config\n")
    (tmp_path / "pack_for_test").mkdir()
    (tmp_path / "pack_for_test" / "__init__.py").write_text("")
    (tmp_path / "pack_for_test" / "mine.py").write_text("from autoembed.methods.random import Config, Supernet\n")
    monkeypatch.syspath_prepend(tmp_path)
    config = configure({"method": "pack_for_test.mine"})
    net = load(config.method).Supernet(planted_pairs.schema, root(planted_pairs), config, planted_pairs.counts, 0)
    assert net.derive(uniform_bytes(net.parent, 2)).narrows(net.parent)


def test_the_arch_part_and_the_weights_part_share_no_row():
    rows, held = (part[np.arange(len(part))] for part in split_train(1000, 0.2, seed=5))
    assert len(held) == 200
    assert sorted([*rows, *held]) == list(range(1000))
