"""Leaderboards, sizes, fronts, frontiers and what failed as tables for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from autoembed.metrics import Metric
from autoembed.study.show.tables import make_table, print_table, two_lines
from autoembed.task import columns, metric_of, of_labels, present, task_of, titled, under

if TYPE_CHECKING:
    import polars as pl

    from autoembed.frontier.curves import Curves
    from autoembed.space import SearchSpace
    from autoembed.study.results.leaderboard import Leaderboard, Row
    from autoembed.study.results.pareto import ParetoPoint
    from autoembed.study.results.retrain import ArmsContent
    from autoembed.study.run_dir import Ended, RunDir
    from autoembed.trial import TrialResult

SHOWN = 5
PAGE = "report.html"


def show_leaderboard(console: Console, run: RunDir, board: Leaderboard) -> None:
    """Prints the arms with the winner by valid marked, planted beside found, failures, and the paths."""
    metric, chosen = titled(board.metric), metric_of(board.metric)
    first, *others = present(board.predicts, (row.test for row in board.rows))
    table = make_table(
        f"{run.name}: the best trial of each arm by {metric}",
        *(" ", "arm", f"valid\n{chosen.title}", f"test\n{first.title}", "± by\nits rows"),
        *(f"test\n{one.title}" for one in others),
        *("embedding\nparams", "embedding\nbytes", "all\nbytes"),
        *("search\ns", "retrain\ns", "trials\ndone/pruned/\nfailed"),
        left=2,
    )
    for row in board.rows:
        won = row.trial == board.winner
        table.add_row(
            "►" if won else "", row.arm, *_cells(row, chosen, [first, *others]), style="bold green" if won else None
        )
    print_table(console, table)
    _show_auxiliary(console, board)
    if board.told_bound is not None:
        console.print(f"  {board.told_bound}\n")
    _show_groups(console, board)
    show_failures(console, run.ended())
    if board.note:
        console.print(f"  {board.note}\n", style="yellow", soft_wrap=True)
    console.print(f"  best trial   {run.trial(board.winner)}", soft_wrap=True)
    if run.best.is_dir():
        console.print(f"  best bundle  {run.best}", soft_wrap=True)
    if (run.path / PAGE).is_file():
        console.print(f"  report       {run.path / PAGE}", soft_wrap=True)
    if (run.path / "mlflow.json").is_file():
        console.print(f"  MLflow       autoembed ui --runs {run.path.parent}", soft_wrap=True)


def show_sizes(console: Console, found: Sequence[tuple[TrialResult, Path]], title: str) -> None:
    """Prints what one search gave within each of several limits."""
    metrics = (titled(name) for name in under("valid", found[0][0].valid))
    table = make_table(title, "bundle", *metrics, "embedding\nparams", "all\nparams", "bytes")
    for result, path in found:
        cost = result.cost
        cells = (f"{cost.embedding_parameters:,}", f"{cost.parameters:,}", f"{cost.bytes:,}")
        table.add_row(Text(str(path)), *(f"{value:.4f}" for _, value in result.valid.items()), *cells)
    print_table(console, table)


def show_front(console: Console, kept: Sequence[ParetoPoint], space: SearchSpace) -> None:
    """Prints the Pareto front by rising cost, the knee marked."""
    from autoembed.study.results.pareto import pick

    knee = pick(kept, "knee").id
    metric, cost = titled(space.objective.metric), space.objective.cost or "bytes"
    names = ("trial", metric, cost, "embedding\nparams", "ms per\n1,000 rows")
    table = make_table(f"Pareto front of {metric} and {cost}", " ", *names, left=2)
    for point in kept:
        result, own = point.trial.result, point.trial.id == knee
        cells = (f"{point.quality:.4f}", f"{point.cost:,.6g}" if cost == "latency_ms" else f"{point.cost:,.0f}")
        parameters = f"{result.cost.embedding_parameters:,}"
        style = "bold" if own else None
        table.add_row(
            "knee" if own else "", point.trial.id, *cells, parameters, f"{result.latency_ms:.2f}", style=style
        )
    print_table(console, table)
    console.print("  export one: autoembed export RUN OUT --pick knee | 'smallest-within 0.001' | ID")


def _cells(row: Row, chosen: Metric, metrics: Sequence[Metric]) -> list[str]:
    trials = f"{row.done}/{row.pruned}/{row.failed}"
    if row.valid is None or row.test is None:
        return [*["-"] * (7 + len(metrics)), trials]
    first, *others = (one.name for one in metrics)
    return [
        f"{row.valid[chosen.name]:.4f}",
        f"{row.test[first]:.4f}",
        "-" if row.test_auc_error is None else f"{row.test_auc_error:.4f}",
        *(row.test.shown(name) for name in others),
        f"{row.embedding_parameters:,}",
        "-" if row.embedding_bytes is None else f"{row.embedding_bytes:,}",
        f"{row.bytes:,}",
        f"{row.search_seconds:.1f}",
        f"{row.retrain_seconds:.1f}",
        trials,
    ]


def _show_auxiliary(console: Console, board: Leaderboard) -> None:
    """Prints the metrics of auxiliary labels, if there are such."""
    names = board.further
    if not names:
        return
    table = make_table("Auxiliary labels", "arm", *map(titled, names))
    for row in board.rows:
        table.add_row(row.arm, *(f"{row.further[name]:.4f}" if name in row.further else "-" for name in names))
    print_table(console, table)


def _show_groups(console: Console, board: Leaderboard) -> None:
    if not board.groups:
        return
    table = make_table(
        f"Planted, and found by {board.rows[0].arm}",
        *("group", "columns\nplanted", "kept by\nranking", "embedding\nkept", "share of\nparameters"),
    )
    for group in board.groups:
        shares = (f"{group.kept_share:.1%}", f"{group.parameter_share:.1%}")
        table.add_row(group.name, str(group.planted), str(group.ranked), *shares)
    print_table(console, table)


def show_failures(console: Console, ended: list[Ended]) -> None:
    """Prints why trials failed or were stopped: equal reasons together, those that differ in figures by an example."""
    for state, words in (("pruned", "were stopped"), ("failed", "failed")):
        kinds: dict[str, list[Ended]] = {}
        for trial in ended:
            if trial.state == state:
                kind = trial.reason if state == "failed" else trial.reason.partition(":")[0]
                kinds.setdefault(kind, []).append(trial)
        if not kinds:
            continue
        console.print(f"  {sum(map(len, kinds.values()))} of {len(ended)} trials {words}:", style="yellow")
        for alike in sorted(kinds.values(), key=len, reverse=True)[:SHOWN]:
            others = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
            console.print(Text(f"    {alike[0].id}{others}: {alike[0].reason}"), soft_wrap=True)
        console.print()


def show_unfinished(console: Console, run: RunDir) -> None:
    """Prints how far a study without a leaderboard has come, by valid: test is read at the end only."""
    from autoembed.space import SearchSpace
    from autoembed.study.results.leaderboard import best, eligible

    space, ended, done = SearchSpace.read(run.space), run.ended(), run.trials()
    metrics = columns(space.data.predicts, "valid")
    names = ("arm", "best trial so far", *map(two_lines, metrics), "done", "pruned", "failed")
    table = make_table(f"{run.name}: not finished", *names, left=2)
    counts = Counter((trial.arm, trial.state) for trial in ended)
    for arm in dict.fromkeys(trial.arm for trial in ended):
        own = [trial for trial in eligible(done, space) if trial.arm == arm]
        first = best(own, space) if own else None
        valid = first.result.valid if first else None
        cells = [f"{valid[one.name]:.4f}" if valid else "-" for one in metrics.values()]
        numbers = (str(counts[arm, state]) for state in ("done", "pruned", "failed"))
        table.add_row(arm, first.id if first else "-", *cells, *numbers)
    print_table(console, table)
    show_failures(console, ended)
    console.print("  Go on with it: autoembed search SPACE --resume (and --name, if it has one)")


def show_frontier(console: Console, curves: Curves, folder: Path) -> None:
    """Prints the mean test metric of each arm by size, and where the page and the picture are."""
    labels, sizes = curves.labels(), curves.plan.sizes
    metric = titled(curves.metric)
    title = f"{metric} within these bytes; seeds: {len(curves.seeds)}"
    table = make_table(title, "arm", *(f"{size:,}" for size in sizes))
    for arm, label in labels.items():
        means = [curves.mean(arm, size, curves.metric) for size in sizes]
        table.add_row(label, *("–" if mean is None else f"{mean:.4f}" for mean in means))
    print_table(console, table)
    console.print(f"  written to {folder}/frontier.md, .png, .svg and .parquet", soft_wrap=True)


def show_arms(console: Console, found: ArmsContent, path: Path) -> None:
    """Prints each arm's retraining over seeds, and how far the leader by valid is ahead on test."""
    metric, task, sign = titled(found["metric"]), task_of(found["metric"]), metric_of(found["metric"]).sign
    there = found["arms"][found["leader"]]["mean"]
    names = [task.metrics[0].monitor, *columns(task, "test", there=there), *of_labels(there, "test")]
    number = len(found["arms"][found["leader"]]["seeds"])
    table = make_table(
        f"each arm's best trial retrained from fresh weights, mean ± sd of {number} seeds",
        *(
            "arm",
            "trial",
            *map(titled, names),
            f"{found['leader']} ahead by\n{metric}",
            "p, paired",
        ),
        left=2,
    )
    for arm, one in found["arms"].items():
        cells = (f"{one['mean'][name]:.4f} ± {one['sd'][name]:.4f}" for name in names)
        gap = found["paired"].get(arm)
        apart = ("", "") if gap is None else (f"{sign * gap['mean']:.4f} ± {gap['sd']:.4f}", f"{gap['p']:.3f}")
        style = "bold green" if arm == found["leader"] else None
        table.add_row(arm, one["trial"], *cells, *apart, style=style)
    print_table(console, table)
    console.print(f"  written to {path}", soft_wrap=True)


def show_seeds(console: Console, trial: str, rows: pl.DataFrame, path: Path) -> None:
    """Prints a retraining over seeds with mean and standard deviation."""
    names = [name for name in rows.columns if name.startswith(("valid_", "test_"))]
    table = make_table(
        f"{trial}: its architecture retrained from fresh weights",
        *("seed", *(two_lines(name) for name in names), "best\nepoch", "s"),
    )
    for row in rows.iter_rows(named=True):
        cells = (f"{row[name]:.4f}" for name in names)
        table.add_row(str(row["seed"]), *cells, str(row["best_epoch"]), f"{row['seconds']:.1f}")
    table.add_section()
    spread = {"mean": rows.select(names).mean(), "sd": rows.select(names).std().fill_null(0.0)}
    for what, values in spread.items():
        table.add_row(what, *(f"{value:.4f}" for value in values.row(0)), "", "", style="bold")
    print_table(console, table)
    console.print(f"  written to {path}", soft_wrap=True)
