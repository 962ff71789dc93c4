"""A compiled model scores as the bundle does, and without a compiler there is one line that says so."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from autoembed.export.formats import export_bundle


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bits"), [("fm", 32), ("deepfm", 3)])
def test_a_compiled_model_scores_batches_of_any_size(drawn, tmp_path, sample, run_here, name, bits):
    bundle = drawn(name, mixed=True, bits=bits, **({"hidden": [8]} if name == "deepfm" else {}))
    folder = export_bundle(bundle, tmp_path / "out", "aoti").path
    ids, click = sample(folder)
    model = torch._inductor.aoti_load_package(str(folder / "model.pt2"))
    for size in (1, 7, 64):
        np.testing.assert_allclose(model(torch.from_numpy(ids[:size])).numpy(), click[:size], atol=1e-5)
    assert np.ptp(click) > 1e-3
    run_here((folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0], folder, folder)
    assert json.loads((folder / "vocabulary.json").read_text())[0]["name"] == "site"


FAILS = 'case "$*" in *--version*) echo g++ 12; exit 0;; esac; echo "a.cpp:1: fatal error: cmath: none" >&2; exit 1'


@pytest.mark.parametrize(
    ("script", "line"),
    [
        (None, "the format aoti needs a C++ compiler, but there is none: install g++, name one in CXX, or use torch"),
        pytest.param(
            FAILS,
            "the C++ compiler cannot compile the model: a.cpp:1: fatal error: cmath: none",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["missing", "fails"],
)
def test_a_compiler_that_is_missing_or_fails_is_one_line(drawn, tmp_path, script, line):
    bundle, compiler = drawn("lr"), tmp_path / "compiler"
    if script:
        compiler.write_text(f"#!/bin/sh\n{script}\n")
        compiler.chmod(0o755)
    variables = {**os.environ, "CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "autoembed.cli", "export", bundle.path, tmp_path / "out", "--format", "aoti"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=variables, check=False)
    assert (done.returncode, done.stderr.strip().splitlines()[-1]) == (2, f"error: {line}"), done.stderr
    assert not (tmp_path / "out").exists()
