"""What bins of numeric columns keep, and what that is worth to a model: Adult, flights, columns made here; bins then
and now.

    python tests/benchmarks/bins.py --adult ../shared/data/adult --out docs/results/bins.md

Two tables. Of each numeric column: how much of what its values say about the label its bins say, on the train rows, and
what values and bins tell of rows that they were not made from. Of each data set: the test AUC of one plain DeepFM over
seeds, with bins at quantiles alone, with 32 bins that heavy values came first in (encoding 2), with today's, and with
the numeric columns as categories. The two earlier rules are made here: the package has them no more.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import polars as pl
import torch

from autoembed.data import vocabulary
from autoembed.data.bins import upper_bounds
from autoembed.data.dataset import build_dataset
from autoembed.data.readers import read
from autoembed.data.values import numbers
from autoembed.metrics import evaluate
from autoembed.ranking.scores import score, xlogx
from autoembed.space import SearchSpace
from autoembed.training import predict
from autoembed.trial import check, run_trial

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"
CEILING_TO = 3000
NOW = upper_bounds
CPU = torch.device("cpu")


def quantiles(values, counts, bins, clicks=None):
    """The bounds that a numeric column had before: at train quantiles, however many of them are one value."""
    if len(values) <= bins:
        return np.append(values[:-1], np.inf)
    upto = np.cumsum(counts)
    inner = np.unique(values[np.searchsorted(upto, upto[-1] * np.arange(1, bins) / bins)])
    return np.append(inner[inner < values[-1]], np.inf)


def heavy_first(values, counts, bins, clicks=None):
    """The bounds of encoding 2: `bins` in all, and a value with a bin's share of the rows has one of its own."""
    return np.append(values[last_places(counts, bins)[:-1]], np.inf)


