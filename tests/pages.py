"""What stands in the blocks of code of the README and of the pages in docs/."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page, *kinds):
    """The text of each block of these kinds, such as sh; page is README.md or the name of one in docs/."""
    text = (ROOT / page if page == "README.md" else ROOT / "docs" / page).read_text()
    return [block for kind, block in BLOCK.findall(text) if kind in kinds]


def lines(block):
    """The lines of a block of commands, one for each command."""
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def commands(page):
    """The words of each command of autoembed that stands in a block of the page, without `autoembed`."""
    found = [shlex.split(line, comments=True) for block in blocks(page, "sh") for line in lines(block)]
    return [words[1:] for words in found if words[0] == "autoembed"]
