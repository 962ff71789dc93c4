"""Bundles of several classes: predictions, quality, samples, requests, exports, retraining, refreshing, estimators."""

import io
import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_score

import autoembed as ae
from autoembed.bundle import check_bundle, load_bundle, verify_bundle, write_bundle
from autoembed.drafting import draft
from autoembed.errors import BundleError, DataError, SpaceError
from autoembed.export.formats import export_bundle
from autoembed.export.scorer import Scorer
from autoembed.refreshing import refresh
from autoembed.reuse import train_architecture
from autoembed.scoring import score_table
from autoembed.serving.app import ARROW, JSON, _answer
from autoembed.serving.state import Loaded
from autoembed.training import predict
from autoembed.trial import check, run_trial
from tests.actions import ACTIONS, PLAIN, SPLIT, TRAIN, dataset_of, places, table

CPU = torch.device("cpu")
DATA = {"task": "multiclass", "label": "action", "min_count": 1}
COLUMNS = [f"prediction_{name}" for name in ACTIONS]


def log(rows, seed):
    return table(rows, seed).drop("p0", "p1", "p2", "p3")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset_of(tmp_path_factory.mktemp("data"), categorical=["user", "item", "place", "noise"])


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """A trial's model in 8 bits, and its bundle."""
    config = check(
        {
            "arm": "x",
            "stages": [{"method": "uniform", "bits": 8}],
            "monitor": "valid_cross_entropy",
            "embedding": {"dim": 4, "blocks": 2},
            "backbone": PLAIN,
            "tower": {"bits": 8},
            "train": TRAIN,
            "limit": {"width": 1},
        }
    )
    result, model = run_trial(config, data, lambda event: None)
    path = write_bundle(
        tmp_path_factory.mktemp("made") / "bundle",
        schema=data.schema,
        vocabulary=data.vocabulary,
        architecture=result.architecture,
        model=model,
        data=DATA,
        metrics={"valid": result.valid.model_dump()},
        provenance={"train": config.train.model_dump(mode="json"), "monitor": config.monitor},
    )
    return model, load_bundle(path)


def test_a_bundle_predicts_what_the_packed_model_does(made, data):
    model, bundle = made
    assert bundle.architecture.outputs == 4
    rows, ids = log(200, 3), data.ids("test")
    found = bundle.predict(rows, device="cpu")
    assert found.shape == (200, 4)
    assert np.allclose(found.sum(1), 1, atol=1e-6)
    assert np.allclose(bundle.predict_ids(ids), predict(model, data, "test", CPU), atol=1e-6)
    frame = bundle.predict_all(rows, device="cpu")
    assert frame.columns == COLUMNS
    assert np.array_equal(frame.to_numpy(), found)
    assert log_loss(places(rows), found.astype(float), labels=range(4)) < 1.1
    assert bundle.coverage(rows)["field"].to_list() == ["user", "item", "place", "noise"]


def test_a_bundle_is_verified_by_its_sample_and_its_card_names_the_classes(made, tmp_path):
    _, bundle = made
    assert "64 stored predictions are the same" in verify_bundle(bundle.path)[-1]
    sample = json.loads((bundle.path / "sample.json").read_text())
    assert list(sample["classes"]) == list(ACTIONS)
    card = (bundle.path / "README.md").read_text()
    assert "predicts the probability of each class of `action` (buy, cart, leave, like) for each row." in card
    assert "cross-entropy" in card
    shutil.copytree(bundle.path, tmp_path / "other")
    other = load_bundle(tmp_path / "other")
    with torch.no_grad():
        other.model.backbone.output.bias[2] += 1
    with pytest.raises(BundleError, match="a prediction differs by"):
        check_bundle(other)


