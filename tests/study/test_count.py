import numpy as np
import polars as pl
import pytest

from autoembed.errors import DataError
from autoembed.ranking.ranking import rank_table
from autoembed.study.engine.count import rank_fragments


@pytest.mark.parametrize("classes", [2, 3])
def test_tasks_over_fragments_give_what_one_process_gives(tmp_path, ray_here, classes):
    rng = np.random.default_rng(0)
    rows = 6000
    frame = pl.DataFrame(
        {
            "label": rng.integers(0, classes, rows),
            "whole": rng.integers(0, 40, rows),
            "text": rng.choice(["a", "b", "2", "2.0", None], rows).astype(str),
            "real": rng.normal(0, 1, rows),
            "many": rng.integers(0, 2**60, 300)[rng.integers(0, 300, rows)],
        }
    ).with_columns(pl.col("text").replace({"None": None}))
    for at in range(4):  # the fragments do not hold the same values
        frame.sort("whole")[at * 1500 : (at + 1) * 1500].write_parquet(tmp_path / f"{at}.parquet")
    wanted = [("whole", "text"), ("many", "real"), ("text", "many")] if classes == 2 else []
    here, there = rank_table(tmp_path, pairs=wanted or None, threads=1), rank_fragments(tmp_path, pairs=wanted)
    assert there.fingerprint == here.fingerprint
    for one, other in ((here.table, there.table), (here.pairs, there.pairs)):
        if one is None:
            assert other is None
            continue
        numbers = [name for name, dtype in one.schema.items() if dtype != pl.String]
        assert one.drop(numbers).equals(other.drop(numbers))
        assert np.allclose(one.select(numbers).to_numpy(), other.select(numbers).to_numpy(), atol=1e-9, rtol=1e-9)


def test_tasks_read_what_one_process_reads_of_folders_and_leftovers(tmp_path, ray_here):
    rng = np.random.default_rng(0)
    for day in ("1", "2"):
        part = pl.DataFrame({"label": rng.integers(0, 2, 900), "whole": rng.integers(0, 40, 900)})
        for folder in (tmp_path / f"day={day}", tmp_path / "_temporary"):
            folder.mkdir(exist_ok=True)
            part.write_parquet(folder / f"{day}.parquet")
    here, there = rank_table(tmp_path, threads=1), rank_fragments(tmp_path)
    assert set(there.table["feature"]) == {"day", "whole"}
    assert here.table.drop("score").equals(there.table.drop("score"))


def test_fragments_of_other_types_are_refused(tmp_path, ray_here):
    pl.DataFrame({"label": [0, 1], "x": [1, 2]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"label": [0, 1], "x": ["1", "07"]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match="other columns or types"):
        rank_fragments(tmp_path)
