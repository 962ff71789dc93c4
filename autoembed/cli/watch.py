"""Looking at studies from another terminal."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from autoembed.cli.options import Json, Run, Runs, app, opening, print_json
from autoembed.errors import StudyError


@app.command("ls")
@opening
def ls(runs: Runs = Path("runs"), json: Json = False) -> None:
    """List the studies of a folder: state, best arm, trials, size, and when each changed."""
    from autoembed.study.overview import studies
    from autoembed.study.show.tables import stdout
    from autoembed.study.show.watching import listed, show_studies

    if not runs.is_dir():
        raise StudyError(f"there is no folder {runs}: name that of the studies by --runs")
    rows = [listed(run) for run in studies(runs)]
    if json:
        print_json(rows)
    elif rows:
        show_studies(stdout(), rows, f"{len(rows)} studies in {runs}")
    else:
        print(f"no studies in {runs}")


@app.command()
@opening
def watch(
    run: Run,
    once: Annotated[bool, typer.Option("--once", help="Print how it is now, and end.")] = False,
    every: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 2.0,
) -> None:
    """Watch a study that runs in another terminal: time left, the best of each arm, memory. It ends with the study."""
    import time

    from autoembed.study.overview import look
    from autoembed.study.run_dir import RunDir
    from autoembed.study.show import watching
    from autoembed.study.show.tables import stdout

    found = RunDir.existing(run)
    if once:
        stdout().print(watching.frame(look(found), time.time()))
        return
    with contextlib.suppress(KeyboardInterrupt):  # the study itself goes on
        watching.watch(found, stdout(), every)
