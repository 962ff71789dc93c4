"""Pairs with a multi-valued column, which are factorized: from the table to scores outside of the package."""

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError

import autoembed as ae
from autoembed.architecture import Architecture
from autoembed.bundle import load_bundle, verify_bundle, write_bundle
from autoembed.data.crosses import CrossSpec, products_of
from autoembed.data.dataset import build_dataset
from autoembed.data.schema import PAD, FeatureSchema
from autoembed.data.spec import DataSpec
from autoembed.errors import BundleError, DataError, SpaceError
from autoembed.export.formats import export_bundle
from autoembed.export.scorer import Scorer
from autoembed.methods.bilevel import search
from autoembed.methods.method import configure, load
from autoembed.nn.embedding import pair_columns
from autoembed.nn.model import build_model, cost_of, measure
from autoembed.plans import PairPlan
from autoembed.reuse import train_architecture
from autoembed.trial import check, run_trial
from tests.export.written import written

CPU = torch.device("cpu")
ITEMS = 12
DATA = {"split": {"by": "random", "valid": 0.2, "test": 0.2}}
PAIRS = (("history", "item"), ("history", "city"), ("history", "tags"))


@pytest.fixture(scope="module")
def table():
    """The label says whether the item is in the history; no column says anything by itself."""
    rng = np.random.default_rng(0)
    rows = 8000
    item = rng.integers(0, ITEMS, rows)
    lists = [rng.choice(ITEMS, rng.integers(0, 6), replace=False) for _ in range(rows)]
    inside = np.array([one in own for one, own in zip(item, lists, strict=True)])
    label = (rng.random(rows) < np.where(inside, 0.9, 0.1)).astype(int)
    return pl.DataFrame(
        {
            "history": [[f"i{n}" for n in own] for own in lists],
            "item": [f"i{n}" for n in item],
            "city": rng.choice(["a", "b", "c"], rows),
            "tags": [[f"t{n}" for n in rng.choice(4, 2, replace=False)] for _ in range(rows)],
            "label": label,
        }
    )


