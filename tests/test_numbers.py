"""Numbers between knots, from the table to scores outside of the package."""

import json

import numpy as np
import polars as pl
import pytest
import torch

import autoembed as ae
from autoembed.architecture import Architecture
from autoembed.budget import uniform_bytes
from autoembed.bundle import verify_bundle, write_bundle
from autoembed.data.crosses import CrossSpec
from autoembed.data.dataset import build_dataset
from autoembed.data.knots import ONE, SPAN
from autoembed.data.schema import FeatureSchema, Field
from autoembed.data.spec import DataSpec
from autoembed.errors import BundleError, DataError
from autoembed.export.formats import export_bundle
from autoembed.export.scorer import Scorer
from autoembed.knockout import field_scores
from autoembed.methods.bilevel import search
from autoembed.methods.method import GateConfig, SearchConfig, configure, load, names
from autoembed.nn.embedding import MixedEmbedding
from autoembed.nn.model import CTRModel, build_model, cost_of, measure, pack, start_rounding
from autoembed.ranking.ranking import rank
from autoembed.refreshing import refresh
from autoembed.reuse import train_architecture
from autoembed.serving.rows import RowReader
from autoembed.training import TrainConfig
from autoembed.trial import check, run_trial
from tests.export.written import written

CPU = torch.device("cpu")
DATA = {"numeric_embedding": "piecewise", "bins": 8, "split": {"by": "random", "valid": 0.2, "test": 0.2}}
TRAIN = {"epochs": 8, "lr": 2e-2, "batch_size": 128}


@pytest.fixture(scope="module")
def table():
    """The label goes with a sine of `x`, four bins long, with missing ones, and with `city`; `y` says nothing."""
    rng = np.random.default_rng(0)
    rows = 4000
    x, city = rng.uniform(-3, 3, rows), rng.choice(["a", "b", "c"], rows)
    x[rng.random(rows) < 0.1] = 0.0  # a value with a bin of its own
    gone = rng.random(rows) < 0.05
    logit = np.where(gone, 1.0, np.where(x == 0, -2.0, 3 * np.sin(2 * x))) + (city == "a")
    label = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
    return pl.DataFrame(
        {"x": np.where(gone, np.nan, x), "y": rng.normal(size=rows), "city": city, "label": label}
    ).with_columns(pl.col("x").fill_nan(None))


@pytest.fixture(scope="module")
def parquet(table, tmp_path_factory):
    path = tmp_path_factory.mktemp("numbers") / "t.parquet"
    table.write_parquet(path)
    return path


@pytest.fixture(scope="module")
def data(parquet):
    return build_dataset(DataSpec(**DATA), parquet, parquet.parent / "cache")


@pytest.fixture(scope="module")
def trial(data):
    """The result and the model of a search that narrows the knots: two widths, numbers of 4 bits."""
    config = {
        "arm": "a",
        "stages": [{"method": "sensitivity", "warm_epochs": 2, "bits": 4}],
        "embedding": {"dim": 4, "blocks": 2},
        "backbone": {"name": "deepfm", "hidden": [16]},
        "limit": {"embedding_bytes": 120},
        "train": TRAIN,
    }
    return run_trial(check(config), data, lambda event: None)


