from pathlib import Path

import polars as pl
import pytest

from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture
def real():
    """The real data beside the repository, or a skip."""
    if not REAL.is_dir():
        pytest.skip(f"the real data are not there: {REAL}")
    return REAL


@pytest.fixture
def build(tmp_path):
    """build(data, **spec) -> Dataset, cached under tmp_path."""

    def make(data=None, **spec):
        return build_dataset(DataSpec.model_validate(spec), data, tmp_path / "cache")

    return make


def table(rows=300):
    """A small table with a label, two categorical columns, a numeric one with gaps, and a time."""
    return pl.DataFrame(
        {
            "label": [i * 7 % 3 == 0 for i in range(rows)],
            "colour": [("red", "green", "blue", None)[i * i % 4 if i % 5 else 3] for i in range(rows)],
            "shop": [i * 13 % 20 for i in range(rows)],
            "price": [None if i % 11 == 0 else (i * 37 % 101) / 4 for i in range(rows)],
            "day": [20240101 + i // 30 for i in range(rows)],
        },
        schema_overrides={"label": pl.Int8},
    )


@pytest.fixture
def small():
    return table()