@pytest.fixture(scope="module")
def plain(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("products")
    table.write_parquet(folder / "t.parquet")
    return build_dataset(DataSpec(**DATA), folder / "t.parquet", folder / "cache")


@pytest.fixture(scope="module")
def data(plain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("crossed")
    return plain.cross([("item", "city")], CrossSpec(min_count=2), folder, candidates=True, products=PAIRS)


def root_of(data, dim=4, **own):
    backbone = {"name": "deepfm", "hidden": [8]}
    return Architecture.full(data.schema, data.counts, dim=dim, blocks=2, backbone=backbone, **own)


def trial(data, stage, seed=0, **own):
    train = {"epochs": 6, "lr": 1e-2, "batch_size": 256}
    backbone = {"name": "deepfm", "hidden": [16]}
    node = {"arm": "a", "stages": [stage], "embedding": {"dim": 8}, "backbone": backbone, "limit": {"width": 16}}
    return run_trial(check(node | {"train": train, "seed": seed} | own), data, lambda event: None)


def test_a_search_finds_that_the_item_in_the_history_counts(data):
    result, _ = trial(data, {"method": "optinter", "pair_dim": 8})
    assert {(pair.a, pair.b): pair.choice for pair in result.architecture.pairs}["history", "item"] == "factorize"
    without, _ = trial(data, {"method": "all_naive"})
    assert result.valid.auc > 0.8
    assert result.valid.auc > without.valid.auc + 0.05


@pytest.mark.parametrize("by", ["mean", "sum", "max"])
def test_a_product_is_that_of_the_pooled_values(data, by):
    """Against numpy, an empty list and rows of fewer values included."""
    architecture = root_of(data, pool=by).with_choices(["naive", "factorize", "naive", "factorize"], 3)
    torch.manual_seed(0)
    model = build_model(data.schema, architecture)
    assert architecture.factors().keys() == {"history", "item", "tags"}
    ids = data.ids("valid")[:64]
    columns = pair_columns(data.schema, architecture)
    own = {name: part.detach().double().numpy() for (_, name), part in model.pairs.own().items()}

    def pooled(name):
        out = []
        for row in ids[:, data.schema.columns([name])]:
            values = own[name][row[row >= 0]]
            made = {"mean": values.mean, "sum": values.sum, "max": values.max}[by](0)
            out.append(made)
        return np.array(out)

    expected = np.stack([pooled("history") * pooled("item"), pooled("history") * pooled("tags")], axis=1)
    found = model.pairs(torch.from_numpy(ids[:, columns])).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-8)


def test_a_row_without_any_value_has_a_product_of_zeros(data):
    architecture = root_of(data).with_choices(["naive", "factorize", "naive", "naive"], 3)
    model = build_model(data.schema, architecture)
    codes = torch.full((1, len(pair_columns(data.schema, architecture))), PAD, dtype=torch.int32)
    codes[0, -1] = 1
    assert (model.pairs(codes) == 0).all()


def test_attention_of_a_field_is_the_mean_in_its_products(table, tmp_path):
    table.write_parquet(tmp_path / "t.parquet")
    spec = DataSpec(**DATA, multi={"history": {"shared": "item"}})
    shared = build_dataset(spec, tmp_path / "t.parquet", tmp_path / "cache")
    crossed = shared.cross([], CrossSpec(), tmp_path / "x", candidates=True, products=[("history", "item")])
    (pair,) = root_of(crossed, pool={"history": "attention"}).pairs
    assert (pair.pools[0].by, pair.pools[1]) == ("mean", None)
    model = build_model(crossed.schema, root_of(crossed).with_choices(["factorize"], 2))
    assert model(torch.from_numpy(crossed.ids("valid")[:5])).shape == (5,)


def test_a_plan_with_lists_is_stored_and_others_are_as_they_were(data):
    architecture = root_of(data).with_choices(["memorize", "factorize", "naive", "open"], 3)
    node = architecture.model_dump(mode="json")
    assert node["pairs"][1]["pools"] == [{"length": 5, "by": "mean"}, None]
    assert "pools" not in node["pairs"][0]
    assert Architecture.model_validate(node) == architecture
    with pytest.raises(ValidationError, match=r"must have crossed ids to be memorized, but 'history\*item' has none"):
        PairPlan.model_validate(node["pairs"][1] | {"choice": "memorize"})


def test_a_schema_with_products_is_stored_and_keeps_them_with_their_columns(data, plain):
    assert "products" not in plain.schema.model_dump_json()
    assert FeatureSchema.model_validate_json(data.schema.model_dump_json()) == data.schema
    assert data.schema.products == PAIRS
    assert data.schema.keep(["history", "item"]).products == (("history", "item"),)
    assert data.ids("train").shape[1] == plain.ids("train").shape[1] + 1


@pytest.mark.parametrize("method", ["all_factorize", "all_memorize", "random_pairs", "optinter"])
def test_every_method_of_pairs_knows_that_lists_are_not_memorized(data, method):
    torch.manual_seed(0)
    config = configure({"method": method, "pair_dim": 3})
    if method == "optinter":
        config = config.model_copy(update={"epochs": 1, "noise": "gumbel"})
    root = root_of(data)
    net = load(method).Supernet(data.schema, root, config, data.counts, 0)
    train = check({"arm": "a", "stages": [{"method": method}], "train": {"epochs": 1, "batch_size": 512}}).train
    search(net, data, train, device=CPU, seed=0, report=lambda event: None)
    limit = root.embedding_bytes(first_order=True) + 2000
    found = net.derive(limit)
    assert cost_of(found).embedding_bytes <= limit
    assert not [pair for pair in found.pairs if pair.pools != (None, None) and pair.choice == "memorize"]
    if method == "all_factorize":
        assert all(pair.choice == "factorize" for pair in found.pairs)
    if method == "optinter":
        p = net.probabilities()
        assert (p[1:, 0] == 0).all()
        assert torch.isfinite(net.theta).all()
        model = net.compact(found).eval()
        net.eval()
        ids = torch.from_numpy(data.ids("valid")[:200])
        with torch.no_grad(), net.answering(found):
            assert (model(ids) - net(ids)).abs().max() < 1e-5
    assert measure(build_model(data.schema, found)) == cost_of(found)


def test_a_search_over_products_alone(plain, tmp_path):
    alone = plain.cross([], CrossSpec(), tmp_path, candidates=True, products=[("history", "item")])
    result, _ = trial(alone, {"method": "optinter", "pair_dim": 8, "retrain": "inherit"})
    assert [pair.choice for pair in result.architecture.pairs] == ["factorize"]
    assert result.valid.auc > 0.8


@pytest.fixture(scope="module", params=[pytest.param(32, marks=pytest.mark.slow), 4])
def bundle(request, data, tmp_path_factory):
    stage = {"method": "all_factorize", "pair_dim": 6, "bits": request.param}
    result, model = trial(data, stage, limit={"bytes": 20_000})
    assert result.cost == measure(model) == cost_of(result.architecture)
    kept = data.schema.keep(result.architecture.columns)
    assert kept.names == ("history", "item", "city", "tags")
    vocabulary = data.vocabulary.keep(kept.names)
    fresh = build_model(kept, result.architecture, packed=True)
    fresh.load_state_dict(model.state_dict())
    folder = tmp_path_factory.mktemp("bundle") / "b"
    write_bundle(
        folder,
        schema=kept,
        vocabulary=vocabulary,
        architecture=result.architecture,
        model=fresh.eval(),
        data={"label": "label"} | DATA,
        metrics={},
        provenance={},
    )
    found = load_bundle(folder)
    ids = data.ids("valid")
    with torch.no_grad():
        expected = torch.sigmoid(model.eval()(torch.from_numpy(ids))).numpy()
    np.testing.assert_allclose(found.predict_ids(ids[:, data.schema.columns(kept.names)]), expected, atol=1e-6)
    return found


def test_a_bundle_scores_raw_rows(bundle, table):
    assert verify_bundle(bundle.path)
    auc = ae.metrics.evaluate(table["label"].to_numpy(), np.log(bundle.predict(table))).auc
    assert auc > 0.8  # 0.83 is the best there is
    empty = table.head(3).with_columns(history=pl.Series([[], None, ["nobody"]], dtype=pl.List(pl.String)))
    assert np.isfinite(bundle.predict(empty)).all()


@pytest.mark.parametrize("format", ["numpy", pytest.param("torch", marks=pytest.mark.slow), "onnx"])
def test_exports_score_as_the_bundle(bundle, table, tmp_path, format):
    """Each is held against the bundle's predictions for ids as well, when it is written."""
    if format == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")
    folder, rows = export_bundle(bundle, tmp_path / "e", format).path, table.head(200)
    if format == "numpy":
        found = Scorer.load(folder).predict(rows.to_dict(as_series=False))
        np.testing.assert_allclose(found, bundle.predict(rows), atol=1e-5)
    if format == "onnx":
        session = onnxruntime.InferenceSession(folder / "rows.onnx")
        texts = {name: rows[name].to_numpy().astype(object) for name in ("item", "city")}
        for name in ("history", "tags"):
            texts[name] = np.array([(own + 5 * [""])[:5] for own in rows[name].to_list()], dtype=object)
        np.testing.assert_allclose(session.run(None, texts)[0], bundle.predict(rows), atol=1e-5)


@pytest.mark.parametrize("format", ["torchrec", "fuxictr"])
def test_formats_without_a_form_say_so(bundle, tmp_path, format):
    with pytest.raises(BundleError, match=f"the format {format} has no form for the"):
        export_bundle(bundle, tmp_path / "e", format)


def test_pairs_are_of_the_values_that_they_were_searched_on(bundle, table, tmp_path):
    table.write_parquet(tmp_path / "t.parquet")
    with pytest.raises(SpaceError, match="the architecture has pairs of columns that have an input"):
        train_architecture(bundle.path, tmp_path / "t.parquet", tmp_path / "b")


def test_a_product_of_a_field_that_is_closed_has_its_own_values(data, tmp_path):
    """The pair's table stands apart, and so may the field's be gone."""
    root = root_of(data)
    mask = root.mask()
    mask[[root.names[field] in ("history", "tags") for field in root.field_of_block()]] = False
    found = root.with_mask(mask, bits=root.block_bits()).with_choices(["naive", "factorize", "naive", "naive"], 3)
    assert found.inputs == ("item", "city")
    assert set(found.columns) == {"item", "city", "history"}
    torch.manual_seed(0)
    model = build_model(data.schema, found).eval()
    assert measure(model) == cost_of(found)
    kept = data.schema.keep(found.columns)
    bundle = written(tmp_path / "b", kept, data.vocabulary.keep(kept.names), build_model(kept, found))
    with pytest.raises(BundleError, match="the format torchrec has no form for the multi-valued columns"):
        export_bundle(bundle, tmp_path / "e", "torchrec")


def test_pairs_with_lists_are_named_or_all(plain):
    assert products_of(plain.schema, "all") == [
        ("history", "item"),
        ("history", "city"),
        ("history", "tags"),
        ("item", "tags"),
        ("city", "tags"),
    ]
    assert products_of(plain.schema, [("item", "history")]) == [("item", "history")]
    with pytest.raises(DataError, match="unknown column 'price'"):
        products_of(plain.schema, [("history", "price")])
    with pytest.raises(DataError, match=r"'item' and 'city' have one value a row: leave that pair to features\.pairs"):
        products_of(plain.schema, [("item", "city")])


def test_crossed_columns_are_of_one_value_a_row(plain, tmp_path):
    with pytest.raises(DataError, match=r"'history' holds several: name the pair under features\.pairs\.lists"):
        plain.cross([("history", "item")], CrossSpec(), tmp_path, candidates=True)
    with pytest.raises(DataError, match="a pair must have two columns, but got 'tags' twice"):
        plain.cross([], CrossSpec(), tmp_path, candidates=True, products=[("tags", "tags")])
