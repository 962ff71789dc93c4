"""iHAS: gates find planted populations, clusters become compact models, and a router finds a row's cluster."""

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from autoembed.architecture import Architecture
from autoembed.budget import uniform_bytes
from autoembed.data.dataset import build_dataset
from autoembed.data.planted import PlantedSpec, planted
from autoembed.data.readers import DataSpec
from autoembed.errors import SpaceError
from autoembed.events import values_of
from autoembed.methods.bilevel import search
from autoembed.methods.ihas import distil
from autoembed.methods.method import configure, load
from autoembed.metrics import evaluate
from autoembed.nn.model import RoutedModel, build_model, cost_of, measure
from autoembed.retraining import retrain
from autoembed.task import CLICKS
from autoembed.training import TrainConfig, fit, predict
from autoembed.trial import check, run_trial

CPU = torch.device("cpu")
SPEC = {"rows": 20_000, "marginal": [10, 100], "xor": [], "low_rank": [], "noise": [10, 100, 1000], "populations": True}
BACKBONE = {"name": "deepfm", "hidden": [16], "dropout": 0.1}
TRAIN = {"epochs": 8, "lr": 2e-3, "l2": 1e-3, "batch_size": 512}


def ignore(values):
    pass


def two_populations(folder, seed=0):
    """A data set whose rows are of two populations, and for each id of `population` which one."""
    spec = {"planted": {**SPEC, "seed": seed}, "split": {"by": "random", "valid": 0.2, "test": 0.2}}
    dataset = build_dataset(DataSpec.model_validate(spec), None, folder)
    _, truth = planted(PlantedSpec(**SPEC, seed=seed))
    table = dataset.vocabulary.table().filter(pl.col("field") == "population").sort("id")
    of_id = np.zeros(int(table["id"].max()) + 1, dtype=int)
    of_id[table["id"]] = table["value"].is_in(truth["populations"]["values_B"]).fill_null(False)
    return dataset, of_id


@pytest.fixture(scope="module")
def populations(tmp_path_factory):
    return two_populations(tmp_path_factory.mktemp("populations"))


def trial(dataset, method, seed=0, stages=None, hidden=16, **options):
    return check(
        {
            "arm": method,
            "stages": [*(stages or []), {"method": method, **options}],
            "embedding": {"dim": 8, "blocks": 4},
            "backbone": {**BACKBONE, "hidden": [hidden]},
            "train": TRAIN,
            "limit": {"width": 1},
            "seed": seed,
        }
    )


def net_of(dataset, method="ihas", parent=None, **options):
    torch.manual_seed(0)
    config = configure({"method": method, "epochs": 2, **options})
    parent = parent or Architecture.full(dataset.schema, dataset.counts, dim=8, blocks=4, backbone=BACKBONE)
    net = load(method).Supernet(dataset.schema, parent, config, dataset.counts, 0)
    notes = {}
    search(net, dataset, TrainConfig(**TRAIN), device=CPU, seed=0, report=lambda event: notes.update(values_of(event)))
    return net, notes


@pytest.fixture(scope="module")
def searched(populations):
    return net_of(populations[0])


