"""The encoded table on disk: ids and labels per split, memory-mapped, with schema, vocabulary and a fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import ValidationError

from autoembed.data.columns import Counts, Ids
from autoembed.data.crosses import CrossSpec, name_of
from autoembed.data.encoding import TIMES, OtherVocabulary, encode_table
from autoembed.data.files import Where, locate, signature
from autoembed.data.readers import read
from autoembed.data.scan import unreadable
from autoembed.data.schema import FeatureSchema, Field
from autoembed.data.sides import KINDS, Groups, Sides
from autoembed.data.spec import SPLITS, DataSpec, Split
from autoembed.data.target_statistics import TargetStatistics, order_of, ordered_rates, rates
from autoembed.data.target_statistics import name_of as rate_of
from autoembed.data.vocabulary import ENCODING, Vocabulary
from autoembed.data.writer import LAYOUT, DatasetFacts, Labels, Writer, fingerprint_of
from autoembed.errors import DataError
from autoembed.ratings import LabelScale
from autoembed.task import Task
from autoembed.types import Array, Progress
from autoembed.writing import scratch

_CHUNK = 1 << 18


class Dataset:
    """Encoded rows per split and what they mean; open one with `build_dataset` or `Dataset.open`."""

    def __init__(self, path: Path, schema: FeatureSchema, facts: DatasetFacts) -> None:
        self.path = path
        self.schema = schema
        self.fingerprint = facts["fingerprint"]
        self.truth = facts["truth"]
        # What was read and guessed, in sentences, and signatures of the files.
        self.notes: tuple[str, ...] = tuple(facts.get("notes", ()))
        self.sources: tuple[str, ...] = tuple(facts.get("sources", ()))
        self._rows = facts["rows"]

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Open a folder that `build_dataset` or `keep` wrote; DataError if it is incomplete or corrupt."""
        folder = Path(path)
        if not (folder / "dataset.json").is_file():
            raise DataError(f"{folder} is not a complete dataset: it has no dataset.json (build it again)")
        with _corrupt(folder):
            facts = json.loads((folder / "dataset.json").read_text())
            if facts["layout"] != LAYOUT:
                raise DataError(
                    f"{folder} has layout {facts['layout']}, but this version reads {LAYOUT}: build it again"
                )
            schema = FeatureSchema.model_validate_json((folder / "schema.json").read_text())
            dataset = cls(folder, schema, facts)
            dataset._check()
        return dataset

    def _check(self) -> None:
        counts = self._load("counts")
        if counts.shape != (sum(self.schema.cardinalities),) or counts.dtype != np.int64:
            raise ValueError("its counts are not as its schema says")
        for split in SPLITS:
            shape = (self.rows(split), sum(self.schema.lengths))
            ids, sides = self.ids(split), self.sides(split)
            whole = all(
                side.shape == self.schema.side_shape(name, shape[0]) and side.dtype == KINDS[name]
                for name, side in sides.items()
            )
            if ids.shape != shape or ids.dtype != np.int32 or not whole:
                raise ValueError(f"the arrays of {split} are not as dataset.json says")

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the ids mean, read when it is first asked for: it takes some 140 bytes a value, and a trial needs none.

        DataError if it is corrupt.
        """
        with _corrupt(self.path):
            vocabulary = Vocabulary.read(self.path / "vocabulary.parquet")
            if vocabulary.names != self.schema.names or vocabulary.schema(self.schema) != self.schema:
                raise ValueError("its vocabulary and its schema differ")
        return vocabulary

    def verify(self, progress: Progress | None = None) -> None:
        """Reads all of the dataset and holds it against its fingerprint; DataError if a byte has changed."""
        hashes, total = [], sum(self.rows(split) for split in SPLITS)
        with _corrupt(self.path):
            done = 0
            for split in SPLITS:
                arrays = (self.ids(split), *self.sides(split).values())
                digests = [hashlib.sha256() for _ in arrays]
                for start in range(0, len(arrays[0]), _CHUNK):
                    for digest, array in zip(digests, arrays, strict=True):
                        digest.update(array[start : start + _CHUNK].data)
                    done += len(arrays[0][start : start + _CHUNK])
                    if progress:
                        progress("check", done, total)
                hashes += [digest.hexdigest() for digest in digests]
            if fingerprint_of(self.schema, self.vocabulary, hashes) != self.fingerprint:
                raise ValueError("its content is not what was written")
            counts = [self.vocabulary.counts(name) for name in self.schema.names]
            if not all(map(np.array_equal, counts, self.counts)):
                raise ValueError("its counts are not those of its vocabulary")

    @property
    def task(self) -> Task:
        """What is predicted."""
        return self.schema.task

    @property
    def splits(self) -> tuple[Split, ...]:
        return SPLITS

    def rows(self, split: Split) -> int:
        """The number of rows of a split."""
        return self._rows[_known(split)]

    def ids(self, split: Split) -> Ids:
        """int32 [rows, V], memory-mapped copy-on-write: torch takes it as it is, and no write reaches the disk."""
        ids: Ids = self._load(f"{_known(split)}.ids")
        return ids

    def labels(self, split: Split) -> Labels:
        """float32 [rows], 0 or 1 for clicks, numbers for ratings, places of classes, memory-mapped copy-on-write."""
        labels: Labels = self._load(f"{_known(split)}.labels")
        return labels

    def weights(self, split: Split) -> npt.NDArray[np.float32] | None:
        """How often each row counts, float32 [rows], memory-mapped likewise; None without data.weight."""
        return None if self.schema.weight is None else self._load(f"{_known(split)}.weights")

    def groups(self, split: Split) -> Groups | None:
        """A code of each row's group, int32 [rows], -1 where it is missing, memory-mapped; None without data.group."""
        return None if self.schema.group is None else self._load(f"{_known(split)}.groups")

    def auxiliary(self, split: Split) -> Labels | None:
        """The auxiliary labels, float32 [rows, L], 0, 1 or NaN for missing, memory-mapped likewise; None without."""
        return self._load(f"{_known(split)}.auxiliary") if self.schema.auxiliary_labels else None

    def sides(self, split: Split) -> Sides:
        """What stands beside the ids of a split, by the names of `data.sides.KINDS`."""
        return {name: self._load(f"{_known(split)}.{name}") for name in self.schema.sides}

    def _load(self, name: str) -> Array:
        array: Array = np.load(self.path / f"{name}.npy", mmap_mode="c", allow_pickle=False)
        return array

    def vocabulary_of(self, names: Iterable[str]) -> Vocabulary:
        """What the ids of some fields mean, without those of the others in memory; DataError if it is corrupt."""
        with _corrupt(self.path):
            return Vocabulary.read(self.path / "vocabulary.parquet", names)

    @property
    def counts(self) -> list[Counts]:
        """Train rows per id, or values of a multi-valued field: one int64 [cardinality] per field, memory-mapped."""
        return np.split(self._load("counts"), np.cumsum(self.schema.cardinalities)[:-1])

    def keep(self, names: Iterable[str], cache: str | Path) -> Dataset:
        """The dataset of these fields only, in the order in which they stand here, copied once into `cache`."""
        schema = self.schema.keep(names)
        if not schema.fields:
            raise DataError("no fields are left: keep must name at least one field")
        if schema == self.schema:
            return self
        places = self.schema.columns(schema.names)
        folder = Path(cache) / _digest(LAYOUT, self.fingerprint, list(schema.names))

        def write(temporary: Path) -> None:
            self._rewrite(temporary, schema, self.vocabulary.keep(schema.names), lambda _, some, ids: ids[:, places])

        return _cached(folder, write)

    def _rewrite(
        self,
        folder: Path,
        schema: FeatureSchema,
        vocabulary: Vocabulary,
        encode: Callable[[Split, slice, Ids], Ids],
    ) -> None:
        """Writes the rows with other ids: `encode` gives those of a slice of a split from the ones that it has."""
        writer = Writer(folder, schema, {split: self.rows(split) for split in SPLITS})
        for split in SPLITS:
            ids, sides = self.ids(split), self.sides(split)
            for start in range(0, len(ids), _CHUNK):
                some = slice(start, start + _CHUNK)
                found = encode(split, some, np.asarray(ids[some]))
                writer.add(split, found, {name: side[some] for name, side in sides.items()})
        writer.finish(vocabulary, self.truth, self.notes, self.sources)

    def cross(
        self,
        pairs: Sequence[tuple[str, str]],
        spec: CrossSpec,
        cache: str | Path,
        *,
        candidates: bool,
        products: Sequence[tuple[str, str]] = (),
    ) -> Dataset:
        """The dataset with a crossed column for each pair behind its own, copied once into `cache`.

        Crossed values are learnt from train. With `candidates`, the columns are no fields yet: a search may memorize
        them. `products` are further candidates, with a multi-valued column: a search may factorize these, and they have
        no crossed column. Memory is a few numbers per train row, for one pair at a time. DataError for a column that is
        not there, is crossed itself, or stands in the pair twice.
        """
        if not pairs and not products:
            return self
        for a, b in (*pairs, *products):
            for name in (a, b):
                field = self.schema.fields[self.schema.index(name)]
                if field.cross:
                    raise DataError(f"a crossed column cannot be crossed again, but {name!r} is one")
                if field.multi and (a, b) not in products:
                    raise DataError(
                        f"a crossed column must be of columns with one value a row, but {name!r} holds several: name "
                        "the pair under features.pairs.lists, where a search may factorize it"
                    )
            if a == b:
                raise DataError(f"a pair must have two columns, but got {a!r} twice")
        read_as = spec.model_dump(mode="json", exclude={"lists"})
        also = [list(products)] if products else []
        folder = Path(cache) / _digest(LAYOUT, self.fingerprint, "cross", list(pairs), read_as, candidates, *also)

        def write(temporary: Path) -> None:
            vocabulary, train = self.vocabulary, self.ids("train")
            of, fields = self.schema.one, list(self.schema.fields)
            for a, b in pairs:
                vocabulary = vocabulary.with_cross(a, b, (of(train, a), of(train, b)), spec)
                name = name_of(a, b)
                fields.append(Field(name=name, kind="crossed", cross=vocabulary.cross(name), candidate=candidates))
            changes = {"fields": tuple(fields), "products": tuple(products)}
            schema = vocabulary.schema(self.schema.model_copy(update=changes))

            def encode(split: Split, some: slice, ids: Ids) -> Ids:
                crossed = [vocabulary.encode_cross(name_of(a, b), of(ids, a), of(ids, b)) for a, b in pairs]
                return np.column_stack([ids, *crossed])

            self._rewrite(temporary, schema, vocabulary, encode)

        return _cached(folder, write)

    def with_statistics(self, spec: TargetStatistics, cache: str | Path, times: Array | None = None) -> Dataset:
        """The dataset with the click rates of some columns behind its own, copied once into `cache`.

        Memory is a few numbers per train row, for one column at a time, and the ids of the train rows.

        Args:
            spec: the columns, and how their rates are counted.
            cache: where encoded data sets live.
            times: numbers that order the train rows by time, [rows]; without them the order is random.

        Raises:
            DataError: a column is not there, holds several values a row, or is read by others and to be replaced.
        """
        for name in spec.columns:
            if self.schema.fields[self.schema.index(name)].multi:
                raise DataError(
                    f"data.target_statistics must be of columns with one value a row, but {name!r} holds several"
                )
            readers = [field.name for field in self.schema.fields if field.shares == name]
            if name in spec.replace and readers:
                raise DataError(
                    f"data.target_statistics cannot replace {name!r}, as {', '.join(readers)} reads its table: "
                    "take it out of replace"
                )
        folder = Path(cache) / _digest(
            LAYOUT, self.fingerprint, "statistics", spec.model_dump(mode="json"), times is not None
        )

        def write(temporary: Path) -> None:
            vocabulary, train = self.vocabulary, self.ids("train")
            labels, weights = self.labels("train"), self.weights("train")
            order, own, fields = order_of(len(labels), spec.seed, times), [], list(self.schema.fields)
            for name in spec.columns:
                values_of = self.schema.one(train, name)
                seen = ordered_rates(values_of, labels, order, spec.prior, weights)
                values = rates(values_of, labels, vocabulary.cardinality(name), spec.prior, weights)
                vocabulary, ids = vocabulary.with_statistic(name, seen, values, spec.bins)
                own.append(ids)
                place = self.schema.index(name)
                fields[place] = fields[place].model_copy(update={"candidate": name in spec.replace})
                fields.append(Field(name=rate_of(name), kind="statistic", statistic_of=name))
            schema = vocabulary.schema(self.schema.model_copy(update={"fields": tuple(fields)}))

            def encode(split: Split, some: slice, ids: Ids) -> Ids:
                rated = [
                    ordered[some]
                    if split == "train"
                    else vocabulary.encode_statistic(rate_of(name), self.schema.one(ids, name))
                    for name, ordered in zip(spec.columns, own, strict=True)
                ]
                return np.column_stack([ids, *rated])

            self._rewrite(temporary, schema, vocabulary, encode)

        return _cached(folder, write)


