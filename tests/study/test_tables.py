"""Tables on narrow terminals, and two studies side by side."""

import io
import shutil
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from autoembed.study.run_dir import RunDir
from autoembed.study.show.report import show_leaderboard
from autoembed.study.show.tables import make_table, print_table


def printed(width, show):
    console = Console(width=width, force_terminal=True, color_system=None, record=True, file=io.StringIO())
    show(console)
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_terminal_breaks_no_number(finished, width):
    run, board = finished
    lines = printed(width, lambda console: show_leaderboard(console, run, board))
    rows = [line for line in lines if line.lstrip("► ").startswith(("dnis", "uniform"))]
    assert all(len(line) <= width for line in rows)
    for row in board.rows:
        found = " ".join(line for line in rows if row.arm in line.split()).split()
        for value in (f"{row.test.auc:.4f}", f"{row.test.logloss:.4f}", f"{row.embedding_bytes:,}", f"{row.bytes:,}"):
            assert value in found
    assert (len(rows) > len(board.rows)) == (width < 100)


def test_arms_are_shown_with_the_metric_that_they_were_chosen_by(finished):
    run, board = finished
    by = board.model_copy(update={"metric": "valid_logloss"})
    lines = printed(140, lambda console: show_leaderboard(console, run, by))
    assert "by valid logloss" in lines[0]
    for row in board.rows:
        cells = next(line.lstrip("► ").split() for line in lines if line.lstrip("► ").split()[:1] == [row.arm])
        assert cells[1:3] == [f"{row.valid.logloss:.4f}", f"{row.test.auc:.4f}"]


def test_a_table_whose_names_fill_the_terminal_stays_whole():
    table = make_table("names", "name", "value")
    table.add_row("x" * 50, "1")
    lines = printed(40, lambda console: print_table(console, table))
    assert [line.split() for line in lines if "x" in line] == [["x" * 50, "1"]]


def test_two_studies_are_compared_arm_by_arm(finished, cli, tmp_path):
    run, board = finished
    other = Path(shutil.copytree(run.path, tmp_path / "runs" / "other"))
    space = yaml.safe_load((other / "space.yaml").read_text())
    (other / "space.yaml").write_text(yaml.safe_dump(space | {"embedding": {"dim": 8, "blocks": 3}}))
    status, out, err = cli("compare", run.path, other)
    assert (status, err) == (0, "")
    for row in board.rows:
        cells = next(line.split() for line in out.splitlines() if line.split()[:1] == [row.arm])
        auc = [f"{row.valid.auc:.4f}"] * 2 + [f"{row.test.auc:.4f}"] * 2
        assert cells == [row.arm, *auc, "+0.0000", *[f"{row.embedding_bytes:,}"] * 2, "+0%"]
    assert "Their search spaces differ in embedding." in out
    facts = RunDir(other).read_json("dataset.json")
    RunDir(other).write_json("dataset.json", facts | {"fingerprint": "another"})
    assert "Their data differ" in cli("compare", run.path, other)[1]


def test_a_study_is_compared_with_a_study(finished, cli, tmp_path):
    run, _ = finished
    status, _, err = cli("compare", run.path, tmp_path / "table.csv")
    assert (status, err.count("\n")) == (2, 1)
    assert f"{run.path} is a study and {tmp_path / 'table.csv'} is none" in err
    other = Path(shutil.copytree(run.path, tmp_path / "runs" / "other"))
    (other / "leaderboard.json").unlink()
    assert "has no leaderboard yet" in cli("compare", run.path, other)[2]


def test_a_front_needs_a_cost(finished, cli, tmp_path):
    status, _, err = cli("export", finished[0].path, tmp_path / "out", "--pick", "knee")
    assert status == 2
    assert "add a cost to its objective, such as {maximize: valid.auc, minimize: bytes}" in err
    assert not (tmp_path / "out").exists()
