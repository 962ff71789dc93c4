"""What must hold on a CUDA device as on the CPU. Skipped where there is none."""

import numpy as np
import polars as pl
import pytest
import torch

import autoembed as ae
from autoembed.architecture import Architecture
from autoembed.bundle import load_bundle, write_bundle
from autoembed.data.dataset import build_dataset
from autoembed.data.planted import PlantedSpec
from autoembed.data.planted import planted as drawn
from autoembed.data.spec import DataSpec
from autoembed.errors import SpaceError, TrialError
from autoembed.methods.method import load, names
from autoembed.nn.backbones import base
from autoembed.nn.model import CTRModel, cost_of, measure
from autoembed.pairwise import pairs
from autoembed.refreshing import refresh
from autoembed.training import TrainConfig, fit, predict
from autoembed.trial import Limit, check, run_limits, run_trial
from tests.methods import test_kinds as kinds
from tests.test_refresh import logs

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
OPTIONS = {
    "dnis": {"warm_epochs": 1, "epochs": 1},
    "ihas": {"warm_epochs": 1, "epochs": 1},
    "optinter": {"epochs": 1, "pair_dim": 2},
}


def config(*stages, device="cuda", **changes):
    return check(
        {
            "arm": "x",
            "stages": list(stages),
            "embedding": {"dim": 6, "blocks": 4},
            "backbone": {"name": "deepfm", "hidden": [16], "dropout": 0.0},
            "train": {"epochs": 2, "lr": 3e-3, "batch_size": 512},
            "limit": {"width": 3},
            "device": device,
            **changes,
        }
    )


def run(dataset, *stages, **changes):
    return run_trial(config(*stages, **changes), dataset, lambda values: None)


def test_pairs_of_rows_have_the_loss_that_they_have_on_the_cpu():
    rng, found = np.random.default_rng(0), []
    rows = rng.random(500) < 0.3, rng.integers(-1, 40, 500), rng.random(500), rng.normal(size=500)
    for device in (CPU, CUDA):
        labels, groups, weights, logits = (torch.tensor(part, device=device) for part in rows)
        clicks, others, counts = pairs(labels.double(), groups, weights, generator=torch.Generator(device))
        found.append((torch.nn.functional.softplus(logits[others] - logits[clicks]) * counts).sum().item())
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def trained(dataset, options=None, **recipe):
    torch.manual_seed(0)
    root = Architecture.full(
        dataset.schema, dataset.counts, dim=6, blocks=4, backbone=options or {"name": "deepfm", "hidden": [32]}
    )
    model = CTRModel(dataset.schema, root).to(CUDA)
    train = TrainConfig(**{"epochs": 2, "lr": 3e-3, "batch_size": 512} | recipe)
    return model, fit(model, dataset, train, device=CUDA, seed=0, report=lambda values: None)


@pytest.mark.parametrize("method", names())
def test_every_method_searches_and_retrains(planted_pairs, method):
    stage = {"method": method, **OPTIONS.get(method, {})}
    limit = {"width": 8 if load(method).Supernet.chooses_pairs else 3}
    result, model = run(planted_pairs, stage, limit=limit)
    assert all(weight.is_cuda for weight in model.parameters())
    assert all(buffer.is_cuda for buffer in model.buffers())
    on_cpu, _ = run(planted_pairs, stage, limit=limit, device="cpu")
    assert result.valid.auc == pytest.approx(on_cpu.valid.auc, abs=0.05)
    assert result.cost.bytes <= 1.1 * on_cpu.cost.bytes
    assert result.latency_ms > 0


def test_stages_carry_weights_on(planted_pairs):
    stages = [{**OPTIONS["dnis"], "method": "dnis", "width": 4}, {**OPTIONS["optinter"], "method": "optinter"}]
    result, model = run(planted_pairs, *stages, {**OPTIONS["ihas"], "method": "ihas"}, limit={"width": 8})
    assert all(weight.is_cuda for weight in model.parameters())
    assert result.valid.auc > 0.55


@pytest.mark.parametrize("name", base.names())
def test_every_backbone_predicts_what_it_does_on_the_cpu(planted, name):
    hidden = {} if name in ("lr", "fm") else {"hidden": [32]}
    root = Architecture.full(
        planted.schema, planted.counts, dim=1 if name == "lr" else 6, blocks=4, backbone={"name": name, **hidden}
    )
    torch.manual_seed(0)
    model = CTRModel(planted.schema, root).to(CUDA)
    fit(model, planted, TrainConfig(epochs=1, batch_size=512), device=CUDA, seed=0, report=lambda values: None)
    there = predict(model, planted, "valid", CUDA)
    here = predict(model.to(CPU), planted, "valid", CPU)
    assert np.abs(there - here).max() < 2e-3  # TF32 is off, but sums are taken in another order
    assert np.abs(there - here).mean() < 1e-5