def build_dataset(
    spec: DataSpec,
    data: Where | None,
    cache: str | Path,
    progress: Progress | None = None,
    vocabulary: OtherVocabulary | None = None,
    units: LabelScale | None = None,
) -> Dataset:
    """Read, split and encode the data into a folder under `cache`, or open the folder if these very data are there.

    Args:
        spec: the `data:` section of a search-space file.
        data: a file or directory that overrides `spec.path`, or None.
        cache: where encoded data sets live; one folder each, keyed by the spec, the files' path, size and time, and
            the way in which values become ids.
        progress: called with (step, done, total).
        vocabulary: the ids, if they are to be others than those fitted to train; the columns are its fields then.
        units: of ratings: the scale whose mean and sd logits are in, if it is to be another than train's: that of a
            model which is trained on.

    Raises:
        DataError: in one line, whatever is wrong with the data.
    """
    sources: list[tuple[str, int, int]] = []
    if spec.planted is None:
        for paths in locate(spec, data).values():
            sources += [(str(p.resolve()), (stat := p.stat()).st_size, stat.st_mtime_ns) for p in paths]
    other = [] if vocabulary is None else [vocabulary.key]
    other += [] if units is None else [f"units {units.mean!r} {units.sd!r}"]
    made = spec.target_statistics
    if made is not None and spec.split.by in (None, "time"):
        other.append("times")
    # Data without weights, groups, knots, ratings, classes, further labels and most values are found where they were
    # before there were such.
    absent = {
        name for name in ("weight", "group", "auxiliary_labels", "classes", "max_values") if not getattr(spec, name)
    }
    absent |= {"task"} if spec.task == "clicks" else set()
    absent |= {"numeric_embedding"} if spec.numeric_embedding == "bins" else set()
    read_as = spec.model_dump(mode="json", exclude={"crosses", "target_statistics", *absent})
    folder = Path(cache) / _digest(LAYOUT, ENCODING, read_as, sources, *other)
    where = ", ".join(Path(name).name for name, _, _ in sources) or "planted data"

    def write(temporary: Path) -> None:
        staging = temporary / "staging"
        staging.mkdir()
        try:
            tell = progress or (lambda *_: None)
            tell("read", 0, 1)
            signatures = [signature(Path(name)) for name, _, _ in sources]
            encode_table(read(spec, data, staging), spec, temporary, tell, signatures, vocabulary, units)
        except pl.exceptions.PolarsError as error:
            raise unreadable(where, error) from error
        shutil.rmtree(staging)

    dataset = _cached(folder, write, progress)
    if spec.crosses is not None:
        dataset = dataset.cross(spec.crosses.pairs, spec.crosses, cache, candidates=False)
    if made is None:
        return dataset
    times = np.load(folder / TIMES) if (folder / TIMES).is_file() else None
    return dataset.with_statistics(made, cache, times)


