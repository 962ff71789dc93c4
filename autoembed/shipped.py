"""The search spaces that ship with the package, by name."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

from autoembed.errors import SpaceError, unknown

_PACKAGE = Path(__file__).parent
_NAME = r"[A-Za-z0-9_-]+"  # of what may be a space that ships, and is no pattern of files


def spaces() -> dict[str, Path]:
    """Their files by name: in an installed package inside it, in a checkout beside it."""
    inside = _PACKAGE / "search_spaces"
    folder = inside if inside.is_dir() else _PACKAGE.parent / "search_spaces"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def space_file(space: Path, tell: Callable[[str], None] | None = None) -> Path:
    """A search-space file, which may be named as `quickstart`: no such file here, no folder before it and no suffix.

    `tell`, the logger `autoembed` by default, is told which file a name stands for. SpaceError lists the names that
    ship if it is none of them.
    """
    if space.is_file() or space.suffix or len(space.parts) != 1:
        return space
    known = spaces()
    if space.name not in known:
        raise SpaceError(f"there is no file {space} here; {unknown('search space', space.name, list(known))}")
    found = known[space.name]
    (tell or logging.getLogger("autoembed").info)(f"search space {space}: {found}")
    return found


def space_or_data(source: str, tell: Callable[[str], None] | None = None) -> tuple[str, bool]:
    """What is ranked, and whether it is a search-space file: one that ends in .yaml or .yml, or that ships by its name.

    A file or folder here of a name that ships comes first. SpaceError for a plain name of neither.
    """
    if re.fullmatch(_NAME, source) and not Path(source).exists():
        return str(space_file(Path(source), tell)), True
    return source, source.endswith((".yaml", ".yml"))
