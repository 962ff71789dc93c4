"""Quotient-remainder embeddings beside uniform rows and one hashed table at equal bytes of the whole model.

    python tests/benchmarks/quotient.py search_spaces/kuairand.yaml=../shared/data/kuairand:520000 \
        search_spaces/frontier_ml100k.yaml=ML100K:72000,90000 --out docs/results/quotient.md

ML100K is made by tests/benchmarks/ml100k.py. For each arm and budget, L2 on the tables, then dim where the arm does not
choose it, are those with the best valid AUC under a seed that the tables do not use; the rest of the recipe is fixed.
Test is read once a row and seed.
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
from autoembed.errors import SpaceError
from autoembed.metrics import evaluate
from autoembed.space import SearchSpace
from autoembed.training import predict
from autoembed.trial import check, run_trial

CPU = torch.device("cpu")
BACKBONE = {"name": "deepfm", "hidden": [128, 64], "dropout": 0.2}
TRAIN = {"epochs": 20, "lr": 1e-3, "batch_size": 2048, "patience": 2, "decay": 0.1}
L2, DIMS, FULL, CHOOSING = (1e-1, 1e-2, 1e-3, 3e-4), (4, 2, 8), (16,), 1000
WHOLE, SPLIT = {"method": "uniform"}, {"method": "quotient_remainder"}
ARMS = {
    "uniform, 32 bits": (WHOLE, FULL),
    "uniform, 4 bits": (WHOLE | {"bits": 4}, FULL),
    "unified": ({"method": "unified"}, DIMS),
    "quotient_remainder, mult": (SPLIT, DIMS),
    "quotient_remainder, add": (SPLIT | {"combine": "add"}, DIMS),
    "quotient_remainder, mult, 4 bits": (SPLIT | {"bits": 4}, DIMS),
}


def run(dataset, stage, dim, l2, limit, seed):
    config = {
        "arm": "x",
        "stages": [stage],
        "embedding": {"dim": dim, "blocks": 1},
        "backbone": BACKBONE,
        "train": TRAIN | {"l2": l2},
        "limit": {"bytes": limit},
        "seed": seed,
        "device": "cpu",
    }
    return run_trial(check(config), dataset, lambda values: None)


def choose(dataset, stage, dims, limit):
    """The L2 with the best valid AUC at the first dim that fits, then the best dim with it; None if none fits."""
    found = {}

    def valid(dim, l2):
        try:
            found[dim, l2] = run(dataset, stage, dim, l2, limit, CHOOSING)[0].valid.auc
        except SpaceError as error:
            print(f"  {stage} {dim}: {error}", file=sys.stderr, flush=True)
            return False
        return True

    for place, dim in enumerate(dims):
        if all(valid(dim, l2) for l2 in L2):
            _, l2 = max(found, key=found.__getitem__)
            for other in dims[place + 1 :]:
                valid(other, l2)
            break
    print(f"  {stage} {found}", file=sys.stderr, flush=True)
    return max(found, key=found.__getitem__, default=None)


def values_a_row(architecture):
    """How many values share a row, over all fields."""
    storage = architecture.storage
    if storage.kind != "quotient_remainder":
        return ""
    rows = sum(sum(storage.parts(field.cardinality)) for field in architecture.fields)
    return f"{sum(field.cardinality for field in architecture.fields) / rows:.1f}"


def table(space, data, budgets, seeds):
    lines = []
    with tempfile.TemporaryDirectory() as cache:
        dataset = prepare(SearchSpace.read(Path(space)), data, 0, Path(cache))
        for budget in budgets:
            base = None
            for name, (stage, dims) in ARMS.items():
                chosen = choose(dataset, stage, dims, budget)
                if chosen is None:
                    lines.append(f"| {budget:,} | {name} | | | | | does not fit | | |")
                    continue
                found = []
                for seed in range(seeds):
                    result, model = run(dataset, stage, *chosen, budget, seed)
                    test = evaluate(dataset.labels("test"), predict(model, dataset, "test", CPU))
                    found.append((result, test))
                    print(f"{budget} {name} {chosen} seed {seed} test {test.auc:.4f}", file=sys.stderr, flush=True)
                base = base or found
                first = found[0][0]
                gaps = [test.auc - other.auc for (_, test), (_, other) in zip(found, base, strict=True)]
                lines.append(
                    f"| {budget:,} | {name} | {first.architecture.dim} | {values_a_row(first.architecture)} | "
                    f"{chosen[1]:g} | {first.cost.bytes:,} | {spread([test.auc for _, test in found])} | "
                    f"{spread([test.logloss for _, test in found])} | {'' if found is base else spread(gaps)} |"
                )
    sizes = sorted(dataset.schema.cardinalities, reverse=True)[:4]
    return [
        f"## {Path(space).stem}",
        "",
        f"{len(dataset.schema.fields)} fields, {sum(dataset.schema.cardinalities):,} ids, the largest fields have "
        f"{', '.join(f'{size:,}' for size in sizes)}; {dataset.rows('train'):,} / {dataset.rows('valid'):,} / "
        f"{dataset.rows('test'):,} rows.",
        "",
        "| budget | arm | dim | values a row | L2 | bytes | test AUC | test logloss | gap in AUC |",
        "|---|---|---|---|---|---|---|---|---|",
        *lines,
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="SPACE=DATA:BYTES,BYTES,...")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts = []
    for one in args.data:
        space, _, rest = one.partition("=")
        data, _, budgets = rest.rpartition(":")
        parts += table(space, data, [int(budget) for budget in budgets.split(",")], args.seeds)
    report = "\n".join([*head(args), *parts])
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(report)
    print(report)


def head(args) -> list[str]:
    return [
        "# Quotient-remainder embeddings at equal bytes",
        "",
        f"`python tests/benchmarks/quotient.py {' '.join(args.data)} --seeds {args.seeds}`",
        "",
        f"Mean ± sd of {args.seeds} seeds. DeepFM, hidden {BACKBONE['hidden']}. A budget is of all tensors of the "
        f"model. For each arm and budget, L2 of {', '.join(f'{l2:g}' for l2 in L2)} at {DIMS[0]} dims, then dim of "
        f"{', '.join(map(str, sorted(DIMS)))} where the arm does not choose it, are the best on valid under another "
        "seed. "
        "The gap is to uniform rows of 32 bits in the same budget, paired by seed. "
        f"torch {torch.__version__}, {args.threads} thread(s), {os.cpu_count()} cores, {platform.machine()}.",
        "",
    ]


if __name__ == "__main__":
    main()
