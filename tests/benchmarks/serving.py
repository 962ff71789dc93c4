"""What a model takes to serve in each export format: bytes, milliseconds a row and a batch, difference from the bundle.

    python tests/benchmarks/serving.py --out docs/results/serving.md
    python tests/benchmarks/serving.py --study runs/kuairand_auto --title KuaiRand --out docs/results/serving.md

Without a study: a DeepFM with 30 fields of 2,000 values, the plain uniform model of width 16 in 32 bits, and a searched
one as compact models are, with rows of 4 and 16 dims in 4 bits. Weights are drawn, since times do not depend on them.
With one: a copy of it is exported by `autoembed export STUDY OUT --format all`, and rows of its data come in.

Each run rewrites its own section of the page. One thread, all formats in turn. FuxiCTR and TorchRec are timed for a
study, by themselves, in the interpreters that AUTOEMBED_FUXICTR_PYTHON and AUTOEMBED_TORCHREC_PYTHON name.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import few_bits
import numpy as np
import onnxruntime
import polars as pl
import torch

from autoembed.bundle import load_bundle, write_bundle
from autoembed.data.readers import read
from autoembed.data.schema import FeatureSchema, Field
from autoembed.data.vocabulary import Vocabulary
from autoembed.export.formats import FORMATS, Export
from autoembed.export.scorer import Scorer, text_of
from autoembed.export.several import export_several
from autoembed.nn.model import build_model, pack, start_rounding
from autoembed.space import SearchSpace

BATCHES, TURNS = (1, 1000), {1: 2000, 1000: 200}
MODELS = {"uniform, 32 bits": (32, False), "4 and 16 dims, 4 bits": (4, True)}
COMPARED = 10_000  # rows of a study's data
NOT_TIMED = {
    "tables": "running the backbone is left to the reader",
    "fuxictr": "AUTOEMBED_FUXICTR_PYTHON names no interpreter that has it",
    "torchrec": "AUTOEMBED_TORCHREC_PYTHON names no interpreter that has it",
}
PEER = """
import json, sys
import numpy as np, torch
from time import perf_counter
torch.set_num_threads(1)
package, given, out, turns = sys.argv[1:]
ids, turns = np.load(given), json.loads(turns)
if package == "fuxictr":
    from model import load, predict
    model = load(".")
    run = lambda ids: predict(model, ids)
else:
    from model import Model
    model = Model.load(".")
    run = lambda ids: model(torch.from_numpy(ids)).numpy()
times = {}
with torch.no_grad():
    for size, count in turns.items():
        own = times[size] = []
        for turn in range(count + 10):
            start = perf_counter()
            run(ids[: int(size)])
            if turn >= 10:
                own.append((perf_counter() - start) * 1e3)
    np.save(out, run(ids))
print(json.dumps(times))
"""


@dataclass
class Rows:
    """The same rows in each form in which they are asked: encoded, a frame, texts and numbers, and lists."""

    ids: np.ndarray
    frame: pl.DataFrame
    raw: dict[str, np.ndarray]
    lists: dict[str, list]

    @classmethod
    def of(cls, bundle, frame):
        frame = frame.select(bundle.vocabulary.columns)
        kinds = {field.name: field.kind for field in bundle.schema.fields}
        raw = {
            name: frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
            if kinds[name] == "numeric"
            else np.array([text_of(value) or "" for value in frame[name]], dtype=object)
            for name in frame.columns
        }
        ids = bundle.vocabulary.encode(frame).astype(np.int64)
        return cls(ids, frame, raw, frame.to_dict(as_series=False))

    def head(self, size):
        return Rows(
            self.ids[:size],
            self.frame[:size],
            *({name: values[:size] for name, values in part.items()} for part in (self.raw, self.lists)),
        )


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


def ways(bundle, exports):
    """For each way to score in this process: bytes of what it needs, and a function of Rows."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = {
        file.stem: onnxruntime.InferenceSession(file, options)
        for name, export in exports.items()
        if name == "onnx"
        for file in export.path.glob("*.onnx")
    }
    found = {
        "bundle, ids": ("bundle", lambda rows: torch.sigmoid(bundle.model(torch.from_numpy(rows.ids))).numpy()),
        "bundle, raw rows": ("bundle", lambda rows: bundle.predict(rows.frame)),
    }
    if "torch" in exports:
        program = torch.export.load(exports["torch"].path / "model.pt2").module()
        found["torch, ids"] = "torch", lambda rows: program(torch.from_numpy(rows.ids)).numpy()
    if "aoti" in exports:
        compiled = torch._inductor.aoti_load_package(str(exports["aoti"].path / "model.pt2"))
        found["aoti, ids"] = "aoti", lambda rows: compiled(torch.from_numpy(rows.ids)).numpy()
    if "model" in sessions:
        found["onnx, ids"] = "onnx", lambda rows: sessions["model"].run(None, {"ids": rows.ids})[0]
    if "rows" in sessions:
        found["onnx, raw rows"] = "onnx", lambda rows: sessions["rows"].run(None, rows.raw)[0]
    if "numpy" in exports:
        scorer = Scorer.load(exports["numpy"].path)
        found["numpy, ids"] = "numpy", lambda rows: scorer.predict_ids(rows.ids)
        found["numpy, raw rows"] = "numpy", lambda rows: scorer.predict(rows.lists)
    return {name: (exports[of].bytes, run) for name, (of, run) in found.items()}


