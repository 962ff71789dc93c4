"""Each format scores as the bundle does: from ids, from raw rows, and outside of this package."""

import datetime as dt
import json
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch

from autoembed.card import sample_ids
from autoembed.errors import BundleError
from autoembed.export.formats import FORMATS, export_bundle
from autoembed.export.program import quiet
from autoembed.export.scorer import Scorer

onnx = pytest.importorskip("onnx", reason="needs the package onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")

NAMES = "onnx, torch, aoti, numpy, tables, fuxictr or torchrec"
HERE = ("onnx", "torch", "numpy", "tables")  # the others have files of their own


def close(found, wanted):
    np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-5)


@pytest.fixture(scope="module")
def exports(bundle, tmp_path_factory):
    """Each of these formats, written once."""
    root = tmp_path_factory.mktemp("exports")
    return {name: export_bundle(bundle, root / name, name) for name in HERE}


def test_onnx_scores_ids_in_batches_of_any_size(bundle, exports):
    session = onnxruntime.InferenceSession(exports["onnx"].path / "model.onnx")
    ids = sample_ids(bundle.schema, 300)
    wanted = bundle.predict_ids(ids)
    for size in (1, 7, 300):
        close(session.run(None, {"ids": ids[:size].astype(np.int64)})[0], wanted[:size])


def test_onnx_keeps_tables_packed_and_tells_nothing_of_the_machine(exports):
    text = (exports["onnx"].path / "model.onnx").read_bytes()
    assert b"site-packages" not in text
    assert b"/export/serving.py" not in text
    kinds = {one.data_type for one in onnx.load(exports["onnx"].path / "model.onnx").graph.initializer}
    assert onnx.TensorProto.UINT8 in kinds


def test_onnx_scores_raw_rows(bundle, exports, raw):
    table = pl.read_parquet(raw).head(200)
    session = onnxruntime.InferenceSession(exports["onnx"].path / "rows.onnx")
    assert {given.name: given.type for given in session.get_inputs()} == {
        "country": "tensor(string)",
        "hour": "tensor(string)",
        "price": "tensor(double)",
        "mobile": "tensor(string)",
        "seen": "tensor(string)",
    }
    table = table.with_columns(short=pl.col("seen").dt.strftime("%Y-%m-%d %H:%M:%S").str.replace(" 00:00:00", ""))
    texts = {
        name: table[name].cast(pl.String).fill_null("").to_numpy().astype(object)
        for name in ("country", "hour", "mobile")
    }
    texts["seen"] = table["short"].to_numpy().astype(object)
    found = session.run(None, {**texts, "price": table["price"].to_numpy()})[0]
    close(found, bundle.predict(table))


def test_a_torch_program_scores_without_this_package(bundle, exports):
    ids = sample_ids(bundle.schema, 50)
    with quiet():
        model = torch.export.load(exports["torch"].path / "model.pt2").module()
    close(model(torch.from_numpy(ids).long()), bundle.predict_ids(ids))


@pytest.mark.parametrize("as_rows", [False, True])
def test_the_numpy_scorer_reads_raw_rows(bundle, exports, raw, as_rows):
    table = pl.read_parquet(raw).head(200)
    model = Scorer.load(exports["numpy"].path)
    found = model.predict(table.to_dicts() if as_rows else table.to_dict(as_series=False))
    close(found, bundle.predict(table))
    close(model.predict_proba(table)[:, 1], found)
    assert model.predict([]).shape == (0,)


STRANGE = [None, "", "nan", "1", "01", "1.0", 1, 1.0, True, "True", "TRUE", "false", "new", 2.5, -3]


ZONE = dt.timezone(dt.timedelta(hours=9))
STRANGE += [
    dt.datetime(2024, 1, 2, 5),
    dt.datetime(2024, 1, 1),
    dt.date(2024, 1, 1),
    dt.datetime(2024, 1, 2, 14, tzinfo=ZONE),
]
STRANGE += [
    "2024-01-02T05:00:00",
    "2024-01-02 05:00",
    "2024-01-02T14:00:00+09:00",
    "2024-01-02 05:00:00.000Z",
    "2024-01-01",
]
STRANGE += ["2024-01-02 05:00:00.5", "2024-13-02 05:00:00", dt.datetime(2024, 1, 2, 5, 0, 0, 250000)]


