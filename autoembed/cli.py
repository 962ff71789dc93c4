"""The command line. ray, optuna and mlflow are imported by the commands that need them, and not for --help."""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoembed import __version__
from autoembed.errors import AutoembedError, DataError, StudyError, in_one_line, printable, speak_of_flags
from autoembed.writing import beside

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console

    from autoembed.architecture import Architecture
    from autoembed.data.dataset import Dataset
    from autoembed.space import SearchSpace
    from autoembed.study.leaderboard import Leaderboard
    from autoembed.study.progress import Bar
    from autoembed.study.run_dir import RunDir
    from autoembed.study.submit import Cluster

app = typer.Typer(
    name="autoembed",
    help="Find the features, embedding widths and interactions a click model needs, and take it to production.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
INTERRUPTED = 130  # the status that typer gives Ctrl-C
Runs = Annotated[Path, typer.Option("--runs", help="Folder of the studies.")]
Run = Annotated[Path, typer.Argument(help="A study's folder, such as runs/quickstart.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N; goes before the file's.")]
Data = Annotated[str | None, typer.Option(help="File or directory with the data; goes before data.path.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The id that `autoembed submit` printed.")]
Server = Annotated[
    str, typer.Option(help="The Ray dashboard's address, http://HOST:8265.", envvar="RAY_API_SERVER_ADDRESS")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE of a space's data section, such as separator=';' or format=csv; repeatable."),
]
Which = Annotated[str | None, typer.Option(help="A trial's id, or an arm for its best; the study's best by default.")]


def _opening(command: Callable[..., None]) -> Callable[..., None]:
    """A command that opens a run folder, which may be a stranger's: it imports no module that the folder names."""

    @functools.wraps(command)
    def opened(*words: object, **named: object) -> None:
        from autoembed.search.method import without_imports

        with without_imports():
            command(*words, **named)

    return opened


def _version(wanted: bool) -> None:
    if wanted:
        print(f"autoembed {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of autoembed itself."""


@app.command()
def search(
    space: Annotated[Path, typer.Argument(help="A search-space file, such as search_spaces/quickstart.yaml.")],
    data: Data = None,
    runs: Runs = Path("runs"),
    name: Annotated[str | None, typer.Option(help="The study's name; the file's by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study of that name.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the study of that name.")] = False,
    trials: Annotated[int | None, typer.Option(help="Trials per arm; goes before budget.trials.")] = None,
    device: Device = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs to use; all by default.")] = None,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; one of the study's own by default.")
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="A line for each trial that has ended, for logs.")] = False,
) -> None:
    """Search architectures, retrain them, and compare them with the baselines."""
    from autoembed.study.report import show_unfinished, stdout
    from autoembed.study.study import Request, run_study

    request = Request(
        space=space,
        data=data,
        runs=runs,
        name=name,
        resume=resume,
        force=force,
        trials=trials,
        device=device,
        cpus=cpus,
        address=address,
        lines=lines,
    )
    try:
        run, board = run_study(request)
    except KeyboardInterrupt:
        if request.run.ended():
            show_unfinished(stdout(), request.run)
        raise
    _show_board(stdout(), run, board)


