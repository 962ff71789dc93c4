"""Ranking on a Ray cluster: a task for each Parquet fragment, counts added up as they come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import ray

from autoembed.data.readers import DataSpec, clean, open_rows, with_numbers
from autoembed.data.scan import scan
from autoembed.errors import DataError
from autoembed.ranking.counts import LabelCounts, PairCounts, count_pair
from autoembed.ranking.pairs import score_counts
from autoembed.ranking.ranking import Ranking, score_columns
from autoembed.ranking.table import CodingPlan, fingerprint_of

Counted = tuple[LabelCounts, list[PairCounts]]


def rank_fragments(
    directory: str | Path, label: str = "label", score: str = "adjusted_mi", pairs: Sequence[tuple[str, str]] = ()
) -> Ranking:
    """What `ranking.rank_table` gives, of a directory of Parquet fragments that every node can read.

    The driver passes over single columns once, for ranges, bins and texts; the counting is done where Ray places it, in
    the memory of one fragment. Ray must be initialised.

    Raises:
        DataError: as `rank_table`, or fragments differ in columns or types; the score must be one that needs counts
            only.
    """
    spec = DataSpec(label=label, format="parquet")
    frame, paths, _ = open_rows(spec, directory, Path())
    schema = frame.collect_schema()
    for path in paths:
        if _rows(spec, path).collect_schema() != schema:
            raise DataError(f"{path} has other columns or types than the rest of {directory}: rank it on one machine")
    frame = with_numbers(frame, [name for name in schema.names() if name != label])
    plan = CodingPlan.of(frame, label, fixed=True)
    places = [(plan.names.index(a), plan.names.index(b)) for a, b in pairs]
    shared = ray.put(plan)
    count = ray.remote(_count)
    waiting = [count.remote(shared, spec, path, places) for path in paths]
    total: Counted | None = None
    while waiting:
        done, waiting = ray.wait(waiting)
        part: Counted = ray.get(done[0])
        total = part if total is None else (total[0] + part[0], [a + b for a, b in zip(total[1], part[1], strict=True)])
    assert total is not None
    counts, cells = total
    table = plan.finish(counts, np.empty(0, np.uint8), None, fingerprint_of(paths, label))
    ranked = score_columns(table, score)
    if not places:
        return Ranking(table=ranked, fingerprint=table.fingerprint)
    final = [cell.recode(table.recode[a], table.recode[b]) for cell, (a, b) in zip(cells, places, strict=True)]
    return Ranking(table=ranked, fingerprint=table.fingerprint, pairs=score_counts(pairs, final))


def _rows(spec: DataSpec, path: Path) -> pl.LazyFrame:
    return clean(scan([path], spec, Path()), spec)


def _count(plan: CodingPlan, spec: DataSpec, path: Path, places: Sequence[tuple[int, int]]) -> Counted:
    columns, labels = plan.encode(_rows(spec, path).collect())
    classes = len(set(plan.classes.values()))
    return plan.count(columns, labels), [count_pair(columns[a], columns[b], labels, classes) for a, b in places]
