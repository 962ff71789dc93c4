"""The command line's application, and what its commands have in common."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from autoembed.errors import DataError

app = typer.Typer(
    name="autoembed",
    help="Find the features, embedding widths and interactions a click model needs, and take it to production.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
INTERRUPTED = 130  # the status that typer gives Ctrl-C
Runs = Annotated[Path, typer.Option("--runs", help="Folder of the studies.")]
Run = Annotated[Path, typer.Argument(help="A study's folder, such as runs/quickstart.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N; overrides `device` in the search space.")]
Data = Annotated[str | None, typer.Option(help="File or directory with the data; overrides data.path.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The id that `autoembed submit` printed.")]
Server = Annotated[
    str, typer.Option(help="The Ray dashboard's address, http://HOST:8265.", envvar="RAY_API_SERVER_ADDRESS")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE of a space's data section, such as separator=';' or format=csv; repeatable."),
]
Which = Annotated[str | None, typer.Option(help="A trial's id, or an arm for its best; the study's best by default.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON in place of tables.")]


def print_json(content: object) -> None:
    """Prints plain data for other programs: one JSON document, NaN and infinity as null."""
    import json

    print(json.dumps(_finite(content), indent=1, ensure_ascii=False, default=str))


def _finite(node: object) -> object:
    if isinstance(node, dict):
        return {str(key): _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


def opening(command: Callable[..., None]) -> Callable[..., None]:
    """A command that opens a run folder, which may be a stranger's: it imports no module that the folder names."""

    @functools.wraps(command)
    def opened(*words: object, **named: object) -> None:
        from autoembed.plugins import without_imports

        with without_imports():
            command(*words, **named)

    return opened


def space_of(named: Path) -> Path:
    """The file of a search space, which may be one that ships with the package: then it says which file that is."""
    from autoembed.shipped import space_file

    return space_file(named, say)


def say(line: str) -> None:
    """Prints a line on stderr: what was taken."""
    print(line, file=sys.stderr)


def settings_of(options: list[str], flag: str = "--set") -> dict[str, object]:
    """Keys of a data section, such as separator=; and null_values=[NA]; DataError if one is written otherwise."""
    import yaml

    found: dict[str, object] = {}
    for option in options:
        name, sign, value = option.partition("=")
        if not sign or not name:
            raise DataError(f"{flag} must be KEY=VALUE, such as separator=';', but got {option!r}")
        try:
            found[name] = {"\\t": "\t"}.get(value, value) if name in ("separator", "quote") else yaml.safe_load(value)
        except yaml.YAMLError:
            raise DataError(f"{flag} {name} must have a value as in YAML, but got {value!r}") from None
        if name == "quote" and value in ("null", "none", ""):
            found[name] = None
    return found
