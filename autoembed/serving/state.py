"""The model that a server answers with, and how a new bundle takes its place."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import threading
from pathlib import Path

import numpy as np
import polars as pl
import torch

from autoembed.auxiliary import logits_of
from autoembed.bundle import Bundle, check_bundle, load_bundle
from autoembed.data.schema import PAD, Field
from autoembed.errors import first_line
from autoembed.nn.folding import folded
from autoembed.serving.rows import RowReader
from autoembed.serving.values import GONE
from autoembed.types import Array

_BATCH = 16384
_TRIES = 3
Identity = tuple[str, tuple[tuple[str, int, int, int], ...]]


class Loaded:
    """A verified bundle, ready to score: what a request begins with is what it ends with.

    `counted` is int [3, F]: how many values of each field were unknown, missing and there, in the `rows` that `count`
    was told of.
    """

    def __init__(self, bundle: Bundle, id: str, *, max_rows: int, strict: bool) -> None:
        self.bundle, self.id = bundle, id
        self.loaded = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        self.reader = RowReader(bundle, max_rows=max_rows, strict=strict)
        self.model, self.link = folded(bundle.model.cpu()), bundle.schema.task.link
        self.logits = logits_of(self.model)
        missing, lengths = map(bundle.vocabulary.missing, bundle.schema.names), bundle.schema.lengths
        self.missing = np.repeat([at or GONE for at in missing], lengths)  # of each column of ids
        self.starts = np.cumsum((0, *lengths[:-1]))
        # The second column of numbers between knots is no value of its own.
        self.counts = np.ones(sum(lengths), dtype=bool)
        self.counts[[at + 1 for at in bundle.schema.first_columns(bundle.schema.interpolated)]] = False
        known, schema = bundle.vocabulary, bundle.schema
        hashed = [name for name in schema.names if known.buckets(name)]
        self.hashed = {place: known.unknown(name) for name in hashed for place in schema.columns([name])}
        self.counted, self.rows = np.zeros((3, len(lengths)), dtype=np.int64), 0
        row = bundle.example()
        self.reader.warm(json.loads(row.write_json())[0])
        self.predict(self.reader.ids([row[name].to_list() for name in self.reader.columns]))  # the first one is slow

    def predict(self, ids: Array) -> Array:
        """Predictions float32 [N], or [N, C] of classes, of ids as the reader gives them, int32 [N, V]."""
        return self.predict_all(ids)[0]

    def predict_all(self, ids: Array) -> tuple[Array, dict[str, Array]]:
        """The same, and the chances of each auxiliary label, float32 [N]."""
        with torch.inference_mode():
            tensor = torch.from_numpy(np.ascontiguousarray(np.where(ids == GONE, 0, ids)))
            if len(ids) <= _BATCH:
                found, further = self._scored(tensor)
            else:
                parts = [self._scored(part) for part in torch.split(tensor, _BATCH)]
                found, further = (np.concatenate(own) for own in zip(*parts, strict=True))
        return found, dict(zip(self.model.auxiliary_labels, further.T, strict=True))

    def _scored(self, ids: torch.Tensor) -> tuple[Array, Array]:
        """Predictions float32 [N] or [N, C], and chances of auxiliary labels [N, L]."""
        logits, further = self.logits(ids)
        found: Array = self.link(logits).float().numpy()
        return found, np.empty((len(ids), 0)) if further is None else further.float().sigmoid().numpy()

    def count(self, ids: Array) -> None:
        """Adds the unknown and missing values of ids as the reader gives them."""
        unknown = (ids == 0) | (ids == GONE)
        for place, hashed in self.hashed.items():
            unknown[:, place] |= np.isin(ids[:, place], hashed)
        counted = [(each.sum(axis=0)) for each in (unknown, ids == self.missing, (ids != PAD) & self.counts)]
        self.counted += np.add.reduceat(counted, self.starts, axis=1)
        self.rows += len(ids)

    def shares(self) -> pl.DataFrame:
        """The frame of `Bundle.coverage` of all values that were counted."""
        return self.bundle.shares(self.counted)

    def facts(self) -> dict[str, object]:
        """What GET /model tells: columns and kinds, quality and cost."""
        bundle, cost = self.bundle, self.bundle.architecture.cost
        origin = {name: bundle.manifest.provenance.get(name) for name in ("study", "trial", "fingerprint")}
        fields = [field for field in bundle.schema.fields if not field.derived]
        return {
            "model": self.id,
            "label": bundle.schema.label,
            **({"auxiliary_labels": labels} if (labels := bundle.schema.auxiliary_labels) else {}),
            **({"classes": classes.names} if (classes := bundle.schema.classes) else {}),
            "columns": [_column(field) for field in fields],
            "backbone": bundle.architecture.backbone,
            "bytes": cost and cost.bytes,
            "embedding_bytes": cost and cost.embedding_bytes,
            "metrics": bundle.manifest.metrics,
            "created": bundle.manifest.created,
            "loaded": self.loaded,
            "autoembed": bundle.manifest.autoembed,
            **{name: value for name, value in origin.items() if value is not None},
            "example": bundle.example().to_dicts()[0],
        }


def _column(field: Field) -> dict[str, object]:
    node = {"name": field.name, "kind": field.kind, "ids": field.cardinality}
    return node if field.multi is None else {**node, **field.multi.model_dump()}


class State:
    """A bundle's path, the model that was loaded from it, and why a later bundle there was refused, if it was.

    BundleError if the bundle is damaged.
    """

    def __init__(self, path: Path, *, max_rows: int, strict: bool) -> None:
        self.path, self.max_rows, self.strict = path, max_rows, strict
        self.failure: str | None = None
        self.reloads = {"done": 0, "failed": 0}
        self._lock = threading.Lock()
        self._seen = self._identity()
        self.current = self._load(self._seen[0])

    def reload(self, *, force: bool = False) -> bool:
        """Loads the bundle if it has changed since the last look; whether a new model took the place of the old one.

        A bundle that is damaged is refused: the old model stays, and `failure` says why.

        Args:
            force: look at a bundle again that was refused and has not changed since.
        """
        with self._lock:
            for _ in range(_TRIES):
                seen = self._identity()
                if seen == self._seen and not (force and self.failure):
                    return False
                self._seen = seen
                if seen[0] == self.current.id:
                    self.failure = None
                    return False
                try:
                    loaded, failure = self._load(seen[0]), None
                except Exception as error:  # whatever is wrong with it: the old model stays
                    loaded, failure = None, first_line(error)
                if self._identity() != seen:  # it was swapped while it was read
                    continue
                self.failure = failure
                self.reloads["failed" if loaded is None else "done"] += 1
                if loaded is not None:
                    self.current = loaded
                return loaded is not None
            return False  # the next look finds it

    def _load(self, id: str) -> Loaded:
        bundle = load_bundle(self.path)
        check_bundle(bundle)
        return Loaded(bundle, id, max_rows=self.max_rows, strict=self.strict)

    def _identity(self) -> Identity:
        """The model's id, 12 hex digits of the manifest, which has the hashes of the files; and the size, time and
        inode of each file, which change with what is written in place."""
        try:
            id = hashlib.sha256((self.path / "manifest.json").read_bytes()).hexdigest()[:12]
            files = [(file.name, file.stat()) for file in sorted(self.path.iterdir())]
        except OSError:
            return "", ()
        return id, tuple((name, one.st_size, one.st_mtime_ns, one.st_ino) for name, one in files)
