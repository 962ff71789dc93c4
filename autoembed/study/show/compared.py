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
    runs, boards = boards_of(first, second)
    rows = [{row.arm: row for row in board.rows} for board in boards]
    names = [run.name if runs[0].name != runs[1].name else str(run.path) for run in runs]
    metric = boards[0].predicts.metrics[0]
    table = make_table(
        f"the best trial of each arm in {names[0]} and in {names[1]}",
        *("arm", f"valid {metric.title}\nfirst", "\nsecond", f"test {metric.title}\nfirst", "\nsecond", "\nchange"),
        *("embedding bytes\nfirst", "\nsecond", "\nchange"),
    )
    for arm in dict.fromkeys([*rows[0], *rows[1]]):
        table.add_row(arm, *_cells(metric.name, *(own.get(arm) for own in rows)))
    print_table(console, table)
    for name, board in zip(names, boards, strict=True):
        console.print(f"  the best of {name} is {board.winner}", soft_wrap=True)
    for line in differences(*runs):
        console.print(f"  {line}", style="yellow", soft_wrap=True)


def boards_of(first: Path, second: Path) -> tuple[tuple[RunDir, RunDir], list[Leaderboard]]:
    """The folders and leaderboards of two studies; StudyError if one of them has none yet."""
    runs = RunDir(first), RunDir(second)
    return runs, [_board(run) for run in runs]


def _board(run: RunDir) -> Leaderboard:
    found = Leaderboard.read(run)
    if found is None:
        raise StudyError(f"{run.path} has no leaderboard yet: go on with it by {option('resume', True)}")
    return found


def _cells(metric: str, first: Row | None, second: Row | None) -> list[str]:
    rows = (first, second)
    valid = [None if row is None or row.valid is None else row.valid[metric] for row in rows]
    before, after = (None if row is None or row.test is None else row.test[metric] for row in rows)
    held, now = (None if row is None else row.embedding_bytes for row in rows)
    quality = ["-" if value is None else f"{value:.4f}" for value in (*valid, before, after)]
    bytes_ = ["-" if value is None else f"{value:,}" for value in (held, now)]
    moved = "-" if before is None or after is None else f"{after - before:+.4f}"
    grown = "-" if not held or now is None else f"{now / held - 1:+.0%}"
    return [*quality, moved, *bytes_, grown]


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
