"""Sections of a study's page about columns: their ranking, findings, pairs, and what each one brings."""

from __future__ import annotations

from collections.abc import Mapping

from autoembed.ranking.quality import Finding
from autoembed.study.show.rankings import headed
from autoembed.study.show.study_page.charts import bar
from autoembed.study.show.study_page.facts import StudyFacts
from autoembed.study.show.study_page.markup import Html, code, details, join, prose, table, tag

SHOWN = 40
_MOST = 200
_FINDINGS = 100


def ranking(facts: StudyFacts) -> Html | None:
    """Columns by their score, what is odd about them, and the ranked pairs."""
    found = facts.ranking
    if found is None:
        return None
    note = (
        "What each column says about the label beyond noise with as many values, in nats. Grey bars lie within 3 "
        "standard deviations of noise."
    )
    kept = set(facts.data.get("fields", []))
    top = max([0.0, *found.table["score"]])
    rows = [
        [
            code(row["feature"]),
            row["kind"],
            f"{row['cardinality']:,}",
            f"{row['coverage']:.1%}",
            f"{row['score']:.5f}",
            tag("span", bar(row["score"], top, dim=row["z"] <= 3), class_="text"),
            f"{row['z']:.1f}",
            "kept" if row["feature"] in kept else "dropped",
        ]
        for row in found.table.head(_MOST).iter_rows(named=True)
    ]
    heads = ["column", "kind", "values", "coverage", "score", "", "z", "by the study"]
    parts: list[object] = [prose(note, quiet=True), _folded("columns", heads, rows, left=2)]
    if len(found.table) > _MOST:
        parts.append(tag("p", f"The first {_MOST} of {len(found.table)}.", class_="mute"))
    parts += [tag("h3", "Findings"), _findings(found.findings)]
    if found.pairs is not None and len(found.pairs):
        pairs = [
            [code(row["a"]), code(row["b"]), f"{row['synergy']:.5f}", f"{row['synergy_z']:.1f}", f"{row['cells']:,}"]
            for row in found.pairs.head(SHOWN).iter_rows(named=True)
        ]
        title = tag("h3", "Pairs by synergy: what two columns say together and neither says alone")
        parts += [title, table("ranked pairs", ["column", "with", "synergy", "z", "cells"], pairs, left=2)]
    return join(parts)


def _findings(found: tuple[Finding, ...]) -> Html:
    if not found:
        return tag("p", "None: no leaks, no constants, no ids, no duplicates.")
    rows = [
        [
            tag("span", one.severity, class_=one.severity),
            one.rule,
            code(one.column),
            tag("span", one.advice, class_="say"),
            f"{one.value:.3g}",
        ]
        for one in found[:_FINDINGS]
    ]
    return table("findings", ["severity", "rule", "column", "advice", "value"], rows, left=4)


def _folded(label: str, heads: list[str], rows: list[list[object]], *, left: int = 1) -> Html:
    """A table whose rows after the first are shown on request."""
    first = table(label, heads, rows[:SHOWN], left=left)
    if len(rows) <= SHOWN:
        return first
    return join([first, details(f"{len(rows) - SHOWN} more", table(f"more {label}", heads, rows[SHOWN:], left=left))])


def brought(facts: StudyFacts) -> Html | None:
    """What is kept of each column, at what size, and what the model loses without it if that was measured."""
    found = facts.explained
    if found is None:
        return None
    loss = facts.space.data.predicts.criterion
    rise, se = f"{loss.name}_rise", f"{loss.name}_se"
    others = [name for name in found.columns if name.endswith(("_rise", "_fall")) and name != rise]
    asked = rise in found.columns
    measured = asked and found[rise].null_count() < len(found)
    sizes = [size or 0.0 for size in found[rise if measured else "bytes"]]
    rows = []
    for row, size in zip(found.head(_MOST).iter_rows(named=True), sizes, strict=False):
        cells = [code(row["field"]), row["fate"], row["place"], *(_of(row, *one) for one in _FORMS.items())]
        if measured:
            cells.append("–" if row[rise] is None else f"{row[rise]:.5f} ± {row[se]:.5f}")
            cells += [_of(row, name, ".5f") for name in others]
        rows.append([*cells, tag("span", bar(size, max(sizes)), class_="text")])
    heads = ["column", "what became of it", "place in ranking", "mean dims", "mean bits", "bytes", "share"]
    heads += [f"{loss.title} rise without it", *map(headed, others)] if measured else []
    how = (
        f"How much worse {facts.best.id} is on valid without the column (± one standard error). A column with many "
        "bytes and a rise of about 0 is one to look at."
        if measured
        else "What is lost without each column is not measured for a model with clusters. Where the bytes went."
        if asked
        else "Where the bytes went. `autoembed report RUN --explain` also measures what is lost without each column."
    )
    return join([prose(how, quiet=True), _folded("what columns bring", [*heads, ""], rows, left=2)])


_FORMS = {"dims": ".1f", "bits": ".1f", "bytes": ",", "share": ".1%"}


def _of(row: Mapping[str, object], name: str, form: str) -> str:
    value = row[name]
    return "–" if value is None else format(value, form)
