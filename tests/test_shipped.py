"""Search spaces by name, from any folder."""

import sys
from pathlib import Path

import pytest

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
