"""Pages: each block of code is run by a test, commands have their options, lists and tables are such."""

import re
import shlex

import pytest
import typer
import yaml

from autoembed.cli import app
from autoembed.space import SearchSpace
from tests.pages import BLOCK, PAGES, ROOT, blocks
from tests.serving.conftest import make
from tests.test_refresh import logs

COMMAND = re.compile(r"^(?:\$ |\S*/bin/)?autoembed ")
STAGES = {"stages": [{"method": "dnis"}], "backbone": {"name": "deepfm"}, "budget": {"width": 2}}
# What runs the blocks of a page as they stand: all commands, all Python and all YAML.
RUN_BY = {
    "README.md": (".ci/run", "tests/study/test_python.py", "tests/study/test_long_pages.py"),
    "cluster.md": ("tests/study/test_cluster_page.py",),
    "contributing.md": ("tests/test_contributing.py",),
    "export.md": ("tests/study/test_export_page.py", "tests/test_pages.py"),
    "extend.md": ("tests/test_extend.py",),
    "frontier.md": ("tests/study/test_long_pages.py",),
    "production.md": ("tests/study/test_production.py",),
    "python.md": ("tests/study/test_python.py",),
    "reproduce.md": ("tests/study/test_long_pages.py",),
    "runs.md": ("tests/study/test_served_by_mlflow.py", "tests/test_pages.py"),
    "search-spaces.md": ("tests/study/test_long_pages.py",),
    "serving.md": ("tests/serving/test_page.py", "tests/serving/test_image.py", "tests/study/test_served_by_mlflow.py"),
    "tutorial-adult.md": ("tests/study/test_tutorial.py",),
}
PROGRAM = re.compile(r"^(\$ )?(\S*/)?(autoembed|python3?|pip|mlflow|ray|docker|kubectl|curl|pytest) ", re.MULTILINE)


def cases(kinds):
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


@pytest.mark.parametrize(("page", "text"), list(cases({"yaml"})))
def test_yaml_is_valid(page, text):
    known = yaml.safe_load(text)
    if page.name == "cluster.md":  # Ray's and Kubernetes': tests/study/test_cluster.py
        return
    space = {key: value for key, value in STAGES.items() if key not in known} | known
    SearchSpace.parse(space)


def test_every_block_is_run_by_a_test():
    held = {page.name: BLOCK.findall(page.read_text()) for page in PAGES}
    assert RUN_BY.keys() == {name for name, found in held.items() if any(kind for kind, _ in found)}
    for name, tests in RUN_BY.items():
        for path in tests:
            assert name in (ROOT / path).read_text(), f"{path} does not name {name}"
    for name, found in held.items():
        assert {kind for kind, _ in found} <= {"", "bash", "sh", "json", "python", "yaml"}
        shown = [text for kind, text in found if not kind and PROGRAM.search(text)]
        assert not shown, f"{name} has commands in a block that says no language"


def test_the_python_of_runs_md_predicts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = logs(0, 3000)
    make(tmp_path / "runs" / "quickstart" / "best", train=rows)
    rows.write_parquet("clicks.parquet")
    (text,) = blocks("runs.md", "python")
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
