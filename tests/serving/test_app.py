"""The server as its clients see it: answers, refusals, metrics, and new bundles."""

import http.client
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
import pytest
from prometheus_client.parser import text_string_to_metric_families

import autoembed.cli
from autoembed.bundle import copy_bundle, sha256
from autoembed.errors import BundleError, ServingError
from autoembed.serving.app import Limits, _is_here
from autoembed.serving.server import listening
from autoembed.serving.state import State
from autoembed.writing import exchange
from tests.serving.conftest import Client, make, running, table

ARROW = "application/vnd.apache.arrow.stream"


def frame_of(rows, seed=9):
    return table(rows, seed=seed).drop("label")


def plain(frame):
    """The frame's rows as JSON holds them."""
    return frame.with_columns(pl.col("seen").cast(pl.String), price=pl.col("price").fill_nan(None)).to_dicts()


def stream(frame):
    out = io.BytesIO()
    frame.write_ipc_stream(out)
    return out.getvalue()


def row_of(bundle, **changes):
    return {**bundle.example().to_dicts()[0], **changes}


def metrics(client):
    """The value of each sample by name and labels, as Prometheus' own parser reads them."""
    status, text, headers = client.ask("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(text.decode()))
    return {(one.name, *sorted(one.labels.values())): one.value for family in families for one in family.samples}


def test_rows_score_as_the_bundle_scores_them_in_every_form(bundle, server):
    _, client = server
    frame = frame_of(40)
    wanted = bundle.predict(frame)
    rows = plain(frame)
    columns = {name: [row[name] for row in rows] for name in frame.columns}
    for body in ({"rows": rows}, {"columns": columns}, json.dumps({"rows": rows}).encode()):
        status, found, headers = client.predict(body)
        assert (status, headers["x-autoembed-model"]) == (200, found["model"])
        np.testing.assert_allclose(found["predictions"], wanted, atol=1e-6)
    for row, one in zip(rows[:5], wanted, strict=False):
        np.testing.assert_allclose(client.predict({"row": row})[1]["predictions"], [one], atol=1e-6)
    status, found, _ = client.predict(stream(frame), content_type=ARROW)
    np.testing.assert_allclose(found["predictions"], wanted, atol=1e-6)
    status, content, headers = client.predict(stream(frame), content_type=ARROW, accept=ARROW)
    assert (status, headers["content-type"]) == (200, ARROW)
    back = pl.read_ipc_stream(io.BytesIO(content))
    np.testing.assert_allclose(back["prediction"], wanted, atol=1e-6)
    assert client.predict({"rows": []})[1]["predictions"] == []


def test_a_long_body_is_answered_beside_short_ones(bundle):
    frame = frame_of(3000)
    with running(bundle.path, max_rows=3000) as (_, client):
        body = json.dumps({"rows": plain(frame)}).encode()
        assert len(body) > 1 << 16
        found = client.predict(body)[1]["predictions"]
    np.testing.assert_allclose(found, bundle.predict(frame), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "field", "rule"),
    [
        ({"price": "cheap"}, "price", "must be a number, but got 'cheap'"),
        ({"age": "3 years"}, "age", "must be a number"),
        ({"age": 10**400}, "age", "must be a number of 64 bits"),
        ({"city": ["Bern"]}, "city", "must be one value, but got a list"),
        ({"item": {"a": 1}}, "item", "must be one value, but got an object"),
        ({"price": []}, "price", "must be one value, but got a list"),
        ({"seen": ...}, "seen", "must be there"),
    ],
)
def test_a_bad_row_is_told_with_field_row_and_rule(bundle, server, changes, field, rule):
    _, client = server
    bad = {name: value for name, value in row_of(bundle, **changes).items() if value is not ...}
    status, found, _ = client.predict({"rows": [row_of(bundle)] * 2 + [bad]})
    assert (status, found["field"], found["row"]) == (422, field, 2)
    assert rule in found["rule"]
    if changes[field] is not ...:
        status, found, _ = client.predict({"columns": {name: [row_of(bundle)[name], bad[name]] for name in bad}})
        assert (status, found["field"], found["row"]) == (422, field, 1)


