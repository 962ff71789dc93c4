"""Formats, kinds, labels and null values: each test reads a small file that it wrote."""

import gzip
import os
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from autoembed.data.readers import DataSpec, read, read_rows
from autoembed.errors import DataError


@pytest.fixture
def go(tmp_path_factory):
    """go(path, **spec) -> Table."""

    def make(path=None, **spec):
        stage = Path(tempfile.mkdtemp(dir=tmp_path_factory.mktemp("stage")))
        return read(DataSpec.model_validate(spec), path, stage)

    return make


def everything(table):
    """All rows of a table, in the order of their values."""
    return pl.concat([frame.collect() for frame in table.splits.values()]).sort(pl.all())


@pytest.mark.parametrize(
    "name", ["t.csv", "t.csv.gz", "t.csv.zst", "t.csv.zip", "t.tsv", "t.tsv.gz", "t.parquet", "t.pq"]
)
def test_every_format_gives_the_same_dataset(tmp_path, build, small, name):
    path = tmp_path / name
    if name.startswith("t.p"):
        small.write_parquet(path)
    elif name.endswith("zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("inside.csv", small.write_csv())
    else:
        compression = {"gz": "gzip", "zst": "zstd"}.get(name.rsplit(".", 1)[1], "uncompressed")
        separator = "\t" if ".tsv" in name else ","
        small.write_csv(path, separator=separator, compression=compression)
    small.write_parquet(tmp_path / "reference.parquet")
    dataset = build(path)
    reference = build(tmp_path / "reference.parquet")
    assert dataset.fingerprint == reference.fingerprint
    assert [field.kind for field in dataset.schema.fields] == ["categorical", "categorical", "numeric", "categorical"]


def test_fragments_of_a_directory_are_one_table(tmp_path, build, small):
    (tmp_path / "parts" / "deep").mkdir(parents=True)
    small[:100].write_parquet(tmp_path / "parts" / "a.parquet")
    small[100:].write_parquet(tmp_path / "parts" / "deep" / "b.parquet")
    (tmp_path / "parts" / "notes.txt").write_text("ignored")
    small.write_parquet(tmp_path / "t.parquet")
    assert build(tmp_path / "parts").fingerprint == build(tmp_path / "t.parquet").fingerprint


def test_a_header_can_be_missing_and_text_stripped(tmp_path, go):
    (tmp_path / "t.data").write_text("1, red , ?\n0,green, 3.5\n" * 20)
    spec = {
        "format": "csv",
        "header": False,
        "columns": ["label", "colour", "size"],
        "strip": True,
        "null_values": ["?"],
    }
    table = go(tmp_path / "t.data", **spec)
    assert [(f.name, f.kind) for f in table.schema.fields] == [("colour", "categorical"), ("size", "numeric")]
    rows = everything(table)
    assert set(rows["colour"]) == {"red", "green"}
    assert rows["size"].null_count() == 20


def test_null_values_hold_for_parquet_too_and_strip_makes_blanks_missing(tmp_path, go):
    pl.DataFrame({"label": [0, 1] * 20, "a": ["x", " "] * 20, "b": ["NA", "y"] * 20}).write_parquet(
        tmp_path / "t.parquet"
    )
    rows = everything(go(tmp_path / "t.parquet", strip=True, null_values=["NA"]))
    assert rows["a"].null_count() == rows["b"].null_count() == 20


def test_kinds_are_by_the_values_of_the_whole_table_not_of_its_first_rows(tmp_path, go):
    lines = [f"{i % 2},{i},{i},{i},{'' if i % 3 else i}" for i in range(400)]
    lines[399] = "1,0.5,text,007,1"
    (tmp_path / "t.csv").write_text("\n".join(["label,half,text,code,gaps", *lines]))
    kinds = {f.name: f.kind for f in go(tmp_path / "t.csv").schema.fields}
    assert kinds == {"half": "numeric", "text": "categorical", "code": "categorical", "gaps": "categorical"}


def test_kinds_can_be_overridden_and_columns_dropped(tmp_path, go, small):
    small.write_parquet(tmp_path / "t.parquet")
    table = go(tmp_path / "t.parquet", numeric=["shop"], categorical=["price"], drop=["colour"])
    assert {f.name: f.kind for f in table.schema.fields} == {
        "shop": "numeric",
        "price": "categorical",
        "day": "categorical",
    }


def test_the_time_column_is_a_field_only_if_it_is_listed(tmp_path, go, small):
    small.write_parquet(tmp_path / "t.parquet")
    assert "day" not in go(tmp_path / "t.parquet", time="day").schema.names
    assert go(tmp_path / "t.parquet", time="day").schema.time == "day"
    assert "day" in go(tmp_path / "t.parquet", time="day", categorical=["day"]).schema.names


@pytest.mark.parametrize(
    ("values", "spec", "positives"),
    [
        ([0, 1, 1, 0], {}, [1, 2]),
        (["0", "1", "1", "0"], {}, [1, 2]),
        ([0.0, 1.0, 1.0, 0.0], {}, [1, 2]),
        ([False, True, True, False], {}, [1, 2]),
        (["False", "true", "True", "false"], {}, [1, 2]),
        (["no", "yes", "maybe", "no"], {"positive": ["yes", "maybe"]}, [1, 2]),
        ([1, 2, 3, 1], {"positive": [2, 3]}, [1, 2]),
        ([1.0, 2.0, 3.0, 1.0], {"positive": [2, 3]}, [1, 2]),
        (["a", "b", "c", "a"], {"positive": ["b", "c", "later"]}, [1, 2]),
        ([-5, 16, 99, 15], {"above": 15}, [1, 2]),
        (["-5", "15.5", "99", "15"], {"above": 15}, [1, 2]),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_labels(tmp_path, go, values, spec, positives, suffix):
    frame = pl.DataFrame({"label": values * 10, "row": list(range(len(values))) * 10})
    path = tmp_path / f"t.{suffix}"
    frame.write_csv(path) if suffix == "csv" else frame.write_parquet(path)
    rows = everything(go(path, **spec))
    assert rows["label"].dtype == pl.Int8
    assert sorted(set(rows.filter(pl.col("label") == 1)["row"].cast(pl.Int64))) == positives
    assert rows.height == 40


def test_rows_without_a_label_can_be_left_out(tmp_path, build):
    labels = [None if i % 4 == 0 else i % 2 for i in range(400)]
    pl.DataFrame({"label": labels, "a": range(400)}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"label 'label' is missing in 100 rows: set data.missing_label: drop"):
        build(tmp_path / "t.parquet")
    dataset = build(tmp_path / "t.parquet", missing_label="drop")
    assert [dataset.rows(split) for split in dataset.splits] == [240, 30, 30]


def test_nan_is_a_missing_label(tmp_path, go):
    pl.DataFrame({"label": [0.0, 1.0, float("nan")] * 9, "a": range(27)}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="missing in 9 rows"):
        go(tmp_path / "t.parquet", above=0.5)


@pytest.mark.parametrize("spec", [{"above": 0.5}, {"positive": [1]}, {}])
def test_nan_labels_can_be_left_out(tmp_path, build, spec):
    labels = [float("nan") if i % 4 == 0 else float(i % 2) for i in range(400)]
    pl.DataFrame({"label": labels, "a": range(400)}).write_parquet(tmp_path / "t.parquet")
    dataset = build(tmp_path / "t.parquet", missing_label="drop", **spec)
    assert [dataset.rows(split) for split in dataset.splits] == [240, 30, 30]
    assert sum(dataset.labels(split).sum() for split in dataset.splits) == 200


def test_libfm_fields_are_by_position(tmp_path, go):
    (tmp_path / "t.libfm").write_text("1 3:1 17:1\n-1 4:1 18:1.0 \n+1 3:1   18:1\n" * 10)
    table = go(tmp_path / "t.libfm", positive=[1])
    assert table.schema.names == ("field_0", "field_1")
    assert everything(table).unique().sort(pl.all()).rows() == [("3", "17", 1), ("3", "18", 1), ("4", "18", 0)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 3:1", "one token per field, but lines have 1 to 2 tokens"),
        ("1 3:1 4:0.5", "must read LABEL INDEX:1 INDEX:1 ..., but one reads '1 3:1 4:0.5'"),
        ("1 words here", "must read LABEL INDEX:1"),
    ],
)
def test_libfm_lines_that_have_no_columns_are_refused(tmp_path, go, line, message):
    (tmp_path / "t.libfm").write_text("1 3:1 17:1\n0 4:1 18:1\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        go(tmp_path / "t.libfm")


def test_criteo(tmp_path, go):
    hexes = [f"{i:08x}" for i in range(26)]
    lines = ["\t".join([str(i % 2), *(["" if i % 3 else "1.5"] * 13), *hexes]) for i in range(60)]
    (tmp_path / "day_0.txt").write_text("\n".join(lines) + "\n")
    spec = {"format": "criteo", "split": {"by": "random", "valid": 0.2, "test": 0.2}}
    table = go(tmp_path / "day_0.txt", **spec)
    assert [f.name for f in table.schema.fields if f.kind == "numeric"] == [f"I{i}" for i in range(1, 14)]
    assert [f.name for f in table.schema.fields if f.kind == "categorical"] == [f"C{i}" for i in range(1, 27)]
    assert everything(table)["I1"].null_count() == 40
    (tmp_path / "test.txt").write_text("\n".join(line.split("\t", 1)[1] for line in lines) + "\n")
    (tmp_path / "rows").mkdir()
    rows = read_rows(DataSpec(format="criteo"), tmp_path / "test.txt", tmp_path / "rows").collect()
    assert rows.columns == list(table.schema.names)


def test_avazu(tmp_path, go):
    days = ["14102100", "14102123", "14102205"]
    lines = [f"{10**19 + i},{i % 2},{days[i % 3]},1005,0,{i:08x}" for i in range(60)]
    (tmp_path / "train.csv").write_text("\n".join(["id,click,hour,C1,banner_pos,site_id", *lines]) + "\n")
    table = go(tmp_path / "train.csv", format="avazu", split={"by": "random", "valid": 0.2, "test": 0.2})
    assert table.schema.names == ("C1", "banner_pos", "site_id", "hour_of_day", "weekday")
    assert (table.schema.label, table.schema.time) == ("click", "hour")
    assert {f.kind for f in table.schema.fields} == {"categorical"}
    rows = everything(table)
    assert set(rows["hour_of_day"]) == {"0", "23", "5"}
    assert set(rows["weekday"]) == {"2", "3"}  # 21 October 2014 was a Tuesday
    by_time = go(tmp_path / "train.csv", format="avazu", split={"by": "time", "valid": 14102123, "test": 14102205})
    assert {name: set(f.collect()["hour"]) for name, f in by_time.splits.items()} == {
        "train": {14102100}, "valid": {14102123}, "test": {14102205}
    }  # fmt: skip


def test_a_package_resource_is_found_without_importing_the_package(tmp_path, go, monkeypatch, small):
    (tmp_path / "demopackage" / "data").mkdir(parents=True)
    (tmp_path / "demopackage" / "__init__.py").write_text("raise RuntimeError('imported')")
    small.write_csv(tmp_path / "demopackage" / "data" / "t.csv")
    monkeypatch.syspath_prepend(str(tmp_path))
    table = go(path="package:demopackage/data/t.csv")
    assert table.schema.names == ("colour", "shop", "price", "day")
    assert "demopackage" not in sys.modules
    with pytest.raises(DataError, match=r"no such file or directory: .*demopackage/data/other.csv"):
        go(path="package:demopackage/data/other.csv")
    with pytest.raises(DataError, match=r"needs the package no_such_package.*pip install 'autoembed\[demo\]'"):
        go(path="package:no_such_package/data/t.csv")
    with pytest.raises(DataError, match="must read package:NAME/path/in/it"):
        go(path="package:demopackage/../t.csv")


def test_types_may_differ_between_the_files_of_a_directory(tmp_path, build, small):
    frames = {"train": small, "valid": small[:60], "test": small[60:120]}
    frames["valid"] = frames["valid"].with_columns(pl.col("shop").cast(pl.Float64), pl.col("day").cast(pl.String))
    frames["test"] = frames["test"].select(reversed(small.columns))
    for name, frame in frames.items():
        frame.write_parquet(tmp_path / f"{name}.parquet")
    dataset = build(tmp_path)
    assert dataset.ids("valid").tolist() == dataset.ids("train")[:60].tolist()
    assert dataset.ids("test").tolist() == dataset.ids("train")[60:120].tolist()


def test_rows_for_prediction_need_no_label(tmp_path, small):
    (tmp_path / "stage").mkdir()
    small.drop("label").write_csv(tmp_path / "new.csv")
    rows = read_rows(DataSpec(null_values=["red"]), tmp_path / "new.csv", tmp_path / "stage").collect()
    assert rows.columns == ["colour", "shop", "price", "day"]
    assert "red" not in set(rows["colour"])
    for name in ("train", "valid"):
        small.write_csv(tmp_path / f"{name}.csv")
    with pytest.raises(DataError, match="holds the tables train, valid: name the file of one"):
        read_rows(DataSpec(), tmp_path, tmp_path / "stage")


LINES = "label,a,b\n" + "".join(f"{i % 2},{i % 7},{i / 3}\n" for i in range(200))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "cannot read .*t.csv: empty CSV"),
        ("t.csv", b"label,a\n", "at least 2 rows with a label, but has 0"),
        ("t.csv", b"label,a\n1,2\n", "at least 2 rows with a label, but has 1"),
        ("t.csv", LINES.encode() + b"1,2,3,4\n", "cannot read .*t.csv: found more fields"),
        ("t.csv", LINES.encode() + b'1,"2,3\n', "has 202 lines and a quote that nothing closes: set data.quote"),
        ("t.csv", LINES.encode() + b"1,\xff,3\n", "cannot read .*t.csv: invalid utf-8"),
        ("t.csv", b"label,a,a\n1,2,3\n0,2,3\n", "more than one column named a"),
        ("t.csv.gz", gzip.compress(LINES.encode())[:-30], "cannot read .*t.csv.gz: "),
        ("t.csv.gz", LINES.encode(), "it is not a .gz file"),
        ("t.csv.zst", LINES.encode(), "it is not a .zst file"),
        ("t.csv.zip", LINES.encode(), "cannot read .*t.csv.zip: it is not a .zip file"),
        ("t.parquet", b"nothing", "cannot read .*t.parquet"),
        (
            "t.txt",
            LINES.encode(),
            r"cannot tell the format of t.txt: set data.format \(--set format=csv\) to csv, parquet, ",
        ),
    ],
)
def test_damaged_files_are_one_clear_line(tmp_path, go, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        go(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_damage_inside_a_parquet_file_is_found(tmp_path, build):
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"label": rng.integers(0, 2, 20_000), "a": rng.integers(0, 9999, 20_000)})
    frame.write_parquet(tmp_path / "t.parquet")
    content = bytearray((tmp_path / "t.parquet").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 500] = b"\x07" * 500
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read t.parquet"):
        build(tmp_path / "t.parquet")
    assert os.listdir(tmp_path / "cache") == []