def test_tables_are_scored_by_class_and_told_with_the_labels_that_they_have(made, tmp_path):
    _, bundle = made
    log(400, 4).write_parquet(tmp_path / "t.parquet")
    scored = score_table(bundle, str(tmp_path / "t.parquet"), keep=["action"], device="cpu")
    assert scored.table.columns == ["action", *COLUMNS]
    assert scored.quality.startswith("on its 400 labelled rows cross-entropy ")
    log(400, 4).drop("action").write_parquet(tmp_path / "new.parquet")
    assert score_table(bundle, str(tmp_path / "new.parquet"), device="cpu").quality == ""
    # Fewer classes than the model knows are judged as they are; one that it does not know is told.
    log(400, 4).filter(pl.col("action") != "buy").write_parquet(tmp_path / "few.parquet")
    assert "cross-entropy" in score_table(bundle, str(tmp_path / "few.parquet"), device="cpu").quality
    log(400, 4).with_columns(action=pl.lit("sold")).write_parquet(tmp_path / "other.parquet")
    told = score_table(bundle, str(tmp_path / "other.parquet"), device="cpu").quality
    assert told.startswith("no cross-entropy: label 'action' has the class 'sold', which is none of buy, cart")
    for settings in ({"classes": [*ACTIONS, "sold"]}, {"task": "clicks", "classes": None}):
        with pytest.raises(DataError, match=r"leave data\.task and data\.classes as they are"):
            score_table(bundle, str(tmp_path / "t.parquet"), device="cpu", settings=settings)
    log(10, 0).with_columns(prediction_buy=1).write_parquet(tmp_path / "named.parquet")
    with pytest.raises(DataError, match=r"prediction_buy.* would stand beside the new predictions"):
        score_table(bundle, str(tmp_path / "named.parquet"), keep=["prediction_buy"], device="cpu")


def test_requests_are_answered_with_a_column_for_each_class(made):
    _, bundle = made
    served = Loaded(bundle, "x", max_rows=100, strict=False)
    rows = log(20, 5).drop("action")
    wanted = bundle.predict(rows, device="cpu")
    _, content = _answer(served, JSON, json.dumps({"rows": rows.to_dicts()}).encode(), arrow=False)
    found = json.loads(content)["predictions"]
    assert list(found) == list(ACTIONS)
    assert np.allclose(np.array([*found.values()]).T, wanted, atol=1e-6)
    stream = io.BytesIO()
    rows.write_ipc_stream(stream)
    _, content = _answer(served, ARROW, stream.getvalue(), arrow=True)
    frame = pl.read_ipc_stream(io.BytesIO(content))
    assert frame.columns == COLUMNS
    assert np.allclose(frame.to_numpy(), wanted, atol=1e-6)
    assert served.facts()["classes"] == ACTIONS


def test_exported_models_give_the_chances_of_all_classes(made, data, tmp_path):
    _, bundle = made
    ids = data.ids("test")[:50].astype(np.int64)
    wanted = bundle.predict_ids(ids.astype(np.int32))
    program = torch.export.load(export_bundle(bundle, tmp_path / "torch", "torch").path / "model.pt2")
    assert np.allclose(program.module()(torch.from_numpy(ids)).detach(), wanted, atol=1e-5)
    scorer = Scorer.load(export_bundle(bundle, tmp_path / "numpy", "numpy").path)
    assert np.allclose(scorer.predict_ids(ids), wanted, atol=1e-5)
    rows = log(30, 6)
    assert np.allclose(scorer.predict_proba(rows), bundle.predict(rows, device="cpu"), atol=1e-5)
    text = (tmp_path / "numpy" / "README.md").read_text()
    assert "chances = model.predict" in text
    assert "float32 [N, 4]" in text
    assert "the probabilities of these classes of action: buy, cart, leave, like." in text
    tables = export_bundle(bundle, tmp_path / "tables", "tables").path
    said = json.loads((tables / "tables.json").read_text())
    assert said["prediction"] == {"link": "softmax", "classes": list(ACTIONS)}
    assert "the towers for" not in (tables / "README.md").read_text()
    for format in ("fuxictr", "torchrec"):
        with pytest.raises(
            BundleError, match=rf"{format} has one prediction a row.* use onnx, torch, aoti, numpy, tab"
        ):
            export_bundle(bundle, tmp_path / format, format)