@pytest.fixture(scope="module")
def bundle(trial, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "b"
    write_bundle(
        folder,
        schema=data.schema,
        vocabulary=data.vocabulary,
        architecture=trial[0].architecture,
        model=pack(trial[1], data.schema),
        data={"label": "label", "numeric": ["x", "y"], **DATA},
        metrics={},
        provenance={},
    )
    return ae.load_bundle(folder)


@pytest.fixture(scope="module")
def odd(table):
    """Rows within knots, at them, beyond them, and without a number."""
    some = [-1e9, 1e9, 0.0, None, float("nan"), 0.001]
    return table.head(306).with_columns(x=pl.concat([pl.Series("x", some, pl.Float64), table["x"].head(300)]))


def test_an_embedding_is_that_of_both_knots_by_their_shares():
    schema = FeatureSchema(fields=(Field(name="x", kind="numeric", cardinality=4, interpolation="linear"),), label="y")
    counts = [np.array([0, 5, 4, 3])]
    full = Architecture.full(schema, counts, dim=2, blocks=1, backbone={"name": "fm"})
    assert full.inputs == ("x",)
    embedding = build_model(schema, full).embedding
    rows = embedding(torch.tensor([[id, -1] for id in range(4)]))[:, 0]
    quarter = ONE // 4
    codes = [[1 + quarter * SPAN, 2 + 3 * quarter * SPAN], [3, -1], [0, -1]]
    found = embedding(torch.tensor(codes))[:, 0]
    assert torch.allclose(found[0], 0.75 * rows[1] + 0.25 * rows[2])
    assert torch.equal(found[1:], rows[[3, 0]])


def test_a_sine_is_learnt_better_between_knots_than_in_bins(parquet):
    """Eight bins are steps of a wave that is two long."""
    losses = {}
    for kind in ("bins", "piecewise", "linear"):
        dataset = build_dataset(DataSpec(**DATA | {"numeric_embedding": kind}), parquet, parquet.parent / "cache")
        config = {"arm": "a", "stages": [{"method": "uniform"}], "limit": {"width": 4}, "train": TRAIN, "seed": 0}
        result, _ = run_trial(check(config | {"backbone": {"name": "lr"}, "embedding": {"dim": 1}}
                                    | {"limit": {"width": 1}}), dataset, lambda event: None)  # fmt: skip
        losses[kind] = result.valid.logloss
    assert losses["piecewise"] < losses["bins"] - 0.01
    assert losses["linear"] > losses["bins"] + 0.1


def test_a_bundle_predicts_what_the_trained_model_does(trial, data, bundle, table, odd):
    result, model = trial
    assert result.architecture.few_bits
    assert bundle.schema.lengths == tuple(2 if name in "xy" else 1 for name in bundle.schema.names)
    encoded = torch.from_numpy(data.vocabulary.encode(odd))
    with torch.no_grad():
        expected = torch.sigmoid(model.eval()(encoded)).numpy()
    np.testing.assert_allclose(bundle.predict(odd), expected, atol=1e-6)
    assert verify_bundle(bundle.path)
    assert bundle.predict(bundle.example()).shape == (1,)
    auc = ae.metrics.evaluate(table["label"].to_numpy(), np.log(bundle.predict(table))).auc
    assert auc > 0.87


def test_numbers_beyond_the_knots_score_as_the_last_ones(bundle, table):
    knots = bundle.vocabulary.knots("x")
    assert np.isnan(knots).sum() == 1
    ends = knots[[0, -1]]
    row = table.head(1)
    for far, end in zip((-1e300, 1e300), ends, strict=True):
        a, b = (bundle.predict(row.with_columns(x=pl.lit(value))) for value in (far, end))
        assert a == b


def test_missing_is_told_and_has_a_score_of_its_own(bundle, table):
    row = table.head(4).with_columns(x=pl.Series([None, None, 0.3, 99.0]))
    shares = bundle.coverage(row).row(by_predicate=pl.col("field") == "x", named=True)
    assert (shares["unknown"], shares["missing"]) == (0.0, 0.5)
    assert shares["train_missing"] == pytest.approx(0.05, abs=0.02)


def test_requests_score_as_tables_do(bundle, odd):
    reader = RowReader(bundle, max_rows=1000, strict=False)
    expected = bundle.vocabulary.encode(odd)
    columns = [[None if v != v else v for v in odd[name].to_list()] for name in reader.columns]
    for rows in (slice(None), slice(0, 3)):
        found = reader.ids([own[rows] for own in columns])
        assert np.array_equal(np.where(found < -1, 0, found), expected[rows])


def by_onnx(folder, rows):
    """What rows.onnx predicts for rows with the numbers x and y and the text city."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "rows.onnx")
    feeds = {name: rows[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in ("x", "y")}
    feeds["city"] = np.array(rows["city"].to_list(), dtype=object)
    (found,) = session.run(None, {one.name: feeds[one.name] for one in session.get_inputs()})
    return found


@pytest.mark.parametrize("format", ["tables", "onnx"])
def test_exports_know_knots(bundle, odd, tmp_path, format):
    """Each is held against the bundle's predictions for ids as well, when it is written."""
    if format == "onnx":
        pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")
    folder = export_bundle(bundle, tmp_path / "e", format).path
    expected = bundle.predict(odd)
    if format == "tables":
        described = json.loads((folder / "tables.json").read_text())["models"][0]["fields"]
        assert described[0]["pool"] == {"length": 2, "by": "knots"}
        assert json.loads((folder / "vocabulary.json").read_text())[0]["knots"]
    if format == "onnx":
        np.testing.assert_allclose(by_onnx(folder, odd), expected, atol=1e-5)


@pytest.mark.parametrize("format", ["torchrec", "fuxictr"])
def test_formats_without_a_form_for_knots_say_so(bundle, tmp_path, format):
    with pytest.raises(BundleError, match="has no form for the numbers between knots"):
        export_bundle(bundle, tmp_path / "e", format)


def test_a_field_of_numbers_is_told_by_what_a_model_loses_without_it(data):
    config = {"arm": "a", "stages": [{"method": "uniform"}], "limit": {"width": 4}, "train": TRAIN}
    _, model = run_trial(check(config), data, lambda event: None)
    assert field_scores(model, data, "valid")["field"].to_list() == ["x", "city", "y"]


def test_a_ranking_reads_the_bins_of_numbers(data, parquet):
    bins = build_dataset(DataSpec(**DATA | {"numeric_embedding": "bins"}), parquet, parquet.parent / "cache")
    assert rank(data).table.equals(rank(bins).table)


@pytest.mark.parametrize("vocabulary", ["keep", "grow", "rebuild"])
def test_a_refresh_keeps_or_moves_the_knots(bundle, table, tmp_path, vocabulary):
    new = table.with_columns(pl.col("x") * 1.01)
    new.write_parquet(tmp_path / "new.parquet")
    told = {"numeric_embedding": {"gone": "linear"}}  # of a column that the study had and the bundle has not
    done = refresh(
        bundle.path, tmp_path / "new.parquet", tmp_path / "next", vocabulary=vocabulary, epochs=1, settings=told
    )
    after = ae.load_bundle(tmp_path / "next")
    assert after.schema.interpolated == {"x", "y"}
    same = np.array_equal(after.vocabulary.knots("x"), bundle.vocabulary.knots("x"), equal_nan=True)
    assert same == (vocabulary != "rebuild")
    assert done.after.auc > 0.85


def test_an_architecture_is_trained_on_numbers_with_knots_alone(bundle, table, tmp_path):
    table.write_parquet(tmp_path / "t.parquet")
    (tmp_path / "a.json").write_text(bundle.architecture.model_dump_json())
    made = {"out": tmp_path / "b", "label": "label", "train": {"epochs": 1}}
    with pytest.raises(DataError, match="numbers of column 'x' have no knots in the table"):
        train_architecture(tmp_path / "a.json", tmp_path / "t.parquet", **made)
    trained = train_architecture(bundle.path, tmp_path / "t.parquet", warm=True, **made)
    assert trained.bundle.schema.interpolated == {"x", "y"}
    assert trained.valid.auc > 0.85


@pytest.fixture(scope="module")
def crossed(data, tmp_path_factory):
    pairs = [("x", "city"), ("y", "city")]
    return data.cross(pairs, CrossSpec(min_count=2), tmp_path_factory.mktemp("crossed"), candidates=True)


def test_pairs_read_the_bins_of_numbers_wherever_they_are_scored(crossed, odd, tmp_path):
    torch.manual_seed(0)
    root = Architecture.full(crossed.schema, crossed.counts, dim=4, blocks=2, backbone={"name": "dnn", "hidden": [8]})
    model = build_model(crossed.schema, root.with_choices(["factorize", "memorize"], 3)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    bundle = written(tmp_path / "b", crossed.schema, crossed.vocabulary, model)
    expected = bundle.predict(odd)
    folder = export_bundle(bundle, tmp_path / "numpy", "numpy").path
    np.testing.assert_allclose(Scorer.load(folder).predict(odd), expected, atol=1e-5)
    reader = RowReader(bundle, max_rows=1000, strict=False)
    columns = [[None if v != v else v for v in odd[name].to_list()] for name in reader.columns]
    np.testing.assert_allclose(bundle.predict_ids(np.where(reader.ids(columns) < -1, 0, reader.ids(columns))), expected)
    with pytest.raises(BundleError, match="no form for the numbers between knots"):
        export_bundle(bundle, tmp_path / "torchrec", "torchrec")


@pytest.mark.parametrize("method", names())
def test_every_method_searches_over_knots(crossed, method):
    torch.manual_seed(0)
    config = configure({"method": method})
    if isinstance(config, SearchConfig):
        config = config.model_copy(update={"warm_epochs": 1})
    if isinstance(config, GateConfig):
        config = config.model_copy(update={"epochs": 1})
    backbone = {"name": "deepfm", "hidden": [8], "dropout": 0.0}
    root = Architecture.full(crossed.schema, crossed.counts, dim=4, blocks=3, backbone=backbone)
    net = load(method).Supernet(crossed.schema, root, config, crossed.counts, 0)
    search(net, crossed, TrainConfig(epochs=1, lr=1e-2, batch_size=256), device=CPU, seed=0, report=lambda event: None)
    limit = uniform_bytes(root, 2)
    if net.chooses_pairs:
        limit = root.embedding_bytes(first_order=True) + 600
    found = net.derive(limit)
    assert cost_of(found).embedding_bytes <= limit
    if not isinstance(config, SearchConfig) or not isinstance(
        getattr(build_model(crossed.schema, found), "embedding", None), MixedEmbedding
    ):
        assert measure(pack(build_model(crossed.schema, found), crossed.schema)) == cost_of(found)
        return
    model = net.compact(found).eval()
    net.eval()
    start_rounding(model)
    ids = torch.from_numpy(crossed.ids("valid")[:500])
    with torch.no_grad(), net.answering(found):
        assert (model(ids) - net(ids)).abs().max() < 1e-5
    assert measure(pack(model, crossed.schema)) == cost_of(found)
    assert isinstance(model, CTRModel)
