"""Every way into the product reads the same: rank, search and predict, CSV, Parquet and frames."""

import bz2
import datetime as dt
import gzip
import lzma
import zipfile

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autoembed.data.dataset import build_dataset
from autoembed.data.readers import read
from autoembed.data.spec import DataSpec
from autoembed.data.vocabulary import Vocabulary
from autoembed.errors import DataError
from autoembed.ranking.ranking import Ranking, rank_table

ROWS = 120


@pytest.fixture
def clicks():
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "click": rng.integers(0, 2, ROWS),
            "zip": rng.choice(["7", "07", "007"], ROWS),
            "site": rng.choice(["a", "b", "c"], ROWS),
            "price": rng.choice([1.5, 2.25, 3.0], ROWS),
        }
    )


def table_of(where, tmp_path, **spec):
    stage = tmp_path / f"stage{len(list(tmp_path.iterdir()))}"
    stage.mkdir()
    return read(DataSpec.model_validate({"label": "click"} | spec), where, stage)


def rows_of(where, tmp_path, **spec):
    found = table_of(where, tmp_path, **spec)
    return sum(frame.select(pl.len()).collect().item() for frame in found.splits.values())


def test_rank_keeps_leading_zeros(tmp_path, clicks):
    clicks.write_csv(tmp_path / "t.csv")
    clicks.write_parquet(tmp_path / "t.parquet")
    one, other = (rank_table(tmp_path / name, label="click").table.sort("feature") for name in ("t.csv", "t.parquet"))
    assert one.filter(pl.col("feature") == "zip")["cardinality"][0] == 3
    assert one["cardinality"].to_list() == other["cardinality"].to_list()
    assert np.allclose(one["z"], other["z"])


def test_partition_folders_are_columns_and_leftovers_are_not_read(tmp_path, clicks):
    root = tmp_path / "clicks"
    for day in ("2024-01-01", "2024-01-02", "2024-01-03"):
        (root / f"day={day}").mkdir(parents=True)
        clicks.write_parquet(root / f"day={day}" / "part-0.parquet")
    (root / "_temporary" / "0").mkdir(parents=True)
    clicks.write_parquet(root / "_temporary" / "0" / "part-0.parquet")
    (root / "._part-0.parquet").write_bytes(b"macOS")
    (root / "_SUCCESS").touch()
    split = {"by": "time", "valid": "2024-01-02", "test": "2024-01-03"}
    found = table_of(root, tmp_path, time="day", split=split)
    assert [frame.select(pl.len()).collect().item() for frame in found.splits.values()] == [ROWS] * 3
    assert any("left out: ._part-0.parquet, _SUCCESS, _temporary" in note for note in found.notes)
    assert "day" in rank_table(root, label="click").table["feature"]
    alone = table_of(root / "day=2024-01-02" / "part-0.parquet", tmp_path)
    assert "day" in alone.schema.names


@pytest.mark.parametrize("name", ["val", "validation", "dev", "VALID"])
def test_every_usual_name_of_valid_is_read(tmp_path, clicks, name):
    folder = tmp_path / "data"
    folder.mkdir()
    for split, rows in (("train", 60), (name, 30), ("test", 20)):
        clicks.head(rows).write_csv(folder / f"{split}.csv")
    splits = table_of(folder, tmp_path).splits
    assert {split: frame.select(pl.len()).collect().item() for split, frame in splits.items()} == {
        "train": 60, "valid": 30, "test": 20
    }  # fmt: skip


