import datetime as dt
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch

import autoembed.cli
from autoembed.architecture import Architecture
from autoembed.bundle import load_bundle, write_bundle
from autoembed.data.crosses import CrossSpec
from autoembed.data.dataset import build_dataset
from autoembed.data.schema import FeatureSchema, Field
from autoembed.data.spec import DataSpec
from autoembed.data.vocabulary import Vocabulary
from autoembed.nn.model import build_model
from autoembed.storage import QuotientRemainderStorage, SharedStorage
from autoembed.trial import check, run_trial
from tests.export.written import written

ROWS = 3000
VALUES = {"site": 40, "item": 90, "hour": 12, "kind": 3}


@pytest.fixture(scope="session")
def raw(tmp_path_factory):
    """A table with text, whole numbers, numbers, truth values and gaps."""
    rng = np.random.default_rng(0)
    country = rng.choice(["de", "fr", "", "it", "01", "1"], ROWS)
    hour, price = rng.integers(0, 24, ROWS), rng.normal(10, 4, ROWS).round(2)
    price[rng.random(ROWS) < 0.1] = np.nan
    mobile = rng.random(ROWS) < 0.5
    odds = (country == "de") * 1.5 + np.where(np.isnan(price), 1.0, price / 8) - 1.5 * mobile * (hour > 12)
    table = pl.DataFrame(
        {
            "country": country,
            "hour": pl.Series(hour).set(pl.Series(hour == 3), None),
            "price": price,
            "mobile": mobile,
            "seen": pl.Series([dt.datetime(2024, 1, 1 + int(day), int(day) * 5) for day in rng.integers(0, 4, ROWS)]),
            "click": (rng.random(ROWS) < 1 / (1 + np.exp(-odds))).astype(int),
        }
    )
    path = tmp_path_factory.mktemp("raw") / "clicks.parquet"
    table.write_parquet(path)
    return path


@pytest.fixture(scope="session")
def bundle(raw, tmp_path_factory):
    """DeepFM on mixed widths in 3 bits, with a memorized and a factorized pair."""
    spec = DataSpec.model_validate({"label": "click", "split": {"by": "random", "valid": 0.2, "test": 0.2}, "bins": 8})
    dataset = build_dataset(spec, str(raw), tmp_path_factory.mktemp("encoded"))
    pairs = [("country", "mobile"), ("hour", "mobile")]
    dataset = dataset.cross(pairs, CrossSpec(min_count=2), tmp_path_factory.mktemp("crossed"), candidates=True)
    config = check(
        {
            "arm": "x",
            "stages": [
                {"method": "magnitude", "warm_epochs": 2, "width": 3},
                {"method": "all_memorize", "pair_dim": 2},
            ],
            "embedding": {"dim": 4, "blocks": 2, "bits": 3},
            "backbone": {"name": "deepfm", "hidden": [8]},
            "train": {"epochs": 2, "batch_size": 200, "lr": 1e-2},
            "device": "cpu",
        }
    )
    result, model = run_trial(config, dataset, lambda event: None)
    folder = tmp_path_factory.mktemp("bundle") / "best"
    return load_bundle(
        write_bundle(
            folder,
            schema=dataset.schema,
            vocabulary=dataset.vocabulary,
            architecture=result.architecture,
            model=model,
            data={"label": "click"},
            metrics={},
            provenance={},
        )
    )


@pytest.fixture
def cli(monkeypatch, capsys):
    """Calls the command line in this process: (status, what it printed, its errors)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["autoembed", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            autoembed.cli.main()
        return ended.value.code or 0, *capsys.readouterr()

    return call


@pytest.fixture
def drawn(tmp_path):
    """Makes a bundle of drawn weights: `drawn(backbone, mixed=..., bits=..., storage=...)`."""

    def make(name, *, mixed=False, bits=32, storage=None, combine="mult", **options):
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
        if storage == "shared":
            architecture = architecture.replace(storage=SharedStorage(rows=50, lookups=2))
        if storage == "quotient_remainder":
            split = QuotientRemainderStorage(collisions=3, split_above=20, bits=bits, combine=combine)
            architecture = architecture.replace(storage=split)
        model = build_model(schema, architecture)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
            for name, buffer in model.named_buffers():
                if "running_mean" in name:
                    buffer.add_(0.1 * torch.randn_like(buffer))
                elif "running_var" in name:
                    buffer.mul_(0.1 + 0.1 * torch.rand_like(buffer))
        return written(tmp_path / f"bundle-{len(list(tmp_path.iterdir()))}", schema, vocabulary, model)

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
def run_here():
    """Runs code in this interpreter in a folder, with another one to import from."""

    def run(code, folder, path):
        variables = {**os.environ, "PYTHONPATH": str(path)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=variables, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-3000:]

    return run


@pytest.fixture(scope="session")
def sample():
    """Reads the ids and predictions of an export's sample."""

    def read(folder):
        node = json.loads((folder / "sample.json").read_text())
        return np.array(node["ids"]), np.array(node["click"])

    return read


@pytest.fixture(scope="session")
def read():
    """`read(model, field, id, tensors)` reads raw tables by their description, as another language would."""
    return _read


def _read(model, field, value, tensors):
    """The embedding of an id, and its first-order weight behind it."""
    out = np.zeros(model["dim"] + model["first_order"])
    block = next(one for one in field["blocks"] if one["first_id"] <= value < one["end_id"])
    if block["table"] is None:
        return out
    table = model["tables"][block["table"]]
    row = value - block["first_id"] + block["row_of_first_id"]
    if "numbers" in table:
        numbers = tensors[table["numbers"]][row].astype(float)
        out[block["dims"]] = numbers[: table["width"]]
        if table["first_order"]:
            out[-1] = numbers[-1]
        return out
    codes, start, done = np.zeros(table["width"]), 0, 0
    for plane in table["planes"]:
        size = -(-table["width"] * plane // 8)
        bits = np.unpackbits(tensors[table["codes"]][row, start : start + size], bitorder="little")
        each = bits[: table["width"] * plane].reshape(-1, plane)
        codes += each @ (2 ** np.arange(plane)) * 2**done
        start, done = start + size, done + plane
    step = np.asarray(
        tensors[table["step"]][row if table["step_of"] == "row" else block["block_of_table"]], dtype=float
    )
    out[block["dims"]] = (codes + table["lowest"]) * step
    if table["first_order"]:
        first = table["first"]
        byte = int(tensors[first["codes"]][row * first["bits"] // 8])
        code = (byte >> (row * first["bits"] % 8)) & (2 ** first["bits"] - 1)
        out[-1] = (code + first["lowest"]) * float(tensors[first["step"]][block["block_of_table"], 0])
    return out
