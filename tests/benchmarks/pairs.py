"""OptInter beside its four baselines, DNIS and uniform, over seeds; and what its search costs as pairs grow.

    python tests/benchmarks/pairs.py search_spaces/kuairand_pairs.yaml --data ../shared/data/kuairand \
        --seeds 5 --out docs/results/kuairand_pairs.md

For each seed and arm, `--trials` random draws from the space's ranges are trained; the best by valid AUC is measured on
test, once. OptInter comes first: `random_pairs` and the arms that choose dims, at `--dim`, get as many embedding
parameters as it took.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from methods import best_of, spread

from autoembed.data.crosses import CrossSpec
from autoembed.data.dataset import build_dataset
from autoembed.draws import draw
from autoembed.methods.bilevel import search
from autoembed.methods.method import configure, load
from autoembed.metrics import evaluate
from autoembed.ranking.ranking import rank
from autoembed.retraining import retrain
from autoembed.space import SearchSpace
from autoembed.training import pick_device, predict
from autoembed.trial import Limit, check, root_architecture, run_trial

SAME_COST = ("random_pairs", "dnis", "uniform")
DIMS = ("dnis", "uniform")


def prepare(space, data, cache):
    dataset = build_dataset(space.data, data, cache)
    dataset = dataset.keep(rank(dataset).top(space.features.keep or len(dataset.schema.fields)), cache)
    return dataset, rank(dataset, pairs="all").top_pairs(10**6)


def measured(config, dataset):
    result, model = run_trial(config, dataset, lambda values: None)
    test = evaluate(dataset.labels("test"), predict(model, dataset, "test", pick_device(config.device)))
    return result, test


def compare(space, dataset, args):
    rows = {arm: [] for arm in space.arms()}
    for seed in range(args.seeds):
        limit = None
        for number, arm in enumerate(rows):

            def change(config, arm=arm, limit=limit):
                if arm in SAME_COST:
                    config = config.model_copy(update={"limit": Limit(parameters=limit)})
                if arm in DIMS:
                    wide = config.embedding.model_copy(update={"dim": args.dim})
                    config = config.model_copy(update={"embedding": wide})
                return config

            result, _, test, seconds = best_of(space, arm, dataset, seed, number, args.trials, change)
            spent = sum(seconds)
            if number == 0:
                limit = result.cost.embedding_parameters
            rows[arm].append((result, test, spent))
            print(
                f"seed {seed} {arm:14} valid {result.valid.auc:.4f} test {test.auc:.4f} logloss {test.logloss:.4f} "
                f"embedding {result.cost.embedding_parameters:,} {kinds(result.architecture)} {spent:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    return rows


def kinds(architecture):
    """How many pairs are memorized, factorized and left out."""
    choices = [pair.choice for pair in architecture.pairs]
    return " / ".join(str(choices.count(kind)) for kind in ("memorize", "factorize", "naive"))


def updates(space, dataset, args):
    """OptInter with the paper's joint update and with ours, the first draw of each seed."""
    lines = ["| update | test AUC | pairs memorized / factorized / naive (seed 0) |", "|---|---|---|"]
    arm = space.arms()[0]
    for update in ("joint", "all"):
        found = []
        for seed in range(args.seeds):
            config = space.config(arm, draw(space.ranges(arm), np.random.default_rng([seed, 0])), seed)
            plain = config.model_dump(mode="json")
            plain["stages"][-1]["update"] = update
            found.append(measured(check(plain), dataset))
        auc = spread([test.auc for _, test in found])
        lines.append(f"| {update} | {auc} | {kinds(found[0][0].architecture)} |")
    return lines


