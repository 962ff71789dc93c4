"""Numbers that functions embed, from single steps of their weights to scores outside of the package."""

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional

import autoembed as ae
from autoembed.architecture import Architecture
from autoembed.bundle import write_bundle
from autoembed.data.crosses import CrossSpec
from autoembed.data.dataset import build_dataset
from autoembed.data.spec import DataSpec
from autoembed.errors import DataError, SpaceError
from autoembed.export.formats import export_bundle
from autoembed.export.scorer import Scorer
from autoembed.knot_rows import KnotRows, NumberFunctions, knot_rows
from autoembed.methods.bilevel import search
from autoembed.methods.members import spread
from autoembed.methods.method import configure, load
from autoembed.nn.model import build_model, cost_of, measure, pack
from autoembed.plans import Ensemble
from autoembed.refreshing import refresh
from autoembed.retraining import retrain
from autoembed.reuse import train_architecture
from autoembed.space import SearchSpace
from autoembed.training import Optimiser, TrainConfig, fit
from autoembed.trial import check, run_trial
from tests.test_numbers import by_onnx

CPU = torch.device("cpu")
SPLIT = {"by": "random", "valid": 0.2, "test": 0.2}
KINDS = ["periodic", "soft_bins"]


@pytest.fixture(scope="module")
def table():
    """Twelve waves of `x`, one smooth rise of `y`, with missing ones and a value that is a case of its own."""
    rng = np.random.default_rng(0)
    rows = 6000
    x, y = rng.random(rows), rng.normal(size=rows)
    y[rng.random(rows) < 0.1] = 0.0
    gone = rng.random(rows) < 0.05
    logit = 3 * np.sin(2 * np.pi * 12 * x) + np.where(gone, 1.5, np.where(y == 0, -2.0, np.tanh(2 * y)))
    label = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
    city = rng.choice(["a", "b", "c"], rows)
    table = pl.DataFrame({"x": x, "y": np.where(gone, np.nan, y), "city": city, "label": label, "truth": logit})
    return table.with_columns(pl.col("y").fill_nan(None))


@pytest.fixture(scope="module")
def parquet(table, tmp_path_factory):
    path = tmp_path_factory.mktemp("functions") / "t.parquet"
    table.drop("truth").write_parquet(path)
    return path


def built(parquet, **own):
    return build_dataset(DataSpec(split=SPLIT, **own), parquet, parquet.parent / "cache")


@pytest.fixture(scope="module")
def data(parquet):
    return built(parquet, numeric_embedding={"x": "periodic", "y": "soft_bins"}, bins=16)


def trained(dataset, dim=4, seed=0, **train):
    recipe = {"epochs": 12, "lr": 1e-2, "batch_size": 128, "patience": 4, **train}
    node = {"arm": "a", "stages": [{"method": "uniform"}], "limit": {"width": dim}, "embedding": {"dim": dim}}
    return run_trial(check(node | {"train": recipe, "backbone": {"name": "deepfm", "hidden": [16]}, "seed": seed}),
                     dataset, lambda event: None)  # fmt: skip


def test_waves_find_what_sixteen_bins_cannot(parquet, table):
    """Twelve waves are more than sixteen bins can tell: only y is left to these."""
    truth = roc_auc_score(table["label"], table["truth"])
    aucs = {}
    for kind, bins in {"bins": 16, "periodic": {"x": 128}}.items():
        dataset = built(parquet, numeric_embedding={"x": kind, "y": "piecewise"}, bins=bins)
        aucs[kind] = trained(dataset, numbers={"sigma": 8.0})[0].valid.auc
    assert aucs["periodic"] > truth - 0.04
    assert aucs["bins"] < truth - 0.12


@pytest.mark.parametrize("kind", KINDS)
def test_a_smooth_rise_is_found(parquet, kind):
    dataset = built(parquet, numeric_embedding={"y": kind}, bins=16, drop=["x"])
    _, model = trained(dataset, numbers={"sigma": 0.5})
    y = np.linspace(-2, 2, 300)

    def logits(values):
        rows = pl.DataFrame({"y": values, "city": ["a"] * len(values)}, schema_overrides={"y": pl.Float64})
        with torch.no_grad():
            return model.eval()(torch.from_numpy(dataset.vocabulary.encode(rows))).numpy()

    assert np.corrcoef(logits(y), np.tanh(2 * y))[0, 1] > 0.95
    assert logits([0.0]) < logits(y).min() + 0.5  # a bin of a single value has a row of its own
    assert logits([None]) > logits(y).mean() + 0.3