@pytest.mark.parametrize("name", ["country", "hour", "mobile", "seen"])
def test_the_numpy_scorer_knows_values_as_the_bundle_does(bundle, exports, name):
    model = Scorer.load(exports["numpy"].path)
    rest = bundle.example().to_dicts()[0]
    for value in STRANGE:
        row = {**rest, name: value}
        frame = pl.DataFrame({key: [one] for key, one in row.items()}, strict=False)
        assert (model.ids([row])[0] == bundle.vocabulary.encode(frame)[0]).all(), f"{value!r}"


def test_the_numpy_scorer_needs_numpy_alone(exports):
    code = """
import json, sys
from scorer import Scorer
sample = json.load(open("sample.json"))
found = Scorer.load(".").predict_ids(sample["ids"])
assert abs(found - sample["click"]).max() < 1e-5
print(sorted({"torch", "polars", "autoembed", "pandas"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=exports["numpy"].path, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_reader_of_the_raw_tables_finds_each_embedding(bundle, exports, read):
    """Reads bytes by tables.json alone, as a reader in another language would."""
    from safetensors.numpy import load_file

    folder = exports["tables"].path
    described, tensors = json.loads((folder / "tables.json").read_text()), load_file(folder / "tables.safetensors")
    (model,) = described["models"]
    ids = sample_ids(bundle.schema, 20)
    columns = [bundle.schema.index(field["name"]) for field in model["fields"]]
    with torch.no_grad():
        wanted = bundle.model.embedding(torch.from_numpy(ids[:, columns])).numpy()
    for row, own in enumerate(ids[:, columns]):
        for place, field in enumerate(model["fields"]):
            close(read(model, field, int(own[place]), tensors), wanted[row, place])


@pytest.mark.parametrize("name", HERE)
def test_an_export_says_how_to_score(exports, name):
    folder = exports[name].path
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert exports[name].bytes == sum(file.stat().st_size for file in files)
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in files)
    text = (folder / "README.md").read_text()
    assert "| price | numeric |" in text
    assert (folder / "requirements.txt").read_text().strip()
    code = text.partition("```python\n")[2].partition("```")[0]
    subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300, check=True)


def test_what_cannot_be_exported_is_refused(bundle, exports, tmp_path):
    assert NAMES.replace(" or ", ", ").split(", ") == [*FORMATS]
    with pytest.raises(BundleError, match=f"format must be {NAMES}, but got 'torchscript'"):
        export_bundle(bundle, tmp_path / "out", "torchscript")
    with pytest.raises(BundleError, match="exists and is not empty"):
        export_bundle(bundle, exports["numpy"].path, "numpy")
    assert not (tmp_path / "out").exists()


def test_the_command_line_exports_and_verifies_a_bundle(bundle, tmp_path, cli):
    status, out, err = cli("export", bundle.path, tmp_path / "numpy", "--format", "numpy")
    assert status == 0, err
    assert "numpy model written to" in out
    assert (tmp_path / "numpy" / "scorer.py").is_file()
    status, _, err = cli("export", bundle.path, tmp_path / "copy")
    assert status == 0, err
    assert "64 stored predictions are the same" in cli("verify", tmp_path / "copy")[1]
    status, _, err = cli("export", bundle.path, tmp_path / "other", "--format", "pmml")
    assert status == 2
    assert err.strip().startswith(f"error: --format must be bundle, {NAMES}, several of them with commas, or all")
    status, _, err = cli("export", bundle.path, tmp_path / "other", "--format", "onnx", "--pick", "knee")
    assert status == 2
    assert "is a bundle" in err
    assert not (tmp_path / "other").exists()


def test_numbers_have_the_text_that_polars_gives_them():
    from autoembed.export.scorer import text_of

    rng = np.random.default_rng(0)
    drawn = 10.0 ** rng.uniform(-12, 18, 2000) * rng.choice([1, -1], 2000)
    values = np.concatenate([drawn + 0.5, drawn, [1e-5, 1e-6, 2.5e-6, 9.999e-6, 1e-4, 5e-324]])
    values = values[values != np.round(values)]
    assert [text_of(value) for value in values] == pl.Series(values).cast(pl.String).to_list()
