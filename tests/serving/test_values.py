"""Plain values get the ids that `Vocabulary.encode` gives them, one by one and in batches."""

import io
import json
import re

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoembed.bundle import load_bundle
from autoembed.data.readers import clean
from autoembed.errors import DataError
from autoembed.serving.rows import RefusedError, RowReader
from autoembed.serving.values import GONE
from tests.serving.conftest import make, table

CATEGORICAL, NUMERIC = ("city", "item", "mobile", "flag", "seen", "ratio"), ("price", "age")
TEXTS = [
    "", " ", "nan", "NaN", "NAN", "null", "1", "01", "1.0", "-0", "0.0", "2.50", "2.5", "0.00001", "1e-5", "1e-05",
    "true", "True", "TRUE", "false", "False", "Köln", "Bern", " Bern", "Bern ", "\u2003Bern", "\x1cBern", " x", "x",
    "1_000", "1e1", "+3", ".5", "5.", "inf", "-inf", "Infinity", "0x1", "5.0\n", "a|b", "x| z|y|x", "|x", "٣", "٣.0",
    "1e16", "1e+16",
    "2024-01-01", "2024-01-01T05:00:00", "2024-01-01 05:00", "2024-01-01 14:00:00+09:00", "2024-01-01 05:00:00.000Z",
    "2024-13-01 05:00", "2024-01-01 05:00:60",
]  # fmt: skip
NUMBERS = [
    0, 1, -1, -5, 39, 2, 2**53, 2**63 - 1, 2**63, 2**64, 0.5, 2.0, 1.0, -0.0, 1e-5, 3e-7, 1e16, 1e300, 5e-324, 1e999,
    -1e999, 2.5, 10.01,
]  # fmt: skip
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(TEXTS),
    st.sampled_from(NUMBERS),
    st.text(max_size=8).filter(lambda text: "\x00" not in text),
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False),
)


def bundles(tmp_path_factory):
    root = tmp_path_factory.mktemp("values")
    plain = make(root / "plain")
    cleaned = make(root / "cleaned", data={"strip": True, "null_values": ["1", "Bern", "0.5", "true"]})
    return {"plain": load_bundle(plain), "cleaned": load_bundle(cleaned)}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return {
        name: (one, RowReader(one, max_rows=10_000, strict=False)) for name, one in bundles(tmp_path_factory).items()
    }


def wanted(bundle, row):
    """The ids that Bundle.predict scores for some fields of a row, or None if it refuses them."""
    types = {"tags": pl.List(pl.String), "words": pl.String}
    types = {name: one for name, one in types.items() if name in row and row[name] is None}
    frame = pl.DataFrame({name: [value] for name, value in row.items()}, schema_overrides=types)
    try:
        return bundle.vocabulary.keep(row).encode(clean(frame.lazy(), bundle.spec).collect())[0]
    except DataError:
        return None


def asked(reader, row):
    body = re.sub(r'(?<!")Infinity', "1e999", json.dumps({"row": row}))  # JSON has no word for it
    try:
        ids = reader.json(body.encode())[0]
    except RefusedError as refused:
        return None if refused.status == 422 and refused.field in row else refused.rule
    return np.where(ids == GONE, 0, ids)


def check(bundle, reader, value):
    """All categorical fields and lists have the value, then all numeric ones, then a text with a separator."""
    lists = {"tags": [value], "words": [value, value]}
    changes = [{**dict.fromkeys(CATEGORICAL, value), **lists}, dict.fromkeys(NUMERIC, value)]
    if value is None or isinstance(value, str):
        changes.append({"words": value})
    for own in changes:
        expected, found = wanted(bundle, own), asked(reader, {**dict.fromkeys(reader.columns), **own})
        assert (expected is None) == (found is None), own
        if expected is not None:
            in_order = [name for name in bundle.vocabulary.names if name in own]
            assert np.array_equal(expected, found[bundle.schema.columns(in_order)]), own


@pytest.mark.parametrize("kind", ["plain", "cleaned"])
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES)
def test_a_value_of_any_json_type_has_the_id_of_the_vocabulary(both, kind, value):
    check(*both[kind], value)


@pytest.mark.parametrize("kind", ["plain", "cleaned"])
def test_listed_values_have_the_ids_of_the_vocabulary(both, kind):
    for value in (*TEXTS, *NUMBERS, None, True, False):
        check(*both[kind], value)


@pytest.mark.parametrize("kind", ["plain", "cleaned"])
def test_rows_columns_and_arrow_have_the_same_ids(both, kind, monkeypatch):
    bundle, reader = both[kind]
    frame = table(300, seed=5).drop("label")
    plain = frame.with_columns(pl.col("seen").cast(pl.String), price=pl.col("price").fill_nan(None))
    expected = bundle.vocabulary.encode(clean(frame.lazy(), bundle.spec).collect())
    stream = io.BytesIO()
    frame.write_ipc_stream(stream)
    bodies = [json.dumps({"rows": plain.to_dicts()}), json.dumps({"columns": plain.to_dict(as_series=False)})]
    found = [reader.json(body.encode()) for body in bodies]
    found.append(reader.arrow(stream.getvalue()))
    whole = frame.drop("seen").with_columns(seen=plain["seen"])
    stream = io.BytesIO()
    whole.write_ipc_stream(stream)
    found.append(reader.arrow(stream.getvalue()))
    monkeypatch.setattr("autoembed.serving.rows._FEW", 0)
    found.append(reader.arrow(stream.getvalue()))
    for ids in found:
        assert np.array_equal(np.where(ids == GONE, 0, ids), expected)
        assert np.array_equal(ids, found[0])  # values that are missing without an id, too