def test_quantiles_of_a_column(data):
    vocabulary = data.vocabulary
    quantiles, counts = vocabulary.quantiles("y"), vocabulary.counts("y")
    rows = data.rows("train") - counts[vocabulary.missing("y")]
    knots = vocabulary.knots("y")
    at_knots = pl.DataFrame({"x": knots, "y": knots, "city": ["a"] * len(knots)})
    ids = data.schema.one(vocabulary.encode(at_knots), "y")
    below = 0
    (single,) = np.flatnonzero(np.isnan(knots))
    missing = {0, vocabulary.missing("y")}
    assert set(np.flatnonzero(np.isnan(quantiles))) > missing
    for place, id_ in enumerate(ids):
        if place != single:
            assert quantiles[id_] == pytest.approx((below + counts[id_] / 2) / rows)
            below += counts[id_]
        else:
            (own,) = set(np.flatnonzero(np.isnan(quantiles)).tolist()) - missing
            below += counts[own]


def model_of(data, dim=3, blocks=2, **changes):
    backbone = {"name": "deepfm", "hidden": [8]}
    root = Architecture.full(data.schema, data.counts, dim=dim, blocks=blocks, backbone=backbone).replace(**changes)
    torch.manual_seed(0)
    return build_model(data.schema, root)


def rows_of(model, name):
    """The rows of a field, float [cardinality, D + 1], and where they come from."""
    (field,) = [field for field in model.architecture.fields if field.name == name]
    out = torch.full((field.cardinality, model.architecture.dim + 1), float("nan"))
    for part in model.parts():
        if part.field == name:
            out[part.ids, part.columns] = part.table.detach()[part.rows]
    return out


def test_fresh_rows_of_knots_are_what_the_function_gives_and_others_are_free(data):
    model = model_of(data)
    before = {name: rows_of(model, name) for name in data.schema.names}
    for own in knot_rows(model, data, NumberFunctions()):
        name = {"Periodic": "x", "SoftBins": "y"}[type(own.function).__name__]
        quantiles = data.vocabulary.quantiles(name)
        known = torch.from_numpy(~np.isnan(quantiles))
        expected = own.function(torch.from_numpy(quantiles[~np.isnan(quantiles)]).float()[None])[0]
        rows = rows_of(model, name)
        assert torch.allclose(rows[known], expected, atol=1e-7)
        assert torch.equal(rows[~known], before[name][~known])
        assert (~known).sum() == (1 if name == "x" else 3)  # unknown, missing if there are such, and 0.0
    assert torch.equal(rows_of(model, "city"), before["city"])


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_that_of_the_gradient_through_the_function(parquet, kind, sparse):
    """Against autograd, with the rows put together from the function and given to the lookup."""
    data = built(parquet, numeric_embedding={"y": kind}, bins=8, drop=["x", "city"])
    model, l2 = model_of(data, blocks=1).eval(), 0.0 if sparse else 0.1
    (own,) = knot_rows(model, data, NumberFunctions(frequencies=3, soft_bins=3))
    ids, labels = torch.from_numpy(data.ids("train")[:200]), torch.from_numpy(data.labels("train")[:200])
    (table,) = model.embedding_weights()
    quantiles = data.vocabulary.quantiles("y")
    knots = torch.from_numpy(np.flatnonzero(~np.isnan(quantiles)))
    out = own.function(own.quantiles)[0]
    made = table.detach().index_copy(0, knots, out)
    logits = torch.func.functional_call(model, {"embedding.tables.0.weight": made}, (ids,))
    loss = functional.binary_cross_entropy_with_logits(logits, labels) + l2 / 2 * made.square().sum()
    expected = torch.autograd.grad(loss, own.parameters())

    model.sparse_gradients(sparse)
    optimiser = Optimiser(model, model.weight_parameters(), TrainConfig(l2=l2, sparse=sparse, lr=0.01), [own])
    functional.binary_cross_entropy_with_logits(model(ids), labels).backward()
    if l2:
        optimiser.regularise()
    own.pull()
    for parameter, gradient in zip(own.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-7, rtol=1e-4)
    before = table.detach().clone()
    optimiser.l2 = 0.0
    optimiser.step()
    assert torch.allclose(table[knots], own.function(own.quantiles)[0], atol=1e-7)
    assert not torch.equal(table[knots], before[knots])


