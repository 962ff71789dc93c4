"""Every kind of storage, bits, ensemble, tower and method under every backbone, and beside clusters and pairs.

A kind is what it changes of a trial. It ends in a model that costs what its architecture says and is the same once
stored and loaded, or it is refused with a reason that is listed here.
"""

import copy

import pytest
import torch

from autoembed import trial
from autoembed.bundle import load_bundle, write_bundle
from autoembed.data.crosses import CrossSpec
from autoembed.data.dataset import build_dataset
from autoembed.data.spec import DataSpec
from autoembed.errors import SpaceError
from autoembed.export.serving import ServingModel
from autoembed.nn.backbones import base
from autoembed.nn.model import cost_of, measure
from autoembed.trial import check, run_trial

FEW = [f"{bits} bits, {step}" for bits in (8, 4, 3, 2, 1) for step in ("row", "block", "dim")]


def of_bits(bits, step="row"):
    return {"embedding": {"bits": bits, "step": step}}


def single(bits, step):
    return {"stage": {"method": "magnitude", "warm_epochs": 1, "granularity": "entry"}, **of_bits(bits, step)}


def members(share):
    return {"ensemble": {"members": 2, "share": share}, "limit": {"width": 4}}


def projected(bits):
    return {"stage": {"method": "magnitude", "warm_epochs": 1}, "embedding": {"bits": bits, "narrow": "projected"}}


def split(bits, step, **options):
    return {"stage": {"method": "quotient_remainder", "split_above": 5, **options}, **of_bits(bits, step)}


SPLIT = [(32, "row"), (16, "row"), (8, "block"), (4, "row"), (3, "dim"), (2, "row"), (1, "row")]
WIDTHS = {"stage": {"method": "magnitude", "warm_epochs": 1}, "limit": {"bytes": 30_000}}
KINDS = {
    "16 bits": of_bits(16),
    **{name: of_bits(int(name.split()[0]), name.split()[-1]) for name in FEW},
    "sparse, 32 bits": single(32, "row"),
    "sparse, 16 bits": single(16, "row"),
    "sparse, 8 bits": single(8, "row"),
    "sparse, 4 bits": single(4, "block"),
    "sparse, 3 bits": single(3, "dim"),
    "sparse, 2 bits": single(2, "row"),
    **{f"shared, {bits} bits": {"stage": {"method": "unified"}, **of_bits(bits)} for bits in (16, 8, 4, 3, 2, 1)},
    **{f"split, {bits} bits": split(bits, step) for bits, step in SPLIT},
    "split sums, 32 bits": split(32, "row", combine="add"),
    **{f"split ensemble of {share}": {**split(4, "row"), **members(share)} for share in ("all", "none")},
    **{f"ensemble of {share}": members(share) for share in ("all", "tables", "none")},
    **{f"ensemble of {share}, 2 bits": {**members(share), **of_bits(2)} for share in ("all", "tables", "none")},
    **{f"projected, {bits} bits": projected(bits) for bits in (32, 8, 3)},
    "projected ensemble of all": {**projected(4), "ensemble": {"members": 2, "share": "all"}},
    "projected ensemble of none": {**projected(32), **members("none")},
    "projected, tower of searched units": {**projected(32), "tower": {"units": "search"}, "limit": {"bytes": 30_000}},
    "tower of 8 bits": {"tower": {"bits": 8}},
    "tower of 16 bits": {"tower": {"bits": 16}},
    "tower of searched units": {"tower": {"units": "search"}, **WIDTHS},
    "tower of both": {"tower": {"bits": 8, "units": "search"}, **WIDTHS},
    "dnis_bits": {"stage": {"method": "dnis_bits", "warm_epochs": 1, "epochs": 1, "price": 0}},
    "select": {"stage": {"method": "select", "warm_epochs": 1, "rounds": 1}},
}
# One of each sort for the default run; every kind is in the slow one.
SOME = ["16 bits", "8 bits, row", "3 bits, dim", "1 bits, block", "sparse, 3 bits", "shared, 4 bits", "ensemble of all"]
SOME += [
    "split, 32 bits",
    "split, 3 bits",
    "projected, 3 bits",
    "ensemble of tables",
    "ensemble of none",
    "tower of 8 bits",
    "tower of searched units",
    "dnis_bits",
    "select",
]

# At random, so that there are two whatever so few rows teach the gates.
IHAS = {"method": "ihas", "warm_epochs": 1, "epochs": 1, "cluster_on": "random"}
OPTINTER = {"method": "optinter", "epochs": 1, "pair_dim": 2}
DNIS = {"method": "dnis", "warm_epochs": 1, "epochs": 1, "width": 3, "guard": "none"}
# What stands before and after the stage of a kind; where the kind has none, the others follow one another.
COMPANY = {
    "clusters": ([], [IHAS]),
    "pairs after": ([], [OPTINTER]),
    "pairs before": ([OPTINTER], []),
    "chain": ([], [DNIS, OPTINTER]),
}


def refused_by_backbone(kind, backbone):
    """Why a kind makes no sense under a backbone, or None."""
    if "units" in kind and backbone in MANY_TOWERS:
        return r"tower\.units: search needs a backbone with one tower"
    if kind == "tower of both" and backbone in MANY_TOWERS:
        return r"tower\.units: search needs a backbone with one tower"
    if kind.startswith("tower") and backbone in ("lr", "fm"):
        return r"tower\.bits: (8|16) needs a backbone with linear layers"
    if kind.startswith("shared") and backbone == "lr":
        return r"embedding\.dim must be a multiple of unified's lookups=2"
    return None


