"""Search spaces by name, from any folder."""

import sys
from pathlib import Path

import polars as pl
import pytest

import autoembed as ae
import autoembed.cli
from autoembed import shipped
from autoembed.errors import SpaceError
from autoembed.shipped import space_file, spaces

SPACES = Path(__file__).parents[1] / "search_spaces"


def test_a_name_is_the_space_that_ships(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert set(spaces()) == {path.stem for path in SPACES.glob("*.yaml")}
    assert space_file(Path("quickstart")).read_text() == (SPACES / "quickstart.yaml").read_text()


def test_an_installed_package_has_them_inside(tmp_path, monkeypatch):
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces" / "mine.yaml").touch()
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path)
    assert spaces() == {"mine": tmp_path / "search_spaces" / "mine.yaml"}


@pytest.mark.parametrize("named", ["quickstart.yaml", "other/quickstart", "/quickstart"])
def test_a_path_or_a_suffix_is_a_file(tmp_path, monkeypatch, named):
    monkeypatch.chdir(tmp_path)
    assert space_file(Path(named)) == Path(named)


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text("stages: []\n")
    assert space_file(Path("quickstart")) == Path("quickstart")


def test_an_unknown_name_lists_those_that_ship(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SpaceError, match="no file quikstart here; unknown search space 'quikstart': must be one of adult"
    ):
        space_file(Path("quikstart"))


def test_the_command_line_tells_which_file_it_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words, line in (
        (["search", "quickstart", "--trials", "0"], f"search space quickstart: {SPACES / 'quickstart.yaml'}"),
        (["search", "quikstart"], "error: there is no file quikstart here"),
        (["frontier", "frontier_planted", "--bytes", "x"], f"frontier_planted: {SPACES / 'frontier_planted.yaml'}"),
    ):
        monkeypatch.setattr(sys, "argv", ["autoembed", *words])
        with pytest.raises(SystemExit) as ended:
            autoembed.cli.main()
        assert ended.value.code == 2
        assert line in capsys.readouterr().err


def ranked(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["autoembed", *words])
    with pytest.raises(SystemExit) as ended:
        autoembed.cli.main()
    return ended.value.code or 0, *capsys.readouterr()


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A package that ships one space, `tiny`, and an empty folder to work in."""
    (tmp_path / "package" / "search_spaces").mkdir(parents=True)
    file = tmp_path / "package" / "search_spaces" / "tiny.yaml"
    file.write_text(
        "data: {planted: {rows: 500, marginal: [5], xor: [], low_rank: [], noise: [9]}}\nstages: [{method: uniform}]\n"
    )
    (tmp_path / "here").mkdir()
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "package")
    monkeypatch.chdir(tmp_path / "here")
    return file


def test_a_name_is_ranked_and_dry_run_as_the_file_is(small, monkeypatch, capsys):
    status, out, err = ranked(monkeypatch, capsys, "rank", "tiny")
    assert (status, err) == (0, f"search space tiny: {small}\n")
    assert "marginal_0" in out
    status, out, err = ranked(monkeypatch, capsys, "search", "tiny", "--dry-run", "--trials", "1")
    assert status == 0, err
    assert f"search space tiny: {small}" in err
    assert "uniform: 1 trial" in out
    assert ranked(monkeypatch, capsys, "rank", "tinny") == (
        2,
        "",
        "error: there is no file tinny here; unknown search space 'tinny': must be one of tiny\n",
    )


def test_a_folder_a_file_or_a_pattern_is_data_still(small, monkeypatch, capsys):
    Path("tiny").mkdir()
    pl.DataFrame({"a": [1, 2] * 50, "label": [0, 1] * 50}).write_parquet("tiny/t.parquet")
    pl.DataFrame({"b": [1, 2] * 50, "label": [0, 1] * 50}).write_csv("t.csv")
    assert "a" in ranked(monkeypatch, capsys, "rank", "tiny")[1].split()
    assert "b" in ranked(monkeypatch, capsys, "rank", "t*")[1].split()
    assert "no such file or directory" in ranked(monkeypatch, capsys, "rank", "other.csv")[2]


def test_python_knows_the_names_and_tells_the_log(small, caplog):
    caplog.set_level("INFO", "autoembed")
    assert ae.SearchSpace.read("tiny") == ae.SearchSpace.read(small) == ae.SearchSpace.read(str(small))
    assert caplog.messages == [f"search space tiny: {small}"]
    assert set(ae.rank("tiny").table["feature"]) == {"marginal_0", "noise_0"}
    with pytest.raises(SpaceError, match="unknown search space 'tinny': must be one of tiny"):
        ae.search("tinny")
    with pytest.raises(ae.StudyError, match="trials must be at least 1, but got 0"):
        ae.search("tiny", trials=0)
    assert caplog.messages[-1] == f"search space tiny: {small}"
