"""Two studies side by side."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from autoembed.errors import StudyError, option
from autoembed.space import SearchSpace
from autoembed.study.results.leaderboard import Leaderboard, Row
from autoembed.study.run_dir import RunDir
from autoembed.study.show.tables import make_table, print_table


def is_study(path: Path) -> bool:
    """Whether a path is a study's folder."""
    return RunDir(path).space.is_file()


def show_compared(console: Console, first: Path, second: Path) -> None:
    """Prints the best trial of each arm in both studies, and what about the studies differs.

    StudyError if one of them has no leaderboard yet.
    """
    runs = RunDir(first), RunDir(second)
    boards = [_board(run) for run in runs]
    rows = [{row.arm: row for row in board.rows} for board in boards]
    names = [run.name if runs[0].name != runs[1].name else str(run.path) for run in runs]
    table = make_table(
        f"the best trial of each arm in {names[0]} and in {names[1]}",
        *("arm", "valid AUC\nfirst", "\nsecond", "test AUC\nfirst", "\nsecond", "\nchange"),
        *("embedding bytes\nfirst", "\nsecond", "\nchange"),
    )
    for arm in dict.fromkeys([*rows[0], *rows[1]]):
        table.add_row(arm, *_cells(*(own.get(arm) for own in rows)))
    print_table(console, table)
    for name, board in zip(names, boards, strict=True):
        console.print(f"  the best of {name} is {board.winner}", soft_wrap=True)
    for line in differences(*runs):
        console.print(f"  {line}", style="yellow", soft_wrap=True)


def _board(run: RunDir) -> Leaderboard:
    found = Leaderboard.read(run)
    if found is None:
        raise StudyError(f"{run.path} has no leaderboard yet: go on with it by {option('resume', True)}")
    return found


def _cells(first: Row | None, second: Row | None) -> list[str]:
    valid, test, held = [], [], []
    for row in (first, second):
        valid.append(None if row is None or row.valid is None else row.valid.auc)
        test.append(None if row is None or row.test is None else row.test.auc)
        held.append(None if row is None else row.embedding_bytes)
    auc = ["-" if value is None else f"{value:.4f}" for value in (*valid, *test)]
    bytes_ = ["-" if value is None else f"{value:,}" for value in held]
    moved = "-" if None in test else f"{test[1] - test[0]:+.4f}"  # type: ignore[operator]
    grown = "-" if None in held or not held[0] else f"{held[1] / held[0] - 1:+.0%}"  # type: ignore[operator]
    return [*auc, moved, *bytes_, grown]


def differences(first: RunDir, second: RunDir) -> list[str]:
    """What must be known of two studies before they are compared, in whole sentences."""
    found = []
    facts = [run.read_json("dataset.json") or {} for run in (first, second)]
    if facts[0].get("fingerprint") != facts[1].get("fingerprint"):
        found.append("Their data differ, so do the rows that the metrics are of.")
    elif facts[0].get("fields") != facts[1].get("fields"):
        found.append("The ranking has kept other columns in each of them.")
    spaces = [SearchSpace.read(run.space).model_dump() for run in (first, second)]
    other = [key for key in spaces[0] if spaces[0][key] != spaces[1][key] and key != "data"]
    if other:
        found.append(f"Their search spaces differ in {', '.join(other)}.")
    return found
