import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from autoembed.cli import main
from autoembed.ranking.ranking import Ranking


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"y": rng.integers(0, 2, 500), "a": rng.integers(0, 9, 500), "b": rng.integers(0, 5, 500)})
    path = tmp_path / "t.csv"
    frame.write_csv(path)
    return path


def command(monkeypatch, capsys, *words):
    """Status, stdout and stderr of `autoembed rank`."""
    monkeypatch.setattr(sys, "argv", ["autoembed", "rank", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def test_a_table_is_ranked_printed_and_written(table, monkeypatch, capsys, tmp_path):
    out = tmp_path / "new" / "r.parquet"
    status, text, _ = command(monkeypatch, capsys, table, "--label", "y", "--pairs", "all", "--top", "1", "--out", out)
    assert status == 0
    assert "2 columns by adjusted_mi" in text
    assert "1 pairs by synergy" in text
    assert len(Ranking.read(out).pairs) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--label", "click"], "there is no label column 'click'"),
        (["--label", "y", "--score", "gini"], "unknown score 'gini': must be one of adjusted_mi"),
        (["--label", "y", "--pairs", "some"], "--pairs must be a number from 1 on, or all, but got some"),
        (["--label", "y", "--top", "0"], "--top must be at least 1, but got 0"),
        (["--label", "y", "--threads", "0"], "--threads must be at least 1, but got 0"),
    ],
)
def test_a_wrong_word_is_one_line_and_status_2(table, monkeypatch, capsys, words, message):
    status, _, err = command(monkeypatch, capsys, table, *words)
    assert status == 2
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y,a\n1,2\n1,3\n", "label 'y' must have two classes or more, but all 2 rows are '1'"),
        ("y,a\n1,2\n", "at least 2 rows with a label, but has 1"),
        ("y,a\n", "at least 2 rows with a label, but has 0"),
        ('y,a\n1,2\n0,"3', "has 3 lines and a quote that nothing closes: set data.quote"),
        ("", "cannot read"),
        ("y,a,a\n1,2,3\n", "more than one column named a"),
    ],
)
def test_a_wrong_table_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, text, message):
    (tmp_path / "t.csv").write_text(text)
    status, _, err = command(monkeypatch, capsys, tmp_path / "t.csv", "--label", "y")
    assert status == 2
    assert err.count("\n") == 1
    assert message in err


def test_the_way_to_singles_loads_nothing_slow(table):
    code = (
        "import sys; from autoembed.ranking.ranking import rank_table; rank_table(sys.argv[1], label='y'); "
        "print(sorted({'numba', 'torch', 'scipy', 'sklearn', 'rich', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, table], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
