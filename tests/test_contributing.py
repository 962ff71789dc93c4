"""The commands of docs/contributing.md; pip and pytest look at everything, and install and run nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT, blocks, lines

pytestmark = pytest.mark.slow
DRY = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTEST_ADDOPTS": "--collect-only -q -p no:cacheprovider"}


def run(text, folder, **variables):
    clean = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTEST_XDIST_WORKER")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text.replace("pip install", "pip install --dry-run")],
        cwd=folder, env=clean | DRY | variables, capture_output=True, text=True, timeout=850,
    )  # fmt: skip
    assert done.returncode == 0, (text, done.stdout[-2000:], done.stderr[-2000:])


@pytest.fixture
def clone(tmp_path):
    """What a clone of the repository holds, uncommitted changes included."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def test_the_package_is_installed_tested_and_checked(clone):
    install, *checks = lines(blocks("contributing.md", "sh")[0])
    assert install.startswith("python3 -m venv .venv && ")
    run(install, clone)
    # Nothing was installed: the environment of these tests has what the other lines need.
    for program in ("pytest", "ruff", "mypy"):
        (clone / ".venv" / "bin" / program).symlink_to(Path(sys.executable).with_name(program))
    for line in checks:
        run(line, clone, PYTHONPATH=str(clone))


def test_the_peers_environments_can_be_made(tmp_path):
    for line in lines(blocks("contributing.md", "sh")[1]):
        run(line.replace("/tmp/", f"{tmp_path}/"), tmp_path)
