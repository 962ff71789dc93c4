"""The page of a frontier: tables in Markdown, with the numbers of frontier.parquet."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from autoembed.frontier.curves import ENOUGH, Curves, Paired
from autoembed.task import columns, titled

NAMES = {"embeddings": "bytes of the embeddings", "model": "bytes of the model"}
_COSTS = {"embedding_bytes": "Bytes of the embeddings", "bytes": "Bytes of the model"}
_NOTES = 20


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the page says of the data and the machine."""

    title: str
    command: str
    fields: int
    values: int
    rows: dict[str, int]
    planted: bool
    threads: int
    jobs: int


def markdown(curves: Curves, facts: Measured) -> str:
    """The page as text."""
    plan, seeds, labels = curves.plan, curves.seeds, curves.labels()
    first, *baselines = curves.space.arms()
    metric, direction = titled(curves.metric), curves.space.objective.direction
    parts = [f"# {facts.title}: test metric against bytes", f"`{facts.command}`", _intro(curves, facts)]
    parts.append(f"![{metric} of each arm against {NAMES[plan.of]}](frontier.png)")
    task, group = curves.space.data.predicts, curves.space.data.group
    within = [f"test_{one.name}" for one in task.grouped if group is not None]
    for name in columns(task, "test", there=within):
        told = f"{_over(seeds)}, by {NAMES[plan.of]}; – is a gap ([below](#gaps))."
        title = titled(name)
        parts += [f"## {title[0].upper()}{title[1:]}", told, _by_size(curves, partial(_metric, curves, name))]
    for name, title in _COSTS.items():
        told = "What the models really take, mean over seeds; the columns are the limits."
        parts += [f"## {title}", told, _by_size(curves, partial(_cost, curves, name))]
    parts += ["## How few bytes are enough", *_enough(curves)]
    if baselines:
        parts += [
            "## Against each baseline",
            f"{metric[0].upper()}{metric[1:]} of {labels[first]} minus the baseline's at the same limit, paired by "
            "seed: mean ± standard error (p of a paired t-test, not corrected for the "
            f"{len(baselines) * len(plan.sizes)} comparisons). "
            + ("Above 0 is better." if direction.rises else "Below 0 is better."),
            _by_size(curves, lambda arm, size: _gap(curves.gap_to(first, arm, size)), baselines),
        ]
    parts += ["## Seconds", *_seconds(curves), "## Gaps", *_gaps(curves), "## Notes", *_notes(curves)]
    return "\n\n".join(parts) + "\n"


def _intro(curves: Curves, facts: Measured) -> str:
    plan, space = curves.plan, curves.space
    draws = {plan.draws(space, arm) for arm in space.arms()}
    drawn = (
        f"{max(draws)} random draws from the ranges of an arm, the best by valid for each size"
        if max(draws) > 1
        else "one recipe for all sizes"
    )
    data = "each seed draws data and weights" if facts.planted else "each seed draws weights and the order of rows"
    rows = " / ".join(f"{number:,}" for number in facts.rows.values())
    processes = f"{facts.jobs} processes with" if facts.jobs > 1 else "one process with"
    return (
        f"Seeds: {len(curves.seeds)}; {data}. For an arm and a seed there is one search for all sizes, and a "
        f"retraining for each; {drawn}. Test is read once for an arm, a seed and a size. {facts.fields} fields, "
        f"{facts.values:,} values, {rows} rows (train, valid, test; first seed). torch {torch.__version__}, "
        f"{processes} {facts.threads} thread(s), {os.cpu_count()} cores, {platform.machine()}. All numbers are in "
        "frontier.parquet."
    )


