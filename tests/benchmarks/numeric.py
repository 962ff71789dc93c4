"""What the embedding of a number is worth to a model: that of its bin, or one between two knots, or on a line.

    python tests/benchmarks/numeric.py --shared ../shared/data --out docs/results/numbers.md

docs/results/number_functions.md has the command of the kinds that are functions.

One plain DeepFM on each data set: Adult, flights, KuaiRand, and tables made here, whose label goes with smooth waves of
their numbers, or with fast ones. For each kind of `data.numeric_embedding` and number of bins, l2 and then the options
of functions (`train.numbers`) are chosen on valid with the first seed, each seed's epoch on valid too, and test is read
once a seed. Gains are paired by seed with 32 bins.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from bins import spread

from autoembed.data.dataset import build_dataset
from autoembed.metrics import evaluate
from autoembed.space import SearchSpace
from autoembed.training import predict
from autoembed.trial import check, run_trial

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"
CPU = torch.device("cpu")
KINDS = {
    "bins, 32": ("bins", 32),
    "bins, 8": ("bins", 8),
    "piecewise, 32": ("piecewise", 32),
    "piecewise, 8": ("piecewise", 8),
    "linear": ("linear", 32),
    "piecewise, 128": ("piecewise", 128),
    "periodic, 32": ("periodic", 32),
    "periodic, 128": ("periodic", 128),
    "soft_bins, 32": ("soft_bins", 32),
    "soft_bins, 128": ("soft_bins", 128),
}
FIRST = list(KINDS)[:5]
L2 = (1e-5, 1e-4, 1e-3)
NUMBERS = {  # of functions, one after the other, each at the best of those before; the first value is the default
    "periodic": {"sigma": (2.0, 0.5, 8.0), "frequencies": (16, 64), "relu": (True, False)},
    "soft_bins": {"temperature": (0.3, 0.1, 1.0), "soft_bins": (16, 64)},
}
EPOCHS = {"fast": 12, "made": 12, "adult": 12, "flights": 6, "kuairand": 6}


def made(folder: Path, rows: int = 60_000) -> Path:
    """Waves of numbers, one of which goes another way in half of the cities; two columns say nothing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 6))
    city = rng.integers(0, 20, rows)
    turn = np.where(city % 2, 1.0, -1.0)
    logit = np.sin(3 * x[:, 0]) + turn * np.sin(2 * x[:, 1]) + np.tanh(8 * x[:, 2]) + x[:, 3] ** 2 / 2 - 1
    columns = {f"x{n}": x[:, n] for n in range(6)} | {"city": city}
    table = pl.DataFrame(columns | {"label": (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)})
    table.write_parquet(folder / "made.parquet")
    return folder / "made.parquet"


def fast(folder: Path, rows: int = 60_000) -> Path:
    """Twenty waves of one number, and of another one that go another way in half of the cities."""
    rng = np.random.default_rng(0)
    x = rng.random((rows, 3))
    city = rng.integers(0, 20, rows)
    turn = np.where(city % 2, 1.0, -1.0)
    logit = np.sin(40 * np.pi * x[:, 0]) + turn * np.sin(40 * np.pi * x[:, 1])
    columns = {f"x{n}": x[:, n] for n in range(3)} | {"city": city}
    table = pl.DataFrame(columns | {"label": (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)})
    table.write_parquet(folder / "fast.parquet")
    return folder / "fast.parquet"


def space_of(name: str) -> SearchSpace:
    if name in ("made", "fast"):
        split = {"by": "random", "valid": 0.2, "test": 0.3}
        node = {"data": {"split": split}, "stages": [{"method": "uniform"}], "train": {"batch_size": 512}}
        return SearchSpace.model_validate(node | {"budget": {"width": 2}})
    return SearchSpace.read(SPACES / f"{name}.yaml")


def config(space, name, args, own, seed):
    """A plain DeepFM: every value 16 wide, one recipe for all kinds but for `own` keys."""
    train = {"epochs": EPOCHS[name], "lr": args.lr, "batch_size": space.train["batch_size"], **own}
    backbone = {"name": "deepfm", "hidden": [64, 32], "dropout": 0.2}
    node = {"arm": "uniform", "stages": [{"method": "uniform"}], "backbone": backbone, "train": train, "seed": seed}
    return check(node | {"device": "cpu"})


def trained(space, name, args, dataset, own, seed):
    """The result of a training, and its model."""
    return run_trial(config(space, name, args, own, seed), dataset, lambda values: None)


