"""What the first lines of a text file tell of its layout: separator, header, and the format of Criteo's log."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from autoembed.data.files import Where, locate
from autoembed.data.spec import DataSpec
from autoembed.errors import DataError

_LINES, _LONGEST = 20, 1 << 16
_SEPARATORS = ("\t", ",", ";", "|")
_PLAIN = (".csv", ".tsv", ".txt", ".data", ".test", "")
_CRITEO = 40


def layout_of(source: Where, settings: Mapping[str, object], tell: Callable[[str], None]) -> dict[str, object]:
    """Keys of a `data:` section that the first lines of a text file suggest; none for other files.

    A line of 40 values that begins with a 0 or 1, the last 26 of them hexadecimal, is Criteo's. A header with numbers
    among its names is none: the columns are called c0, c1, ... then.
    """
    if settings.keys() & {"format", "separator", "header", "columns"}:
        return {}
    path = _file(source)
    if path is None or path.suffix.lower() not in _PLAIN:
        return {}
    lines = _head(path)
    if not lines:
        return {}
    counts = {sign: {line.count(sign) for line in lines} for sign in _SEPARATORS}
    even = [sign for sign, own in counts.items() if len(own) == 1 and max(own) > 0]
    sign = max(even, key=lambda one: max(counts[one])) if even else None
    if sign is None:
        return {} if path.suffix.lower() in (".csv", ".tsv") else {"format": "csv"}
    first = lines[0].split(sign)
    if sign == "\t" and len(first) == _CRITEO and first[0] in "01" and _hexadecimal(first[14:]):
        tell("the format is Criteo's: a label, 13 numbers and 26 categories, without a header")
        return {"format": "criteo"}
    found: dict[str, object] = {} if path.suffix.lower() in (".csv", ".tsv") else {"format": "csv"}
    if sign != ("\t" if path.suffix.lower() == ".tsv" else ","):
        found["separator"] = sign
        tell(f"values are separated by {sign!r}")
    names = [name.strip().strip('"') for name in first]
    if any(re.fullmatch(r"[-+]?\d+\.?\d*([eE][-+]?\d+)?", name) for name in names) or len(set(names)) < len(names):
        found |= {"header": False, "columns": [f"c{place}" for place in range(len(names))]}
        tell(f"the first line is no header: the columns are called c0 to c{len(names) - 1}")
    return found


def _file(source: Where) -> Path | None:
    """The first file of a table, None if it cannot be told before its format is."""
    try:
        return next(iter(locate(DataSpec(format="csv"), source).values()))[0]
    except DataError:
        return None


def _head(path: Path) -> list[str]:
    """The first whole lines of a text file; none of one that is not text."""
    with path.open("rb") as file:
        head = file.read(_LONGEST)
    if b"\0" in head:
        return []
    lines = head.decode("utf-8", errors="replace").splitlines()
    whole = lines[:-1] if len(head) == _LONGEST and len(lines) > 1 else lines
    return [line for line in whole if line][:_LINES]


def _hexadecimal(values: list[str]) -> bool:
    return all(re.fullmatch(r"[0-9a-f]{8}|", value) for value in values)
