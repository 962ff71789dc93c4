"""Tables on a terminal that break no number."""

from __future__ import annotations

import os
import sys

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.style import StyleType
from rich.table import Table
from rich.text import Text

from autoembed.task import titled

_LONGEST = 120


def stdout() -> Console:
    """The console for results; wide where no terminal says how wide it is."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", 120)))


def make_table(title: str, *columns: str, left: int = 1) -> Table:
    """A table without lines, its first `left` columns flush left: they name the rows."""
    table = _empty(title)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < left else "right", no_wrap=True, vertical="bottom")
    return table


class _PlainTable(Table):
    """A table whose cells are shown as they are: no markup, and no control character reaches the terminal."""

    def add_row(self, *cells: RenderableType | None, style: StyleType | None = None, end_section: bool = False) -> None:
        plain = [Text(legible(cell)) if isinstance(cell, str) else cell for cell in cells]
        for cell in plain:
            if isinstance(cell, Text):
                cell.plain = legible(cell.plain)
        super().add_row(*plain, style=style, end_section=end_section)


def legible(text: str, longest: int = _LONGEST) -> str:
    """Text on one line, without control characters and not longer than `longest`."""
    safe = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
    return safe if len(safe) <= longest else f"{safe[: longest - 1]}…"


def _empty(title: str | None) -> Table:
    return _PlainTable(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def print_table(console: Console, table: Table) -> None:
    """Prints a table whole: a terminal that is too narrow gets the columns in parts, each with the rows' names."""
    options = console.options.update(max_width=1000)
    for column in table.columns:  # once; left to itself, the table would measure every cell three times
        cells = [column.header, *column.cells]
        column.width = max(Measurement.get(console, options, cell).maximum for cell in cells)
    width = Measurement.get(console, options, table).maximum
    parts = _parts(table, console.width) if width > console.width and console.is_terminal else [table]
    console.width = max(console.width, *(Measurement.get(console, options, part).maximum for part in parts))
    for part in parts:
        console.print(part)


def _parts(table: Table, width: int) -> list[Table]:
    """The table cut into some of its columns each, with those that name the rows before them."""
    flush = [column.justify for column in table.columns]
    names = flush.index("right") if "right" in flush else 1
    # A column is as wide as its cells and the spaces between two.
    room = width - sum((table.columns[place].width or 0) + 2 for place in range(names))
    if room <= 0:
        return [table]
    groups: list[list[int]] = []
    left = 0
    for place in range(names, len(table.columns)):
        own = (table.columns[place].width or 0) + 2
        if not groups or own > left:
            groups.append([])
            left = room
        groups[-1].append(place)
        left -= own
    return [_part(table, [*range(names), *group], first=number == 0) for number, group in enumerate(groups)]


def _part(table: Table, places: list[int], *, first: bool) -> Table:
    part = _empty(str(table.title) if first else None)
    columns = [table.columns[place] for place in places]
    for column in columns:
        part.add_column(
            column.header, justify=column.justify, no_wrap=True, vertical=column.vertical, width=column.width
        )
    for row, cells in zip(table.rows, zip(*(column.cells for column in columns), strict=True), strict=True):
        part.add_row(*cells, style=row.style, end_section=row.end_section)
    return part


def two_lines(column: str) -> str:
    """The heading of a metric's column, a word a line."""
    return titled(column).replace(" ", "\n")
