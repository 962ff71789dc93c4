import numpy as np
import polars as pl
import pytest

from autoembed.errors import DataError
from autoembed.ranking.ranking import rank_table
from autoembed.ranking.selection import compare, rank_biased_overlap, stability

ROWS = 20_000


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """strong and its noisy copy, a weaker but independent column, an XOR pair, noise of many values."""
    rng = np.random.default_rng(0)
    strong, weak, x, y = (rng.integers(0, 2, ROWS) for _ in range(4))
    logit = 1.2 * (2 * strong - 1) + 0.5 * (2 * weak - 1) + 0.8 * (2 * x - 1) * (2 * y - 1)
    columns = {
        "strong": strong,
        "again": np.where(rng.random(ROWS) < 0.05, 1 - strong, strong),
        "weak": weak,
        "x": x,
        "y": y,
        "noise": rng.integers(0, 3000, ROWS),
        "label": (rng.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(int),
    }
    path = tmp_path_factory.mktemp("selection") / "t.parquet"
    pl.DataFrame(columns).write_parquet(path)
    return path


def test_relevance_alone_takes_the_copy_second_and_both_criteria_do_not(path):
    assert rank_table(path).top(2) == ("strong", "again")
    jmi = rank_table(path, select=("jmi", 6)).selected
    mrmr = rank_table(path, select=("3mr", 6)).selected
    assert jmi["feature"][0] == mrmr["feature"][0] == "strong"
    assert mrmr["feature"][1] == "weak"
    assert mrmr["feature"].to_list().index("again") >= 4
    assert jmi["feature"][-1] == mrmr["feature"][-2:].to_list()[-1] or "noise" in jmi["feature"][-2:]
    # The partner of an XOR column says nothing alone: relation brings it in right behind.
    order = mrmr["feature"].to_list()
    assert abs(order.index("x") - order.index("y")) == 1


def test_selection_names_its_bounds(path):
    with pytest.raises(DataError, match=r"unknown criterion 'mrmr': must be one of jmi, 3mr"):
        rank_table(path, select=("mrmr", 3))
    with pytest.raises(DataError, match="must be at least 1, but got 0"):
        rank_table(path, select=("jmi", 0))
    assert rank_table(path, select=("jmi", 99)).selected.height == 6


def test_stability_is_firm_for_signal_and_loose_for_noise(path):
    table = rank_table(path, stability=20).stability
    rows = {row["feature"]: row for row in table.iter_rows(named=True)}
    assert (rows["strong"]["rank_low"], rows["strong"]["rank_high"]) == (1, 1)
    assert (rows["again"]["rank_median"], rows["weak"]["rank_median"]) == (2, 3)
    assert rows["x"]["rank_high"] - rows["x"]["rank_low"] >= 1


def test_halves_of_a_table_score_as_halves_of_its_rows():
    table = np.array([[400, 100], [100, 400], [3, 5]])
    found = stability([table, table[::-1]], ["a", "b"], draws=30)
    assert set(found["rank_low"]) == {1}
    with pytest.raises(DataError, match="at least 2 draws"):
        stability([table], ["a"], draws=1)


def test_rank_biased_overlap_against_the_paper_s_definition():
    assert rank_biased_overlap("abcd", "abcd") == pytest.approx(1)
    assert rank_biased_overlap("abcd", "wxyz") == pytest.approx(0)
    # By hand for two of length 2: X = 0, 2; sum (0 + 1 * p^2) (1 - p) / p + 2/2 p^2.
    p = 0.8
    assert rank_biased_overlap("ab", "ba", p) == pytest.approx((1 - p) / p * p**2 + p**2)
    # Of unequal length: X = 1, 1, 2 with s = 2.
    expected = (1 - p) / p * (p + p**2 / 2 + 2 / 3 * p**3 + 1 * 1 / (2 * 3) * p**3) + (1 / 3 + 1 / 2) * p**3
    assert rank_biased_overlap("ax", "aby"[:2] + "x", p) == pytest.approx(expected)
    assert rank_biased_overlap("abcdefgh", "bacdefgh") < rank_biased_overlap("abcdefgh", "abcdefhg")
    with pytest.raises(ValueError, match="p must lie between 0 and 1"):
        rank_biased_overlap("ab", "ab", 1.0)
    with pytest.raises(ValueError, match="each once"):
        rank_biased_overlap("aa", "ab")


def test_compare_shows_moves_and_absences():
    first = pl.DataFrame({"feature": ["a", "b", "c"], "score": [3.0, 2.0, 1.0]})
    second = pl.DataFrame({"feature": ["c", "a", "d"], "score": [5.0, 4.0, 3.0]})
    found = {row["feature"]: (row["rank_first"], row["rank_second"]) for row in compare(first, second).rows(named=True)}
    assert found == {"a": (1, 2), "b": (2, None), "c": (3, 1), "d": (None, 3)}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Whole numbers of many values: a U, a line, a copy of the line with errors, and noise; and a word."""
    rng = np.random.default_rng(0)
    u, line, noise = (rng.integers(0, 100_000, 6000) for _ in range(3))
    word = rng.integers(0, 2, 6000)
    logit = 12 * (u / 1e5 - 0.5) ** 2 - 1 + 2 * (line / 1e5 - 0.5) + word
    columns = {
        "u": u,
        "line": line,
        "again": line + rng.integers(-2000, 2000, 6000),
        "noise": noise,
        "gaps": [None if v % 3 else v for v in noise],
        "word": [f"w{w}" for w in word],
        "label": (rng.random(6000) < 1 / (1 + np.exp(-logit))).astype(int),
    }
    path = tmp_path_factory.mktemp("shapes") / "t.parquet"
    pl.DataFrame(columns).write_parquet(path)
    return path


@pytest.mark.parametrize("name", ["kan_l1", "kan_l2"])
def test_curves_find_a_u_that_values_by_themselves_do_not_show(shapes, name):
    for other in ("logistic", "tree", "pearson"):
        alone = dict(rank_table(shapes, score=other).table.select("feature", "score").iter_rows())
        assert abs(alone["u"]) < 0.03, other
    ranked = rank_table(shapes, score=name).table
    scores = dict(ranked.select("feature", "score").iter_rows())
    assert set(ranked["feature"][:2]) <= {"u", "line", "again"}
    assert ranked["feature"][0] == "u"
    assert scores["u"] > 4 * max(scores["noise"], scores["gaps"])
    assert scores["noise"] < 2 * 3 / (6000 * 0.25) ** 0.5
    assert scores["word"] == 0
    # The model has both side by side: they share the effect, of mean size 1/2 and root mean square 1/sqrt(3).
    assert scores["line"] + scores["again"] == pytest.approx(0.5 if name == "kan_l1" else 3**-0.5, rel=0.25)


def test_curves_are_of_two_classes_and_need_no_ordered_column(tmp_path):
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"x": rng.integers(0, 50, 300), "label": rng.integers(0, 3, 300)})
    frame.write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="kan_l1 and kan_l2 need a label of two classes"):
        rank_table(tmp_path / "t.parquet", score="kan_l1")
    words = pl.DataFrame({"x": [f"w{n % 3}" for n in range(300)], "label": [n % 2 for n in range(300)]})
    words.write_parquet(tmp_path / "w.parquet")
    assert rank_table(tmp_path / "w.parquet", score="kan_l2").table["score"].to_list() == [0.0]


@pytest.mark.parametrize("name", ["logistic", "tree", "lightgbm"])
def test_surrogate_scores_find_signal_and_no_noise(path, name):
    if name == "lightgbm":
        pytest.importorskip("lightgbm", reason="LightGBM is an extra")
    scores = dict(rank_table(path, score=name).table.select("feature", "score").iter_rows())
    assert scores["strong"] > scores["again"] > scores["weak"] > 0.05
    assert abs(scores["noise"]) < 0.02
    assert abs(scores["x"]) < 0.02
