"""`autoembed doctor`: what is missing is told, with what to do, and as status 1."""

import json
import os
import shutil
import socket
import sqlite3
import sys
from collections import namedtuple

import pytest

from autoembed.study.doctor import checks, own_ray
from autoembed.study.doctor.checks import GB

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Ray is started once, in the test that is about it."""
    monkeypatch.setattr(checks, "try_ray", lambda patience: (1.5, None))


@pytest.fixture
def look(cli, tmp_path):
    def found(*words):
        status, out, _ = cli("doctor", "--json", "--runs", tmp_path / "runs", *words)
        told = json.loads(out)
        assert told["ok"] == (status == 0)
        by_name = {one["name"]: one for one in told["checks"]}
        assert len(by_name) == len(told["checks"])
        assert all(bool(one["remedy"]) == (one["state"] != "OK") for one in told["checks"])
        return status, by_name

    return found


def test_a_machine_on_which_the_tests_run_is_well(cli, look, tmp_path):
    status, found = look()
    assert status == 0
    assert {"python", "packages", "CPUs", "GPU", "memory", "disk", "/dev/shm", "kernels", "MLflow", "Ray"} <= set(found)
    assert "torch" in found["packages"]["found"]
    assert found["extra onnx"]["state"] == "OK"
    assert not (tmp_path / "runs").exists()  # it looks, and makes nothing
    lines = cli("doctor", "--runs", tmp_path / "runs")[1].splitlines()
    assert sum(line.startswith(("OK", "warning", "problem")) for line in lines) == len(found)


def test_each_lack_is_told(look, monkeypatch, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_text("no database at all, but a text that is long enough to be read")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(GB, 0, 0.05 * GB))
    monkeypatch.setattr(checks, "_available", lambda: 1.5 * GB)
    monkeypatch.setattr(checks, "_quota", lambda: 0.5)
    monkeypatch.setattr(checks, "try_ray", lambda patience: (patience, f"not within {patience:g} s"))
    monkeypatch.setattr("autoembed.native.cache_folder", lambda: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(checks, "_PORTS", {"ui": taken.getsockname()[1]})
        status, found = look("--patience", "7")
    assert status == 1
    states = {name: one["state"] for name, one in found.items()}
    assert states["disk"] == states["MLflow"] == states["Ray"] == "problem"
    assert states["memory"] == states["CPUs"] == states["/dev/shm"] == states["kernels"] == "warning"
    assert states["port of ui"] == "warning"
    assert "autoembed ui --port" in found["port of ui"]["remedy"]
    assert "not a database" in found["MLflow"]["found"]
    assert "7 s" in found["Ray"]["found"]


def test_a_store_that_another_program_writes_is_told(look, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(checks.sqlite3, "connect", lambda path, timeout=1: CONNECT(path, timeout=0.1))
    with CONNECT(tmp_path / "runs" / "mlflow.db") as other:
        other.execute("BEGIN EXCLUSIVE")
        assert "locked" in look()[1]["MLflow"]["found"]
        other.rollback()
    assert look()[1]["MLflow"]["state"] == "OK"


CONNECT = sqlite3.connect


def test_packages_of_other_versions_are_named(look, monkeypatch):
    known = checks.version
    monkeypatch.setattr(checks, "version", lambda name: "1.0" if name in ("polars", "onnx") else known(name))
    status, found = look()
    assert status == 1
    assert "polars" in found["packages"]["remedy"]
    assert found["extra onnx"]["state"] == "warning"  # it is optional
    assert "autoembed[onnx]" in found["extra onnx"]["remedy"]


def test_what_cannot_be_looked_at_is_a_problem_and_no_end(look, monkeypatch):
    def broken():
        raise RuntimeError("no such thing\nand more")

    monkeypatch.setattr(checks, "_gpu", broken)
    assert look()[1]["GPU"]["found"] == "could not be looked at: no such thing"


def test_a_ray_that_does_not_come_up_is_given_up(monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("true"))
    assert own_ray.try_ray(10)[1] is None
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    assert own_ray.try_ray(10)[1] == "its process ended with status 1"


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs a shell")
def test_a_ray_that_hangs_is_ended(monkeypatch, tmp_path):
    script = tmp_path / "hangs"
    script.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    assert "within 1 s" in own_ray.try_ray(1)[1]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.slow
def test_a_ray_of_its_own_starts_and_ends():
    assert own_ray.try_ray(240)[1] is None
