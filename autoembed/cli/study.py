"""Studies: search, retrain, resize, frontier, sync, ui."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from autoembed.cli.init import tell_estimate
from autoembed.cli.options import (
    INTERRUPTED,
    Data,
    Device,
    Run,
    Runs,
    Settings,
    Which,
    app,
    opening,
    settings_of,
    space_of,
)
from autoembed.errors import DataError, StudyError


@app.command()
def search(
    space: Annotated[Path, typer.Argument(help="A search-space file, or the name of one that ships: quickstart.")],
    data: Data = None,
    runs: Runs = Path("runs"),
    name: Annotated[str | None, typer.Option(help="The study's name; the file's by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study of that name.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the study of that name.")] = False,
    trials: Annotated[int | None, typer.Option(help="Trials per arm; overrides budget.trials.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Minutes after which no trial begins; overrides budget.minutes.")
    ] = None,
    device: Device = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs to use; all by default.")] = None,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; one of the study's own by default.")
    ] = None,
    lines: Annotated[bool, typer.Option("--lines", help="A line for each trial that has ended, for logs.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the leaderboard, warnings and errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="A line for each step and epoch, with the time.")] = False,
    dashboard: Annotated[bool, typer.Option("--dashboard", help="Serve Ray's dashboard while the study runs.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run, how long and how large.")] = False,
) -> None:
    """Search architectures, retrain them, and compare them with the baselines."""
    if dry_run:
        tell_estimate(space_of(space), data, runs, trials, cpus)
        return
    from autoembed.cli.show import show_board
    from autoembed.study.engine.run import Request, run_study
    from autoembed.study.show.progress import Bar, Quiet, Verbose
    from autoembed.study.show.report import show_unfinished
    from autoembed.study.show.tables import stdout
    from autoembed.study.study import Study

    if quiet + lines + verbose > 1:
        raise StudyError("--quiet, --lines and --verbose say different things: give one of them")
    request = Request(
        space=space_of(space),
        data=data,
        runs=runs,
        name=name,
        resume=resume,
        force=force,
        trials=trials,
        minutes=minutes,
        device=device,
        cpus=cpus,
        address=address,
        dashboard=dashboard,
        again=_again(),
    )
    try:
        run, _ = run_study(request, Quiet() if quiet else Verbose() if verbose else Bar(lines=lines))
    except KeyboardInterrupt:
        if request.run.ended():
            show_unfinished(stdout(), request.run)
        raise
    show_board(stdout(), Study(run))


def _again() -> tuple[str, ...]:
    """This command as one that goes on with its study, for a process that is replaced."""
    words = [word for word in sys.argv[1:] if word not in ("--force", "--resume")]
    safe = () if sys.path[:1] in ([""], [str(Path.cwd())]) else ("-P",)
    return sys.executable, *safe, "-c", "from autoembed.cli import main; main()", *words, "--resume"


@app.command()
@opening
def retrain(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="A study's folder, a bundle, or an architecture's JSON file.")],
    trial: Which = None,
    seeds: Annotated[int, typer.Option(help="How many seeds, of a study.")] = 3,
    data: Data = None,
    device: Device = None,
    out: Annotated[Path | None, typer.Option(help="The new bundle, of a bundle or an architecture.")] = None,
    label: Annotated[str | None, typer.Option(help="The label column of --data; the bundle's by default.")] = None,
    train: Annotated[
        list[str] | None, typer.Option("--train", help="KEY=VALUE of the recipe, such as epochs=5; repeatable.")
    ] = None,
    warm: Annotated[bool, typer.Option("--warm", help="Start from the weights of the bundle.")] = False,
    settings: Settings = None,
) -> None:
    """Train a study's best architecture again over seeds, or an architecture on other data.

    Of a study: mean and sd over seeds; with `--trial all` of each arm's best. Of a bundle or an architecture's JSON
    file: `--data` and `--out` are needed, the vocabulary is fitted to the new table, and a new bundle is written.
    """
    if not (source / "space.yaml").is_file() and source.exists():
        _refuse(context, {"trial", "seeds"}, "a bundle or an architecture")
        _train_architecture(source, data, out, label, device, settings or [], train or [], warm)
        return
    _refuse(context, {"out", "label", "train", "warm", "settings"}, "a study")
    run = source
    from autoembed.study.results.retrain import ARMS, FILE
    from autoembed.study.show.progress import Bar
    from autoembed.study.show.report import show_arms, show_seeds
    from autoembed.study.show.tables import stdout
    from autoembed.study.study import Study

    with Bar() as bar:
        study = Study.open(run, data=data, shown=bar)
        if trial != "all":
            chosen = study.trial(trial)
            rows = study.retrain(chosen.id, seeds=seeds, device=device)
        else:
            arms = study.retrain_arms(seeds=seeds, device=device)
    if trial != "all":
        show_seeds(stdout(), chosen.id, rows, study.path / FILE)
        return
    show_arms(stdout(), arms, study.path / ARMS)
    try:
        study.sync()
    except StudyError as error:
        print(f"warning: {error}: `autoembed sync {study.path}` writes it when that is mended", file=sys.stderr)


def _refuse(context: typer.Context, names: set[str], source: str) -> None:
    """DataError if one of the options was given."""
    for option in context.command.params:
        given = str(context.get_parameter_source(str(option.name))).endswith("COMMANDLINE")
        if option.name in names and given:
            raise DataError(f"{option.opts[0]} does not go with {source}")


def _train_architecture(
    source: Path,
    data: str | None,
    out: Path | None,
    label: str | None,
    device: str | None,
    settings: list[str],
    train: list[str],
    warm: bool,
) -> None:
    from autoembed.reuse import train_architecture
    from autoembed.study.show.progress import Bar
    from autoembed.study.show.tables import stdout

    if data is None or out is None:
        raise DataError(f"{source} is no study: give --data TABLE and --out BUNDLE to train its architecture there")
    with Bar() as bar:
        found = train_architecture(
            source,
            data,
            out,
            label=label,
            settings=settings_of(settings),
            train=settings_of(train, "--train"),
            warm=warm,
            device=device or "auto",
            progress=bar.step,
        )
    console = stdout()
    for note in found.notes:
        console.print(f"  {note}", soft_wrap=True, markup=False)
    from autoembed.task import told

    cost = found.bundle.architecture.cost
    assert cost is not None
    metrics = ", ".join([told(found.valid, "valid").partition(",")[0], told(found.test, "test")])
    console.print(
        f"{metrics}; {cost.embedding_bytes:,} bytes of embeddings, {cost.bytes:,} in all",
        soft_wrap=True,
    )
    for name, own in found.auxiliary.items():
        console.print(f"  {name}: {told(own, 'test')}", soft_wrap=True, markup=False)
    console.print(f"bundle written to {out}", soft_wrap=True)


@app.command()
def resize(
    run: Run,
    out: Annotated[Path, typer.Argument(help="Folder of the bundles, one for each limit.")],
    width: Annotated[list[float] | None, typer.Option(help="As many embedding parameters as that many dims.")] = None,
    size: Annotated[list[int] | None, typer.Option("--bytes", help="Bytes of the whole model in memory.")] = None,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Train each for so many epochs from the next larger one's weights, not anew."),
    ] = None,
    trial: Which = None,
    data: Data = None,
) -> None:
    """Search once as a trial did, and write a retrained bundle for each of several limits."""
    from autoembed.study.show.progress import Bar
    from autoembed.study.show.report import show_sizes
    from autoembed.study.show.tables import stdout
    from autoembed.study.study import Study

    with Bar() as bar:
        study = Study.open(run, data=data, shown=bar)
        chosen = study.trial(trial)
        found = study.resize(out, chosen.id, widths=width or (), sizes=size or (), epochs=epochs)
    show_sizes(stdout(), found, f"{chosen.id}: one search within {len(found)} limits")


@app.command()
def frontier(
    space: Annotated[Path, typer.Argument(help="A search-space file, or the name of one that ships.")],
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

    from autoembed.frontier.run import FrontierRequest, run_frontier
    from autoembed.study.show.progress import Bar
    from autoembed.study.show.report import show_frontier
    from autoembed.study.show.tables import stdout

    request = FrontierRequest(
        space=space_of(space),
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
@opening
def sync(run: Run) -> None:
    """Write a study's folder to MLflow: what is missing there, and nothing twice."""
    from autoembed.study.show.tables import stdout
    from autoembed.study.study import Study

    study = Study.open(run)
    uri = study.sync()
    stdout().print(f"{study.name}: {len(study.ended)} trials stand in the MLflow store {uri}", soft_wrap=True)


@app.command()
def ui(
    runs: Runs = Path("runs"),
    port: Annotated[int, typer.Option(help="The port to listen on.", min=1, max=65535)] = 5000,
    host: Annotated[str, typer.Option(help="The address to listen on; this machine only by default.")] = "127.0.0.1",
) -> None:
    """Open the MLflow UI on the studies of a folder."""
    from autoembed.study.show.tables import stdout
    from autoembed.study.trackers.mlflow.ui import serve

    serve(runs, port, lambda line: stdout().print(line, soft_wrap=True), host)
