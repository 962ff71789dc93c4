"""The search spaces that ship with the package, by name."""

from __future__ import annotations

from pathlib import Path

from autoembed.errors import SpaceError, unknown

_PACKAGE = Path(__file__).parent


def spaces() -> dict[str, Path]:
    """Their files by name: in an installed package inside it, in a checkout beside it."""
    inside = _PACKAGE / "search_spaces"
    folder = inside if inside.is_dir() else _PACKAGE.parent / "search_spaces"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def space_file(space: Path) -> Path:
    """A search-space file, which may be named as `quickstart`: no such file here, no folder before it and no suffix.

    SpaceError lists the names that ship if it is none of them.
    """
    if space.is_file() or space.suffix or len(space.parts) != 1:
        return space
    known = spaces()
    if space.name not in known:
        raise SpaceError(f"there is no file {space} here; {unknown('search space', space.name, list(known))}")
    return known[space.name]
