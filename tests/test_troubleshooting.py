"""docs/troubleshooting.md says what the package says: each phrase of the page stands in its source."""

import ast
import re
import sys
from pathlib import Path

import pytest

import autoembed

sys.path.insert(0, str(Path(__file__).parent))
from cures import cure, unused
from reference import by_area, commands_page, messages_page
from reference_api import api_page, keys_page

PACKAGE = Path(autoembed.__file__).parent
PAGE = PACKAGE.parent / "docs" / "troubleshooting.md"


def source():
    """All text in string literals of the package, as one, without what is put in between."""
    texts = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else " * " for part in node.values)
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return plain("\n".join(texts))


def plain(text):
    return re.sub(r"[^a-z]+", " ", text.lower())


def messages():
    """The runs of plain words of each message of the page: capitals, dots and numbers stand for what differs."""
    for line in PAGE.read_text().splitlines():
        if not line.startswith("| ") or line.startswith("| the line says"):
            continue
        for message in line.split("|")[1].split("; "):
            parts = re.split(r"\.\.\.|\b[A-Z]+\b|--[a-z-]+( prediction)?|\d+|[(),]", message)
            yield pytest.param([plain(part or "").strip() for part in parts], id=message.strip()[:60])


TEXT = source()


@pytest.mark.parametrize("runs", list(messages()))
def test_the_page_tells_what_the_package_says(runs):
    assert any(len(run) > 6 and run in TEXT for run in runs), runs


def test_the_list_of_messages_is_that_of_the_source():
    assert (PAGE.parent / "messages.md").read_text() == messages_page(), "run: python tests/reference.py"


def test_each_message_has_a_cure():
    texts = [text for rows in by_area().values() for text, _ in rows]
    assert all(map(cure, texts))
    assert unused(texts) == []
    with pytest.raises(AssertionError, match="no cure for: nothing works"):
        cure("nothing works")


@pytest.mark.parametrize(
    ("page", "made"),
    [("cli.md", commands_page), ("keys.md", keys_page), ("api.md", api_page)],
    ids=["cli", "keys", "api"],
)
def test_a_page_of_the_reference_is_that_of_the_source(page, made):
    assert (PAGE.parent / page).read_text() == made(), "run: python tests/reference.py"
