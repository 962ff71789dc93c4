"""Pictures by Matplotlib: a ranking as one HTML page without scripts, and what was chosen for pairs."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl

from autoembed.frontier.picture import in_bytes
from autoembed.study.show.tables import legible
from autoembed.task import titled
from autoembed.types import Floats
from autoembed.writing import beside

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from autoembed.architecture import Architecture
    from autoembed.ranking.ranking import Ranking

Place = tuple[float, float]  # cost, quality

_BARS = 40
_CELLS = 40
_FIELDS = 200
_PANELS = 6  # next to each other
_MARKERS = "osD^vP*X"
_CHOICES = {"naive": "#e8e8e8", "factorize": "#4c9be8", "memorize": "#e8743b", "open": "#ffffff"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
td, th { padding: .15rem .7rem; text-align: right }
th { border-bottom: 1px solid #888 } td:first-child, th:first-child, .text { text-align: left } svg { max-width: 100% }
.error { color: #b00020; font-weight: 600 } .warning { color: #a15c00 } .note { color: #555 }
"""


def write_page(path: Path, ranking: Ranking, title: str) -> None:
    """Write a ranking as one self-contained HTML file: findings, columns, pairs, selection; figures are inline SVG."""
    parts = [f"<h1>{html.escape(title)}</h1>", _findings(ranking)]
    parts += ["<h2>Columns</h2>", _svg(score_bars(ranking.table)), _columns(ranking)]
    if ranking.pairs is not None and len(ranking.pairs):
        parts += ["<h2>Pairs</h2>", "<p>z of the synergy: what two columns say together and neither says alone.</p>"]
        parts += [_svg(synergy_matrix(ranking.pairs)), _table(ranking.pairs.head(_BARS))]
    if ranking.selected is not None:
        parts += ["<h2>Selection</h2>", _table(ranking.selected)]
    parts.append(f"<p class=note>Data {html.escape(ranking.fingerprint)}. Scores are in nats.</p>")
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as temporary:
        temporary.write_text(f"{head}<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n")


