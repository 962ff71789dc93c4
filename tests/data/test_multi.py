"""Columns of several values a row: what is read, which ids they get, and what a user is told."""

import numpy as np
import polars as pl
import pytest

from autoembed.data.dataset import build_dataset
from autoembed.data.multi import MultiSpec, multi_of, separated
from autoembed.data.readers import clean
from autoembed.data.schema import PAD, FeatureSchema, Field, Multi
from autoembed.data.spec import DataSpec
from autoembed.data.vocabulary import Vocabulary
from autoembed.errors import DataError

# The same rows as each kind of source has them.
SOURCES = {
    "text": pl.Series("x", ["1|2|3", "3", " 2 | 2", "", None, "9|"], dtype=pl.String),
    "texts": pl.Series("x", [["1", "2", "3"], ["3"], ["2", "2"], [], None, ["9", ""]]),
    "whole numbers": pl.Series("x", [[1, 2, 3], [3], [2, 2], [], None, [9, None]]),
    "floats": pl.Series("x", [[1.0, 2.0, 3.0], [3.0], [2.0, 2.0], [], None, [9.0, float("nan")]]),
    "categories": pl.Series("x", [["1", "2", "3"], ["3"], ["2", "2"], [], None, ["9"]], dtype=pl.List(pl.Categorical)),
}


def vocabulary_of(series, spec, length=3, keep="last", min_count=1):
    frame = clean(series.to_frame().lazy(), spec).collect()
    multi = Multi(separator=spec.multi["x"].separator if "x" in spec.multi else None, length=length, keep=keep)
    schema = FeatureSchema(fields=(Field(name="x", kind="multi", multi=multi),), label="y")
    return Vocabulary.fit(frame.lazy(), schema, min_count, 8), frame


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_ids(kind):
    spec = DataSpec(multi={"x": "|"} if kind == "text" else {})
    vocabulary, frame = vocabulary_of(SOURCES[kind], spec)
    # 2 stands three times, 3 and the missing list twice, 1 and 9 once.
    assert vocabulary.table()["value"].to_list() == [None, "2", "3", None, "1", "9"]
    assert vocabulary.counts("x").tolist() == [0, 3, 2, 2, 1, 1]
    assert vocabulary.missing("x") == 3
    expected = [[4, 1, 2], [2, PAD, PAD], [1, 1, PAD], [3, PAD, PAD], [3, PAD, PAD], [5, PAD, PAD]]
    assert vocabulary.encode(frame).tolist() == expected


def test_an_array_column_is_a_list():
    series = pl.Series("x", [[1, 2], [2, 3]], dtype=pl.Array(pl.Int64, 2))
    vocabulary, frame = vocabulary_of(series, DataSpec(), length=2)
    assert vocabulary.encode(frame).tolist() == [[2, 1], [1, 3]]


@pytest.mark.parametrize(("keep", "expected"), [("first", [[1, 2], [3, PAD]]), ("last", [[2, 3], [3, PAD]])])
def test_of_a_long_row_the_first_or_the_last_values_are_kept(keep, expected):
    series = pl.Series("x", [["a", "b", "c"], ["c"]])
    vocabulary, frame = vocabulary_of(series, DataSpec(), length=2, keep=keep)
    value = dict(zip(vocabulary.table()["id"], vocabulary.table()["value"], strict=True))
    number = {"a": 1, "b": 2, "c": 3}
    named = [[PAD if one == PAD else number[value[one]] for one in row] for row in vocabulary.encode(frame).tolist()]
    assert named == expected


def test_a_vocabulary_is_the_same_once_stored(tmp_path):
    vocabulary, frame = vocabulary_of(SOURCES["text"], DataSpec(multi={"x": "|"}))
    vocabulary.write(tmp_path / "v.parquet")
    again = Vocabulary.read(tmp_path / "v.parquet")
    assert again.multi("x") == Multi(separator="|", length=3)
    assert again.encode(frame).tolist() == vocabulary.encode(frame).tolist()


def test_gaps_count_values_and_not_padding():
    vocabulary, frame = vocabulary_of(SOURCES["texts"], DataSpec(), min_count=2)
    # Values once in train are unknown: 1 and 9. Missing: two rows.
    assert vocabulary.gaps(vocabulary.encode(frame))[:, 0].tolist() == [2, 2, 9]


def table(rows=400):
    rng = np.random.default_rng(0)
    genres = ["|".join(rng.choice(list("abcdefgh"), rng.integers(1, 5), replace=False)) for _ in range(rows)]
    return pl.DataFrame({"label": rng.integers(0, 2, rows), "site": rng.integers(0, 9, rows), "genres": genres})


def build(frame, tmp_path, **spec):
    frame.write_parquet(tmp_path / "t.parquet")
    return build_dataset(DataSpec.model_validate(spec), tmp_path / "t.parquet", tmp_path / "cache")


def test_text_that_looks_like_several_values_is_told(tmp_path):
    notes = build(table(), tmp_path).notes
    told = "genres: each combination of values is one value; if '|' stands between several, set data.multi: {genres:"
    assert any(note.startswith(told) for note in notes)


