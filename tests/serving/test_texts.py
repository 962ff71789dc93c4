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
from autoembed.serving.texts import UNSEEN, ArrowBody, Body, Texts, TextTable, columns_of, rows_of
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
    rows = [dict(zip(node, values, strict=True)) for values in zip(*node.values(), strict=True)]
    if len(rows) > 1 and data.draw(st.booleans()):
        rows[1] = dict(sorted(rows[1].items()))
    for body in ({"columns": node}, {"rows": rows}):
        text = json.dumps(body, separators=(comma, data.draw(st.sampled_from([":", ": "]))), ensure_ascii=ascii_only)
        check(reader, text.encode("utf-8", "surrogatepass"), monkeypatch)


@SOME
@given(data=st.data())
def test_a_broken_body_is_refused_as_before(reader, monkeypatch, data):
    names = data.draw(st.lists(st.sampled_from(reader.columns), max_size=2))
    node = {name: ["1", "x"] for name in reader.columns if name not in names}
    rows = [{name: one[row] for name, one in node.items()} for row in range(2)]
    if data.draw(st.booleans()):
        rows[1] |= {"age": data.draw(st.sampled_from([None, 2, True, 1e3, [1], {}]))}
    body = json.dumps(data.draw(st.sampled_from([{"columns": node}, {"rows": rows}]))).encode()
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
    assert columns_of(body, json.JSONDecoder()) is not None
    few = {name: [own[0] for own in (node[name],)] for name in ("city", "price", "age")}
    row = {name: one[0] for name, one in node.items()} | {"tags": None}
    for rows in ([row] * 200, [{}], [row, {}], [row | {"more": "1"}] * 2, [row, 1], [row | {"city": "a\\b"}], few, 1):
        check(reader, json.dumps({"rows": rows}).encode(), monkeypatch)
    body = json.dumps({"rows": [row, row]}).encode()
    check(reader, body[:-2] + b"]} ", monkeypatch)
    check(reader, body[:-2] + b', {"city": "x"}]}', monkeypatch)
    check(reader, body.replace(b'{"', b'{"city": "y", "', 1), monkeypatch)
    check(reader, body.replace(b"null", b"NaN"), monkeypatch)


def test_texts_of_a_request_are_read_in_the_body(reader):
    known = table(50)
    node = {name: known[name].cast(str).fill_null("").to_list() for name in ("city", "item")}
    found = columns_of(json.dumps({"columns": node}, ensure_ascii=False).encode(), json.JSONDecoder())
    assert {name: one.tolist() for name, one in found.items()} == node
    assert all(isinstance(one, Texts) for one in found.values())
    rows = [dict(zip(node, values, strict=True)) | {"age": 1.5} for values in zip(*node.values(), strict=True)]
    found = rows_of(json.dumps({"rows": rows}, ensure_ascii=False).encode(), json.JSONDecoder(), 50)
    assert {name: found[name].tolist() for name in node} == node
    assert found["age"] == [1.5] * 50
    assert rows_of(json.dumps({"rows": rows}).encode(), json.JSONDecoder(), 49) is None


def test_columns_of_other_values_are_between_columns_of_texts():
    node = {"a": ["x", "y"], "b": [1, None], "c": ["z", "\\"], "d": [], "e": ["", "u"]}
    body = json.dumps({"columns": node}).encode()
    found = columns_of(body, json.JSONDecoder())
    assert {name: one if isinstance(one, list) else one.tolist() for name, one in found.items()} == node
    assert [name for name, one in found.items() if isinstance(one, Texts)] == ["a", "e"]
    assert columns_of(body[:-2] + b', "a": ["x"]}}', json.JSONDecoder()) is None