def score_bars(table: pl.DataFrame) -> Figure:
    """The scores of the best columns as bars, those within 3 sd of noise in grey."""
    shown = table.head(_BARS)
    figure, (axes,) = _figure(8, 0.6 + 0.24 * len(shown))
    colours = ["#4c9be8" if z > 3 else "#bbbbbb" for z in shown["z"]]
    axes.barh(range(len(shown)), shown["score"].to_list(), color=colours)
    axes.set_yticks(range(len(shown)), shown["feature"].to_list(), parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("score (grey: within 3 sd of noise of the same cardinality)")
    axes.margins(y=0.01)
    return figure


def synergy_matrix(pairs: pl.DataFrame) -> Figure:
    """synergy_z of pairs as a matrix over the columns of the best of them."""
    names = _names(zip(pairs["a"], pairs["b"], strict=True))
    matrix = _matrix(names, zip(pairs["a"], pairs["b"], pairs["synergy_z"], strict=True))
    side = 2 + 0.24 * len(names)
    figure, (axes,) = _figure(side + 1, side)
    _draw_matrix(figure, axes, names, matrix)
    return figure


def choice_matrix(architecture: Architecture, synergy: pl.DataFrame | None) -> Figure:
    """What an architecture does with each pair, coloured, and the pairs' synergy_z beside it if it is known."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    kinds = [kind for kind in _CHOICES if any(pair.choice == kind for pair in architecture.pairs)]
    names = _names((pair.a, pair.b) for pair in architecture.pairs)
    chosen = _matrix(names, ((pair.a, pair.b, kinds.index(pair.choice)) for pair in architecture.pairs))
    side = 2 + 0.24 * len(names)
    figure, (left, *right) = _figure(2 * side + 2, side, columns=1 if synergy is None else 2)
    left.imshow(chosen, cmap=ListedColormap([_CHOICES[kind] for kind in kinds]), vmin=-0.5, vmax=len(kinds) - 0.5)
    _label(left, names)
    left.set_title("chosen")
    patches = [Patch(facecolor=_CHOICES[kind], edgecolor="#888888", label=kind) for kind in kinds]
    figure.legend(handles=patches, loc="outside lower left", ncols=len(kinds))
    if synergy is not None:
        rows = zip(synergy["a"], synergy["b"], synergy["synergy_z"], strict=True)
        _draw_matrix(figure, right[0], names, _matrix(names, rows))
        right[0].set_title("synergy, z")
    return figure


def block_matrix(architecture: Architecture, what: Literal["dims", "bits"]) -> Figure:
    """How many dims each field keeps in each of its blocks, or in how many bits, frequent values on the left.

    There is a panel for each cluster.
    """
    most = architecture.dim if what == "dims" else max(block.bits for f in architecture.fields for block in f.blocks)
    fields = architecture.fields[:_FIELDS]
    parts = dims_panels(architecture)
    blocks = max(len(field.blocks) for field in fields)
    columns = min(len(parts), _PANELS)
    rows = -(-len(parts) // columns)
    size = (3 + (1 + 0.4 * blocks) * columns, rows * (1.5 + 0.24 * len(fields)))
    figure, panels = _figure(*size, columns=columns, rows=rows)
    for number, (title, part) in enumerate(parts.items()):
        axes = panels[number]
        own = {field.name: field for field in part.fields}
        kept = np.full((len(fields), blocks), np.nan)
        for row, field in enumerate(fields):
            plan = own.get(field.name)
            numbers = [len(b.dims) if what == "dims" else b.bits for b in plan.blocks] if plan else 0
            kept[row, : len(field.blocks)] = numbers
        image = axes.imshow(kept, cmap="viridis", vmin=0, vmax=most, aspect="auto")
        for (row, column), shown in np.ndenumerate(kept):
            if np.isfinite(shown):
                colour = "black" if shown > 0.6 * most else "white"
                axes.text(column, row, f"{shown:.0f}", ha="center", va="center", fontsize=7, color=colour)
        axes.set_xticks(range(blocks), [str(block + 1) for block in range(blocks)])
        names = [legible(field.name, 40) for field in fields]
        axes.set_yticks(range(len(fields)), names, fontsize=8, parse_math=False)
        axes.tick_params(labelleft=number % columns == 0, labelbottom=number + columns >= len(parts))
        axes.set_title(title, fontsize=9)
    for axes in panels[len(parts) :]:
        axes.remove()
    more = f", the first {_FIELDS} fields" if len(architecture.fields) > _FIELDS else ""
    figure.suptitle(f"dims kept of {architecture.dim}{more}" if what == "dims" else f"bits of each number{more}")
    figure.supxlabel("block, frequent values first", fontsize=10)
    figure.colorbar(image, ax=list(panels[: len(parts)]), shrink=0.7)
    return figure


def dims_panels(architecture: Architecture) -> dict[str, Architecture]:
    """What dims are drawn of, by title: the architecture, or each cluster's; the members of an ensemble are alike."""
    if architecture.router is None:
        return {"": architecture}
    if architecture.router.kind == "all":
        return {f"each of {len(architecture.clusters)} members": architecture.clusters[0]}
    return {f"cluster {number}": cluster for number, cluster in enumerate(architecture.clusters, 1)}


def pareto_picture(found: Mapping[str, Sequence[Place]], front: Sequence[Place], quality: str, cost: str) -> Figure:
    """The quality over the cost of each arm's trials, an arm a colour, and the line of the Pareto front."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure, (axes,) = _figure(7, 4.5)
    for number, (arm, places) in enumerate(found.items()):
        x, y = np.reshape(places, (-1, 2)).T
        axes.scatter(x, y, s=36, marker=_MARKERS[number % len(_MARKERS)], label=arm, alpha=0.8)
    axes.step(*np.reshape(front, (-1, 2)).T, where="post", color="black", lw=1, label="Pareto front")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    if cost == "bytes":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: in_bytes(value)))
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlabel("bytes of the model" if cost == "bytes" else cost.replace("_", " "))
    axes.set_ylabel(titled(quality))
    axes.legend(fontsize=9)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row."""
    # A figure of its own, without pyplot: that keeps figures alive and asks for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(rows, columns)).ravel())


def _draw_matrix(figure: Figure, axes: Axes, names: Sequence[str], matrix: Floats) -> None:
    image = axes.imshow(matrix, cmap="viridis")
    _label(axes, names)
    figure.colorbar(image, ax=axes, shrink=0.7)


def _label(axes: Axes, names: Sequence[str]) -> None:
    # A name such as $a$ is no formula.
    named = [legible(name, 40) for name in names]
    axes.set_xticks(range(len(names)), named, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(names)), named, fontsize=8, parse_math=False)


def _names(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """The columns of pairs, best pairs first, as many as a picture can show."""
    return list(dict.fromkeys(name for pair in pairs for name in pair))[:_CELLS]


def _matrix(names: Sequence[str], cells: Iterable[tuple[str, str, float]]) -> Floats:
    """A symmetric matrix of values, empty where a pair has none."""
    place = {name: number for number, name in enumerate(names)}
    matrix = np.full((len(names), len(names)), np.nan)
    for a, b, value in cells:
        if a in place and b in place:
            matrix[place[a], place[b]] = matrix[place[b], place[a]] = value
    return matrix


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg")
    return text.getvalue()[text.getvalue().index("<svg") :]


def _findings(ranking: Ranking) -> str:
    if not ranking.findings:
        return "<h2>Findings</h2><p>None.</p>"
    rows = "".join(
        f"<tr class={finding.severity}><td>{finding.severity}<td class=text>{finding.rule}"
        f"<td class=text>{html.escape(finding.column)}"
        f"<td>{finding.value:.4g}<td class=text>{html.escape(finding.advice)}"
        for finding in ranking.findings
    )
    return f"<h2>Findings</h2><table><tr><th>severity<th>rule<th>column<th>value<th class=text>advice{rows}</table>"


def _columns(ranking: Ranking) -> str:
    table = ranking.table
    if ranking.stability is not None:
        table = table.join(ranking.stability, on="feature", maintain_order="left")
    return _table(table)


def _table(table: pl.DataFrame) -> str:
    head = "".join(f"<th>{html.escape(name)}" for name in table.columns)
    rows = "".join("<tr>" + "".join(f"<td>{_cell(value)}" for value in row) for row in table.iter_rows())
    return f"<table><tr>{head}{rows}</table>"


def _cell(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else html.escape(str(value))
