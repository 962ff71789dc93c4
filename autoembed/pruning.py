"""Which columns of the data a study keeps: by the ranking, or by what a plain model takes from each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from autoembed.data.dataset import Dataset
from autoembed.errors import StudyError
from autoembed.knockout import field_scores, rise_of
from autoembed.ranking.ranking import Ranking
from autoembed.space import Range, SearchSpace
from autoembed.training import pick_device
from autoembed.trial import TrialConfig, check, run_trial
from autoembed.types import Progress
from autoembed.writing import beside

FILE = "field_scores.parquet"


def kept_fields(
    space: SearchSpace, ranking: Ranking, dataset: Dataset, out: Path | None = None, progress: Progress | None = None
) -> list[str]:
    """The columns that `features` lets through, best first.

    Args:
        space: the search space.
        ranking: of all columns of the dataset.
        dataset: all columns. Read for `score: knockout` and `saliency` only, train and valid.
        out: a file for the scores of the model's fields.
        progress: called with (stage, done, total).

    Raises:
        StudyError: no column is above `features.z`.
    """
    features = space.features
    if features.score == "adjusted_mi":
        table = ranking.table.select("feature", "score", "z")
    else:
        scores = model_scores(space, dataset, progress)
        if out is not None:
            with beside(out) as temporary:
                scores.write_parquet(temporary)
        rise, error = rise_of(dataset), pl.col(f"{dataset.task.criterion.name}_se")
        own = rise if features.score == "knockout" else "saliency"
        z = pl.when(error > 0).then(pl.col(rise) / error).otherwise(0.0)
        table = scores.select(feature="field", score=own, z=z)
        table = table.sort(["score", "feature"], descending=[True, False])
    table = table.head(features.keep or table.height)
    if features.z is not None:
        table = table.filter(pl.col("z") > features.z)
    if table.is_empty():
        see = "autoembed rank" if features.score == "adjusted_mi" else f"{out or 'autoembed rank --model'}"
        raise StudyError(f"no column has a z score above features.z={features.z:g}: lower it (see `{see}`)")
    return table["feature"].to_list()


def model_scores(space: SearchSpace, dataset: Dataset, progress: Progress | None = None) -> pl.DataFrame:
    """`knockout.field_scores` on valid of a plain model of all columns, trained on train by the space's recipe.

    It has `embedding.dim` dims for every value in 32 bits, no pairs, and no limit. Test rows are not read.
    """
    if progress:
        progress("model for features", 0, 1)
    _, model = run_trial(plain_config(space), dataset, lambda values: None)
    return field_scores(model, dataset, "valid", pick_device(str(space.device)), progress)


def plain_config(space: SearchSpace) -> TrialConfig:
    """The trial of the plain model: the space's embedding, backbone and recipe without a teacher.

    A range has its middle: the mean of both ends, of a logarithmic range their geometric mean, of a choice the first.
    """
    arm = space.arms()[0]
    template = space.template(arm)
    plain = {
        **template,
        "arm": "features",
        "stages": [{"method": "uniform"}],
        "limit": {},
        "embedding": {**template["embedding"], "bits": 32},
        "train": {key: value for key, value in template["train"].items() if key != "distill"},
    }
    return check({**space.filled(plain, _middle), "seed": space.seed})


def _middle(place: str, leaf: Range) -> object:
    if leaf.kind == "choice":
        return leaf.first
    low, high = leaf.ends
    value = float(np.sqrt(low * high)) if leaf.kind.startswith("log") else (low + high) / 2
    return round(value) if leaf.kind.endswith("int") else value
