"""Bundles of several labels: predictions, quality, samples, retraining, refreshing, requests and exports."""

import io
import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import roc_auc_score

from autoembed.auxiliary import auxiliary_metrics, predict_auxiliary, recorded
from autoembed.bundle import check_bundle, load_bundle, verify_bundle, write_bundle
from autoembed.cli import main
from autoembed.cli.refresh import _told
from autoembed.data.readers import DataSpec
from autoembed.errors import BundleError, DataError, SpaceError
from autoembed.export.formats import export_bundle
from autoembed.export.scorer import Scorer
from autoembed.refreshing import refresh
from autoembed.reuse import carried, train_architecture, with_weights_of
from autoembed.scoring import score_table
from autoembed.serving.app import _answer
from autoembed.serving.state import Loaded
from autoembed.task import told
from autoembed.training import predict
from autoembed.trial import check, run_trial
from tests.purchases import PLAIN, dataset_of, gaps, table

CPU = torch.device("cpu")
DATA = {"label": "bought", "drop": ["w", "known"], "categorical": ["user", "item"], "auxiliary_labels": ["click"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset_of(tmp_path_factory.mktemp("data") / "both", change=gaps, auxiliary_labels=["click"])


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """A trial's bundle."""
    config = check(
        {
            "arm": "x",
            "stages": [{"method": "uniform", "bits": 8}],
            "embedding": {"dim": 4, "blocks": 2},
            "backbone": PLAIN | {"batch_norm": True},
            "train": {"epochs": 2, "batch_size": 512, "lr": 0.01},
            "limit": {"width": 3},
        }
    )
    result, model = run_trial(config, data, lambda event: None)
    path = tmp_path_factory.mktemp("made") / "bundle"
    write_bundle(
        path,
        schema=data.schema,
        vocabulary=data.vocabulary,
        architecture=result.architecture,
        model=model,
        data=DataSpec.model_validate(DATA | {"min_count": 1}).model_dump(
            mode="json", exclude={"path", "split", "planted"}
        ),
        metrics=recorded("valid", result.valid, result.auxiliary),
        provenance={"train": config.train.model_dump(mode="json")},
    )
    return path


@pytest.fixture
def rows(tmp_path):
    frame = gaps(table(800, 7))
    frame.write_parquet(tmp_path / "rows.parquet")
    return tmp_path / "rows.parquet"


def test_a_bundle_predicts_each_label_as_its_model_does(made, data):
    bundle = load_bundle(made)
    assert bundle.schema.auxiliary_labels == ("click",)
    assert verify_bundle(made)[-1].startswith("64 stored predictions are the same")
    frame = pl.read_parquet(data.path.parents[1] / "test.parquet")
    found = bundle.predict_all(frame.drop("click", "bought"))
    assert found.columns == ["prediction", "prediction_click"]
    assert np.allclose(found["prediction"], predict(bundle.model, data, "test", CPU), atol=1e-6)
    assert np.allclose(found["prediction_click"], predict_auxiliary(bundle.model, data, "test", CPU)[:, 0], atol=1e-6)
    assert np.array_equal(found["prediction"], bundle.predict(frame))
    wanted = auxiliary_metrics(bundle.model, data, "valid", CPU)["click"]
    assert bundle.manifest.metrics["valid.click"] == pytest.approx(wanted.model_dump())
    card = (made / "README.md").read_text()
    assert "Beside it, it predicts the probabilities of `click`, from the same embeddings." in card
    assert f"- valid.click: AUC {wanted.auc:.4f}" in card


def test_a_tower_that_predicts_otherwise_is_found(made, tmp_path):
    path = tmp_path / "bundle"
    shutil.copytree(made, path)
    bundle = load_bundle(path)
    with torch.no_grad():
        bundle.model.heads.towers[0].output.bias += 1
    with pytest.raises(BundleError, match="the model must predict to 1e-05 what it did"):
        check_bundle(bundle)


def test_a_table_is_scored_with_a_column_and_a_quality_for_each_label(made, rows, tmp_path, monkeypatch, capsys):
    bundle = load_bundle(made)
    scored = score_table(bundle, str(rows), keep=["user"])
    assert scored.table.columns == ["user", "prediction", "prediction_click"]
    frame = pl.read_parquet(rows)
    known = frame["click"].is_not_null().to_numpy()
    auc = roc_auc_score(frame["click"].drop_nulls(), scored.table["prediction_click"].to_numpy()[known])
    assert f"; click: AUC {auc:.4f}, logloss " in scored.quality
    assert scored.quality.startswith("on its 800 labelled rows AUC ")
    weighted = score_table(bundle, str(rows), settings={"weight": "w", "drop": ["known"]})
    own = roc_auc_score(
        frame["click"].drop_nulls(),
        scored.table["prediction_click"].to_numpy()[known],
        sample_weight=frame["w"].to_numpy()[known],
    )
    assert f"; click: AUC {own:.4f}, " in weighted.quality
    frame.drop("click", "bought").write_parquet(tmp_path / "bare.parquet")
    assert score_table(bundle, str(tmp_path / "bare.parquet")).quality == ""
    frame.drop("bought").write_parquet(tmp_path / "clicks.parquet")
    assert score_table(bundle, str(tmp_path / "clicks.parquet")).quality.startswith("click: AUC ")
    frame.with_columns(click=pl.lit("often")).write_parquet(tmp_path / "wrong.parquet")
    assert (
        "no AUC of click: auxiliary label 'click' must be 0, 1"
        in score_table(bundle, str(tmp_path / "wrong.parquet")).quality
    )
    frame.with_columns(prediction_click=1).write_parquet(tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="would stand beside the new predictions under one name"):
        score_table(bundle, str(tmp_path / "twice.parquet"), keep=["prediction_click"])
    out = tmp_path / "out.parquet"
    monkeypatch.setattr("sys.argv", ["autoembed", "predict", str(made), str(rows), "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (0, None)
    assert "click: AUC" in capsys.readouterr().out
    assert pl.read_parquet(out).columns == ["prediction", "prediction_click"]


def test_requests_are_answered_for_each_label(made):
    bundle = load_bundle(made)
    loaded = Loaded(bundle, "x", max_rows=100, strict=False)
    rows = [{"user": "u1", "item": "i1"}, {"user": "u2", "item": "new"}]
    body = json.dumps({"rows": rows}).encode()
    _, content = _answer(loaded, "application/json", body, arrow=False)
    told = json.loads(content)
    wanted = bundle.predict_all(pl.DataFrame(rows))
    assert np.allclose(told["predictions"], wanted["prediction"], atol=1e-6)
    assert np.allclose(told["auxiliary"]["click"], wanted["prediction_click"], atol=1e-6)
    _, content = _answer(loaded, "application/json", body, arrow=True)
    assert pl.read_ipc_stream(io.BytesIO(content)).columns == ["prediction", "prediction_click"]
    assert loaded.facts()["auxiliary_labels"] == ("click",)


def later(folder, frame):
    """A log with a click beside each row."""
    path = folder / "log.parquet"
    frame.write_parquet(path)
    return str(path)


def test_a_bundle_is_refreshed_and_retrained_with_its_labels(made, tmp_path):
    log = later(tmp_path, gaps(table(6000, 11)))
    done = refresh(made, log, tmp_path / "fresh", epochs=1)
    assert set(done.bundle.manifest.metrics) == {"valid", "test", "valid.click", "test.click"}
    assert verify_bundle(done.bundle.path)
    before, after = done.further["click"]
    assert after.auc == pytest.approx(done.bundle.manifest.metrics["test.click"]["auc"])
    assert 0.5 < before.auc != after.auc
    assert _told(done)[2] == f"the same of click: {told(before)}; after: {told(after)}"
    warm = train_architecture(made, log, tmp_path / "warm", warm=True, train={"epochs": 1})
    assert set(warm.auxiliary) == {"click"}
    assert warm.bundle.manifest.metrics["test.click"]["auc"] == pytest.approx(warm.auxiliary["click"].auc)
    settings = {**DATA, "min_count": 1}
    cold = train_architecture(
        made / "architecture.json", log, tmp_path / "cold", label="bought", settings=settings, train={"epochs": 1}
    )
    assert cold.bundle.architecture.auxiliary_labels == ("click",)


def test_the_towers_are_taken_over_where_the_values_stay(made, data):
    bundle = load_bundle(made)
    model = with_weights_of(bundle, carried(bundle.architecture, data.schema), data)
    ids = torch.from_numpy(data.ids("valid")[:100])
    for ours, theirs in zip(model.eval().all_logits(ids), bundle.model.all_logits(ids), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_table_without_a_label_of_the_architecture_is_refused(made, tmp_path):
    frame = gaps(table(3000, 11))
    with pytest.raises(DataError, match="the log lacks the auxiliary label 'click' of the bundle: bring it back"):
        refresh(made, later(tmp_path, frame.drop("click")), tmp_path / "fresh")
    settings = {key: value for key, value in DATA.items() if key != "auxiliary_labels"} | {"drop": ["click"]}
    with pytest.raises(SpaceError, match="predicts the auxiliary label 'click', which the table must have: list it"):
        train_architecture(made / "architecture.json", later(tmp_path, frame), tmp_path / "no", settings=settings)


def test_onnx_has_a_second_output_and_other_formats_say_what_they_leave_out(made, data, tmp_path):
    bundle = load_bundle(made)
    export_bundle(bundle, tmp_path / "numpy", "numpy")
    scorer, ids = Scorer.load(tmp_path / "numpy"), data.ids("valid")[:50]
    assert np.allclose(scorer.predict_ids(ids), bundle.predict_ids(ids), atol=1e-5)
    assert "It predicts bought alone; the bundle predicts click as well." in (tmp_path / "numpy/README.md").read_text()
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export_bundle(bundle, tmp_path / "onnx", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    assert [one.name for one in session.get_outputs()] == ["click", "auxiliary"]
    click, further = session.run(None, {"ids": ids.astype(np.int64)})
    assert np.allclose(click, bundle.predict_ids(ids), atol=1e-5)
    wanted = predict_auxiliary(bundle.model, data, "valid", CPU)[:50]
    assert np.allclose(further, wanted, atol=1e-5)
    rows = onnxruntime.InferenceSession(tmp_path / "onnx" / "rows.onnx")
    raw = {"user": np.array(["u1", "u2"], dtype=object), "item": np.array(["i1", "new"], dtype=object)}
    found = bundle.predict_all(pl.DataFrame({name: values.tolist() for name, values in raw.items()}))
    assert np.allclose(rows.run(None, raw)[1][:, 0], found["prediction_click"], atol=1e-5)
    readme = (tmp_path / "onnx" / "README.md").read_text()
    assert "click, auxiliary = session.run(None, feeds)" in readme
    assert "are the probabilities of click, in this order" in readme
