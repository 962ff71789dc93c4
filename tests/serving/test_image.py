"""The folder from which an image is built: built where Docker is, and read line by line elsewhere."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata

import pytest

import autoembed.cli
from autoembed.bundle import verify_bundle
from autoembed.errors import BundleError
from autoembed.serving.image import REQUIREMENTS, write_image
from tests.pages import blocks, lines

KNOWN = {
    "ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD", "LABEL",
    "ADD", "SHELL", "STOPSIGNAL", "VOLUME", "ONBUILD",
}  # fmt: skip


def has_docker():
    return (
        shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True, timeout=30).returncode == 0
    )


@pytest.fixture(scope="module")
def image(bundle, tmp_path_factory):
    return write_image(bundle.path, tmp_path_factory.mktemp("image") / "out")


def instructions(text):
    """(instruction, its words) of each line that is no comment, with lines that go on joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        name, _, rest = line.partition(" ")
        yield name, rest.strip()


def faults(folder):
    """What is wrong with a Dockerfile, in a sentence each."""
    found, user, listens = [], "root", False
    every = list(instructions((folder / "Dockerfile").read_text()))
    names = [name for name, _ in every]
    found += [f"unknown instruction {name}" for name in names if name not in KNOWN]
    if next(name for name in names if name != "ARG") != "FROM":
        found.append("FROM must come first")
    for name, rest in every:
        if name == "COPY":
            found += [f"{one} is not there" for one in shlex.split(rest)[:-1] if not (folder / one).exists()]
        if name == "FROM" and (":" not in rest or rest.endswith(":latest")):
            found.append("the base image must have a tag")
        if name in ("ENTRYPOINT", "CMD") or (name == "HEALTHCHECK" and rest != "NONE"):
            try:
                words = json.loads(rest[rest.index("[") :])
            except ValueError:
                found.append(f"{name} must be a list: a shell would not pass signals on")
                continue
            listens |= name == "ENTRYPOINT" and "0.0.0.0" in words
        user = rest if name == "USER" else user
    if user.partition(":")[0] in ("root", "0"):
        found.append("USER must not be root")
    if "HEALTHCHECK" not in names:
        found.append("there must be a HEALTHCHECK")
    if not listens:
        found.append("it must listen on all addresses of the container")
    return found


def test_the_dockerfile_keeps_the_rules(image):
    assert faults(image) == []


@pytest.mark.parametrize(
    ("wrong", "by", "line"),
    [
        ("COPY bundle", "COPY bundles", "bundles is not there"),
        ("USER 10001", "USER root", "USER must not be root"),
        ("EXPOSE", "EXPOSES", "unknown instruction EXPOSES"),
        ("-slim", "-slim AS x:latest", "must have a tag"),
        ("0.0.0.0", "127.0.0.1", "must listen"),
    ],
)
def test_the_rules_can_be_broken(image, tmp_path, wrong, by, line):
    folder = shutil.copytree(image, tmp_path / "copy")
    text = (folder / "Dockerfile").read_text()
    assert wrong in text
    (folder / "Dockerfile").write_text(text.replace(wrong, by))
    assert any(line in fault for fault in faults(folder))


def test_the_folder_holds_all_that_the_image_needs(image):
    pins = dict(line.split("==") for line in (image / "requirements.txt").read_text().splitlines())
    assert set(pins) == set(REQUIREMENTS)
    assert all(metadata.version(name).partition("+")[0] == version for name, version in pins.items())
    assert verify_bundle(image / "bundle")
    # The folder's own package answers, as the entry point calls it.
    words = json.loads(dict(instructions((image / "Dockerfile").read_text()))["ENTRYPOINT"])
    assert words[:2] == ["python", "-m"]
    code = "import autoembed.cli, autoembed.serving.server; print(autoembed.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=image, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == str(image / "autoembed" / "__init__.py")


def test_the_command_writes_the_folder(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["autoembed", "serve", str(bundle.path), "--dockerfile", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        autoembed.cli.main()
    assert ended.value.code == 0
    assert f"docker build -t my-model {tmp_path / 'out'}" in capsys.readouterr().out
    with pytest.raises(BundleError, match="exists and is not empty"):
        write_image(bundle.path, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.skipif(not has_docker(), reason="no docker daemon answers")
def test_docker_builds_an_image_that_answers(image):
    subprocess.run(["docker", "build", "-t", "autoembed-test", str(image)], check=True, timeout=800)
    command = ["docker", "run", "--rm", "--entrypoint", "python", "autoembed-test", "-c"]
    code = "from autoembed.serving.state import *; print(State(Path('bundle'), max_rows=1, strict=True).current.id)"
    done = subprocess.run([*command, code], capture_output=True, text=True, timeout=120, check=True)
    assert re.fullmatch(r"[0-9a-f]{12}\n", done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not has_docker(), reason="no docker daemon answers")
def test_the_commands_of_the_page(bundle, tmp_path, unused_port):
    """docs/serving.md: the image is built, and a container of it answers, as does one that reads a mounted folder."""
    (block,) = (text for text in blocks("serving.md", "sh") if text.startswith("docker build"))
    write_image(bundle.path, tmp_path / "image")
    shutil.copytree(bundle.path, tmp_path / "serving" / "clicks")
    build, *runs = lines(block)
    subprocess.run(["bash", "-c", build], cwd=tmp_path, check=True, timeout=800)
    for number, run in enumerate(runs):
        name = f"autoembed-page-{number}-{unused_port}"
        asked = run.replace("docker run", f"docker run -d --rm --name {name}").replace(":8000:", f":{unused_port}:")
        subprocess.run(["bash", "-c", asked], cwd=tmp_path, check=True, timeout=120)
        try:
            address = f"http://127.0.0.1:{unused_port}/health"
            curl = ["curl", "-sf", "--retry", "60", "--retry-all-errors", "--retry-delay", "1", address]
            done = subprocess.run(curl, capture_output=True, check=True, timeout=200)
            assert json.loads(done.stdout)["status"] == "ok"
        finally:
            subprocess.run(["docker", "stop", name], timeout=60, check=False)
