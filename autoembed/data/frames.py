"""Tables in memory: of Polars, pandas, Arrow, or whatever gives Arrow's stream, such as a DuckDB relation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeGuard

import polars as pl

from autoembed.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


class ArrowStream(Protocol):
    """A table that gives its rows by Arrow's PyCapsule interface: of PyArrow, DuckDB, and others."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


Frame: TypeAlias = "pl.DataFrame | pl.LazyFrame | pd.DataFrame | ArrowStream"


def is_frame(source: object) -> TypeGuard[Frame]:
    """Whether an object is a frame of Polars, eager or lazy, or of pandas, or gives Arrow's stream."""
    return isinstance(source, (pl.DataFrame, pl.LazyFrame)) or _of_pandas(source) or _streams(source)


def _of_pandas(source: object) -> TypeGuard[pd.DataFrame]:
    return hasattr(source, "columns") and hasattr(source, "dtypes") and hasattr(source, "iloc")


def _streams(source: object) -> TypeGuard[ArrowStream]:
    return hasattr(source, "__arrow_c_stream__")


def to_lazy(frame: Frame) -> pl.LazyFrame:
    """A frame of Polars, eager or lazy, of pandas, or one that gives Arrow's stream, lazily.

    A pandas column of mixed kinds is text. DataError if it is another object.
    """
    if isinstance(frame, (pl.DataFrame, pl.LazyFrame)):
        return frame.lazy()
    if not _of_pandas(frame):
        if not _streams(frame):
            raise DataError(
                f"rows must be a frame of Polars, pandas or Arrow, or a DuckDB relation, but got {type(frame).__name__}"
            )
        return pl.DataFrame(frame).lazy()
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
