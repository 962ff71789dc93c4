"""The commands of docs/export.md, run as they stand."""

import shutil
from pathlib import Path

import pytest

from autoembed.bundle import verify_bundle
from autoembed.export.formats import FORMATS
from tests.pages import commands


@pytest.mark.slow  # every format, one of which calls a compiler of C++
def test_the_page_runs_as_it_stands(finished, tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished[0].path, tmp_path / "runs" / "quickstart")
    given = commands("export.md")
    assert len(given) == 5
    for words in given:
        if words[-1] == "all":
            shutil.rmtree("models")  # the page's two last lines are two ways to fill it
        status, _, err = cli(*words)
        assert status == 0, err
    assert verify_bundle(Path("bundle"))
    made = {path.name for path in Path("models").iterdir()}
    assert {"bundle", "onnx", "torch", "numpy", "tables"} <= made <= {"bundle", *FORMATS}
    assert Path("onnx-model/model.onnx").is_file()
