"""A study as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoembed.cli.options import Data, Device, Run, app, opening
from autoembed.errors import DataError, StudyError


@app.command()
@opening
def report(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="The file to write; RUN/report.html by default.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also measure what the model loses without each column.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(help="First retrain each arm's best over so many seeds, for paired tests.")
    ] = None,
    data: Data = None,
    device: Device = None,
) -> None:
    """Write a study as one HTML page: verdict, arms, bytes, dims and bits, columns, curves, costs."""
    from autoembed.study.show.progress import Bar
    from autoembed.study.show.tables import stdout
    from autoembed.study.study import Study

    if out is not None and out.suffix not in (".html", ".htm"):
        raise DataError(f"--out must end in .html, but got {out}")
    if out is not None and out.is_dir():
        raise StudyError(f"--out must be a file, but {out} is a folder")
    with Bar() as bar:
        study = Study.open(run, data=data, shown=bar)
        if seeds is not None:
            study.retrain_arms(seeds=seeds, device=device)
        path = study.report(out, explained=explain, device=device)
    stdout().print(f"report written to {path} ({path.stat().st_size:,} bytes)", soft_wrap=True, markup=False)
