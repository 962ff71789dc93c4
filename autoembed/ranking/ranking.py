"""The columns of a dataset in the order of what they say about the label."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from autoembed.data.dataset import Dataset
from autoembed.errors import DataError
from autoembed.ranking.counts import count_labels
from autoembed.ranking.scores import score

_COLUMNS = {
    "feature": pl.String,
    "kind": pl.String,
    "cardinality": pl.Int64,
    "coverage": pl.Float64,
    "score": pl.Float64,
    "z": pl.Float64,
    "normalized": pl.Float64,
    "mi": pl.Float64,
    "expected_mi": pl.Float64,
}
_FINGERPRINT = "autoembed.fingerprint"


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """One row per field, best first, and the fingerprint of the data it is about.

    Columns of `table`: feature, kind, cardinality (ids, with id 0), coverage (share of train rows that are not
    missing), score, z, normalized, mi, expected_mi; information in nats (see `ranking.scores`).
    """

    table: pl.DataFrame
    fingerprint: str

    def top(self, k: int) -> tuple[str, ...]:
        """The k best fields, or all if there are fewer."""
        if k < 1:
            raise ValueError(f"k must be at least 1, but got {k=}")
        return tuple(self.table["feature"].head(k))

    def above(self, z: float) -> tuple[str, ...]:
        """The fields whose score is more than z standard deviations above noise of the same counts, best first."""
        return tuple(self.table.filter(pl.col("z") > z)["feature"])

    def write(self, path: str | Path) -> None:
        """Write the table as Parquet, with the fingerprint in its metadata."""
        self.table.write_parquet(path, metadata={_FINGERPRINT: self.fingerprint})

    @classmethod
    def read(cls, path: str | Path) -> Ranking:
        """What `write` wrote; DataError if the file is none."""
        try:
            table = pl.read_parquet(path)
            fingerprint = pl.read_parquet_metadata(path).get(_FINGERPRINT)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"cannot read the ranking {path}: {str(error).strip().splitlines()[0]}") from error
        if table.schema != pl.Schema(_COLUMNS) or fingerprint is None:
            raise DataError(f"{path} is no ranking: its columns must be {', '.join(_COLUMNS)}")
        return cls(table=table, fingerprint=fingerprint)


def rank(dataset: Dataset) -> Ranking:
    """Score every field of the dataset on train, by score descending (ties by name).

    Values that the vocabulary pools as rare are one value here, id 0: what a model cannot tell apart is not credited.
    Memory is one chunk of rows and two counts per id.
    """
    counts = count_labels(dataset.ids("train"), dataset.labels("train"), dataset.schema.cardinalities)
    rows = []
    for field, n, k in zip(dataset.schema.fields, counts.rows, counts.positives, strict=True):
        found = score(k, n)
        missing = dataset.vocabulary.missing(field.name)
        rows.append(
            {
                "feature": field.name,
                "kind": field.kind,
                "cardinality": field.cardinality,
                "coverage": 1.0 - float(n[missing]) / dataset.rows("train") if missing else 1.0,
                "score": found.score,
                "z": found.z,
                "normalized": found.normalized,
                "mi": found.mi,
                "expected_mi": found.expected_mi,
            }
        )
    table = pl.DataFrame(rows, schema=_COLUMNS).sort(["score", "feature"], descending=[True, False])
    return Ranking(table=table, fingerprint=dataset.fingerprint)