@pytest.mark.parametrize("share", ["all", "tables", "none"])
@pytest.mark.parametrize("bits", [32, 2])
def test_an_ensemble_predicts_what_it_does_on_the_cpu(planted, share, bits):
    stage = {"method": "uniform", "bits": bits}
    result, model = run(planted, stage, ensemble={"members": 4, "share": share}, limit={"width": 8})
    assert all(tensor.is_cuda for tensor in [*model.parameters(), *model.buffers()])
    there = predict(model, planted, "valid", CUDA)
    here = predict(model.to(CPU), planted, "valid", CPU)
    assert np.abs(there - here).max() < 2e-3
    assert result.latency_ms > 0


@pytest.mark.parametrize("bits", [16, 8])
def test_a_tower_of_searched_widths_is_served_in_few_bits(planted, bits):
    stage = {"method": "magnitude", "warm_epochs": 1}
    tower = {"bits": bits, "units": "search"}
    result, model = run(planted, stage, tower=tower, limit={"bytes": 14_000})
    assert result.cost.bytes <= 14_000
    there = predict(model, planted, "valid", CUDA)
    here = predict(model.to(CPU), planted, "valid", CPU)
    assert np.abs(there - here).max() < 2e-3


def as_on_the_cpu(dataset, trial):
    """Runs a trial on the device; whether all of its model is there and predicts what it does on the CPU."""
    result, model = run_trial(trial, dataset, lambda values: None)
    assert all(tensor.is_cuda for tensor in [*model.parameters(), *model.buffers()])
    assert cost_of(result.architecture) == measure(model) == result.cost
    there = predict(model, dataset, "valid", CUDA)
    here = predict(model.to(CPU), dataset, "valid", CPU)
    assert np.isfinite(there).all()
    assert np.abs(there - here).max() < 2e-3


@pytest.mark.parametrize("backbone", ["deepfm", "dnn", "dcn", "pnn", "autoint", "finalmlp"])
@pytest.mark.parametrize("kind", kinds.SOME)
def test_every_kind_under_backbones(planted_pairs, kind, backbone):
    limit = {"bytes": 60_000} if "units" in kind else None
    if reason := kinds.refused_by_backbone(kind, backbone):
        with pytest.raises(SpaceError, match=reason):
            kinds.config(kind, backbone=backbone, device="cuda")
        return
    as_on_the_cpu(planted_pairs, kinds.config(kind, backbone=backbone, device="cuda", limit=limit))


@pytest.mark.parametrize("kind", [kind for kind in kinds.KINDS if kind not in kinds.SOME])
def test_further_kinds(planted_pairs, kind):
    as_on_the_cpu(planted_pairs, kinds.config(kind, device="cuda"))


@pytest.mark.parametrize("company", kinds.COMPANY)
@pytest.mark.parametrize("kind", kinds.SOME)
def test_every_kind_beside_clusters_and_pairs(planted_pairs, kind, company):
    def run():
        limit = {"bytes": 400_000} if "units" in kind else {"width": 16}
        as_on_the_cpu(planted_pairs, kinds.config(kind, *kinds.COMPANY[company], device="cuda", limit=limit))

    if reason := kinds.refused_in_company(kind, company):
        with pytest.raises(SpaceError, match=reason):
            run()
        return
    run()


@pytest.mark.parametrize("recipe", [{"precision": "bfloat16"}, {"sparse": True}, {"l2": 1e-4, "clip": 1.0}], ids=str)
def test_recipes(planted, recipe):
    plain, other = trained(planted)[1], trained(planted, **recipe)[1]
    assert other.valid.auc == pytest.approx(plain.valid.auc, abs=0.03)


def test_a_compiled_model_is_the_same(planted):
    plain, other = trained(planted)[1], trained(planted, compile=True)[1]
    assert other.valid.auc == pytest.approx(plain.valid.auc, abs=0.01)


def test_one_search_gives_several_sizes(planted):
    limits = [Limit(width=1), Limit(width=3), Limit(bytes=20_000)]
    found = run_limits(config({"method": "dnis", **OPTIONS["dnis"]}), limits, planted, lambda values: None)
    sizes = [result.cost.parameters for result, _ in found]
    assert sizes[0] < sizes[1]
    assert found[2][0].cost.bytes <= 20_000


