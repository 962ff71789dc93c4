"""Studies of a folder as a table, and one study as a picture that moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from autoembed.errors import AutoembedError
from autoembed.frontier.picture import in_bytes
from autoembed.study.overview import Overview, Progress, look, size_of
from autoembed.study.processes import memory_of
from autoembed.study.run_dir import RunDir
from autoembed.study.show.tables import legible, make_table, print_table
from autoembed.task import metric_of, titled

_BARS = "▁▂▃▄▅▆▇█"
_WIDE = 60  # signs of a sparkline
_COLOURS = {"running": "cyan", "finished": "green", "interrupted": "yellow", "failed": "bold red", "unreadable": "red"}


def listed(run: RunDir) -> dict[str, object]:
    """A study as plain data; one whose search space cannot be read says why."""
    facts: dict[str, object] = {"study": run.name, "path": str(run.path)}
    try:
        found = look(run)
    except AutoembedError as error:
        return {**facts, "state": "unreadable", "reason": str(error), "bytes": size_of(run.path)}
    best = found.best()
    return {
        **facts,
        "state": found.state,
        "best_trial": None if best is None else best.trial,
        "best_arm": None if best is None else best.arm,
        "metric": found.metric,
        "best": None if best is None else best.value,
        "trials": found.total,
        **{state: found.count(state) for state in ("done", "pruned", "failed")},
        "running": len(found.running),
        "process": None if found.holder is None else found.holder[0],
        "host": None if found.holder is None else found.holder[1],
        "bytes": size_of(run.path),
        "changed": datetime.fromtimestamp(found.when).astimezone().isoformat(timespec="seconds"),
    }


def show_studies(console: Console, rows: Sequence[dict[str, object]], title: str) -> None:
    """Prints studies, the one that changed last first."""
    names = (
        "study",
        "state",
        "best arm",
        "metric",
        "best\non valid",
        "done/pruned/\nfailed",
        "of",
        "on disk",
        "changed",
    )
    table = make_table(title, *names, left=4)
    for row in sorted(rows, key=lambda row: str(row.get("changed", "")), reverse=True):
        state, best = str(row["state"]), row.get("best")
        counts = "/".join(str(row.get(name, "-")) for name in ("done", "pruned", "failed"))
        table.add_row(
            Text(str(row["study"])),
            Text(state, style=_COLOURS[state]),
            Text(str(row.get("best_arm") or "-")),
            titled(str(row["metric"])) if row.get("metric") else "-",
            f"{best:.4f}" if isinstance(best, float) else "-",
            counts if "done" in row else "-",
            str(row.get("trials", "-")),
            in_bytes(float(str(row["bytes"]))),
            str(row.get("changed", "-"))[:16].replace("T", " "),
        )
    print_table(console, table)
    for row in rows:
        if "reason" in row:
            console.print(f"  {row['study']}: {row['reason']}", markup=False, soft_wrap=True)


def frame(found: Overview, now: float) -> RenderableType:
    """A study at a moment: state, time left, arms, running trials, a sparkline, memory."""
    metric = titled(found.metric)
    done = len(found.ended)
    head = Text.assemble(
        (legible(found.run.name), "bold"),
        "  ",
        (found.state, _COLOURS[found.state]),
        f"  {done} of {found.total} trials",
    )
    lines: list[RenderableType] = [head]
    if found.state == "running":
        lines.append(Text(f"  {_phase(found, now)}"))
    table = Table.grid(padding=(0, 2))
    for place in range(5):
        table.add_column(justify="left" if place < 2 else "right", no_wrap=True)
    table.add_row(
        *(Text(name, style="dim") for name in ("  arm", "best trial", metric, "done/pruned/failed", "running"))
    )
    first = found.best()
    for arm in found.arms:
        best = found.best(arm)
        counts = "/".join(str(found.count(state, arm)) for state in ("done", "pruned", "failed"))
        own = ", ".join(_told(one) for one in found.running if one.arm == arm)
        won = best is not None and first is not None and best.trial == first.trial
        cells = (
            f"{'►' if won else ' '} {legible(arm)}",
            best.trial if best else "-",
            _number(best.value if best else None),
            counts,
        )
        table.add_row(*(Text(cell) for cell in (*cells, own)), style="bold" if won else None)
    lines.append(table)
    values = found.bests()
    if values:
        lines.append(Text(f"  best {metric}  {sparkline(values, metric_of(found.metric).sign)}  {values[-1]:.4f}"))
    if found.holder is not None and (memory := memory_of(found.holder[0])) is not None:
        words = "process" if memory.processes == 1 else "processes"
        lines.append(Text(f"  memory  {in_bytes(memory.bytes)} in {memory.processes} {words}"))
    if found.state == "finished":
        lines.append(Text(f"  autoembed show {found.run.path}"))
    elif found.state != "running":
        lines.append(Text("  go on with it: autoembed search SPACE --resume (and --name, if it has one)"))
    return Group(*lines)


def watch(run: RunDir, console: Console, every: float, sleep: Callable[[float], None] = time.sleep) -> None:
    """Shows a study until it ends, once if it is not running; without a terminal, a frame whenever a trial ends."""
    found = look(run)
    if not console.is_terminal:
        shown = None
        while True:
            if shown is None or len(found.ended) != shown or found.state != "running":
                console.print(frame(found, time.time()))
                shown = len(found.ended)
            if found.state != "running":
                return
            sleep(every)
            found = look(run)
    with Live(frame(found, time.time()), console=console, auto_refresh=False, transient=False) as live:
        while found.state == "running":
            sleep(every)
            found = look(run)
            live.update(frame(found, time.time()), refresh=True)


def sparkline(values: Sequence[float], sign: int = 1) -> str:
    """Values as bars, higher if better; of many, evenly spaced ones with the last."""
    if len(values) > _WIDE:
        step = (len(values) - 1) / (_WIDE - 1)
        values = [values[round(step * place)] for place in range(_WIDE)]
    low, high = min(values), max(values)
    room = (high - low) or 1.0
    parts = ((value - low) / room if sign > 0 else (high - value) / room for value in values)
    return "".join(_BARS[min(len(_BARS) - 1, int(part * len(_BARS)))] for part in parts)


def _phase(found: Overview, now: float) -> str:
    """What it is at, and for about how long yet."""
    if found.seeds is not None:
        return f"retraining over seeds, {found.seeds[0]} of {found.seeds[1]}"
    if len(found.ended) >= found.total:
        return "comparing arms on test and writing the best bundle"
    if not found.ended and not found.running:
        return "reading, ranking, or starting Ray"
    if found.until is not None and now >= found.until:
        return "its minutes are over: trials that run have a while to end"
    left = found.left(now)
    guess = "time left not known before a trial has ended" if left is None else f"about {_span(left)} of trials left"
    if found.until is not None:
        guess += f", no new ones after {datetime.fromtimestamp(found.until):%H:%M:%S}"
    return guess


def _told(one: Progress) -> str:
    place = f" {one.phase} {one.epoch}" if one.phase else ""
    value = "" if one.value is None else f" {one.value:.4f}"
    return f"{one.trial}{place}{value}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
