"""TorchRec's tables hold each value once, in the table of its width, and score as the bundle does."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from autoembed.errors import BundleError
from autoembed.export.formats import export_bundle
from autoembed.nn.model import build_model, pack, start_rounding

STANDIN = Path(__file__).with_name("standin")
SCORES = """
import json, torch
from model import Model
sample = json.load(open("sample.json"))
ids, wanted = torch.tensor(sample["ids"]), torch.tensor(sample["click"])
model = Model.load(".")
for rows in (64, 1, 7):
    found = model(ids[:rows])
    assert found.shape == (rows,), found.shape
    assert (found - wanted[:rows]).abs().max() < 1e-5, (found, wanted)
assert wanted.max() - wanted.min() > 1e-3
"""


@pytest.fixture
def mixed(drawn, tmp_path):
    bundle = drawn("deepfm", mixed=True, bits=3, hidden=[8])
    return bundle, export_bundle(bundle, tmp_path / "out", "torchrec").path


def test_there_is_a_table_for_each_distinct_width(mixed):
    bundle, folder = mixed
    described = json.loads((folder / "tables.json").read_text())
    weights = load_file(folder / "tables.safetensors")
    rows, mask = bundle.architecture.block_rows(), bundle.architecture.mask()
    widths = mask.sum(axis=1) + 1  # and the first-order weight
    assert {one["name"] for one in described["tables"]} == {f"width_{width}" for width in widths[widths > 1]}
    for one in described["tables"]:
        assert one["num_embeddings"] == rows[widths == one["embedding_dim"]].sum()
        assert weights[one["name"]].shape == (one["num_embeddings"], one["embedding_dim"])
        assert one["pooling"] == "SUM"
    gone = [block for field in described["fields"] for block in field["blocks"] if block["table"] is None]
    assert len(gone) == 1
    features = [name for one in described["tables"] for name in one["feature_names"]]
    assert len(set(features)) == len(features) > len(described["fields"])


def test_the_model_scores_as_the_bundle_does(mixed, run_here):
    """With a stand-in for TorchRec: test_torchrec_scores_as_the_bundle_does has the real one."""
    run_here(SCORES, mixed[1], STANDIN)


def test_pairs_have_tables_of_their_own(bundle, tmp_path, run_here):
    torch.manual_seed(0)
    architecture = bundle.architecture.with_choices(["factorize", "memorize"], 2)
    model = build_model(bundle.schema, architecture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    start_rounding(model)
    packed = pack(model, bundle.schema).eval()
    both = dataclasses.replace(bundle, architecture=architecture, model=packed)
    folder = export_bundle(both, tmp_path / "out", "torchrec").path
    names = [one["name"] for one in json.loads((folder / "tables.json").read_text())["tables"]]
    assert names[-2:] == ["pairs_memorized", "pairs_factorized"]
    run_here(SCORES, folder, STANDIN)


def test_other_storage_is_refused(drawn, tmp_path):
    bundle = drawn("dnn", storage="shared", hidden=[8])
    with pytest.raises(BundleError, match="no form for the storage of kind shared of this bundle: use onnx or torch"):
        export_bundle(bundle, tmp_path / "out", "torchrec")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bits"), [("deepfm", 3), ("dcn", 32), ("lr", 32), ("autoint", 4)])
def test_torchrec_scores_as_the_bundle_does(drawn, tmp_path, peer, name, bits):
    bundle = drawn(name, mixed=name != "lr", bits=bits, **({"hidden": [8]} if name in ("deepfm", "dcn") else {}))
    folder = export_bundle(bundle, tmp_path / "out", "torchrec").path
    peer("torchrec", SCORES, folder)
    peer("torchrec", (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0], folder)
