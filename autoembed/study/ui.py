"""The MLflow UI on the studies of a folder, on this machine only."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from mlflow import MlflowClient

from autoembed.errors import StudyError
from autoembed.study.run_dir import store
from autoembed.study.signals import ended_by_sigterm


def serve(runs: Path, port: int, say: Callable[[str], None]) -> int:
    """Serves the UI until it is interrupted; the server's exit status.

    StudyError if there is no store to show.
    """
    uri = store(runs)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise StudyError(f"there is nothing to show in {runs}: it has no mlflow.db (run `autoembed search` first)")
    if uri.startswith("http"):
        say(f"MLflow runs at {uri}")
        return 0
    for experiment in MlflowClient(tracking_uri=uri).search_experiments():
        if experiment.name != "Default":
            place = f"http://127.0.0.1:{port}/#/experiments/{experiment.experiment_id}/runs"
            say(f"{experiment.name:<16} {place}?workflowType=machine_learning")
    say("Ctrl-C ends it.")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # Job workers serve MLflow's GenAI features only, and cost 15 s at the start.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with ended_by_sigterm():
        server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            status = server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            _end(server)
    if status:
        raise StudyError(f"the MLflow server ended with status {status}: is port {port} in use? Choose another --port")
    return status


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(timeout=10)
    except subprocess.TimeoutExpired:
        server.kill()
