import time
from pathlib import Path

import polars as pl
import pytest

from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.errors import DataError
from autoembed.ranking.ranking import Ranking, rank

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def planted(cache, **spec):
    return build_dataset(DataSpec.model_validate({"planted": spec}), None, cache)


@pytest.mark.parametrize("seed", range(3))
def test_every_column_that_matters_stands_above_all_noise(tmp_path, seed):
    dataset = planted(tmp_path, seed=seed, marginal=[4, 30, 300, 1000], noise=[4, 30, 300, 1000, 5000, 40_000])
    truth, ranking = dataset.truth, rank(dataset)
    assert set(ranking.top(4)) == set(truth["marginal"])
    assert set(ranking.above(5)) == set(truth["marginal"])
    unseen = ranking.table.filter(~pl.col("feature").is_in(truth["marginal"]))
    assert unseen["z"].abs().max() < 4
    by_mi = ranking.table.sort("mi", descending=True)["feature"][0]
    assert by_mi in truth["noise"]  # what the correction is for


def test_a_permuted_label_leaves_nothing(tmp_path):
    dataset = planted(
        tmp_path, rows=100_000, marginal=[2, 9, 90, 900, 50_000], marginal_effect=0.0, xor=[], low_rank=[]
    )
    assert rank(dataset).table["z"].abs().max() < 4


def test_the_table(tmp_path):
    rows = 1000
    frame = pl.DataFrame(
        {
            "label": [i % 2 for i in range(rows)],
            "same": [i % 2 for i in range(rows)],
            "one": ["x"] * rows,
            "gaps": [None if i % 4 == 0 else "a" for i in range(rows)],
            "number": [i % 7 / 2 for i in range(rows)],
            "each": list(range(rows)),
        }
    )
    frame.write_parquet(tmp_path / "t.parquet")
    dataset = build_dataset(DataSpec(), tmp_path / "t.parquet", tmp_path / "cache")
    ranking = rank(dataset)
    table = ranking.table
    assert table.columns == [
        "feature", "kind", "cardinality", "coverage", "score", "z", "normalized", "mi", "expected_mi"
    ]  # fmt: skip
    assert table["score"].is_sorted(descending=True)
    assert ranking.fingerprint == dataset.fingerprint
    by = {row["feature"]: row for row in table.to_dicts()}
    assert table["feature"][0] == "same"
    assert by["same"]["normalized"] == pytest.approx(1.0)
    assert by["gaps"]["coverage"] == pytest.approx(0.75, abs=0.03)
    assert by["number"]["kind"] == "numeric"
    assert by["one"]["score"] == by["one"]["z"] == pytest.approx(0.0, abs=1e-12)
    assert by["each"]["score"] == pytest.approx(0.0, abs=1e-12)  # every value is rare, so the column is constant
    assert all(row["score"] == pytest.approx(row["mi"] - row["expected_mi"], abs=1e-12) for row in by.values())
    assert [by[name]["cardinality"] for name in dataset.schema.names] == list(dataset.schema.cardinalities)


def test_top_and_above(tmp_path):
    ranking = rank(planted(tmp_path, rows=1000))
    names = tuple(ranking.table["feature"])
    assert ranking.top(2) == names[:2]
    assert ranking.top(99) == names
    assert ranking.above(float("-inf")) == names
    assert ranking.above(1e9) == ()
    with pytest.raises(ValueError, match="k must be at least 1, but got k=0"):
        ranking.top(0)


def test_a_round_trip_is_exact(tmp_path):
    ranking = rank(planted(tmp_path, rows=1000))
    ranking.write(tmp_path / "r.parquet")
    back = Ranking.read(tmp_path / "r.parquet")
    assert back.table.equals(ranking.table)
    assert back.fingerprint == ranking.fingerprint


def test_a_file_that_is_no_ranking_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot read the ranking"):
        Ranking.read(tmp_path / "absent.parquet")
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "r.parquet")
    with pytest.raises(DataError, match="is not a ranking: its columns must be feature, kind"):
        Ranking.read(tmp_path / "r.parquet")
    ranking = rank(planted(tmp_path, rows=1000))
    ranking.table.write_parquet(tmp_path / "r.parquet")
    with pytest.raises(DataError, match="is not a ranking"):
        Ranking.read(tmp_path / "r.parquet")


def test_kuairand_ranks_in_a_moment(tmp_path):
    if not REAL.is_dir():
        pytest.skip(f"the real data are not there: {REAL}")
    spec = {"label": "is_click", "time": "date", "split": {"by": "time", "valid": 20220503, "test": 20220504}}
    dataset = build_dataset(DataSpec.model_validate(spec), REAL / "kuairand", tmp_path)
    start = time.perf_counter()
    ranking = rank(dataset)
    assert time.perf_counter() - start < 5  # 0.15 s on two idle cores
    constant = {"is_lowactive_period", "visible_status"}
    assert set(ranking.table.filter(pl.col("z") == 0)["feature"]) == constant
    assert {"user_id", "tab", "tag"} <= set(ranking.top(8))
