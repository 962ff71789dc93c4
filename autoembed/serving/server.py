"""The server's process: its socket, its signals and its logs."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import uvicorn

from autoembed.errors import ServingError, option
from autoembed.serving.app import App, Limits
from autoembed.serving.state import State

_KEEP_ALIVE, _PATIENCE = 75, 30  # seconds that an idle connection lives, and that requests have when the server ends
_BACKLOG = 1024


def serve(
    path: Path,
    *,
    host: str,
    port: int,
    limits: Limits,
    max_rows: int,
    strict: bool,
    threads: int,
    reload_every: float,
    say: Callable[[str], None],
) -> None:
    """Serves a bundle until it is interrupted.

    Args:
        path: the bundle's folder.
        host: the address to listen on.
        port: 0 for one that is free.
        limits: of a request.
        max_rows: of a request.
        strict: whether fields that the bundle does not have are refused.
        threads: of torch.
        reload_every: seconds between two looks for a new bundle; 0 for none.
        say: told the address once the server takes requests, and of new models.

    Raises:
        ServingError: the address cannot be had.
        BundleError: the bundle is damaged.
    """
    torch.set_num_threads(threads)
    with listening(host, port) as listener:
        state = State(path, max_rows=max_rows, strict=strict)
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        app = App(state, limits, reload_every=reload_every, say=say, started=lambda: _start(app, address))
        config = uvicorn.Config(
            app.asgi(),
            lifespan="on",
            access_log=False,
            log_level="warning",
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=_PATIENCE,
        )
        uvicorn.Server(config).run(sockets=[listener])


def _start(app: App, address: str) -> None:
    loop = asyncio.get_running_loop()
    looking: set[asyncio.Task[bool]] = set()

    def look() -> None:
        task = loop.create_task(app.look(force=True))
        looking.add(task)  # asyncio itself holds no task
        task.add_done_callback(looking.discard)

    loop.add_signal_handler(signal.SIGHUP, look)
    app.say(f"serving {app.state.path} at {address}: {_question(app.state, address)} (Ctrl-C ends it)")


def _question(state: State, address: str) -> str:
    """A command that asks for a prediction; of a wide table, where its row is told."""
    row = json.dumps({"row": state.current.bundle.example().to_dicts()[0]}, default=str)
    if len(row) > 200 or "'" in row:
        return f"POST {address}/predict, with a row as {address}/model has it"
    return f"curl {address}/predict -H 'content-type: application/json' -d '{row}'"


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; ServingError if the address cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        # asyncio sets it on sockets of its own only; without it each answer waits 40 ms for the client's receipt.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        raise ServingError(
            f"port {port} of {host} cannot be had ({error.strerror}): choose another {option('port')}"
        ) from None
