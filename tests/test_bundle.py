import json
import os
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from autoembed.bundle import EXTRAS, FILES, load_bundle, sha256, verify_bundle, write_bundle
from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.data.vocabulary import Vocabulary
from autoembed.errors import BundleError, DataError
from autoembed.training import predict
from autoembed.trial import check, run_trial


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(bundle folder, its model, its dataset, the raw table) of a table with text, numbers, gaps and a time column."""
    folder = tmp_path_factory.mktemp("bundle")
    rng = np.random.default_rng(0)
    rows = 3000
    city = rng.choice(["Bern", "Köln", "Aarau", None], rows, p=[0.5, 0.3, 0.1, 0.1])
    age = np.where(rng.random(rows) < 0.1, np.nan, rng.normal(40, 10, rows))
    item = rng.integers(0, 200, rows)
    click = (rng.random(rows) < 0.2 + 0.4 * (city == "Bern") + 0.2 * (item % 2)).astype(int)
    table = pl.DataFrame(
        {"city": city, "age": age, "item": item, "day": np.sort(rng.integers(1, 11, rows)), "click": click}
    )
    table.write_parquet(folder / "clicks.parquet")
    spec = DataSpec.model_validate({"label": "click", "time": "day", "split": {"by": "time", "valid": 8, "test": 10}})
    dataset = build_dataset(spec, folder / "clicks.parquet", folder / "cache")
    config = check(
        {
            "arm": "magnitude",
            "stages": [{"method": "magnitude", "warm_epochs": 1}],
            "embedding": {"dim": 4, "blocks": 3},
            "backbone": {"name": "deepfm", "hidden": [8], "dropout": 0.0},
            "train": {"epochs": 2, "lr": 1e-2, "batch_size": 256},
            "limit": {"width": 2},
        }
    )
    result, model = run_trial(config, dataset, lambda values: None)
    write_bundle(
        folder / "b",
        schema=dataset.schema,
        vocabulary=dataset.vocabulary,
        architecture=result.architecture,
        model=model,
        data=spec.model_dump(mode="json", exclude={"path", "planted", "split", "files"}),
        metrics={},
        provenance={},
    )
    return folder / "b", model, dataset, table


def test_it_gives_the_models_own_predictions_from_raw_rows(made):
    path, model, dataset, table = made
    raw = table.filter(pl.col("day") >= 10)
    expected = predict(model, dataset, "test", torch.device("cpu"))
    assert np.abs(load_bundle(path).predict(raw) - expected).max() < 1e-6
    assert np.abs(load_bundle(path).predict(raw.lazy(), batch=7) - expected).max() < 1e-6


@pytest.mark.parametrize(
    "plan",
    [
        lambda scan: scan,
        lambda scan: scan.head(2500),
        lambda scan: scan.with_columns(pl.col("item") + 1).select("item", "age", "city", "click"),
        lambda scan: pl.scan_parquet(scan.select("path").unique().collect().to_series().to_list() * 2),
    ],
)
def test_a_parquet_scan_is_read_in_slices(made, monkeypatch, plan):
    """Its file is never held whole, and Polars' own batches, whose memory grows with the rows, are not asked for."""
    bundle, scan = load_bundle(made[0]), pl.scan_parquet(made[0].parent / "clicks.parquet", include_file_paths="path")
    frame, sizes, encode = plan(scan), [], Vocabulary.encode
    whole = bundle.predict(frame.collect(), batch=500)
    monkeypatch.setattr("autoembed.bundle._CHUNK", 1000)
    monkeypatch.setattr(Vocabulary, "encode", lambda self, rows: sizes.append(rows.height) or encode(self, rows))
    monkeypatch.delattr(pl.LazyFrame, "collect_batches")
    assert np.array_equal(bundle.predict(frame, batch=500), whole)
    assert max(sizes) <= 1000
    assert sum(sizes) == len(whole)


@pytest.mark.parametrize(
    "plan",
    [
        lambda scan: scan.filter(pl.col("item") > 100),
        lambda scan: scan.head(2000).filter(pl.col("age") > 40),
        lambda scan: scan.sort("item", "age", "city", descending=True),
        lambda scan: scan.reverse(),
        lambda scan: scan.with_columns(pl.col("item").cum_max()),
        lambda scan: pl.concat([scan, scan.filter(pl.col("city") == "Bern")]),
        lambda scan: scan.join(scan.group_by("city").agg(pl.len()), on="city", maintain_order="left"),
        lambda scan: scan.collect().lazy(),
    ],
)
def test_any_other_plan_scores_as_its_rows(made, monkeypatch, plan):
    bundle, frame = load_bundle(made[0]), plan(pl.scan_parquet(made[0].parent / "clicks.parquet"))
    monkeypatch.setattr("autoembed.bundle._CHUNK", 1000)
    assert np.array_equal(bundle.predict(frame, batch=500), bundle.predict(frame.collect(), batch=500))


