"""The command that drafts a search space, and what `search --dry-run` says of one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from autoembed.cli.options import Runs, Settings, app, settings_of
from autoembed.errors import DataError
from autoembed.writing import beside


@app.command()
def init(
    table: Annotated[str, typer.Argument(help="The table: a file, a directory, or whatever data.path may be.")],
    label: Annotated[str | None, typer.Option(help="The column to predict; guessed or asked for by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; the table's name with .yaml by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
    runs: Runs = Path("runs"),
    settings: Settings = None,
) -> None:
    """Write a first search space for a table, with what was guessed as comments."""
    from autoembed.drafting import draft, told_estimate
    from autoembed.study.show.progress import Bar
    from autoembed.study.show.tables import stdout

    place = out or Path(f"{Path(table.rstrip('/')).name.partition('.')[0] or 'space'}.yaml")
    if place.exists() and not force:
        raise DataError(f"{place} is there already: choose another --out, or --force to replace it")
    ask = _ask if sys.stdin.isatty() and sys.stdout.isatty() else None
    with Bar() as bar:
        made = draft(
            table, runs / ".cache", label=label, settings=settings_of(settings or []), ask=ask, progress=bar.step
        )
    with beside(place) as temporary:
        temporary.write_text(made.text)
    for note in made.notes:
        stdout().print(f"  {note}", soft_wrap=True, markup=False)
    stdout().print(f"  {told_estimate(made.estimate)}", soft_wrap=True, markup=False)
    stdout().print(f"written to {place}: look at it, then run autoembed search {place}", soft_wrap=True, markup=False)


def _ask(names: list[str]) -> str:
    """The name that a person at the terminal chooses."""
    for number, name in enumerate(names, 1):
        typer.echo(f"  {number}  {name}")
    while True:
        answer = typer.prompt("Which column is the label? Its number or name")
        if answer in names:
            return str(answer)
        if answer.isdecimal() and 1 <= int(answer) <= len(names):
            return names[int(answer) - 1]


def tell_estimate(path: Path, data: str | None, runs: Path, trials: int | None, cpus: int | None) -> None:
    """Says what a study would do; only the encoded data stay, for the study to find them."""
    from autoembed.data.dataset import build_dataset
    from autoembed.drafting import told_estimate
    from autoembed.estimating import estimate
    from autoembed.ranking.ranking import rank
    from autoembed.space import SearchSpace
    from autoembed.study.show.progress import Bar
    from autoembed.study.show.tables import stdout

    space = SearchSpace.read(path)
    if trials is not None:
        space = space.model_copy(update={"budget": space.budget.model_copy(update={"trials": trials})})
    with Bar() as bar:
        dataset = build_dataset(space.data, data, runs / ".cache", bar.step)
        for note in dataset.notes:
            bar.tell(note)
        if space.features.keep is not None:
            dataset = dataset.keep(rank(dataset, progress=bar.step).top(space.features.keep), runs / ".cache")
        taken = estimate(space, dataset, cpus)
    lines = [f"{dataset.rows(split):,} {split}" for split in dataset.splits]
    console = stdout()
    console.print(f"{path.stem}: {', '.join(lines)} rows, {len(dataset.schema.fields)} columns", soft_wrap=True)
    for arm, number in taken.trials.items():
        console.print(f"  {arm}: {number} trial{'s' * (number > 1)}", soft_wrap=True, markup=False)
    console.print(f"  {told_estimate(taken)}", soft_wrap=True, markup=False)
