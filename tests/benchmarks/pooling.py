"""What pooling costs: one field of 20 values a row against 20 fields of one value, and against torch's EmbeddingBag.

    python tests/benchmarks/pooling.py --out docs/results/pooling.md

Batches of 2,048 rows, 10,000 values, 16 dims; forward and backward of the embedding alone, one thread, in turn.
"""

from __future__ import annotations

import argparse
import platform
import statistics
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from autoembed.architecture import Architecture
from autoembed.data.schema import FeatureSchema, Field, Multi
from autoembed.nn.embedding import MixedEmbedding

ROWS, VALUES, LENGTH, DIM, TURNS = 2048, 10_000, 20, 16, 60


def embedding(fields, bits, mixed):
    schema = FeatureSchema(fields=fields, label="y")
    counts = [np.arange(VALUES, 0, -1)] * len(fields)
    whole = Architecture.full(schema, counts, dim=DIM, blocks=4, backbone={"name": "dnn"}, bits=bits)
    if mixed:
        mask = whole.mask()
        mask[whole.block_levels() > 1, DIM // 4 :] = False
        whole = whole.with_mask(mask)
    return MixedEmbedding(whole, first_order=False)


def measured(mixed):
    """Milliseconds of each way, by name."""
    several = (Field(name="x", cardinality=VALUES, kind="multi", multi=Multi(length=LENGTH)),)
    singles = tuple(Field(name=f"x{number}", cardinality=VALUES) for number in range(LENGTH))
    rng = np.random.default_rng(0)
    ids = torch.tensor(rng.integers(0, VALUES, (ROWS, LENGTH)), dtype=torch.int32)
    bag = torch.nn.EmbeddingBag(VALUES, DIM, mode="mean")
    ways = {
        "one field of 20 values": embedding(several, 32, mixed),
        "20 fields of one value": embedding(singles, 32, mixed),
        "torch.nn.EmbeddingBag, padded": bag,
    }
    times = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, module in ways.items():
            begun = perf_counter()
            module(ids).sum().backward()
            times[name].append(perf_counter() - begun)
            module.zero_grad(set_to_none=True)
    return {name: 1000 * statistics.median(own) for name, own in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="A Markdown page.")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Pooling",
        "",
        "`python tests/benchmarks/pooling.py --out docs/results/pooling.md`",
        "",
        f"{ROWS:,} rows, {VALUES:,} values, {DIM} dims, 32 bits; forward and backward of the embedding alone. Median "
        f"of {TURNS}, in turn, one thread. torch {torch.__version__}, {platform.machine()}. The ratio is to 20 fields "
        "of one value: as many look-ups, in 20 tables where the list has one. EmbeddingBag reads all places of a row.",
        "",
        "| widths | | ms | ratio |",
        "|---|---|---:|---:|",
    ]
    for mixed in (False, True):
        found = measured(mixed)
        base = found["20 fields of one value"]
        for name, own in found.items():
            lines.append(f"| {'4 and 16' if mixed else '16'} | {name} | {own:.1f} | {own / base:.2f} |")
            print(lines[-1])
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
