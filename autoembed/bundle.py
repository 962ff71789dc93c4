"""A bundle: an architecture with its weights and vocabulary, all that raw rows need to become click probabilities.

    architecture.json, schema.json, vocabulary.parquet, weights.safetensors, manifest.json
    README.md (a model card), sample.json (ids and what the model predicts for them)

Nothing in it is pickled, and every file of the first line is checked against the manifest when it is loaded.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import torch
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from autoembed import __version__
from autoembed.architecture import Architecture
from autoembed.auxiliary import prediction_columns, predictions
from autoembed.card import SAMPLE_ROWS, card, sample_ids
from autoembed.data.frames import Frame, to_lazy
from autoembed.data.readers import DataSpec, clean
from autoembed.data.schema import FeatureSchema
from autoembed.data.values import col, is_missing
from autoembed.data.vocabulary import Vocabulary
from autoembed.errors import AutoembedError, BundleError, first_line
from autoembed.nn.model import Model, build_model
from autoembed.plugins import without_imports
from autoembed.training import pick_device
from autoembed.types import Array
from autoembed.writing import as_open_as, exchange, scratch

FILES = ("architecture.json", "schema.json", "vocabulary.parquet", "weights.safetensors")
EXTRAS = ("README.md", "sample.json")  # not in bundles of before
VERSION = 1
_CHUNK = 1 << 18
_SAME = 1e-5
_TABLE = re.compile(r"(\btables\.\d+)$")
# A plan whose slice was pushed into one Parquet scan, with expressions per row above it.
_SLICED = re.compile(
    r"(\s*(WITH_COLUMNS:\s+\[.*\]|SELECT \[.*\]|simple π .*) *\n)*"
    r"\s*Parquet SCAN \[.*\]\n\s*PROJECT .* COLUMNS\n\s*SLICE: Positive .*(\n\s*ESTIMATED ROWS: \d+)?\s*"
)


class Manifest(BaseModel):
    """What a bundle holds and where it comes from; `data` is the part of the `data:` section that parsing needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    autoembed: str
    created: str
    files: dict[str, str]
    data: dict[str, JsonValue]
    metrics: dict[str, JsonValue]
    provenance: dict[str, JsonValue]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A loaded bundle; the model is on the CPU until `predict` names another device."""

    path: Path
    schema: FeatureSchema
    vocabulary: Vocabulary
    architecture: Architecture
    model: Model
    spec: DataSpec
    manifest: Manifest

    def predict(self, frame: Frame, *, batch: int = 16384, device: str = "auto") -> Array:
        """Click probabilities of raw rows, float32 [N], or of classes [N, C], in the order of the rows.

        `frame` is of Polars, eager or lazy, or of pandas. The label need not be there, further columns are ignored, and
        a value that train did not know scores as unknown. DataError names a missing column.
        """
        return self.score(frame, batch=batch, device=device)[0]

    def predict_all(self, frame: Frame, *, batch: int = 16384, device: str = "auto") -> pl.DataFrame:
        """What `predict` gives, as column `prediction`, and the chances of each auxiliary label: `prediction_LABEL`.

        Of classes there is a column for each: `prediction_CLASS`.
        """
        return self.score_all(frame, batch=batch, device=device)[0]

    def predict_ids(self, ids: Array) -> Array:
        """Predictions for encoded rows, int [N, V] in the order of the schema: float32 [N], or [N, C] of classes."""
        found = _predicted(self.schema, self.model.eval(), ids)
        return found if self.schema.classes else found[:, 0]

    def write_sample(self, folder: Path) -> None:
        """Writes sample.json into a folder, as a bundle holds it: ids and the predictions for them."""
        _write_sample(folder, self.schema, _predicted(self.schema, self.model.eval(), sample_ids(self.schema)))

    def coverage(self, frame: Frame) -> pl.DataFrame:
        """How well a table's values are known: a row for each field with shares of its values, beside those of train.

        Columns: field, unknown (values that train did not have, or too rarely), missing, train_unknown, train_missing.
        """
        return self.score(frame)[1]

    def score(
        self, frame: Frame, *, batch: int = 16384, device: str = "auto", progress: Callable[[int], None] | None = None
    ) -> tuple[Array, pl.DataFrame]:
        """What `predict` gives, and what `coverage` does, of one pass over the rows; `progress` gets those done."""
        outputs = self.schema.task.outputs
        scores, coverage = self._scored(
            frame, lambda ids: self._of_label(ids).reshape(len(ids), outputs), outputs, batch, device, progress
        )
        return scores if self.schema.classes else scores[:, 0], coverage

    def score_all(
        self, frame: Frame, *, batch: int = 16384, device: str = "auto", progress: Callable[[int], None] | None = None
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """What `predict_all` gives, and what `coverage` does, of one pass over the rows; `progress` gets those done."""
        names = prediction_columns(self.schema)
        of = partial(predictions, self.schema, self.model)
        scores, coverage = self._scored(frame, of, len(names), batch, device, progress)
        return pl.DataFrame({name: scores[:, at] for at, name in enumerate(names)}), coverage

    def _of_label(self, ids: torch.Tensor) -> Array:
        """Predictions of the label alone for ids int [N, V], float32 [N], or [N, C] of classes."""
        found: Array = self.schema.task.link(self.model(ids)).float().cpu().numpy()
        return found

    @torch.no_grad()
    def _scored(
        self,
        frame: Frame,
        predict: Callable[[torch.Tensor], Array],
        columns: int,
        batch: int,
        device: str,
        progress: Callable[[int], None] | None,
    ) -> tuple[Array, pl.DataFrame]:
        """What `predict` gives for the ids of all rows, float32 [N, columns], and the frame of `coverage`."""
        where = pick_device(device)
        self.model.to(where).eval()
        rows_of = to_lazy(frame)
        present = rows_of.collect_schema().names()
        needed = [name for name in self.vocabulary.columns if name in present]
        lazy = clean(rows_of.select(col(name) for name in needed), self.spec)
        counted = np.zeros((3, len(self.vocabulary.names)), dtype=np.int64)
        # A missing value without an id of its own is told from an unknown one by the table alone.
        by_table = {
            at: name
            for at, name in enumerate(self.vocabulary.names)
            if name in needed and not self.vocabulary.missing(name)
        }
        if len(needed) < len(self.vocabulary.columns):
            self.vocabulary.encode(lazy.head(0).collect())
        scores = np.empty((0, columns), dtype=np.float32)
        for rows in _chunks(lazy):
            place = len(scores)
            # In place: many small arrays, joined at the end, would hold three times their size in a torn heap.
            scores.resize((place + rows.height, columns), refcheck=False)
            encoded = self.vocabulary.encode(rows)
            counted += self.vocabulary.gaps(encoded)
            for at, name in by_table.items():
                counted[1, at] += is_missing(rows[name]).sum()
            ids = torch.from_numpy(encoded).to(where)
            for start in range(0, rows.height, batch):
                part = predict(ids[start : start + batch])
                scores[place + start : place + start + len(part)] = part
                if progress:
                    progress(place + start + len(part))
        return scores, self.shares(counted)

    def shares(self, counted: Array) -> pl.DataFrame:
        """The frame of `coverage` from how many values of each field are unknown, missing and there: int [3, F]."""
        table = []
        for place, name in enumerate(self.vocabulary.names):
            if name not in self.vocabulary.columns:
                continue
            counts, at = self.vocabulary.counts(name), self.vocabulary.missing(name)
            total, rows = max(int(counts.sum()), 1), max(int(counted[2, place]), 1)
            # Without an id of its own, a missing value is one of the unknown ones: it is told as missing alone.
            unknown = counted[0, place] - (counted[1, place] if at == 0 else 0)
            rare = counts[self.vocabulary.unknown(name)].sum()
            shares = (unknown / rows, counted[1, place] / rows, rare / total, counts[at] / total if at else 0.0)
            table.append((name, *map(float, shares)))
        names = ("field", "unknown", "missing", "train_unknown", "train_missing")
        return pl.DataFrame(
            table, schema={name: pl.Float64 if place else pl.String for place, name in enumerate(names)}, orient="row"
        )

    def example(self) -> pl.DataFrame:
        """One raw row of every field's most frequent value, to show what a table must hold."""
        table = self.vocabulary.table().filter(pl.col("id") > 0)
        finite = table.filter(pl.col("value").is_not_null() | pl.col("upper").is_finite()).sort("id")
        row: dict[str, list[object]] = {}
        for field in self.schema.fields:
            if field.derived:
                continue
            hashed = pl.col("id").is_in(self.vocabulary.unknown(field.name).tolist())
            found = finite.filter(pl.col("field") == field.name, ~hashed).head(1)
            values: list[object] = found["upper" if field.kind == "numeric" else "value"].to_list()
            row[field.name] = values or [None]
            if field.multi is not None and field.multi.separator is None:
                row[field.name] = [values]
        return pl.DataFrame(row)


