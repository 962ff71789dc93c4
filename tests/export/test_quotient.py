"""Models of remainders and quotients in every format: it scores as the bundle does, or one line says why it cannot."""

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file

from autoembed.card import sample_ids
from autoembed.errors import BundleError
from autoembed.export.formats import export_bundle
from autoembed.export.program import quiet
from autoembed.export.scorer import Scorer

KINDS = [("fm", 32, "mult"), ("deepfm", 3, "mult"), ("dnn", 4, "add")]


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(map(str, kind)))
def split(request, drawn):
    name, bits, combine = request.param
    options = {} if name == "fm" else {"hidden": [8]}
    bundle = drawn(name, storage="quotient_remainder", bits=bits, combine=combine, **options)
    parts = [bundle.architecture.storage.parts(field.cardinality) for field in bundle.architecture.fields]
    assert [len(own) for own in parts] == [2, 2, 1, 1]
    return bundle


def close(found, wanted):
    assert np.ptp(wanted) > 1e-3
    np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-5)


def test_torch_scores_ids(split, tmp_path):
    ids = sample_ids(split.schema, 50)
    with quiet():
        model = torch.export.load(export_bundle(split, tmp_path / "out", "torch").path / "model.pt2").module()
    close(model(torch.from_numpy(ids).long()), split.predict_ids(ids))


def test_numpy_scores_raw_rows(split, tmp_path):
    scorer = Scorer.load(export_bundle(split, tmp_path / "out", "numpy").path)
    rng = np.random.default_rng(1)
    rows = pl.DataFrame({name: [f"v{one}" for one in rng.integers(0, 60, 200)] for name in split.schema.names})
    close(scorer.predict(rows.to_dict(as_series=False)), split.predict(rows))


def test_onnx_scores_ids_and_raw_rows(split, tmp_path):
    pytest.importorskip("onnx", reason="needs the package onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")
    folder = export_bundle(split, tmp_path / "out", "onnx").path
    session, ids = onnxruntime.InferenceSession(folder / "model.onnx"), sample_ids(split.schema, 100)
    wanted = split.predict_ids(ids)
    for size in (7, 100):
        close(session.run(None, {"ids": ids[:size].astype(np.int64)})[0], wanted[:size])
    rng = np.random.default_rng(1)
    texts = {name: np.array([f"v{one}" for one in rng.integers(0, 60, 200)], object) for name in split.schema.names}
    session = onnxruntime.InferenceSession(folder / "rows.onnx")
    close(session.run(None, texts)[0], split.predict(pl.DataFrame({name: list(one) for name, one in texts.items()})))


@pytest.mark.slow
def test_a_compiled_model_scores_ids(split, tmp_path, sample):
    folder = export_bundle(split, tmp_path / "out", "aoti").path
    ids, click = sample(folder)
    model = torch._inductor.aoti_load_package(str(folder / "model.pt2"))
    for size in (2, 64):
        close(model(torch.from_numpy(ids[:size])).numpy(), click[:size])


def test_fuxictr_has_a_whole_row_for_each_value(drawn, tmp_path):
    bundle = drawn("fm", storage="quotient_remainder")
    weights = load_file(export_bundle(bundle, tmp_path / "out", "fuxictr").path / "weights.safetensors")
    ids = sample_ids(bundle.schema, 50)
    e, first = (
        np.stack(
            [
                weights[f"{layer}embedding_layer.embedding_layers.{name}.weight"][ids[:, place]]
                for place, name in enumerate(bundle.schema.names)
            ],
            axis=1,
        )
        for layer in ("embedding_layer.", "fm.lr_layer.embedding_layer.")
    )
    products = (e.sum(1) ** 2 - (e**2).sum(1)).sum(1) / 2
    logits = weights["fm.lr_layer.bias"] + first.sum((1, 2)) + products
    close(1 / (1 + np.exp(-logits)), bundle.predict_ids(ids))


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "tables",
            "the format tables describes storage of kind mixed, but this bundle's is quotient_remainder: use onnx",
        ),
        (
            "torchrec",
            "the format torchrec has no form for the storage of kind quotient_remainder of this bundle: use onnx",
        ),
    ],
)
def test_formats_of_plain_tables_are_refused(drawn, tmp_path, name, line):
    with pytest.raises(BundleError, match=line):
        export_bundle(drawn("dnn", storage="quotient_remainder", hidden=[8]), tmp_path / "out", name)
