"""The commands of docs/export.md, run as they stand."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from autoembed.bundle import verify_bundle
from autoembed.export.formats import FORMATS

PAGE = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.mark.slow  # every format, one of which calls a compiler of C++
def test_the_page_runs_as_it_stands(finished, tmp_path, monkeypatch, cli):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished[0].path, tmp_path / "runs" / "quickstart")
    (block,) = (
        text for text in re.findall(r"```\n(.*?)```", PAGE.read_text(), re.DOTALL) if "autoembed export" in text
    )
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert len(commands) == 5
    for program, *words in commands:
        assert program == "autoembed"
        if words[-1] == "all":
            shutil.rmtree("models")  # the page's two last lines are two ways to fill it
        status, _, err = cli(*words)
        assert status == 0, err
    assert verify_bundle(Path("bundle"))
    made = {path.name for path in Path("models").iterdir()}
    assert {"bundle", "onnx", "torch", "numpy", "tables"} <= made <= {"bundle", *FORMATS}
    assert Path("onnx-model/model.onnx").is_file()