@pytest.mark.parametrize(
    ("body", "status", "rule"),
    [
        (b"{", 400, "must be JSON"),
        (b"\xff", 400, "must be JSON in UTF-8"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b'{"row": {"age": NaN}}', 400, "NaN is no number of JSON"),
        (b"[]", 422, "the body must be"),
        (b'{"row": {}, "rows": []}', 422, "the body must be"),
        (b'{"rows": {}}', 422, "rows must be a list of objects, but got an object"),
        (b'{"rows": [3]}', 422, "a row must be an object, but got a number"),
        (b'{"columns": []}', 422, "columns must be an object of lists"),
        (json.dumps({"rows": [{}] * 101}).encode(), 413, "at most 100 rows, but has 101"),
        (b" " * ((8 << 20) + 1), 413, "at most 8388608 bytes"),
    ],
)
def test_what_is_no_table_is_refused(server, body, status, rule):
    _, client = server
    client = Client(client.port)  # a body that is not read to its end ends the connection
    found = client.predict(body)
    assert found[0] == status
    assert rule in found[1]["rule"]


def test_a_body_without_a_length_is_counted_as_it_comes(server):
    _, client = server
    client = Client(client.port)
    connection = client.connection
    connection.putrequest("POST", "/predict")
    connection.putheader("transfer-encoding", "chunked")
    connection.endheaders()
    part = b" " * (1 << 20)
    try:
        for _ in range(9):
            connection.send(b"%x\r\n%s\r\n" % (len(part), part))
    except OSError:  # the server has answered and left
        pass
    assert connection.getresponse().status == 413


