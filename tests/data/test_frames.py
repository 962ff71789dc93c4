"""Frames of other libraries are tables as those of Polars are."""

import numpy as np
import polars as pl
import pytest

from autoembed.data.frames import is_frame, to_lazy
from autoembed.ranking.ranking import rank_table

TABLE = pl.DataFrame({"label": [0, 1, 1, 0] * 10, "a": ["x", "y", None, "x"] * 10, "b": [1.5, 2.0, 2.5, None] * 10})


class Relation:
    """Gives its rows by Arrow's interface and nothing else, as a DuckDB relation may."""

    def __arrow_c_stream__(self, requested_schema=None):
        return TABLE.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize("make", [TABLE.to_arrow, TABLE.to_pandas, TABLE.lazy, Relation, lambda: TABLE])
def test_rows_are_the_same_whoever_holds_them(make):
    frame = make()
    assert is_frame(frame)
    assert to_lazy(frame).collect().equals(TABLE)
    assert rank_table(make()).table.equals(rank_table(TABLE).table)


def test_a_duckdb_relation_is_ranked():
    duckdb = pytest.importorskip("duckdb", reason="needs the package duckdb")
    relation = duckdb.sql("select i % 2 as label, i % 7 as a from range(100) t(i)")
    assert rank_table(relation).table["feature"].to_list() == ["a"]


def test_other_objects_are_not_frames():
    assert not is_frame([1, 2])
    assert not is_frame(np.zeros(3))