def test_parts_patterns_and_lists_are_one_table(tmp_path, clicks):
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in range(3):
        clicks[part * 40 : (part + 1) * 40].write_csv(folder / f"part-{part:05}.csv")
    names = [str(folder / f"part-{part:05}.csv") for part in range(3)]
    for where, count in ((folder, 120), (folder / "part-0000[01].csv", 80), (names, 120), (names[:1], 40)):
        assert rows_of(where, tmp_path) == count
    assert rows_of(None, tmp_path, path=names[1:]) == 80
    clicks.write_parquet(folder / "x.parquet")
    with pytest.raises(DataError, match=r"holds files of more than one format, csv \(part-00000.csv\), parquet"):
        rows_of(folder, tmp_path)


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("clicks_train.csv", "clicks_test.csv"), "clicks_test.csv and clicks_train.csv, which look like parts"),
        (("clicks.csv", "clicks-valid.csv.gz"), "look like parts of a split"),
        (("clicks.csv", "users.csv"), "users.csv lacks the label 'click'"),
    ],
)
def test_tables_of_other_things_are_no_fragments(tmp_path, clicks, names, line):
    folder = tmp_path / "here"
    folder.mkdir()
    for name in names:
        text = (clicks.drop("click") if "users" in name else clicks).write_csv().encode()
        (folder / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    with pytest.raises(DataError, match=line):
        rank_table(folder, label="click")
    with pytest.raises(DataError, match=line):
        rows_of(folder, tmp_path)


def test_fragments_that_all_say_train_are_one_table(tmp_path, clicks):
    (tmp_path / "here").mkdir()
    for part in range(2):
        clicks.write_csv(tmp_path / "here" / f"part-train-{part}.csv")
    assert rows_of(tmp_path / "here", tmp_path) == 2 * ROWS


def test_a_file_with_brackets_in_its_name_is_that_file(tmp_path, clicks):
    (tmp_path / "a[1]").mkdir()
    clicks.write_csv(tmp_path / "a[1]" / "t*.csv")
    assert rows_of(tmp_path / "a[1]" / "t*.csv", tmp_path) == ROWS
    clicks.write_parquet(tmp_path / "a[1]" / "t.parquet")
    assert rows_of(tmp_path / "a[1]" / "t.parquet", tmp_path) == ROWS
    ranking = rank_table(tmp_path / "a[1]" / "t.parquet", label="click")
    ranking.write(tmp_path / "a[1]" / "ranking.parquet")
    assert Ranking.read(tmp_path / "a[1]" / "ranking.parquet").table.equals(ranking.table)


def test_fragments_of_other_columns_and_types_are_joined_and_told(tmp_path, clicks):
    folder = tmp_path / "parts"
    folder.mkdir()
    clicks.drop("site").with_columns(user=pl.int_range(pl.len())).write_parquet(folder / "0.parquet")
    clicks.with_columns(user=pl.int_range(pl.len()).cast(pl.Float64)).write_parquet(folder / "1.parquet")
    found = table_of(folder, tmp_path, min_count=1)
    assert set(found.schema.names) == {"zip", "site", "price", "user"}
    assert any("'site' is not in every file (0.parquet lacks it)" in note for note in found.notes)
    assert any("read as text: user" in note for note in found.notes)
    users = pl.concat([frame.select("user").collect() for frame in found.splits.values()])
    assert users.n_unique() == ROWS


def test_a_delta_table_is_refused(tmp_path, clicks):
    (tmp_path / "d" / "_delta_log").mkdir(parents=True)
    (tmp_path / "d" / "_delta_log" / "0.json").touch()
    clicks.write_parquet(tmp_path / "d" / "p.parquet")
    with pytest.raises(DataError, match="is a Delta table"):
        rows_of(tmp_path / "d", tmp_path)


def test_a_quote_swallows_no_line(tmp_path):
    lines = [f"{row % 2}\tv{row % 7}\tx" for row in range(200)]
    lines[20], lines[60] = '1\t"begins\tx', '0\tends"\tx'
    (tmp_path / "t.tsv").write_text("\n".join(["click\ta\tb", *lines]) + "\n")
    found = table_of(tmp_path / "t.tsv", tmp_path)
    assert rows_of(tmp_path / "t.tsv", tmp_path) == 200
    assert any("is read without quotes" in note for note in found.notes)
    text = "\n".join(["click,a,b", *(line.replace("\t", ",") for line in lines)])
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=r"has 201 lines and with quotes 160 rows: set data\.quote"):
        rows_of(tmp_path / "t.csv", tmp_path)
    assert rows_of(tmp_path / "t.csv", tmp_path, quote=None) == 200
    (tmp_path / "q.csv").write_text('click,a,b\n1,"two\nlines",x\n0,"a, b",y\n')
    assert rows_of(tmp_path / "q.csv", tmp_path, quote='"', split={"valid": 0.4, "test": 0.4}) == 2


@pytest.mark.parametrize("end", ["0,b", "0,", "0"])
def test_a_line_that_was_cut_is_an_error(tmp_path, end):
    (tmp_path / "t.csv").write_text("click,a,b\n" + "1,x,y\n0,x,\n" * 20 + end)
    with pytest.raises(DataError, match=r"t.csv line 42 has \d values, but there are 3 columns"):
        rows_of(tmp_path / "t.csv", tmp_path)


