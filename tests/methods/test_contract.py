"""What every method must do; a new file in autoembed/methods/ is tested unasked."""

import numpy as np
import pytest
import torch

from autoembed.architecture import Architecture
from autoembed.budget import uniform_bytes
from autoembed.errors import SpaceError
from autoembed.methods import measured
from autoembed.methods.bilevel import search, split_train
from autoembed.methods.method import GateConfig, SearchConfig, configure, load, names
from autoembed.nn.model import CTRModel, cost_of, measure, pack, start_rounding
from autoembed.training import TrainConfig

CPU = torch.device("cpu")
BACKBONE = {"name": "deepfm", "hidden": [16], "dropout": 0.0}
TRAIN = TrainConfig(epochs=1, lr=3e-3, batch_size=512)


def quick(method, **options):
    config = configure({"method": method, **options})
    if isinstance(config, SearchConfig):
        config = config.model_copy(update={"warm_epochs": 1})
    if isinstance(config, GateConfig):
        config = config.model_copy(update={"epochs": 1})
    return config


def root(dataset, dim=8):
    return Architecture.full(dataset.schema, dataset.counts, dim=dim, blocks=4, backbone=BACKBONE)


def searched(dataset, method, parent=None, seed=0):
    torch.manual_seed(seed)
    config = quick(method)
    parent = parent or root(dataset)
    net = load(method).Supernet(dataset.schema, parent, config, dataset.counts, seed)
    search(net, dataset, TRAIN, device=CPU, seed=seed, report=lambda values: None)
    return net


def budget_of(net):
    """Bytes of two dims a value; for methods that choose for pairs, of all fields and half of memorizing all pairs."""
    if not net.chooses_pairs:
        return uniform_bytes(net.parent, 2)
    memorized = net.parent.with_choices(["memorize"] * len(net.parent.pairs), net.config.pair_dim)
    fields = net.parent.embedding_bytes(first_order=net.first_order)
    return fields + memorized.pair_bytes() // 2


def frugal(net):
    """Whether bytes have a price, or are given back where they do not pay, so that a budget need not be used."""
    return hasattr(net.config, "price") or isinstance(net, measured.Supernet)


@pytest.fixture(scope="module", params=names())
def found(request, planted_pairs):
    """(method, supernet after its search, its architecture at the budget)."""
    net = searched(planted_pairs, request.param)
    return request.param, net, net.derive(budget_of(net))


def test_weights_and_gates_are_disjoint(found):
    _, net, _ = found
    weights, gates = {id(p) for p in net.weight_parameters()}, {id(p) for p in net.arch_parameters()}
    assert not weights & gates
    assert weights | gates == {id(p) for p in net.parameters()}


def test_the_budget_holds_and_is_used(found):
    _, net, architecture = found
    budget = budget_of(net)
    spent = cost_of(architecture).embedding_bytes
    assert spent <= budget
    # What is left is less than the largest block's dim, which no smaller entry filled. Pairs need not be worth it, and
    # a net that prunes, has a price or chooses by loss, or answers with uniform rows, has found that more is no better.
    assert net.chooses_pairs or net.rounds or frugal(net) or net.answer(budget).notes or spent >= 0.9 * budget


def test_json_round_trip(found, tmp_path):
    architecture = found[2]
    architecture.write(tmp_path / "a.json")
    assert Architecture.read(tmp_path / "a.json") == architecture


def test_it_narrows_its_parent(found):
    _, net, architecture = found
    assert architecture.narrows(net.parent)


def test_it_narrows_a_narrow_parent(found, planted_pairs):
    method, _, _ = found
    parent = root(planted_pairs)
    mask = parent.mask()
    mask[:, 5:] = False
    mask[0] = False
    parent = parent.with_mask(mask)
    net = searched(planted_pairs, method, parent)
    budget = budget_of(net) if net.chooses_pairs else uniform_bytes(parent, 1.5)
    assert net.derive(budget).narrows(parent)


def test_compact_equals_masked_and_cost_equals_count(found, planted_pairs):
    _, net, architecture = found
    if architecture.storage.kind == "shared":
        with pytest.raises(AssertionError, match="no rows of a value's own"):
            net.compact(architecture)
        return
    if architecture.built and not isinstance(net.config, SearchConfig):
        assert measure(CTRModel(planted_pairs.schema, architecture)) == cost_of(architecture)  # nothing was trained
        return
    model = net.compact(architecture).eval()
    net.eval()
    ids = torch.from_numpy(planted_pairs.ids("valid")[:2000])
    start_rounding(model)
    with torch.no_grad(), net.answering(architecture):
        assert (model(ids) - net(ids)).abs().max() < 1e-5
    assert measure(pack(model, planted_pairs.schema)) == cost_of(architecture)


def test_deriving_changes_nothing(found, planted_pairs):
    """What is derived does not depend on what was derived or compacted before, and the net stays as it is."""
    _, net, architecture = found
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    ids = torch.from_numpy(planted_pairs.ids("valid")[:500])
    with torch.no_grad():
        logits = net.eval()(ids)
    again = net.derive(budget_of(net) * 2)
    if isinstance(net.config, SearchConfig):
        net.compact(again)
    assert net.derive(budget_of(net)) == architecture
    with torch.no_grad():
        assert torch.equal(net(ids), logits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_same_seed_same_answer(found, planted_pairs):
    method, _, architecture = found
    net = searched(planted_pairs, method)
    assert net.derive(budget_of(net)) == architecture


def test_without_a_budget_it_answers_or_says_what_it_needs(found, planted_pairs):
    method, _, _ = found
    net = searched(planted_pairs, method)
    own = any(hasattr(net.config, name) for name in ("threshold", "theta", "price"))
    if net.chooses_pairs or method in ("uniform", "select") or own:
        assert net.derive(None).narrows(net.parent)
    else:
        with pytest.raises(SpaceError, match=r"budget\.width"):
            net.derive(None)


def test_a_budget_that_holds_nothing_is_refused(found, planted_pairs):
    method, _, _ = found
    with pytest.raises(SpaceError, match="budget"):
        searched(planted_pairs, method).derive(1)


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
