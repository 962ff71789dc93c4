"""Ensembles over every backbone: what members share, what they cost, and that one pass gives what each alone would."""

import numpy as np
import pytest
import torch

from autoembed.architecture import Architecture
from autoembed.bundle import load_bundle, write_bundle
from autoembed.data.schema import FeatureSchema, Field
from autoembed.errors import SpaceError
from autoembed.methods.members import single, spread
from autoembed.nn.backbones.base import build, names
from autoembed.nn.ensemble import AdaptedLinear, OwnLinear, OwnNorm
from autoembed.nn.model import build_model, cost_of, has_few_bits, measure, pack, start_rounding
from autoembed.plans import Ensemble
from autoembed.storage import SharedStorage
from autoembed.training import Teacher, TrainConfig, fit, predict

CPU = torch.device("cpu")
COUNTS = [np.array(c) for c in ([0, 90, 9, 8, 1], [3, 60, 5], [0, 50, 2, 1], [0, 44, 7])]
SCHEMA = FeatureSchema(
    fields=tuple(Field(name=n, cardinality=len(c)) for n, c in zip("abcd", COUNTS, strict=True)), label="y"
)
OPTIONS = {
    **{name: {"hidden": [6, 4], "dropout": 0.0} for name in names()},
    **{"lr": {}, "fm": {}},
    "masknet": {"hidden": [6, 4], "blocks": 2, "block_units": 5, "aggregation": 3, "dropout": 0.0},
    "finalmlp": {"hidden": [6, 4], "hidden2": [8], "heads": 2, "gate_units": 3, "dropout": 0.0},
}
CASES = [
    *OPTIONS.items(),
    ("dcn", {"hidden": [6], "structure": "stacked", "dropout": 0.0}),
    ("dnn", {"hidden": [6, 4], "dropout": 0.0, "batch_norm": False}),
    ("pnn", {"hidden": [6], "product": "outer", "dropout": 0.0}),
    ("masknet", {"hidden": [6, 4], "structure": "serial", "aggregation": 3, "dropout": 0.0}),
]
MEMBERS = 3


def plain(name, options, *, bits=32, narrow=True):
    full = Architecture.full(
        SCHEMA,
        COUNTS,
        dim=1 if name == "lr" else 3,
        blocks=3,
        cut="equal",
        backbone={"name": name, **options},
        bits=bits,
    )
    if name == "lr" or not narrow:
        return full
    mask = np.random.default_rng(1).random(full.mask().shape) < 0.7
    mask[full.field_of_block() == 2] = False  # a whole field goes
    mask[0, 0] = True
    return full.with_mask(mask)


def random_ids(rows=300, seed=2):
    rng = np.random.default_rng(seed)
    return torch.tensor(np.stack([rng.integers(0, len(c), rows) for c in COUNTS], axis=1), dtype=torch.int32)


