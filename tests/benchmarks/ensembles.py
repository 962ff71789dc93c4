"""Ensembles against one model: test metrics, bytes, training seconds and latency, at 32, 4 and 2 bits.

    python tests/benchmarks/ensembles.py --adult ../shared/data/adult --rows rows.json --out docs/results/ensembles.md

Every value keeps the same width. `--rows` holds what is done: a call that was stopped goes on from there. Test is read
once for each row and seed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path
from time import perf_counter

import torch
from methods import spread

from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.metrics import evaluate
from autoembed.space import SearchSpace
from autoembed.training import predict
from autoembed.trial import check, run_trial

CPU = torch.device("cpu")
BACKBONE = {"name": "deepfm", "hidden": [64, 32], "dropout": 0.1}
TRAIN = {"epochs": 12, "lr": 2e-3, "batch_size": 1024, "patience": 2, "decay": 0.3, "l2": 1e-4}
PLANTED = {
    "planted": {"rows": 30000, "seed": 3, "marginal": [4, 30, 300], "xor": [], "low_rank": [10, 20], "noise": [5, 500]},
    "split": {"by": "random", "valid": 0.2, "test": 0.2},
}
MODELS = [
    ("1 model", 8, {}),
    ("1 model, twice as wide", 16, {}),
    *((f"{n} members, share {share}", 8, {"members": n, "share": share})
      for n in (4, 8) for share in ("all", "tables", "none")),
]  # fmt: skip
BITS = (32, 4, 2)


def config(dim, ensemble, bits, seed):
    return check(
        {
            "arm": "x",
            "stages": [{"method": "uniform", "bits": bits}],
            "embedding": {"dim": dim, "blocks": 4},
            "backbone": BACKBONE,
            "ensemble": ensemble,
            "train": TRAIN,
            "seed": seed,
            "device": "cpu",
        }
    )


def measure(dataset, dim, ensemble, bits, seed):
    result, model = run_trial(config(dim, ensemble, bits, seed), dataset, lambda values: None)
    test = evaluate(dataset.labels("test"), predict(model, dataset, "test", CPU))
    return {
        "auc": test.auc,
        "logloss": test.logloss,
        "bytes": result.cost.bytes,
        "seconds": result.retrain_seconds,
        "latency": result.latency_ms,
    }


def table(name, dataset, rows, seeds):
    sizes = " / ".join(f"{dataset.rows(split):,}" for split in ("train", "valid", "test"))
    lines = [f"## {name}", "", f"{len(dataset.schema.fields)} fields, {sizes} rows.", ""]
    lines += [
        "| bits | model | bytes | test AUC | test logloss | seconds | ms for 1,000 rows |",
        "|---|---|---|---|---|---|---|",
    ]
    for bits in BITS:
        for label, _, _ in MODELS:
            own = [rows[key(name, bits, label, seed)] for seed in range(seeds)]
            seconds, latency = (sum(one[part] for one in own) / len(own) for part in ("seconds", "latency"))
            lines.append(
                f"| {bits} | {label} | {own[0]['bytes']:,} | {spread([one['auc'] for one in own])} | "
                f"{spread([one['logloss'] for one in own])} | {seconds:.1f} | {latency:.2f} |"
            )
    return [*lines, ""]


def key(name, bits, label, seed):
    return f"{name}, {bits} bits, {label}, seed {seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adult", type=Path, required=True, help="the folder of adult.data and adult.test")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(args.rows.read_text()) if args.rows.exists() else {}
    space = SearchSpace.read(Path(__file__).parents[2] / "search_spaces" / "adult.yaml")
    start = perf_counter()
    lines = [
        "# Ensembles in few bytes",
        "",
        f"`python tests/benchmarks/ensembles.py --adult DATA --rows rows.json --out {args.out} --seeds {args.seeds}`",
        "",
        f"Mean ± sd of {args.seeds} seeds. DeepFM, hidden {BACKBONE['hidden']}, width 8 (16 where it says so) for "
        "every value, all models by the same recipe; below 32 bits trained on with rounded lookups. Bytes are those of "
        f"all tensors. torch {torch.__version__}, 1 thread, {os.cpu_count()} cores, {platform.machine()}; other work "
        "ran beside, so seconds and milliseconds are rough.",
        "",
    ]
    with tempfile.TemporaryDirectory() as cache:
        for name, spec, data in (
            ("planted", DataSpec.model_validate(PLANTED), None),
            ("Adult", space.data, args.adult),
        ):
            dataset = build_dataset(spec, data, Path(cache))
            for seed in range(args.seeds):
                for bits in BITS:
                    for label, dim, ensemble in MODELS:
                        place = key(name, bits, label, seed)
                        if place not in rows:
                            rows[place] = measure(dataset, dim, ensemble, bits, seed)
                            args.rows.write_text(json.dumps(rows, indent=1))
                            print(f"{perf_counter() - start:.0f} s: {place} {rows[place]}", flush=True)
            lines += table(name, dataset, rows, args.seeds)
    text = "\n".join(lines)
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