def test_a_zip_of_two_files_is_refused(tmp_path, go):
    with zipfile.ZipFile(tmp_path / "t.csv.zip", "w") as archive:
        archive.writestr("a.csv", LINES)
        archive.writestr("b.csv", LINES)
    with pytest.raises(DataError, match="must hold exactly one file, but holds 2"):
        go(tmp_path / "t.csv.zip")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"label": "click"}, "no label column 'click': set data.label to one of label, colour, shop, price, day"),
        ({"drop": ["size"]}, "data.drop names no column of the table: size .the columns are label, colour"),
        ({"categorical": ["size"]}, "data.categorical names no column"),
        ({"numeric": ["size"]}, "data.numeric names no column"),
        ({"time": "size"}, "data.time names no column"),
        ({"drop": ["colour", "shop", "price", "day"]}, "no fields are left"),
        ({"label": "shop"}, "label 'shop' must be 0 or 1, but has the values '0', '1', '10'.*, ...: .*data.positive"),
        ({"label": "shop", "positive": [99]}, r"data.positive must name values of label 'shop', but got \[99\]"),
        ({"label": "colour", "above": 3, "missing_label": "drop"}, "data.above needs a numeric label, but 'colour'"),
    ],
)
def test_wrong_columns_and_labels_are_one_clear_line(tmp_path, go, small, spec, message):
    small.write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=message) as caught:
        go(tmp_path / "t.parquet", **spec)
    assert "\n" not in str(caught.value)


