"""What a loss of pairs brings where rows are ranked within groups: shares 0, .5 and 1 of it, at equal bytes.

    python tests/benchmarks/ml100k.py recbole/dataset_example/ml-100k ML100K --topk
    python tests/benchmarks/ranking_loss.py --topk ML100K --shared ../shared/data --out docs/results/ranking_loss.md

For each share of its own, the learning rate and l2 are chosen on valid with the first seed, by the metric that training
follows; each seed's epoch on valid too, and test is read once a seed. Differences from share 0 are paired by seed.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import torch
from scipy import stats

from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.space import SearchSpace
from autoembed.training import metrics_on
from autoembed.trial import check, run_trial

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"
CPU = torch.device("cpu")
SHARES = (0.0, 0.5, 1.0)
SHOWN = {"ndcg_10": "NDCG@10", "hit_10": "HR@10", "gauc": "GAUC", "auc": "AUC", "logloss": "logloss"}
TOLD = {
    "topk": "MovieLens-100k, which of 100 films did a user rate last (DNIS's top-k experiment): train has four drawn "
    "films for each that was rated, valid and test have 99. The user is a column.",
    "kuairand": "KuaiRand-Pure, impressions by day, ranked within users, who have two rows a day in the mean. The user "
    "is a column.",
    "sessions": "Made: sessions of eight rows, each with a bias of its own, are no column. Eager ones are shown the "
    "items that please least, which are therefore clicked most over all rows. Test has other sessions.",
}
NOTES = (
    """At share 1 logloss means nothing and is not compared. Where the user is a column, its embedding holds the user's
    own bias, and pairs have nothing to add: on MovieLens and KuaiRand .5 orders rows within users as a model of clicks
    does, and 1 is behind it on MovieLens. On KuaiRand they cost AUC and logloss over all rows. Where the bias of a
    group is in no column and goes against what ranks within it, a model of clicks is worse than chance within groups,
    and the more pairs count the better; no model there has both orders, over all rows and within groups.""",
    """The default is .5: on valid, in the metric that is followed, it is level with 0 on both real sets and ahead of it
    on the made one, and predictions stay probabilities, though worse ones on KuaiRand.""",
    """Batches of whole groups were tried first: on MovieLens, batches of 4,096 rows are then of eight users. With the
    loss of rows alone valid NDCG@10 was .338 with them, .387 with groups in parts of 16 rows and .398 with rows at
    random; with share .5 it was .334 with whole groups, and .395, .394, .398 and .395 with parts of 8, 16, 32 and 64
    rows (one seed, 10 epochs, lr .005, l2 .01).""",
)
RECIPES = {
    "topk": {"epochs": 10, "anneal": True, "patience": 20, "batch_size": 4096},
    "kuairand": {"epochs": 6, "batch_size": 2048},
    "sessions": {"epochs": 8, "batch_size": 512, "patience": 8},
}
GRID = {
    "topk": ((2e-3, 5e-3), (1e-3, 3e-3)),
    "kuairand": ((1e-3, 3e-3), (1e-4, 1e-3)),
    "sessions": ((3e-3, 1e-2), (0.0, 1e-4)),
}
FOLLOWED = {"topk": "ndcg_10", "kuairand": "gauc", "sessions": "gauc"}


def topk(folder: Path, args: argparse.Namespace) -> tuple[dict[str, object], object]:
    return {"group": "user"}, args.topk


def kuairand(folder: Path, args: argparse.Namespace) -> tuple[dict[str, object], object]:
    for split in ("train", "valid"):
        frame = pl.read_parquet(args.shared / "kuairand" / f"{split}.parquet")
        frame.write_parquet(folder / f"{split}.parquet")
    spec = SearchSpace.read(SPACES / "kuairand.yaml").data.model_dump(exclude_unset=True, mode="json")
    return {**spec, "group": "user_id"}, folder


def sessions(folder: Path, args: argparse.Namespace) -> tuple[dict[str, object], object]:
    pleases = np.random.default_rng(99).normal(size=60)
    place = np.argsort(np.argsort(-pleases)) / 59  # 1 of what pleases least
    for seed, (split, rows) in enumerate({"train": 16_000, "valid": 8_000, "test": 40_000}.items()):
        rng = np.random.default_rng(seed)
        session = np.repeat(np.arange(rows // 8), 8)
        eager = 3 * rng.normal(size=rows // 8)[session]
        offers = rng.integers(0, 60, (rows, 3))
        nearest = np.abs(place[offers] - 1 / (1 + np.exp(-eager))[:, None]).argmin(1)
        item = offers[np.arange(rows), nearest]
        label = rng.random(rows) < 1 / (1 + np.exp(1 - eager - pleases[item]))
        table = pl.DataFrame({"label": label, "session": [f"{seed}.{value}" for value in session], "item": item})
        table.with_columns(hour=pl.Series(rng.integers(0, 24, rows))).write_parquet(folder / f"{split}.parquet")
    return {"group": "session", "drop": ["session"], "categorical": ["item", "hour"], "min_count": 1}, folder


MAKE = {"topk": topk, "kuairand": kuairand, "sessions": sessions}


class Arm:
    """Trainings with one share of pairs over seeds: the metrics on valid and test, bytes and seconds of a training."""

    def __init__(self, name: str, dataset, share: float, seeds: int) -> None:
        def train(lr: float, l2: float, seed: int):
            node = {
                "arm": "uniform",
                "stages": [{"method": "uniform"}],
                "backbone": {"name": "deepfm", "hidden": [64, 32], "dropout": 0.0 if name == "topk" else 0.2},
                "train": {"lr": lr, "l2": l2, "pairwise_weight": share, **RECIPES[name]},
                "monitor": f"valid_{FOLLOWED[name]}",
                "seed": seed,
                "device": "cpu",
            }
            return run_trial(check(node), dataset, lambda event: None)

        first = {chosen: train(*chosen, 0) for chosen in product(*GRID[name])}
        self.lr, self.l2 = max(first, key=lambda chosen: first[chosen][0].valid[FOLLOWED[name]])
        runs = [first[self.lr, self.l2], *(train(self.lr, self.l2, seed) for seed in range(1, seeds))]
        self.valid = [result.valid for result, _ in runs]
        self.test = [metrics_on(model, dataset, "test", CPU) for _, model in runs]
        self.bytes = runs[0][0].cost.bytes
        self.seconds = float(np.mean([result.retrain_seconds for result, _ in runs]))


def spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"


def gap(ours: Arm, theirs: Arm, metric: str) -> tuple[float, str]:
    found = np.array([one[metric] for one in ours.test]) - np.array([one[metric] for one in theirs.test])
    found = -found if metric == "logloss" else found
    p = stats.ttest_1samp(found, 0).pvalue if found.std() else 1.0
    return found.mean(), f"{found.mean():+.4f} ± {found.std(ddof=1):.4f} | {f'{p:.3f}' if p >= 0.001 else '< .001'}"


def section(name: str, dataset, arms: dict[float, Arm]) -> str:
    rows = ", ".join(f"{dataset.rows(split):,}" for split in dataset.splits)
    lines = [
        f"## {name}",
        "",
        f"{TOLD[name]} Rows of train, valid, test: {rows}. Training follows valid {SHOWN[FOLLOWED[name]]}.",
        "",
        f"| share | valid {SHOWN[FOLLOWED[name]]} | {' | '.join(f'test {title}' for title in SHOWN.values())} "
        "| lr | l2 | bytes | seconds |",
        "|" + "---|" * (6 + len(SHOWN)),
    ]
    for share, arm in arms.items():
        cells = [spread([one[metric] for one in arm.test]) for metric in SHOWN]
        chosen = spread([one[FOLLOWED[name]] for one in arm.valid])
        told = f"{arm.lr:g} | {arm.l2:g} | {arm.bytes:,} | {arm.seconds:.1f}"
        lines.append(f"| {share:g} | {chosen} | {' | '.join(cells)} | {told} |")
    return "\n".join([*lines, ""])


def outcomes(name: str, arms: dict[float, Arm]) -> list[tuple[float, str]]:
    """What each share gains over none, and how to say it; losses are below 0, and a fall of logloss is a gain."""
    found = []
    for share, metric in product(SHARES[1:], SHOWN):
        if share == 1 and metric == "logloss":
            continue  # scores are no probabilities
        if len({one[metric] for arm in arms.values() for one in arm.test}) == 1:
            continue  # HR@10 of groups of ten rows or fewer is 1
        mean, told = gap(arms[share], arms[0.0], metric)
        found.append((mean, f"| {name} | {share:g} | {SHOWN[metric]} | {told} |"))
    return found


def page(args: argparse.Namespace, told: list[tuple[float, str]], sections: list[str], seconds: float) -> str:
    commands = [line.strip() for line in str(__doc__).splitlines() if line.startswith("    ")]
    machine = f"{os.cpu_count()} cores of a {platform.machine()}, torch {torch.__version__}, one thread"
    head = [
        "# A loss of pairs within groups",
        "",
        "```sh",
        *commands,
        "```",
        "",
        "`data.task: ranking` with `train.pairwise_weight` of 0, .5 and 1; at 0 it is a model of clicks. deepfm of "
        f"width 16 with hidden layers of 64 and 32, all values kept in 32 bits, {args.seeds} seeds; {machine}; "
        f"{seconds / 60:.0f} minutes in total, beside other work. p is of a paired t-test, not corrected for how many "
        "there are.",
        "",
        "What a share of pairs gains on test over none, losses first:",
        "",
        "| data | share | metric | gain, paired | p |",
        "|---|---|---|---|---|",
        *(line for _, line in sorted(told)),
        "",
        *(line for note in NOTES for line in (" ".join(note.split()), "")),
    ]
    return "\n".join([*head, *sections])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topk", type=Path)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--data", nargs="+", default=list(MAKE), choices=list(MAKE))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    begun, sections, told = time.perf_counter(), [], []
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.data:
            folder = Path(scratch) / name
            folder.mkdir()
            spec, where = MAKE[name](folder, args)
            dataset = build_dataset(DataSpec.model_validate({"task": "ranking", **spec}), where, folder / "cache")
            arms = {}
            for share in SHARES:
                arms[share] = Arm(name, dataset, share, args.seeds)
                found = ", ".join(
                    f"{title} {spread([one[key] for one in arms[share].test])}" for key, title in SHOWN.items()
                )
                print(f"{name} {share:g}: {found}", file=sys.stderr, flush=True)
            sections.append(section(name, dataset, arms))
            told += outcomes(name, arms)
            report = page(args, told, sections, time.perf_counter() - begun)
            if args.out:  # what is done stands, even if the rest is stopped
                args.out.write_text(report)
    if not args.out:
        print(report)


if __name__ == "__main__":
    main()