def test_what_is_neither_json_nor_arrow_is_refused(bundle, server):
    _, client = server
    assert client.predict(b"a=1", content_type="application/x-www-form-urlencoded")[0] == 415
    assert client.predict(b"...", content_encoding="gzip")[0] == 415
    assert client.predict(b"nothing", content_type=ARROW)[0] == 400
    cut = stream(frame_of(50))
    assert client.predict(cut[: len(cut) // 2], content_type=ARROW)[0] == 400
    assert client.predict(stream(frame_of(101)), content_type=ARROW)[0] == 413
    status, found, _ = client.predict(stream(frame_of(5).drop("city")), content_type=ARROW)
    assert (status, found["field"], found["row"]) == (422, "city", None)
    nested = frame_of(2).with_columns(city=pl.Series([["a"], ["b"]]))
    status, found, _ = client.predict(stream(nested), content_type=ARROW)
    assert (status, found["field"]) == (422, "city")
    texts = frame_of(3).with_columns(age=pl.Series(["1", "2", "x"]), city=pl.Series(["a"] * 3, dtype=pl.Categorical))
    status, found, _ = client.predict(stream(texts), content_type=ARROW)
    assert (status, found["field"], found["row"]) == (422, "age", 2)
    assert client.ask("GET", "/predict")[0] == 405
    assert client.ask("GET", "/nothing")[0] == 404


def test_a_strict_server_refuses_further_fields(bundle, server):
    more = row_of(bundle, more=1)
    assert server[1].predict({"row": more})[0] == 200
    with running(bundle.path, strict=True) as (_, client):
        status, found, _ = client.predict({"row": more})
        assert (status, found["field"], found["row"]) == (422, "more", 0)
        assert client.predict({"row": row_of(bundle)})[0] == 200


def test_more_requests_at_once_than_the_limit_are_sent_away(bundle):
    with running(bundle.path, limits=Limits(max_requests=1, body_seconds=2.0)) as (app, client):
        slow = socket.create_connection(("127.0.0.1", client.port))
        slow.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n")
        _until(lambda: app.running == 1)
        status, _, headers = client.predict({"row": row_of(bundle)})
        assert (status, headers["retry-after"]) == (503, "1")
        assert client.ask("GET", "/ready")[0] == 503
        assert client.ask("GET", "/health")[0] == 200
        assert b"HTTP/1.1 408" in slow.recv(1000)  # and a body that does not come is waited for so long
        assert client.predict({"row": row_of(bundle)})[0] == 200
        assert client.ask("GET", "/ready")[:2] == (200, {"ready": True, "model": app.state.current.id})
        slow.close()


def test_metrics_tell_requests_times_and_unknown_values(bundle):
    with running(bundle.path) as (_, client):
        strange = row_of(bundle, city="Nowhere", price=None)
        rows = [row_of(bundle), strange, strange, {**strange, "mobile": None}]
        assert client.predict({"rows": rows})[0] == 200
        assert client.predict({"row": {}})[0] == 422
        client.ask("GET", "/a/b/c")
        found, coverage = metrics(client), bundle.coverage(pl.DataFrame(rows))
    assert found["autoembed_requests_total", "/predict", "200"] == 1
    assert found["autoembed_requests_total", "/predict", "422"] == 1
    assert found["autoembed_requests_total", "404", "other"] == 1
    assert found["autoembed_rows_total",] == 4
    assert found["autoembed_predict_seconds_bucket", "+Inf"] == found["autoembed_predict_seconds_count",] == 1
    assert found["autoembed_unknown_values_total", "city"] == 3
    for field, *shares in coverage.select("field", "unknown", "missing", "train_unknown", "train_missing").iter_rows():
        names = ("unknown_share", "missing_share", "train_unknown_share", "train_missing_share")
        assert [found[f"autoembed_{name}", field] for name in names] == pytest.approx(shares)
    assert found["autoembed_resident_bytes",] > 1e7


def test_the_model_is_told(bundle, server):
    _, client = server
    status, found, _ = client.ask("GET", "/model")
    assert status == 200
    assert {one["name"]: one["kind"] for one in found["columns"]} == {
        field.name: field.kind for field in bundle.schema.fields if not field.cross
    }
    assert (found["label"], found["study"], found["bytes"] > 0) == ("label", "s", True)
    assert client.predict({"row": found["example"]})[0] == 200


def _until(holds):
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def two(bundle, tmp_path):
    """A served folder and another bundle of the same columns."""
    return copy_bundle(bundle.path, tmp_path / "served"), make(tmp_path / "other", seed=1)


def test_a_new_bundle_takes_over_while_requests_go_on(bundle, two):
    served, other = two
    row = row_of(bundle)
    with running(served, reload_every=0.02) as (app, client):
        before = client.predict({"row": row})[1]
        ended, answers = threading.Event(), []

        def ask():
            own = Client(client.port)
            while not ended.is_set():
                status, found, _ = own.predict({"row": row})
                answers.append((status, found["model"], round(found["predictions"][0], 6)))
            own.connection.close()

        with ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(ask) for _ in range(3)]
            _until(lambda: len(answers) > 10)
            assert exchange(other, served)
            _until(lambda: app.state.reloads["done"])
            _until(lambda: answers[-1][1] != before["model"])
            ended.set()
            for one in asked:
                one.result()
        after = client.predict({"row": row})[1]
        assert client.ask("GET", "/health")[1]["reload_failure"] is None
    assert app.lines == [f"now serving model {after['model']}"]
    kinds = {(200, one["model"], round(one["predictions"][0], 6)) for one in (before, after)}
    assert set(answers) == kinds  # each answer is of one model, whole
    assert len(kinds) == 2


def test_a_damaged_bundle_is_refused_and_a_mended_one_is_taken(bundle, two):
    served, other = two
    whole = (other / "weights.safetensors").read_bytes()
    (other / "weights.safetensors").write_bytes(whole[:-4] + b"\0\0\0\1")
    with running(served) as (app, client):
        first = client.ask("GET", "/health")[1]["model"]
        assert exchange(other, served)
        status, found, _ = client.ask("POST", "/reload")
        assert (status, "sha256 differs" in found["rule"]) == (409, True)
        health = client.ask("GET", "/health")[1]
        assert (health["status"], health["model"]) == ("ok", first)
        assert "weights.safetensors is not the file that the manifest describes" in health["reload_failure"]
        assert client.predict({"row": row_of(bundle)})[1]["model"] == first
        told = metrics(client)
        assert (told["autoembed_reload_refused",], told["autoembed_reloads_total", "failed"]) == (1, 1)
        assert not app.state.reload()  # it has not changed: it is not read again
        assert app.state.reloads["failed"] == 1
        (served / "weights.safetensors").write_bytes(whole)
        status, found, _ = client.ask("POST", "/reload")
        assert (status, found["reloaded"], found["model"] == first) == (200, True, False)
        assert metrics(client)["autoembed_reload_refused",] == 0
        shutil.rmtree(served)
        assert client.ask("POST", "/reload")[0] == 409
        assert client.predict({"row": row_of(bundle)})[0] == 200
    assert [line.partition(":")[0].split()[0] for line in app.lines] == ["warning", "now", "warning"]


def test_a_model_that_predicts_otherwise_than_its_sample_is_refused(bundle, two):
    served, other = two
    sample = json.loads((other / "sample.json").read_text())
    sample["click"][0] += 0.01
    (other / "sample.json").write_text(json.dumps(sample))
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["files"]["sample.json"] = sha256(other / "sample.json")
    (other / "manifest.json").write_text(json.dumps(manifest))
    state = State(served, max_rows=10, strict=False)
    assert exchange(other, served)
    assert not state.reload()
    assert "a prediction differs" in state.failure
    with pytest.raises(BundleError, match="a prediction differs"):
        State(served, max_rows=10, strict=False)


def test_only_this_machine_may_ask_for_a_reload():
    assert [_is_here(host) for host in ("127.0.0.1", "::1", "10.0.0.7", "testclient", "")] == [True, True] + [False] * 3


def test_a_port_that_is_taken_is_told_in_one_line(bundle, monkeypatch, capsys):
    with listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=f"port {port} of 127.0.0.1 cannot be had .*: choose another port"):
            listening("127.0.0.1", port)
        monkeypatch.setattr(sys, "argv", ["autoembed", "serve", str(bundle.path), "--port", str(port)])
        with pytest.raises(SystemExit) as ended:
            autoembed.cli.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert re.fullmatch(rf"error: port {port} of .* cannot be had .*: choose another --port\n", err)