def costs(space, bare, pairs, cache, numbers):
    """Seconds of a search epoch over those of a plain epoch, and of a whole search over a plain training."""
    arm = space.arms()[0]
    config = space.config(arm, draw(space.ranges(arm), np.random.default_rng(0)), 0)
    device = pick_device(config.device)
    root = root_architecture(config, bare)
    epoch = config.train.model_copy(update={"epochs": 1})
    start = perf_counter()
    _, fitted = retrain(root, bare, config.train, device, 0, lambda values: None)
    plain = perf_counter() - start
    start = perf_counter()
    retrain(root, bare, epoch, device, 0, lambda values: None)
    one = perf_counter() - start
    lines = [
        f"A plain training takes {plain:.1f} s ({fitted.epoch} epochs to its best), one plain epoch {one:.2f} s.",
        "",
        "| pairs | crossed ids | pair parameters while searching | MiB with gradients and moments | search epoch s "
        "| of a plain epoch | whole search s | of a plain training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number in numbers:
        dataset = bare.cross(pairs[:number], CrossSpec.model_validate(crossing(space)), cache, candidates=True)
        method = configure(config.stages[-1])
        took = []
        for epochs in (1, method.epochs):
            few = method.model_copy(update={"epochs": epochs})
            start = perf_counter()
            net = load("optinter").Supernet(dataset.schema, root_architecture(config, dataset), few, dataset.counts, 0)
            search(net, dataset, config.train, device=device, seed=0, report=lambda values: None)
            took.append(perf_counter() - start)
        tables = sum(part.numel() for pairs_ in net.pairs for part in pairs_.parameters())
        crossed = sum(pair.crossed for pair in net.inputs)
        lines.append(
            f"| {len(net.inputs)} | {crossed:,} | {tables:,} | {tables * 16 / 2**20:.0f} | {took[0]:.2f} "
            f"| {took[0] / one:.2f}x | {took[1]:.1f} | {took[1] / plain:.2f}x |"
        )
    return lines


def crossing(space):
    return space.features.pairs.model_dump(exclude={"top"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--dim", type=int, default=24, help="width that dnis starts from, and uniform stays below")
    parser.add_argument("--costs", type=int, nargs="*", default=[15, 30, 60, 120])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    space = SearchSpace.read(args.space)
    top = space.features.pairs.top
    with tempfile.TemporaryDirectory() as folder:
        bare, pairs = prepare(space, args.data, Path(folder))
        chosen = pairs if top == "all" else pairs[:top]
        dataset = bare.cross(chosen, CrossSpec.model_validate(crossing(space)), Path(folder), candidates=True)
        rows = compare(space, dataset, args)
        changed = updates(space, dataset, args)
        cost = costs(space, bare, pairs, Path(folder), [n for n in args.costs if n <= len(pairs)])
    report = table(rows, args, space, dataset) + "\n".join(
        [
            "",
            "## The paper's joint update",
            "",
            "The first draw of each seed, theta moved on train rows (joint) or on held-out ones (all):",
            "",
            *changed,
            "",
            "## What the search costs",
            "",
            *cost,
            "",
        ]
    )
    if args.out:
        args.out.write_text(report)
    print(report)


def table(rows, args, space, dataset) -> str:
    data = f" --data {args.data}" if args.data else ""
    fields = [field for field in dataset.schema.fields if not field.candidate]
    lines = [
        f"# {args.space.name}: what to do with pairs",
        "",
        f"`python tests/benchmarks/pairs.py {args.space}{data} --seeds {args.seeds} --trials {args.trials} "
        f"--dim {args.dim}`",
        "",
        f"{args.seeds} seeds, {args.trials} random draws an arm and seed, the best by valid measured once on test; "
        f"mean ± sd. {len(fields)} fields, {sum(field.cardinality for field in fields):,} ids, "
        f"{len(dataset.schema.fields) - len(fields)} candidate pairs by synergy, "
        f"{dataset.rows('train'):,} / {dataset.rows('valid'):,} / {dataset.rows('test'):,} rows. "
        f"torch {torch.__version__}, {args.threads} thread(s), {os.cpu_count()} cores, {platform.machine()}. "
        f"{', '.join(SAME_COST)}: as many embedding parameters as optinter took; "
        f"{' and '.join(DIMS)} search below width {args.dim}.",
        "",
        "| arm | test AUC | test logloss | valid AUC | embedding parameters | parameters | bytes | s a trial "
        "| memorized / factorized / naive (seed 0) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, found in rows.items():
        results, tests = [f[0] for f in found], [f[1] for f in found]
        cells = [
            arm,
            spread([t.auc for t in tests]),
            spread([t.logloss for t in tests]),
            spread([r.valid.auc for r in results]),
            *(
                f"{statistics.mean(getattr(r.cost, name) for r in results):,.0f}"
                for name in ("embedding_parameters", "parameters", "bytes")
            ),
            f"{statistics.mean(f[2] for f in found):.1f}",
            kinds(results[0].architecture),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    base = [f[1].auc for f in rows[next(iter(rows))]]
    lines += ["", f"Test AUC of {next(iter(rows))} minus each other arm's, paired by seed:", ""]
    for arm in list(rows)[1:]:
        gaps = [a - f[1].auc for a, f in zip(base, rows[arm], strict=True)]
        lines.append(f"- {arm}: {spread(gaps)}, ahead in {sum(gap > 0 for gap in gaps)} of {len(gaps)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
