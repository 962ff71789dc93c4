"""Towers in 8 bits and of searched units, at equal bytes of the whole model; and what 8 bits take to run.

    python tests/benchmarks/towers.py --adult ../shared/data/adult --out docs/results/towers.md

Planted data need embeddings of 800 values more than a tower; Adult has few values. Test is read once for each row and
seed.
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

from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.metrics import evaluate
from autoembed.nn.model import build_model, cost_of, pack
from autoembed.space import SearchSpace
from autoembed.training import predict
from autoembed.trial import check, run_trial

CPU = torch.device("cpu")
PLANTED = {
    "planted": {
        "rows": 40000,
        "seed": 5,
        "marginal": [10],
        "xor": [],
        "low_rank": [],
        "tail": [800],
        "tail_effect": 1.5,
        "noise": [20],
    },
    "split": {"by": "random", "valid": 0.2, "test": 0.2},
}
SIZES = {"planted": (18_000, 24_000, 34_000), "Adult": (20_000, 40_000)}
TOWERS = [{}, {"units": "search"}, {"bits": 8}, {"bits": 8, "units": "search"}]
L2 = {"planted": 3e-3, "Adult": 1e-4}


def config(name, tower, size, seed):
    return check(
        {
            "arm": "x",
            "stages": [{"method": "magnitude", "warm_epochs": 10}],
            "embedding": {"dim": 8, "blocks": 4},
            "backbone": {"name": "deepfm", "hidden": [64, 32], "dropout": 0.0},
            "tower": tower,
            "train": {"epochs": 12, "lr": 2e-3, "batch_size": 512, "l2": L2[name], "decay": 0.3},
            "limit": {"bytes": size},
            "seed": seed,
            "device": "cpu",
        }
    )


def latency():
    """Milliseconds of a DeepFM with hidden layers of 400 by bits and rows, and the bytes beside its tables."""
    ids = torch.tensor(
        np.random.default_rng(0).integers(0, few_bits.VALUES, (1000, few_bits.FIELDS)), dtype=torch.int32
    )
    models, sizes = {}, {}
    schema, full = few_bits.architecture(32)
    for bits in (32, 16, 8):
        model = build_model(schema, full.replace(tower_bits=bits))
        models[bits] = pack(model, schema).eval()
        cost = cost_of(model.architecture)
        sizes[bits] = cost.bytes - cost.embedding_bytes
    return sizes, {rows: few_bits.times(models, ids[:rows]) for rows in (1, 50, 1000)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adult", type=Path, required=True, help="the folder of adult.data and adult.test")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes, times = latency()
    lines = [
        "# Towers: fewer bits, and fewer units",
        "",
        f"`python tests/benchmarks/towers.py --adult DATA --out {args.out} --seeds {args.seeds}`",
        "",
        f"torch {torch.__version__}, 1 thread, {os.cpu_count()} cores, {platform.machine()}; other work ran beside, so "
        "milliseconds are rough.",
        "",
        f"DeepFM, {few_bits.FIELDS} fields, width {few_bits.DIM}, hidden layers of 400, 400, 400; medians of "
        f"{few_bits.TURNS} turns, which the three take in turn.",
        "",
        "| bits | bytes beside the tables | "
        + " | ".join(f"ms for {rows:,} row" + "s" * (rows > 1) for rows in times)
        + " |",
        "|---|---|" + "---|" * len(times),
    ]
    lines += [
        f"| {bits} | {sizes[bits]:,} | " + " | ".join(f"{found[bits]:.2f}" for found in times.values()) + " |"
        for bits in sizes
    ]
    lines += [
        "",
        f"Test metrics at equal bytes: mean ± sd of {args.seeds} seeds, magnitude with tables of 32 bits, DeepFM "
        "with hidden layers of 64 and 32, from the supernet's weights and from fresh ones, the better on valid.",
        "",
        "| data | limit | tower | hidden layers | bytes of tables | test AUC | test logloss |",
        "|---|---|---|---|---|---|---|",
    ]
    space = SearchSpace.read(Path(__file__).parents[2] / "search_spaces" / "adult.yaml")
    with tempfile.TemporaryDirectory() as cache:
        for name, spec, data in (
            ("planted", DataSpec.model_validate(PLANTED), None),
            ("Adult", space.data, args.adult),
        ):
            dataset = build_dataset(spec, data, Path(cache))
            for size in SIZES[name]:
                for tower in TOWERS:
                    found = []
                    for seed in range(args.seeds):
                        result, model = run_trial(config(name, tower, size, seed), dataset, lambda values: None)
                        found.append((result, evaluate(dataset.labels("test"), predict(model, dataset, "test", CPU))))
                    label = f"{tower.get('bits', 32)} bits, {tower.get('widths', 'fixed')}"
                    hidden = "; ".join(
                        ", ".join(map(str, result.architecture.backbone["hidden"])) for result, _ in found
                    )
                    tables = round(sum(result.cost.embedding_bytes for result, _ in found) / len(found))
                    lines.append(
                        f"| {name} | {size:,} | {label} | {hidden} | {tables:,} | "
                        f"{spread([test.auc for _, test in found])} | {spread([test.logloss for _, test in found])} |"
                    )
                    print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
