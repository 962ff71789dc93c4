"""Scoring tables with a bundle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from autoembed.cli.options import Settings, app, settings_of
from autoembed.errors import DataError
from autoembed.writing import beside


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder, such as runs/quickstart/best.")],
) -> None:
    """Check a bundle: hashes, schema, and that it still predicts what it did when it was written."""
    from autoembed.bundle import verify_bundle
    from autoembed.study.show.tables import stdout

    for line in verify_bundle(bundle):
        stdout().print(line, soft_wrap=True, markup=False)


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder, such as runs/quickstart/best.")],
    table: Annotated[str, typer.Argument(help="A raw table with the bundle's columns.")],
    out: Annotated[Path, typer.Option(help="Where to write predictions: .parquet or .csv.")] = Path(
        "predictions.parquet"
    ),
    keep: Annotated[
        list[str] | None,
        typer.Option(help="A column to copy beside the predictions, or several with commas between them; repeatable."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    max_unknown: Annotated[
        float | None, typer.Option(help="Score nothing if a column has a larger share of unknown values, such as 0.2.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="A column, such as a user's id, within whose values quality is told as well.")
    ] = None,
    settings: Settings = None,
) -> None:
    """Score a raw table with a bundle; values that training did not see are scored as unknown."""
    from autoembed.bundle import load_bundle
    from autoembed.scoring import score_table
    from autoembed.study.show.progress import Bar
    from autoembed.study.show.rankings import show_coverage
    from autoembed.study.show.tables import stdout

    if out.suffix not in (".parquet", ".csv"):
        raise DataError(f"--out must end in .parquet or .csv, but got {out}")
    if max_unknown is not None and not 0 <= max_unknown <= 1:
        raise DataError(f"--max-unknown must be a share from 0 to 1, but got {max_unknown:g}")
    with Bar() as bar:
        bar.step("predict", 0, 1)
        scored = score_table(
            load_bundle(bundle),
            table,
            keep=keep or [],
            device=device,
            settings=settings_of(settings or []),
            max_unknown=max_unknown,
            group=group,
            progress=bar.step if sys.stderr.isatty() else None,
        )
    console = stdout()
    for note in scored.notes:
        console.print(f"  {note}", soft_wrap=True, markup=False)
    show_coverage(console, scored.coverage)
    for warning in scored.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    with beside(out) as temporary:
        if out.suffix == ".csv":
            scored.table.write_csv(temporary)
        else:
            scored.table.write_parquet(temporary)
    line = f"{len(scored.table):,} predictions written to {out}"
    console.print(f"{line}; {scored.quality}" if scored.quality else line, soft_wrap=True, markup=False)
