"""Training a bundle on with a later log."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoembed.cli.options import Device, Settings, app, opening, settings_of
from autoembed.errors import first_line

if TYPE_CHECKING:
    from autoembed.refreshing import Refreshed


@app.command()
@opening
def refresh(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder, such as runs/quickstart/best.")],
    data: Annotated[str, typer.Option(help="The new log: a file or a directory.")],
    out: Annotated[
        Path | None, typer.Option(help="The new bundle; without it the bundle is replaced, if the new one is no worse.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the log.")] = 2,
    vocabulary: Annotated[
        str, typer.Option(help="keep: the same values; grow: new values come, old ones go; rebuild: the log's alone.")
    ] = "grow",
    min_count: Annotated[
        int | None,
        typer.Option(help="Rows that a new value needs; by default the bundle's, as a share of its rows."),
    ] = None,
    evict: Annotated[float, typer.Option(help="Of grow: a value with fewer rows loses its embedding.")] = 0.05,
    memory: Annotated[float, typer.Option(help="Of grow: what a row of before counts beside one of the log.")] = 0.5,
    study: Annotated[
        Path | None, typer.Option(help="The bundle's study, where MLflow has the refresh; found by default.")
    ] = None,
    train: Annotated[
        list[str] | None, typer.Option("--train", help="KEY=VALUE of the recipe, such as lr=1.0e-4; repeatable.")
    ] = None,
    device: Device = None,
    settings: Settings = None,
) -> None:
    """Train a bundle on with a later log, without a search; MLflow's champion moves if the new model is no worse."""
    from autoembed.refreshing import refresh as refreshed
    from autoembed.study.show.progress import Bar
    from autoembed.study.show.tables import stdout

    with Bar() as bar:
        done = refreshed(
            bundle,
            data,
            out,
            epochs=epochs,
            vocabulary=vocabulary,  # type: ignore[arg-type]  # checked there
            min_count=min_count,
            evict=evict,
            memory=memory,
            settings=settings_of(settings or []),
            train=settings_of(train or [], "--train"),
            device=device or "auto",
            study=study,
            progress=bar.step,
        )
    console = stdout()
    for line in (*(f"  {note}" for note in done.notes), *_told(done)):
        console.print(line, soft_wrap=True, markup=False)
    for line in done.drift:
        print(f"warning: {line}", file=sys.stderr)
    if done.study is not None:
        _track(done, data, vocabulary, epochs)


def _told(done: Refreshed) -> list[str]:
    from autoembed.task import told

    gone, new = done.values["gone"].sum(), done.values["new"].sum()
    lines = [
        f"trained on {done.rows:,} rows; {new:,} values are new, {gone:,} are gone",
        f"on the tail of the log before: {told(done.before)}; after: {told(done.after)}",
        *(f"the same of {label}: {told(own)}; after: {told(new)}" for label, (own, new) in done.further.items()),
    ]
    if not done.kept:
        return [*lines, f"the new model is worse: {done.bundle.path} stays as it is (--out writes it elsewhere)"]
    worse = "" if done.no_worse else ", though it is worse on the tail"
    return [*lines, f"bundle written to {done.bundle.path}{worse}"]


def _track(done: Refreshed, data: str, vocabulary: str, epochs: int) -> None:
    from autoembed.space import SearchSpace
    from autoembed.study.run_dir import RunDir
    from autoembed.study.show.tables import stdout

    assert done.study is not None
    run = RunDir.existing(done.study)
    if SearchSpace.read(run.space).tracking != "mlflow":
        return
    try:
        from autoembed.study.trackers.mlflow.refresh import log_refresh

        line = log_refresh(run, done, {"log": data, "vocabulary": vocabulary, "epochs": epochs})
    except Exception as error:  # whatever a store raises: the bundle is written
        print(f"warning: MLflow has no run of this refresh: {first_line(error)}", file=sys.stderr)
        return
    stdout().print(line, soft_wrap=True, markup=False)
