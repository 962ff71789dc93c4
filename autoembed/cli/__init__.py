"""The command line, its modules imported in the order in which --help lists their commands.

ray, optuna and mlflow are imported by the commands that need them, and not for --help.
"""

from __future__ import annotations

import gc
import importlib
import sys
from typing import Annotated

import typer

from autoembed import __version__
from autoembed.cli import init, study

# isort: split
from autoembed.cli import show

# isort: split
from autoembed.cli import report, watch

# isort: split
from autoembed.cli import rank

# isort: split
from autoembed.cli import export, predict, refresh, serve

# isort: split
from autoembed.cli import jobs

# isort: split
from autoembed.cli import doctor

# isort: split
from autoembed.cli.options import INTERRUPTED, app
from autoembed.errors import AutoembedError, StudyError, in_one_line, printable, speak_of_flags

__all__ = [
    "app",
    "doctor",
    "export",
    "init",
    "jobs",
    "main",
    "predict",
    "rank",
    "refresh",
    "report",
    "serve",
    "show",
    "study",
    "watch",
]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"autoembed {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--import", metavar="MODULE", help="Import a module of your own, such as a bundle's backbone; repeatable."
        ),
    ] = None,
) -> None:
    """Options of autoembed itself."""
    for module in modules or ():
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise StudyError(f"--import {module} failed: {error}") from None


def main() -> None:
    """Runs the command line; an error of the user's is one line on stderr and status 2, Ctrl-C status 130."""
    speak_of_flags()
    try:
        status = app(standalone_mode=False)
    except AutoembedError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        show_usage = getattr(error, "show", None)
        if show_usage is not None:
            show_usage()
            sys.exit(getattr(error, "exit_code", 2))
        line = in_one_line(error)
        if line is None:
            raise
        print(f"error: {printable(line)}", file=sys.stderr)
        sys.exit(2)
    finally:
        gc.enable()  # `rank` does without
    if status == INTERRUPTED:
        print("interrupted: what a study has done is kept; `autoembed search ... --resume` goes on", file=sys.stderr)
    sys.exit(status if isinstance(status, int) else 0)