MANY_TOWERS = ("lr", "fm", "masknet", "finalmlp")


def refused_in_company(kind, company):
    """Why a kind does not go with clusters or pairs, or None."""
    last = company == "pairs before"
    if kind.startswith("sparse") and not last:
        return r"cannot narrow single entries: make granularity: entry the last"
    if kind.startswith("shared"):
        if last:
            return r"unified has no rows for pairs: leave it out of a chain that memorizes or factorizes any"
        return r"cannot narrow a shared table: make unified the last stage"
    if kind.startswith("1 bits") and company == "chain":
        return r"dnis's precisions must hold one of at most 1 bits"
    if "ensemble" in kind and company == "clusters":
        return r"ihas makes a model for each cluster, so ensemble\.members must be 1"
    if kind.startswith("split") and not last:
        return r"cannot narrow tables of remainders and quotients: make quotient_remainder the last stage"
    return None


def config(kind, before=(), after=(), backbone="deepfm", device="cpu", limit=None):
    """A trial of a kind, between other stages, within a limit that suits the tiny data here."""
    changes = KINDS[kind]
    own = [changes["stage"]] if "stage" in changes else []
    if after and own:
        own[0] = {**own[0], "width": 3}
    options = base.find(backbone).Config.model_fields
    hidden = {name: [8] for name in ("hidden", "hidden2") if name in options}
    hidden |= {"head_units": 8} if backbone == "autoint" else {}
    beside = {"parameters": 4000} if before or after else {}  # the fields and pairs of two members
    small = {"width": 1 if backbone == "lr" else 2} | changes.get("limit", {})
    node = {
        "arm": "x",
        "stages": [*before, *own, *after] or [{"method": "uniform"}],
        "embedding": {"dim": 1 if backbone == "lr" else 4, "blocks": 2, **changes.get("embedding", {})},
        "backbone": {"name": backbone, **hidden},
        "train": {"epochs": 1, "batch_size": 500, "lr": 1e-2},
        "limit": limit or small | beside,
        "device": device,
    }
    return check(node | {name: changes[name] for name in ("ensemble", "tower") if name in changes})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    planted = {"rows": 2000, "seed": 1, "marginal": [4, 30], "xor": [3], "noise": [50]}
    spec = {"planted": planted, "split": {"by": "random", "valid": 0.25, "test": 0.25}}
    dataset = build_dataset(DataSpec.model_validate(spec), None, tmp_path_factory.mktemp("tiny"))
    pairs = [("xor_0_a", "xor_0_b"), ("marginal_0", "noise_0")]
    return dataset.cross(pairs, CrossSpec(min_count=2), tmp_path_factory.mktemp("crossed"), candidates=True)


@pytest.fixture
def holds(tiny, tmp_path, monkeypatch):
    """Runs a trial and checks what every one must hold: (result, model)."""
    offer = trial.offer

    def twice(net, *args):
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        first, again = offer(net, *args), offer(net, *args)
        assert [one.architecture for one in first.candidates] == [one.architecture for one in again.candidates]
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
        return first

    monkeypatch.setattr(trial, "offer", twice)

    def run(made):
        result, model = run_trial(made, tiny, lambda values: None)
        assert result.cost == cost_of(result.architecture) == measure(model)
        assert 0 < result.valid.logloss < 2
        bundle = load_bundle(
            write_bundle(
                tmp_path / "bundle",
                schema=tiny.schema,
                vocabulary=tiny.vocabulary,
                architecture=result.architecture,
                model=model,
                data={},
                metrics={},
                provenance={},
            )
        )
        ids = torch.from_numpy(tiny.ids("valid"))
        own = ids[:, [tiny.schema.index(name) for name in bundle.schema.names]]
        with torch.no_grad():
            logits, loaded = model.eval()(ids), bundle.model(own)
            served = ServingModel(copy.deepcopy(bundle.model))(own.long())
        assert torch.isfinite(logits).all()
        assert (logits - loaded).abs().max() <= 1e-6
        assert (torch.sigmoid(loaded) - served).abs().max() <= 1e-6
        assert measure(bundle.model) == result.cost
        return result, model

    return run


def product(names, others):
    return [
        pytest.param(name, other, marks=() if name in SOME else pytest.mark.slow) for name in names for other in others
    ]


@pytest.mark.parametrize(("kind", "backbone"), product(KINDS, base.names()))
def test_under_every_backbone(holds, kind, backbone):
    if reason := refused_by_backbone(kind, backbone):
        with pytest.raises(SpaceError, match=reason):
            holds(config(kind, backbone=backbone))
        return
    _, model = holds(config(kind, backbone=backbone))
    assert model.architecture.backbone["name"] == backbone


@pytest.mark.parametrize(("kind", "company"), product(KINDS, COMPANY))
def test_beside_clusters_and_pairs(holds, kind, company):
    before, after = COMPANY[company]
    if reason := refused_in_company(kind, company):
        with pytest.raises(SpaceError, match=reason):
            holds(config(kind, before, after))
        return
    result, _ = holds(config(kind, before, after))
    if company == "clusters":
        assert len(result.architecture.clusters) == 2
    else:
        assert [pair.choice for pair in result.architecture.pairs].count("open") == 0
