"""What each column of a study's data brings: its rank, what the search kept of it, and what the model takes from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch

from autoembed.architecture import Architecture
from autoembed.budget import first_order
from autoembed.data.dataset import Dataset
from autoembed.knockout import field_scores, rise_of
from autoembed.nn.model import CTRModel
from autoembed.plans import FieldPlan
from autoembed.ranking.ranking import Ranking
from autoembed.space import SearchSpace
from autoembed.study.run_dir import RunDir, Trial
from autoembed.types import Progress


def explain(
    run: RunDir, trial: Trial, dataset: Dataset, device: torch.device, progress: Progress | None = None
) -> pl.DataFrame:
    """A row for each column of the study's data, by what the model loses without it.

    Columns: field, kind; ids (of a column that the ranking dropped, as the ranking counts them); place, score and z of
    the ranking; fate (kept, closed by the search, dropped by the ranking, replaced by its rate, or whose table it
    reads); dims (kept ones, the mean over values), bits (the mean over kept numbers), bytes of its embeddings and their
    share of all; and logloss_rise, logloss_se, auc_fall, auc_se and saliency as `knockout.field_scores` has them. These
    five are null for fields that are not kept, and for a model with clusters; bytes are null where fields share a
    table.
    """
    known = [field.name for field in dataset.schema.fields if not field.candidate]
    table = described(run, trial, known)
    model = run.load_model(trial, dataset.schema)
    if isinstance(model, CTRModel):
        table = table.join(field_scores(model, dataset, "valid", device, progress), on="field", how="left")
    else:
        labels = dataset.labels("valid")
        even = np.zeros(len(labels))
        names = (*dataset.task.compare(labels, even)(even), "saliency")
        table = table.with_columns(pl.lit(None, pl.Float64).alias(name) for name in names)
    first = ("field", "kind", "ids", "place", "score", "z", "fate")
    ordered = table.select(*first, pl.exclude(first))
    return ordered.sort(rise_of(dataset), "bytes", "score", descending=True, nulls_last=True)


def described(run: RunDir, trial: Trial, known: Sequence[str]) -> pl.DataFrame:
    """The part of `explain` for which neither data nor model are needed, in the order of the ranking.

    Columns: field to z, fate, dims, bits, bytes, share. `known` are the columns that the ranking kept.
    """
    architecture = trial.architecture
    ranked = Ranking.read(run.path / "ranking.parquet").table.with_row_index("place", offset=1)
    shown = ranked.select(field="feature", kind="kind", ids="cardinality", place="place", score="score", z="z")
    kept = _kept(architecture)
    table = shown.join(kept, on="field", how="left")
    searched = pl.when(pl.col("field").is_in(list(known))).then(pl.lit("closed by the search"))
    rates = SearchSpace.read(run.space).data.target_statistics
    replaced = pl.when(pl.col("field").is_in(list(rates.replace if rates else ()))).then(pl.lit("replaced by its rate"))
    dropped = pl.coalesce(replaced, searched.otherwise(pl.lit("dropped by the ranking")))
    fate = pl.when(pl.col("dims").is_not_null()).then(pl.lit("kept")).otherwise(dropped)
    readers = {one.name: field.name for field in architecture.fields for one in field.readers}
    shared = pl.col("field").replace_strict(readers, default=None, return_dtype=pl.String)
    return table.with_columns(fate=pl.coalesce("reads the table of " + shared, fate))


def _kept(architecture: Architecture) -> pl.DataFrame:
    """What is kept of each field, over the models of all clusters."""
    parts = architecture.clusters or (architecture,)
    rows = []
    for name in dict.fromkeys(name for part in parts for name in part.names):
        plans = [(part, field) for part in parts for field in part.fields if field.name == name]
        cardinality = plans[0][1].cardinality
        numbers = sum(field.entries for _, field in plans)
        bits = sum(_bits(field) for _, field in plans)
        own = None
        if architecture.storage.kind != "shared":
            own = sum(part.storage.bytes([field], part.dim, first_order=first_order(part)) for part, field in plans)
        rows.append((name, numbers / cardinality / len(parts), bits / max(numbers, 1), own))
    table = pl.DataFrame(
        rows, schema={"field": pl.String, "dims": pl.Float64, "bits": pl.Float64, "bytes": pl.Int64}, orient="row"
    )
    return table.with_columns(share=pl.col("bytes") / pl.col("bytes").sum())


def _bits(field: FieldPlan) -> int:
    """Bits of all kept numbers of a field."""
    sizes = np.diff([0, *(block.stop for block in field.blocks)]).tolist()
    return sum(
        (size * len(block.dims) if block.entries is None else block.entries) * block.bits
        for size, block in zip(sizes, field.blocks, strict=True)
    )
