"""Milliseconds of `autoembed serve`, in process and through HTTP, beside `Bundle.predict` and ONNX Runtime.

    python tests/benchmarks/serve_http.py --out docs/results/serve.md

The models of tests/benchmarks/serving.py: a DeepFM with 30 fields of 2,000 values, width 16 in 32 bits, and a searched
one. Raw rows come in, one or 1,000 of them, new ones for each turn. One thread of torch; client and server are two
processes on one machine, with one connection that is kept. Blocks of calls take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import few_bits
import numpy as np
import onnxruntime
import polars as pl
import serving
import torch

from autoembed.export.formats import export_bundle
from autoembed.serving.app import ARROW, JSON
from autoembed.serving.state import State

TURNS, DRAWS = {1: (12, 50), 1000: (10, 4)}, {1: 50, 1000: 4}


@contextlib.contextmanager
def server(bundle):
    """The port of a server of a bundle."""
    command = [sys.executable, "-m", "autoembed.cli", "serve", str(bundle.path), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())[1])
        finally:
            process.terminate()


class Rows:
    """Drawn rows in every form in which they are asked."""

    def __init__(self, rng, size):
        names = [f"f{n}" for n in range(few_bits.FIELDS)]
        drawn = rng.integers(0, few_bits.VALUES - 1, (size, len(names)))
        self.columns = {name: [f"v{one}" for one in drawn[:, place]] for place, name in enumerate(names)}
        self.frame = pl.DataFrame(self.columns)
        self.objects = {name: np.array(values, dtype=object) for name, values in self.columns.items()}
        rows = self.frame.to_dicts()
        self.rows = json.dumps({"row": rows[0]} if size == 1 else {"rows": rows}).encode()
        self.as_columns = json.dumps({"columns": self.columns}).encode()
        stream = io.BytesIO()
        self.frame.write_ipc_stream(stream)
        self.arrow = stream.getvalue()


def ways(bundle, root, connection):
    """For each way to score, a function of Rows that gives predictions [N]."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    folder = export_bundle(bundle, root / "onnx", "onnx").path
    session = onnxruntime.InferenceSession(folder / "rows.onnx", options)
    model = State(bundle.path, max_rows=10_000, strict=False).current
    compact = bundle.model.cpu().eval()

    def alone(ids):
        with torch.inference_mode():
            return bundle.schema.task.link(compact(torch.from_numpy(ids))).numpy()

    def ask(body, kind=JSON):
        connection.request("POST", "/predict", body, {"content-type": kind, "accept": kind})
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        if kind == ARROW:
            return pl.read_ipc_stream(io.BytesIO(content))["prediction"].to_numpy()
        return json.loads(content)["predictions"]

    return {
        "`Bundle.predict`": lambda rows: bundle.predict(rows.frame),
        "onnxruntime, rows.onnx": lambda rows: session.run(None, rows.objects)[0],
        "in process, JSON of rows": lambda rows: model.predict(model.reader.json(rows.rows)),
        "in process, JSON of columns": lambda rows: model.predict(model.reader.json(rows.as_columns)),
        "in process, Arrow": lambda rows: model.predict(model.reader.arrow(rows.arrow)),
        "in process, the served model alone": lambda rows: model.predict(rows.ids),
        "the compact model in torch": lambda rows: alone(rows.ids),
        "HTTP, JSON of rows": lambda rows: ask(rows.rows),
        "HTTP, JSON of columns": lambda rows: ask(rows.as_columns),
        "HTTP, Arrow": lambda rows: ask(rows.arrow, ARROW),
    }, model.reader


def timed(found, drawn, blocks, calls):
    """Milliseconds (p10, p50, p99) of each way: blocks of calls take turns, as a server does one thing all the time."""
    times = {name: [] for name in found}
    for _ in range(blocks):
        for name, run in found.items():
            run(drawn[0])
            for call in range(calls):
                start = perf_counter()
                run(drawn[call % len(drawn)])
                times[name].append((perf_counter() - start) * 1e3)
    return {name: np.percentile(values, (10, 50, 99)) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines, load = [], os.getloadavg()[0]
    rng = np.random.default_rng(0)
    drawn = {size: [Rows(rng, size) for _ in range(DRAWS[size])] for size in TURNS}
    for title, (bits, mixed) in serving.MODELS.items():
        with tempfile.TemporaryDirectory() as temporary:
            root = Path(temporary)
            bundle = serving.bundle_of(bits, mixed, root / "bundle")
            with server(bundle) as port:
                found, reader = ways(bundle, root, http.client.HTTPConnection("127.0.0.1", port))
                for rows in (*drawn[1], *drawn[1000]):
                    rows.ids = np.ascontiguousarray(reader.json(rows.as_columns))
                times = {size: timed(found, drawn[size], *turns) for size, turns in TURNS.items()}
                wanted = bundle.predict(drawn[1000][0].frame)
                for name, run in found.items():
                    cells = [f"{value:.2f}" for size in TURNS for value in times[size][name]]
                    difference = np.abs(np.asarray(run(drawn[1000][0])) - wanted).max()
                    lines.append(f"| {title} | {name} | " + " | ".join(cells) + f" | {difference:.0e} |")
                    print(lines[-1], flush=True)
    head = [
        "# Serving over HTTP",
        "",
        f"`python tests/benchmarks/serve_http.py --out {args.out}`",
        "",
        f"A DeepFM of {few_bits.FIELDS} fields with {few_bits.VALUES:,} values each, a tower of 400, 400, 400; drawn "
        "weights, new raw rows for each turn. Percentiles in milliseconds (other work on the machine moves the "
        "50th far more than the 10th), blocks of calls in turn, one "
        "thread of torch; client and server are two processes of one machine, on one connection that is kept. torch "
        f"{torch.__version__}, ONNX Runtime {onnxruntime.__version__}, {os.cpu_count()} cores, {platform.machine()}, "
        f"load {load:.1f} at the start and {os.getloadavg()[0]:.1f} at the end.",
        "",
        "| model | way | 1 row, p10 | p50 | p99 | 1,000 rows, p10 | p50 | p99 | largest difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    if args.out:
        args.out.write_text("\n".join(head + lines) + "\n")


if __name__ == "__main__":
    main()