def test_members_with_tables_of_their_own_have_functions_of_their_own(data):
    single = model_of(data).architecture
    torch.manual_seed(0)
    model = build_model(data.schema, spread(single, Ensemble(members=2, share="none")))
    functions = knot_rows(model, data, NumberFunctions())
    assert [len(own.quantiles) for own in functions] == [2, 2]
    first, second = (rows_of(member, "x") for member in model.models)
    known = torch.from_numpy(~np.isnan(data.vocabulary.quantiles("x")))
    assert not torch.allclose(first[known], second[known])
    config = TrainConfig(epochs=1, batch_size=512, lr=1e-2)
    fit(model, data, config, device=CPU, seed=0, report=lambda event: None, fresh=True)
    assert not torch.allclose(rows_of(model.models[0], "x")[known], first[known])


def test_rows_of_weights_that_are_given_train_by_themselves(data):
    """A function could not be read off them; so every knot moves by its own rows alone."""
    model = model_of(data)
    few = np.flatnonzero(data.schema.one(data.ids("train"), "x") == 1)[:64]
    before = rows_of(model, "x")
    config = TrainConfig(epochs=1, batch_size=64, lr=1e-2)
    fit(model, data, config, device=CPU, seed=0, report=lambda event: None, rows=few)
    moved = (rows_of(model, "x") != before).any(1)
    assert 1 <= moved.sum() <= 3
    assert moved[1]


def test_closed_columns_have_no_function(data):
    whole = model_of(data).architecture
    mask = whole.mask()
    mask[[whole.names[field] in ("x", "y") for field in whole.field_of_block()]] = False
    model = build_model(data.schema, whole.with_mask(mask, bits=whole.block_bits()))
    assert model.architecture.names == ("city",)
    assert knot_rows(model, data, NumberFunctions()) == []


@pytest.mark.parametrize("method", ["dnis", "magnitude", "sensitivity", "ihas", "all_factorize"])
def test_searches_over_numbers_that_functions_embed(data, tmp_path, method):
    crossed = data.cross([("x", "city"), ("y", "city")], CrossSpec(min_count=2), tmp_path, candidates=True)
    config = configure({"method": method})
    changes = {name: 1 for name in ("warm_epochs", "epochs") if name in type(config).model_fields}
    config, backbone = config.model_copy(update=changes), {"name": "deepfm", "hidden": [8]}
    root = Architecture.full(crossed.schema, crossed.counts, dim=4, blocks=3, backbone=backbone)
    torch.manual_seed(0)
    net = load(method).Supernet(crossed.schema, root, config, crossed.counts, 0)
    train = TrainConfig(epochs=1, lr=1e-2, batch_size=256)
    search(net, crossed, train, device=CPU, seed=0, report=lambda event: None)
    limit = root.embedding_bytes(first_order=True) + 600 if net.chooses_pairs else 700
    found = net.derive(limit)
    assert cost_of(found).embedding_bytes <= limit
    model, _ = retrain(found, crossed, train, CPU, 0, lambda event: None, router=net.router)
    assert measure(model) == cost_of(found)


def test_a_warm_start_is_on_functions_and_a_stage_that_goes_on_is_not(data, monkeypatch):
    """What moves gates, and a later stage, start from rows that are there."""
    seen = []
    pull = KnotRows.pull
    monkeypatch.setattr(KnotRows, "pull", lambda self: (seen.append(self), pull(self))[1])
    config = configure({"method": "dnis", "warm_epochs": 1, "epochs": 1})
    root, train = model_of(data).architecture, TrainConfig(epochs=1, batch_size=512)
    nets = [load("dnis").Supernet(data.schema, root, config, data.counts, 0) for _ in range(2)]
    for net, later in zip(nets, (False, True), strict=True):
        if later:
            net.load_weights_from(nets[0])
        seen.clear()
        search(net, data, train, device=CPU, seed=0, report=lambda event: None)
        assert bool(seen) is not later
        assert len(seen) % 2 == 0
    steps = len(seen)
    retrain(root, data, train, CPU, 0, lambda event: None)
    assert len(seen) > steps
    seen.clear()
    retrain(root, data, train, CPU, 0, lambda event: None, model=model_of(data))
    assert not seen


