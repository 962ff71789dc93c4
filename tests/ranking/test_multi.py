import numpy as np
import polars as pl
import pytest

from autoembed.errors import DataError
from autoembed.ranking.ranking import rank_table
from autoembed.ranking.scores import score

ROWS = 5000


@pytest.fixture(scope="module")
def frame():
    """Tags, of which t0 raises the click rate; as lists and as text."""
    rng = np.random.default_rng(0)
    tags = [[f"t{tag}" for tag in rng.choice(30, size=rng.integers(0, 4), replace=False)] for _ in range(ROWS)]
    rate = np.array([0.8 if "t0" in row else 0.4 for row in tags])
    return pl.DataFrame(
        {
            "label": (rng.random(ROWS) < rate).astype(int),
            "plain": rng.integers(0, 5, ROWS),
            "tags": tags,
            "text": ["|".join(row) if number % 2 else " | ".join([*row, *row]) for number, row in enumerate(tags)],
        }
    )


def test_values_are_counted_once_a_row_as_lists_and_as_text(frame, tmp_path):
    frame.write_parquet(tmp_path / "t.parquet")
    table = rank_table(tmp_path / "t.parquet", separators={"text": "|"}).table
    rows = {row["feature"]: row for row in table.iter_rows(named=True)}
    by_hand = np.zeros((31, 2), np.int64)
    for label, tags in zip(frame["label"], frame["tags"].to_list(), strict=True):
        for place in [int(tag[1:]) + 1 for tag in tags] or [0]:
            by_hand[place, label] += 1
    expected = score(by_hand)
    for name in ("tags", "text"):
        assert rows[name]["kind"] == "multi-valued"
        assert rows[name]["cardinality"] == 31
        assert rows[name]["score"] == pytest.approx(expected.score, rel=1e-9)
        assert rows[name]["coverage"] == pytest.approx(np.mean([bool(tags) for tags in frame["tags"].to_list()]))
    assert rows["tags"]["z"] > 10 > abs(rows["plain"]["z"])


def test_pairs_are_of_the_other_columns(frame, tmp_path):
    frame.with_columns(other=pl.Series(np.arange(ROWS) % 7)).write_parquet(tmp_path / "t.parquet")
    ranking = rank_table(tmp_path / "t.parquet", pairs="all", separators={"text": "|"})
    assert {*ranking.pairs.select("a", "b").row(0)} == {"plain", "other"}
    assert len(ranking.table) == 4


def test_what_is_wrong_is_one_line(frame, tmp_path):
    frame.write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"unknown column 'genres': the columns are label, plain, tags, text"):
        rank_table(tmp_path / "t.parquet", separators={"genres": "|"})
    with pytest.raises(DataError, match=r"column 'plain' must be text to have a separator, but its type is Int64"):
        rank_table(tmp_path / "t.parquet", separators={"plain": "|"})
    with pytest.raises(DataError, match=r"the score rotation needs one value a row, and 'tags' holds several"):
        rank_table(tmp_path / "t.parquet", score="rotation")


def test_text_that_looks_like_lists_is_told():
    tags = ["|".join(tag for place, tag in enumerate("uvwxyz") if number >> place & 1) for number in range(1, 64)]
    frame = pl.DataFrame({"label": [0, 1, 0] * 42, "site": ["a", "b"] * 63, "tags": tags * 2})
    (note,) = (note for note in rank_table(frame).notes if note.startswith("tags: "))
    assert note.endswith("set data.multi: {tags: '|'} (rank: --multi tags='|')")
    assert not rank_table(frame, separators={"tags": "|"}).notes