def test_a_table_knows_a_text_by_all_of_it_and_its_field():
    common = "a" * 16
    fields = [
        {"": 5, "x": 1, common: 2, "a" * 8: 3, "a" * 9: 4, "ü" * 8: 6, f"{common}b": 7, "a\0": 8, "\ud800": 9},
        {"x": 11, "y": 12},
        {},
        {f"v{n}": n for n in range(3000)},
    ]
    texts = ["", "x", common, "a" * 8, "a" * 9, "ü" * 8, f"{common}b", "a" * 17, "y", "a"]
    asked, known, u = texts_of(texts), TextTable(fields), UNSEEN
    found = known.ids({0: asked, 1: asked, 2: asked})
    assert found[0].tolist() == [5, 1, 2, 3, 4, 6, u, u, u, u]
    assert found[1].tolist() == [u, 11, u, u, u, u, u, u, 12, u]
    assert found[2].tolist() == [u] * 10
    assert set(TextTable([{}]).ids({0: asked})[0].tolist()) == {u}
    many = texts_of([f"v{n}" for n in range(3000)])
    assert known.ids({3: many})[0].tolist() == list(range(3000))


def texts_of(texts):
    stop = np.cumsum([len(one.encode()) for one in texts])
    return Texts(Body("".join(texts).encode()), np.concatenate([[0], stop[:-1]]), stop)


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


@pytest.mark.parametrize("long", [0, 1 << 20])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_what_is_no_utf_8_in_arrow_is_refused(reader, monkeypatch, kind, long):
    monkeypatch.setattr(reading, "_LONG", long)
    node = {name: ["Zürich"] for name in reader.columns} | {"price": [1.5], "age": [None], "tags": [["a"]]}
    body = arrow_of(node, {name: kind for name in node if name not in ("price", "age", "tags")})
    assert reader.arrow(body).shape[0] == 1
    with pytest.raises(RefusedError, match="must be an Arrow IPC stream") as refused:
        reader.arrow(body.replace("Zürich".encode(), b"Z\xff\xffrich"))
    assert refused.value.status == 400


@pytest.mark.parametrize("long", [0, 1 << 20])
def test_a_column_of_arrow_that_stands_twice_is_refused(reader, monkeypatch, long):
    monkeypatch.setattr(reading, "_LONG", long)
    names = [*reader.columns, "city"]
    sink, table = io.BytesIO(), pa.table([pa.array(["a"])] * len(names), names=names)
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    with pytest.raises(RefusedError, match="city") as refused:
        reader.arrow(sink.getvalue())
    assert refused.value.status == 400


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_texts_of_arrow_are_read_in_the_body(kind):
    texts = ["", "x", "Köln", "a" * 12, "b" * 13, "c" * 40]
    body = arrow_of({"city": texts}, {"city": kind})
    within = ArrowBody(body)
    with pa.ipc.open_stream(within.handle) as stream:
        column = stream.read_all().column("city")
    elsewhere = pa.chunked_array([pa.array(texts[2:5], kind)])
    found = within.texts({"whole": column.slice(2, 3), "elsewhere": elsewhere})
    assert {name: one.tolist() for name, one in found.items()} == {"whole": texts[2:5]}
    assert within.texts({"city": column})["city"].tolist() == texts


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
@pytest.mark.parametrize("values", [["a", None], ["a", "b\0"], [1, 2], []], ids=str)
def test_other_columns_of_arrow_are_left_out(kind, values):
    kinds = {"city": kind, "other": pa.int64() if values == [1, 2] else kind}
    body = arrow_of({"city": ["x", "yz"][: len(values)], "other": values}, kinds)
    within = ArrowBody(body)
    with pa.ipc.open_stream(within.handle) as stream:
        table = stream.read_all()
    found = within.texts({name: table.column(name) for name in table.column_names})
    assert {name: one.tolist() for name, one in found.items()} == ({"city": ["x", "yz"]} if values else {})


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_places_outside_the_body_are_no_texts(kind):
    body = arrow_of({"city": ["a" * 20, "b" * 30]}, {"city": kind})
    within = ArrowBody(body)
    with pa.ipc.open_stream(within.handle) as stream:
        column = stream.read_all().column("city")
    within.size = len(body) // 2
    assert within.texts({"city": column}) == {}
