"""What stopping searches early saves and costs: the same studies with and without `scheduler: {search: false}`.

    python tests/benchmarks/stopping.py search_spaces/quickstart.yaml --seeds 5 --out stopping.md

Each seed seeds the sampler and the weights, and draws the data where they are planted. The searched arm and magnitude,
one trial at a time, so that every study sees the same draws as long as nothing is stopped. A study that stands in
`--runs` is not run again. `--lr LOW HIGH` goes before the space's range. `--out` is appended to.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import yaml

from autoembed.study.results.leaderboard import Leaderboard
from autoembed.study.run_dir import RunDir

CHANCE, PEERS, ARM = "no better than chance", "behind its peers", "behind its arm"
RULES = {False: {"name": "asha", "search": False}, True: {"name": "asha"}}
HEAD = (
    "\n| seed | trials | no better than chance | behind its peers | behind its arm, off and on | epochs off | on "
    "| s off | on | best valid AUC off | on |\n|---|---|---|---|---|---|---|---|---|---|---|\n"
)


def study(args, seed, stops):
    """The finished study of a seed, with or without stopping."""
    node = yaml.safe_load(args.space.read_text())
    node |= {"seed": seed, "baselines": ["magnitude"], "scheduler": RULES[stops]}
    node["budget"] |= {"trials": args.trials, "concurrent": 1}
    if node["data"].get("planted"):
        node["data"]["planted"]["seed"] = seed + 20
    if args.lr:
        node["train"]["lr"] = {"log": args.lr}
    name = f"{args.space.stem}-{str(stops).lower()}-{seed}"
    run = RunDir(args.runs / name)
    if Leaderboard.read(run) is None:
        args.runs.mkdir(parents=True, exist_ok=True)
        path = args.runs / f"{name}.yaml"
        path.write_text(yaml.safe_dump(node))
        command = [sys.executable, "-m", "autoembed.cli", "search", str(path), "--runs", str(args.runs), "--cpus", "1"]
        subprocess.run([*command, *(["--data", args.data] if args.data else [])], check=True)
    return run


def measure(run):
    """Reasons by kind, epochs of all phases, seconds between a trial's first and last report, and each arm's best."""
    epochs = spent = 0
    for ended in run.ended():
        points = run.curves(ended.id)
        spent += (points[-1]["time"] - points[0]["time"]) / 1000
        epochs += sum(any(name.endswith("_epoch") for name in point) for point in points)
    kinds = Counter(ended.reason.partition(":")[0] for ended in run.ended() if ended.state == "pruned")
    kinds[ARM] = kinds.total() - kinds[CHANCE] - kinds[PEERS]
    board = Leaderboard.read(run)
    best = {row.arm: row.valid.auc for row in board.rows if row.valid}
    return SimpleNamespace(kinds=kinds, epochs=epochs, seconds=spent, best=best, trials=sum(board.trials))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("space", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--lr", type=float, nargs=2)
    parser.add_argument("--runs", type=Path, default=Path("runs/stopping"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows, totals, changed = [], Counter(), 0
    for seed in range(args.seeds):
        off, on = (measure(study(args, seed, stops)) for stops in (False, True))
        rows.append(
            f"| {seed} | {on.trials} | {on.kinds[CHANCE]} | {on.kinds[PEERS]} | {off.kinds[ARM]}, {on.kinds[ARM]} "
            f"| {off.epochs} | {on.epochs} | {off.seconds:.0f} | {on.seconds:.0f} "
            f"| {max(off.best.values()):.4f} | {max(on.best.values()):.4f} |"
        )
        totals.update(trials=on.trials, chance=on.kinds[CHANCE], peers=on.kinds[PEERS])
        totals.update(off=off.epochs, on=on.epochs, s_off=round(off.seconds), s_on=round(on.seconds))
        changed += sum(off.best.get(arm) != on.best.get(arm) for arm in off.best)
    ranges = f", `train.lr` from {args.lr[0]:g} to {args.lr[1]:g}" if args.lr else ""
    command = " ".join(["python tests/benchmarks/stopping.py", *sys.argv[1:]])
    saved = 1 - totals["on"] / totals["off"]
    text = (
        f"\n## {args.space.stem}{ranges}\n\n`{command}`\n{HEAD}" + "\n".join(rows) + "\n\n"
        f"Of {totals['trials']} trials {totals['chance']} were stopped as no better than chance and {totals['peers']} "
        f"as behind their peers: {saved:.0%} fewer epochs ({totals['off']:,} and {totals['on']:,}), "
        f"{totals['s_off']:,} and {totals['s_on']:,} s. The best valid AUC of an arm changed in "
        f"{changed} of {2 * args.seeds} cases.\n"
    )
    print(text)
    if args.out:
        with args.out.open("a") as file:
            file.write(text)


if __name__ == "__main__":
    main()
