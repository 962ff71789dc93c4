"""What FuxiCTR is given: files that it reads, and weights that score in its layers as the bundle does."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import polars as pl
import pytest
import yaml
from safetensors.numpy import load_file

from autoembed.errors import BundleError
from autoembed.export.formats import export_bundle
from autoembed.export.fuxictr_config import FLAT, MODELS, write_table

READS = json.loads(Path(__file__).with_name("fuxictr_reads.json").read_text())
SMALL = {"hidden": [8, 6], "dropout": 0.1}
KINDS = {name: SMALL if name not in ("lr", "fm") else {} for name in MODELS}
SCORES = """
import json, sys, numpy as np
from model import load, predict
sample = json.load(open("sample.json"))
found = predict(load("."), np.array(sample["ids"]))
assert found.shape == (64,) and np.ptp(found) > 0.01, found
difference = np.abs(found - sample["click"]).max()
assert difference < 1e-5, difference
"""


@pytest.mark.parametrize("name", ["deepfm", "dnn", "lr", "dcn"])
def test_the_files_are_what_fuxictr_reads(drawn, tmp_path, name):
    bundle = drawn(name, mixed=name != "lr", **KINDS[name])
    folder = export_bundle(bundle, tmp_path / "out", "fuxictr").path
    read = {
        "feature_map": json.loads((folder / "clicks" / "feature_map.json").read_text()),
        "dataset_config": yaml.safe_load((folder / "dataset_config.yaml").read_text()),
        "model_config": yaml.safe_load((folder / "model_config.yaml").read_text()),
    }
    for part, node in read.items():
        jsonschema.validate(node, {**READS, "$ref": f"#/$defs/{part}"})
    features = {key: one for entry in read["feature_map"]["features"] for key, one in entry.items()}
    assert list(features) == list(bundle.schema.names)
    weights, dim = load_file(folder / "weights.safetensors"), bundle.architecture.dim
    layer = "lr_layer.embedding_layer" if name == "lr" else "embedding_layer"
    for field, active in zip(bundle.architecture.fields, bundle.architecture.active(), strict=True):
        width = int(active.sum()) if name in FLAT else dim
        own = features[field.name]
        assert (own["vocab_size"], own.get("embedding_dim", dim)) == (field.cardinality, width)
        table = weights[f"{layer}.embedding_layer.embedding_layers.{field.name}.weight"]
        assert table.shape == (field.cardinality, width)
    assert features["kind"].get("embedding_dim") == (2 if name in FLAT else None)
    assert read["model_config"]["autoembed"]["model"] == MODELS[name]


def test_the_readme_tells_what_the_tables_grow_to(drawn, tmp_path):
    bundle = drawn("fm", mixed=True, bits=4)
    export = export_bundle(bundle, tmp_path / "out", "fuxictr")
    rows = sum(bundle.schema.cardinalities)
    assert (
        f"Embeddings take {rows * 5 * 4:,} bytes here, where the bundle's take"
        in (export.path / "README.md").read_text()
    )
    facts = json.loads((export.path / "export.json").read_text())
    assert "clicks/feature_map.json" in facts["files"]


@pytest.mark.parametrize(
    ("kind", "line"),
    [("autoint", "no form for the backbone autoint of this bundle"), ("masknet", "backbone lr, fm, dnn, deepfm")],
)
def test_what_fuxictr_has_no_form_for_is_refused(drawn, tmp_path, kind, line):
    with pytest.raises(BundleError, match=line):
        export_bundle(drawn(kind), tmp_path / "out", "fuxictr")
    assert not (tmp_path / "out").exists()


def test_the_weights_give_the_predictions_by_the_formulas_of_fuxictrs_layers(drawn, tmp_path, sample):
    """LogisticRegression + InnerProductInteraction + MLP_Block, whose Sequential is linear, norm, ReLU, dropout."""
    bundle = drawn("deepfm", mixed=True, bits=3, **SMALL)
    folder = export_bundle(bundle, tmp_path / "out", "fuxictr").path
    weights, (ids, click) = load_file(folder / "weights.safetensors"), sample(folder)

    def looked_up(prefix):
        tables = [weights[f"{prefix}.embedding_layer.embedding_layers.{name}.weight"] for name in bundle.schema.names]
        return np.stack([table[column] for table, column in zip(tables, ids.T, strict=True)], axis=1)

    e = looked_up("embedding_layer")
    logits = looked_up("fm.lr_layer.embedding_layer").sum((1, 2)) + weights["fm.lr_layer.bias"]
    logits = logits + ((e.sum(1) ** 2 - (e**2).sum(1)) / 2).sum(1)
    x = e.reshape(len(e), -1)
    for place in (0, 4, 8):
        linear, norm = (
            {name: weights.get(f"mlp.mlp.{at}.{name}") for name in ("weight", "bias", "running_mean", "running_var")}
            for at in (place, place + 1)
        )
        x = x @ linear["weight"].T + linear["bias"]
        if norm["weight"] is not None:
            x = (x - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-5)
            x = np.maximum(x * norm["weight"] + norm["bias"], 0)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits - x[:, 0])), click, atol=1e-5)
    assert np.ptp(click) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("bits", [32, 3])
def test_fuxictr_scores_as_the_bundle_does(drawn, tmp_path, peer, name, bits):
    options = KINDS[name] | ({"structure": "stacked"} if name == "dcn" and bits == 3 else {})
    bundle = drawn(name, mixed=bits == 3 and name != "lr", bits=bits, **options)
    folder = export_bundle(bundle, tmp_path / "out", "fuxictr").path
    peer("fuxictr", SCORES, folder)


@pytest.mark.slow
def test_the_readme_says_how_to_score(drawn, tmp_path, peer):
    folder = export_bundle(drawn("fm"), tmp_path / "out", "fuxictr").path
    peer("fuxictr", (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0], folder)


@pytest.mark.slow
def test_fuxictr_trains_from_the_exported_weights(drawn, tmp_path, peer):
    bundle = drawn("deepfm", mixed=True, bits=4, **SMALL)
    folder = export_bundle(bundle, tmp_path / "out", "fuxictr").path
    rng = np.random.default_rng(0)
    for split, rows in (("train", 6000), ("valid", 2000)):
        site = rng.integers(0, 40, rows)
        columns = {"site": [f"v{one}" for one in site], "item": [f"v{one}" for one in rng.integers(0, 99, rows)]}
        columns |= {"hour": ["v1"] * rows, "kind": [None] * rows, "label": (rng.random(rows) < site / 40).astype(int)}
        write_table(bundle, pl.DataFrame(columns), folder / "clicks" / f"{split}.parquet")
    written = pl.read_parquet(folder / "clicks" / "valid.parquet")
    assert written.columns == [*bundle.schema.names, "label"]
    code = "import sys; sys.argv = ['model.py']; from model import main; main()"
    config = yaml.safe_load((folder / "model_config.yaml").read_text())
    config["autoembed"] |= {"learning_rate": 0.01, "epochs": 3, "batch_size": 256}
    (folder / "model_config.yaml").write_text(yaml.safe_dump(config))
    found = peer("fuxictr", code, folder)
    assert float(found.rpartition("'AUC': ")[2].partition("}")[0].partition(",")[0]) > 0.75