@pytest.mark.slow
def test_onnx_gives_the_chances_of_all_classes(made, data, tmp_path):
    pytest.importorskip("onnx", reason="needs the package onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")
    _, bundle = made
    folder = export_bundle(bundle, tmp_path / "onnx", "onnx").path
    readme = (folder / "README.md").read_text()
    assert "chances, = session.run(None, feeds)" in readme
    assert "these classes of action: buy, cart, leave, like." in readme
    assert "auxiliary" not in readme
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    ids = data.ids("test")[:50]
    assert [one.name for one in session.get_outputs()] == ["chances"]
    found = session.run(None, {"ids": ids.astype(np.int64)})[0]
    assert np.allclose(found, bundle.predict_ids(ids), atol=1e-5)
    rows = log(40, 7).drop("action")
    session = onnxruntime.InferenceSession(folder / "rows.onnx")
    feeds = {one.name: np.array([str(value) for value in rows[one.name]], dtype=object) for one in session.get_inputs()}
    assert np.allclose(session.run(None, feeds)[0], bundle.predict(rows, device="cpu"), atol=1e-5)


@pytest.fixture(scope="module")
def wide(data, tmp_path_factory):
    """A bundle in 32 bits, whose weights can be trained on."""
    config = check(
        {
            "arm": "x",
            "stages": [{"method": "uniform"}],
            "monitor": "valid_cross_entropy",
            "embedding": {"dim": 4, "blocks": 2},
            "backbone": PLAIN,
            "train": TRAIN,
        }
    )
    result, model = run_trial(config, data, lambda event: None)
    return write_bundle(
        tmp_path_factory.mktemp("wide") / "bundle",
        schema=data.schema,
        vocabulary=data.vocabulary,
        architecture=result.architecture,
        model=model,
        data=DATA,
        metrics={},
        provenance={"train": config.train.model_dump(mode="json"), "monitor": config.monitor},
    )


def test_an_architecture_is_trained_on_another_table_warm_or_from_fresh_weights(wide, tmp_path):
    log(3000, 8).write_parquet(tmp_path / "new.parquet")
    settings = {"split": SPLIT}
    fresh = train_architecture(wide, str(tmp_path / "new.parquet"), tmp_path / "fresh", settings=settings)
    warm = train_architecture(
        wide, str(tmp_path / "new.parquet"), tmp_path / "warm", settings=settings, train={"epochs": 1}, warm=True
    )
    assert warm.test.cross_entropy < fresh.test.cross_entropy
    assert warm.bundle.schema.classes.names == ACTIONS
    more = log(3000, 8).with_columns(action=pl.when(pl.col("noise") < 4).then(pl.lit("skip")).otherwise("action"))
    more.write_parquet(tmp_path / "more.parquet")
    with pytest.raises(DataError, match=r"has the class 'skip', which is none of .* list it under data\.classes"):
        train_architecture(wide, str(tmp_path / "more.parquet"), tmp_path / "more", settings=settings)
    five = settings | {"classes": [*ACTIONS, "skip"]}
    grown = train_architecture(wide, str(tmp_path / "more.parquet"), tmp_path / "more", settings=five)
    assert grown.bundle.architecture.outputs == 5
    with pytest.raises(SpaceError, match="were trained for the classes buy, cart, leave, like"):
        train_architecture(wide, str(tmp_path / "more.parquet"), tmp_path / "no", settings=five, warm=True)
    settings |= {"task": "ratings", "classes": None, "label": "noise"}
    with pytest.raises(SpaceError, match=r"valid cross-entropy is a metric of multiclass, but data\.task is ratings"):
        train_architecture(wide, str(tmp_path / "more.parquet"), tmp_path / "no", settings=settings, warm=True)