def test_a_missing_last_value_and_a_blank_line_are_no_cut(tmp_path):
    (tmp_path / "t.csv").write_text("click,a,b\n" + "1,x,y\n0,x,\n" * 20 + "\n1,z,\n")
    assert rows_of(tmp_path / "t.csv", tmp_path) == 41


def test_packed_files_other_formats_and_encodings_are_one_table(tmp_path, clicks):
    text = clicks.with_columns(site=pl.col("site").replace("a", "ä")).write_csv().encode()
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text))
    (tmp_path / "t.csv.bz2").write_bytes(bz2.compress(text))
    (tmp_path / "t.csv.xz").write_bytes(lzma.compress(text))
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("t.csv", text)
    (tmp_path / "utf16.csv").write_bytes(text.decode().encode("utf-16"))
    (tmp_path / "latin.csv").write_bytes(text.decode().encode("latin-1"))
    frame = pl.read_csv(text, infer_schema=False)
    frame.write_ndjson(tmp_path / "t.jsonl")
    frame.write_ipc(tmp_path / "t.feather")
    frame.write_parquet(tmp_path / "t.parquet.gzip")
    frame.with_columns(pl.col("site").cast(pl.Binary)).write_parquet(tmp_path / "binary.parquet")
    seen = set()
    for name in ("t.csv.gz", "t.csv.bz2", "t.csv.xz", "t.zip", "utf16.csv", "t.jsonl", "t.feather", "t.parquet.gzip",
                 "binary.parquet"):  # fmt: skip
        seen.add(build_dataset(DataSpec(label="click"), tmp_path / name, tmp_path / "cache").fingerprint)
    with pytest.raises(DataError, match=r"not UTF-8 text; name its encoding as data.encoding"):
        build_dataset(DataSpec(label="click"), tmp_path / "latin.csv", tmp_path / "cache")
    spec = DataSpec(label="click", encoding="latin-1")
    seen.add(build_dataset(spec, tmp_path / "latin.csv", tmp_path / "cache").fingerprint)
    assert len(seen) == 1


def test_a_zip_that_fills_the_disk_is_refused(tmp_path, monkeypatch):
    from autoembed.data import plain

    monkeypatch.setattr(plain, "_LARGE", 1 << 20)
    with zipfile.ZipFile(tmp_path / "t.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t.csv", b"0" * (1 << 26))
    with pytest.raises(DataError, match="grows to more than 1000 times its size"):
        rows_of(tmp_path / "t.zip", tmp_path)


@pytest.mark.parametrize("end", ["gz", "bz2", "xz", "zst"])
def test_any_packed_file_that_grows_without_end_is_refused(tmp_path, monkeypatch, end):
    from autoembed.data import plain

    monkeypatch.setattr(plain, "_LARGE", 1 << 20)
    monkeypatch.setattr(plain, "_RATIO", 100)
    table, text = tmp_path / f"t.csv.{end}", b"click,a\n" + b"1,0\n" * (1 << 22)
    if end == "zst":
        pl.read_csv(text, infer_schema=False).lazy().sink_csv(table, compression="zstd")
    else:
        packs = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
        table.write_bytes(packs[end](text))
    with pytest.raises(DataError, match="grows to more than 100 times its size"):
        rows_of(table, tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("t.csv", "click;a\n1;2\n0;3\n", r"is the separator ';'\? Set data.separator"),
        ("t.csv", "click|a\n1|2\n0|3\n", r"is the separator '\|'"),
        ("t.txt", "click,a\n1,2\n", r"set data.format \(--set format=csv\)"),
    ],
)
def test_a_wrong_guess_names_its_cure(tmp_path, name, text, hint):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=hint):
        rows_of(tmp_path / name, tmp_path)
    with pytest.raises(DataError, match=hint):
        rank_table(tmp_path / name, label="click")


def test_addresses_are_refused_as_they_were_written(tmp_path):
    for where in ("s3://bucket/clicks.parquet", "https://x.org/t.csv"):
        with pytest.raises(DataError, match=f"{where} is not supported"):
            rank_table(where, label="click")


@pytest.mark.parametrize("value", ["12/31/2023", "2024-2-5", "31.12.2023", "5 Feb 2024", "2024-01-01 5:00 PM"])
def test_time_as_text_that_need_not_sort_is_refused(tmp_path, clicks, value):
    texts = ["2024-01-20" if value == "2024-2-5" and row else value for row in range(ROWS)]
    clicks.with_columns(when=pl.Series(texts)).write_csv(tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"'when' is text that need not sort by time.*data.time_format"):
        rows_of(tmp_path / "t.csv", tmp_path, time="when", split={"by": "time", "valid": 0.1, "test": 0.1})


