"""Peak memory and CPU time of Bundle.predict on long Parquet, by rows: slices, and Polars' batches as a control.

    python tests/benchmarks/predict.py --out docs/results/predict.md

Each figure is of a fresh process, which scores a thousand rows first. Linux only.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch

import autoembed.bundle
from autoembed.bundle import load_bundle, write_bundle
from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.trial import check, run_trial

PIECE = 1_000_000
TEXT = 6
NUMBERS = 4


def piece(number):
    """A million rows: text and whole numbers of 200 to 1,200 values, fractions, and a label."""
    rng = np.random.default_rng(number)
    columns = {}
    for place in range(TEXT):
        values = pl.Series([f"value {value}" for value in range(200 * (place + 1))])
        columns[f"text{place}"] = values.gather(rng.integers(0, len(values), PIECE))
    for place in range(NUMBERS):
        columns[f"number{place}"] = rng.normal(size=PIECE) if place % 2 else rng.integers(0, 1000, PIECE)
    return pl.DataFrame(columns | {"label": (rng.random(PIECE) < 0.2).astype(np.int8)})


def make(folder, sizes):
    """A bundle, and a Parquet file for each size in rows."""
    piece(0).head(200_000).write_parquet(folder / "train.parquet")
    spec = DataSpec.model_validate({"label": "label", "split": {"by": "random", "valid": 0.1, "test": 0.1}})
    dataset = build_dataset(spec, folder / "train.parquet", folder / "cache")
    options = {"name": "deepfm", "hidden": [64, 32]}
    config = {"arm": "x", "stages": [{"method": "uniform"}], "backbone": options, "train": {"epochs": 1}}
    result, model = run_trial(check(config), dataset, lambda values: None)
    write_bundle(
        folder / "bundle",
        schema=dataset.schema,
        vocabulary=dataset.vocabulary,
        architecture=result.architecture,
        model=model,
        data=spec.model_dump(mode="json", exclude={"path", "planted", "split", "files"}),
        metrics={},
        provenance={},
    )
    pieces = []
    for number in range(max(sizes) // PIECE):
        pieces.append(folder / f"piece{number}.parquet")
        piece(number).write_parquet(pieces[-1])
        if len(pieces) * PIECE in sizes:
            pl.scan_parquet(pieces).sink_parquet(folder / f"{len(pieces) * PIECE}.parquet")
    for path in pieces:
        path.unlink()


def peak():
    """MiB; not getrusage's figure, which a child has of its parent."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024


def child(bundle, table, way):
    torch.set_num_threads(1)
    if way == "batches":
        autoembed.bundle._SLICED = re.compile("never")
    loaded, scan = load_bundle(bundle), pl.scan_parquet(table)
    loaded.predict(scan.head(1000))
    before, start = peak(), time.process_time()
    scores = loaded.predict(scan)
    seconds = time.process_time() - start
    print(before, peak(), seconds * 1e6 / len(scores), float(scores.astype(np.float64).sum()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 4_000_000, 16_000_000])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(*args.child)
    lines = [
        "| rows | file, MiB | scores, MiB | peak, MiB | peak with Polars' batches, MiB | CPU, µs/row | with batches |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, args.rows)
        for rows in args.rows:
            table, found = folder / f"{rows}.parquet", {}
            for way in ("slices", "batches"):
                words = [sys.executable, __file__, "--child", folder / "bundle", table, way]
                done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
                found[way] = list(map(float, done.stdout.split()))
            assert found["slices"][3] == found["batches"][3], "scores differ"
            (start, most, cost, _), (_, control, control_cost, _) = found["slices"], found["batches"]
            lines.append(
                f"| {rows:,} | {table.stat().st_size / 2**20:.0f} | {rows * 4 / 2**20:.0f} | {most:.0f} "
                f"| {control:.0f} | {cost:.2f} | {control_cost:.2f} |"
            )
            print(lines[-1], flush=True)
    text = "\n".join(
        [
            "# Memory of prediction",
            "",
            f"`python tests/benchmarks/predict.py --rows {' '.join(map(str, args.rows))}`",
            "",
            f"`Bundle.predict` on `pl.scan_parquet`, {TEXT + NUMBERS} columns, DeepFM, one thread of torch, fresh "
            f"processes, which hold {start:.0f} MiB before. Peak is the process's whole resident set, scores included. "
            "Rows are read in slices; Polars' `collect_batches`, which other plans than a Parquet scan with "
            "expressions per row (a filter, a join, CSV) still go through, decodes ahead of the model.",
            "",
            *lines,
        ]
    )
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
