"""Narrow rows at their kept dims and projected, at equal bytes of the whole model; and what a projection takes to run.

    python tests/benchmarks/narrow.py --adult ../shared/data/adult --out docs/results/narrow.md

The method's own choice of widths and bits, without its uniform rival, within 8 dims and within 16: the
projection gives every field as many inputs as the widest row has. Which width is better is for valid to say; test is
read once for each row and seed. `--data` runs one of the two data sets and prints its rows alone.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from pathlib import Path

import few_bits
import numpy as np
import torch
from methods import spread
from towers import L2, PLANTED

from autoembed.candidates import projected
from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.metrics import evaluate
from autoembed.nn.model import build_model, cost_of
from autoembed.space import SearchSpace
from autoembed.training import predict
from autoembed.trial import check, run_trial

CPU = torch.device("cpu")
SIZES = {"planted": (10_000, 14_000), "Adult": (15_000,)}
DIMS, NARROW = (8, 16), ("kept", "projected")


def config(name, narrow, dim, size, seed):
    return check(
        {
            "arm": "x",
            "stages": [{"method": "sensitivity", "warm_epochs": 6, "rounds": 1, "guard": "none"}],
            "embedding": {"dim": dim, "blocks": 4, "narrow": narrow},
            "backbone": {"name": "deepfm", "hidden": [32, 16], "dropout": 0.0},
            "train": {"epochs": 8, "lr": 2e-3, "batch_size": 512, "l2": L2[name], "decay": 0.3},
            "limit": {"bytes": size},
            "seed": seed,
            "device": "cpu",
        }
    )


def speed():
    """Milliseconds for 1,000 rows of tables whose blocks have 4 or 16 dims, forward and with gradients; bytes."""
    ids = torch.tensor(np.random.default_rng(0).integers(0, few_bits.VALUES, (1000, few_bits.FIELDS)))
    forward, backward = {}, {}
    for bits in (32, 8, 4):
        schema, kept = few_bits.architecture(bits, mixed=True)
        for name, architecture in (("kept", kept), ("projected", projected(kept))):
            forward[bits, name] = build_model(schema, architecture, packed=True).eval().embedding
            if bits == 32:
                backward[name] = _gradient(build_model(schema, architecture).embedding)
    sizes = {name: cost_of(one).bytes for name, one in (("kept", kept), ("projected", projected(kept)))}
    times = few_bits.times(forward, ids.int())
    with torch.enable_grad():
        return times, few_bits.times(backward, ids.int()), sizes


def _gradient(embedding):
    def run(ids):
        with torch.enable_grad():
            embedding(ids).square().sum().backward()

    return run


def rows_of(name, dataset, seeds):
    lines = []
    for size in SIZES[name]:
        for narrow in NARROW:
            for dim in DIMS:
                found = []
                for seed in range(seeds):
                    result, model = run_trial(config(name, narrow, dim, size, seed), dataset, lambda values: None)
                    found.append((result, evaluate(dataset.labels("test"), predict(model, dataset, "test", CPU))))
                tables = round(sum(result.cost.embedding_bytes for result, _ in found) / seeds)
                used = round(sum(result.cost.bytes for result, _ in found) / seeds)
                inputs = round(sum(int(result.architecture.active().sum()) for result, _ in found) / seeds)
                cells = [[one.valid.auc for one, _ in found], [one.valid.logloss for one, _ in found]]
                cells += [[test.auc for _, test in found], [test.logloss for _, test in found]]
                lines.append(
                    f"| {name} | {size:,} | {narrow} | {dim} | {inputs} | {tables:,} | {used:,} | "
                    + " | ".join(spread(values) for values in cells)
                    + " |"
                )
                print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adult", type=Path, required=True, help="the folder of adult.data and adult.test")
    parser.add_argument("--data", choices=list(SIZES), action="append")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    forward, backward, sizes = speed()
    lines = [
        "# Narrow rows: at their kept dims, or projected",
        "",
        f"`python tests/benchmarks/narrow.py --adult DATA --out {args.out} --seeds {args.seeds}`",
        "",
        f"torch {torch.__version__}, 1 thread, {os.cpu_count()} cores, {platform.machine()}; other work ran beside, so "
        "milliseconds are rough.",
        "",
        f"Lookups of 1,000 rows of {few_bits.FIELDS} fields whose blocks have 4 or 16 dims, medians of "
        f"{few_bits.TURNS} turns, which all take in turn. The matrices and what goes with them bring "
        f"{sizes['projected'] - sizes['kept']:,} bytes.",
        "",
        "| | kept, ms | projected, ms | times kept |",
        "|---|---|---|---|",
    ]
    timed = {f"{bits} bits": [forward[bits, name] for name in NARROW] for bits in (32, 8, 4)}
    timed["32 bits, forward and gradient"] = [backward[name] for name in NARROW]
    lines += [f"| {what} | {a:.2f} | {b:.2f} | {b / a:.2f} |" for what, (a, b) in timed.items()]
    print("\n".join(lines), flush=True)
    lines += [
        "",
        f"Metrics at equal bytes of the whole model: mean ± sd of {args.seeds} seeds. Sensitivity chooses widths and "
        "bits from 8, 4, 3, 2; DeepFM with hidden layers of 32 and 16. Inputs are what the tower reads.",
        "",
        "| data | limit | rows | dim | inputs | bytes of tables | bytes | "
        + " | ".join(f"{part} {metric}" for part in ("valid", "test") for metric in ("AUC", "logloss"))
        + " |",
        "|" + "---|" * 11,
    ]
    space = SearchSpace.read(Path(__file__).parents[2] / "search_spaces" / "adult.yaml")
    specs = {"planted": (DataSpec.model_validate(PLANTED), None), "Adult": (space.data, args.adult)}
    with tempfile.TemporaryDirectory() as cache:
        for name in args.data or SIZES:
            lines += rows_of(name, build_dataset(*specs[name], Path(cache)), args.seeds)
    text = "\n".join(lines) + "\n"
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
