"""The MLflow UI on the studies of a folder, by default for this machine only."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.error import URLError
from urllib.request import urlopen

from mlflow import MlflowClient

from autoembed.errors import StudyError, option
from autoembed.study.engine.signals import ended_by_sigterm
from autoembed.study.trackers.mlflow.store import mend_moved, store
from autoembed.study.trackers.mlflow.view import page

HOST = "127.0.0.1"
OWN = (HOST, "localhost", "::1")
PATIENCE = 300.0  # seconds that the server may take to answer


def serve(runs: Path, port: int, say: Callable[[str], None], host: str = HOST) -> int:
    """Serves the UI until it is interrupted; the server's exit status.

    On another `host` than this machine's own, whoever reaches the port may read and change the studies: that is told.
    StudyError if there is no store to show, or if the port is taken.
    """
    uri = store(runs)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise StudyError(f"there is nothing to show in {runs}: it has no mlflow.db (run `autoembed search` first)")
    if uri.startswith("http"):
        _links(uri, uri, say)
        return 0
    _check_free(host, port)
    mend_moved(runs)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    # Job workers serve MLflow's GenAI features only, and cost 15 s at the start.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    say("MLflow starts ...")
    with ended_by_sigterm(), tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            address = f"http://{_reached(host)}:{port}"
            if _answers(server, address):
                _links(uri, address, say)
                if host not in OWN:
                    say(f"warning: whoever reaches port {port} of {host} may read and change these studies")
                say("Ctrl-C ends it.")
            status = server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            _end(server)
        if status:
            raise StudyError(f"the MLflow server ended with status {status}: {_last_line(log)}")
    return status


def _reached(host: str) -> str:
    """How an address is written in a URL; one that means all addresses is reached at this machine's own."""
    own = {"0.0.0.0": HOST, "::": "::1"}.get(host, host)
    return f"[{own}]" if ":" in own else own


def _links(uri: str, address: str, say: Callable[[str], None]) -> None:
    """Tells the address of each study's page, the newest study first."""
    found = MlflowClient(tracking_uri=uri).search_experiments(order_by=["last_update_time DESC"])
    for experiment in found:
        if experiment.name != "Default":
            say(f"{experiment.name:<16} {page(experiment.experiment_id, address)}")


def _check_free(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StudyError(
                f"port {port} of {host} cannot be had ({error.strerror}): choose another {option('port')}"
            ) from None


def _answers(server: subprocess.Popen[bytes], address: str) -> bool:
    """Waits until the server answers; False if it ended before. StudyError if it takes too long."""
    until = time.monotonic() + PATIENCE
    while server.poll() is None:
        try:
            with urlopen(f"{address}/health", timeout=10):
                return True
        except (URLError, OSError):
            if time.monotonic() > until:
                raise StudyError(f"MLflow has not answered on {address} for {PATIENCE:g} s") from None
            time.sleep(0.2)
    return False


def _last_line(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(timeout=10)
    except subprocess.TimeoutExpired:
        server.kill()