@pytest.mark.parametrize("seeds", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_clusters_are_the_populations_and_routing_pays(tmp_path, seeds):
    found = {"ihas": [], "one_cluster": [], "magnitude": []}
    for seed in range(seeds):
        dataset, of_id = two_populations(tmp_path / str(seed), seed)
        for method, aucs in found.items():
            # One model gets a wider tower, so that it has no fewer parameters than two models and their router.
            # Magnitude pruning as published, without what it has learned from nested bases since.
            plain = {"basis": "plain", "returns": "flat", "retrain": "inherit"} if method == "magnitude" else {}
            result, model = run_trial(
                trial(dataset, method, seed, hidden=16 if method == "ihas" else 96, **plain), dataset, ignore
            )
            aucs.append(evaluate(dataset.labels("test"), predict(model, dataset, "test", CPU)).auc)
            if method == "ihas":
                ids, parameters = torch.from_numpy(dataset.ids("test")), result.cost.parameters
                truth = of_id[ids[:, dataset.schema.index("population")].numpy()]
                assert adjusted_rand_score(truth, model.router(ids).numpy()) >= 0.8
            else:
                assert result.cost.parameters >= parameters
    means = {method: np.mean(aucs) for method, aucs in found.items()}
    assert means["ihas"] > means["one_cluster"] + 0.01
    assert means["ihas"] > means["magnitude"]


def test_gates_close_what_a_population_does_not_need(searched):
    net, notes = searched
    assert notes["search_clusters"] == 2
    assert notes["search_router_agreement"] > 0.95
    field = [net.parent.names[number] for number in net.parent.field_of_block()]
    share = {
        side: net.kept[:, [name.startswith(f"{side}_") for name in field]].mean(axis=(1, 2)) for side in ("a", "b")
    }
    assert (share["a"].argmax(), share["b"].argmax()) in ((0, 1), (1, 0))
    assert abs(share["a"][0] - share["a"][1]) > 0.2 < abs(share["b"][0] - share["b"][1])


def test_the_regulariser_by_hand(searched):
    net, _ = searched
    net.pi = torch.tensor([[[0.5, 0.5]], [[1.0, 0.0]]])
    each = [0.5, 0.5, 1 - 0.5, 0 - 0.5]  # t * pi - |pi - mean(pi)|, where t is 1
    assert net.penalty().item() == pytest.approx(net.config.polarise * np.mean(each))


def test_draws_follow_pi_and_pass_gradients_on(searched):
    net, _ = searched
    logits = torch.full((200, 10, 8), 0.8, requires_grad=True)
    torch.manual_seed(0)
    gates = net.draw(logits)
    assert set(gates.unique().tolist()) == {0.0, 1.0}
    assert gates.mean().item() == pytest.approx(torch.sigmoid(torch.tensor(0.8)).item(), abs=0.02)
    gates.sum().backward()
    assert (logits.grad > 0).any()


@pytest.mark.parametrize("cluster_on", ["mask", "masked", "embedding"])
def test_the_centroid_router_is_the_search_s_own(populations, cluster_on):
    net, _ = net_of(populations[0], router="centroid", cluster_on=cluster_on, epochs=1)
    with pytest.raises(SpaceError, match=r"must hold the router's \d+ bytes"):
        net.derive(uniform_bytes(net.parent, 1))
    architecture = net.derive(None)
    model = net.compact(architecture).eval()
    ids = torch.from_numpy(populations[0].ids("valid"))
    with torch.no_grad(), net.eval().answering(architecture):
        assert (model(ids) - net(ids)).abs().max() < 1e-5
    rows = sum(field.cardinality for field in net.parent.fields)
    dense = net.map.weight.numel() + net.map.bias.numel() if cluster_on != "embedding" else 0
    held = sum(parameter.numel() for parameter in model.router.parameters())
    assert held == rows * 8 + dense + 2 * len(net.parent.fields) * 8
    assert measure(model) == cost_of(architecture)
    assert measure(model).bytes > 4 * held


def test_a_distilled_router_is_counted_and_small(searched):
    net, _ = searched
    budget = uniform_bytes(net.parent, 1)
    architecture = net.derive(budget)
    model = net.compact(architecture)
    tables = sum(table.numel() for table in model.router.tables())
    assert 0 < tables < 100
    clusters = sum(part.embedding_bytes(first_order=True) for part in architecture.clusters)
    assert cost_of(architecture).embedding_bytes == clusters + 4 * tables <= budget


def test_small_clusters_join_and_one_that_is_left_needs_no_router(populations):
    net, notes = net_of(populations[0], clusters=4, min_share=0.3, epochs=1)
    assert notes["search_clusters"] < 4
    assert notes["search_smallest_share"] >= 0.3
    assert net.notes == [
        f"{notes['search_clusters']:.0f} of clusters=4 are left: the others had less than min_share=0.3 of the rows"
    ]
    net, notes = net_of(populations[0], clusters=6, min_share=0.499, cluster_on="embedding", epochs=1, router_fields=1)
    assert notes["search_clusters"] == notes["search_smallest_share"] == 1
    assert not net.derive(None).clusters


def test_distillation_reads_the_field_that_tells(populations):
    dataset, of_id = populations
    ids = torch.from_numpy(dataset.ids("train"))
    cluster = torch.from_numpy(of_id[ids[:, dataset.schema.index("population")].numpy()])
    router = distil(dataset.schema, dataset.schema.names, ids, cluster, 2, configure({"method": "ihas"}))
    assert [field.name for field in router.plan.fields] == ["population"]
    assert (router(ids) == cluster).float().mean() > 0.99


def test_gates_that_collapsed_are_told(populations):
    net, notes = net_of(populations[0], polarise=100.0, sparsity=3.0, epochs=1, min_share=0.0)
    assert notes["search_masks_distinct"] == 0
    assert "the gates collapsed" in net.notes[-1]


def test_random_clusters_depend_on_ids_alone(populations):
    net, _ = net_of(populations[0], "random_clusters", epochs=0, clusters=3)
    ids = torch.from_numpy(populations[0].ids("train"))
    cluster = net.router(ids)
    share = torch.bincount(cluster) / len(ids)
    assert share.tolist() == pytest.approx([1 / 3] * 3, abs=0.05)
    order = torch.randperm(len(ids))
    assert torch.equal(net.router(ids[order]), cluster[order])


def test_dnis_then_ihas_narrows(populations):
    dataset = populations[0]
    stages = [{"method": "dnis", "epochs": 1, "warm_epochs": 1, "threshold": 0.005}]
    result, model = run_trial(trial(dataset, "ihas", stages=stages, epochs=1), dataset, ignore)
    net, _ = net_of(dataset, "dnis", epochs=1, warm_epochs=1, threshold=0.005)
    assert result.architecture.narrows(net.parent)
    assert isinstance(model, RoutedModel)
    with pytest.raises(SpaceError, match="cannot narrow clusters"):
        load("ihas").Supernet(dataset.schema, result.architecture, configure({"method": "ihas"}), dataset.counts, 0)


def test_fresh_weights_keep_the_router(populations, searched):
    net, _ = searched
    architecture = net.derive(uniform_bytes(net.parent, 1))
    train = TrainConfig(epochs=1, batch_size=512)
    model, _ = retrain(architecture, populations[0], train, CPU, 1, ignore, router=net.router)
    for name, tensor in net.router.state_dict().items():
        assert torch.equal(model.router.state_dict()[name], tensor)


def test_calibration_keeps_the_order_within_a_cluster(populations, searched):
    dataset, (net, _) = populations[0], searched
    ids = torch.from_numpy(dataset.ids("valid"))
    architecture = net.derive(uniform_bytes(net.parent, 1))
    plan = architecture.router.model_copy(update={"calibrate": True})
    calibrated = architecture.replace(router=plan)
    train = TrainConfig(epochs=2, batch_size=512)
    plain, before = retrain(architecture, dataset, train, CPU, 0, ignore, router=net.router)
    model, after = retrain(calibrated, dataset, train, CPU, 0, ignore, router=net.router)
    assert after.valid.logloss < before.valid.logloss
    with torch.no_grad():
        logits, own, cluster = model(ids), plain(ids), model.router(ids)
    scale, shift = model.calibration
    assert torch.allclose(logits, own * scale[cluster] + shift[cluster], atol=1e-4)
    assert measure(model) == cost_of(calibrated)


def test_a_single_row_of_a_cluster_trains(populations, searched):
    net, _ = searched
    model = build_model(populations[0].schema, net.derive(uniform_bytes(net.parent, 1)))
    model.router.load_state_dict(net.router.state_dict())
    ids = torch.from_numpy(populations[0].ids("train"))
    cluster = model.router(ids)
    rows = torch.cat([torch.nonzero(cluster == 0)[:1, 0], torch.nonzero(cluster == 1)[:5, 0]])
    CLICKS.loss(model.train()(ids[rows]), torch.ones(6)).backward()
    assert all(part.embedding.tables[0].weight.grad is not None for part in model.models)


def test_an_ensemble_trains_members_apart_and_averages(populations):
    config = configure({"method": "ensemble", "warm_epochs": 1})
    parent = Architecture.full(
        populations[0].schema, populations[0].counts, dim=8, blocks=4, backbone={**BACKBONE, "dropout": 0.0}
    )
    net = load("ensemble").Supernet(populations[0].schema, parent, config, populations[0].counts, 0)
    architecture = net.derive(uniform_bytes(parent, 2))
    model = build_model(populations[0].schema, architecture)
    fit(model, populations[0], TrainConfig(epochs=1, batch_size=512), device=CPU, seed=0, report=ignore)
    ids = torch.from_numpy(populations[0].ids("valid"))
    with torch.no_grad():
        members = torch.stack([part(ids) for part in model.eval().models])
        assert torch.allclose(model(ids), members.mean(0))
        assert (members[0] - members[1]).abs().max() > 0.01
        assert model.train()(ids).shape == (len(ids), 2)
    assert cost_of(architecture).embedding_bytes <= uniform_bytes(parent, 2)
