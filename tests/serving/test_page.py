"""docs/serving.md, run as it stands, on another port."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from inspect import signature

import numpy as np
import polars as pl
import pytest

import autoembed.cli
from autoembed.bundle import load_bundle
from tests.pages import BLOCK, ROOT, commands
from tests.serving.conftest import make
from tests.test_refresh import logs

PAGE = ROOT / "docs" / "serving.md"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the bundle of the page."""
    folder = tmp_path_factory.mktemp("page")
    make(folder / "serving" / "clicks", train=logs(0, 3000))
    return folder


@pytest.fixture(scope="module")
def port(place):
    """That of a server which was started as the page says, on a port that is free."""
    (words,) = [words for words in commands("serving.md") if words == ["serve", "serving/clicks"]]
    words = [sys.executable, "-m", "autoembed.cli", *words, "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=place) as process:
        try:
            yield re.search(r"127\.0\.0\.1:(\d+): curl", process.stdout.readline())[1]
        finally:
            process.terminate()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page asks with curl")
def test_the_page_runs_as_it_stands(place, port):
    asked = 0
    every = [(kind, text.replace(":8000", f":{port}")) for kind, text in BLOCK.findall(PAGE.read_text())]
    for (kind, text), (after, wanted) in zip(every, [*every[1:], ("", "")], strict=True):
        if kind == "sh" and text.startswith("curl"):
            assert after == "json"
            done = subprocess.run(shlex.split(text), capture_output=True, text=True, timeout=60, check=True)
            found, shown = json.loads(done.stdout), json.loads(wanted)
            assert {name: type(value) for name, value in found.items()} == {
                name: type(value) for name, value in shown.items()
            }
            if "rule" in shown:
                assert found == shown
            if "predictions" in shown:
                assert len(found["predictions"]) == len(shown["predictions"])
            asked += 1
        if kind == "python":
            names: dict[str, object] = {}
            exec(compile(text, str(PAGE), "exec"), names)
            rows = pl.DataFrame({"item": ["i150", None], "user": [7, 8], "noise": [3, 3]})
            expected = load_bundle(place / "serving" / "clicks").predict(rows)
            np.testing.assert_allclose(names["scores"]["prediction"], expected, atol=1e-6)
            asked += 1
    assert asked == 7


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page asks with curl")
def test_the_page_names_the_defaults_and_the_metrics(port):
    text, options = PAGE.read_text(), signature(autoembed.cli.serve.serve).parameters
    for option, value in re.findall(r"`--([a-z-]+) (\d+)`", text):
        assert options[option.replace("-", "_")].default == float(value), option
    done = subprocess.run(
        ["curl", "-s", f"http://127.0.0.1:{port}/metrics"], capture_output=True, text=True, check=True
    )
    for name in set(re.findall(r"autoembed_\w+", text)):
        assert f"\n{name}" in done.stdout, name


def test_the_pages_folder_for_docker(place, monkeypatch):
    (words,) = [words for words in commands("serving.md") if "--dockerfile" in words]
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["autoembed", *words])
    with pytest.raises(SystemExit) as ended:
        autoembed.cli.main()
    assert ended.value.code == 0
    assert {file.name for file in (place / "image").iterdir()} == {
        "Dockerfile", "requirements.txt", "autoembed", "bundle",
    }  # fmt: skip
    packages = (place / "image" / "requirements.txt").read_text().splitlines()
    assert {11: "eleven"}[len(packages)] in PAGE.read_text()
