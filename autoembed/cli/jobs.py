"""Studies on a Ray cluster: submit, and job status, logs and stop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoembed.cli.options import Device, JobId, Server, app, space_of
from autoembed.errors import StudyError

if TYPE_CHECKING:
    from autoembed.study.engine.submit import Cluster


@app.command()
def submit(
    space: Annotated[Path, typer.Argument(help="A search-space file, or the name of one that ships.")],
    address: Server,
    runs: Annotated[Path, typer.Option(help="Folder of the studies: an absolute path that all nodes share.")],
    data: Annotated[str | None, typer.Option(help="Data as the cluster sees it; overrides data.path.")] = None,
    name: Annotated[str | None, typer.Option(help="The study's name; the file's by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study of that name.")] = False,
    trials: Annotated[int | None, typer.Option(help="Trials per arm; overrides budget.trials.")] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Minutes after which no trial begins; overrides budget.minutes.")
    ] = None,
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
    from autoembed.study.engine.submit import Cluster, Job, check, variables

    job = Job(
        space=space_of(space),
        runs=runs,
        options={
            "--data": data,
            "--name": name,
            "--trials": None if trials is None else str(trials),
            "--minutes": None if minutes is None else f"{minutes:g}",
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
    from autoembed.study.engine.submit import Cluster

    print(": ".join(word for word in Cluster(address).status(job) if word))


@jobs.command("logs")
def job_logs(
    job: JobId,
    address: Server,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the job ends.")] = False,
) -> None:
    """Print what a job has printed."""
    from autoembed.study.engine.submit import Cluster

    cluster = Cluster(address)
    if follow:
        _follow(cluster, job)
    else:
        print(cluster.logs(job), end="")


@jobs.command("stop")
def job_stop(job: JobId, address: Server) -> None:
    """End a job in order; `autoembed submit ... --resume` goes on."""
    from autoembed.study.engine.submit import Cluster

    print(f"job {job}: {Cluster(address).stop(job)}")