def write_bundle(
    path: Path,
    *,
    schema: FeatureSchema,
    vocabulary: Vocabulary,
    architecture: Architecture,
    model: Model,
    data: Mapping[str, JsonValue],
    metrics: Mapping[str, JsonValue],
    provenance: Mapping[str, JsonValue],
) -> Path:
    """Writes a bundle in one step, in the place of one that is there; BundleError if something else is.

    Args:
        path: the bundle's folder.
        schema: the schema that the model was built with; cut down to the architecture's fields here.
        vocabulary: likewise.
        architecture: what the model was built from.
        model: the retrained compact model.
        data: the keys of the `data:` section that say how raw tables are parsed.
        metrics: what to record of the model's quality.
        provenance: the study, the trial and the fingerprint of the data.
    """
    with _replacing(path) as temporary:
        architecture.write(temporary / "architecture.json")
        labels = {"auxiliary_labels": architecture.auxiliary_labels}
        kept = schema.keep(architecture.columns).model_copy(update=labels)
        (temporary / "schema.json").write_text(kept.model_dump_json(indent=1) + "\n")
        save_file(weights_of(model), temporary / "weights.safetensors")
        as_open_as(temporary / "weights.safetensors", temporary / "schema.json")
        own = vocabulary.keep(kept.names)
        own.write(temporary / "vocabulary.parquet")
        (temporary / "README.md").write_text(card(kept, own, architecture, metrics, provenance))
        _write_sample(temporary, kept, _sample(schema, kept, model))
        manifest = Manifest(
            autoembed=__version__,
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            files={name: sha256(temporary / name) for name in (*FILES, *EXTRAS)},
            data=dict(data) | ({"classes": list(kept.classes.names)} if kept.classes else {}),
            metrics=dict(metrics),
            provenance=dict(provenance),
        )
        (temporary / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n")
    return path


def copy_bundle(source: Path, path: Path) -> Path:
    """Copies a bundle in one step, as `write_bundle` writes one; BundleError if it is damaged or the place is taken."""
    load_bundle(source)
    with _replacing(path) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
    return path


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A folder that takes the place of `path` at the end; BundleError if something else than a bundle is there."""
    if path.exists() and not (path / "manifest.json").is_file() and not (path.is_dir() and not any(path.iterdir())):
        raise BundleError(f"{path} exists and is not a bundle: choose another place")
    with scratch(path.parent) as temporary:
        made, before = temporary / "made", temporary / "before"
        made.mkdir(mode=0o755)
        yield made
        if path.is_dir() and exchange(made, path):
            return
        if path.exists():
            path.rename(before)
        try:
            made.rename(path)
        except OSError:
            if before.exists():
                before.rename(path)
            raise


def load_bundle(path: str | Path) -> Bundle:
    """A bundle ready to predict; BundleError says in one line which file is missing, changed or does not fit."""
    folder = Path(path)
    manifest = _manifest(folder)
    for name in FILES:
        file = folder / name
        if not file.is_file():
            raise BundleError(f"bundle {folder} lacks {name}: export it again")
        if manifest.files.get(name) != sha256(file):
            raise BundleError(f"{file} is not the file that the manifest describes (sha256 differs): export it again")
    try:
        schema = FeatureSchema.model_validate_json((folder / "schema.json").read_text())
        spec = DataSpec.model_validate(manifest.data)
        architecture = Architecture.read(folder / "architecture.json")
        vocabulary = Vocabulary.read(folder / "vocabulary.parquet")
        if vocabulary.names != schema.names or vocabulary.schema(schema) != schema:
            raise BundleError("its vocabulary and its schema differ")
        with without_imports():
            model = load_model(schema, architecture, folder / "weights.safetensors")
    except (ValueError, ValidationError, SafetensorError, RuntimeError, AutoembedError) as error:
        raise BundleError(f"bundle {folder} does not fit together: {first_line(error)}") from None
    return Bundle(
        path=folder,
        schema=schema,
        vocabulary=vocabulary,
        architecture=architecture,
        model=model.eval(),
        spec=spec,
        manifest=manifest,
    )


def verify_bundle(path: str | Path) -> list[str]:
    """What was checked of a bundle, in a sentence each: hashes, schema, and that it predicts what it did when written.

    BundleError says what is wrong.
    """
    return check_bundle(load_bundle(path))


def check_bundle(bundle: Bundle) -> list[str]:
    """What `verify_bundle` says of a loaded bundle."""
    for name, hashed in bundle.manifest.files.items():
        file = bundle.path / name
        if not file.is_file() or sha256(file) != hashed:
            raise BundleError(f"{file} is not the file that the manifest describes (sha256 differs): export it again")
    checked = [
        f"{len(bundle.manifest.files)} files have the hashes of the manifest",
        f"schema, vocabulary and weights fit together: {len(bundle.schema.fields)} fields",
    ]
    if "sample.json" not in bundle.manifest.files:
        return [*checked, "no sample of predictions is stored: the bundle was written by an earlier version"]
    sample = json.loads((bundle.path / "sample.json").read_text())
    found = _predicted(bundle.schema, bundle.model.eval(), np.array(sample["ids"], dtype=np.int32))
    stored = [*sample.get("classes", {}).values()] or [sample["click"], *sample.get("auxiliary", {}).values()]
    difference = float(np.abs(found - np.array(stored).T).max())
    if difference > _SAME:
        raise BundleError(
            f"the model must predict to {_SAME:g} what it did when {bundle.path} was written, but a prediction differs "
            f"by {difference:.2g}: this machine or version of torch computes otherwise"
        )
    return [*checked, f"{len(found)} stored predictions are the same (largest difference {difference:.1g})"]


def _sample(schema: FeatureSchema, kept: FeatureSchema, model: Model) -> Array:
    """What a model that was built with `schema` predicts for `sample_ids(kept)`, float32 [N, 1 + L] or [N, C]."""
    ids = np.zeros((SAMPLE_ROWS, sum(schema.lengths)), dtype=np.int32)
    ids[:, schema.columns(kept.names)] = sample_ids(kept)
    training = model.training
    found = _predicted(kept, model.eval(), ids)
    model.train(training)
    return found


def _write_sample(folder: Path, schema: FeatureSchema, found: Array) -> None:
    """Writes sample.json: `sample_ids` of the schema and what is predicted for them, float32 [N, 1 + L] or [N, C]."""
    ids = sample_ids(schema)
    columns = found.T.tolist()
    node: dict[str, object] = {"fields": list(schema.names), "ids": ids.tolist()}
    if schema.classes is not None:
        node["classes"] = dict(zip(schema.classes.names, columns, strict=True))
    else:
        node["click"] = columns[0]
    if schema.auxiliary_labels:
        node["auxiliary"] = dict(zip(schema.auxiliary_labels, columns[1:], strict=True))
    (folder / "sample.json").write_text(json.dumps(node) + "\n")


@torch.no_grad()
def _predicted(schema: FeatureSchema, model: Model, ids: Array) -> Array:
    """Predictions float32 [N, 1 + L], or [N, C] of classes, for ids int [N, V]."""
    return predictions(schema, model, torch.from_numpy(ids).to(next(model.parameters()).device))


def _chunks(frame: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """All rows in their order, up to _CHUNK at a time.

    Slices of a Parquet scan: `collect_batches` decodes it far ahead of a slower consumer, so that its memory grows with
    the rows (pola-rs/polars issue 28569). Of any other plan each slice would begin again.
    """
    if not _SLICED.fullmatch(frame.slice(1, 1).explain()):
        yield from frame.collect_batches(chunk_size=_CHUNK, maintain_order=True, engine="streaming")
        return
    for start in count(0, _CHUNK):
        rows = frame.slice(start, _CHUNK).collect()
        yield rows
        if rows.height < _CHUNK:
            return


def _manifest(folder: Path) -> Manifest:
    try:
        node = json.loads((folder / "manifest.json").read_text())
    except OSError as error:
        raise BundleError(f"{folder} is not a bundle: manifest.json cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise BundleError(f"{folder / 'manifest.json'} is not valid JSON: {first_line(error)}") from None
    version = node.get("version") if isinstance(node, dict) else None
    if version != VERSION:
        raise BundleError(f"bundle {folder} has version {version!r}, but this autoembed reads version {VERSION}")
    try:
        return Manifest.model_validate(node)
    except ValidationError as error:
        raise BundleError(f"{folder / 'manifest.json'} breaks a rule: {first_line(error)}") from None


def load_model(schema: FeatureSchema, architecture: Architecture, weights: Path) -> Model:
    """The packed model of an architecture with its stored weights, on the CPU."""
    model = build_model(schema, architecture, packed=True)
    # Version 1 stored a table under its own name, where there is a module of weight or codes and steps now.
    tensors = {_TABLE.sub(r"\1.weight", name): tensor for name, tensor in load_file(weights).items()}
    wrong = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if wrong:
        raise BundleError(f"the weights {wrong[0]} in {weights} are not all finite: export the model again")
    model.load_state_dict(tensors)
    return model


def weights_of(model: Model) -> dict[str, torch.Tensor]:
    """A model's persistent tensors as safetensors wants them: on the CPU and contiguous."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