def test_a_damaged_bundle_is_not_served(tmp_path, monkeypatch, capsys):
    (tmp_path / "manifest.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["autoembed", "serve", str(tmp_path), "--port", "0"])
    with pytest.raises(SystemExit) as ended:
        autoembed.cli.main()
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_answer_does_not_wait_for_the_clients_receipt(bundle, server):
    """40 ms: what Nagle's algorithm and a delayed receipt make of an answer in two parts."""
    _, client = server
    times = []
    for _ in range(20):
        start = time.perf_counter()
        client.predict({"row": row_of(bundle)})
        times.append(time.perf_counter() - start)
    assert min(times) < 0.03  # on a busy machine others wait, too


def test_the_command_serves_takes_signals_and_needs_no_ray_optuna_or_mlflow(bundle, tmp_path):
    """The packages of the image alone: all others cannot be imported."""
    served, other = copy_bundle(bundle.path, tmp_path / "served"), make(tmp_path / "other", seed=1)
    code = """
import sys
from importlib.machinery import PathFinder
BANNED = {"ray", "optuna", "mlflow", "fastapi", "pandas", "scipy", "sklearn", "matplotlib", "yaml",
          "lightgbm", "onnx", "sqlalchemy"}
class Image(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in BANNED else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Image
from autoembed.cli import main
main()
"""
    command = [sys.executable, "-c", code, "serve", str(served), "--port", "0", "--reload-every", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        assert line.startswith(f"serving {served} at http://127.0.0.1:")
        port = int(re.search(r"127\.0\.0\.1:(\d+)", line)[1])
        client = Client(port)
        assert client.predict({"row": row_of(bundle)})[0] == 200
        assert exchange(other, served)
        process.send_signal(1)
        assert process.stdout.readline().startswith("now serving model")
    finally:
        process.send_signal(2)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")
    with pytest.raises(OSError, match="refused"):
        http.client.HTTPConnection("127.0.0.1", port).connect()
