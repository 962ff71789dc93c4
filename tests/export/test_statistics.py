"""Target statistics of plain and of crossed columns: all ways of scoring raw rows give what the bundle does."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from autoembed.architecture import Architecture
from autoembed.bundle import verify_bundle
from autoembed.data.dataset import build_dataset
from autoembed.data.spec import DataSpec
from autoembed.export.formats import export_bundle
from autoembed.export.scorer import Scorer
from autoembed.nn.model import build_model
from autoembed.serving.rows import RowReader
from tests.export.written import written

NEW = {"user": "new", "shop": "s1"}
ROWS = 1200


@pytest.fixture(scope="module", params=[[], ["user", "user*shop"]], ids=["beside", "replaced"])
def scored(request, tmp_path_factory):
    """A bundle of drawn weights that reads click rates, and raw rows with new and with missing values."""
    folder, rng = tmp_path_factory.mktemp("statistics"), np.random.default_rng(0)
    user, shop = rng.integers(0, 200, ROWS), rng.integers(0, 9, ROWS)
    table = pl.DataFrame(
        {
            "user": [None if n % 40 == 0 else f"u{n}" for n in user],
            "shop": [f"s{n}" for n in shop],
            "label": (rng.random(ROWS) < 0.2 + 0.6 * (user % 3 == 0)).astype(int),
        }
    )
    table.write_parquet(folder / "t.parquet")
    spec = {
        "crosses": {"pairs": [["user", "shop"]], "min_count": 2},
        "target_statistics": {"columns": ["user", "user*shop"], "bins": 6, "replace": request.param},
    }
    dataset = build_dataset(DataSpec.model_validate(spec), folder / "t.parquet", folder / "cache")
    backbone = {"name": "deepfm", "hidden": [8]}
    architecture = Architecture.full(dataset.schema, dataset.counts, dim=4, blocks=2, backbone=backbone)
    assert ("user" in architecture.names) is not bool(request.param)
    model = build_model(dataset.schema, architecture)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    bundle = written(folder / "bundle", dataset.schema, dataset.vocabulary, model)
    rows = pl.concat([table.head(300).drop("label"), pl.DataFrame([NEW] * 3)])
    return bundle, rows, folder


def test_a_bundle_needs_the_raw_columns_alone(scored):
    bundle, rows, _ = scored
    assert bundle.vocabulary.columns == ("user", "shop")
    assert set(bundle.example().columns) == {"user", "shop"}
    verify_bundle(bundle.path)
    found = bundle.predict(rows)
    rates = bundle.vocabulary.encode(rows)[:, bundle.schema.columns(["ctr(user)", "ctr(user*shop)"])]
    assert len(np.unique(rates[:, 0])) > 2
    assert np.std(found) > 0.01
    assert (rates > 0).all()


def test_numpy_scores_raw_rows(scored):
    bundle, rows, folder = scored
    out = export_bundle(bundle, folder / "numpy", "numpy").path
    model = Scorer.load(out)
    assert (model.ids(rows) == bundle.vocabulary.encode(rows)).all()
    np.testing.assert_allclose(model.predict(rows), bundle.predict(rows), atol=1e-5)


def test_onnx_scores_raw_rows(scored):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")
    bundle, rows, folder = scored
    out: Path = export_bundle(bundle, folder / "onnx", "onnx").path
    session = onnxruntime.InferenceSession(out / "rows.onnx")
    found = session.run(None, {name: rows[name].fill_null("").to_numpy().astype(object) for name in rows.columns})[0]
    np.testing.assert_allclose(found, bundle.predict(rows), atol=1e-5)


def test_the_server_reads_rows_as_the_bundle_does(scored):
    bundle, rows, _ = scored
    reader = RowReader(bundle, max_rows=1000, strict=True)
    ids = reader.json(json.dumps({"rows": rows.to_dicts()}).encode())
    assert (np.maximum(ids, 0) == bundle.vocabulary.encode(rows)).all()
