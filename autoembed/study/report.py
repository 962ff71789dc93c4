"""What a study found, as tables for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from autoembed.study.leaderboard import Leaderboard, Row
from autoembed.study.run_dir import RunDir


def show_leaderboard(console: Console, run: RunDir, board: Leaderboard) -> None:
    """Prints the arms with the winner by valid marked, what was planted beside what was found, and the paths."""
    table = Table(title=f"{run.name}: best trial of each arm by {board.metric.replace('_', ' ')}", title_justify="left")
    for name in ("", "arm"):
        table.add_column(name, no_wrap=True)
    for name in (
        "valid AUC", "test AUC", "test logloss", "embedding", "all", "bytes", "search s", "retrain s", "trials"
    ):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    for row in board.rows:
        table.add_row(*_cells(row, board), style="bold" if row.trial == board.winner else None)
    console.print(table)


def _cells(row: Row, board: Leaderboard) -> list[str]:
    trials = f"{row.done}/{row.pruned}/{row.failed}"
    if row.valid is None or row.test is None:
        return ["", row.arm, *["-"] * 8, trials]
    return [
        "*" if row.trial == board.winner else "",
        row.arm,
        f"{row.valid.auc:.4f}",
        f"{row.test.auc:.4f}",
        f"{row.test.logloss:.4f}",
        f"{row.embedding_parameters:,}",
        f"{row.parameters:,}",
        f"{row.bytes:,}",
        f"{row.search_seconds:.1f}",
        f"{row.retrain_seconds:.1f}",
        trials,
    ]
