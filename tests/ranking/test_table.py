import datetime as dt

import numpy as np
import polars as pl
import pytest

from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.errors import DataError
from autoembed.ranking import table as module
from autoembed.ranking.ranking import rank, rank_table
from autoembed.ranking.table import read_table

ROWS = 3000


@pytest.fixture
def mixed():
    """Columns of every type, some with missing values."""
    rng = np.random.default_rng(0)
    day = dt.date(2020, 1, 1)
    label = rng.integers(0, 2, ROWS)
    return pl.DataFrame(
        {
            "label": label,
            "small": np.where(rng.random(ROWS) < 0.3, label, rng.integers(-5, 5, ROWS)),
            "wide": rng.choice(np.array([-(2**40), 7, 2**61, 2**62]), ROWS),
            "text": rng.choice(["a", "b", "", "ä"], ROWS),
            "real": rng.normal(0, 1, ROWS).round(3) + label * 0.2,
            "flag": rng.random(ROWS) < 0.5,
            "day": [day + dt.timedelta(days=int(d)) for d in rng.integers(0, 50, ROWS)],
        }
    ).with_columns(
        pl.when(pl.int_range(pl.len()) % 7 != 0).then(pl.col(name)).alias(name) for name in ("small", "text", "real")
    )


def scores(ranking):
    return ranking.table.sort("feature").select(pl.col("feature"), pl.col("score", "z", "mi", "expected_mi"))


def assert_same(first, second):
    one, other = scores(first), scores(second)
    assert one["feature"].to_list() == other["feature"].to_list()
    assert np.allclose(one.drop("feature").to_numpy(), other.drop("feature").to_numpy(), atol=1e-9, rtol=1e-9)
    assert first.table.sort("feature")["cardinality"].to_list() == second.table.sort("feature")["cardinality"].to_list()


def test_all_rows_are_ranked_and_missing_is_a_value(tmp_path, mixed):
    mixed.write_parquet(tmp_path / "t.parquet")
    ranking = rank_table(tmp_path / "t.parquet")
    by = {row["feature"]: row for row in ranking.table.to_dicts()}
    assert by["small"]["cardinality"] == 11  # ten values and missing
    assert by["small"]["coverage"] == pytest.approx(6 / 7, abs=1e-3)
    assert by["wide"]["cardinality"] == 4
    assert by["text"]["cardinality"] == 4  # a, b, ä and missing: empty text is no value
    assert (by["real"]["cardinality"], by["real"]["kind"]) == (33, "numeric")
    assert by["day"]["cardinality"] == 50
    assert ranking.top(1) == ("small",)
    full = mixed.with_columns(pl.col("small").fill_null(99))
    full.write_parquet(tmp_path / "full.parquet")
    assert_same(ranking, rank_table(tmp_path / "full.parquet"))


@pytest.mark.parametrize("compiled", [False, True])
def test_chunks_rows_in_any_order_and_formats_give_one_answer(tmp_path, mixed, monkeypatch, compiled):
    mixed.write_parquet(tmp_path / "t.parquet")
    whole = rank_table(tmp_path / "t.parquet", pairs="all")
    mixed.sample(fraction=1.0, shuffle=True, seed=1).write_parquet(tmp_path / "shuffled.parquet")
    mixed.write_csv(tmp_path / "t.csv")
    (tmp_path / "parts").mkdir()
    for at in range(3):
        mixed[at * 1000 : (at + 1) * 1000].write_parquet(tmp_path / "parts" / f"{at}.parquet")
    from autoembed.ranking import counts

    monkeypatch.setattr(module, "_CHUNK_CELLS", 6 * 700)
    monkeypatch.setattr(module, "_LEAST_CHUNK", 1)
    monkeypatch.setattr(module, "_KEPT_IN_MEMORY", 2000)
    monkeypatch.setattr(counts, "_SMALL", 0 if compiled else 1 << 40)
    for other in ("t.parquet", "shuffled.parquet", "parts"):
        found = rank_table(tmp_path / other, pairs="all", threads=2)
        assert_same(whole, found)
        one, two = (side.pairs.sort("a", "b").drop("a", "b") for side in (whole, found))
        assert np.allclose(one.to_numpy(), two.to_numpy(), atol=1e-9, rtol=1e-7)
    assert_same(whole, rank_table(tmp_path / "t.csv"))