@app.command()
def submit(
    space: Annotated[Path, typer.Argument(help="A search-space file.")],
    address: Server,
    runs: Annotated[Path, typer.Option(help="Folder of the studies: an absolute path that all nodes share.")],
    data: Annotated[str | None, typer.Option(help="Data as the cluster sees it; goes before data.path.")] = None,
    name: Annotated[str | None, typer.Option(help="The study's name; the file's by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study of that name.")] = False,
    trials: Annotated[int | None, typer.Option(help="Trials per arm; goes before budget.trials.")] = None,
    device: Device = None,
    package: Annotated[
        str, typer.Option(help="autoembed there: this one's source, the one installed, or a pip requirement.")
    ] = "source",
    requirements: Annotated[
        Path | None, typer.Option(help="A file of pinned requirements that every node installs.", exists=True)
    ] = None,
    module: Annotated[
        list[Path] | None, typer.Option(help="A package of yours that the space names; repeatable.")
    ] = None,
    env: Annotated[list[str] | None, typer.Option(help="KEY=VALUE for the study's processes; repeatable.")] = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Print what the study prints.")] = True,
) -> None:
    """Run a study on a Ray cluster, as a job that outlives this command."""
    from autoembed.study.submit import Cluster, Job, check, variables

    job = Job(
        space=space,
        runs=runs,
        options={
            "--data": data,
            "--name": name,
            "--trials": None if trials is None else str(trials),
            "--device": device,
        },
        resume=resume,
        package=package,
        requirements=requirements,
        modules=module or (),
        variables=variables(env or []),
    )
    check(job)
    cluster = Cluster(address)
    made = cluster.submit(job)
    print(f"job {made}: autoembed job status|logs|stop {made} --address {cluster.address}", flush=True)
    if follow:
        _follow(cluster, made)


