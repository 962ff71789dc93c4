"""Ranking columns and comparing rankings."""

from __future__ import annotations

import gc
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoembed.cli.options import Data, Json, Runs, Settings, app, opening, print_json, say, settings_of
from autoembed.errors import DataError, StudyError
from autoembed.shipped import space_or_data
from autoembed.writing import beside

if TYPE_CHECKING:
    from autoembed.ranking.ranking import Ranking, RankOptions


@app.command()
def rank(
    context: typer.Context,
    source: Annotated[
        str | None,
        typer.Argument(help="A table or directory, or a search space for its data: a file, or one that ships."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="In place of SOURCE, a study's folder or a bundle: what its model takes from fields."),
    ] = None,
    data: Data = None,
    label: Annotated[str, typer.Option(help="The label column, if SOURCE is not a search-space file.")] = "label",
    score: Annotated[
        str,
        typer.Option(
            help="adjusted_mi, mi, ami, rotation, pearson, coverage, permutation, logistic, tree or lightgbm."
        ),
    ] = "adjusted_mi",
    pairs: Annotated[str | None, typer.Option(help="Rank pairs by synergy: how many, or all.")] = None,
    select: Annotated[
        int | None, typer.Option(help="Take so many columns one by one, for what each adds to those before.")
    ] = None,
    criterion: Annotated[str, typer.Option(help="What --select takes by: jmi or 3mr.")] = "jmi",
    stability: Annotated[
        int | None, typer.Option(help="Rank so many random halves of the rows, to see how firm the order is.")
    ] = None,
    cross: Annotated[
        int | None, typer.Option(help="Write a search space (--space) that crosses so many of the best pairs.")
    ] = None,
    space: Annotated[Path, typer.Option(help="Where --cross writes.")] = Path("crossed.yaml"),
    multi: Annotated[
        list[str] | None, typer.Option(help="COLUMN=SEPARATOR of a text column with several values a row; repeatable.")
    ] = None,
    top: Annotated[int | None, typer.Option(help="Print only the best columns and pairs.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the ranking as Parquet.")] = None,
    page: Annotated[Path | None, typer.Option("--html", help="Write the ranking as one HTML page.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores by default.")] = None,
    json: Json = False,
    settings: Settings = None,
    runs: Runs = Path("runs"),
) -> None:
    """Rank columns by what they say about the label beyond what noise of the same cardinality would.

    All rows of a table are ranked; of a search-space file's data, the train split. With --model, fields are ranked by
    how much worse the model is on valid without them; --data, --top, --out and --runs are its options.
    """
    if model is not None:
        _rank_fields(context, model, runs, data, top, out, json)
        return
    if source is None:
        raise DataError("rank needs SOURCE, a table or a search-space file, or --model RUN")
    gc.disable()  # a short ranking would spend a fifth of its time on looking for cycles, which it does not make
    numbers = {"--top": top, "--threads": threads, "--select": select, "--stability": stability, "--cross": cross}
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise DataError(f"{name} must be at least 1, but got {number}")
    options: RankOptions = {
        "score": score,
        "pairs": _pairs(pairs, cross),
        "select": (criterion, select) if select is not None else None,
        "stability": stability,
        "threads": threads,
    }
    source, is_space = space_or_data(source, say)
    if is_space:
        ranking, rows = _rank_space(Path(source), data, runs, settings or [], options)
    else:
        ranking = _rank_table(source, label, _separators(multi or []), settings_of(settings or []), options)
        rows = "all rows"
    title = f"{len(ranking.table)} columns by {score}, {rows}"
    if json:
        from autoembed.study.show.plain import of_ranking

        print_json(of_ranking(ranking, title, top))
    else:
        _print(ranking, title, criterion, top)
    told = partial(_say, aside=json)
    if out is not None:
        ranking.write(out)
        told(f"written to {out}")
    if page is not None:
        from autoembed.study.show.page import write_page

        write_page(page, ranking, f"{Path(source).name}: {title}")
        told(f"written to {page}")
    if cross is not None:
        from autoembed.study.show.crossing import write_crossed

        write_crossed(space, source, data, label, ranking.top_pairs(cross))
        told(f"crossed columns for `autoembed search {space}`")
    gc.freeze()  # nor need the end of the process look for any


def _pairs(wanted: str | None, cross: int | None) -> int | str | None:
    """What --pairs says, or as many as --cross needs."""
    if wanted is not None and wanted != "all" and not (wanted.isdecimal() and int(wanted) > 0):
        raise DataError(f"--pairs must be a number from 1 on, or all, but got {wanted}")
    if wanted == "all":
        return wanted
    number = int(wanted) if wanted is not None else 0
    return max(number, cross or 0) or None


def _rank_space(
    path: Path, data: str | None, runs: Path, settings: list[str], options: RankOptions
) -> tuple[Ranking, str]:
    """The ranking of the train split of a search space's data, and how many rows that is."""
    from autoembed.data.dataset import build_dataset
    from autoembed.ranking.ranking import rank
    from autoembed.space import SearchSpace
    from autoembed.study.show.progress import Bar

    with Bar() as bar:
        spec = SearchSpace.read(path).data
        if settings:
            spec = spec.checked(spec.model_dump(exclude_unset=True) | settings_of(settings))
        dataset = build_dataset(spec, data, runs / ".cache", bar.step)
        return rank(dataset, **options, progress=bar.step), f"{dataset.rows('train'):,} train rows"


