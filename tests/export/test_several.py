"""Several formats by one command: each in its own folder, all or none of them, and what `all` leaves out."""

import sys

import pytest
import torch

from autoembed.bundle import verify_bundle
from autoembed.errors import BundleError
from autoembed.export.formats import FORMATS
from autoembed.export.scorer import Scorer
from autoembed.export.several import export_several, formats_of


def folders(path):
    return {one.name for one in path.iterdir()}


def test_names_are_formats_between_commas():
    assert formats_of("numpy, onnx,numpy") == ("numpy", "onnx")
    assert formats_of("bundle") == ("bundle",)
    assert formats_of("all") is None
    known = f"bundle, {', '.join([*FORMATS][:-1])} or {[*FORMATS][-1]}"
    for text, wrong in (("onnx,pmml", "pmml"), ("onnx,", ""), ("all,onnx", "all")):
        with pytest.raises(
            BundleError, match=f"format must be {known}, several of them with commas, or all, but got '{wrong}'"
        ):
            formats_of(text)


def test_each_of_several_formats_has_a_folder(drawn, tmp_path, cli):
    bundle = drawn("fm", mixed=True, bits=4)
    status, out, err = cli("export", bundle.path, tmp_path / "out", "--format", "tables,bundle,fuxictr")
    assert status == 0, err
    assert folders(tmp_path / "out") == {"tables", "bundle", "fuxictr"}
    written = [line for line in out.splitlines() if line]
    assert [line.partition(" written to ")[0] for line in written] == ["tables model", "bundle", "fuxictr model"]
    for line, name in zip(written, ("tables", "bundle", "fuxictr"), strict=True):
        size = sum(file.stat().st_size for file in (tmp_path / "out" / name).rglob("*") if file.is_file())
        assert line.endswith(f"{tmp_path / 'out' / name} ({size:,} bytes)")
    assert verify_bundle(tmp_path / "out" / "bundle")


def test_one_name_alone_is_written_straight_to_the_folder(drawn, tmp_path, cli):
    bundle = drawn("lr")
    assert cli("export", bundle.path, tmp_path / "out", "--format", "tables")[0] == 0
    assert "tables.json" in folders(tmp_path / "out")


def test_of_named_formats_one_that_cannot_be_written_is_an_error_and_leaves_nothing(drawn, tmp_path, cli):
    bundle = drawn("autoint")
    status, out, err = cli("export", bundle.path, tmp_path / "out", "--format", "tables,fuxictr")
    assert (status, out) == (2, "")
    assert err.startswith("error: the format fuxictr has no form for the backbone autoint of this bundle")
    assert not (tmp_path / "out").exists()
    assert not [one for one in folders(tmp_path) if one.startswith(".")]


def test_all_skips_what_cannot_say_the_model_or_lacks_a_package(drawn, tmp_path, cli, monkeypatch, sample):
    bundle = drawn("fm", storage="shared")
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    steps = []
    exports = export_several(bundle, tmp_path / "out", None, lambda phase, done, total: steps.append((done, total)))
    made = ["bundle", "torch", "numpy", "fuxictr"]
    assert [one.format for one in exports.made] == made
    assert folders(tmp_path / "out") == set(made)
    ids, click = sample(tmp_path / "out" / "numpy")
    assert abs(Scorer.load(tmp_path / "out" / "numpy").predict_ids(ids) - click).max() < 1e-5
    assert steps == [(done, 1 + len(FORMATS)) for done in range(2 + len(FORMATS))]
    assert exports.skipped == {
        "onnx": "exporting to ONNX needs the package onnx: pip install 'autoembed[onnx]'",
        "aoti": "the format aoti needs a C++ compiler, but there is none: install g++, name one in CXX, or use torch",
        "tables": "the format tables describes storage of kind mixed, but this bundle's is shared: use onnx",
        "torchrec": "the format torchrec has no form for the storage of kind shared of this bundle: use onnx or torch",
    }
    status, _, err = cli("export", bundle.path, tmp_path / "out", "--format", "all")
    assert status == 2
    assert "exists and is not empty" in err


def test_the_command_line_says_what_it_skipped_in_one_line(drawn, tmp_path, cli, monkeypatch):
    monkeypatch.setattr("autoembed.export.several.FORMATS", {"tables": "raw_tables", "fuxictr": "fuxictr_config"})
    status, out, err = cli("export", drawn("autoint").path, tmp_path / "out", "--format", "all")
    assert status == 0, err
    assert folders(tmp_path / "out") == {"bundle", "tables"}
    assert out.splitlines()[2].startswith("fuxictr skipped: the format fuxictr has no form for the backbone autoint")