def last_places(counts, bins):
    """The place of the last value of each bin, ascending."""
    if len(counts) <= bins:
        return np.arange(len(counts))
    heavy = np.flatnonzero(counts * bins >= counts.sum())
    taken = np.zeros(len(counts) + 2, dtype=bool)
    taken[[0, -1]] = True
    needed = 1
    for place in heavy[np.argsort(-counts[heavy], kind="stable")]:
        # Amid others, a value takes two bins more: its own, and one more as it parts the others.
        more = 2 - int(taken[place]) - int(taken[place + 2])
        if needed + more <= bins:
            taken[place + 1] = True
            needed += more
    alone = np.flatnonzero(taken[1:-1])
    if not len(alone):
        upto = np.cumsum(counts)
        targets = upto[-1] * np.arange(1, bins) / bins
        return np.unique(np.append(np.searchsorted(upto, targets), len(counts) - 1))
    starts, stops = np.append(0, alone + 1), np.append(alone, len(counts))
    runs = [(start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop]
    rows = np.array([counts[start:stop].sum() for start, stop in runs])
    sizes = np.array([stop - start for start, stop in runs])
    own = np.ones(len(runs), dtype=np.int64)
    for _ in range(bins - len(alone) - len(runs)):
        own[np.argmax(np.where(own < sizes, rows / own, -1.0))] += 1
    cut = [start + last_places(counts[start:stop], int(n)) for (start, stop), n in zip(runs, own, strict=True)]
    return np.sort(np.concatenate([alone, *cut]))


RULES = {"at quantiles": quantiles, "heavy first": heavy_first, "now": NOW}


def generated(rows=40_000):
    """Columns whose values have a logit of their own: zeros and amounts, a timetable, and a smooth one; with labels."""
    rng = np.random.default_rng(0)
    amount = np.where(rng.random(rows) < 0.8, 0.0, np.ceil(rng.lognormal(3, 1, rows)))
    minutes = np.sort(rng.choice(24 * 60, 600, replace=False))
    place = rng.choice(600, rows, p=rng.dirichlet(np.full(600, 2.0)))
    smooth = rng.normal(size=rows)
    columns = {
        "zero-inflated": (amount, np.where(amount > 0, 2 * np.sin(3 * np.log(np.maximum(amount, 1))), -1)),
        "timetable": ((minutes // 60 * 100 + minutes % 60)[place].astype(float), rng.normal(-0.5, 0.7, 600)[place]),
        "continuous": (smooth, np.sin(3 * smooth)),
        "continuous noise": (rng.normal(size=rows), np.zeros(rows)),
    }
    return {
        name: column(values, (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int64), 32)
        for name, (values, logit) in columns.items()
    }


def held_out(values, labels, rule, bins):
    """Nats a row that rates of bins (rule None: of values) tell of a fifth of the rows, learnt on the other rows.

    Rates are shrunk to the mean as if by 4 rows more. A value that the other rows have not is in the nearest bin; as a
    value of its own it has the mean.
    """
    later = np.random.default_rng(1).random(len(values)) < 0.2
    train = ~later & ~np.isnan(values)
    distinct, place, counts = np.unique(values[train], return_inverse=True, return_counts=True)
    if rule:
        uppers = rule(distinct, counts, bins, np.bincount(place, weights=labels[train]).astype(np.int64))
        codes = np.where(np.isnan(values), len(uppers), np.searchsorted(uppers, values))
    else:
        place = np.searchsorted(distinct, values)
        found = distinct[np.minimum(place, len(distinct) - 1)] == values
        codes = np.where(np.isnan(values), len(distinct) + 1, np.where(found, place, len(distinct)))
    size, mean = int(codes.max()) + 1, labels[~later].mean()
    n, k = (np.bincount(codes[~later], weights=w, minlength=size) for w in (None, labels[~later]))
    rate = ((k + 4 * mean) / (n + 4))[codes[later]]
    told = np.where(labels[later] == 1, np.log(rate / mean), np.log((1 - rate) / (1 - mean)))
    return float(told.mean())


def ceiling(table, bins):
    """The places of the bins of most information that values in this order [K, 2] can have: they know the labels."""
    upto = np.concatenate([np.zeros((1, 2)), np.cumsum(table, axis=0)])
    size = len(upto)
    gain = np.full((size, size), -np.inf)
    for start in range(size - 1):
        inside = upto[start + 1 :] - upto[start]
        gain[start, start + 1 :] = xlogx(inside).sum(axis=1) - xlogx(inside.sum(axis=1))
    best, came = np.where(np.arange(size) == 0, 0.0, -np.inf), []
    for _ in range(bins):
        total = best[:, None] + gain
        came.append(total.argmax(axis=0))
        best = total.max(axis=0)
    ends, end = [], size - 1
    for step in reversed(came):
        ends.append(end - 1)
        end = step[end]
    return np.array(ends[::-1])


def column(values, labels, bins):
    """Distinct values, their adjusted information, what each rule's bins keep of it, and what they tell held-out rows.

    `values` holds NaN where there is none: a value of its own, which no bin takes from.
    """
    known = ~np.isnan(values)
    distinct, place = np.unique(values[known], return_inverse=True)
    counts = np.bincount(place)
    table = np.zeros((len(distinct), 2), np.int64)
    np.add.at(table, (place, labels[known]), 1)
    missing = np.bincount(labels[~known], minlength=2)[None, :]

    def information(codes):
        joined = np.zeros((codes.max() + 1, 2), np.int64)
        np.add.at(joined, codes, table)
        return score(np.concatenate([missing, joined]))

    raw = information(np.arange(len(distinct)))
    found = {"distinct": len(distinct), "raw": raw.score, "z": raw.z}
    found["held out"] = held_out(values, labels, None, bins)
    for name, bounds in RULES.items():
        uppers = bounds(distinct, counts, bins, table[:, 1])
        own = information(np.searchsorted(uppers, distinct)).score
        found[name] = len(uppers), own, held_out(values, labels, bounds, bins)
    found["best"] = None
    if bins < len(distinct) <= CEILING_TO:
        ends = ceiling(table, bins)
        found["best"] = information(np.searchsorted(ends, np.arange(len(distinct)))).score
    return found


def columns(spec, data):
    """What `column` says of each numeric column of a data set's train rows."""
    with tempfile.TemporaryDirectory() as stage:
        table = read(spec, data, Path(stage))
        train = table.splits["train"].collect()
    labels = train[table.schema.label].cast(pl.Int64).to_numpy()
    fields = [field.name for field in table.schema.fields if field.kind == "numeric"]
    return {
        name: column(numbers(train[name]).cast(pl.Float64).fill_null(np.nan).to_numpy(), labels, spec.bins)
        for name in fields
    }


def encodings(spec, data, cache, fields):
    """The data set in four encodings."""
    text = spec.model_copy(update={"numeric": (), "categorical": (*spec.categorical, *fields)})
    built = {}
    for name, rule in RULES.items():
        with patch.object(vocabulary, "upper_bounds", rule):
            built[f"bins {name}"] = build_dataset(spec, data, cache / name)
    return {
        **built,
        "as categories": build_dataset(text, data, cache / "text"),
    }


def config(space, args, epochs, seed):
    """A plain DeepFM: every value 16 wide, one recipe for all encodings."""
    train = {"epochs": epochs, "lr": args.lr, "batch_size": space.train["batch_size"]}
    backbone = {"name": "deepfm", "hidden": [64, 32], "dropout": 0.2}
    node = {"arm": "uniform", "stages": [{"method": "uniform"}], "backbone": backbone, "train": train, "seed": seed}
    return check(node | {"device": "cpu"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adult", default="../shared/data/adult")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--epochs", type=int, nargs=2, default=(12, 6), help="Of Adult and of flights, at most.")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    kept, tested = {}, {}
    with tempfile.TemporaryDirectory() as cache:
        for name, data, epochs in (("adult", args.adult, args.epochs[0]), ("flights", None, args.epochs[1])):
            space = SearchSpace.read(SPACES / f"{name}.yaml")
            kept[name] = columns(space.data, data)
            datasets = encodings(space.data, data, Path(cache) / name, list(kept[name]))
            for encoding, dataset in datasets.items():
                found = []
                for seed in range(args.seeds):
                    result, model = run_trial(config(space, args, epochs, seed), dataset, lambda values: None)
                    test = evaluate(dataset.labels("test"), predict(model, dataset, "test", CPU))
                    found.append((result, test))
                    print(f"{name} {encoding} seed {seed}: test AUC {test.auc:.4f}", file=sys.stderr, flush=True)
                tested[name, encoding] = dataset, found
    kept["generated"] = generated()
    report = page(args, kept, tested, time.perf_counter() - begun)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(report)
    print(report)


def spread(values, digits=4):
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {sd:.{digits}f}"


def page(args, kept, tested, seconds) -> str:
    lines = [
        "# Bins of numeric columns",
        "",
        f"`python tests/benchmarks/bins.py --adult {args.adult} --seeds {args.seeds} --lr {args.lr:g} "
        f"--epochs {args.epochs[0]} {args.epochs[1]}`",
        "",
        "Adjusted information: the mutual information of a column and the label on the train rows, less what a "
        "permuted label would have, in 0.001 nats. Kept: the share of it that the bins have: bins at 32 quantiles, 32 "
        "bins in which heavy values come first (encoding 2), and bins now; at best: 32 ranges chosen by the labels for "
        f"it (columns of up to {CEILING_TO:,} values). Held out: how many 0.001 nats a row the click rates of values "
        "and of bins tell of a random fifth of the train rows, learnt on the other four.",
        "",
        "| data | column | values | adjusted information | z | bins then | bins now | kept at quantiles "
        "| kept heavy first | **kept now** | kept at best | held out: values | bins then | bins now |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for data, fields in kept.items():
        for name, found in fields.items():
            real = found["z"] > 3  # a share of nothing is no share

            def share(own, found=found, real=real):
                return f"{own / found['raw']:.1%}" if real and own is not None else "–"

            lines.append(
                f"| {data} | {name} | {found['distinct']:,} | {1000 * found['raw']:.2f} | {found['z']:.0f} "
                f"| {found['heavy first'][0]} | {found['now'][0]} | {share(found['at quantiles'][1])} "
                f"| {share(found['heavy first'][1])} | **{share(found['now'][1])}** | {share(found['best'])} "
                f"| {1000 * found['held out']:.2f} | {1000 * found['heavy first'][2]:.2f} "
                f"| {1000 * found['now'][2]:.2f} |"
            )
    lines += [
        "",
        f"A plain DeepFM, width 16, hidden [64, 32], dropout 0.2, lr {args.lr:g}, at most {args.epochs[0]} epochs "
        f"(Adult) and {args.epochs[1]} (flights), the epoch chosen by valid, test read once a seed; mean ± sd of "
        f"{args.seeds} seeds. Gain: test AUC less that with bins at quantiles, paired by seed.",
        "",
        "| data | numeric columns | test AUC | gain | ahead | test logloss | valid AUC | embedding parameters |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (data, encoding), (_, found) in tested.items():
        first = [test.auc for _, test in tested[data, "bins at quantiles"][1]]
        gains = [test.auc - auc for (_, test), auc in zip(found, first, strict=True)]
        own = encoding == "bins at quantiles"
        gain = "– | –" if own else f"{spread(gains)} | {sum(g > 0 for g in gains)} of {len(gains)}"
        lines.append(
            f"| {data} | {encoding} | {spread([test.auc for _, test in found])} | {gain} "
            f"| {spread([test.logloss for _, test in found])} | {spread([r.valid.auc for r, _ in found])} "
            f"| {found[0][0].cost.embedding_parameters:,} |"
        )
    sizes = "; ".join(
        f"{data} {' / '.join(f'{dataset.rows(split):,}' for split in dataset.splits)} rows"
        for (data, encoding), (dataset, _) in tested.items()
        if encoding == "bins now"
    )
    lines += [
        "",
        f"{sizes}. torch {torch.__version__}, 1 thread of {os.cpu_count()} cores, {platform.machine()}; "
        f"{seconds / 60:.1f} minutes in all.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
