"""A small bundle of every kind of field, and a server in a thread."""

import contextlib
import http.client
import json
import threading

import numpy as np
import polars as pl
import pytest
import uvicorn

from autoembed.architecture import Architecture
from autoembed.bundle import load_bundle, write_bundle
from autoembed.data.crosses import CrossSpec
from autoembed.data.readers import clean
from autoembed.data.schema import FeatureSchema, Field, Multi
from autoembed.data.spec import DataSpec
from autoembed.data.vocabulary import Vocabulary
from autoembed.nn.model import build_model, cost_of
from autoembed.serving.app import App, Limits
from autoembed.serving.server import listening
from autoembed.serving.state import State

ROWS = 2000
JSON = "application/json"


def table(rows=ROWS, seed=0):
    """Text with gaps, whole numbers, numbers with gaps, truth values, 0 and 1, moments, numbers as categories."""
    rng = np.random.default_rng(seed)
    price = rng.normal(10, 4, rows).round(2)
    price[rng.random(rows) < 0.1] = np.nan
    days = pl.datetime_range(pl.datetime(2024, 1, 1), pl.datetime(2024, 1, 3), "5h", eager=True)
    return pl.DataFrame(
        {
            "city": rng.choice(["Bern", "Köln", "01", "1", "2.50", " x", None], rows),
            "item": rng.integers(-5, 40, rows),
            "price": price,
            "mobile": rng.random(rows) < 0.5,
            "flag": rng.integers(0, 2, rows),
            "seen": pl.Series(rng.choice(days.to_numpy(), rows)),
            "ratio": rng.choice([0.5, 1e-5, 2.0, 1e16, 3e-7], rows),
            "age": rng.integers(0, 90, rows).astype(float),
            "tags": [rng.choice(["a", "b", "2.0", "7"], rng.integers(0, 4)).tolist() for _ in range(rows)],
            "words": ["|".join(rng.choice(["x", "y", " z", ""], rng.integers(1, 5))) for _ in range(rows)],
            "label": rng.integers(0, 2, rows),
        }
    )


def make(folder, *, data=None, seed=0, train=None):
    """Writes a bundle with drawn weights; `data` are keys of the data section."""
    frame = table() if train is None else train
    kinds = {"price": "numeric", "age": "numeric"}
    names = [name for name in frame.columns if name != "label"]
    multi = {"tags": Multi(length=2), "words": Multi(separator="|", length=3, keep="first")}
    kinds |= dict.fromkeys(multi, "multi")
    between = {"age": "piecewise"}
    fields = tuple(
        Field(
            name=name,
            kind=kinds.get(name, "categorical"),
            multi=multi.get(name),
            interpolation=between.get(name) if kinds.get(name) == "numeric" else None,
        )
        for name in names
    )
    schema = FeatureSchema(fields=fields, label="label")
    data = {"label": "label", **({"multi": {"words": "|"}} if "words" in names else {}), **(data or {})}
    frame = clean(frame.lazy(), DataSpec.model_validate({**data, "strip": False, "null_values": ()})).collect()
    vocabulary = Vocabulary.fit(frame.lazy(), schema, 1, 8)
    if "item" in names and "mobile" in names:
        ids = vocabulary.encode(frame)
        pair = tuple(ids[:, names.index(name)] for name in ("item", "mobile"))
        vocabulary = vocabulary.with_cross("item", "mobile", pair, CrossSpec(min_count=2))
        cross = Field(name=vocabulary.names[-1], kind="crossed", cross=vocabulary.cross(vocabulary.names[-1]))
        schema = schema.model_copy(update={"fields": (*schema.fields, cross)})
    schema = vocabulary.schema(schema)
    counts = [vocabulary.counts(name) for name in schema.names]
    backbone = {"name": "deepfm", "hidden": [8]}
    architecture = Architecture.full(schema, counts, dim=4, blocks=2, backbone=backbone)
    architecture = architecture.model_copy(update={"cost": cost_of(architecture)})
    model = build_model(schema, architecture).eval()
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        parameter.data += parameter.new_tensor(rng.normal(0, 0.3, parameter.shape))
    return write_bundle(
        folder,
        schema=schema,
        vocabulary=vocabulary,
        architecture=architecture,
        model=model,
        data=data,
        metrics={},
        provenance={"study": "s"},
    )


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    return load_bundle(make(tmp_path_factory.mktemp("serving") / "bundle"))


class Client:
    """Asks a server on one connection that is kept."""

    def __init__(self, port):
        self.port, self.connection = port, http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def ask(self, method, path, body=None, **headers):
        """(status, body, headers) of an answer; JSON is decoded."""
        body = json.dumps(body) if isinstance(body, (dict, list)) else body
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.connection.request(method, path, body, {"content-type": JSON} | named)
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.headers.get("content-type") == JSON:
            content = json.loads(content)
        return answer.status, content, answer.headers

    def predict(self, body, **headers):
        return self.ask("POST", "/predict", body, **headers)


@contextlib.contextmanager
def running(path, *, limits=None, max_rows=100, strict=False, **options):
    """A server of a bundle: (its App, a Client)."""
    lines = []
    app = App(State(path, max_rows=max_rows, strict=strict), limits or Limits(), say=lines.append, **options)
    app.lines = lines
    listener = listening("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app.asgi(), lifespan="on", log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    client = Client(listener.getsockname()[1])
    try:
        yield app, client
    finally:
        client.connection.close()
        server.should_exit = True
        thread.join(30)
        listener.close()


@pytest.fixture(scope="session")
def server(bundle):
    with running(bundle.path) as (app, client):
        yield app, client