def data_changed(begun: Path, dataset: Dataset, before: str, encoding: int | None) -> str:
    """What an error says of encoded data that are not those of an earlier run, without what to do about it.

    Args:
        begun: the run's folder or file.
        dataset: the data now.
        before: the fingerprint then.
        encoding: the ENCODING then, None of a run that did not note it.
    """
    line = f"the data have changed since {begun} was begun (fingerprint {before}, now {dataset.fingerprint})"
    if encoding != ENCODING:
        then = f"{encoding}" if encoding else "an earlier one"
        line += f", as this version has other rules for what values are (encoding {ENCODING}, then {then})"
    return line


def _cached(folder: Path, write: Callable[[Path], None], progress: Progress | None = None) -> Dataset:
    """Open `folder` and check it; where there is none, let `write` fill a temporary one, and rename it."""
    if folder.is_dir():
        dataset = Dataset.open(folder)
        dataset.verify(progress)
        return dataset
    with scratch(folder.parent) as temporary:
        write(temporary)
        temporary.chmod(0o755)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # another process that built the same data came first
                raise
    return Dataset.open(folder)


@contextmanager
def _corrupt(folder: Path) -> Iterator[None]:
    """DataError that names the folder, for whatever is wrong with its files."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"the dataset in {folder} is corrupt ({reason}): remove the folder and build it again"
        ) from error


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _known(split: str) -> Split:
    for known in SPLITS:
        if split == known:
            return known
    raise DataError(f"unknown split {split!r}: must be one of {', '.join(SPLITS)}")
