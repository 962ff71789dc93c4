"""Columns that read another column's table, with one value a row or several, in each format that takes them."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from autoembed.architecture import Architecture
from autoembed.data.schema import FeatureSchema, Field, Multi
from autoembed.data.vocabulary import Vocabulary
from autoembed.export.formats import export_bundle
from autoembed.export.program import quiet
from autoembed.export.scorer import Scorer
from autoembed.nn.model import build_model
from tests.export.written import written

ITEMS = [f"i{n}" for n in range(60)]


def made(folder, *, lists):
    """A bundle of drawn weights in 4 bits, and rows: an item and the last one, of one table, and if so a history."""
    rng = np.random.default_rng(0)
    table = pl.DataFrame(
        {
            "site": rng.choice(["a", "b", "c"], 800),
            "item": rng.choice(ITEMS[:40], 800),
            "last": rng.choice([*ITEMS[20:], ""], 800),
            "history": [rng.choice(ITEMS, size).tolist() for size in rng.integers(0, 5, 800)],
            "label": rng.integers(0, 2, 800),
        }
    )
    fields = [Field(name="site"), Field(name="item"), Field(name="last", shares="item")]
    if lists:
        fields.append(Field(name="history", kind="multi", multi=Multi(length=3), shares="item"))
    schema = FeatureSchema(fields=tuple(fields), label="label")
    vocabulary = Vocabulary.fit(table.lazy(), schema, 1, 32)
    schema = vocabulary.schema(schema)
    counts = [vocabulary.counts(name) for name in schema.names]
    backbone = {"name": "deepfm", "hidden": [8]}
    architecture = Architecture.full(schema, counts, dim=4, blocks=3, cut="equal", backbone=backbone, bits=4)
    mask = architecture.mask()
    mask[-1, :2] = False
    architecture = architecture.with_mask(mask)
    assert [field.inputs[1:] != () for field in architecture.fields] == [False, True]
    torch.manual_seed(0)
    model = build_model(schema, architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    unknown = table.with_columns(last=pl.when(pl.int_range(pl.len()) < 5).then(pl.lit("new")).otherwise("last"))
    return written(folder, schema, vocabulary, model), unknown.head(200)


@pytest.fixture(scope="module")
def shared(request, tmp_path_factory):
    return made(tmp_path_factory.mktemp("bundle") / "b", lists=request.param == "lists")


def both(*slow):
    """Both kinds of a bundle; those that are slow here have formats that other tests export in less time."""
    kinds = [pytest.param(one, marks=[pytest.mark.slow] if one in slow else []) for one in ("one value", "lists")]
    return pytest.mark.parametrize("shared", kinds, indirect=True)


def close(found, bundle, rows):
    wanted = bundle.predict(rows)
    assert np.ptp(wanted) > 0.01
    np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-5)


@both()
def test_the_raw_tables_say_who_reads_a_table(shared, tmp_path, read):
    """Reads embeddings by tables.json alone: those of a field, then of each that reads its table, pooled."""
    from safetensors.numpy import load_file

    bundle, rows = shared
    folder = export_bundle(bundle, tmp_path / "out", "tables").path
    described, tensors = json.loads((folder / "tables.json").read_text()), load_file(folder / "tables.safetensors")
    (model,) = described["models"]
    lists = "history" in bundle.schema.names
    (item,) = [field for field in model["fields"] if "readers" in field]
    pool = {"length": 3, "by": "mean"}
    readers = [{"name": "last"}, {"name": "history", "pool": pool}]
    assert (item["name"], item["readers"]) == ("item", readers[: 1 + lists])
    ids = bundle.vocabulary.encode(rows.head(30))
    with torch.no_grad():
        wanted = bundle.model.embed(torch.from_numpy(ids)).numpy()
    for own, embeddings in zip(ids, wanted, strict=True):
        found = []
        for field in model["fields"]:
            for one in [field, *field.get("readers", [])]:
                values = [int(own[place]) for place in bundle.schema.columns([one["name"]])]
                each = [read(model, field, value, tensors) for value in values if value >= 0]
                found.append(np.mean(each, axis=0))
        np.testing.assert_allclose(found, embeddings, atol=1e-5)


@both("one value")
def test_numpy_scores_raw_rows(shared, tmp_path):
    bundle, rows = shared
    scorer = Scorer.load(export_bundle(bundle, tmp_path / "out", "numpy").path)
    close(scorer.predict(rows.to_dict(as_series=False)), bundle, rows)


@both("one value", "lists")
def test_torch_scores_ids(shared, tmp_path):
    bundle, rows = shared
    with quiet():
        model = torch.export.load(export_bundle(bundle, tmp_path / "out", "torch").path / "model.pt2").module()
    close(model(torch.from_numpy(bundle.vocabulary.encode(rows)).long()), bundle, rows)


def text_of(column):
    """As rows.onnx takes it: texts [N], or of lists [N, values], empty where there is none."""
    if column.dtype != pl.List:
        return column.fill_null("").to_numpy().astype(object)
    lists = column.fill_null([]).to_list()
    out = np.full((len(lists), max(map(len, lists)) + 2), "", dtype=object)
    for row, values in zip(out, lists, strict=True):
        row[1 : len(values) + 1] = ["" if one is None else one for one in values]
    return out


@both("lists")
def test_onnx_scores_ids_and_raw_rows(shared, tmp_path):
    pytest.importorskip("onnx", reason="needs the package onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")
    bundle, rows = shared
    folder = export_bundle(bundle, tmp_path / "out", "onnx").path
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    close(session.run(None, {"ids": bundle.vocabulary.encode(rows).astype(np.int64)})[0], bundle, rows)
    session = onnxruntime.InferenceSession(folder / "rows.onnx")
    texts = {name: text_of(rows[name]) for name in bundle.schema.names}
    close(session.run(None, texts)[0], bundle, rows)