def _enough(curves: Curves) -> list[str]:
    best, labels = curves.best(), curves.labels()
    if best is None:
        return ["No arm has a model with every seed."]
    named = f"{best[0]:.4f}, {labels[best[1]]} within {best[2]:,} bytes"
    rows = []
    for arm, label in labels.items():
        full = curves.full(arm)
        cells = [_size(curves, arm, curves.enough(arm, goal)) for goal in (full, best[0])]
        rows.append([label, "–" if full is None else f"{full:.4f}", *cells])
    slack = f"{ENOUGH:.1%}" if curves.first.in_units else f"{ENOUGH:g}"
    near = slack if curves.first.in_units else slack.removeprefix("0")
    metric, worse = titled(f"test_{curves.first.name}"), "below" if curves.first.rises else "above"
    return [
        f"The smallest limit within which an arm's mean {metric} is at most {slack} {worse} that of its own largest "
        f"models, and {worse} the best mean of all arms ({named}). In brackets: what its models really take.",
        _table(["arm", f"{metric}, largest", f"within {near} of its own", f"within {near} of the best"], rows),
    ]


def _size(curves: Curves, arm: str, size: int | None) -> str:
    if size is None:
        return "–"
    name = "embedding_bytes" if curves.plan.of == "embeddings" else "bytes"
    return f"{size:,} ({_cost(curves, name, arm, size)})"


def _seconds(curves: Curves) -> list[str]:
    rows = []
    for arm, label in curves.labels().items():
        spent = [seconds for (one, _), seconds in curves.seconds.items() if one == arm]
        rows.append([label, f"{statistics.mean(spent):.1f}"])
    return ["Mean over seeds, for all sizes and draws together.", _table(["arm", "seconds a seed"], rows)]


def _gaps(curves: Curves) -> list[str]:
    labels, lines = curves.labels(), []
    for arm in curves.space.arms():
        for size in curves.plan.sizes:
            found = [p for p in curves.points if p.arm == arm and p.size == size and p.gap is not None]
            if found:
                seeds = f"{len(found)} of {len(curves.seeds)} seeds"
                lines.append(f"- {labels[arm]} at {size:,} bytes, {seeds}: {found[0].gap}")
    return ["\n".join(lines) or "None: every arm has a model of every size."]


def _notes(curves: Curves) -> list[str]:
    """How often an arm and a size have notes, with the first one."""
    labels, lines = curves.labels(), []
    for arm in curves.space.arms():
        for size in curves.plan.sizes:
            noted = [p for p in curves.points if p.arm == arm and p.size == size and p.notes]
            if noted:
                seeds = f"{len(noted)} of {len(curves.seeds)} seeds"
                lines.append(f"- {labels[arm]} at {size:,} bytes, {seeds}, such as: {noted[0].notes[-1]}")
    more = [f"- and {len(lines) - _NOTES} more, in frontier.parquet"] if len(lines) > _NOTES else []
    return ["\n".join([*lines[:_NOTES], *more]) or "None."]


def _by_size(curves: Curves, cell: Callable[[str, int], str], arms: Sequence[str] | None = None) -> str:
    labels, sizes = curves.labels(), curves.plan.sizes
    rows = [[labels[arm], *(cell(arm, size) for size in sizes)] for arm in arms or list(labels)]
    return _table(["arm", *(f"{size:,}" for size in sizes)], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _over(seeds: Sequence[int]) -> str:
    return f"Seed {seeds[0]}" if len(seeds) == 1 else f"Mean ± sd over seeds {seeds[0]} to {seeds[-1]}"


def _metric(curves: Curves, name: str, arm: str, size: int) -> str:
    values, seeds = curves.values(arm, size, name), len(curves.seeds)
    if not values:
        return "–"
    sd = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{sd}" + (f" ({len(values)} of {seeds} seeds)" if len(values) < seeds else "")


def _cost(curves: Curves, name: str, arm: str, size: int) -> str:
    mean = curves.mean(arm, size, name)
    return "–" if mean is None else f"{mean:,.0f}"


def _gap(found: Paired | None) -> str:
    if found is None:
        return "–"
    if found.error is None or found.p is None:
        return f"{found.mean:+.4f}"
    p = "< .001" if found.p < 0.001 else f"{found.p:.3f}".lstrip("0")
    return f"{found.mean:+.4f} ± {found.error:.4f} ({p})"
