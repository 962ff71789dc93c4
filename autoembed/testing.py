"""Tests that every method and every backbone passes, for those in other people's packages; they need pytest.

A test module of such a package subclasses a contract and names what it tests:

    from autoembed.testing import MethodContract

    class TestMine(MethodContract):
        stage = {"method": "mypackage.mine"}
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from pydantic import JsonValue

from autoembed.architecture import Architecture
from autoembed.budget import uniform_bytes
from autoembed.data.crosses import CrossSpec
from autoembed.data.dataset import Dataset, build_dataset
from autoembed.data.readers import DataSpec
from autoembed.data.schema import FeatureSchema, Field
from autoembed.data.spec import TaskName
from autoembed.errors import SpaceError
from autoembed.methods import measured
from autoembed.methods.bilevel import search
from autoembed.methods.method import GateConfig, MethodConfig, SearchConfig, configure, load
from autoembed.methods.supernet import Supernet
from autoembed.nn.backbones import base
from autoembed.nn.embedding import MixedEmbedding
from autoembed.nn.folding import folded
from autoembed.nn.model import CTRModel, cost_of, measure, pack, start_rounding
from autoembed.training import TrainConfig
from autoembed.types import Array

_CPU = torch.device("cpu")
_PLANTED = {
    "planted": {
        "rows": 30000,
        "seed": 3,
        "marginal": [4, 30, 300],
        "xor": [6],
        "low_rank": [20],
        "noise": [5, 50, 500, 2000],
        "multi": [40],
    },
    "split": {"by": "random", "valid": 0.2, "test": 0.2},
    "shared": {"noise_3": "noise_2"},
}
_PAIRS = [
    ("xor_0_a", "xor_0_b"),
    ("low_rank_0_a", "low_rank_0_b"),
    ("marginal_0", "noise_1"),
    ("noise_0", "noise_1"),
]


def planted_data(folder: Path, task: TaskName = "clicks") -> Dataset:
    """Small data with known truth: effects alone, an XOR pair, a low-rank pair, noise, and lists of values.

    Candidate pairs are of each kind. Labels are those of the task, and rows are ranked within the values of `noise_1`.
    """
    group = {"group": "noise_1"} if task == "ranking" else {}
    data = build_dataset(DataSpec.model_validate({**_PLANTED, "task": task, **group}), None, folder / "planted")
    return data.cross(_PAIRS, CrossSpec(min_count=3), folder / "crossed", candidates=True)


class MethodContract:
    """What every method must do, on small planted data.

    Attributes:
        stage: the method and its options, as in a search space; one epoch of each phase is trained.
        needs_no_budget: whether the method answers without a budget, by options of its own.
        task: `data.task` of the data: clicks, ratings or ranking.
    """

    stage: ClassVar[dict[str, JsonValue]]
    needs_no_budget: ClassVar[bool] = False
    task: ClassVar[TaskName] = "clicks"
    backbone: ClassVar[dict[str, JsonValue]] = {"name": "deepfm", "hidden": [16], "dropout": 0.0}

    @pytest.fixture(scope="class")
    @classmethod
    def data(cls, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
        return planted_data(tmp_path_factory.mktemp("contract"), cls.task)

    @pytest.fixture(scope="class")
    @classmethod
    def net(cls, data: Dataset) -> Supernet:
        """The supernet after its search."""
        return cls.searched(data)

    @pytest.fixture(scope="class")
    @classmethod
    def found(cls, net: Supernet) -> Architecture:
        """Its architecture at the budget."""
        return net.derive(cls.budget_of(net))

    @classmethod
    def root(cls, data: Dataset) -> Architecture:
        return Architecture.full(data.schema, data.counts, dim=8, blocks=4, backbone=cls.backbone)

    @classmethod
    def searched(cls, data: Dataset, parent: Architecture | None = None) -> Supernet:
        torch.manual_seed(0)
        config = configure(cls.stage)
        if isinstance(config, SearchConfig):
            config = config.model_copy(update={"warm_epochs": 1})
        if isinstance(config, GateConfig):
            config = config.model_copy(update={"epochs": 1})
        made: Supernet = load(config.method).Supernet(data.schema, parent or cls.root(data), config, data.counts, 0)
        recipe = TrainConfig(epochs=1, lr=3e-3, batch_size=512)
        search(made, data, recipe, device=_CPU, seed=0, report=lambda values: None)
        return made

    @classmethod
    def budget_of(cls, net: Supernet) -> int:
        """Bytes of two dims a value; of methods that choose for pairs, all fields and half of memorizing all pairs."""
        if not net.chooses_pairs:
            return uniform_bytes(net.parent, 2)
        memorized = net.parent.with_choices(["memorize"] * len(net.parent.pairs), net.config.pair_dim)
        return net.parent.embedding_bytes(first_order=net.first_order) + memorized.pair_bytes() // 2

    def test_weights_and_gates_are_disjoint(self, net: Supernet) -> None:
        weights, gates = {id(p) for p in net.weight_parameters()}, {id(p) for p in net.arch_parameters()}
        assert not weights & gates
        assert weights | gates == {id(p) for p in net.parameters()}

    def test_the_budget_holds_and_is_used(self, net: Supernet, found: Architecture) -> None:
        budget = self.budget_of(net)
        spent = cost_of(found).embedding_bytes
        assert spent <= budget
        # What is left is less than the largest block's dim, which no smaller entry filled. Pairs need not be worth it,
        # and a net that prunes, has a price or chooses by loss, or answers with uniform rows, has found that more is no
        # better.
        frugal = hasattr(net.config, "price") or isinstance(net, measured.Supernet)
        assert net.chooses_pairs or net.rounds or frugal or net.answer(budget).notes or spent >= 0.9 * budget

    def test_json_round_trip(self, found: Architecture, tmp_path: Path) -> None:
        found.write(tmp_path / "a.json")
        assert Architecture.read(tmp_path / "a.json") == found

    def test_it_narrows_its_parent(self, net: Supernet, found: Architecture) -> None:
        assert found.narrows(net.parent)

    def test_it_narrows_a_narrow_parent(self, data: Dataset) -> None:
        parent = self.root(data)
        mask = parent.mask()
        mask[:, 5:] = False
        mask[0] = False
        parent = parent.with_mask(mask)
        net = self.searched(data, parent)
        budget = self.budget_of(net) if net.chooses_pairs else uniform_bytes(parent, 1.5)
        assert net.derive(budget).narrows(parent)

    def test_compact_equals_masked_and_cost_equals_count(
        self, net: Supernet, found: Architecture, data: Dataset
    ) -> None:
        if not isinstance(CTRModel(data.schema, found).embedding, MixedEmbedding):
            with pytest.raises(AssertionError, match="no rows of a value's own"):
                net.compact(found)
            return
        if found.built and not isinstance(net.config, SearchConfig):
            assert measure(CTRModel(data.schema, found)) == cost_of(found)  # nothing was trained
            return
        model = net.compact(found).eval()
        net.eval()
        ids = torch.from_numpy(data.ids("valid")[:2000])
        start_rounding(model)
        with torch.no_grad(), net.answering(found):
            assert (model(ids) - net(ids)).abs().max() < 1e-5
        assert measure(pack(model, data.schema)) == cost_of(found)

    def test_deriving_changes_nothing(self, net: Supernet, found: Architecture, data: Dataset) -> None:
        """What is derived does not depend on what was derived or compacted before, and the net stays as it is."""
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        ids = torch.from_numpy(data.ids("valid")[:500])
        with torch.no_grad():
            logits = net.eval()(ids)
        again = net.derive(self.budget_of(net) * 2)
        if isinstance(net.config, SearchConfig):
            net.compact(again)
        assert net.derive(self.budget_of(net)) == found
        with torch.no_grad():
            assert torch.equal(net(ids), logits)
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())

    def test_same_seed_same_answer(self, found: Architecture, data: Dataset) -> None:
        net = self.searched(data)
        assert net.derive(self.budget_of(net)) == found

    def test_without_a_budget_it_answers_or_says_what_it_needs(self, net: Supernet) -> None:
        if net.chooses_pairs or self.needs_no_budget:
            assert net.derive(None).narrows(net.parent)
        else:
            with pytest.raises(SpaceError, match=r"budget\.width"):
                net.derive(None)

    def test_a_budget_that_holds_nothing_is_refused(self, net: Supernet) -> None:
        with pytest.raises(SpaceError, match="budget"):
            net.derive(1)


class BackboneContract:
    """What every backbone must do, with weights drawn at random.

    Attributes:
        options: the `backbone:` section, its layers small.
        dim: of the embeddings, 1 for a backbone without widths.
    """

    options: ClassVar[dict[str, JsonValue]]
    dim: ClassVar[int] = 3

    counts: ClassVar[list[Array]] = [
        np.array(count) for count in ([0, 90, 9, 8, 1], [3, 60, 5], [0, 50, 2, 1], [0, 44, 7])
    ]
    schema: ClassVar[FeatureSchema] = FeatureSchema(
        fields=(
            Field(name="a", cardinality=5),
            Field(name="b", cardinality=3),
            Field(name="c", cardinality=4),
            Field(name="d", cardinality=3),
        ),
        label="y",
    )

    @pytest.fixture
    def net(self) -> Supernet:
        torch.manual_seed(0)
        parent = Architecture.full(self.schema, self.counts, dim=self.dim, blocks=3, cut="equal", backbone=self.options)
        net = Supernet(self.schema, parent, MethodConfig(method="none"), self.counts, 0)
        for module in net.modules():  # batch norms with statistics of their own, and weights away from zero
            if isinstance(module, torch.nn.BatchNorm1d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.5, 2)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.normal_(std=0.5)
        return net

    def ids(self, rows: int = 200) -> torch.Tensor:
        rng = np.random.default_rng(2)
        columns = [rng.integers(0, len(count), rows) for count in self.counts]
        return torch.tensor(np.stack(columns, axis=1), dtype=torch.int32)

    def test_compact_equals_masked_and_cost_equals_count(self, net: Supernet) -> None:
        mask = np.asarray(np.random.default_rng(1).random(net.parent.mask().shape) < 0.6)
        mask[net.parent.field_of_block() == 2] = False  # a whole field goes
        architecture = net.parent_with(mask)
        assert architecture.names == ("a", "b", "d")
        model = net.compact(architecture).eval()
        with torch.no_grad(), net.eval().answering(architecture):
            assert (model(self.ids()) - net(self.ids())).abs().max() < 1e-5
        assert measure(model) == cost_of(architecture)
        own = sum(p.numel() for name, p in model.named_parameters() if name.startswith("backbone."))
        assert own <= sum(p.numel() for p in net.backbone.parameters())

    def test_every_parameter_gets_a_gradient(self, net: Supernet) -> None:
        net.train()(self.ids()).sum().backward()
        assert all(parameter.grad is not None for parameter in net.backbone.parameters())

    def test_rows_do_not_know_of_each_other(self, net: Supernet) -> None:
        ids = self.ids()
        with torch.no_grad():
            whole, part = net.eval()(ids), net(ids[50:60])
        assert torch.allclose(whole[50:60], part, atol=1e-5)

    def test_it_predicts_the_same_when_served(self, net: Supernet) -> None:
        """What a backbone adds to a tower's input layer goes through `Tower.forward`, so that norms can be folded."""
        model, ids = net.compact(net.parent).eval(), self.ids()
        with torch.no_grad():
            assert torch.allclose(folded(model)(ids), model(ids), rtol=1e-4, atol=1e-4)

    def test_unknown_options_are_named(self) -> None:
        with pytest.raises(SpaceError, match=r"backbone\.no_such_option: .*\(options: "):
            base.configure({**self.options, "no_such_option": 1})
