"""The MLflow store beside a folder of studies: made whole, and mended where the folder was moved.

MLflow makes its tables in the file itself, which nothing mends if it is killed meanwhile, and keeps the places of
artifacts as absolute paths.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlparse

from filelock import FileLock

from autoembed.writing import scratch

ARTIFACTS = "mlartifacts"
_MAKING = threading.Lock()  # Alembic, which makes the tables, has one state for the whole process
# Every column of MLflow's store that holds the place of an artifact.
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def store(runs: Path) -> str:
    """The MLflow store of the studies in a folder: MLFLOW_TRACKING_URI, or mlflow.db beside them."""
    return os.environ.get("MLFLOW_TRACKING_URI") or own_store(runs)


def own_store(runs: Path) -> str:
    """The MLflow store beside the studies in a folder."""
    return f"sqlite:///{runs.absolute() / 'mlflow.db'}"


def make_store(path: Path) -> None:
    """Makes an MLflow store in SQLite, unless it is there: beside it first, so that it is whole or not there."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with _MAKING, FileLock(path.parent / ".mlflow.lock", timeout=600), scratch(path.parent) as folder:
        if path.exists():
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        made = SqlAlchemyStore(f"sqlite:///{folder / path.name}", str(path.parent / ARTIFACTS))
        made.engine.dispose()
        os.replace(folder / path.name, path)


def mend_moved(runs: Path) -> list[str]:
    """Points the MLflow store of a folder of studies at the artifacts beside it; the folders that they lay in before.

    Only places that are gone and that lie in a folder `mlartifacts` change.
    """
    store, here = runs / "mlflow.db", (runs / ARTIFACTS).resolve()
    if not store.is_file() or not here.is_dir():
        return []
    with closing(sqlite3.connect(store, timeout=30)) as connection, connection:
        found = {place for (place,) in connection.execute("SELECT artifact_location FROM experiments")}
        olds = {place[: place.rindex(f"/{ARTIFACTS}/")] for place in found if f"/{ARTIFACTS}/" in place}
        gone = [old for old in sorted(olds) if old.startswith("file://") and not _path(old).exists()]
        for old in gone:
            for table, column in _PLACES:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (here.parent.as_uri(), len(old) + 1, len(old) + 1, f"{old}/"),
                )
    return [str(_path(old)) for old in gone]


def _path(uri: str) -> Path:
    return Path(unquote(urlparse(uri).path))
