"""Looking at the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoembed.cli.options import Json, Runs, app


@app.command()
def doctor(
    runs: Runs = Path("runs"),
    patience: Annotated[float, typer.Option(help="Seconds that Ray may take to start and end.", min=1)] = 240.0,
    json: Json = False,
) -> None:
    """Check what a study needs of this machine: versions, memory, disk, ports, MLflow, Ray. Status 1 on a problem."""
    import dataclasses

    from autoembed.cli.options import print_json
    from autoembed.study.doctor.checks import checks
    from autoembed.study.show.tables import stdout

    console, found = stdout(), []
    colours = {"OK": "green", "warning": "yellow", "problem": "bold red"}
    for check in checks(runs, patience):
        found.append(check)
        if json:
            continue
        console.print(f"[{colours[check.state]}]{check.state:<8}[/] {check.name:<15} ", end="")
        console.print(check.found, markup=False, soft_wrap=True)
        if check.remedy:
            console.print(f"{'':<24} → {check.remedy}", markup=False, soft_wrap=True)
    problems = sum(check.state == "problem" for check in found)
    if json:
        print_json({"ok": not problems, "checks": [dataclasses.asdict(check) for check in found]})
    if problems:
        raise typer.Exit(1)
