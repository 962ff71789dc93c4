"""The pictures of the docs.

    python tests/benchmarks/pictures.py RUN [--out docs/pictures]

RUN is a finished study whose objective names a cost, such as of search_spaces/auto.yaml: its leaderboard and its Pareto
front are drawn. The other two pictures are of no data.
"""

from __future__ import annotations

import argparse
import io
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from rich.console import Console

from autoembed.study.show.report import show_leaderboard
from autoembed.study.study import Study

BLUE, GREY, ORANGE = "#4c9be8", "#d9d9d9", "#e8743b"


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    flow().savefig(args.out / "flow.svg", bbox_inches="tight")
    masked_and_compact().savefig(args.out / "masked_compact.svg", bbox_inches="tight")
    study = Study.open(args.run)
    console = Console(record=True, width=120, file=io.StringIO(), force_terminal=True)
    show_leaderboard(console, study.run, study.leaderboard)
    drawn = console.export_svg(title=f"autoembed show runs/{study.name}")
    # A page of the docs asks no other server for a font.
    (args.out / "leaderboard.svg").write_text(re.sub(r"\s*@font-face \{.*?\n    \}", "", drawn, flags=re.DOTALL))
    study.pareto.figure.savefig(args.out / "pareto.png", dpi=120)


def flow():
    """How data go from a table to a bundle."""
    figure, axes = plt.subplots(figsize=(10.5, 3.4))
    boxes = {
        "table": (0.0, 1.2, "raw table\nCSV, Parquet, ..."),
        "data": (2.0, 1.2, "Dataset\nids per split,\nencoded once"),
        "ranking": (4.0, 2.3, "Ranking\ncolumns and pairs"),
        "space": (4.0, 0.1, "SearchSpace\nwhat may vary"),
        "trial": (6.1, 1.2, "trials\nsupernet, search,\nArchitecture,\nretraining"),
        "board": (8.2, 2.3, "leaderboard\nbest by valid,\ntest read once"),
        "bundle": (8.2, 0.1, "bundle\nscores raw rows"),
    }
    for name, (left, low, text) in boxes.items():
        colour = ORANGE if name == "trial" else BLUE
        box = FancyBboxPatch((left, low), 1.5, 0.9, boxstyle="round,pad=0.08", facecolor=colour, alpha=0.25, lw=0)
        axes.add_patch(box)
        axes.text(left + 0.75, low + 0.45, text, ha="center", va="center", fontsize=10)
    links = [("table", "data"), ("data", "ranking"), ("data", "trial"), ("ranking", "trial"), ("space", "trial")]
    for start, end in [*links, ("trial", "board"), ("trial", "bundle")]:
        (a, b, _), (c, d, _) = boxes[start], boxes[end]
        arrow = FancyArrowPatch((a + 1.62, b + 0.45), (c - 0.12, d + 0.45), arrowstyle="-|>", mutation_scale=14, lw=1.2)
        axes.add_patch(arrow)
    axes.text(6.85, -0.35, "Optuna chooses the hyperparameters,\nRay Tune runs the trials", ha="center", fontsize=8)
    axes.set_xlim(-0.2, 9.9)
    axes.set_ylim(-0.5, 3.4)
    axes.axis("off")
    return figure


def masked_and_compact():
    """A field's table under a mask, and as the compact model stores it."""
    widths = [8, 8, 6, 6, 6, 3, 3, 3, 3, 0, 0, 0]
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2))
    for row, width in enumerate(widths):
        for dim in range(8):
            colour = BLUE if dim < width else GREY
            axes[0].add_patch(Rectangle((dim, -row), 0.92, 0.92, facecolor=colour))
    axes[0].set_title("masked: every row is as wide,\nclosed entries are zero")
    gap, low = 0.0, 0
    for width in (8, 6, 3):
        rows = [number for number, own in enumerate(widths) if own == width]
        for _ in rows:
            for dim in range(width):
                axes[1].add_patch(Rectangle((dim, -low - gap), 0.92, 0.92, facecolor=BLUE))
            low += 1
        axes[1].text(width + 0.3, -low - gap + len(rows) / 2 + 0.5, f"{len(rows)} x {width}", va="center", fontsize=9)
        gap += 0.6
    axes[1].set_title("compact: one table for each width,\nnothing for blocks that keep no dim")
    for one in axes:
        one.set_xlim(-0.3, 10.5)
        one.set_ylim(-12.2, 1.4)
        one.set_aspect("equal")
        one.axis("off")
    for row, name in ((0.5, "frequent values"), (10.5, "rare values")):
        axes[0].text(8.3, -row + 0.5, name, va="center", fontsize=9)
    assert np.sum(widths) < 8 * len(widths)
    return figure


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
