"""The commands of docs/runs.md and docs/serving.md that serve a study's champion by MLflow, as they stand."""

import json
import os
import shutil
import subprocess
import urllib.request

import polars as pl
import pytest
import yaml

from autoembed.bundle import load_bundle
from autoembed.study.engine.run import Request, run_study
from tests.pages import blocks, lines
from tests.study.conftest import SPACE
from tests.study.nodes import BIN
from tests.study.test_mirror import answers, end
from tests.test_refresh import logs

pytestmark = pytest.mark.slow


@pytest.fixture
def served(tmp_path, ray_here, monkeypatch, unused_port):
    """Makes a study and serves it by the lines of a page: (its bundle, the lines behind that of the server)."""
    monkeypatch.chdir(tmp_path)
    logs(0, 3000).write_parquet("clicks.parquet")
    started = []

    def serve(page, name):
        data = {"label": "label", "path": "clicks.parquet", "split": SPACE["data"]["split"]}
        space = SPACE | {"data": data, "baselines": [], "budget": {"trials": 1, "width": 2}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(space))
        run, _ = run_study(Request(space=tmp_path / f"{name}.yaml", runs=tmp_path / "runs"))
        (block,) = (text for text in blocks(page, "sh") if "mlflow models serve" in text)
        store, server, *rest = lines(block.replace(":5001", f":{unused_port}").replace("-p 5001", f"-p {unused_port}"))
        # MLflow starts uvicorn by its name, as an environment that is active has it.
        variables = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "MLFLOW_PORT": str(unused_port)}
        started.append(
            subprocess.Popen(
                ["bash", "-c", f"{store}\nexec {server}"], env=variables,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
        )  # fmt: skip
        answers(f"http://127.0.0.1:{unused_port}/ping", started[0])
        return load_bundle(run.best), rest

    yield serve
    for process in started:
        end(process)


def test_the_page_on_runs(served, unused_port):
    bundle, rest = served("runs.md", "quickstart")
    assert not rest
    example = bundle.example()
    rows = {"dataframe_split": {"columns": example.columns, "data": [list(row) for row in example.iter_rows()]}}
    request = urllib.request.Request(
        f"http://127.0.0.1:{unused_port}/invocations", json.dumps(rows).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        scores = json.loads(answer.read())
    assert scores["predictions"][0]["prediction"] == pytest.approx(bundle.predict(example)[0])


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page asks with curl")
def test_the_page_on_serving(served):
    bundle, (curl,) = served("serving.md", "clicks")
    done = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=300, check=True)
    row = json.loads(curl.split(" -d ")[1].strip("'"))["dataframe_records"]
    assert json.loads(done.stdout)["predictions"][0]["prediction"] == pytest.approx(
        bundle.predict(pl.DataFrame(row))[0]
    )
