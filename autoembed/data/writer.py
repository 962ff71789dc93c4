"""Writes the files of an encoded dataset, a chunk of rows at a time, and hashes what it writes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import numpy.typing as npt

from autoembed.data.columns import Ids
from autoembed.data.planted import Truth
from autoembed.data.schema import FeatureSchema
from autoembed.data.sides import KINDS, Sides
from autoembed.data.spec import SPLITS, Split
from autoembed.data.vocabulary import Vocabulary
from autoembed.types import Array

Labels = npt.NDArray[np.float32]

LAYOUT = 2


class DatasetFacts(TypedDict):
    """The content of dataset.json; the last two may be missing in one that an earlier version wrote."""

    layout: int
    fingerprint: str
    rows: dict[Split, int]
    truth: Truth | None
    notes: NotRequired[list[str]]
    sources: NotRequired[list[str]]


class Writer:
    """Fills `<split>.ids.npy` and `<split>.labels.npy` in `folder`, then writes what says what they mean.

    Weights, groups and auxiliary labels have files like the labels', if the schema has such columns.
    """

    def __init__(self, folder: Path, schema: FeatureSchema, rows: dict[Split, int]) -> None:
        self.folder, self.schema, self.rows = folder, schema, rows
        self._done = dict.fromkeys(SPLITS, 0)
        self._ids = {
            split: self._array(f"{split}.ids", np.int32, (rows[split], sum(schema.lengths))) for split in SPLITS
        }
        self._sides = {
            split: {
                name: self._array(f"{split}.{name}", KINDS[name], schema.side_shape(name, rows[split]))
                for name in schema.sides
            }
            for split in SPLITS
        }
        # A hash per array: the order in which the rows of different splits come must not show in the fingerprint.
        self._hashes = {split: [hashlib.sha256() for _ in ("ids", *schema.sides)] for split in SPLITS}

    def _array(self, name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> Array:
        path = self.folder / f"{name}.npy"
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):
            # A disk that is full ends with an error here, and not with a bus error at a write to memory.
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        return array

    def add(self, split: Split, ids: Ids, sides: Sides) -> None:
        """Append ids [rows, V] to a split, and what stands beside them, as `FeatureSchema.side_shape` says."""
        ids = np.ascontiguousarray(ids, dtype=np.int32)
        own = {name: np.ascontiguousarray(sides[name], dtype=KINDS[name]) for name in self.schema.sides}
        start, end = self._done[split], self._done[split] + len(ids)
        self._ids[split][start:end] = ids
        for name, array in own.items():
            self._sides[split][name][start:end] = array
        for digest, array in zip(self._hashes[split], (ids, *own.values()), strict=True):
            digest.update(array.data)
        self._done[split] = end

    def finish(self, vocabulary: Vocabulary, truth: Truth | None, notes: Sequence[str], sources: Sequence[str]) -> None:
        """Write schema, vocabulary, its counts and dataset.json, the last of all, which makes the dataset complete."""
        assert self._done == self.rows, f"{self._done} rows written, {self.rows} announced"
        for split in SPLITS:
            for array in (self._ids[split], *self._sides[split].values()):
                assert isinstance(array, np.memmap)
                array.flush()
        vocabulary.write(self.folder / "vocabulary.parquet")
        np.save(self.folder / "counts.npy", np.concatenate([vocabulary.counts(name) for name in vocabulary.names]))
        (self.folder / "schema.json").write_text(self.schema.model_dump_json(indent=1) + "\n")
        hashes = [digest.hexdigest() for split in SPLITS for digest in self._hashes[split]]
        fingerprint = fingerprint_of(self.schema, vocabulary, hashes)
        facts: DatasetFacts = {
            "layout": LAYOUT,
            "fingerprint": fingerprint,
            "rows": self.rows,
            "truth": truth,
            "notes": list(notes),
            "sources": list(sources),
        }
        (self.folder / "dataset.json").write_text(json.dumps(facts, indent=1) + "\n")


def fingerprint_of(schema: FeatureSchema, vocabulary: Vocabulary, hashes: Sequence[str]) -> str:
    """16 hex digits of an encoded dataset; `hashes` are SHA-256 of each split's arrays in turn."""
    content = [schema.fingerprint(), hashlib.sha256(vocabulary.table().write_csv().encode()).hexdigest(), *hashes]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
