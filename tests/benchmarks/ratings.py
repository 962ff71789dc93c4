"""The page of a study of ratings: its arms, retrained over seeds, beside uniform rows of few bits.

    python tests/benchmarks/ml100k.py recbole/dataset_example/ml-100k ML100K --stars
    autoembed search search_spaces/ml100k_ratings.yaml --data ML100K
    autoembed retrain runs/ml100k_ratings --trial all --seeds 5
    python tests/benchmarks/ratings.py runs/ml100k_ratings --out docs/results/ratings.md

The study's first baseline is what others are compared with, by paired differences of the test RMSE.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scipy import stats

from autoembed.study.study import Study

HEAD = """# Ratings

{commands}

MovieLens-100k: how many stars does a user give a film? Each user's ratings are split by time: eight tenths are train,
then a tenth each is valid and test. DeepFM of width 16, at most 40,000 bytes of embeddings. The architecture of one
search with each method is trained from fresh weights, mean and sd over {seeds} seeds. "Behind" is by how much the test
RMSE is above that of `{rival}` (4 bits), paired over seeds; `uniform-2` has 32 bits.

The learning rate falls evenly to 0. Where it fell to .3 after each epoch that was not better, from .015, trainings of
one architecture ended in two places, .012 of valid RMSE apart: such an epoch is often chance, and early falls leave a
rate that is too low. At .005 there is one place either way. Rate (.015, .005, .002) and schedule were chosen on valid,
with `uniform` and sensitivity's architecture, 3 seeds.

| arm | embedding bytes | test RMSE | test MAE | behind | p | valid RMSE of each seed |
|---|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rival", default="uniform")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    arms = json.loads((args.run / "arms.json").read_text())["arms"]
    size = {row.arm: row.embedding_bytes for row in Study.open(args.run).leaderboard.rows}
    lines = []
    for name, arm in arms.items():
        of = {key: np.array([seed[key] for seed in arm["seeds"]]) for key in ("test_rmse", "test_mae", "valid_rmse")}
        cells = [f"{of[key].mean():.4f} ± {of[key].std(ddof=1):.4f}" for key in ("test_rmse", "test_mae")]
        behind = ["", ""]
        if name != args.rival:
            theirs = np.array([seed["test_rmse"] for seed in arms[args.rival]["seeds"]])
            gap = of["test_rmse"] - theirs
            p = stats.ttest_rel(of["test_rmse"], theirs).pvalue
            behind = [f"{gap.mean():.4f} ± {gap.std(ddof=1):.4f}", f"{p:.3f}" if p >= 0.001 else "< .001"]
        each = ", ".join(f"{value:.3f}" for value in np.sort(of["valid_rmse"]))
        lines.append("| " + " | ".join([name, f"{size[name]:,}", *cells, *behind, each]) + " |")
    commands = [line.strip() for line in __doc__.splitlines() if line.startswith("    ")]
    told = HEAD.format(
        commands="\n".join(["```sh", *commands, "```"]), seeds=len(arms[args.rival]["seeds"]), rival=args.rival
    )
    args.out.write_text(told + "\n".join(lines) + "\n")
    print(args.out.read_text())


if __name__ == "__main__":
    main()
