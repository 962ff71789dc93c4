"""The page of a study of MovieLens-100k: its arms, retrained over seeds, beside uniform rows of 4 bits.

    python tests/benchmarks/ml100k.py recbole/dataset_example/ml-100k ML100K --stars
    autoembed search search_spaces/ml100k_ratings.yaml --data ML100K
    autoembed retrain runs/ml100k_ratings --trial all --seeds 5
    python tests/benchmarks/movielens.py ratings runs/ml100k_ratings --out docs/results/ratings.md

and the same with --topk, `ml100k_topk` and `topk`. The study's first baseline is what others are compared with, by
paired differences of the first metric on test.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from autoembed.study.study import Study


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page says of its metrics, the first one first: their names and titles, and the sign of what is worse."""

    metrics: dict[str, str]
    worse: int
    head: str


RATINGS = Page(
    metrics={"rmse": "RMSE", "mae": "MAE"},
    worse=1,
    head="""# Ratings

{commands}

MovieLens-100k: how many stars does a user give a film? Each user's ratings are split by time: eight tenths are train,
then a tenth each is valid and test. DeepFM of width 16, at most 40,000 bytes of embeddings. The architecture of one
search with each method is trained from fresh weights, mean and sd over {seeds} seeds. "Behind" is by how much the test
RMSE is above that of `{rival}` (4 bits), paired over seeds; `uniform-2` has 32 bits.

The learning rate falls evenly to 0. Where it fell to .3 after each epoch that was not better, from .015, trainings of
one architecture ended in two places, .012 of valid RMSE apart: such an epoch is often chance, and early falls leave a
rate that is too low. At .005 there is one place either way. Rate (.015, .005, .002) and schedule were chosen on valid,
with `uniform` and sensitivity's architecture, 3 seeds.
""",
)
TOPK = Page(
    metrics={"ndcg_10": "NDCG@10", "hit_10": "HR@10", "gauc": "GAUC"},
    worse=-1,
    head="""# Top-k

{commands}

MovieLens-100k: which of 100 films did a user rate last? The film that a user rated last is test's and the one before it
valid's, each among 99 drawn films that the user never rated; train has all others, each beside 4 drawn ones (He et al.,
WWW 2017). DeepFM of width 16, at most 40,000 bytes of embeddings, cross-entropy, the epoch and the arms chosen by
NDCG@10 on valid. The architecture of one search with each method is trained from fresh weights, mean and sd over
{seeds} seeds. "Behind" is by how much the test NDCG@10 is below that of `{rival}` (4 bits), paired over seeds;
`uniform-2` has 32 bits.
""",
)
CHOSE = (
    "What each arm's search chose, dims x bits of its largest field. A trial's own model may start from the supernet's "
    "weights, by which its choice was kept; those of the table start from fresh ones."
)
PAGES = {"ratings": RATINGS, "topk": TOPK}


def chosen(run: Path, arms: dict[str, dict], metric: str, title: str) -> list[str]:
    """For each arm a line: its widest field's blocks, what its own trial reached on valid, and the trial's notes."""
    lines, known = [], {}
    for name, arm in arms.items():
        result = json.loads((run / "trials" / arm["trial"] / "result.json").read_text())
        field = max(result["architecture"]["fields"], key=lambda one: one["cardinality"])
        starts = [0, *(block["stop"] for block in field["blocks"])]
        blocks = [
            f"{len(block['dims'])} x {block['bits']} bits for {block['stop'] - start:,} values"
            for start, block in zip(starts, field["blocks"], strict=False)
        ]
        fresh = np.mean([seed[f"valid_{metric}"] for seed in arm["seeds"]])
        parts = [
            f"- `{name}`: {', '.join(blocks)} of `{field['name']}`; {title} on valid {result['valid'][metric]:.4f} of "
            f"the trial's own model, {fresh:.4f} from fresh weights, the mean over seeds"
        ]
        plan = json.dumps(result["architecture"]["fields"])
        if plan in known:
            parts.append(f"the architecture is that of `{known[plan]}`, and only the draw of weights differs")
        known.setdefault(plan, name)
        lines.append("; ".join([*parts, *result["notes"]]) + ".")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", choices=PAGES)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rival", default="uniform")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    page, (first, *_) = PAGES[args.page], PAGES[args.page].metrics
    arms = json.loads((args.run / "arms.json").read_text())["arms"]
    size = {row.arm: row.embedding_bytes for row in Study.open(args.run).leaderboard.rows}
    titles = [*(f"test {title}" for title in page.metrics.values()), "behind", "p"]
    titles = ["arm", "embedding bytes", *titles, f"valid {page.metrics[first]} of each seed"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, arm in arms.items():
        of = {key: np.array([seed[key] for seed in arm["seeds"]]) for key in arm["seeds"][0]}
        tests = [of[f"test_{metric}"] for metric in page.metrics]
        cells = [f"{found.mean():.4f} ± {found.std(ddof=1):.4f}" for found in tests]
        behind = ["", ""]
        if name != args.rival:
            theirs = np.array([seed[f"test_{first}"] for seed in arms[args.rival]["seeds"]])
            gap = page.worse * (tests[0] - theirs)
            p = stats.ttest_rel(tests[0], theirs).pvalue
            behind = [f"{gap.mean():.4f} ± {gap.std(ddof=1):.4f}", f"{p:.3f}" if p >= 0.001 else "< .001"]
        each = ", ".join(f"{value:.3f}" for value in np.sort(of[f"valid_{first}"]))
        lines.append("| " + " | ".join([name, f"{size[name]:,}", *cells, *behind, each]) + " |")
    if args.page == "topk":
        lines += ["", CHOSE, "", *chosen(args.run, arms, first, page.metrics[first])]
    commands = [line.strip() for line in __doc__.splitlines() if line.startswith("    ")]
    if args.page == "topk":
        commands = [line.replace("--stars", "--topk").replace("ratings", "topk") for line in commands]
    told = page.head.format(
        commands="\n".join(["```sh", *commands, "```"]), seeds=len(arms[args.rival]["seeds"]), rival=args.rival
    )
    args.out.write_text("\n".join([told, *lines]) + "\n")
    print(args.out.read_text())


if __name__ == "__main__":
    main()
