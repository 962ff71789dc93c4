"""Unified Embedding against separate tables at equal bytes: all tensors of the model counted, index buffers too.

    python tests/benchmarks/unified.py search_spaces/kuairand.yaml --data ../shared/data/kuairand \
        --out docs/results/unified.md

For each uniform width the hashed table gets as many rows as fill the same bytes, once with twice that width and once
with the width of `--wide`. L2 on the tables is chosen for each method by valid, under a seed that the table does not
use; the rest of the recipe is fixed. Test is read once a row and seed.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from pathlib import Path

import torch
from methods import spread

from autoembed.draws import prepare
from autoembed.metrics import evaluate
from autoembed.nn.model import cost_of
from autoembed.space import SearchSpace
from autoembed.storage import SharedStorage
from autoembed.training import predict
from autoembed.trial import check, root_architecture, run_trial

CPU = torch.device("cpu")
BACKBONE = {"name": "deepfm", "hidden": [128, 64], "dropout": 0.2}
TRAIN = {"epochs": 20, "lr": 1e-3, "batch_size": 2048, "patience": 2, "decay": 0.1}
L2 = (0.0, 1e-4, 1e-3, 1e-2)


def config(method, dim, l2, seed, parameters=None):
    return check(
        {
            "arm": method,
            "stages": [{"method": method}],
            "embedding": {"dim": dim, "blocks": 1},
            "backbone": BACKBONE,
            "train": TRAIN | {"l2": l2},
            "limit": {"parameters": parameters},
            "seed": seed,
            "device": "cpu",
        }
    )


def uniform_bytes(dataset, width):
    return cost_of(root_architecture(config("uniform", width, 0.0, 0), dataset)).bytes


def table_parameters(dataset, dim, target):
    """Parameters of the hashed table whose model takes `target` bytes, less what does not fill a row."""
    parent = root_architecture(config("unified", dim, 0.0, 0, 1), dataset)
    one, two = (cost_of(parent.replace(storage=SharedStorage(rows=rows, lookups=2))).bytes for rows in (1, 2))
    return (1 + (target - one) // (two - one)) * (two - one) // 4


def choose_l2(dataset, method, dim, parameters):
    found = {}
    for l2 in L2:
        trial, _ = run_trial(config(method, dim, l2, 1000, parameters), dataset, lambda values: None)
        found[l2] = trial.valid.auc
    return max(found, key=found.__getitem__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--wide", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as cache:
        dataset = prepare(SearchSpace.read(args.space), args.data, 0, Path(cache))
        middle = args.widths[len(args.widths) // 2]
        target = uniform_bytes(dataset, middle)
        l2 = {
            "uniform": choose_l2(dataset, "uniform", middle, None),
            "unified": choose_l2(dataset, "unified", 2 * middle, table_parameters(dataset, 2 * middle, target)),
        }
        print(f"l2 {l2}", file=sys.stderr, flush=True)
        lines = []
        for width in args.widths:
            target = uniform_bytes(dataset, width)
            base = None
            for method, dim in (("uniform", width), ("unified", 2 * width), ("unified", args.wide)):
                parameters = None if method == "uniform" else table_parameters(dataset, dim, target)
                found = []
                for seed in range(args.seeds):
                    result, model = run_trial(
                        config(method, dim, l2[method], seed, parameters), dataset, lambda values: None
                    )
                    test = evaluate(dataset.labels("test"), predict(model, dataset, "test", CPU))
                    found.append((result, test))
                    print(f"{method} {dim} seed {seed} test {test.auc:.4f}", file=sys.stderr, flush=True)
                base = base or found
                cost = found[0][0].cost
                gaps = [test.auc - other.auc for (_, test), (_, other) in zip(found, base, strict=True)]
                lines.append(
                    f"| {method} | {dim} | {cost.bytes:,} | {cost.embedding_parameters:,} | "
                    f"{cost.dense_parameters:,} | {spread([test.auc for _, test in found])} | "
                    f"{spread([test.logloss for _, test in found])} | "
                    f"{'' if found is base else spread(gaps)} |"
                )
        report = "\n".join([*head(args, dataset, l2), *lines, ""])
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(report)
    print(report)


def head(args, dataset, l2) -> list[str]:
    data = f" --data {args.data}" if args.data else ""
    return [
        "# Unified Embedding and separate tables at equal bytes",
        "",
        f"`python tests/benchmarks/unified.py {args.space}{data} --seeds {args.seeds}`",
        "",
        f"Mean ± sd of {args.seeds} seeds. {len(dataset.schema.fields)} fields, {sum(dataset.schema.cardinalities):,} "
        f"ids, {dataset.rows('train'):,} / {dataset.rows('valid'):,} / {dataset.rows('test'):,} rows. DeepFM, hidden "
        f"{BACKBONE['hidden']}; L2 {l2['uniform']:g} for uniform and {l2['unified']:g} for unified, each chosen by "
        "valid. Bytes are those of all tensors of the model. Two lookups a value; the gap is to uniform at the same "
        f"bytes, paired by seed. torch {torch.__version__}, {args.threads} thread(s), {os.cpu_count()} cores, "
        f"{platform.machine()}.",
        "",
        "| method | dim | bytes | embedding parameters | dense parameters | test AUC | test logloss | gap in AUC |",
        "|---|---|---|---|---|---|---|---|",
    ]


if __name__ == "__main__":
    main()
