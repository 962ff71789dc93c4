"""Blocks of code of the pages that no other test runs: commands have their options, YAML is a search space."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from autoembed.cli import app
from autoembed.space import SearchSpace
from tests.serving.conftest import make
from tests.test_refresh import logs

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^(?:\$ |\S*/bin/)?autoembed ")
# Python that a test runs: here by its page, elsewhere as a part of the page.
RUN = {"README.md", "python.md", "extend.md", "export.md", "serving.md", "runs.md"}
STAGES = {"stages": [{"method": "dnis"}], "backbone": {"name": "deepfm"}, "budget": {"width": 2}}


def blocks(kinds):
    for page in PAGES:
        for n, (kind, text) in enumerate(BLOCK.findall(page.read_text())):
            if kind in kinds:
                yield pytest.param(page, text, id=f"{page.name}-{n}")


def commands():
    for page in PAGES:
        for _, text in BLOCK.findall(page.read_text()):
            for line in text.replace("\\\n", " ").splitlines():
                if COMMAND.match(line.strip()):
                    yield pytest.param(line.strip(), id=f"{page.name}: {line.strip()[:60]}")


@pytest.mark.parametrize("line", list(commands()))
def test_a_command_exists_with_its_options(line):
    words = shlex.split(re.split(r" [|>&]+ |; | && ", line)[0].removeprefix("$ "), comments=True)[1:]
    root = typer.main.get_command(app)
    name, command, rest = root.resolve_command(root.make_context("autoembed", words, resilient_parsing=True), words)
    command.make_context(name, list(rest), resilient_parsing=False).close()


def test_a_wrong_option_is_found():
    with pytest.raises(Exception, match="No such option: --colour"):
        test_a_command_exists_with_its_options("autoembed show runs/a --colour")


@pytest.mark.parametrize(("page", "text"), list(blocks({"yaml"})))
def test_yaml_is_valid(page, text):
    known = yaml.safe_load(text)
    if known is None or page.name == "cluster.md":  # one line for editors; tests/study/test_cluster.py has the other
        return
    space = {key: value for key, value in STAGES.items() if key not in known} | known
    SearchSpace.parse(space)


@pytest.mark.parametrize(("page", "text"), list(blocks({"python"})))
def test_python_is_run_by_a_test(page, text):
    compile(text, page.name, "exec")
    assert page.name in RUN


def test_the_python_of_runs_md_predicts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = logs(0, 3000)
    make(tmp_path / "runs" / "quickstart" / "best", train=rows)
    rows.write_parquet("clicks.parquet")
    (text,) = [text for kind, text in BLOCK.findall((ROOT / "docs" / "runs.md").read_text()) if kind == "python"]
    names: dict[str, object] = {}
    exec(compile(text, "runs.md", "exec"), names)
    assert len(names["scores"]) == len(rows)


def loose(text):
    """Lines of lists and tables that Markdown takes for text: a list after text, rows of a table without its head."""
    lines = BLOCK.sub(lambda block: "\n" * block[0].count("\n"), text).splitlines()
    for n, line in enumerate(lines):
        before = lines[n - 1] if n else ""
        after = lines[n + 1] if n + 1 < len(lines) else ""
        starts = not before.strip() or before.startswith("#")
        listed = re.match(r"(\d+\.|[-*]) ", line) and not starts and not re.match(r"\s|(\d+\.|[-*]) ", before)
        row = line.startswith("|") and not before.startswith("|") and not (starts and re.match(r"\|[-:| ]+$", after))
        if listed or row:
            yield f"line {n + 1}: {line[:60]}"


@pytest.mark.parametrize(
    "page", [*PAGES, *sorted((ROOT / "docs" / "results").glob("*.md"))], ids=lambda page: page.name
)
def test_lists_and_tables_are_rendered_as_such(page):
    assert list(loose(page.read_text())) == []


def test_text_that_is_no_list_is_found():
    assert list(loose("Each\n1. one\n")) == ["line 2: 1. one"]
    assert list(loose("| a |\n|---|\n| 1 |\n\n| 2 |\n")) == ["line 5: | 2 |"]
    assert list(loose("Each\n\n- one\n  more\n- two\n\n| a |\n|---|\n")) == []
