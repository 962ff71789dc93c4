"""What tables of few bits cost when they are read, and what they hold.

    python tests/benchmarks/few_bits.py --out docs/results/few_bits.md

Looks 1,000 rows of 30 fields up, width 16 and a first-order weight, in tables of each number of bits; the same model
with rows of two widths; and the whole DeepFM with a tower of 400, 400, 400. Float rows and packed ones take turns. And
the growth of the process when a table of about a gigabyte in 32 bits is made, beside what its cost says.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from autoembed.architecture import Architecture
from autoembed.data.schema import FeatureSchema, Field
from autoembed.nn.model import build_model, cost_of
from autoembed.plans import BITS

FIELDS, VALUES, DIM, ROWS, TURNS = 30, 2000, 16, 1000, 60


def architecture(bits, *, values=VALUES, fields=FIELDS, mixed=False):
    schema = FeatureSchema(fields=tuple(Field(name=f"f{n}", cardinality=values) for n in range(fields)), label="y")
    counts = [np.concatenate([[0], np.arange(values - 1, 0, -1)])] * fields
    backbone = {"name": "deepfm", "hidden": [400, 400, 400]}
    full = Architecture.full(schema, counts, dim=DIM, blocks=6, backbone=backbone, bits=bits)
    if mixed:
        width = np.where(np.arange(len(full.block_rows())) % 2, DIM, DIM // 4)
        full = full.with_mask(np.arange(DIM) < width[:, None])
    return schema, full


def times(parts, ids):
    """The median milliseconds of each part, all taking turns."""
    found = {name: [] for name in parts}
    with torch.no_grad():
        for turn in range(TURNS + 5):
            for name, part in parts.items():
                start = perf_counter()
                part(ids)
                if turn >= 5:
                    found[name].append((perf_counter() - start) * 1e3)
    return {name: float(np.median(values)) for name, values in found.items()}


def resident():
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) * 1024


def hold(bits):
    """Prints the growth of this process by a packed model of a billion bytes in 32 bits, and its cost."""
    schema, full = architecture(bits, values=490_000, fields=30)
    before = resident()
    model = build_model(schema, full, packed=True)
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data.fill_(1.0)
        else:
            tensor.data.fill_(1)
    print(resident() - before, cost_of(full).bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--hold", type=int, help="used by the script itself")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.hold:
        hold(args.hold)
        return
    ids = torch.tensor(np.random.default_rng(0).integers(0, VALUES, (ROWS, FIELDS)), dtype=torch.int32)
    rows = {}
    for what, mixed in (("lookup, one width", False), ("lookup, two widths", True), ("whole model, one width", False)):
        parts = {}
        for bits in BITS:
            schema, full = architecture(bits, mixed=mixed)
            model = build_model(schema, full, packed=True).eval()
            parts[bits] = model if what.startswith("whole") else model.embedding
        rows[what] = times(parts, ids)
    lines = [
        "# Rows of few bits: time and memory",
        "",
        f"`python tests/benchmarks/few_bits.py --out {args.out}`",
        "",
        f"{ROWS:,} rows of {FIELDS} fields, width {DIM}, first-order weights, a step for each row; medians of {TURNS} "
        "turns, one thread. Milliseconds, and times float rows.",
        "",
        "| bits | " + " | ".join(rows) + " | bytes a value |",
        "|---|" + "---|" * (len(rows) + 1),
    ]
    for bits in BITS:
        schema, full = architecture(bits)
        cells = [f"{found[bits]:.2f} ({found[bits] / found[32]:.2f}x)" for found in rows.values()]
        size = cost_of(full).embedding_bytes / (FIELDS * VALUES)
        lines.append(f"| {bits} | " + " | ".join(cells) + f" | {size:.1f} |")
    lines += [
        "",
        "Memory of a served model of 14.7 million values, in bytes:",
        "",
        "| bits | process grew by | cost says |",
        "|---|---|---|",
    ]
    for bits in (32, 8, 4, 2):
        done = subprocess.run(
            [sys.executable, __file__, "--hold", str(bits)], capture_output=True, text=True, timeout=300, check=True
        )
        grew, cost = (int(word) for word in done.stdout.split())
        lines.append(f"| {bits} | {grew:,} | {cost:,} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