def test_a_time_format_parses_text_and_cuts(tmp_path, clicks):
    days = [dt.date(2023, 12, 1) + dt.timedelta(days=row % 60) for row in range(ROWS)]
    clicks.with_columns(when=pl.Series([day.strftime("%m/%d/%Y") for day in days])).write_csv(tmp_path / "t.csv")
    for valid, test in (("2024-01-10", "2024-01-20"), ("01/10/2024", "01/20/2024")):
        split = {"by": "time", "valid": valid, "test": test}
        found = table_of(tmp_path / "t.csv", tmp_path, time="when", time_format="%m/%d/%Y", split=split)
        ends = {name: frame.select("when").collect()["when"] for name, frame in found.splits.items()}
        assert ends["train"].max() < dt.datetime(2024, 1, 10) <= ends["valid"].min()
        assert ends["valid"].max() < dt.datetime(2024, 1, 20) <= ends["test"].min()
    with pytest.raises(DataError, match=r"must be as data.time_format='%Y-%m-%d' says, but has '12/01/2023'"):
        rows_of(tmp_path / "t.csv", tmp_path, time="when", time_format="%Y-%m-%d")


def test_a_cut_is_written_as_the_column_is(tmp_path, clicks):
    moments = [dt.datetime(2024, 1, 1) + dt.timedelta(hours=row) for row in range(ROWS)]
    clicks.with_columns(when=pl.Series([str(moment) for moment in moments])).write_csv(tmp_path / "t.csv")
    for valid, test in (("2024-01-03", "2024-01-04"), ("2024-01-03T00:00:00", "2024-01-04T00:00:00")):
        split = {"by": "time", "valid": valid, "test": test}
        found = table_of(tmp_path / "t.csv", tmp_path, time="when", split=split)
        assert [frame.select(pl.len()).collect().item() for frame in found.splits.values()] == [48, 24, 48]
    split = {"by": "time", "valid": "20240103", "test": "20240104"}
    with pytest.raises(DataError, match=r"must be written as its values are, such as '2024-01-01 00:00:00', but got"):
        rows_of(tmp_path / "t.csv", tmp_path, time="when", split=split)


