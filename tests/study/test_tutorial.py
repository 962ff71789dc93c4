"""docs/tutorial-adult.md, run as it stands on UCI's file."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.pages import blocks, commands

ADULT = Path(__file__).parents[3] / "shared" / "data" / "adult" / "adult.data"


@pytest.mark.slow
@pytest.mark.skipif(not ADULT.is_file(), reason="needs UCI's adult.data in ../shared/data/adult")
def test_the_page_runs_as_it_stands(tmp_path, monkeypatch, ray_here, cli):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ADULT, tmp_path)
    *given, serve = commands("tutorial-adult.md")
    assert (len(given), serve[0]) == (7, "serve")
    said = []
    for words in given:
        status, out, err = cli(*words)
        assert status == 0, err
        said.append(out)
    assert "label 1: income = >50K, the rarer value (positive)" in said[0]
    assert "- education_num  # a copy of education" in Path("adult.yaml").read_text()
    board = {line.split()[-10]: line for line in said[2].splitlines() if re.match(r" *►? +\w+ +0\.9", line)}
    assert len(board) == 3
    assert "closed by the search" in said[3]  # fnlwgt, a weight of the census
    assert pl.read_parquet("scores.parquet").height == 32_561
    (curl,) = [text for text in blocks("tutorial-adult.md", "sh") if text.startswith("curl")]
    command = [sys.executable, "-m", "autoembed.cli", *serve, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            port = re.search(r" at http://127\.0\.0\.1:(\d+): ", server.stdout.readline())[1]
            asked = curl.replace(":8000", f":{port}")
            done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, timeout=60, check=True)
        finally:
            server.terminate()
    assert json.loads(done.stdout)["predictions"] == pytest.approx([pl.read_parquet("scores.parquet").item(0, 0)])
