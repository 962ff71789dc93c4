"""What a reader of a ranking should know of the data before trusting it: findings, each with its severity and advice.

All but drift and near-duplicates are read off the counts, so they cost nothing beside a ranking.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from autoembed.ranking.scores import xlogx
from autoembed.types import Array

if TYPE_CHECKING:
    from autoembed.data.dataset import Dataset
    from autoembed.ranking.table import CodedTable

Severity = Literal["error", "warning", "note"]
Counts = npt.NDArray[np.int64]

LEAK, LEAK_NOTE = 0.9, 0.25  # share of the label's entropy that one column tells
ALONE = 0.5  # share of rows whose value occurs once
SPARSE = 0.05  # share of rows that are not missing
DOMINANT = 0.999  # share of rows of one value
RARE, RARE_SHARE = 5, 0.2  # values of fewer rows, and their share of rows
DRIFT = 0.1  # Jensen-Shannon divergence of train and valid, in bits
SAME = 0.99  # normalized mutual information of two columns
_SAMPLE = 100_000
_FEW = 2_000
_ORDER = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to know: which rule a column (or two, joined by " = ") trips, the figure that does, and what to do."""

    severity: Severity
    rule: str
    column: str
    value: float
    advice: str


def findings(table: CodedTable, told: Sequence[float]) -> list[Finding]:
    """What a table shows, errors first: leaks, constant, id-like, sparse and rare columns, and duplicates.

    `told` is the normalized score of each column. Near-duplicates are looked for only where codes were kept.
    """
    out = []
    for name, counts, missing, share in zip(table.names, table.counts.tables, table.missing, told, strict=True):
        out += _column(name, counts, missing, share)
    out += _twins(table)
    if table.store is not None:
        out += _near_twins(table, {finding.column for finding in out if finding.rule == "duplicate"})
    return ordered(out)


def ordered(found: Sequence[Finding]) -> list[Finding]:
    """Errors first, then by rule and column."""
    return sorted(found, key=lambda finding: (_ORDER[finding.severity], finding.rule, finding.column))


def _column(name: str, counts: Array, missing: int, told: float) -> list[Finding]:
    def finding(severity: Severity, rule: str, value: float, advice: str) -> Finding:
        return Finding(severity=severity, rule=rule, column=name, value=value, advice=advice)

    n = counts.sum(axis=1)
    rows = float(n.sum())
    top, alone = float(n.max()) / rows, float((n == 1).sum()) / rows
    if (n > 0).sum() == 1:
        return [finding("warning", "constant", 1.0, "it has one value: drop it")]
    found = []
    if told >= LEAK:
        found.append(finding("error", "leak", told, "it all but tells the label: is it known before the label is?"))
    elif told >= LEAK_NOTE:
        found.append(finding("warning", "leak", told, "it tells much of the label: is it known before the label is?"))
    if alone >= ALONE:
        found.append(finding("warning", "id-like", alone, "most of its values occur once: drop, bin or group it"))
    elif (share := float(n[n < RARE].sum()) / rows) >= RARE_SHARE:
        found.append(
            finding("note", "rare values", share, f"share of rows whose value has fewer than {RARE}: pool them")
        )
    if missing >= 0 and (present := 1 - float(n[missing]) / rows) <= SPARSE:
        found.append(finding("warning", "sparse", present, "hardly any row has it: drop it, or say why it is missing"))
    elif top >= DOMINANT:
        found.append(finding("note", "dominant", top, "one value has nearly all rows: it can tell little"))
    return found


def _twins(table: CodedTable) -> list[Finding]:
    """Columns whose tables are the same up to the order of values: copies under other names."""
    seen: dict[bytes, str] = {}
    found = []
    # Copies have the same sums of squares, which cost less than an order of values.
    sketches = [(len(counts), *(counts**2).sum(axis=0)) for counts in table.counts.tables]
    often = Counter(sketches)
    for name, counts, sketch in zip(table.names, table.counts.tables, sketches, strict=True):
        if len(counts) < 2 or often[sketch] < 2:
            continue
        key = np.ascontiguousarray(counts[np.lexsort(counts.T)]).tobytes()
        if key in seen:
            # Equal counts by chance need few values: those of 1,000 rows agree in a copy only.
            if len(counts) > 2:
                found.append(_duplicate(seen[key], name, 1.0))
        else:
            seen[key] = name
    return found


def _duplicate(first: str, second: str, value: float) -> Finding:
    return Finding(
        severity="warning", rule="duplicate", column=f"{first} = {second}", value=value, advice=f"drop {second}"
    )


def _near_twins(table: CodedTable, known: set[str]) -> list[Finding]:
    """Pairs that tell each other, by a sample of rows: NMI = 2 (H(a) + H(b) - H(a, b)) / (H(a) + H(b))."""
    step = max(1, table.rows // _SAMPLE)
    whole = [_entropy(counts.sum(axis=1)) for counts in table.counts.tables]

    @cache
    def sample(place: int) -> tuple[Array, int]:
        codes = np.ascontiguousarray(table.codes(place, step))
        return codes, len(np.unique(codes[:_FEW]))

    found = []
    for a, b in combinations(range(len(whole)), 2):
        name = f"{table.names[a]} = {table.names[b]}"
        # Two columns can only tell each other if they hold about as much, and few rows show most that do not.
        if name in known or whole[a] + whole[b] == 0 or 2 * min(whole[a], whole[b]) / (whole[a] + whole[b]) < SAME:
            continue
        (one, few), (other, many) = sample(a), sample(b)
        if len(np.unique(one[:_FEW].astype(np.int64) << 32 | other[:_FEW])) > 1.2 * max(few, many):
            continue
        joint = np.unique(one.astype(np.int64) << 32 | other, return_counts=True)[1]
        both = _entropy(np.bincount(one)) + _entropy(np.bincount(other))
        if both > 0 and (same := 2 * (both - _entropy(joint)) / both) >= SAME:
            found.append(_duplicate(table.names[a], table.names[b], same))
    return found


def _entropy(n: Array) -> float:
    total = float(n.sum())
    return float(np.log(total) - xlogx(n).sum() / total)


def drift(dataset: Dataset) -> list[Finding]:
    """Columns whose values are distributed differently in valid than in train: a note each, with the divergence."""
    found, columns = [], np.cumsum([0, *dataset.schema.lengths])
    for place, (field, trained) in enumerate(zip(dataset.schema.fields, dataset.counts, strict=True)):
        ids = dataset.ids("valid")[:, columns[place] : columns[place + 1]]
        if field.interpolation:
            ids = dataset.schema.one(dataset.ids("valid"), field.name)
        valid = np.bincount(ids[ids >= 0], minlength=field.cardinality)
        value = divergence(trained, valid)
        if value >= DRIFT:
            advice = "train and valid differ: does its meaning change with time, or are its values new?"
            found.append(Finding(severity="note", rule="drift", column=field.name, value=value, advice=advice))
    return ordered(found)


def divergence(a: Counts, b: Counts) -> float:
    """Jensen-Shannon divergence of two histograms in bits, 0 to 1, less what two samples of one source would show.

    That is (K - 1) / (8 ln 2) (1/n + 1/m) for K values and n and m rows, to second order.
    """
    p, q = a / a.sum(), b / b.sum()
    middle = (p + q) / 2
    value = float((xlogx(p) + xlogx(q)).sum() / 2 - xlogx(middle).sum()) / np.log(2)
    chance = (int((middle > 0).sum()) - 1) / (8 * np.log(2)) * (1 / a.sum() + 1 / b.sum())
    return max(0.0, float(value - chance))