def test_text_of_sentences_and_of_dates_is_not_taken_for_lists():
    rng = np.random.default_rng(0)
    words = [f"w{number}" for number in range(3000)]
    frame = pl.DataFrame(
        {
            "title": [" ".join(rng.choice(words, 4)) for _ in range(500)],
            "moment": [f"2024-01-{day:02d} {hour:02d}:{day:02d}" for day, hour in rng.integers(1, 24, (500, 2))],
            "colour": rng.choice(["red", "dark, red", "blue"], 500),
        }
    )
    assert separated(frame, ["title", "moment", "colour"]) == []


def test_a_dataset_has_a_column_for_each_value(tmp_path):
    data = build(table(), tmp_path, multi={"genres": {"separator": "|", "max_length": 3}})
    field = data.schema.fields[data.schema.index("genres")]
    assert (field.kind, field.cardinality, field.length) == ("multi", 9, 3)
    assert data.ids("train").shape == (data.rows("train"), 4)
    assert any(note.startswith("multi-valued: genres (up to 3 values a row, the last of ") for note in data.notes)
    kept = data.keep(["genres"], tmp_path / "cache")
    assert np.array_equal(kept.ids("valid"), data.ids("valid")[:, data.schema.columns(["genres"])])


def test_lists_need_no_key_and_the_longest_row_says_how_many(tmp_path):
    frame = table().with_columns(pl.col("genres").str.split("|"))
    data = build(frame, tmp_path)
    assert data.schema.fields[1].multi == Multi(length=4)
    with pytest.raises(DataError, match="'genres' holds several"):
        data.cross([("site", "genres")], DataSpec().crosses or _crosses(), tmp_path / "cache", candidates=False)


def _crosses():
    from autoembed.data.crosses import CrossSpec

    return CrossSpec()


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ({"multi": {"nope": "|"}}, "data.multi names no column of the table: nope"),
        ({"multi": {"site": "|"}}, "the multi-valued column 'site' must hold lists, or text with data.multi.site.sep"),
        ({"multi": {"genres": {}}}, "the multi-valued column 'genres' must hold lists, or text with"),
        ({"multi": {"genres": {"seperator": "|"}}}, "unknown key 'seperator': must be one of keep, max_length, sep"),
        ({"multi": {"genres": ""}}, "separator"),
        ({"multi": {"genres": "|"}, "categorical": ["genres"]}, "must be categorical, numeric or multi, but these are"),
        ({"multi": {"label": "|"}}, "the label must not be a field"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, spec, line):
    from pydantic import ValidationError

    with pytest.raises((DataError, ValidationError)) as caught:
        build(table(), tmp_path, **spec)
    assert line in str(caught.value)


def test_a_list_of_lists_is_refused(tmp_path):
    frame = table().with_columns(pl.Series("deep", [[[1]]] * 400))
    with pytest.raises(DataError, match=r"column 'deep' must hold one value per row.*drop"):
        build(frame, tmp_path)
    with pytest.raises(DataError, match="column 'genres' holds lists, which are multi-valued"):
        build(table().with_columns(pl.col("genres").str.split("|")), tmp_path, categorical=["genres"])


def test_lengths_are_bounded_unless_the_space_says_more():
    frame = pl.DataFrame({"x": [list(range(300)), [1]]}).lazy()
    multi, told = multi_of(frame, {"x": MultiSpec()})["x"]
    assert multi.length == 50
    assert told == "x (up to 50 values a row, the last of 1 rows that have up to 300)"
    assert multi_of(frame, {"x": MultiSpec(max_length=300)})["x"][0].length == 300


def shop(rows=600):
    """Items that are looked at, the last ones before, and the item of another kind of column."""
    rng = np.random.default_rng(0)
    items = [f"i{one}" for one in rng.geometric(0.05, rows)]
    history = [items[max(0, at - size) : at] for at, size in enumerate(rng.integers(0, 4, rows))]
    return pl.DataFrame(
        {"label": rng.integers(0, 2, rows), "item": items, "history": history, "last": [None, *items[:-1]]}
    )


def test_columns_that_share_have_the_ids_of_the_other_and_rows_of_all_count(tmp_path):
    data = build(shop(), tmp_path, multi={"history": {"shared": "item"}}, shared={"last": "item"}, min_count=1)
    assert [field.shares for field in data.schema.fields] == [None, "item", "item"]
    tables = [data.vocabulary.keep([name]).table().drop("field", "kind") for name in data.schema.names]
    assert tables[0].equals(tables[1])
    assert tables[0].equals(tables[2])
    train = data.ids("train")
    assert tables[0]["count"].sum() == (train >= 0).sum()
    # The last item's id is that of the item in the row before, wherever both rows are in train.
    everything = data.vocabulary.encode(clean(shop().lazy(), DataSpec(multi={"history": {}})).collect())
    assert np.array_equal(everything[1:, -1], everything[:-1, 0])
    assert data.keep(["history"], tmp_path / "cache").schema.names == ("item", "history")


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ({"shared": {"last": "nobody"}}, "data.shared names no column of the table: nobody"),
        ({"shared": {"last": "last"}}, "cannot read the table of last, which is not another feature"),
        ({"shared": {"last": "history", "history": "item"}}, "which itself reads that of item: name item"),
        ({"shared": {"last": "price"}}, "as price is numeric: list it under categorical"),
    ],
)
def test_a_table_that_cannot_be_shared_is_refused(tmp_path, spec, line):
    with pytest.raises(DataError) as caught:
        build(shop().with_columns(price=pl.Series(np.arange(600) / 7)), tmp_path, **spec)
    assert line in str(caught.value)