def test_nested_columns_are_refused(tmp_path, go):
    pl.DataFrame({"label": [0, 1], "a": [[[1]], [[2]]]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"column 'a' must hold one value per row.*List"):
        go(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"column 'a' must hold one value per row"):
        go(tmp_path / "t.parquet", label="a")


def test_a_header_that_does_not_fit_is_refused(tmp_path, go):
    (tmp_path / "t.csv").write_text("1,2,3\n0,1,2\n")
    with pytest.raises(DataError, match="has 3 columns, but 2 names are given"):
        go(tmp_path / "t.csv", header=False, columns=["label", "a"])


def test_places_that_do_not_exist_are_named(tmp_path, go, small):
    with pytest.raises(DataError, match="no data: name a file or a directory by data"):
        go()
    with pytest.raises(DataError, match=r"no such file or directory: .*nowhere"):
        go(tmp_path / "nowhere")
    with pytest.raises(DataError, match="must not be given"):
        go(tmp_path, planted={"rows": 100})
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no table: known extensions are"):
        go(tmp_path / "empty")
    with pytest.raises(DataError, match=r"no such file: .*absent.csv"):
        go(tmp_path, files={"train": "absent.csv"})
    with pytest.raises(DataError, match=r"data.files must name train, but names only valid"):
        go(tmp_path, files={"valid": "absent.csv"})
    small.write_csv(tmp_path / "valid.csv")
    with pytest.raises(DataError, match=r"has valid but no train"):
        go(tmp_path)
    small.write_csv(tmp_path / "train.csv")
    small.write_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"more than one train table \(train.csv, train.parquet\)"):
        go(tmp_path)
    with pytest.raises(DataError, match=r"names files inside a directory, but .*train.csv is a file"):
        go(tmp_path / "train.csv", files={"train": "train.csv"})
    (tmp_path / "train.parquet").unlink()
    small.drop("shop", "price").write_csv(tmp_path / "valid.csv")
    with pytest.raises(DataError, match="valid lacks columns that train has: shop, price"):
        go(tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"lable": "x"}, "unknown key 'lable': must be one of above, auxiliary_labels, bins, .*label"),
        ({"split": {"on": "time"}}, "unknown key 'on': must be one of by, column, seed, stratify, test, valid"),
        ({"path": "x", "planted": {}}, "path or planted, but got both"),
        ({"positive": [1], "above": 2}, "positive or above, but got both"),
        ({"positive": []}, "positive must list at least one"),
        ({"header": False}, "a table without a header needs columns"),
        ({"columns": ["a"]}, "set header: false with it"),
        ({"separator": "||"}, "separator must be one byte"),
        ({"categorical": ["a"], "numeric": ["a"]}, "categorical, numeric or multi, but these are several: a"),
        ({"drop": ["label"]}, "drop must not name columns that are used elsewhere, but got label"),
        ({"numeric": ["label"]}, "the label must not be a field or the time column, but 'label' is"),
        (
            {"split": {"by": "random", "valid": 3}},
            "split by random must have fractions between 0 and 1, but got valid=3",
        ),
        ({"split": {"valid": 0.1, "test": 5}}, "must both be fractions or both be cut values"),
        ({"split": {"valid": 0.5, "test": 0.5}}, "valid . test < 1, but got 0.5 . 0.5"),
        ({"split": {"by": "time", "valid": 5, "test": 5}}, "cuts must ascend: valid < test, but got 5, 5"),
        ({"format": "xml"}, "'auto', 'csv', 'jsonl', 'parquet'"),
        ({"min_count": 0}, "greater than or equal to 1"),
    ],
)
def test_a_wrong_specification_names_the_rule(spec, message):
    with pytest.raises(ValidationError, match=message):
        DataSpec.model_validate(spec)
