"""The picture of a frontier, by Matplotlib: the test metric of each arm against bytes."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import numpy as np

from autoembed.frontier.curves import Curves
from autoembed.task import titled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with colour-blindness can tell apart; black is for the searched arm.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8c8c8c")
_MARKERS = "os^Dv<>P"
_LINES = ("-", "--", ":")


def draw_curves(curves: Curves, title: str) -> Figure:
    """A line for each arm, over what its models really take in bytes, with a band of one sd over seeds to both sides.

    The band leaves out what a seed does to all arms alike, as a paired comparison does (`Curves.spread`).

    Sizes at which an arm has a gap with some seed are left out of its line.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure = Figure(figsize=(8, 5.4), layout="constrained")
    axes = figure.subplots()
    cost = "embedding_bytes" if curves.plan.of == "embeddings" else "bytes"
    labels = curves.labels()
    for number, arm in enumerate(labels):
        held = curves.sizes_of(arm)
        values = [curves.values(arm, limit, curves.metric) for limit in held]
        x = [statistics.mean(curves.values(arm, limit, cost)) for limit in held]
        mean = np.array([statistics.mean(own) for own in values])
        sd = np.array([curves.spread(arm, limit) for limit in held])
        colour = _COLOURS[number % len(_COLOURS)]
        marker, line = _MARKERS[number % len(_MARKERS)], _LINES[number // len(_COLOURS) % len(_LINES)]
        width, size, front = (2.6, 7.0, 3) if number == 0 else (1.5, 5.5, 2)
        axes.plot(x, mean, color=colour, marker=marker, ls=line, lw=width, ms=size, label=labels[arm], zorder=front)
        axes.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.1, lw=0, zorder=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(curves.plan.sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: in_bytes(value)))
    what = "embeddings" if curves.plan.of == "embeddings" else "model"
    axes.set_xlabel(f"bytes of the {what} (log scale; ticks are the limits)", fontsize=11)
    axes.set_ylabel(titled(curves.metric), fontsize=11)
    axes.tick_params(labelsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    seeds = len(curves.seeds)
    told = f"mean of {seeds} seeds, band ± 1 sd (seeds' levels taken out)" if seeds > 1 else "one seed"
    axes.set_title(f"{title}: {told}", fontsize=12, loc="left")
    figure.legend(loc="outside lower center", ncols=4, fontsize=10, frameon=False)
    return figure


def in_bytes(value: float) -> str:
    """20,000 as 20 kB."""
    for unit, name in ((1e9, " GB"), (1e6, " MB"), (1e3, " kB")):
        if value >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.0f} B"
