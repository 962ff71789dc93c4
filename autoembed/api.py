"""Ranking from Python, whatever the data are given as."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from autoembed.data.dataset import build_dataset
from autoembed.data.files import Where
from autoembed.data.frames import Frame, is_frame
from autoembed.data.readers import DataSpec
from autoembed.errors import DataError
from autoembed.ranking import ranking
from autoembed.ranking.ranking import Pairs, Ranking
from autoembed.shipped import space_or_data
from autoembed.space import SearchSpace


def rank(
    source: Frame | Where | SearchSpace | DataSpec,
    *,
    label: str = "label",
    score: str = "adjusted_mi",
    pairs: Pairs = None,
    select: tuple[str, int] | None = None,
    stability: int | None = None,
    threads: int | None = None,
    separators: Mapping[str, str] | None = None,
    settings: Mapping[str, object] | None = None,
    cache: str | Path = "runs/.cache",
) -> Ranking:
    """Ranks columns by what they say about the label beyond what noise of the same cardinality would.

    All rows of a table are ranked; of a search space's data, the train split, with rare values pooled.

    Args:
        source: a frame of Polars or pandas; a file, a pattern or a directory; a `SearchSpace`, its YAML file, the name
            of one that ships such as "quickstart", or a `DataSpec`.
        label: the label column of a table.
        score: adjusted_mi, mi, ami, rotation, pearson, coverage, permutation, logistic, tree or lightgbm.
        pairs: how many pairs to rank by synergy, "all", or names of pairs.
        select: a criterion, jmi or 3mr, and how many columns to take by it.
        stability: how many random halves of the rows to rank.
        threads: all cores by default.
        separators: of text columns with several values a row, what stands between these.
        settings: keys of a search space's `data:` section for a table, such as format, separator or null_values.
        cache: the folder of encoded data, for a search space.

    Raises:
        DataError: the table, its label or an option breaks a rule.
        SpaceError: the search space does.
    """
    options: ranking.RankOptions = {
        "score": score,
        "pairs": pairs,
        "select": select,
        "stability": stability,
        "threads": threads,
    }
    if isinstance(source, (str, Path)):
        source, is_space = space_or_data(str(source))
        source = SearchSpace.read(source) if is_space else source
    if isinstance(source, SearchSpace):
        source = source.data
    if isinstance(source, DataSpec):
        if settings or separators:
            raise DataError("settings and separators go with a table: a search space has its own data section")
        return ranking.rank(build_dataset(source, None, Path(cache)), **options)
    if not is_frame(source) and not isinstance(source, (str, Path)):
        raise DataError(f"source must be a frame, a path, a SearchSpace or a DataSpec, but got {type(source).__name__}")
    return ranking.rank_table(source, label=label, separators=separators, settings=settings, **options)
