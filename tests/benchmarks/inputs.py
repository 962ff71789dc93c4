"""Lists and numbers in searches: spaces that ship, beside the same ones on the same data without them.

    python tests/benchmarks/ml100k.py recbole/dataset_example/ml-100k ML100K
    python tests/benchmarks/ml100k.py recbole/dataset_example/ml-100k LISTS --lists
    python tests/benchmarks/inputs.py --shared ../shared/data --ml100k ML100K LISTS --runs RUNS --out PAGE

Each space is searched as a user would, and the architecture of every arm is trained from fresh weights with new seeds.
A study that is in RUNS with its seeds is read from there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from scipy import stats

from autoembed.study.study import Study

SPACES = Path(__file__).parents[2] / "search_spaces"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A space with lists or numbers, what of its `data:` section says so, and where its data are, with and without."""

    space: str
    told: str
    keys: tuple[str, ...]
    data: Path
    plain: Path


def cases(args: argparse.Namespace) -> list[Case]:
    """What is measured: as far as its data are given."""
    found = []
    if args.shared:
        adult, kuairand = args.shared / "adult", args.shared / "kuairand"
        numbers = "numbers between knots, 8 bins", ("numeric_embedding", "bins")
        found.append(Case(space="adult_numbers", told=numbers[0], keys=numbers[1], data=adult, plain=adult))
        found.append(Case(space="kuairand_tags", told="tags as a list", keys=("multi",), data=kuairand, plain=kuairand))
    if args.ml100k:
        plain, lists = args.ml100k
        told = "genres and the films liked before as lists"
        found.append(Case(space="ml100k", told=told, keys=("multi",), data=lists, plain=plain))
    return found


def searched(space: Path, data: Path, runs: Path, seeds: int) -> Study:
    """A study of a space, each arm retrained with so many seeds."""
    run, name = runs / space.stem, space.stem
    if not (run / "arms.json").is_file():
        command = [sys.executable, "-m", "autoembed.cli"]
        search = ["search", str(space), "--data", str(data), "--runs", str(runs), "--name", name, "--lines", "--force"]
        for words in (search, ["retrain", str(run), "--trial", "all", "--seeds", str(seeds)]):
            subprocess.run([*command, *words], check=True, timeout=4 * 3600, env=os.environ)
    return Study.open(run)


def without(case: Case, folder: Path) -> Path:
    """The space without lists or numbers, as a file."""
    space = yaml.safe_load((SPACES / f"{case.space}.yaml").read_text())
    space["data"] = {key: value for key, value in space["data"].items() if key not in case.keys}
    path = folder / f"{case.space}_without.yaml"
    path.write_text(yaml.safe_dump(space))
    return path


def scores(study: Study) -> dict[str, tuple[int, np.ndarray]]:
    """Of each arm the bytes of embeddings and the test AUC of each seed."""
    arms = json.loads((study.path / "arms.json").read_text())["arms"]
    size = {row.arm: row.embedding_bytes for row in study.leaderboard.rows}
    return {name: (size[name], np.array([seed["test_auc"] for seed in arm["seeds"]])) for name, arm in arms.items()}


def rows(case: Case, runs: Path, seeds: int) -> list[str]:
    """Lines of the table."""
    new = scores(searched(SPACES / f"{case.space}.yaml", case.data, runs, seeds))
    old = scores(searched(without(case, runs), case.plain, runs, seeds))
    lines = []
    for arm, (size, auc) in new.items():
        before, theirs = old[arm]
        gain, p = auc - theirs, stats.ttest_rel(auc, theirs).pvalue
        cells = [f"{size:,}", f"{auc.mean():.4f} ± {auc.std(ddof=1):.4f}", f"{before:,}"]
        cells += [f"{theirs.mean():.4f} ± {theirs.std(ddof=1):.4f}", f"{gain.mean():+.4f} ± {gain.std(ddof=1):.4f}"]
        lines.append(f"| `{case.space}` | {case.told} | {arm} | " + " | ".join([*cells, f"{p:.3f}"]) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, help="The folder with adult and kuairand.")
    parser.add_argument("--ml100k", type=Path, nargs=2, help="The folders without and with lists.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=Path, required=True, help="The folder of the studies.")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    titles = ["space", "with", "arm", "embedding bytes", "test AUC", "bytes without", "test AUC without", "gain", "p"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for case in cases(args):
        lines += rows(case, args.runs, args.seeds)
    commands = [line.strip() for line in __doc__.splitlines() if line.startswith("    ")]
    head = [
        "# Lists and numbers, searched",
        "",
        *["```sh", *commands, "```"],
        "",
        "Each space as it ships, and the same space and data without lists, or with numbers in bins (32 a column). The "
        "architecture that one search chose within the space's bytes is trained from fresh weights, mean and sd over "
        f"{args.seeds} seeds; the gain is paired by seed, and p is of a paired t-test, not corrected for how many "
        "there are. Test was read once a training. Without lists MovieLens has each film's combination of genres as "
        "one value, and no films that were liked before.",
        "",
    ]
    args.out.write_text("\n".join([*head, *lines]) + "\n")
    print(args.out.read_text())


if __name__ == "__main__":
    main()