def test_renaming_values_changes_nothing(tmp_path, mixed):
    names = {"a": "z", "b": "y", "ä": "w"}
    renamed = mixed.with_columns(
        pl.col("text").replace(names), pl.col("small") * -3 + 1000, pl.col("real") * 2.0, ~pl.col("flag")
    )
    mixed.write_parquet(tmp_path / "t.parquet")
    renamed.write_parquet(tmp_path / "r.parquet")
    assert_same(rank_table(tmp_path / "t.parquet"), rank_table(tmp_path / "r.parquet"))


def test_a_type_that_the_first_rows_do_not_show_is_read_as_text(tmp_path):
    values = [str(i % 5) for i in range(11_000)]
    frame = pl.DataFrame({"label": [i % 3 == 0 for i in range(11_000)], "late": [*values[:-2], "x", "2.0"]})
    frame.write_csv(tmp_path / "t.csv")
    table = rank_table(tmp_path / "t.csv").table
    assert table["cardinality"].to_list() == [6]  # 0 to 4 and x; 2.0 is 2
    fractions = pl.DataFrame({"label": frame["label"], "late": [*values[:-1], "2.5"]})
    fractions.write_csv(tmp_path / "f.csv")
    assert rank_table(tmp_path / "f.csv").table.select("kind", "cardinality").row(0) == ("numeric", 6)


def test_a_table_and_its_dataset_agree_where_no_value_is_rare(tmp_path, mixed):
    mixed.drop("real").write_parquet(tmp_path / "t.parquet")
    spec = DataSpec.model_validate({"min_count": 1})
    dataset = build_dataset(spec, tmp_path / "t.parquet", tmp_path / "cache")
    of_train = rank(dataset)
    assert dataset.rows("train") < ROWS
    assert set(of_train.table["feature"]) == set(rank_table(tmp_path / "t.parquet").table["feature"])


def test_several_classes_are_ranked_and_their_pairs_refused(tmp_path, mixed):
    classes = mixed.with_columns(pl.Series("label", np.random.default_rng(1).choice(["red", "green", "blue"], ROWS)))
    classes.with_columns(same=pl.col("label")).write_parquet(tmp_path / "t.parquet")
    table = rank_table(tmp_path / "t.parquet").table
    assert table["feature"][0] == "same"
    assert table["normalized"][0] == pytest.approx(1.0)
    assert table["z"][1:].abs().max() < 4
    with pytest.raises(DataError, match="pairs need a label of two classes, but it has 3"):
        rank_table(tmp_path / "t.parquet", pairs=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pl.lit(1), "label 'label' must have two classes or more, but all 3000 rows are '1'"),
        (pl.lit(None), "label 'label' is missing in 3000 of 3000 rows"),
        (pl.int_range(pl.len()), "label 'label' has 3000 values, but at most 255 classes can be ranked"),
    ],
)
def test_a_label_that_cannot_be_ranked_is_refused(tmp_path, mixed, change, message):
    mixed.with_columns(change.alias("label")).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=message):
        rank_table(tmp_path / "t.parquet")


def test_wrong_files_and_names_are_refused_in_one_line(tmp_path, mixed):
    mixed.write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="there is no label column 'y': name one of label, small"):
        read_table(tmp_path / "t.parquet", "y")
    mixed[:1].write_parquet(tmp_path / "one.parquet")
    with pytest.raises(DataError, match="at least 2 rows with a label, but has 1"):
        read_table(tmp_path / "one.parquet", "label")
    (tmp_path / "bad.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-100])
    (tmp_path / "bad.csv").write_text('label,a\n1,2\n0,"3')
    mixed.select("label", pl.concat_list("small").alias("many")).write_parquet(tmp_path / "list.parquet")
    with pytest.raises(DataError, match="one column must hold one value per row, but all hold several"):
        read_table(tmp_path / "list.parquet", "label")
    mixed.select("label").write_parquet(tmp_path / "label.parquet")
    for name in ("bad.parquet", "bad.csv", "absent.csv", "label.parquet"):
        with pytest.raises(DataError) as found:
            read_table(tmp_path / name, "label")
        assert "\n" not in str(found.value)
    with pytest.raises(DataError, match="unknown score 'best'"):
        rank_table(tmp_path / "t.parquet", score="best")
    with pytest.raises(DataError, match="unknown column 'q': the columns are small"):
        rank_table(tmp_path / "t.parquet", pairs=[("small", "q")])
    with pytest.raises(DataError, match="a pair must name two columns, but got 'small' twice"):
        rank_table(tmp_path / "t.parquet", pairs=[("small", "small")])
