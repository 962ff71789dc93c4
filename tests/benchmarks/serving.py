"""What a model takes to serve in each export format: bytes, milliseconds a row and a batch, difference from the bundle.

    python tests/benchmarks/serving.py --out docs/results/serving.md

A DeepFM with 30 fields of 2,000 values: the plain uniform model of width 16 in 32 bits, and a searched one as compact
models are, with rows of 4 and 16 dims in 4 bits. Weights are drawn, since times do not depend on them. One thread, all
formats in turn. Ids come in; the bundle's and ONNX's way from raw rows is timed beside them. TorchRec is timed
where this interpreter has it. Exports to FuxiCTR train there and serve nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import tempfile
from pathlib import Path
from time import perf_counter

import few_bits
import numpy as np
import onnxruntime
import polars as pl
import torch

from autoembed.bundle import load_bundle, write_bundle
from autoembed.data.schema import FeatureSchema, Field
from autoembed.data.vocabulary import Vocabulary
from autoembed.export.formats import export_bundle
from autoembed.export.scorer import Scorer
from autoembed.nn.model import build_model, pack, start_rounding

BATCHES, TURNS = (1, 1000), {1: 2000, 1000: 200}
MODELS = {"uniform, 32 bits": (32, False), "4 and 16 dims, 4 bits": (4, True)}


def bundle_of(bits, mixed, folder):
    """A bundle with drawn weights, whose columns hold texts."""
    _, architecture = few_bits.architecture(bits, mixed=mixed)
    names = [field.name for field in architecture.fields]
    texts = pl.DataFrame({name: [f"v{n}" for n in range(few_bits.VALUES - 1)] for name in names})
    table = texts.with_columns(label=pl.Series(np.arange(len(texts)) % 2))
    schema = FeatureSchema(fields=tuple(Field(name=name) for name in names), label="label")
    vocabulary = Vocabulary.fit(table.lazy(), schema, 1, 32)
    schema = vocabulary.schema(schema)
    torch.manual_seed(0)
    model = build_model(schema, architecture)
    start_rounding(model)
    folder = write_bundle(
        folder,
        schema=schema,
        vocabulary=vocabulary,
        architecture=architecture,
        model=pack(model, schema).eval(),
        data={"label": "label"},
        metrics={},
        provenance={},
    )
    return load_bundle(folder)


def ways(bundle, root):
    """For each way to score: bytes of what it needs, and a function of ids int64 [N, F]."""
    peers = ["torchrec"] if importlib.util.find_spec("torchrec") else []
    exports = {name: export_bundle(bundle, root / name, name) for name in ("torch", "aoti", "onnx", "numpy", *peers)}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = {
        name: onnxruntime.InferenceSession(exports["onnx"].path / f"{name}.onnx", options) for name in ("model", "rows")
    }
    program = torch.export.load(exports["torch"].path / "model.pt2").module()
    compiled = torch._inductor.aoti_load_package(str(exports["aoti"].path / "model.pt2"))
    scorer = Scorer.load(exports["numpy"].path)
    table = bundle.vocabulary.table()
    columns = {
        name: own["value"].fill_null("").to_numpy().astype(object)
        for (name,), own in table.partition_by("field", as_dict=True, maintain_order=True).items()
    }
    size = sum(file.stat().st_size for file in bundle.path.iterdir())

    def raw(ids):
        return {name: values[ids[:, place]] for place, (name, values) in enumerate(columns.items())}

    found = {
        "bundle, ids": (size, lambda ids: torch.sigmoid(bundle.model(torch.from_numpy(ids))).numpy()),
        "bundle, raw rows": (size, lambda ids: bundle.predict(pl.DataFrame(raw(ids)))),
        "torch, ids": (exports["torch"].bytes, lambda ids: program(torch.from_numpy(ids)).numpy()),
        "aoti, ids": (exports["aoti"].bytes, lambda ids: compiled(torch.from_numpy(ids)).numpy()),
        "onnx, ids": (exports["onnx"].bytes, lambda ids: sessions["model"].run(None, {"ids": ids})[0]),
        "onnx, raw rows": (exports["onnx"].bytes, lambda ids: sessions["rows"].run(None, raw(ids))[0]),
        "numpy, ids": (exports["numpy"].bytes, scorer.predict_ids),
    }
    if "torchrec" in exports:
        model = torchrec_model(exports["torchrec"].path)
        found["torchrec, ids"] = (exports["torchrec"].bytes, lambda ids: model(torch.from_numpy(ids)).numpy())
    return found


def torchrec_model(folder):
    """The model that the folder's own file loads."""
    spec = importlib.util.spec_from_file_location("exported_model", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Model.load(folder)


@torch.no_grad()
def timed(found, ids, turns):
    """Milliseconds (p50, p99) of each way, all taking turns."""
    times = {name: [] for name in found}
    for turn in range(turns + 10):
        for name, (_, run) in found.items():
            start = perf_counter()
            run(ids)
            if turn >= 10:
                times[name].append((perf_counter() - start) * 1e3)
    return {name: (np.percentile(values, 50), np.percentile(values, 99)) for name, values in times.items()}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", type=float, default=1, help="of the turns, to see that it runs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Serving",
        "",
        f"`python tests/benchmarks/serving.py --out {args.out}`",
        "",
        f"A DeepFM of {few_bits.FIELDS} fields with {few_bits.VALUES:,} values each, a tower of 400, 400, 400; drawn "
        "weights. Median and 99th percentile in milliseconds, one thread, all formats in turn. Bytes are those of the "
        f"folder. torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}, {os.cpu_count()} cores, "
        f"{platform.machine()}.",
        "",
        "| model | format | bytes | 1 row, p50 | p99 | 1,000 rows, p50 | p99 | largest difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rng = np.random.default_rng(0)
    for title, (bits, mixed) in MODELS.items():
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            bundle = bundle_of(bits, mixed, root / "bundle")
            found = ways(bundle, root)
            batches = {size: rng.integers(1, few_bits.VALUES, (size, few_bits.FIELDS)) for size in BATCHES}
            wanted = bundle.predict_ids(batches[1000])
            times = {size: timed(found, ids, int(TURNS[size] * args.part) or 1) for size, ids in batches.items()}
            for name, (size, run) in found.items():
                cells = [f"{value:.2f}" for batch in BATCHES for value in times[batch][name]]
                difference = np.abs(np.asarray(run(batches[1000])) - wanted).max()
                lines.append(f"| {title} | {name} | {size:,} | " + " | ".join(cells) + f" | {difference:.0e} |")
                print(lines[-1], flush=True)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