@pytest.fixture(scope="module")
def bundle(data, tmp_path_factory):
    """Of a search that narrows the rows of knots, in numbers of 4 bits."""
    config = {
        "arm": "a",
        "stages": [{"method": "sensitivity", "warm_epochs": 3, "bits": 4, "retrain": "fresh"}],
        "embedding": {"dim": 4, "blocks": 2},
        "backbone": {"name": "deepfm", "hidden": [16]},
        "limit": {"embedding_bytes": 300},
        "train": {"epochs": 8, "lr": 1e-2, "batch_size": 128, "numbers": {"sigma": 4.0}},
    }
    trial = check(config)
    result, model = run_trial(trial, data, lambda event: None)
    assert result.architecture.few_bits
    folder = tmp_path_factory.mktemp("bundle") / "b"
    spec = {"label": "label", "numeric": ["x", "y"], "split": SPLIT, "bins": {"x": 16, "y": 16}}
    write_bundle(
        folder,
        schema=data.schema,
        vocabulary=data.vocabulary,
        architecture=result.architecture,
        model=pack(model, data.schema),
        data=spec | {"numeric_embedding": {"x": "periodic", "y": "soft_bins"}},
        metrics={},
        provenance={"train": trial.train.model_dump(mode="json")},
    )
    found = ae.load_bundle(folder)
    ids = torch.from_numpy(data.ids("valid"))
    with torch.no_grad():
        expected = torch.sigmoid(model.eval()(ids)).numpy()
    np.testing.assert_allclose(found.predict_ids(data.ids("valid")), expected, atol=1e-6)
    return found


@pytest.fixture(scope="module")
def odd(table):
    some = [-1e9, 1e9, 0.0, None, float("nan"), 0.001]
    return (
        table.drop("truth")
        .head(306)
        .with_columns(y=pl.concat([pl.Series(some, dtype=pl.Float64), table["y"].head(300)]))
    )


@pytest.mark.parametrize("format", ["numpy", pytest.param("onnx", marks=pytest.mark.slow), "tables"])
def test_exports_score_as_the_bundle(bundle, odd, tmp_path, format):
    """Each is held against the bundle's predictions for ids as well, when it is written."""
    if format == "onnx":
        pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")
    folder = export_bundle(bundle, tmp_path / "e", format).path
    expected = bundle.predict(odd)
    if format == "numpy":
        np.testing.assert_allclose(Scorer.load(folder).predict(odd), expected, atol=1e-5)
    if format == "onnx":
        np.testing.assert_allclose(by_onnx(folder, odd), expected, atol=1e-5)


@pytest.mark.parametrize("vocabulary", ["keep", "rebuild"])
def test_a_refresh_keeps_the_kinds(bundle, table, tmp_path, vocabulary):
    table.drop("truth").write_parquet(tmp_path / "new.parquet")
    refresh(bundle.path, tmp_path / "new.parquet", tmp_path / "next", vocabulary=vocabulary, epochs=1)
    after = ae.load_bundle(tmp_path / "next")
    kinds = {field.name: field.interpolation for field in after.schema.fields}
    assert (kinds["x"], kinds["y"]) == ("periodic", "soft_bins")
    assert after.spec.bins == {"x": 16, "y": 16}


def test_an_architecture_is_trained_again_with_its_functions(bundle, table, tmp_path):
    table.drop("truth").write_parquet(tmp_path / "t.parquet")
    done = train_architecture(bundle.path, tmp_path / "t.parquet", tmp_path / "b", train={"epochs": 2})
    assert done.bundle.manifest.provenance["train"]["numbers"]["sigma"] == 4.0
    assert {field.interpolation for field in done.bundle.schema.fields} == {"periodic", "soft_bins", None}


SPACE = {"stages": [{"method": "uniform"}], "budget": {"width": 2}}


@pytest.mark.parametrize("method", ["unified", "quotient_remainder"])
def test_values_that_share_rows_have_no_functions(method, data):
    with pytest.raises(SpaceError, match=f"values share rows under {method}, and numeric_embedding: periodic gives"):
        SearchSpace.parse(SPACE | {"baselines": [method], "data": {"numeric_embedding": "periodic"}})
    SearchSpace.parse(SPACE | {"baselines": [method], "data": {"numeric_embedding": "piecewise"}})
    root = model_of(data, dim=4).architecture
    found = load(method).Supernet(data.schema, root, configure({"method": method}), data.counts, 0).derive(400)
    with pytest.raises(SpaceError, match=r"values share rows under .* storage"):
        knot_rows(build_model(data.schema, found), data, NumberFunctions())


