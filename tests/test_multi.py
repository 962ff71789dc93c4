"""Columns of several values a row, from the table to scores outside of the package."""

import numpy as np
import polars as pl
import pytest

import autoembed as ae
from autoembed.bundle import verify_bundle
from autoembed.data.dataset import build_dataset
from autoembed.data.planted import PlantedSpec, planted
from autoembed.data.spec import DataSpec
from autoembed.errors import BundleError, DataError, SpaceError
from autoembed.export.formats import export_bundle
from autoembed.export.scorer import Scorer
from autoembed.knockout import field_scores
from autoembed.ranking.ranking import rank, rank_table
from autoembed.refreshing import refresh
from autoembed.trial import check, run_trial
from tests.export.written import written

SPEC = {"rows": 6000, "seed": 1, "marginal": [10], "xor": [], "low_rank": [], "noise": [20, 20], "multi": [30]}
TRAIN = {"epochs": 4, "lr": 2e-2, "batch_size": 256}


@pytest.fixture(scope="module")
def table():
    """Lists `multi_0` and the same with a separator; the label goes with them."""
    return planted(PlantedSpec(**SPEC, multi_effect=2.0))[0].drop("logit")


@pytest.fixture(scope="module")
def text(table):
    return table.with_columns(pl.col("multi_0").list.join("|"))