def _follow(cluster: Cluster, job: str) -> None:
    try:
        cluster.follow(job, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        raise StudyError(
            f"no longer following job {job}, which goes on: autoembed job logs|stop {job} --address {cluster.address}"
        ) from None


jobs = typer.Typer(name="job", help="Look after studies that `autoembed submit` started.", no_args_is_help=True)
app.add_typer(jobs)


@jobs.command("status")
def job_status(job: JobId, address: Server) -> None:
    """Print a job's status and Ray's word on it."""
    from autoembed.study.submit import Cluster

    print(": ".join(word for word in Cluster(address).status(job) if word))


@jobs.command("logs")
def job_logs(
    job: JobId,
    address: Server,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job ends.")] = False,
) -> None:
    """Print what a job has printed."""
    from autoembed.study.submit import Cluster

    cluster = Cluster(address)
    if follow:
        _follow(cluster, job)
    else:
        print(cluster.logs(job), end="")


@jobs.command("stop")
def job_stop(job: JobId, address: Server) -> None:
    """End a job in order; `autoembed submit ... --resume` goes on."""
    from autoembed.study.submit import Cluster

    print(f"job {job}: {Cluster(address).stop(job)}")


@app.command()
def rank(
    context: typer.Context,
    source: Annotated[
        str | None, typer.Argument(help="A table or directory, or a search-space file for its data section.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="In place of SOURCE, a study's folder or a bundle: what its model takes from fields."),
    ] = None,
    data: Data = None,
    label: Annotated[str, typer.Option(help="The label column, if SOURCE is no search-space file.")] = "label",
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
    settings: Settings = None,
    runs: Runs = Path("runs"),
) -> None:
    """Rank columns by what they say about the label beyond what noise of the same cardinality would.

    All rows of a table are ranked; of a search-space file's data, the train split. With --model, fields are ranked by
    how much worse the model is on valid without them; --data, --top, --out and --runs are its options.
    """
    if model is not None:
        _rank_fields(context, model, runs, data, top, out)
        return
    if source is None:
        raise DataError("rank needs SOURCE, a table or a search-space file, or --model RUN")
    gc.disable()  # a short ranking would spend a fifth of its time on looking for cycles, which it does not make
    from autoembed.ranking.ranking import rank as ranked
    from autoembed.ranking.ranking import rank_table
    from autoembed.study.report import show_findings, show_pairs, show_ranking, show_selected, stdout

    numbers = {"--top": top, "--threads": threads, "--select": select, "--stability": stability, "--cross": cross}
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise DataError(f"{name} must be at least 1, but got {number}")
    if pairs is not None and pairs != "all" and not (pairs.isdecimal() and int(pairs) > 0):
        raise DataError(f"--pairs must be a number from 1 on, or all, but got {pairs}")
    wanted = int(pairs) if pairs is not None and pairs != "all" else pairs
    if cross is not None and (wanted is None or (isinstance(wanted, int) and wanted < cross)):
        wanted = cross
    taken = (criterion, select) if select is not None else None
    if source.endswith((".yaml", ".yml")):
        from autoembed.data.dataset import build_dataset
        from autoembed.space import SearchSpace
        from autoembed.study.progress import Bar

        with Bar() as bar:
            spec = SearchSpace.read(Path(source)).data
            if settings:
                spec = spec.checked(spec.model_dump(exclude_unset=True) | _settings(settings))
            dataset = build_dataset(spec, data, runs / ".cache", bar.step)
            ranking = ranked(
                dataset,
                score=score,
                pairs=wanted,
                select=taken,
                stability=stability,
                threads=threads,
                progress=bar.step,
            )
        rows = f"{dataset.rows('train'):,} train rows"
    else:
        with contextlib.ExitStack() as stack:
            progress = None
            if sys.stderr.isatty():  # elsewhere there is nothing to show, and a bar takes longer than a small table
                from autoembed.study.progress import Bar

                progress = stack.enter_context(Bar()).step
            ranking = rank_table(
                source,
                label=label,
                score=score,
                pairs=wanted,
                select=taken,
                stability=stability,
                threads=threads,
                separators=_separators(multi or []),
                settings=_settings(settings or []),
                progress=progress,
            )
        rows = "all rows"
    console = stdout()
    show_ranking(console, ranking, f"{len(ranking.table)} columns by {score}, {rows}", top)
    if ranking.pairs is not None:
        show_pairs(console, ranking.pairs, f"{len(ranking.pairs)} pairs by synergy", top)
    if ranking.selected is not None:
        show_selected(console, ranking.selected, f"{len(ranking.selected)} columns taken by {criterion}")
    show_findings(console, ranking.findings)
    for note in ranking.notes:
        console.print(f"  {note}", soft_wrap=True, markup=False)
    if out is not None:
        ranking.write(out)
        console.print(f"  written to {out}", soft_wrap=True)
    if page is not None:
        from autoembed.study.page import write_page

        write_page(page, ranking, f"{Path(source).name}: {len(ranking.table)} columns by {score}, {rows}")
        console.print(f"  written to {page}", soft_wrap=True)
    if cross is not None:
        from autoembed.study.crossing import write_crossed

        write_crossed(space, source, data, label, ranking.top_pairs(cross))
        console.print(f"  crossed columns for `autoembed search {space}`", soft_wrap=True)
    gc.freeze()  # nor need the end of the process look for any


def _rank_fields(
    context: typer.Context, model: Path, runs: Path, data: str | None, top: int | None, out: Path | None
) -> None:
    from autoembed.study.fields import score_fields
    from autoembed.study.progress import Bar
    from autoembed.study.report import show_fields, stdout

    others = [
        option.opts[0]
        for option in context.command.params
        if option.name not in (None, "model", "runs", "data", "top", "out")
        and str(context.get_parameter_source(str(option.name))).endswith("COMMANDLINE")
    ]
    if others:
        raise DataError(f"--model goes with --data, --top, --out and --runs only, but got {', '.join(others)}")
    if top is not None and top < 1:
        raise DataError(f"--top must be at least 1, but got {top}")
    from autoembed.search.method import without_imports

    with Bar() as bar, without_imports():
        table, title = score_fields(model, runs, data, bar)
    show_fields(stdout(), table, title, top)
    if out is not None:
        with beside(out) as temporary:
            table.write_parquet(temporary)
        stdout().print(f"  written to {out}", soft_wrap=True)


def _separators(multi: list[str]) -> dict[str, str]:
    found = dict(option.split("=", 1) for option in multi if "=" in option)
    wrong = [option for option in multi if option.partition("=")[2] == ""]
    if wrong:
        raise DataError(f"--multi must be COLUMN=SEPARATOR, such as genres='|', but got {wrong[0]!r}")
    return found


@app.command()
@_opening
def compare(
    first: Annotated[
        Path, typer.Argument(help="A study's folder, a ranking that `autoembed rank --out` wrote, or a table to rank.")
    ],
    second: Annotated[Path, typer.Argument(help="Another.")],
    label: Annotated[str, typer.Option(help="The label column of a table.")] = "label",
    depth: Annotated[float, typer.Option(help="p of the overlap: the first 1 / (1 - p) ranks weigh most.")] = 0.9,
    top: Annotated[int | None, typer.Option(help="Print only the largest moves.")] = None,
) -> None:
    """Compare two studies arm by arm, or the order of columns in two tables.

    Of tables it tells the rank-biased overlap, 1 for the same order, and what moved.
    """
    from autoembed.study.compared import is_study, show_compared
    from autoembed.study.tables import stdout

    studies = [path for path in (first, second) if is_study(path)]
    if len(studies) == 2:
        show_compared(stdout(), first, second)
        return
    if studies:
        table = second if studies[0] == first else first
        raise StudyError(f"compare needs two studies or two tables, but {studies[0]} is a study and {table} is none")
    from autoembed.ranking.ranking import Ranking, rank_table
    from autoembed.ranking.selection import compare as compared
    from autoembed.ranking.selection import rank_biased_overlap
    from autoembed.study.report import show_moves

    if not 0 < depth < 1:
        raise DataError(f"--depth must lie between 0 and 1, but got {depth:g}")
    one, other = (
        (Ranking.read(path) if Ranking.is_one(path) else rank_table(path, label=label)).table
        for path in (first, second)
    )
    overlap = rank_biased_overlap(one["feature"].to_list(), other["feature"].to_list(), depth)
    show_moves(stdout(), compared(one, other), f"rank-biased overlap {overlap:.4f} (p = {depth:g})", top)


@app.command()
@_opening
def retrain(
    run: Run,
    trial: Which = None,
    seeds: Annotated[int, typer.Option(help="How many seeds.")] = 3,
    data: Data = None,
    device: Device = None,
) -> None:
    """Train a study's best architecture anew over seeds, or with `--trial all` that of each arm; mean and sd."""
    from autoembed.study.progress import Bar
    from autoembed.study.report import show_arms, show_seeds, stdout
    from autoembed.study.retrain import ARMS, FILE, retrain_arms, retrain_seeds

    with Bar() as bar:
        folder, space, dataset, chosen = _opened(run, None if trial == "all" else trial, data, bar)
        if trial == "all":
            arms = retrain_arms(folder, space, dataset, seeds, device, bar)
        else:
            rows, summary = retrain_seeds(folder, chosen, dataset, seeds, device, bar)
    if trial == "all":
        from autoembed.study.tracking import sync as synced

        show_arms(stdout(), arms, folder.path / ARMS)
        try:
            with folder.locked():
                synced(folder, space)
        except StudyError as error:
            print(f"warning: {error}: `autoembed sync {folder.path}` writes it when that is mended", file=sys.stderr)
    else:
        show_seeds(stdout(), rows, summary, folder.path / FILE)


@app.command()
@_opening
def export(
    run: Run,
    out: Annotated[Path, typer.Argument(help="The bundle's folder, made anew.")],
    trial: Which = None,
    pick: Annotated[
        str | None,
        typer.Option(help="From the Pareto front: knee, 'smallest-within 0.001' (of the best metric), or an id."),
    ] = None,
    data: Data = None,
) -> None:
    """Write the best architecture, its weights and vocabulary as a bundle that predicts."""
    from autoembed.bundle import copy_bundle
    from autoembed.study.progress import Bar
    from autoembed.study.report import stdout
    from autoembed.study.run_dir import RunDir
    from autoembed.study.study import export as exported

    if pick is not None:
        if trial is not None:
            raise StudyError("--trial and --pick each name a trial: give one of them")
        trial = _picked(run, pick)
    folder = RunDir.existing(run)
    chosen = _trial(folder, trial)
    if data is None and _is_best(folder, chosen):
        path = copy_bundle(folder.best, out)  # the data need not be there any more
    else:
        with Bar() as bar:
            folder, space, dataset, chosen = _opened(run, trial, data, bar)
        path = exported(folder, space, dataset, chosen, out)
    stdout().print(f"bundle of {chosen} written to {path}", soft_wrap=True)


def _is_best(run: RunDir, trial: str) -> bool:
    """Whether the study's own bundle is that of a trial."""
    import json

    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return bool(json.loads((run.best / "manifest.json").read_text())["provenance"]["trial"] == trial)
    return False


@app.command()
def resize(
    run: Run,
    out: Annotated[Path, typer.Argument(help="Folder of the bundles, one for each limit.")],
    width: Annotated[list[float] | None, typer.Option(help="As many embedding parameters as that many dims.")] = None,
    size: Annotated[list[int] | None, typer.Option("--bytes", help="Bytes of the whole model in memory.")] = None,
    trial: Which = None,
    data: Data = None,
) -> None:
    """Search once as a trial did, and write a retrained bundle for each of several limits."""
    from autoembed.study.progress import Bar
    from autoembed.study.report import show_sizes, stdout
    from autoembed.study.study import resize as resized
    from autoembed.trial import limits

    wanted = limits(widths=width or [], sizes=size or [])
    with Bar() as bar:
        folder, space, dataset, chosen = _opened(run, trial, data, bar)
        found = resized(folder, space, dataset, chosen, wanted, out, bar)
    show_sizes(stdout(), found, f"{chosen}: one search within {len(found)} limits")


@app.command()
def frontier(
    space: Annotated[Path, typer.Argument(help="A search-space file, such as search_spaces/frontier_planted.yaml.")],
    sizes: Annotated[str, typer.Option("--bytes", help="The sizes, such as 20000,40000,80000.")],
    of: Annotated[str, typer.Option(help="What --bytes are of: embeddings or model.")] = "embeddings",
    data: Data = None,
    seeds: Annotated[int, typer.Option(help="How many seeds.")] = 5,
    first_seed: Annotated[int, typer.Option(help="The first of them.")] = 0,
    trials: Annotated[int | None, typer.Option(help="Random draws per arm and seed; budget.trials by default.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes, each of which measures one arm and seed at a time.")] = 1,
    device: Device = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; RUNS/NAME-frontier by default.")] = None,
    runs: Annotated[Path, typer.Option(help="Folder of encoded data.")] = Path("runs"),
    lines: Annotated[
        bool, typer.Option("--lines", help="A line for each arm and seed that is done, for logs.")
    ] = False,
) -> None:
    """Draw the test metric of each arm against bytes, over seeds: one search an arm and seed, and many sizes.

    The same command goes on where it was interrupted.
    """
    import shlex

    from autoembed.frontier.run import Request, run_frontier
    from autoembed.study.progress import Bar
    from autoembed.study.report import show_frontier, stdout

    request = Request(
        space=space,
        sizes=_sizes(sizes),
        of=of,
        data=data,
        seeds=seeds,
        first_seed=first_seed,
        trials=trials,
        jobs=jobs,
        device=device,
        runs=runs,
        out=out,
        command=shlex.join(["autoembed", *sys.argv[1:]]),
    )
    try:
        with Bar(lines=lines) as bar:
            folder, curves = run_frontier(
                request, bar.step, lambda done, total, note: bar.step("frontier", done, total, note), bar.line
            )
    except KeyboardInterrupt:
        print("interrupted: what is done is kept; the same command goes on", file=sys.stderr)
        sys.exit(INTERRUPTED)
    show_frontier(stdout(), curves, folder)


def _sizes(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise StudyError(f"--bytes must be whole numbers with commas between them, but got {text!r}")
    return tuple(map(int, parts))


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder, such as runs/quickstart/best.")],
    table: Annotated[str, typer.Argument(help="A raw table with the bundle's columns.")],
    out: Annotated[Path, typer.Option(help="Where to write predictions: .parquet or .csv.")] = Path(
        "predictions.parquet"
    ),
    keep: Annotated[str, typer.Option(help="Columns to copy beside the predictions, separated by commas.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    max_unknown: Annotated[
        float | None, typer.Option(help="Score nothing if a column has a larger share of unknown values, such as 0.2.")
    ] = None,
    settings: Settings = None,
) -> None:
    """Score a raw table with a bundle; values that training did not see are scored as unknown."""
    from autoembed.bundle import load_bundle
    from autoembed.scoring import score_table
    from autoembed.study.progress import Bar
    from autoembed.study.report import show_coverage, stdout

    if out.suffix not in (".parquet", ".csv"):
        raise DataError(f"--out must end in .parquet or .csv, but got {out}")
    if max_unknown is not None and not 0 <= max_unknown <= 1:
        raise DataError(f"--max-unknown must be a share from 0 to 1, but got {max_unknown:g}")
    with Bar() as bar:
        bar.step("predict", 0, 1)
        scored = score_table(
            load_bundle(bundle),
            table,
            keep=[name for name in keep.split(",") if name],
            device=device,
            settings=_settings(settings or []),
            max_unknown=max_unknown,
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


def _settings(options: list[str]) -> dict[str, object]:
    """Keys of a data section, such as separator=; and null_values=[NA]; DataError if one is written otherwise."""
    import yaml

    found: dict[str, object] = {}
    for option in options:
        name, sign, value = option.partition("=")
        if not sign or not name:
            raise DataError(f"--set must be KEY=VALUE, such as separator=';', but got {option!r}")
        try:
            found[name] = {"\\t": "\t"}.get(value, value) if name in ("separator", "quote") else yaml.safe_load(value)
        except yaml.YAMLError:
            raise DataError(f"--set {name} must have a value as in YAML, but got {value!r}") from None
        if name == "quote" and value in ("null", "none", ""):
            found[name] = None
    return found


@app.command()
@_opening
def show(
    path: Annotated[Path, typer.Argument(help="A study's folder, a bundle, or an architecture's JSON file.")],
    trial: Which = None,
    picture: Annotated[Path | None, typer.Option(help="Draw what is done with each pair: .png, .svg or .pdf.")] = None,
) -> None:
    """Show a study's leaderboard, a bundle, or which dims an architecture keeps."""
    from autoembed.architecture import Architecture
    from autoembed.bundle import load_bundle
    from autoembed.study import report
    from autoembed.study.leaderboard import Leaderboard
    from autoembed.study.run_dir import RunDir

    console = report.stdout()
    shown: Architecture | None = None
    synergy = None
    if path.is_file():
        shown = Architecture.read(path)
        report.show_architecture(console, shown, str(path))
    elif (path / "manifest.json").is_file():
        bundle = load_bundle(path)
        shown = bundle.architecture
        report.show_bundle(console, bundle)
    elif path.is_dir() and (path / "architecture.json").is_file():
        shown = Architecture.read(path / "architecture.json")
        report.show_architecture(console, shown, str(path))
    elif not path.exists():
        raise StudyError(f"{path} does not exist: name a study's folder, a bundle or an architecture's JSON file")
    else:
        run = RunDir.existing(path)
        board, synergy = Leaderboard.read(run), run.synergy()
        if trial is None and board is None:
            report.show_unfinished(console, run)
        else:
            if trial is None and board is not None:
                _show_board(console, run, board)
            chosen = run.read_trial(_trial(run, trial))
            shown = chosen.result.architecture
            report.show_architecture(console, shown, f"{run.name}: trial {chosen.id}")
            for note in chosen.result.notes:
                console.print(f"  note: {note}", style="yellow", soft_wrap=True)
    if shown is not None:
        report.show_choices(console, shown, synergy)
    if picture is not None:
        _draw(shown, synergy, picture)
        console.print(f"  drawn to {picture}", soft_wrap=True)


def _show_board(console: Console, run: RunDir, board: Leaderboard) -> None:
    from autoembed.space import SearchSpace
    from autoembed.study import report
    from autoembed.study.retrain import ARMS

    report.show_leaderboard(console, run, board)
    arms = run.read_json(ARMS)
    if arms is not None:
        report.show_arms(console, arms, run.path / ARMS)
    space = SearchSpace.read(run.space)
    if space.objective.cost:
        from autoembed.study import pareto

        report.show_front(console, pareto.of_run(run, space)[1], space)


def _draw(architecture: Architecture | None, synergy: pl.DataFrame | None, picture: Path) -> None:
    from autoembed.study.page import choice_matrix

    if picture.suffix not in (".png", ".svg", ".pdf"):
        raise DataError(f"--picture must end in .png, .svg or .pdf, but got {picture}")
    if architecture is None or not architecture.pairs:
        raise StudyError("there are no pairs to draw: the study has no features.pairs")
    picture.parent.mkdir(parents=True, exist_ok=True)
    with beside(picture) as temporary:
        choice_matrix(architecture, synergy).savefig(temporary, dpi=120)


@app.command()
@_opening
def sync(run: Run) -> None:
    """Write a study's folder to MLflow: what is missing there, and nothing twice."""
    from autoembed.space import SearchSpace
    from autoembed.study.report import stdout
    from autoembed.study.run_dir import RunDir
    from autoembed.study.tracking import sync as synced

    folder = RunDir.existing(run)
    with folder.locked():
        uri = synced(folder, SearchSpace.read(folder.space))
    stdout().print(f"{folder.name}: {len(folder.ended())} trials stand in the MLflow store {uri}", soft_wrap=True)


@app.command()
def ui(
    runs: Runs = Path("runs"), port: Annotated[int, typer.Option(help="On 127.0.0.1.", min=1, max=65535)] = 5000
) -> None:
    """Open the MLflow UI on the studies of a folder."""
    from autoembed.study.report import stdout
    from autoembed.study.ui import serve

    serve(runs, port, lambda line: stdout().print(line, soft_wrap=True))


def _opened(run: Path, trial: str | None, data: str | None, bar: Bar) -> tuple[RunDir, SearchSpace, Dataset, str]:
    """A study's folder, its space and data, and the id of the trial meant."""
    from autoembed.space import SearchSpace
    from autoembed.study.run_dir import RunDir
    from autoembed.study.study import prepare

    folder = RunDir.existing(run)
    space = SearchSpace.read(folder.space)
    chosen = _trial(folder, trial)
    return folder, space, prepare(folder, space, data, bar), chosen


def _picked(path: Path, rule: str) -> str:
    """The id of a trial of a study's Pareto front."""
    from autoembed.space import SearchSpace
    from autoembed.study import pareto
    from autoembed.study.run_dir import RunDir

    run = RunDir.existing(path)
    space = SearchSpace.read(run.space)
    if space.objective.cost is None:
        raise StudyError(
            f"--pick goes by quality and cost, and {run.path} was searched for quality alone: add a cost to its "
            "objective, such as {maximize: valid.auc, minimize: bytes}, or name a --trial"
        )
    return pareto.pick(pareto.of_run(run, space)[1], rule).id


def _trial(run: RunDir, wanted: str | None) -> str:
    """The id of the trial meant: an id, an arm's best, or the study's best."""
    from autoembed.space import SearchSpace
    from autoembed.study.leaderboard import best

    space = SearchSpace.read(run.space)
    trials = run.trials()
    if wanted is None:
        return best(trials, space).id
    if wanted in space.arms():
        own = [trial for trial in trials if trial.arm == wanted]
        if not own:
            raise StudyError(f"arm {wanted!r} of {run.path} has no trial that is done")
        return best(own, space).id
    return run.read_trial(wanted).id


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


if __name__ == "__main__":
    main()