def test_a_bundle_is_trained_on_with_a_later_log(wide, tmp_path):
    # The actions of the later log are others: what was a buy is now a like.
    turned = dict(zip(ACTIONS, (*ACTIONS[1:], ACTIONS[0]), strict=True))
    log(4000, 9).with_columns(pl.col("action").replace(turned)).write_parquet(tmp_path / "new.parquet")
    done = refresh(wide, tmp_path / "new.parquet", tmp_path / "out", epochs=4, memory=0.0, settings={"split": SPLIT})
    assert done.kept
    assert done.after.cross_entropy < done.before.cross_entropy - 0.5
    assert done.bundle.schema.classes.names == ACTIONS
    log(2000, 9).filter(pl.col("action") != "cart").write_parquet(tmp_path / "few.parquet")
    with pytest.raises(DataError, match="must have rows of each class in train, but has none of cart"):
        refresh(wide, tmp_path / "few.parquet", tmp_path / "few", settings={"split": SPLIT})


def test_the_classifier_takes_more_than_two_classes(tmp_path):
    rows, new = log(4000, 0), log(1000, 1)
    options = {"embedding": {"dim": 4, "blocks": 2}, "backbone": PLAIN, "train": TRAIN, "random_state": 0}
    one = ae.AutoEmbedClassifier(budget={"embedding_bytes": 700}, label="action", **options).fit(rows)
    assert one.classes_.tolist() == list(ACTIONS)
    chances = one.predict_proba(new)
    assert chances.shape == (1000, 4)
    assert (one.predict(new) == one.classes_[chances.argmax(1)]).all()
    assert one.score(new, new["action"].to_numpy()) > 0.5
    assert one.architecture_.cost.embedding_bytes <= 700
    bundle = one.export(tmp_path / "out")
    assert np.array_equal(bundle.predict(new), chances)
    assert bundle.predict_all(new).columns == COLUMNS
    # Numbers are classes by their size, whatever their text; the backbone is one that gives classes.
    few = options | {"train": {"epochs": 1, "batch_size": 512}, "backbone": None}
    code = np.array([10, 9, 2, -1])[places(rows)]
    found = ae.AutoEmbedClassifier(**few).fit(rows.drop("action"), code)
    assert found.classes_.tolist() == [-1, 2, 9, 10]
    assert found.bundle_.schema.classes.names == ("-1", "2", "9", "10")
    assert found.bundle_.architecture.backbone["name"] == "dcn"
    with pytest.raises(SpaceError, match="backbone deepfm sums numbers to one"):
        ae.AutoEmbedClassifier(**few | {"backbone": "deepfm"}).fit(rows.drop("action"), code)
    with pytest.raises(ValueError, match="at most 255 classes, but has 4000"):
        ae.AutoEmbedClassifier(**few).fit(rows.drop("action"), np.arange(4000))
    with pytest.raises(ValueError, match="classes must differ as text, and none be missing"):
        ae.AutoEmbedClassifier(**few).fit(rows.drop("action"), np.array(["a", "", "b", "c"])[places(rows)])


def test_the_classifier_is_cross_validated(tmp_path):
    rows = log(1500, 0)
    few = {"embedding": {"dim": 4}, "backbone": PLAIN, "train": TRAIN, "random_state": 0}
    found = cross_val_score(
        ae.AutoEmbedClassifier(**few), rows.drop("action").to_pandas(), rows["action"].to_numpy(), cv=2,
        scoring="neg_log_loss",
    )  # fmt: skip
    assert found.min() > -1.35


def test_a_first_space_is_drafted_for_classes(tmp_path):
    log(600, 0).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"say which count as 1, .* or predict which it is by .*task=multiclass"):
        draft(str(tmp_path / "t.parquet"), tmp_path / "cache", label="action")
    drafted = draft(str(tmp_path / "t.parquet"), tmp_path / "cache", label="action", settings={"task": "multiclass"})
    text = drafted.text
    assert "task: multiclass" in text
    assert "backbone: {name: dcn" in text
    assert "objective: {minimize: valid.cross_entropy}" in text
    assert "4 classes, of " in text