@torch.no_grad()
def timed(found, rows, turns):
    """Milliseconds (p50, p99) of each way, all taking turns."""
    times = {name: [] for name in found}
    for turn in range(turns + 10):
        for name, (_, run) in found.items():
            start = perf_counter()
            run(rows)
            if turn >= 10:
                times[name].append((perf_counter() - start) * 1e3)
    return {name: percentiles(values) for name, values in times.items()}


def percentiles(values):
    return [float(np.percentile(values, which)) for which in (50, 99)]


@torch.no_grad()
def measured(bundle, exports, rows, turns):
    """A line of the table for each way to score: its name, bytes, times, and the largest difference on all rows."""
    found, wanted = ways(bundle, exports), bundle.predict(rows.frame)
    times = [timed(found, rows.head(size), turns[size]) for size in BATCHES]
    for name, (size, run) in found.items():
        difference = np.abs(np.asarray(run(rows)) - wanted).max()
        yield line(name, size, [value for one in times for value in one[name]], difference)


def line(name, size, times, difference):
    return f"| {name} | {size:,} | {' | '.join(f'{value:.2f}' for value in times)} | {difference:.0e} |"


def peer(package, export, rows, wanted, turns):
    """The line of a format that another interpreter scores; None if there is none."""
    python = os.environ.get(f"AUTOEMBED_{package.upper()}_PYTHON")
    if python is None:
        return None
    with tempfile.TemporaryDirectory() as temporary:
        given, out = (Path(temporary) / f"{name}.npy" for name in ("ids", "out"))
        np.save(given, rows.ids)
        command = [python, "-c", PEER, package, given, out, json.dumps(turns)]
        done = subprocess.run(command, cwd=export.path, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise SystemExit(f"{package} cannot score {export.path}:\n{done.stderr}")
        times = json.loads(done.stdout.splitlines()[-1])
        own = [value for size in BATCHES for value in percentiles(times[str(size)])]
        return line(f"{package}, ids (alone)", export.bytes, own, np.abs(np.load(out) - wanted).max())


HEAD = [
    "| format | bytes | 1 row, p50 | p99 | 1,000 rows, p50 | p99 | largest difference |",
    "|---|---|---|---|---|---|---|",
]


def machine(before):
    after = os.getloadavg()[0]
    busy = ": other work kept the machine busy, so compare times with each other" if before > os.cpu_count() else ""
    return (
        f"Median and 99th percentile in milliseconds, one thread, all formats in turn. Bytes are those of the folder. "
        f"torch {torch.__version__}, ONNX Runtime {onnxruntime.__version__}, {os.cpu_count()} cores, "
        f"{platform.machine()}; load average {before:.1f} at the start, {after:.1f} at the end{busy}."
    )


def drawn(command, turns):
    """The section with drawn weights."""
    before, rng, lines = os.getloadavg()[0], np.random.default_rng(0), []
    for title, (bits, mixed) in MODELS.items():
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            bundle = bundle_of(bits, mixed, root / "drawn")
            made = export_several(bundle, root / "out", ("bundle", "torch", "aoti", "onnx", "numpy")).made
            ids = rng.integers(0, few_bits.VALUES - 1, (1000, few_bits.FIELDS))
            frame = pl.DataFrame({name: [f"v{n}" for n in ids[:, k]] for k, name in enumerate(bundle.schema.names)})
            for one in measured(bundle, {own.format: own for own in made}, Rows.of(bundle, frame), turns):
                lines.append(f"| {title} {one}")
                print(lines[-1], flush=True)
    head = [f"| model {HEAD[0]}", f"|---{HEAD[1]}"]
    intro = (
        f"A DeepFM of {few_bits.FIELDS} fields with {few_bits.VALUES:,} values each, a tower of 400, 400, 400; drawn "
        f"weights. {machine(before)}"
    )
    return ["# Serving", "", f"`{command}`", "", intro, "", *head, *lines]


def of_study(study, data, title, command, turns):
    """The section of a study: its best model in all formats, on rows of its data."""
    before, lines = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as temporary:
        copy, out = Path(temporary) / study.name, Path(temporary) / "out"
        shutil.copytree(study, copy)
        export = ["-m", "autoembed.cli", "export", str(copy), str(out), "--format", "all"]
        started = perf_counter()
        said = subprocess.run([sys.executable, *export], stdout=subprocess.PIPE, text=True, check=True).stdout
        seconds = perf_counter() - started
        exports = {
            name: Export(
                path=folder, format=name, bytes=sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            )
            for name in ("bundle", *FORMATS)
            if (folder := out / name).is_dir()
        }
        bundle = load_bundle(exports["bundle"].path)
        data = data or json.loads((study / "dataset.json").read_text())["source"]
        table = read(SearchSpace.read(copy / "space.yaml").data, data, Path(temporary)).splits["valid"].collect()
        rows = Rows.of(bundle, table.sample(min(COMPARED, len(table)), seed=0))
        wanted = bundle.predict(rows.frame)
        for one in measured(bundle, exports, rows, turns):
            lines.append(one)
            print(one, flush=True)
        for name in [name for name in NOT_TIMED if name in exports]:
            own = peer(name, exports[name], rows, wanted, turns) if name != "tables" else None
            lines.append(own or f"| {name} | {exports[name].bytes:,} | not timed: {NOT_TIMED[name]} | | | | |")
            print(lines[-1], flush=True)
    skipped = [one for one in said.splitlines() if " skipped: " in one]
    cost, architecture = bundle.architecture.cost, bundle.architecture
    intro = (
        f"The best model of `{study.name}`: {len(architecture.fields)} fields, {architecture.backbone['name']}, "
        f"{cost.embedding_bytes:,} bytes of embeddings, {cost.bytes:,} in all. All formats are made by "
        f"`autoembed export runs/{study.name} OUT --format all`, in {seconds:.0f} seconds. Differences are those from "
        f"the bundle's predictions on {len(wanted):,} valid rows, whose predictions go from {wanted.min():.3f} "
        f"to {wanted.max():.3f}. FuxiCTR and TorchRec are timed alone, in interpreters of their own. {machine(before)}"
    )
    return [
        f"## A study of {title}",
        "",
        f"`{command}`",
        "",
        intro,
        "",
        *HEAD,
        *lines,
        *([""] if skipped else []),
        *skipped,
    ]


def merged(page, section):
    """The page with a section in place of its old form; the one with drawn weights is the first."""
    parts = page.split("\n## ")
    parts = [parts[0], *(f"## {part}" for part in parts[1:])] if page else [""]
    new = "\n".join(section).strip()
    head = new.splitlines()[0]
    if head.startswith("# "):
        parts[0] = new
    else:
        parts = [part for part in parts if part.splitlines()[:1] != [head]] + [new]
    return "\n\n".join(part.strip() for part in parts).strip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", type=float, default=1, help="of the turns")
    parser.add_argument("--study", type=Path, help="A finished study's folder, which stays as it is.")
    parser.add_argument("--data", help="Its data; those that it was made with by default.")
    parser.add_argument("--title", help="What the section calls the study; its folder's name by default.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    words = [f"{name} {value}" for name, value in vars(args).items() if value not in (None, 1)]
    command = "python tests/benchmarks/serving.py " + " ".join(f"--{word}" for word in words)
    turns = {size: int(count * args.part) or 1 for size, count in TURNS.items()}
    if args.study is None:
        section = drawn(command, turns)
    else:
        section = of_study(args.study, args.data, args.title or args.study.name, command, turns)
    if args.out:
        args.out.write_text(merged(args.out.read_text() if args.out.exists() else "", section))


if __name__ == "__main__":
    main()
