"""Mends an MLflow store whose folder was moved: MLflow keeps the places of artifacts as absolute paths."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlparse

ARTIFACTS = "mlartifacts"
# Every column of MLflow's store that holds the place of an artifact.
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


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
