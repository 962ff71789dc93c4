"""How a study looks in MLflow: names of metrics, the columns and the order of its table, its description."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from autoembed.study.results.leaderboard import Leaderboard
from autoembed.task import columns, metric_of, task_of, titled

PHASES = ("warm", "search", "refit", "teacher")
# A view that MLflow's UI reads from a tag of the experiment, as its "Share" button writes one.
KEY = "autoembed"
SAVED_VIEW = f"mlflow.sharedViewState.{KEY}"


def curve(name: str) -> str:
    """The name in MLflow of what a trial reports for each epoch; the UI groups by what stands before the slash."""
    phase, _, rest = name.partition("_")
    return f"{phase}/{rest}" if phase in PHASES and rest else f"retrain/{name}"


def saved_view(metric: str, *, grouped: bool = False) -> str:
    """The state of MLflow's table of runs that shows a study's trials, the best by `metric` first.

    `grouped` says whether there are metrics within groups.
    """
    task = task_of(metric)
    within = [one.monitor for one in task.grouped if grouped]
    others = [name for name in columns(task, "valid", there=within) if name != metric]
    metrics = [metric, *others, f"test_{task.metrics[0].name}", "cost/bytes", "cost/embedding_bytes", "cost/latency_ms"]
    shown = [*(f"metrics.`{name}`" for name in metrics), *(f"tags.`{name}`" for name in ("arm", "state"))]
    return json.dumps(
        {
            "orderByKey": f"metrics.`{metric}`",
            "orderByAsc": not metric_of(metric).rises,
            "selectedColumns": shown,
            "columnOrder": shown,
        }
    )


def page(experiment: str, server: str = "") -> str:
    """The address of a study's table of runs on a server."""
    return f"{server}/#/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={KEY}"


def description(board: Leaderboard, experiment: str, runs: Mapping[str, str], commands: Sequence[str]) -> str:
    """A study's result in Markdown: the leaderboard, each trial linked to its run, and what to do next.

    `runs` are the ids of the trials' runs.
    """
    metric = titled(board.metric)
    task = board.predicts
    first, tested = task.metrics[0], columns(task, "test", there=board.table.columns)
    heads = ["arm", "trial", titled(first.monitor), *map(titled, tested), "embedding bytes", "bytes"]
    heads.append("done/pruned/failed")
    lines = [
        f"The best trial of each arm by {metric}; **{board.winner}** is the best of all.",
        "",
        f"| {' | '.join(heads)} |",
        f"| --- | --- | {' | '.join(['---:'] * (len(heads) - 2))} |",
    ]
    for row in board.rows:
        counts = f"{row.done}/{row.pruned}/{row.failed}"
        cells = ["-"] * (len(heads) - 2)
        if row.trial is not None and row.valid is not None and row.test is not None:
            link = f"[{row.trial}](#/experiments/{experiment}/runs/{runs[row.trial]})"
            numbers = [row.valid.shown(first.name), *(row.test.shown(one.name) for one in tested.values())]
            cells = [link, *numbers, *(_whole(value) for value in (row.embedding_bytes, row.bytes))]
        name = f"**{row.arm}**" if row.trial == board.winner else row.arm
        lines.append("| " + " | ".join([name, *cells, counts]) + " |")
    return "\n".join([*lines, "", *(f"    {command}" for command in commands)])


def _whole(value: object) -> str:
    return "-" if value is None else f"{value:,}"