def _rank_table(
    source: str, label: str, separators: dict[str, str], settings: dict[str, object], options: RankOptions
) -> Ranking:
    from autoembed.ranking.ranking import rank_table

    whole = partial(rank_table, source, label=label, separators=separators, settings=settings, **options)
    if not sys.stderr.isatty():  # there is nothing to show, and a bar takes longer than a small table
        return whole()
    from autoembed.study.show.progress import Bar

    with Bar() as bar:
        return whole(progress=bar.step)


def _print(ranking: Ranking, title: str, criterion: str, top: int | None) -> None:
    from autoembed.study.show.rankings import show_findings, show_pairs, show_ranking, show_selected
    from autoembed.study.show.tables import stdout

    console = stdout()
    show_ranking(console, ranking, title, top)
    if ranking.pairs is not None:
        show_pairs(console, ranking.pairs, f"{len(ranking.pairs)} pairs by synergy", top)
    if ranking.selected is not None:
        show_selected(console, ranking.selected, f"{len(ranking.selected)} columns taken by {criterion}")
    show_findings(console, ranking.findings)
    for note in ranking.notes:
        _say(note)


def _say(line: str, *, aside: bool = False) -> None:
    """Prints a line, on stderr if it is `aside`."""
    if aside:
        print(f"  {line}", file=sys.stderr)
        return
    from autoembed.study.show.tables import stdout

    stdout().print(f"  {line}", soft_wrap=True, markup=False)


def _rank_fields(
    context: typer.Context, model: Path, runs: Path, data: str | None, top: int | None, out: Path | None, json: bool
) -> None:
    from autoembed.study.results.fields import score_fields
    from autoembed.study.show.progress import Bar
    from autoembed.study.show.rankings import show_fields
    from autoembed.study.show.tables import stdout

    others = [
        option.opts[0]
        for option in context.command.params
        if option.name not in (None, "model", "runs", "data", "top", "out", "json")
        and str(context.get_parameter_source(str(option.name))).endswith("COMMANDLINE")
    ]
    if others:
        raise DataError(f"--model goes with --data, --top, --out, --runs and --json only, but got {', '.join(others)}")
    if top is not None and top < 1:
        raise DataError(f"--top must be at least 1, but got {top}")
    from autoembed.plugins import without_imports

    with Bar() as bar, without_imports():
        table, title = score_fields(model, runs, data, bar)
    if json:
        print_json({"title": title, "fields": (table if top is None else table.head(top)).to_dicts()})
    else:
        show_fields(stdout(), table, title, top)
    if out is not None:
        with beside(out) as temporary:
            table.write_parquet(temporary)
        _say(f"written to {out}", aside=json)


def _separators(multi: list[str]) -> dict[str, str]:
    found = dict(option.split("=", 1) for option in multi if "=" in option)
    wrong = [option for option in multi if option.partition("=")[2] == ""]
    if wrong:
        raise DataError(f"--multi must be COLUMN=SEPARATOR, such as genres='|', but got {wrong[0]!r}")
    return found


@app.command()
@opening
def compare(
    first: Annotated[
        Path, typer.Argument(help="A study's folder, a ranking that `autoembed rank --out` wrote, or a table to rank.")
    ],
    second: Annotated[Path, typer.Argument(help="Another.")],
    label: Annotated[str, typer.Option(help="The label column of a table.")] = "label",
    depth: Annotated[float, typer.Option(help="p of the overlap: the first 1 / (1 - p) ranks weigh most.")] = 0.9,
    top: Annotated[int | None, typer.Option(help="Print only the largest moves.")] = None,
    json: Json = False,
) -> None:
    """Compare two studies arm by arm, or the order of columns in two tables.

    Of tables it tells the rank-biased overlap, 1 for the same order, and what moved.
    """
    from autoembed.study.show.compared import is_study, show_compared
    from autoembed.study.show.tables import stdout

    studies = [path for path in (first, second) if is_study(path)]
    if len(studies) == 2 and json:
        from autoembed.study.show.plain import of_compared

        print_json(of_compared(first, second))
        return
    if len(studies) == 2:
        show_compared(stdout(), first, second)
        return
    if studies:
        table = second if studies[0] == first else first
        raise StudyError(f"compare needs two studies or two tables, but {studies[0]} is a study and {table} is none")
    from autoembed.ranking.ranking import Ranking, rank_table
    from autoembed.ranking.selection import compare as compared
    from autoembed.ranking.selection import rank_biased_overlap
    from autoembed.study.show.rankings import show_moves

    if not 0 < depth < 1:
        raise DataError(f"--depth must lie between 0 and 1, but got {depth:g}")
    one, other = (
        (Ranking.read(path) if Ranking.is_one(path) else rank_table(path, label=label)).table
        for path in (first, second)
    )
    overlap = rank_biased_overlap(one["feature"].to_list(), other["feature"].to_list(), depth)
    moves = compared(one, other)
    if json:
        print_json({"overlap": overlap, "depth": depth, "moves": moves.head(top or len(moves)).to_dicts()})
        return
    show_moves(stdout(), moves, f"rank-biased overlap {overlap:.4f} (p = {depth:g})", top)
