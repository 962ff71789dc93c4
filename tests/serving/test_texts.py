"""Columns whose texts stay in the body get the ids that the dictionaries give them, and refusals are the same."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoembed.bundle import load_bundle
from autoembed.serving import rows as reading
from autoembed.serving.rows import RefusedError, RowReader
from autoembed.serving.texts import UNSEEN, ArrowBody, Texts, TextTable, columns_of
from tests.serving.conftest import make, table
from tests.serving.test_values import TEXTS, VALUES

SOME = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CELLS = st.one_of(st.sampled_from(TEXTS), st.text(max_size=20), st.sampled_from(["Bern", "Köln", "01"]))


@pytest.fixture(scope="module", params=[{}, {"strip": True, "null_values": ["1", "Bern"]}], ids=["plain", "cleaned"])
def reader(request, tmp_path_factory):
    bundle = load_bundle(make(tmp_path_factory.mktemp("texts") / "bundle", data=request.param))
    return RowReader(bundle, max_rows=100, strict=True)


def answer(reader, body, monkeypatch, long):
    monkeypatch.setattr(reading, "_LONG", long)
    try:
        return reader.json(body).tolist()
    except RefusedError as refused:
        return refused.status, refused.rule, refused.field, refused.row


def check(reader, body, monkeypatch):
    assert answer(reader, body, monkeypatch, 0) == answer(reader, body, monkeypatch, len(body) + 1)


def columns(reader, draw, rows):
    node = {name: draw(st.lists(CELLS, min_size=rows, max_size=rows)) for name in reader.columns}
    for name in ("price", "age"):
        node[name] = draw(
            st.lists(st.one_of(st.none(), st.integers(0, 99), st.floats(0, 9)), min_size=rows, max_size=rows)
        )
    node["tags"] = draw(st.lists(st.lists(st.sampled_from("ab7]"), max_size=2), min_size=rows, max_size=rows))
    if draw(st.booleans()):
        name = draw(st.sampled_from(reader.columns))
        node[name] = draw(st.lists(VALUES, min_size=rows, max_size=rows))
    return node


@SOME
@given(data=st.data())
def test_ids_are_those_of_single_values(reader, monkeypatch, data):
    node = columns(reader, data.draw, data.draw(st.integers(0, 4)))
    if "tags" in node and data.draw(st.booleans()):
        node["tags"] = ["a"] * len(node["age"])
    comma, ascii_only = data.draw(st.sampled_from([",", ", ", " ,"])), data.draw(st.booleans())
    text = json.dumps(
        {"columns": node}, separators=(comma, data.draw(st.sampled_from([":", ": "]))), ensure_ascii=ascii_only
    )
    check(reader, text.encode("utf-8", "surrogatepass"), monkeypatch)


@SOME
@given(data=st.data())
def test_a_broken_body_is_refused_as_before(reader, monkeypatch, data):
    names = data.draw(st.lists(st.sampled_from(reader.columns), max_size=2))
    node = {name: ["1", "x"] for name in reader.columns if name not in names}
    body = json.dumps({"columns": node}).encode()
    at, more = (
        data.draw(st.integers(0, len(body))),
        data.draw(st.sampled_from([b'"', b"]", b"[", b",", b"\n", b"\xff", b"}", b" ", b"\\", b"1", b"\0"])),
    )
    check(reader, body[:at] + more + body[at + data.draw(st.integers(0, 2)) :], monkeypatch)


def test_rules_of_a_whole_body(reader, monkeypatch):
    node = {name: ["1", "x"] for name in reader.columns} | {"price": [1, 2], "age": [None, 2], "tags": [None, None]}
    for body in (
        {"columns": node | {"more": ["1", "1"]}},
        {"columns": node | {"city": ["1"]}},
        {"columns": node | {"city": [["1"], "x"]}},
        {"columns": node | {"city": [{"a": [1]}, "x"]}},
        {"columns": {name: own * 60 for name, own in node.items()}},
        {"columns": node, "rows": []},
        {"rows": []},
    ):
        check(reader, json.dumps(body).encode(), monkeypatch)
    body = json.dumps({"columns": node}).encode()
    check(reader, body[:-2] + b', "city": ["x", "x"]}}', monkeypatch)
    check(reader, body.replace(b"null, 2", b"NaN, 2"), monkeypatch)
    check(reader, body.replace(b"[null, 2]", b"[" * 100_000 + b"]"), monkeypatch)
    assert columns_of(body, json.loads) is not None


def test_texts_of_a_request_are_read_in_the_body(reader):
    known = table(50)
    node = {name: known[name].cast(str).fill_null("").to_list() for name in ("city", "item")}
    found = columns_of(json.dumps({"columns": node}, ensure_ascii=False).encode(), json.loads)
    assert {name: one.tolist() for name, one in found.items()} == node
    assert all(isinstance(one, Texts) for one in found.values())


def test_a_table_knows_a_text_by_all_of_it_and_its_field():
    common = "a" * 16
    fields = [
        {"": 5, "x": 1, common: 2, "a" * 8: 3, "a" * 9: 4, "ü" * 8: 6, f"{common}b": 7, "a\0": 8, "\ud800": 9},
        {"x": 11, "y": 12},
        {},
        {f"v{n}": n for n in range(3000)},
    ]
    texts = ["", "x", common, "a" * 8, "a" * 9, "ü" * 8, f"{common}b", "a" * 17, "y", "a"]
    body = "".join(texts).encode()
    stop = np.cumsum([len(one.encode()) for one in texts])
    asked = Texts(body + bytes(16), np.concatenate([[0], stop[:-1]]), stop)
    known = TextTable(fields)
    u = UNSEEN
    assert known.ids(asked, np.zeros(10, np.int32)).tolist() == [5, 1, 2, 3, 4, 6, u, u, u, u]
    assert known.ids(asked, np.ones(10, np.int32)).tolist() == [u, 11, u, u, u, u, u, u, 12, u]
    assert known.ids(asked, np.full(10, 2, np.int32)).tolist() == [u] * 10
    assert set(TextTable([{}]).ids(asked, np.zeros(10, np.int32)).tolist()) == {u}
    names = [f"v{n}" for n in range(3000)]
    stop = np.cumsum([len(one) for one in names])
    many = Texts("".join(names).encode() + bytes(16), np.concatenate([[0], stop[:-1]]), stop)
    ids = known.ids(many, np.full(3000, 3, np.int32))
    assert ((ids == np.arange(3000)) | (ids == u)).all()
    assert (ids != u).mean() > 0.95


def arrow_of(columns, kinds, compression=None):
    table = pa.table({name: pa.array(values, kinds.get(name)) for name, values in columns.items()})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as stream:
        stream.write_table(table)
    return sink.getvalue()


@SOME
@given(data=st.data())
def test_texts_of_arrow_have_the_ids_of_single_values(reader, monkeypatch, data):
    rows = data.draw(st.integers(0, 5))
    node = {name: data.draw(st.lists(CELLS, min_size=rows, max_size=rows)) for name in reader.columns}
    node = {name: [one.encode("utf-8", "ignore").decode() for one in own] for name, own in node.items()}
    node |= {"price": [1.5] * rows, "age": [None] * rows, "tags": [["a"]] * rows}
    if rows and data.draw(st.booleans()):
        node["city"][0] = data.draw(st.sampled_from([None, "Bern\0", "a" * 40, "\0"]))
    kind = data.draw(st.sampled_from([pa.string(), pa.large_string(), pa.string_view()]))
    kinds = dict.fromkeys(set(node) - {"price", "age", "tags"}, kind)
    body = arrow_of(node, kinds | {"tags": pa.list_(pa.string())}, data.draw(st.sampled_from([None, "lz4"])))
    answers = []
    for long in (0, len(body) + 1):
        monkeypatch.setattr(reading, "_LONG", long)
        answers.append(reader.arrow(body).tolist())
    assert answers[0] == answers[1]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_texts_of_arrow_are_read_in_the_body(kind):
    texts = ["", "x", "Köln", "a" * 12, "b" * 13, "c" * 40]
    body = arrow_of({"city": texts}, {"city": kind})
    within = ArrowBody(body)
    with pa.ipc.open_stream(within.handle) as stream:
        column = stream.read_all().column("city")
    assert within.texts(column).tolist() == texts
    assert within.texts(column.slice(2, 3)).tolist() == texts[2:5]
    assert within.texts(pa.chunked_array([pa.array(texts, kind)])) is None  # in memory of its own
    for other in (["a", None], ["a\0"], [1], []):
        assert within.texts(pa.chunked_array([pa.array(other, kind if other != [1] else None)])) is None
