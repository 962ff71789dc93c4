"""Tables in memory, of Polars or of pandas."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias, TypeGuard

import polars as pl

from autoembed.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

Frame: TypeAlias = "pl.DataFrame | pl.LazyFrame | pd.DataFrame"


def is_frame(source: object) -> TypeGuard[Frame]:
    """Whether an object is a frame of Polars, eager or lazy, or of pandas."""
    return isinstance(source, (pl.DataFrame, pl.LazyFrame)) or (
        hasattr(source, "columns") and hasattr(source, "dtypes") and hasattr(source, "iloc")
    )


def to_lazy(frame: Frame) -> pl.LazyFrame:
    """A frame of Polars, eager or lazy, or of pandas, lazily; a pandas column of mixed kinds is text.

    DataError if it is another object.
    """
    if not is_frame(frame):
        raise DataError(f"rows must be a Polars or pandas frame, but got {type(frame).__name__}")
    if isinstance(frame, (pl.DataFrame, pl.LazyFrame)):
        return frame.lazy()
    columns: dict[str, pl.Series] = {}
    for place, name in enumerate(frame.columns):
        column = frame.iloc[:, place]
        try:
            columns[str(name)] = pl.Series(pl.from_pandas(column))
        except (pl.exceptions.PolarsError, ValueError, TypeError):  # ArrowInvalid is a ValueError
            gone = column.isna().tolist()
            texts = [None if lost else str(value) for value, lost in zip(column.tolist(), gone, strict=True)]
            columns[str(name)] = pl.Series(texts, dtype=pl.String)
    return pl.DataFrame(columns).lazy()