@pytest.fixture(scope="module")
def data(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("multi")
    table.write_parquet(folder / "t.parquet")
    return build_dataset(DataSpec(), folder / "t.parquet", folder / "cache")


def classifier(**changes):
    options = {"stages": [{"method": "sensitivity", "warm_epochs": 2}], "budget": {"embedding_bytes": 1200}} | changes
    return ae.AutoEmbedClassifier(
        embedding={"dim": 4, "blocks": 2}, backbone="fm", train=TRAIN, random_state=0, **options
    )


@pytest.fixture(scope="module")
def bundle(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "b"
    data = {"multi": {"multi_0": "|"}}
    classifier(data=data).fit(text).export(folder)
    return ae.load_bundle(folder)


def test_rows_score_the_same_as_lists_and_as_text(bundle, text, table):
    expected = bundle.predict(text.head(200))
    assert np.array_equal(bundle.predict(table.head(200)), expected)
    assert np.array_equal(bundle.predict(table.head(200).to_pandas()), expected)
    assert verify_bundle(bundle.path)
    assert bundle.predict(bundle.example()).shape == (1,)


def test_predictions_go_with_the_values_in_the_lists(bundle, text):
    auc = ae.metrics.evaluate(text["label"].to_numpy(), np.log(bundle.predict(text))).auc
    without = ae.metrics.evaluate(
        text["label"].to_numpy(), np.log(bundle.predict(text.with_columns(multi_0=pl.lit(None, pl.String))))
    ).auc
    assert auc > without + 0.1


def test_what_is_not_known_is_told_by_value(bundle, text):
    rows = text.head(4).with_columns(multi_0=pl.Series(["nope|nope", "nope", "", None]))
    shares = bundle.coverage(rows).row(by_predicate=pl.col("field") == "multi_0", named=True)
    assert (shares["unknown"], shares["missing"]) == (3 / 5, 2 / 5)


@pytest.mark.parametrize("format", ["numpy", "tables", "torch", "onnx"])
def test_exports_know_lists(bundle, text, table, tmp_path, format):
    if format == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")
    folder = export_bundle(bundle, tmp_path / "e", format).path
    assert (folder / "rows.onnx").exists() == (format == "onnx")
    if format == "numpy":
        scorer = Scorer.load(folder)
        np.testing.assert_allclose(scorer.predict(text.head(300)), bundle.predict(text.head(300)), atol=1e-5)
        np.testing.assert_allclose(scorer.predict(table.head(300)), bundle.predict(text.head(300)), atol=1e-5)
    if format == "onnx":
        import json

        sample = json.loads((folder / "sample.json").read_text())
        session = onnxruntime.InferenceSession(folder / "model.onnx")
        (found,) = session.run(None, {"ids": np.array(sample["ids"], dtype=np.int64)})
        np.testing.assert_allclose(found, sample["click"], atol=1e-5)


@pytest.mark.parametrize("keep", ["first", "last"])
def test_onnx_reads_the_values_that_are_kept(table, tmp_path, keep):
    """More of them than are kept, and fewer; an empty text stands for none, wherever it is."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")
    table.write_parquet(tmp_path / "t.parquet")
    spec = DataSpec(multi={"multi_0": {"max_length": 2, "keep": keep}})
    data = build_dataset(spec, tmp_path / "t.parquet", tmp_path / "cache")
    trial = {"arm": "a", "stages": [{"method": "uniform"}], "limit": {"width": 4}, "train": TRAIN | {"epochs": 1}}
    _, model = run_trial(check(trial), data, lambda event: None)
    bundle = written(tmp_path / "b", data.schema, data.vocabulary, model)
    session = onnxruntime.InferenceSession(export_bundle(bundle, tmp_path / "e", "onnx").path / "rows.onnx")
    values = data.vocabulary.keep(["multi_0"]).table()["value"].drop_nulls().to_list()
    rng = np.random.default_rng(0)
    for width in (1, 2, 6):
        lists = rng.choice(["", "nobody", *values[:9]], (200, width))
        lists[:5] = ""
        rows = table.head(200).with_columns(multi_0=pl.Series([[one for one in row if one] for row in lists.tolist()]))
        feeds = {
            name: rows[name].cast(pl.String).fill_null("").to_numpy().astype(object) for name in data.schema.names[:-1]
        }
        (found,) = session.run(None, feeds | {"multi_0": lists.astype(object)})
        np.testing.assert_allclose(found, bundle.predict(rows), atol=1e-6)


def test_a_refresh_reads_lists_as_the_bundle_does(bundle, text, tmp_path):
    new = text.with_columns(pl.col("multi_0").str.replace("v01", "new"))
    new.write_parquet(tmp_path / "new.parquet")
    done = refresh(bundle.path, tmp_path / "new.parquet", tmp_path / "next", vocabulary="grow", epochs=1)
    after = ae.load_bundle(tmp_path / "next")
    assert after.schema.fields[-1].multi == bundle.schema.fields[-1].multi
    assert "new" in after.vocabulary.keep(["multi_0"]).table()["value"].to_list()
    assert done.after.auc > 0.6


def test_the_ranking_of_a_dataset_counts_values(data, table, tmp_path):
    found = rank(data).table
    assert found["feature"][0] == "multi_0"
    assert found["kind"][0] == "multi-valued"
    train = table.head(0)
    assert train.columns[-1] == "multi_0"
    whole = rank_table(table).table
    assert whole.filter(pl.col("feature") == "multi_0")["mi"][0] == pytest.approx(found["mi"][0], rel=0.3)


def test_a_plain_model_loses_most_without_the_lists(data):
    _, model = run_trial(
        check({"arm": "a", "stages": [{"method": "uniform"}], "limit": {"width": 4}, "train": TRAIN}),
        data,
        lambda event: None,
    )
    assert field_scores(model, data, "valid")["field"][0] == "multi_0"


# The label goes with the mean of the values' effects, which the largest one says less of.
@pytest.mark.parametrize(
    ("method", "pool", "least"), [("dnis", "mean", 0.8), ("sensitivity", "sum", 0.8), ("ihas", "max", 0.65)]
)
def test_a_tight_budget_goes_to_the_lists(data, method, pool, least):
    config = {
        "arm": method,
        "stages": [{"method": method, "warm_epochs": 2, **({"clusters": 1} if method == "ihas" else {})}],
        "embedding": {"dim": 4, "blocks": 2, "pool": pool},
        "backbone": {"name": "fm"},
        "limit": {"embedding_bytes": 250},
        "train": TRAIN,
    }
    result, _ = run_trial(check(config), data, lambda event: None)
    lists = result.architecture.fields[-1]
    assert (lists.name, lists.pool.by) == ("multi_0", pool)
    assert lists.blocks[-1].dims
    assert result.valid.auc > least


def test_a_list_where_the_bundle_has_one_value_is_refused(bundle, text):
    with pytest.raises(DataError, match="multi-valued column 'multi_0' must hold lists"):
        bundle.predict(text.with_columns(multi_0=pl.lit(3)))


def test_a_pair_of_lists_is_refused(data, tmp_path):
    from autoembed.data.crosses import CrossSpec

    with pytest.raises(DataError, match="'multi_0' holds several"):
        data.cross([("marginal_0", "multi_0")], CrossSpec(), tmp_path, candidates=False)
    assert issubclass(BundleError, Exception)


@pytest.fixture(scope="module")
def viewed():
    """Views of items, each with the items before; a click goes with the item, and with having seen it before."""
    rng = np.random.default_rng(0)
    items, effects = rng.geometric(0.08, 4000), rng.normal(size=300)
    history = [items[max(0, at - size) : at].tolist() for at, size in enumerate(rng.integers(0, 5, 4000))]
    seen = np.array([item in before for item, before in zip(items, history, strict=True)])
    rate = 1 / (1 + np.exp(-(1.5 * effects[items] + 3 * seen - 0.7)))
    return pl.DataFrame({"label": (rng.random(4000) < rate).astype(int), "item": items, "history": history})


@pytest.mark.parametrize("method", ["sensitivity", "magnitude", "ihas", "select"])
def test_a_history_reads_the_table_of_items(viewed, tmp_path, method):
    stage = {"method": method, "warm_epochs": 2} | ({"clusters": 2, "epochs": 1} if method == "ihas" else {})
    data = {"multi": {"history": {"shared": "item", "max_length": 4}}}
    classifier(data=data, stages=[stage], budget={"embedding_bytes": 3000}).fit(viewed).export(tmp_path / "b")
    bundle = ae.load_bundle(tmp_path / "b")
    for part in bundle.architecture.clusters or (bundle.architecture,):
        assert part.names == ("item",)
        assert part.inputs == ("item", "history")
    assert ae.metrics.evaluate(viewed["label"].to_numpy(), np.log(bundle.predict(viewed))).auc > 0.7
    scorer = Scorer.load(export_bundle(bundle, tmp_path / "numpy", "numpy").path)
    np.testing.assert_allclose(scorer.predict(viewed.head(200)), bundle.predict(viewed.head(200)), atol=1e-5)
    if method == "magnitude":
        viewed.tail(2000).write_parquet(tmp_path / "new.parquet")
        done = refresh(tmp_path / "b", tmp_path / "new.parquet", tmp_path / "next", vocabulary="grow", epochs=1)
        assert ae.load_bundle(tmp_path / "next").architecture.inputs == ("item", "history")
        assert done.after.auc > 0.6


def test_attention_sees_whether_an_item_was_seen(viewed, tmp_path):
    """Seen before or not is what the mean of the items before can hardly tell."""
    found, rows = {}, np.arange(len(viewed)) % 4 == 0
    for pool in ("mean", "attention"):
        model = ae.AutoEmbedClassifier(
            stages=[{"method": "uniform"}],
            budget={"width": 8},
            embedding={"dim": 8, "blocks": 2, "pool": {"history": pool}},
            backbone="fm",
            train=TRAIN | {"epochs": 12, "l2": 1e-5},
            data={"multi": {"history": {"shared": "item", "max_length": 4}}},
            random_state=0,
        )
        model.fit(viewed.filter(~rows)).export(tmp_path / pool)
        bundle = ae.load_bundle(tmp_path / pool)
        found[pool] = ae.metrics.evaluate(
            viewed.filter(rows)["label"].to_numpy(), np.log(bundle.predict(viewed.filter(rows)))
        ).auc
    assert found["attention"] > found["mean"] + 0.005
    assert verify_bundle(bundle.path)
    for format in ("numpy", "onnx", "torch"):
        export_bundle(bundle, tmp_path / format, format)  # each is held against the bundle's predictions
    scorer = Scorer.load(tmp_path / "numpy")
    np.testing.assert_allclose(scorer.predict(viewed.head(200)), bundle.predict(viewed.head(200)), atol=1e-5)


def test_hashed_columns_score_the_same_wherever_they_are_scored(tmp_path):
    from autoembed.serving.rows import RowReader

    rng = np.random.default_rng(0)
    users = [f"u{one}" for one in rng.zipf(1.5, 3000) % 700]
    label = np.array([hash_of(one) for one in users]) + (rng.random(3000) < 0.2) > 0.5
    tags = [[users[at], users[at - 1]] for at in range(3000)]
    table = pl.DataFrame({"label": label.astype(int), "user": users, "tags": tags, "site": rng.integers(0, 5, 3000)})
    data = {"hash": {"user": 20, "tags": 10}, "min_count": 5}
    classifier(data=data, stages=[{"method": "uniform"}], budget={"width": 4}).fit(table).export(tmp_path / "b")
    bundle = ae.load_bundle(tmp_path / "b")
    rows = pl.DataFrame({"user": ["u1", "new", "u650", None, "7"], "tags": [["u1", "z"], [], ["new"], None, ["u1"]]})
    rows = rows.with_columns(site=pl.lit(1))
    expected = bundle.predict(rows)
    assert expected[1] != bundle.predict(rows.with_columns(user=pl.lit("other")))[1]
    scorer = Scorer.load(export_bundle(bundle, tmp_path / "numpy", "numpy").path)
    np.testing.assert_allclose(scorer.predict(rows), expected, atol=1e-5)
    reader = RowReader(bundle, max_rows=10, strict=False)
    served = reader.ids([rows[name].to_list() for name in reader.columns])
    assert np.array_equal(np.where(served < -1, 0, served), bundle.vocabulary.encode(rows))
    assert bundle.example()["user"][0] == "u1"
    shares = bundle.coverage(rows).row(by_predicate=pl.col("field") == "user", named=True)
    assert shares["unknown"] == pytest.approx(3 / 5)


def hash_of(text):
    return int(text[1:]) % 2


def test_clusters_of_lists_alone_need_the_centroids(tmp_path):
    planted(PlantedSpec(rows=600, marginal=(), xor=(), low_rank=(), noise=(), multi=(9,)))[0].drop(
        "logit"
    ).write_parquet(tmp_path / "t.parquet")
    data = build_dataset(DataSpec(), tmp_path / "t.parquet", tmp_path / "cache")
    stage = {"method": "ihas", "warm_epochs": 1, "epochs": 1}
    config = {"arm": "a", "limit": {"width": 2}, "backbone": {"name": "dnn", "hidden": [4]}, "train": {"epochs": 1}}
    with pytest.raises(SpaceError, match="there is none: set router: centroid"):
        run_trial(check({**config, "stages": [stage]}), data, lambda event: None)
    run_trial(check({**config, "stages": [{**stage, "router": "centroid"}]}), data, lambda event: None)
