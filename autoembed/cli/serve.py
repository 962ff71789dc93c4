"""Serving a bundle over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autoembed.cli.options import app


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder, such as runs/quickstart/best.")],
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all of this machine's.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 for one that is free.", min=0, max=65535)] = 8000,
    max_rows: Annotated[int, typer.Option(help="Rows of a request.", min=1)] = 10_000,
    max_bytes: Annotated[int, typer.Option(help="Bytes of a request.", min=1)] = 8 << 20,
    max_requests: Annotated[int, typer.Option(help="Requests at once; more get status 503.", min=1)] = 64,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse fields that the model does not have.")] = False,
    threads: Annotated[int, typer.Option(help="Threads of torch.", min=1)] = 1,
    reload_every: Annotated[
        float,
        typer.Option(help="Seconds between looks for a new bundle in the place of this one; 0: none.", min=0),
    ] = 5.0,
    dockerfile: Annotated[
        Path | None,
        typer.Option(help="Serve nothing, but write a folder from which `docker build` makes an image."),
    ] = None,
) -> None:
    """Serve a bundle over HTTP: JSON or Arrow in, predictions out, health, metrics, and new bundles as they come."""
    if dockerfile is not None:
        from autoembed.serving.image import write_image

        write_image(bundle, dockerfile)
        print(f"image written to {dockerfile}: docker build -t my-model {dockerfile}")
        return
    from autoembed.serving.app import Limits
    from autoembed.serving.server import serve as serve_bundle

    try:
        serve_bundle(
            bundle,
            host=host,
            port=port,
            limits=Limits(max_bytes=max_bytes, max_requests=max_requests),
            max_rows=max_rows,
            strict=strict,
            threads=threads,
            reload_every=reload_every,
            say=lambda line: print(line, flush=True),
        )
    except KeyboardInterrupt:
        return
