"""Each export scores outside of the repository, in an empty environment with what its own requirements.txt names."""

import os
import subprocess
import sys

import pytest
import torch

from autoembed.export.formats import FORMATS, export_bundle

CHECK = """
import importlib.util, json, sys
import numpy as np
assert importlib.util.find_spec("autoembed") is None
sample = json.load(open("sample.json"))
ids = np.array(sample["ids"])
def close(found):
    difference = np.abs(np.asarray(found, dtype=float) - sample["click"]).max()
    assert difference < 1e-5, difference
"""
SCORES = {
    "numpy": "from scorer import Scorer; close(Scorer.load('.').predict_ids(ids))",
    "onnx": """
import onnxruntime
(found,) = onnxruntime.InferenceSession("model.onnx").run(None, {"ids": ids.astype(np.int64)})
close(found)
""",
    "torch": "import torch; close(torch.export.load('model.pt2').module()(torch.from_numpy(ids)).numpy())",
    "aoti": "import torch; close(torch._inductor.aoti_load_package('model.pt2')(torch.from_numpy(ids)).numpy())",
    # A model of first-order weights alone, whose backbone a reader can run: the sum of the numbers, and a bias.
    "tables": """
from safetensors.numpy import load_file
tensors, described = load_file("tables.safetensors"), json.load(open("tables.json"))
(model,) = described["models"]
logits = np.full(len(ids), float(tensors["backbone.bias"]))
for place, field in enumerate(model["fields"]):
    for block in field["blocks"]:
        table = tensors[model["tables"][block["table"]]["numbers"]]
        hit = (ids[:, place] >= block["first_id"]) & (ids[:, place] < block["end_id"])
        logits[hit] += table[ids[hit, place] - block["first_id"] + block["row_of_first_id"]].sum(1)
close(1 / (1 + np.exp(-logits)))
""",
    "fuxictr": "from model import load, predict; close(predict(load('.'), ids))",
    "torchrec": "import torch; from model import Model; close(Model.load('.')(torch.from_numpy(ids)).numpy())",
}


def test_every_format_is_checked():
    assert set(SCORES) == set(FORMATS)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_an_export_scores_with_its_own_requirements(drawn, tmp_path, name):
    bundle = drawn("lr") if name == "tables" else drawn("deepfm", mixed=True, bits=4, hidden=[8])
    folder = export_bundle(bundle, tmp_path / "out", name).path
    python = tmp_path / "venv" / "bin" / "python"
    # Where a range of versions is named, the torch that is at hand and not a GPU build of gigabytes.
    (tmp_path / "constraints.txt").write_text(f"torch=={torch.__version__.partition('+')[0]}\n")
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    variables["PIP_CONSTRAINT"] = str(tmp_path / "constraints.txt")

    def run(*command):
        done = subprocess.run(
            list(map(str, command)), cwd=folder, env=variables, capture_output=True, text=True, timeout=800, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]

    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(python, "-m", "pip", "install", "-q", "-r", "requirements.txt")
    if (folder / "torchrec.txt").exists():
        run(python, "-m", "pip", "install", "-q", "--no-deps", "-r", "torchrec.txt")
    run(python, "-c", CHECK + SCORES[name])
