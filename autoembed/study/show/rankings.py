"""Rankings, findings, field scores and coverage as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from autoembed.study.show.tables import make_table, print_table
from autoembed.task import titled

if TYPE_CHECKING:
    import polars as pl

    from autoembed.ranking.quality import Finding
    from autoembed.ranking.ranking import Ranking

SHOWN_PAIRS = 20


def show_ranking(console: Console, ranking: Ranking, title: str, top: int | None) -> None:
    """Prints a ranking's columns, best first, with how firm their places are if that was asked for."""
    firm = {}
    if ranking.stability is not None:
        firm = {name: f"{low}-{high}" for name, low, _, high in ranking.stability.iter_rows()}
    names = ["#", "column", "kind", "values", "coverage", "score, nats", "z", "of label", "MI", "by chance"]
    out = make_table(title, *names, *(["places on halves"] if firm else []), left=3)
    table = ranking.table
    shown = table if top is None else table.head(top)
    for place, row in enumerate(shown.iter_rows(named=True), 1):
        out.add_row(
            str(place),
            Text(row["feature"]),
            row["kind"],
            f"{row['cardinality']:,}",
            f"{row['coverage']:.1%}",
            f"{row['score']:.6f}",
            f"{row['z']:.1f}",
            f"{row['normalized']:.2%}",
            f"{row['mi']:.6f}",
            f"{row['expected_mi']:.6f}",
            *([firm[row["feature"]]] if firm else []),
        )
    print_table(console, out)
    if len(shown) < len(table):
        console.print(f"  and {len(table) - len(shown)} more: --top {len(table)} shows all")


def headed(column: str) -> str:
    """A column of field scores as people read it: AUC fall."""
    name, _, way = column.rpartition("_")
    return f"{titled(f'_{name}').lstrip()} {way}" if name else column


def show_fields(console: Console, table: pl.DataFrame, title: str, top: int | None) -> None:
    """Prints the fields of a model by what it takes from them."""
    heads = ("se" if name.endswith("_se") else headed(name) for name in table.columns[1:])
    out = make_table(title, "#", "field", *heads, left=2)
    shown = table if top is None else table.head(top)
    for place, (name, *scores) in enumerate(shown.iter_rows(), 1):
        out.add_row(str(place), Text(name), *(f"{score:.5f}" for score in scores))
    print_table(console, out)
    if len(shown) < len(table):
        console.print(f"  and {len(table) - len(shown)} more: --top {len(table)} shows all")


def show_explained(console: Console, table: pl.DataFrame, title: str, top: int | None) -> None:
    """Prints what each column of a study brings."""
    forms = {"ids": ",", "place": "d", "score": ".4f", "z": ".1f", "dims": ".1f", "bits": ".1f"}
    forms |= {"bytes": ",", "share": ".1%"}
    scores = [name for name in table.columns if name not in ("field", "kind", "fate", "saliency", *forms)]
    first, rest = list(forms)[:4], list(forms)[4:]
    heads = ("se" if name.endswith("_se") else headed(name) for name in scores)
    out = make_table(title, "field", *first, "fate", *rest, *heads)
    forms |= dict.fromkeys(scores, ".5f")
    shown = table if top is None else table.head(top)
    for row in shown.iter_rows(named=True):
        filled = ["" if row[name] is None else format(row[name], form) for name, form in forms.items()]
        out.add_row(Text(row["field"]), *filled[:4], row["fate"], *filled[4:])
    print_table(console, out)
    if len(shown) < len(table):
        console.print(f"  and {len(table) - len(shown)} more: --top {len(table)} shows all")


def show_findings(console: Console, found: Sequence[Finding]) -> None:
    """Prints what to know of the data, errors first; nothing if there is nothing."""
    if not found:
        return
    out = make_table("findings", "severity", "rule", "column", "advice", "value", left=4)
    colours = {"error": "bold red", "warning": "yellow", "note": "dim"}
    for finding in found:
        severity = Text(finding.severity, style=colours[finding.severity])
        out.add_row(severity, finding.rule, Text(finding.column), finding.advice, f"{finding.value:.3g}")
    print_table(console, out)


def show_selected(console: Console, table: pl.DataFrame, title: str) -> None:
    """Prints columns in the order in which they were taken."""
    out = make_table(title, "#", "column", "gain, nats", "alone, nats", left=2)
    for place, (name, gain, alone) in enumerate(table.iter_rows(), 1):
        out.add_row(str(place), Text(name), f"{gain:.6f}", f"{alone:.6f}")
    print_table(console, out)


def show_coverage(console: Console, table: pl.DataFrame) -> None:
    """Prints which shares of a table's values are unknown to a model or missing, beside those of train."""
    order = table.with_columns(far=table["unknown"] - table["train_unknown"]).sort("far", descending=True)
    out = make_table("values that the model does not know", "field", "unknown", "in train", "missing", "in train")
    for name, unknown, missing, *train in order.drop("far").head(SHOWN_PAIRS).iter_rows():
        out.add_row(Text(name), *(f"{share:.1%}" for share in (unknown, train[0], missing, train[1])))
    print_table(console, out)
    if table.height > SHOWN_PAIRS:
        console.print(f"  and {table.height - SHOWN_PAIRS} fields more, which are no further from train")


def show_moves(console: Console, table: pl.DataFrame, title: str, top: int | None) -> None:
    """Prints the places of columns in two rankings, the largest move first."""
    out = make_table(title, "column", "first", "second", "score", "score")
    for name, first, first_score, second, second_score in (
        table.head(top or len(table))
        .select("feature", "rank_first", "score_first", "rank_second", "score_second")
        .iter_rows()
    ):
        places = ("-" if place is None else str(place) for place in (first, second))
        out.add_row(Text(name), *places, *("-" if s is None else f"{s:.6f}" for s in (first_score, second_score)))
    print_table(console, out)


def show_pairs(console: Console, table: pl.DataFrame, title: str, top: int | None) -> None:
    """Prints pairs, highest synergy first."""
    out = make_table(
        title, "#", "column", "with", "cells", "synergy, nats", "z", "joint score", "z", "MI", "by chance", left=3
    )
    shown = table.head(top or SHOWN_PAIRS)
    for place, row in enumerate(shown.iter_rows(named=True), 1):
        out.add_row(
            str(place),
            Text(row["a"]),
            Text(row["b"]),
            f"{row['cells']:,}",
            f"{row['synergy']:.6f}",
            f"{row['synergy_z']:.1f}",
            f"{row['score']:.6f}",
            f"{row['z']:.1f}",
            f"{row['mi']:.6f}",
            f"{row['expected_mi']:.6f}",
        )
    print_table(console, out)
    if len(shown) < len(table):
        console.print(f"  and {len(table) - len(shown)} more: --top {len(table)} shows all")
