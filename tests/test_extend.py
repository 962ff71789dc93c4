"""The page on methods and backbones of other people's packages: its files are written, and its tests pass."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import autoembed as ae
from autoembed.bundle import load_bundle, write_bundle
from autoembed.errors import BundleError
from autoembed.plugins import without_imports
from autoembed.trial import check, run_trial

PAGE = Path(__file__).parents[1] / "docs" / "extend.md"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The page's files, on the path; forgotten at the end."""
    for name, text in re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "my_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("my_package")]:
        del sys.modules[name]


def test_the_pages_tests_pass(package):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", "tests"]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(package), *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=package, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    assert re.search(r"15 passed", done.stdout)


def test_a_bundle_imports_no_backbone_that_it_names(package, planted):
    config = check(
        {
            "arm": "x",
            "stages": [{"method": "my_package.spread"}],
            "embedding": {"dim": 4, "blocks": 2},
            "backbone": {"name": "my_package.bilinear"},
            "train": {"epochs": 1, "batch_size": 512},
            "limit": {"width": 2},
        }
    )
    result, model = run_trial(config, planted, lambda values: None)
    parts = {"schema": planted.schema, "vocabulary": planted.vocabulary, "architecture": result.architecture}
    write_bundle(package / "out", **parts, model=model, data={}, metrics={}, provenance={})
    rows = load_bundle(package / "out").example()
    scores = load_bundle(package / "out").predict(rows)
    for name in ("my_package.bilinear", "my_package.spread", "my_package"):
        del sys.modules[name]
    with pytest.raises(BundleError, match=r"'my_package.bilinear' is a module .*: import it first .*--import"):
        ae.load_bundle(package / "out")
    with without_imports():
        assert check(config.model_dump()).backbone == {"name": "my_package.bilinear"}
    assert not any(name.startswith("my_package") for name in sys.modules)
    words = ["--import", "my_package.bilinear", "show", str(package / "out")]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(package), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-m", "autoembed.cli", *words], env=variables, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, "backbone name=my_package.bilinear" in done.stdout) == (0, True), done.stderr
    import my_package.bilinear  # noqa: F401

    assert np.array_equal(load_bundle(package / "out").predict(rows), scores)