def test_unseen_values_missing_values_and_further_columns_score(made):
    path = made[0]
    rows = pl.DataFrame({"city": ["Nowhere", None], "age": [None, 1e9], "item": [10**9, 5], "more": [1, 2]})
    scores = load_bundle(path).predict(rows)
    assert scores.shape == (2,)
    assert ((scores > 0) & (scores < 1)).all()


def test_a_missing_column_is_named(made):
    with pytest.raises(DataError, match="city"):
        load_bundle(made[0]).predict(pl.DataFrame({"age": [1.0], "item": [1]}))


def test_nothing_in_it_is_pickled(made):
    names = {file.name for file in made[0].iterdir()}
    assert names == {*FILES, *EXTRAS, "manifest.json"}
    assert {Path(name).suffix for name in names} == {".json", ".parquet", ".safetensors", ".md"}
    for file in made[0].iterdir():
        assert not file.read_bytes().startswith((b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK"))


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda b: (b / "weights.safetensors").unlink(), "lacks weights.safetensors"),
        (lambda b: (b / "architecture.json").write_text("{}"), "architecture.json is not the file .*sha256"),
        (lambda b: (b / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda b: (b / "manifest.json").unlink(), "is not a bundle"),
        (lambda b: _edit(b, version=9), "version 9, but this autoembed reads version 1"),
        (lambda b: _edit(b, more=1), "breaks a rule"),
    ],
)
def test_a_damaged_bundle_is_refused_in_one_line(made, tmp_path, damage, line):
    copy = tmp_path / "b"
    copy.mkdir()
    for file in made[0].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    damage(copy)
    with pytest.raises(BundleError, match=line) as raised:
        load_bundle(copy)
    assert "\n" not in str(raised.value)


def _edit(bundle, **changes):
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_that_is_no_bundle_is_not_overwritten(made, tmp_path):
    (tmp_path / "keep.txt").write_text("mine")
    _, model, dataset, _ = made
    with pytest.raises(BundleError, match="exists and is not a bundle"):
        write_bundle(
            tmp_path,
            schema=dataset.schema,
            vocabulary=dataset.vocabulary,
            architecture=model.architecture,
            model=model,
            data={},
            metrics={},
            provenance={},
        )
    assert (tmp_path / "keep.txt").read_text() == "mine"


def test_verify_checks_hashes_and_predictions(made, tmp_path):
    path = tmp_path / "bundle"
    shutil.copytree(made[0], path)
    lines = verify_bundle(path)
    assert "6 files have the hashes" in lines[0]
    assert "64 stored predictions are the same" in lines[-1]

    manifest = json.loads((path / "manifest.json").read_text())
    sample = json.loads((path / "sample.json").read_text())
    sample["click"][3] += 0.01
    (path / "sample.json").write_text(json.dumps(sample))
    with pytest.raises(BundleError, match=r"sample\.json is not the file that the manifest describes"):
        verify_bundle(path)
    manifest["files"]["sample.json"] = sha256(path / "sample.json")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"a prediction differs by 0\.01"):
        verify_bundle(path)


def test_a_bundle_of_before_has_no_sample(made, tmp_path):
    path = tmp_path / "bundle"
    shutil.copytree(made[0], path)
    manifest = json.loads((path / "manifest.json").read_text())
    for name in ("sample.json", "README.md"):
        (path / name).unlink()
        del manifest["files"][name]
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert "no sample of predictions" in verify_bundle(path)[-1]


def test_a_model_card_tells_cost_and_columns(made):
    text = (made[0] / "README.md").read_text()
    assert "# Click model for `click`" in text
    assert "| age | numeric |" in text
    assert "| city | categorical | 4 |" in text or "| city | categorical | 5 |" in text


def test_a_bundle_is_there_at_any_moment_of_its_replacement(tmp_path, monkeypatch):
    """Where two names can be swapped, no rename takes it away first; where they cannot, two renames do."""
    from autoembed import bundle as module
    from autoembed.writing import exchange

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(name)
    there = exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "manifest.json").read_text() == ("b" if there else "a")
    assert not exchange(tmp_path / "a", tmp_path / "none")
    for swaps in (True, False):
        if not swaps:
            monkeypatch.setattr(module, "exchange", lambda one, other: False)
        elif there:
            monkeypatch.setattr(os, "rename", None)
        with module._replacing(tmp_path / "a") as made:
            (made / "manifest.json").write_text(f"new {swaps}")
        monkeypatch.undo()
        assert (tmp_path / "a" / "manifest.json").read_text() == f"new {swaps}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
