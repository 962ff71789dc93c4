"""A model of KuaiRand-Pure refreshed each day, a frozen one, and one that is trained from scratch on all days so far.

    python tests/benchmarks/refresh_days.py ../shared/data/kuairand --out docs/results/refresh.md

The data are ten days. An architecture is searched on the first two by `sensitivity`, and its model is the frozen one.
Then each day's log is taken by `refresh`, which starts from the day before's bundle, and the next day, which no model
has seen, is what all are measured on: seven days of tests for each seed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch

import autoembed as ae
from autoembed.metrics import evaluate
from autoembed.reuse import train_architecture

NUMERIC = [
    "follow_user_num", "fans_user_num", "friend_user_num", "register_days", "video_duration", "server_width",
    "server_height",
]  # fmt: skip
TRAIN = {"epochs": 8, "lr": 1e-3, "l2": 1e-3, "batch_size": 1024, "patience": 2}
SPLIT = {"split": {"by": "random", "valid": 0.1, "test": 0.1}}
WAYS = {
    "refreshed (default)": {},
    "refreshed, --epochs 1": {"epochs": 1},
    "refreshed, --evict 1": {"evict": 1.0},
    "refreshed, --vocabulary keep": {"vocabulary": "keep"},
}


def days_of(source: Path, folder: Path) -> list[Path]:
    """A file for each day."""
    table = pl.concat([pl.read_parquet(source / f"{name}.parquet") for name in ("train", "valid")])
    paths = []
    for (date,), part in sorted(table.partition_by("date", as_dict=True).items()):
        paths.append(folder / f"{date}.parquet")
        part.drop("date").write_parquet(paths[-1])
    return paths


def measured(paths: list[Path], folder: Path, seed: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """AUC on each next day by way, and the seconds of the last day's training."""
    model = ae.AutoEmbedClassifier(
        label="is_click", embedding={"dim": 16, "blocks": 6}, backbone={"name": "deepfm", "hidden": [64, 32]},
        train=TRAIN, stages=[{"method": "sensitivity", "warm_epochs": 5}], budget={"embedding_bytes": 400_000},
        data={"numeric": NUMERIC}, random_state=seed,
    )  # fmt: skip
    model.fit(pl.concat([pl.read_parquet(path) for path in paths[:2]])).export(folder / "frozen")
    current = dict.fromkeys(WAYS, folder / "frozen")
    names = ["frozen", *WAYS, "trained from scratch on all days"]
    found: dict[str, list[float]] = {name: [] for name in names}
    seconds = {}
    for day in range(2, len(paths) - 1):
        models = {"frozen": folder / "frozen"}
        for number, (way, options) in enumerate(WAYS.items()):
            began = time.perf_counter()
            out = folder / f"{number}-{day}"
            current[way] = ae.refresh(current[way], paths[day], out, settings=SPLIT, seed=seed, **options).bundle.path
            models[way], seconds[way] = current[way], time.perf_counter() - began
        began = time.perf_counter()
        every = [str(path) for path in paths[: day + 1]]
        anew = train_architecture(folder / "frozen", every, folder / f"anew-{day}", settings=SPLIT, seed=seed)
        models[names[-1]], seconds[names[-1]] = anew.bundle.path, time.perf_counter() - began
        later = pl.read_parquet(paths[day + 1])
        for name, path in models.items():
            found[name].append(evaluate(later["is_click"].to_numpy(), ae.load_bundle(path).predict(later)).auc)
    return found, seconds


def main() -> None:
    """Measures and writes the page."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("source", type=Path)
    asked.add_argument("--seeds", type=int, default=3)
    asked.add_argument("--first-seed", type=int, default=0)
    asked.add_argument("--out", type=Path)
    given = asked.parse_args()
    torch.set_num_threads(1)
    runs, seconds = [], {}
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        with tempfile.TemporaryDirectory() as folder:
            found, seconds = measured(days_of(given.source, Path(folder)), Path(folder), seed)
        runs.append(found)
        print(seed, {name: round(float(np.mean(aucs)), 4) for name, aucs in found.items()}, flush=True)
    lines = [
        "# Refreshed daily, frozen, or trained from scratch",
        "",
        f"`python tests/benchmarks/refresh_days.py ../shared/data/kuairand --first-seed {given.first_seed} "
        f"--out {given.out}`",
        "",
        "KuaiRand-Pure, a log a day. AUC on the next day's log, as a mean over seven days; mean and sd over "
        f"{given.seeds} seeds. The default of `--evict` was chosen on seeds 0, 1 and 5 of the same days. Seconds are "
        "of the last day's training, one thread.",
        "",
        "| model | AUC | minus from scratch | s |",
        "|---|---|---|---|",
    ]
    names = list(runs[0])
    means = {name: np.array([np.mean(one[name]) for one in runs]) for name in names}
    for name in names:
        gap = means[name] - means[names[-1]]
        beside = "" if name == names[-1] else f"{gap.mean():+.4f} ± {gap.std(ddof=1):.4f}"
        took = f"{seconds[name]:.0f}" if name in seconds else ""
        lines.append(f"| {name} | {means[name].mean():.4f} ± {means[name].std(ddof=1):.4f} | {beside} | {took} |")
    page = "\n".join(lines) + "\n"
    print(page)
    if given.out:
        given.out.write_text(page)


if __name__ == "__main__":
    main()