def chosen(how, train):
    """The keys of `train` that are the best on valid with the first seed, and what that trains."""
    own, best = {}, None
    for key, values in {"l2": L2, **NUMBERS.get(how, {})}.items():
        if best is not None:  # the first value is what was trained with
            values = values[1:]
        for value in values:
            one = {**own, key: value} if key == "l2" else {**own, "numbers": {**own.get("numbers", {}), key: value}}
            found = train(one)
            if best is None or found[0].valid.auc > best[1][0].valid.auc:
                best = one, found
        own = best[0]
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--data", nargs="+", default=list(EPOCHS)[1:], choices=list(EPOCHS))
    parser.add_argument("--kinds", nargs="+", default=FIRST, choices=list(KINDS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--slow-seeds", type=int, default=3, help="Of flights and KuaiRand.")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    begun, found, sizes = time.perf_counter(), {}, {}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        for name in args.data:
            data = {"made": made(cache), "fast": fast(cache), "flights": None}.get(name, args.shared / name)
            space, seeds = space_of(name), args.seeds if name in ("fast", "made", "adult") else args.slow_seeds
            for kind, (how, bins) in KINDS.items():
                if kind not in args.kinds:
                    continue
                spec = space.data.model_copy(update={"numeric_embedding": how, "bins": bins})
                dataset = build_dataset(spec, data, cache / name)
                own, first = chosen(how, lambda own: trained(space, name, args, dataset, own, 0))  # noqa: B023
                runs = [first, *(trained(space, name, args, dataset, own, seed) for seed in range(1, seeds))]
                runs = [(r, evaluate(dataset.labels("test"), predict(m, dataset, "test", CPU))) for r, m in runs]
                numeric = [f for f in dataset.schema.fields if f.kind == "numeric"]
                found[name, kind] = own, sum(f.cardinality for f in numeric), runs
                sizes[name] = len(numeric), [dataset.rows(split) for split in dataset.splits]
                told = spread([test.auc for _, test in runs])
                print(f"{name} {kind}: test AUC {told}, {told_of(own)}", file=sys.stderr, flush=True)
                report = page(args, found, sizes, time.perf_counter() - begun)
                if args.out:  # what is done stands, even if the rest is stopped
                    args.out.parent.mkdir(parents=True, exist_ok=True)
                    args.out.write_text(report)
    print(report)


def told_of(own) -> str:
    """The chosen keys in one line."""
    return ", ".join(f"{key} {value:g}" for key, value in ({"l2": own["l2"]} | own.get("numbers", {})).items())


def page(args, found, sizes, seconds) -> str:
    kinds = "" if args.kinds == FIRST else f" --kinds {' '.join(repr(kind) for kind in args.kinds)}"
    lines = [
        "# Embeddings of numbers",
        "",
        f"`python tests/benchmarks/numeric.py --shared {args.shared} --data {' '.join(args.data)} --seeds {args.seeds} "
        f"--slow-seeds {args.slow_seeds} --lr {args.lr:g}{kinds}`",
        "",
        "`data.numeric_embedding` and `data.bins`: the embedding of a number's bin, the one between two neighbouring "
        "bins' (piecewise), the one between those of the column's two ends (linear), and the one between those that a "
        "function of the number gives (periodic, soft_bins). A plain DeepFM, width 16, hidden [64, 32], dropout 0.2, "
        f"lr {args.lr:g}; l2 of {', '.join(f'{one:g}' for one in L2)} and then the options of functions, one after the "
        "other, chosen on valid with the first seed, the epoch on valid, test read once a seed; mean ± sd. Gain: test "
        "AUC less that of bins, 32, paired by seed. Ids: of all numeric columns, unknown and missing included.",
        "",
        "| data | numbers | test AUC | gain | ahead | test logloss | valid AUC | ids | chosen | embedding bytes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, kind), (own, ids, runs) in found.items():
        first = [test.auc for _, test in found[name, "bins, 32"][2]]
        gains = [test.auc - auc for (_, test), auc in zip(runs, first, strict=True)]
        gain = "– | –" if kind == "bins, 32" else f"{spread(gains)} | {sum(g > 0 for g in gains)} of {len(gains)}"
        lines.append(
            f"| {name} | {kind} | {spread([test.auc for _, test in runs])} | {gain} "
            f"| {spread([test.logloss for _, test in runs])} | {spread([r.valid.auc for r, _ in runs])} "
            f"| {ids:,} | {told_of(own)} | {runs[0][0].cost.embedding_bytes:,} |"
        )
    told = "; ".join(
        f"{name} {columns} numeric columns, {' / '.join(f'{n:,}' for n in rows)} rows"
        for name, (columns, rows) in sizes.items()
    )
    lines += [
        "",
        f"{told}. torch {torch.__version__}, 1 thread of {os.cpu_count()} cores, {platform.machine()}; "
        f"{seconds / 60:.1f} minutes in all.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
