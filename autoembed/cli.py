"""The command line. ray, optuna and mlflow are imported by the commands that need them, and not for --help."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from autoembed.errors import AutoembedError

app = typer.Typer(
    name="autoembed",
    help="Find the features, embedding widths and interactions a click model needs, and take it to production.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
Runs = Annotated[Path, typer.Option("--runs", help="Folder of the studies.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N; goes before the file's.")]


@app.command()
def search(
    space: Annotated[Path, typer.Argument(help="A search-space file, such as search_spaces/planted.yaml.")],
    data: Annotated[str | None, typer.Option(help="File or directory with the data; goes before data.path.")] = None,
    runs: Runs = Path("runs"),
    name: Annotated[str | None, typer.Option(help="The study's name; the file's by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study of that name.")] = False,
    trials: Annotated[int | None, typer.Option(help="Trials per arm; goes before budget.trials.")] = None,
    device: Device = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs to use; all by default.")] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster; one of the study's own by default.")] = None,
) -> None:
    """Search architectures, retrain them, and compare them with the baselines."""
    from autoembed.study.report import show_leaderboard
    from autoembed.study.study import Request, run_study

    request = Request(
        space=space,
        data=data,
        runs=runs,
        name=name,
        resume=resume,
        trials=trials,
        device=device,
        cpus=cpus,
        address=address,
    )
    run, board = run_study(request)
    show_leaderboard(Console(), run, board)


@app.command()
def show(path: Path) -> None:
    """Show a run folder, an architecture or a bundle."""


def main() -> None:
    """Runs the command line; an error of the user's is one line on stderr and status 2."""
    try:
        app(standalone_mode=False)
    except AutoembedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