def test_the_function_of_all_columns_between_knots_may_be_a_choice(parquet):
    data = built(parquet, numeric_embedding={"x": "piecewise", "y": "soft_bins"}, bins=16)

    def kinds(function):
        model = model_of(data)
        found = knot_rows(model, data, NumberFunctions(function=function))
        return {type(own.function).__name__: len(own.parameters()) > 0 and own.quantiles.shape[0] for own in found}

    assert kinds(None) == {"SoftBins": 1}
    assert kinds("free") == {}
    assert kinds("periodic") == {"Periodic": 2}
    assert kinds("soft_bins") == {"SoftBins": 2}
    # Data, and so the model's form, are those of knots whatever is chosen.
    free, waves = (trained(data, epochs=1, numbers={"function": one})[0] for one in ("free", "periodic"))
    assert free.cost == waves.cost
    assert free.valid != waves.valid


def test_a_space_chooses_the_function_of_numbers_between_knots():
    node = SPACE | {"train": {"numbers": {"function": {"choice": ["free", "periodic", "soft_bins"]}}}}
    space = SearchSpace.parse(node | {"data": {"numeric_embedding": "piecewise"}})
    assert list(space.ranges("uniform")) == ["train.numbers.function"]
    for how in ("bins", "linear"):
        with pytest.raises(
            SpaceError, match=r"train\.numbers\.function: \w+ is of numbers between knots, and there are none"
        ):
            SearchSpace.parse(node | {"data": {"numeric_embedding": how}})
    with pytest.raises(SpaceError, match="values share rows under unified"):
        SearchSpace.parse(node | {"data": {"numeric_embedding": "piecewise"}, "baselines": ["unified"]})


def test_options_of_functions_need_some_function():
    node = SPACE | {"train": {"numbers": {"sigma": {"log": [0.5, 8.0]}}}}
    with pytest.raises(SpaceError, match=r"train\.numbers is of functions of numbers, and there are none"):
        SearchSpace.parse(node)
    space = SearchSpace.parse(node | {"data": {"numeric_embedding": {"x": "periodic"}}})
    assert list(space.ranges("uniform")) == ["train.numbers.sigma"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sigma": 0}, "greater than 0"),
        ({"frequencies": 0}, "greater than or equal to 1"),
        ({"soft_bins": 1}, "greater than or equal to 2"),
        ({"temperature": -1}, "greater than 0"),
        ({"waves": 3}, "waves"),
    ],
)
def test_options_out_of_range_are_refused(options, told):
    with pytest.raises(SpaceError, match=told):
        trained(None, numbers=options)


def test_a_column_of_a_bin_for_each_value_is_told(parquet, table, tmp_path):
    few = table.drop("truth").with_columns(x=(pl.col("x") * 9).floor())
    few.write_parquet(tmp_path / "few.parquet")
    spec = DataSpec(numeric=["x"], numeric_embedding="periodic", split=SPLIT)
    dataset = build_dataset(spec, tmp_path / "few.parquet", tmp_path / "cache")
    assert [note for note in dataset.notes if "each value of 'x' has a bin" in note]
    assert not [note for note in dataset.notes if "each value of 'y'" in note]
    trained(dataset, epochs=1)


def test_bins_may_be_given_by_column(parquet):
    dataset = built(parquet, bins={"x": 100})
    sizes = dict(zip(dataset.schema.names, dataset.schema.cardinalities, strict=True))
    assert sizes["x"] > 90
    assert sizes["y"] < 40
    for wrong, told in (
        ({"city": 8}, "data.bins is of numeric columns, but city is categorical"),
        (
            {"price": 8},
            "data.bins names no column of the table: price",
        ),
    ):
        with pytest.raises(DataError, match=told):
            built(parquet, bins=wrong)
    with pytest.raises(DataError, match="bins"):
        DataSpec.checked({"bins": {"x": 1}})


def test_a_vocabulary_is_read_for_these_fields_alone(data):
    """Columns of many values take memory in each trial."""
    part = data.vocabulary_of(["y", "x"])
    assert part.names == ("x", "y")
    for name in part.names:
        assert np.array_equal(part.quantiles(name), data.vocabulary.quantiles(name), equal_nan=True)
    fit(model_of(data), data, TrainConfig(epochs=1), device=CPU, seed=0, report=lambda event: None, fresh=True)
