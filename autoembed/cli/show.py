"""What studies, bundles and architectures hold: show and explain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoembed.cli.options import Data, Device, Json, Run, Which, app, opening, print_json
from autoembed.errors import DataError, StudyError
from autoembed.writing import beside

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console

    from autoembed.architecture import Architecture
    from autoembed.study.study import Study


@app.command()
@opening
def show(
    path: Annotated[Path, typer.Argument(help="A study's folder, a bundle, or an architecture's JSON file.")],
    trial: Which = None,
    picture: Annotated[Path | None, typer.Option(help="Draw what is done with each pair: .png, .svg or .pdf.")] = None,
    json: Json = False,
) -> None:
    """Show a study's leaderboard, a bundle, or which dims an architecture keeps."""
    from autoembed.architecture import Architecture
    from autoembed.bundle import load_bundle
    from autoembed.study.show import architectures
    from autoembed.study.show.tables import stdout
    from autoembed.study.study import Study

    if json:
        if picture is not None:
            raise StudyError("--json prints and --picture draws: give one of them")
        print_json(_plain(path, trial))
        return
    console = stdout()
    shown: Architecture | None = None
    synergy = None
    file = path if path.is_file() else path / "architecture.json"
    if (path / "manifest.json").is_file():
        bundle = load_bundle(path)
        shown = bundle.architecture
        architectures.show_bundle(console, bundle)
    elif file.is_file():
        shown = Architecture.read(file)
        architectures.show_architecture(console, shown, str(path))
    elif not path.exists():
        raise StudyError(f"{path} does not exist: name a study's folder, a bundle or an architecture's JSON file")
    else:
        study = Study.open(path)
        shown, synergy = _show_study(console, study, trial), study.run.synergy()
    if shown is not None:
        architectures.show_choices(console, shown, synergy)
    if picture is not None:
        _draw(shown, synergy, picture)
        console.print(f"  drawn to {picture}", soft_wrap=True)


def _plain(path: Path, trial: str | None) -> object:
    """What `show` has, as plain data."""
    from autoembed.architecture import Architecture
    from autoembed.bundle import load_bundle
    from autoembed.study.show import plain
    from autoembed.study.study import Study

    file = path if path.is_file() else path / "architecture.json"
    if (path / "manifest.json").is_file():
        return plain.of_bundle(load_bundle(path))
    if file.is_file():
        return Architecture.read(file).model_dump(mode="json")
    return plain.of_study(Study.open(path), trial)


def _show_study(console: Console, study: Study, trial: str | None) -> Architecture | None:
    """Prints a study's leaderboard and its best architecture, or that of a trial."""
    from autoembed.study.show import architectures, report

    if trial is None and not study.finished:
        report.show_unfinished(console, study.run)
        return None
    if trial is None:
        show_board(console, study)
    chosen = study.trial(trial)
    architectures.show_architecture(console, chosen.architecture, f"{study.name}: trial {chosen.id}")
    for note in chosen.result.notes:
        console.print(f"  note: {note}", style="yellow", soft_wrap=True)
    return chosen.architecture


def show_board(console: Console, study: Study) -> None:
    """Prints a finished study's leaderboard, with what was made over seeds, and its front."""
    from autoembed.study.results.retrain import ARMS
    from autoembed.study.show import report

    report.show_leaderboard(console, study.run, study.leaderboard)
    arms = study.run.read_json(ARMS)
    if arms is not None:
        report.show_arms(console, arms, study.path / ARMS)
    if study.space.objective.cost:
        report.show_front(console, study.pareto.kept, study.space)


def _draw(architecture: Architecture | None, synergy: pl.DataFrame | None, picture: Path) -> None:
    from autoembed.study.show.page import choice_matrix

    if picture.suffix not in (".png", ".svg", ".pdf"):
        raise DataError(f"--picture must end in .png, .svg or .pdf, but got {picture}")
    if architecture is None or not architecture.pairs:
        raise StudyError("there are no pairs to draw: the study has no features.pairs")
    picture.parent.mkdir(parents=True, exist_ok=True)
    with beside(picture) as temporary:
        choice_matrix(architecture, synergy).savefig(temporary, dpi=120)


@app.command()
@opening
def explain(
    run: Run,
    trial: Which = None,
    data: Data = None,
    device: Device = None,
    top: Annotated[int | None, typer.Option(help="Print only the first.", min=1)] = None,
    out: Annotated[Path | None, typer.Option(help="Write the table: .parquet or .csv.")] = None,
) -> None:
    """Show what each column brings: rank, kept dims and bytes, and what the model loses without it."""
    from autoembed.study.show.progress import Bar
    from autoembed.study.show.rankings import show_explained
    from autoembed.study.show.tables import stdout
    from autoembed.study.study import Study

    if out is not None and out.suffix not in (".parquet", ".csv"):
        raise DataError(f"--out must end in .parquet or .csv, but got {out}")
    with Bar() as bar:
        study = Study.open(run, data=data, shown=bar)
        chosen = study.trial(trial)
        table = study.explain(chosen.id, device=device)
    title = f"{study.name}: what each column brings to {chosen.id}, by how much the loss on valid rises without it"
    show_explained(stdout(), table, title, top)
    if out is not None:
        with beside(out) as temporary:
            table.write_parquet(temporary) if out.suffix == ".parquet" else table.write_csv(temporary)
        stdout().print(f"  written to {out}", soft_wrap=True)