def shake(model):
    """Weights away from zero, and batch norms with statistics of their own."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.uniform_(-1, 1)
                module.running_var.uniform_(0.5, 2)
    return model


def test_every_backbone_is_tested():
    assert set(OPTIONS) == set(names())


@pytest.mark.parametrize("bits", [32, 4, 2])
@pytest.mark.parametrize("share", ["all", "tables", "none"])
@pytest.mark.parametrize("name", OPTIONS)
def test_costs_packing_and_shapes(name, share, bits):
    one = plain(name, OPTIONS[name], bits=bits)
    architecture = spread(one, Ensemble(members=MEMBERS, share=share))
    assert single(architecture) == one
    assert Architecture.model_validate_json(architecture.model_dump_json()) == architecture
    model, ids = shake(build_model(SCHEMA, architecture)), random_ids()
    assert model.train()(ids).shape == (len(ids), MEMBERS)
    start_rounding(model)
    whole = model.eval()(ids)
    assert whole.shape == (len(ids),)
    packed = pack(model, SCHEMA)
    assert has_few_bits(packed) == (bits < 32)
    assert (packed(ids) - whole).abs().max() < 1e-5
    cost = measure(packed)
    assert cost == cost_of(architecture)
    tables = MEMBERS if share == "none" else 1
    assert cost.embedding_parameters == tables * cost_of(one).embedding_parameters
    assert cost.embedding_bytes == tables * cost_of(one).embedding_bytes
    assert architecture.embedding_bytes(first_order=model_first_order(one)) == cost.embedding_bytes
    if share == "tables":
        assert cost.dense_parameters == MEMBERS * cost_of(one).dense_parameters


def model_first_order(architecture):
    return build_model(SCHEMA, architecture).first_order


@pytest.mark.parametrize(("name", "options"), CASES)
def test_one_pass_gives_what_each_member_alone_would(name, options):
    one = plain(name, options)
    model = shake(build_model(SCHEMA, spread(one, Ensemble(members=MEMBERS)))).eval()
    shared = model.backbone
    e = model.embedding(random_ids()[:, [SCHEMA.index(n) for n in one.names]])
    e, first = (e[..., :-1], e[..., -1]) if model.first_order else (e, None)
    with torch.no_grad():
        out = shared(e, first)
        assert out.shape == (300, MEMBERS)
        for k in range(MEMBERS):
            alone = build(one.backbone, one.active()).eval()
            for path, module in shared.backbone.named_modules():
                if path.endswith(".plain"):
                    continue
                into = alone.get_submodule(path)
                if isinstance(module, AdaptedLinear):
                    read = 1 if module.read is None else module.read[k]
                    into.weight.copy_(module.write[k, :, None] * module.plain.weight * read)
                    if module.bias is not None:
                        into.bias.copy_(module.bias[k])
                elif isinstance(module, OwnLinear):
                    into.weight.copy_(module.weight[k : k + 1])
                    if module.bias is not None:
                        into.bias.copy_(module.bias[k])
                elif isinstance(module, OwnNorm):
                    for part in ("weight", "bias", "running_mean", "running_var"):
                        getattr(into, part).copy_(getattr(module, part).view(MEMBERS, -1)[k])
                else:
                    for part, tensor in module.named_parameters(recurse=False):
                        if module is not shared.backbone or hasattr(into, part):
                            getattr(into, part).copy_(tensor)
            read = torch.zeros(e.shape[1] * e.shape[2])
            read[shared.entries.index] = shared.read[k]
            expected = alone(e * read.view(e.shape[1:]), first)
            if shared.bias is not None:
                expected = expected + shared.bias[k]
            assert (out[:, k] - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", OPTIONS)
def test_members_differ_and_share_most_weights(name):
    one = plain(name, OPTIONS[name], narrow=False)
    torch.manual_seed(0)
    model = build_model(SCHEMA, spread(one, Ensemble(members=MEMBERS)))
    with torch.no_grad():
        for table in model.embedding_weights():
            table.normal_()
    logits = model.train()(random_ids())
    assert (logits[:, 0] - logits[:, 1]).abs().max() > 1e-3
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("name", "options"), CASES)
def test_with_adapters_of_one_each_member_is_the_backbone_it_inherits(name, options):
    one = plain(name, options)
    single_model = shake(build_model(SCHEMA, one)).eval()
    model = build_model(SCHEMA, spread(one, Ensemble(members=MEMBERS)))
    model.embedding.load_state_dict(single_model.embedding.state_dict())
    model.backbone.inherit(single_model.backbone)
    with torch.no_grad():
        model.backbone.read.fill_(1)
        if model.backbone.bias is not None:  # lr and fm have a bias that members share, and one of their own
            model.backbone.bias.fill_(1)
        ids = random_ids()
        expected = single_model(ids) + (0 if model.backbone.bias is None else 1)
        assert (model.eval()(ids) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_adapters_are_counted_by_hand():
    """Four fields of width 3, a tower of 6 and 4; a batch norm has two trained numbers a unit."""
    one = plain("dnn", OPTIONS["dnn"], narrow=False)
    architecture = spread(one, Ensemble(members=MEMBERS))
    shared = 12 * 6 + 6 * 4
    own = 12 + (6 + 6 + 12) + (6 + 4 + 4 + 8) + (4 + 1)
    assert cost_of(architecture).dense_parameters == shared + MEMBERS * own


def test_first_adapters_are_signs_and_the_others_one():
    model = build_model(SCHEMA, spread(plain("dnn", OPTIONS["dnn"], narrow=False), Ensemble(members=8)))
    assert sorted(model.backbone.read.unique().tolist()) == [-1, 1]
    layers = [module for module in model.modules() if isinstance(module, AdaptedLinear)]
    assert [layer.read is None for layer in layers] == [True, False]
    assert all((layer.write == 1).all() for layer in layers)


def test_what_cannot_be_an_ensemble_is_refused():
    one = plain("dnn", OPTIONS["dnn"])
    many = spread(one, Ensemble(members=2, share="none"))
    with pytest.raises(SpaceError, match=r"an ensemble has no clusters, but the search found 2"):
        spread(many, Ensemble(members=2))
    full = plain("dnn", {}, narrow=False)
    hashed = full.replace(storage=SharedStorage(rows=5, lookups=1))
    with pytest.raises(SpaceError, match=r"set ensemble.share to tables or all"):
        spread(hashed, Ensemble(members=2, share="none"))
    for share in ("all", "tables"):
        model = build_model(SCHEMA, spread(hashed, Ensemble(members=2, share=share)))
        assert model.eval()(random_ids()).shape == (300,)
    for wrong in (Ensemble(), Ensemble(members=2, share="none")):
        with pytest.raises(ValueError, match="an ensemble must be of 2 members or more"):
            one.replace(ensemble=wrong)
    with pytest.raises(ValueError, match="clusters or an ensemble"):
        many.replace(ensemble=Ensemble(members=2))


@pytest.mark.parametrize("bits", [32, 2])
@pytest.mark.parametrize("share", ["all", "tables", "none"])
def test_a_teacher_teaches_every_member_and_a_bundle_predicts_the_same(planted, tmp_path, share, bits):
    backbone = {"name": "deepfm", "hidden": [8], "dropout": 0.0}
    one = Architecture.full(planted.schema, planted.counts, dim=4, blocks=3, backbone=backbone, bits=bits)
    torch.manual_seed(0)
    model = build_model(planted.schema, spread(one, Ensemble(members=MEMBERS, share=share)))
    truth = np.where(np.asarray(planted.ids("train"))[:, planted.schema.index("marginal_1")] % 2, 2, -2)
    teacher = Teacher(logits=truth.astype(np.float32), weight=1)
    recipe = TrainConfig(epochs=1, lr=1e-2, batch_size=64)
    fit(model, planted, recipe, device=CPU, seed=0, report=lambda values: None, teacher=teacher)
    model.train()
    with torch.no_grad():
        logits = model(torch.from_numpy(planted.ids("train")[:4000]))
    assert ((logits > 0) == torch.tensor(truth[:4000, None] > 0)).float().mean(0).min() > 0.95  # of each member
    start_rounding(model)
    packed = pack(model, planted.schema)
    path = write_bundle(
        tmp_path / "bundle",
        schema=planted.schema,
        vocabulary=planted.vocabulary,
        architecture=model.architecture,
        model=packed,
        data={},
        metrics={},
        provenance={},
    )
    loaded = load_bundle(path)
    assert loaded.architecture == model.architecture
    assert np.abs(predict(loaded.model, planted, "test", CPU) - predict(packed, planted, "test", CPU)).max() < 1e-6
