"""Ensembles of what a search has found: from a search space to a bundle, within a limit on bytes."""

import copy

import numpy as np
import pytest
import torch

from autoembed.budget import Limit
from autoembed.bundle import load_bundle, write_bundle
from autoembed.errors import SpaceError
from autoembed.methods import members
from autoembed.methods.method import names
from autoembed.nn.model import measure
from autoembed.plans import Ensemble
from autoembed.space import SearchSpace
from autoembed.training import predict
from autoembed.trial import check, run_limits, run_trial

CPU = torch.device("cpu")


def config(ensemble=None, **changes):
    node = {
        "arm": "x",
        "stages": [{"method": "uniform"}],
        "embedding": {"dim": 6, "blocks": 3},
        "backbone": {"name": "deepfm", "hidden": [8], "dropout": 0.0},
        "train": {"epochs": 2, "lr": 3e-3, "batch_size": 512},
        "limit": {"width": 2},
        "device": "cpu",
    }
    return check(node | ({} if ensemble is None else {"ensemble": ensemble}) | changes)


def ignore(values):
    pass


def test_one_member_is_the_plain_model(planted):
    plain, _ = run_trial(config(), planted, ignore)
    one, _ = run_trial(config({"members": 1, "share": "none"}), planted, ignore)
    assert one.architecture == plain.architecture
    assert one.valid == plain.valid
    assert one.architecture.ensemble is None


@pytest.mark.parametrize("share", ["all", "tables", "none"])
@pytest.mark.parametrize("bits", [32, pytest.param(4, marks=pytest.mark.slow)])
def test_a_limit_on_bytes_holds_the_whole_ensemble(planted, share, bits):
    stage = {"method": "magnitude", "warm_epochs": 1, "bits": bits}
    limits = [Limit(bytes=16_000), Limit(bytes=30_000), Limit(embedding_bytes=9_000)]
    trial = config({"members": 3, "share": share}, stages=[stage])
    (small, model), (large, _), (tables, _) = run_limits(trial, limits, planted, ignore)
    assert measure(model) == small.cost
    assert small.cost.bytes <= 16_000 < large.cost.bytes <= 30_000
    assert tables.cost.embedding_bytes <= 9_000
    assert small.cost.embedding_bytes < large.cost.embedding_bytes
    assert members.single(small.architecture).ensemble is None
    assert (small.architecture.ensemble is None) == (share == "none")


@pytest.mark.parametrize("share", ["all", "tables", "none"])
def test_retraining_starts_from_the_searchs_tables(planted, share, monkeypatch):
    seen = []
    compact = members.compact

    def watch(net, architecture):
        plain = net.compact(members.single(architecture))
        model = compact(net, architecture)
        seen.append((plain, copy.deepcopy(model)))
        return model

    monkeypatch.setattr(members, "compact", watch)
    stage = {"method": "magnitude", "warm_epochs": 1, "retrain": "inherit"}
    result, _ = run_trial(config({"members": 2, "share": share}, stages=[stage]), planted, ignore)
    ((plain, model),) = seen
    for one in model.models if share == "none" else [model]:
        for own, theirs in zip(one.embedding_weights(), plain.embedding_weights(), strict=True):
            assert torch.equal(own, theirs)
    ids = torch.from_numpy(planted.ids("valid")[:500])
    with torch.no_grad():
        logits = model.train()(ids)
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 1e-3  # members do not start alike
    assert result.valid.auc > 0.55


def test_an_ensembles_bundle_teaches_a_single_model(planted, tmp_path):
    result, model = run_trial(config({"members": 4}, limit={}), planted, ignore)
    path = write_bundle(
        tmp_path / "teacher",
        schema=planted.schema,
        vocabulary=planted.vocabulary,
        architecture=result.architecture,
        model=model,
        data={},
        metrics={},
        provenance={},
    )
    logits = {"teacher": predict(load_bundle(path).model, planted, "test", CPU)}
    for weight in (0.0, 1.0):
        train = {"epochs": 3, "lr": 3e-3, "batch_size": 256, "distill": {"teacher": str(path), "weight": weight}}
        student, own = run_trial(config(train=train), planted, ignore)
        assert student.architecture.ensemble is None
        logits[weight] = predict(own, planted, "test", CPU)
    gap = {weight: np.abs(logits[weight] - logits["teacher"]).mean() for weight in (0.0, 1.0)}
    assert gap[1.0] < 0.8 * gap[0.0]


def test_ranges_stand_in_a_search_space(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "stages: [{method: uniform}]\nensemble: {members: {choice: [1, 4]}, share: {choice: [all, tables]}}\n"
        "variants: {a: {}, b: {ensemble: {members: 2}}}\nbudget: {width: 2}\n"
    )
    space = SearchSpace.read(path)
    assert {*space.ranges("uniform@a")} == {"ensemble.members", "ensemble.share"}
    assert {*space.ranges("uniform@b")} == {"ensemble.share"}
    found = space.config("uniform@a", {"ensemble.members": 4, "ensemble.share": "tables"})
    assert found.ensemble == Ensemble(members=4, share="tables")
    path.write_text("stages: [{method: ihas}]\nensemble: {members: {choice: [1, 4]}}\n")
    with pytest.raises(SpaceError, match=r"ihas makes a model for each cluster, so ensemble.members must be 1"):
        SearchSpace.read(path)
    path.write_text("stages: [{method: uniform}]\nensemble: {member: 4}\n")
    with pytest.raises(SpaceError, match=r"ensemble\.member"):
        SearchSpace.read(path)


@pytest.mark.parametrize("method", names())
def test_every_method_that_finds_one_architecture_takes_an_ensemble(method):
    stage = {"method": method}
    if method in ("ihas", "random_clusters", "embedding_clusters", "ensemble"):
        with pytest.raises(SpaceError, match="must be 1"):
            config({"members": 2}, stages=[stage])
    else:
        assert config({"members": 2}, stages=[stage]).ensemble.members == 2