VALUES = {
    "whole": [
        pl.Series([17, 18, None, 17, 18] * 20, dtype=pl.Int64),
        pl.Series([17.0, 18.0, None, 17.0, 18.0] * 20),
        pl.Series([17.0, 18.0, float("nan"), 17.0, 18.0] * 20),
        pl.Series(["17", "18", "", "17", "18"] * 20),
        pl.Series(["17.0", "18.0", "nan", "17", "18"] * 20),
        pl.Series(["17", "18", None, "17", "18.00"] * 20),
        pl.Series([17, 18, None, 17, 18] * 20, dtype=pl.Float64).cast(pl.Decimal(10, 2)),
        pl.Series([b"17", b"18", None, b"17", b"18"] * 20),
        pl.Series(["17", "18", None, "17", "18"] * 20, dtype=pl.Categorical),
    ],
    "truth": [
        pl.Series([True, False, None, True, True] * 20),
        pl.Series([1, 0, None, 1, 1] * 20),
        pl.Series([1.0, 0.0, None, 1.0, 1.0] * 20),
        pl.Series(["true", "false", None, "True", "TRUE"] * 20),
    ],
    "moment": [
        pl.Series([dt.datetime(2024, 1, 1, hour) for hour in (1, 2, 3, 1, 2)] * 20).cast(pl.Datetime(unit))
        for unit in ("us", "ns", "ms")
    ]
    + [
        pl.Series([form.format(hour) for hour in (1, 2, 3, 1, 2)] * 20)
        for form in (
            "2024-01-01 0{}:00:00",
            "2024-01-01T0{}:00",
            "2024-01-01T0{}:00:00.000Z",
            "2024-01-01 0{}:00:00 UTC",
        )
    ],
    "zone": [
        pl.Series([dt.datetime(2024, 1, 1, hour, tzinfo=dt.UTC) for hour in (1, 2, 3, 1, 2)] * 20),
        pl.Series([dt.datetime(2024, 1, 1, hour, tzinfo=dt.UTC) for hour in (1, 2, 3, 1, 2)] * 20).dt.convert_time_zone(
            "Asia/Tokyo"
        ),
        pl.Series([dt.datetime(2024, 1, 1, hour) for hour in (1, 2, 3, 1, 2)] * 20),
        pl.Series([f"2024-01-01T1{hour - 1}:00:00+09:00" for hour in (1, 2, 3, 1, 2)] * 20),
    ],
    "day": [
        pl.Series([dt.date(2024, 1, day) for day in (1, 2, 3, 1, 2)] * 20),
        pl.Series([dt.datetime(2024, 1, day) for day in (1, 2, 3, 1, 2)] * 20),
        pl.Series([f"2024-01-0{day}" for day in (1, 2, 3, 1, 2)] * 20),
        pl.Series([f"2024-01-0{day} 00:00:00" for day in (1, 2, 3, 1, 2)] * 20),
    ],
    "duration": [
        pl.Series([dt.timedelta(minutes=minute) for minute in (1, 2, 3, 1, 2)] * 20).cast(pl.Duration(unit))
        for unit in ("us", "ns", "ms")
    ],
    "fraction": [
        pl.Series([1.5, 2.25, None, 1.5, 2.25] * 20),
        pl.Series([1.5, 2.25, None, 1.5, 2.25] * 20).cast(pl.Decimal(10, 4)),
        pl.Series(["1.5", "2.25", None, "1.5", "2.25"] * 20),
    ],
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("listed", ["categorical", "numeric", None])
def test_a_value_is_the_same_in_every_type(tmp_path, kind, listed):
    """The vocabulary of each type gives the ids of the first to all the others."""
    if listed == "numeric" and kind == "truth":
        pytest.skip("the text true is no number")
    if listed == "numeric" and kind in ("moment", "zone", "day"):
        pytest.skip("text of moments is no number, which is an error")
    label = pl.Series([0, 1, 1, 0, 1] * 20)
    spec = DataSpec(label="click", split={"valid": 0.2, "test": 0.2}, **({listed: ("x",)} if listed else {}))
    for first in VALUES[kind]:
        frame = pl.DataFrame({"click": label, "x": first})
        stage = tmp_path / f"s{len(list(tmp_path.iterdir()))}"
        stage.mkdir()
        frame.write_parquet(stage / "t.parquet")
        found = read(spec, stage / "t.parquet", stage)
        vocabulary = Vocabulary.fit(found.splits["train"], found.schema, 1, 8)
        from autoembed.data.readers import clean

        ids = [
            vocabulary.encode(clean(pl.DataFrame({"x": other}).lazy(), spec).collect())[:, 0] for other in VALUES[kind]
        ]
        assert all((other == ids[0]).all() for other in ids)
        assert len(set(ids[0].tolist())) == 3


@pytest.mark.parametrize("time", [None, "x"])
def test_moments_in_one_table_and_their_text_in_another_are_the_same(tmp_path, time):
    """A column of either kind in train and valid, as a field and as the time to split by."""
    moments = pl.Series([dt.datetime(2024, 1, 1, hour % 24, hour % 60) for hour in range(100)])
    frame = pl.DataFrame({"click": [0, 1, 1, 0, 1] * 20, "y": [1, 2, 3, 4, 5] * 20, "x": moments})
    text = frame.with_columns(pl.col("x").dt.strftime("%Y-%m-%d %H:%M:%S"))
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    for folder, train, valid in (("one", frame, text), ("other", text, frame)):
        train.write_parquet(tmp_path / folder / "train.parquet")
        valid.write_parquet(tmp_path / folder / "valid.parquet")
        valid.write_parquet(tmp_path / folder / "test.parquet")
    spec = DataSpec(label="click", time=time, min_count=1, categorical=("x",))
    one, other = (build_dataset(spec, tmp_path / name, tmp_path / f"c-{name}") for name in ("one", "other"))
    assert (one.ids("valid") > 0).all()
    assert (one.ids("valid") == other.ids("valid")).all()


NAMES = ["count", "len", "*", "^x$", "__split", "prediction", "rows", "value", "label", "text", "clicks", "[x]"]
NAMES += ["time", "split", "shape", "id", "n<b>", "$a$ $b_$", 'quo"te', "line\nbreak", "\x1b[31mred", "x" * 20_000]


@pytest.mark.parametrize("name", NAMES, ids=[str(place) for place in range(len(NAMES))])
def test_any_name_is_a_column(tmp_path, name, monkeypatch, capsys):
    from autoembed.cli import main

    rng = np.random.default_rng(0)
    frame = pl.DataFrame({name: rng.integers(0, 5, 200), "other": rng.normal(size=200).round(3), "y": [0, 1] * 100})
    frame.write_parquet(tmp_path / "t.parquet")
    dataset = build_dataset(DataSpec(label="y"), tmp_path / "t.parquet", tmp_path / "cache")
    assert dataset.schema.names == (name, "other")
    assert set(rank_table(tmp_path / "t.parquet", label="y", pairs="all").table["feature"]) == {name, "other"}
    named = frame.rename({name: "x0", "y": name})
    named.write_parquet(tmp_path / "u.parquet")
    assert build_dataset(DataSpec(label=name), tmp_path / "u.parquet", tmp_path / "cache").schema.label == name
    assert len(rank_table(tmp_path / "u.parquet", label=name).table) == 2
    timed = frame.rename({name: "x0"}).with_columns(pl.int_range(pl.len()).alias(name))
    timed.write_parquet(tmp_path / "v.parquet")
    spec = DataSpec(label="y", time=name)
    assert build_dataset(spec, tmp_path / "v.parquet", tmp_path / "cache").schema.names == ("other", "x0")[::-1]
    monkeypatch.setattr("sys.argv", ["autoembed", "rank", str(tmp_path / "t.parquet"), "--label", "y"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "\x1b[31mred" not in capsys.readouterr().out


COLUMN = st.one_of(
    st.tuples(st.just(pl.Int64), st.lists(st.one_of(st.none(), st.integers(-50, 50)), min_size=30, max_size=30)),
    st.tuples(
        st.just(pl.Float64),
        st.lists(st.one_of(st.none(), st.sampled_from([0.5, 1.0, 2.0, -3.25, 1e6])), min_size=30, max_size=30),
    ),
    st.tuples(
        st.just(pl.String),
        st.lists(
            st.one_of(st.none(), st.sampled_from(["a", "b", "07", "7", "", "nan", "x,y", 'q"t', "1.0", " s "])),
            min_size=30,
            max_size=30,
        ),
    ),
    st.tuples(st.just(pl.Boolean), st.lists(st.one_of(st.none(), st.booleans()), min_size=30, max_size=30)),
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(columns=st.lists(COLUMN, min_size=1, max_size=4))
def test_csv_parquet_and_frames_give_equal_ids(tmp_path_factory, columns):
    """Random tables: what search encodes from Parquet and from CSV, and what a bundle encodes from a frame."""
    from autoembed.data.readers import clean

    folder = tmp_path_factory.mktemp("random")
    data = {f"c{place}": pl.Series(values, dtype=dtype) for place, (dtype, values) in enumerate(columns)}
    frame = pl.DataFrame({"click": [0, 1] * 15} | data)
    # A quote inside a value is written as two; a line break would need the key.
    frame.write_parquet(folder / "t.parquet")
    frame.write_csv(folder / "t.csv", quote_style="non_numeric")
    spec = DataSpec(label="click", min_count=1, split={"valid": 0.2, "test": 0.2})
    one = build_dataset(spec, folder / "t.parquet", folder / "cache")
    other = build_dataset(spec, folder / "t.csv", folder / "cache")
    assert one.fingerprint == other.fingerprint
    ids = one.vocabulary.encode(clean(frame.drop("click").lazy(), spec).collect())
    texts = pl.read_csv(folder / "t.csv", infer_schema=False).drop("click")
    assert (ids == one.vocabulary.encode(clean(texts.lazy(), spec).collect())).all()
    ranked = [rank_table(folder / name, label="click").table.sort("feature") for name in ("t.parquet", "t.csv")]
    assert ranked[0]["cardinality"].to_list() == ranked[1]["cardinality"].to_list()


def test_a_given_format_reads_files_without_an_ending_but_no_readme(tmp_path, clicks):
    folder = tmp_path / "hive"
    folder.mkdir()
    for part in range(2):
        (folder / f"00000{part}_0").write_text(clicks.write_csv(separator="\x01"))
    (folder / "README.md").write_text("what this is")
    assert rows_of(folder, tmp_path, format="csv", separator="\x01") == 2 * ROWS
    clicks.write_csv(folder / "t.csv")
    found = table_of(folder, tmp_path, format="csv")
    assert any("left out: 000000_0, 000001_0, README.md" in note for note in found.notes)
