import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch

from autoembed.architecture import Architecture
from autoembed.bundle import load_bundle, write_bundle
from autoembed.data.schema import FeatureSchema, Field
from autoembed.data.vocabulary import Vocabulary
from autoembed.nn.model import build_model, pack, start_rounding

VALUES = {"site": 40, "item": 90, "hour": 12, "kind": 3}


@pytest.fixture
def drawn(tmp_path):
    """Makes a bundle of drawn weights: `drawn(backbone, mixed=..., bits=...)`."""

    def make(name, *, mixed=False, bits=32, **options):
        torch.manual_seed(0)
        rng = np.random.default_rng(0)
        table = pl.DataFrame({n: [f"v{v}" for v in rng.integers(0, size, 2000) % size] for n, size in VALUES.items()})
        table = table.with_columns(label=pl.Series(rng.integers(0, 2, 2000)))
        schema = FeatureSchema(fields=tuple(Field(name=name) for name in VALUES), label="label")
        vocabulary = Vocabulary.fit(table.lazy(), schema, 1, 32)
        schema = vocabulary.schema(schema)
        counts = [vocabulary.counts(name) for name in schema.names]
        backbone = {"name": name, **options}
        architecture = Architecture.full(
            schema, counts, dim=1 if name == "lr" else 4, blocks=4, cut="equal", backbone=backbone, bits=bits
        )
        if mixed:
            architecture = narrowed(architecture, bits)
        model = build_model(schema, architecture)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
            for name, buffer in model.named_buffers():
                if "running_mean" in name:
                    buffer.add_(0.1 * torch.randn_like(buffer))
                elif "running_var" in name:
                    buffer.mul_(0.1 + 0.1 * torch.rand_like(buffer))
        start_rounding(model)
        folder = write_bundle(
            tmp_path / f"bundle-{len(list(tmp_path.iterdir()))}",
            schema=schema,
            vocabulary=vocabulary,
            architecture=architecture,
            model=pack(model, schema).eval(),
            data={"label": "label"},
            metrics={},
            provenance={},
        )
        return load_bundle(folder)

    return make


def narrowed(architecture, bits):
    """Dims that differ between the blocks of a field, in number and place; rare values of `item` keep none."""
    mask, row = architecture.mask(), 0
    for field in architecture.fields:
        for rank in range(len(field.blocks)):
            if field.name == "kind":
                mask[row, :2] = False
            elif rank:
                mask[row, rank - 1 :: 2] = False
            if field.name == "item" and rank + 1 == len(field.blocks):
                mask[row] = False
            row += 1
    own = np.where(np.arange(len(mask)) % 2, bits, 8 if bits < 32 else 32)
    return architecture.with_mask(mask, bits=np.where(mask.any(axis=1), own, 0))


@pytest.fixture(scope="session")
def peer():
    """Runs code in the interpreter that has a package: this one, or that of AUTOEMBED_<PACKAGE>_PYTHON."""

    def run(package, code, folder):
        python = os.environ.get(f"AUTOEMBED_{package.upper()}_PYTHON")
        if python is None and importlib.util.find_spec(package) is None:
            pytest.skip(
                f"needs the package {package}, or AUTOEMBED_{package.upper()}_PYTHON, an interpreter that has it"
            )
        done = subprocess.run(
            [python or sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def sample():
    """Reads the ids and predictions of an export's sample."""

    def read(folder):
        node = json.loads((folder / "sample.json").read_text())
        return np.array(node["ids"]), np.array(node["click"])

    return read
