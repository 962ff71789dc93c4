"""The columns of a table in the order of what they say about the label, and its pairs in that of what they add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import polars as pl

from autoembed.errors import DataError
from autoembed.fast import cores
from autoembed.ranking.quality import Finding, drift, findings, ordered
from autoembed.ranking.scores import NEEDS_ROWS, Score, ScoredColumn, measure, require, score
from autoembed.ranking.selection import select as take
from autoembed.ranking.selection import stability as ranks
from autoembed.ranking.table import CodedTable, from_dataset, read_table
from autoembed.ranking.weighted import score_weighted
from autoembed.types import Array, Progress
from autoembed.writing import beside

if TYPE_CHECKING:
    from autoembed.data.dataset import Dataset
    from autoembed.data.files import Where
    from autoembed.data.frames import Frame

Columns = Mapping[str, pl.DataType | type[pl.DataType]]
Pairs = int | str | Sequence[tuple[str, str]] | None

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
_FINDINGS = {
    "severity": pl.String,
    "rule": pl.String,
    "column": pl.String,
    "value": pl.Float64,
    "advice": pl.String,
}
_MOST_DRAWN = 10**9  # rows that numpy draws halves of
_FINGERPRINT = "autoembed.fingerprint"


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """One row per column, best first, and the fingerprint of the data it is about.

    Columns of `table`: feature, kind, cardinality (of a dataset: ids, with id 0; of a table: values, with missing),
    coverage (share of rows that are not missing), score, z, normalized, mi, expected_mi; information in nats. `score`
    is the score asked for, and the rest is of the exact null (see `ranking.scores`).
    Columns of `pairs`, or None if none were asked for: a, b, cells (that occur), the same five of the joint column,
    synergy and synergy_z (see `ranking.pairs`); by synergy_z, descending. `findings` are those of `ranking.quality`,
    `selected` and `stability` the tables of `ranking.selection`, if they were asked for, and `notes` say what was read;
    these three are not read back.
    """

    table: pl.DataFrame
    fingerprint: str
    pairs: pl.DataFrame | None = None
    findings: tuple[Finding, ...] = ()
    selected: pl.DataFrame | None = None
    stability: pl.DataFrame | None = None
    notes: tuple[str, ...] = ()

    def top(self, k: int) -> tuple[str, ...]:
        """The k best columns, or all if there are fewer."""
        if k < 1:
            raise ValueError(f"k must be at least 1, but got {k=}")
        return tuple(self.table["feature"].head(k))

    def _repr_html_(self) -> str:
        parts = [self.table._repr_html_()]
        if self.pairs is not None:
            parts.append(self.pairs._repr_html_())
        if self.findings:
            columns = ("severity", "rule", "column", "advice", "value")
            found = {name: [str(getattr(finding, name)) for finding in self.findings] for name in columns}
            parts.append(pl.DataFrame(found)._repr_html_())
        return "".join(parts)

    def above(self, z: float) -> tuple[str, ...]:
        """The columns whose score is more than z standard deviations above noise of the same counts, best first."""
        return tuple(self.table.filter(pl.col("z") > z)["feature"])

    def top_pairs(self, k: int) -> tuple[tuple[str, str], ...]:
        """The k pairs of the highest synergy_z, or all that were ranked if these are fewer."""
        if k < 1:
            raise ValueError(f"k must be at least 1, but got {k=}")
        if self.pairs is None:
            raise ValueError("no pairs were ranked: rank(..., pairs=...) ranks them")
        return tuple((a, b) for a, b in self.pairs.head(k).select("a", "b").iter_rows())

    def write(self, path: str | Path) -> None:
        """Write the table as Parquet, the fingerprint in its metadata.

        Beside it, NAME.findings.parquet has the findings, no row if there are none, and NAME.pairs.parquet the pairs.
        """
        _write(self.table, Path(path), self.fingerprint)
        noted = pl.DataFrame([asdict(finding) for finding in self.findings], schema=_FINDINGS)
        _write(noted, _beside(path, "findings"), self.fingerprint)
        if self.pairs is None:
            _beside(path, "pairs").unlink(missing_ok=True)
        else:
            _write(self.pairs, _beside(path, "pairs"), self.fingerprint)

    @staticmethod
    def is_one(path: str | Path) -> bool:
        """Whether a file is what `write` writes, and not a table."""
        try:
            return _FINGERPRINT in pl.read_parquet_metadata(path)
        except (pl.exceptions.PolarsError, OSError):
            return False

    @classmethod
    def read(cls, path: str | Path) -> Ranking:
        """What `write` wrote; DataError if the file is none."""
        table, fingerprint = _read(Path(path), _COLUMNS)
        noted = _part(path, "findings", _FINDINGS, fingerprint)
        found = () if noted is None else tuple(Finding(**row) for row in noted.iter_rows(named=True))
        from autoembed.ranking.pairs import COLUMNS

        pairs = _part(path, "pairs", COLUMNS, fingerprint)
        return cls(table=table, fingerprint=fingerprint, pairs=pairs, findings=found)


def _beside(path: str | Path, part: str) -> Path:
    return Path(path).with_suffix(f".{part}.parquet")


def _part(path: str | Path, part: str, columns: Columns, fingerprint: str) -> pl.DataFrame | None:
    beside = _beside(path, part)
    if not beside.exists():
        return None
    table, same = _read(beside, columns)
    if same != fingerprint:
        raise DataError(f"{beside} is about other data than {path}: remove it")
    return table


def _write(table: pl.DataFrame, path: Path, fingerprint: str) -> None:
    with beside(path) as temporary:
        table.write_parquet(temporary, metadata={_FINGERPRINT: fingerprint})


def _read(path: Path, columns: Columns) -> tuple[pl.DataFrame, str]:
    try:
        table = pl.read_parquet(path, glob=False)
        fingerprint = pl.read_parquet_metadata(path).get(_FINGERPRINT)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"cannot read the ranking {path}: {str(error).strip().splitlines()[0]}") from error
    if table.schema != pl.Schema(columns) or fingerprint is None:
        raise DataError(f"{path} is not a ranking: its columns must be {', '.join(columns)}")
    return table, fingerprint


class RankOptions(TypedDict):
    """What `rank` and `rank_table` both take."""

    score: str
    pairs: Pairs
    select: tuple[str, int] | None
    stability: int | None
    threads: int | None


def rank(
    source: Dataset,
    *,
    score: str = "adjusted_mi",
    pairs: Pairs = None,
    select: tuple[str, int] | None = None,
    stability: int | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Ranking:
    """Score every field of a dataset on train, by score descending (ties by name).

    Values that the vocabulary pools as rare are one value here, id 0: what a model cannot tell apart is not credited.

    Args:
        source: an encoded dataset.
        score: a name in `scores.SCORES`.
        pairs: None for no pairs, "all", names of pairs, or how many of the best pairs; see `pairs.rank_pairs`.
        select: a criterion and how many columns to take by it; see `selection.select`.
        stability: how many random halves of the rows to rank; see `selection.stability`.
        threads: all cores by default.
        progress: called with (step, done, total).

    Raises:
        DataError: an unknown score or column, or pairs with a label of more than two classes.
    """
    require(score)
    threads = threads or cores()
    table = from_dataset(source, _keeps(score, pairs, select), threads, progress)
    ranking = _ranked(table, score, pairs, select, stability, threads, progress)
    return replace(ranking, findings=tuple(ordered([*ranking.findings, *drift(source)])))


def rank_table(
    source: Frame | Where,
    *,
    label: str = "label",
    score: str = "adjusted_mi",
    pairs: Pairs = None,
    select: tuple[str, int] | None = None,
    stability: int | None = None,
    threads: int | None = None,
    separators: Mapping[str, str] | None = None,
    settings: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> Ranking:
    """As `rank`, of all rows of a frame, a file or a directory of fragments as they stand (see `table.read_table`).

    No value is pooled as rare, and the label may have up to 255 classes. Memory is one chunk of rows and the counts;
    codes are kept for pairs only, beyond 0.5 GB in a temporary file. Columns of lists, and text columns that
    `separators` names with what stands between their values, are counted per value; they take no part in pairs.
    """
    require(score)
    threads = threads or cores()
    table = read_table(source, label, _keeps(score, pairs, select), threads, progress, separators, settings)
    return _ranked(table, score, pairs, select, stability, threads, progress)


def _keeps(score: str, pairs: Pairs, select: tuple[str, int] | None) -> bool:
    return pairs is not None or select is not None or score in NEEDS_ROWS


def _ranked(
    table: CodedTable,
    name: str,
    pairs: Pairs,
    select: tuple[str, int] | None,
    stability: int | None,
    threads: int,
    progress: Progress | None,
) -> Ranking:
    weighted = table.weighted
    if weighted and (select or stability) and not (weighted.whole and weighted.tables[0].sum() < _MOST_DRAWN):
        raise DataError(
            f"select and stability count rows, so the weights {weighted.column!r} must be whole numbers of at most "
            f"{_MOST_DRAWN - 1:,} in all: leave them out, or rank without weights"
        )
    ranked, notes = score_columns(table, name), table.notes
    told = dict(ranked.select("feature", "normalized").iter_rows())
    best = None
    if pairs is not None:
        from autoembed.ranking.pairs import counts_weights, rank_pairs

        best = rank_pairs(table, pairs, threads, progress)
        if table.weighted and not counts_weights(table):
            notes = (
                *notes,
                "pairs are ranked by rows that count once each, as the weights are not whole, or too large",
            )
    return Ranking(
        table=ranked,
        fingerprint=table.fingerprint,
        pairs=best,
        findings=tuple(findings(table, [told[column] for column in table.names])),
        selected=take(table, select[1], select[0], progress=progress) if select else None,
        stability=ranks((weighted or table.counts).tables, table.names, stability) if stability else None,
        notes=notes,
    )


def score_columns(table: CodedTable, name: str) -> pl.DataFrame:
    """`Ranking.table` from counts."""
    require(name)
    rows: list[dict[str, object]] = []
    columns: list[ScoredColumn] = []
    scores: list[Score] = []

    weighted = table.weighted
    if weighted and name in NEEDS_ROWS:
        raise DataError(
            f"the score {name} counts each row once, but rows have the weights {weighted.column!r}: choose "
            "adjusted_mi, mi, ami, pearson or coverage"
        )

    def add(feature: str, kind: str, coverage: float, column: ScoredColumn, n: Array | None) -> None:
        found = score(column.table) if weighted is None or n is None else score_weighted(column.table, n, weighted.null)
        columns.append(column)
        scores.append(found)
        rows.append(
            {
                "feature": feature,
                "kind": kind,
                "cardinality": len(column.table),
                "coverage": coverage,
                "z": found.z,
                "normalized": found.normalized,
                "mi": found.mi,
                "expected_mi": found.expected_mi,
            }
        )

    for place, counts in enumerate(table.counts.tables):
        missing = table.missing[place]
        n = counts.sum(axis=1) if weighted and not weighted.whole else None
        counts = weighted.tables[place] if weighted else counts
        column = ScoredColumn(
            table=counts,
            missing=missing,
            places=table.places[place],
            rows=partial(_rows, table, place),
        )
        coverage = 1.0 - float(counts[missing].sum()) / float(counts.sum()) if missing >= 0 else 1.0
        add(table.names[place], table.kinds[place], coverage, column, n)
    for multi in table.multi:
        if name in NEEDS_ROWS:
            raise DataError(f"the score {name} needs one value a row, and {multi.name!r} holds several: drop it")
        column = ScoredColumn(table=multi.table, rows=_no_rows)
        add(multi.name, "multi-valued", multi.coverage, column, multi.rows)
    ranked = pl.DataFrame(
        [{**row, "score": value} for row, value in zip(rows, measure(name, columns, scores), strict=True)],
        schema=_COLUMNS,
    )
    return ranked.sort(["score", "feature"], descending=[True, False])


def _rows(table: CodedTable, place: int) -> tuple[Array, Array]:
    return table.codes(place), table.labels


def _no_rows() -> tuple[Array, Array]:
    raise AssertionError("a column of several values a row has counts only")