def test_a_bundle_predicts_on_either_device(planted, tmp_path):
    result, model = run(planted, {"method": "magnitude", "warm_epochs": 1})
    path = write_bundle(
        tmp_path / "bundle",
        schema=planted.schema,
        vocabulary=planted.vocabulary,
        architecture=result.architecture,
        model=model,
        data={},
        metrics={},
        provenance={},
    )
    rows = pl.concat([load_bundle(path).example()] * 3)
    there = load_bundle(path).predict(rows, device="cuda")
    assert there == pytest.approx(load_bundle(path).predict(rows, device="cpu"), abs=1e-4)


def test_memory_that_runs_out_ends_the_trial_and_not_the_process(planted):
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_per_process_memory_fraction((before + 64 * 2**20) / total)
    try:
        with pytest.raises(TrialError, match=r"memory ran out .*lower embedding\.dim=4096, train\.batch_size=512"):
            run(planted, {"method": "dnis", **OPTIONS["dnis"]}, embedding={"dim": 4096, "blocks": 4})
        assert torch.cuda.memory_allocated() <= before + 2**20  # nothing of it is held
        result, _ = run(planted, {"method": "dnis", **OPTIONS["dnis"]})
        assert result.valid.auc > 0.55
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """Rows with a list column, an item, and the items before it, which share its table."""
    folder = tmp_path_factory.mktemp("lists")
    spec = PlantedSpec(rows=6000, seed=1, marginal=[10], noise=[20], multi=[30], multi_effect=2.0)
    rng = np.random.default_rng(0)
    items = rng.geometric(0.08, 6000)
    history = [items[max(0, at - size) : at].tolist() for at, size in enumerate(rng.integers(0, 5, 6000))]
    table = drawn(spec)[0].drop("logit").with_columns(item=pl.Series(items), history=pl.Series(history))
    table.write_parquet(folder / "t.parquet")
    data = DataSpec.model_validate({"multi": {"history": {"shared": "item", "max_length": 4}}})
    return build_dataset(data, folder / "t.parquet", folder / "cache")


@pytest.mark.parametrize("pool", ["sum", "mean", "max"])
@pytest.mark.parametrize("method", ["uniform", "sensitivity", "ihas"])
def test_lists_are_pooled_as_on_the_cpu(lists, method, pool):
    stage = {"method": method} | ({} if method == "uniform" else {"warm_epochs": 1})
    embedding = {"dim": 6, "blocks": 4, "pool": pool}
    as_on_the_cpu(lists, config(stage | ({"epochs": 1} if method == "ihas" else {}), embedding=embedding))


@pytest.mark.parametrize("vocabulary", ["keep", "grow", "rebuild"])
def test_a_model_is_refreshed_as_on_the_cpu(tmp_path, vocabulary):
    for day in range(2):
        logs(day, 6000).write_parquet(tmp_path / f"{day}.parquet")
    recipe = {"epochs": 4, "lr": 5e-3, "batch_size": 512}
    stages = [{"method": "frequency"}]
    model = ae.AutoEmbedClassifier(stages=stages, budget={"width": 3}, train=recipe, random_state=0, device="cuda")
    model.fit(logs(0, 6000)).export(tmp_path / "bundle")
    found = {
        device: refresh(
            tmp_path / "bundle", tmp_path / "1.parquet", tmp_path / device, vocabulary=vocabulary, device=device
        )
        for device in ("cuda", "cpu")
    }
    assert found["cuda"].before.auc == pytest.approx(found["cpu"].before.auc, abs=1e-4)
    assert found["cuda"].after.auc == pytest.approx(found["cpu"].after.auc, abs=0.03)


@pytest.mark.parametrize("teacher", ["search", {"ensemble": 2}], ids=str)
def test_a_model_is_taught(planted, teacher):
    train = {"epochs": 2, "lr": 3e-3, "batch_size": 512, "distill": {"teacher": teacher, "weight": 0.5}}
    as_on_the_cpu(planted, config({"method": "magnitude", "warm_epochs": 1}, train=train))


@pytest.mark.parametrize("method", ["uniform", "sensitivity", "dnis"])
def test_rows_of_weight_in_groups_train_as_on_the_cpu(tmp_path, method):
    table = drawn(PlantedSpec(rows=6000, seed=1, marginal=[10, 40], noise=[20]))[0].drop("logit")
    rng = np.random.default_rng(0)
    table = table.with_columns(weight=pl.Series(rng.integers(1, 4, 6000)), user=pl.Series(rng.integers(0, 50, 6000)))
    table.write_parquet(tmp_path / "t.parquet")
    data = build_dataset(DataSpec(weight="weight", group="user"), tmp_path / "t.parquet", tmp_path / "cache")
    stage = {"method": method} | OPTIONS.get(method, {} if method == "uniform" else {"warm_epochs": 1})
    as_on_the_cpu(data, config(stage))
