"""Functions as machine code: what they find, and that numba is needed once."""

import os
import subprocess
import sys

import numpy as np
import pytest

from autoembed import native as module
from autoembed.native import View, native
from autoembed.ranking import column_kernels


@native
def half(x):
    return x / 2.0


@native
def halves(values, more, out):
    for i in range(len(values)):
        out[i, 1] = half(values[i]) + more


@native
def answers(values):
    return len(values)


@native
def allocates(values, out):
    out[0] = np.empty(len(values))[0]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_folders", lambda: [tmp_path])
    monkeypatch.setattr(halves, "_loaded", {})
    return tmp_path


def halved(more=1.0):
    out = np.zeros((3, 2))
    halves(np.arange(3.0), more, out)
    return out[:, 1].tolist()


def test_a_function_calls_another_and_writes_what_it_finds(cache):
    assert halved() == [1.0, 1.5, 2.0]


def test_each_combination_of_types_is_compiled_once(cache, monkeypatch):
    halved()
    out = np.zeros((3, 2))
    halves(View(np.arange(3, dtype=np.int16)), 0.0, out)
    assert out[:, 1].tolist() == [0.0, 0.5, 1.0]
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr(halves, "_loaded", {})
    monkeypatch.setattr(halves, "_compile", None)  # all there is to load is in the files
    assert halved(2.0) == [2.0, 2.5, 3.0]


def test_a_damaged_file_is_not_loaded(cache, monkeypatch):
    halved()
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(halves, "_loaded", {})
    assert halved() == [1.0, 1.5, 2.0]


def test_without_a_place_to_write_it_is_compiled_each_time(cache, monkeypatch):
    (cache / "file").touch()
    monkeypatch.setattr(module, "_folders", lambda: [cache / "file"])
    assert halved() == [1.0, 1.5, 2.0]


def test_what_would_crash_is_refused(cache):
    with pytest.raises(ValueError, match="must be C-contiguous"):
        halves(np.arange(6.0)[::2], 1.0, np.zeros((3, 2)))
    with pytest.raises(RuntimeError, match="answers must return nothing"):
        answers(np.arange(3.0))
    with pytest.raises(Exception, match=r"np\.empty"):
        allocates(np.arange(3.0), np.zeros(1))
    with pytest.raises(KeyError):
        halves(np.arange(3.0), "1", np.zeros((3, 2)))


def test_a_second_process_needs_no_numba():
    code = (
        "import sys; sys.modules['numba'] = None; import numpy as np; from autoembed.ranking import column_kernels; "
        "table = np.zeros((2, 2), np.int64); "
        "codes, labels = np.array([0, 1, 1, 1] * 9, np.int32), np.array([0, 1, 1, 0] * 9, np.uint8); "
        "column_kernels.count_column(codes, labels, table); "
        "print(table.tolist())"
    )
    column_kernels.count_column(np.zeros(9, np.int32), np.zeros(9, np.uint8), np.zeros((2, 2), np.int64))
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[[9, 0], [9, 18]]"


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("values", [1, 2, 3, 9, 22, 23, 60, 65, 4096, 4097, 20_000])
def test_columns_are_counted_by_every_way(values, classes):
    rng = np.random.default_rng(values)
    for rows in (7, 128 * 40 + 77, 100_003):
        codes = np.minimum(rng.zipf(1.3, rows), values).astype(np.int32) - 1
        labels = rng.integers(0, classes, rows).astype(np.uint8)
        table = np.ones((values, classes), np.int64)
        column_kernels.count_column(codes, labels, table)
        known = np.bincount(codes * classes + labels, minlength=table.size).reshape(table.shape)
        assert (table - 1 == known).all()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="has no owners of files")
@pytest.mark.parametrize("what", ["file", "folder", "link", "name"])
def test_code_that_another_may_have_put_there_is_not_run(cache, monkeypatch, what):
    halved()
    (file,) = cache.iterdir()
    if what == "file":
        file.chmod(0o666)
    elif what == "folder":
        cache.chmod(0o777)
    elif what == "link":
        file.rename(cache / "elsewhere")
        file.symlink_to(cache / "elsewhere")
    else:  # the code of another function under this one's name
        content = file.read_bytes()
        file.write_bytes(module._signed("other.o", content[32:]) + content[32:])
    assert module._read(file.name) is None
    monkeypatch.setattr(halves, "_loaded", {})
    assert halved() == [1.0, 1.5, 2.0]
