from itertools import combinations

import numpy as np
import polars as pl
import pytest

from autoembed.errors import DataError
from autoembed.ranking import pairs as module
from autoembed.ranking.counts import count_pair
from autoembed.ranking.pairs import score_counts
from autoembed.ranking.ranking import Ranking, rank_table
from autoembed.ranking.scores import score
from autoembed.ranking.table import read_table


def draw(rng, rows, values, zipf):
    if not zipf:
        return rng.integers(0, values, rows).astype(np.int32)
    mass = 1 / np.arange(1, values + 1) ** 1.05
    return rng.choice(values, rows, p=mass / mass.sum()).astype(np.int32)


def planted(seed, a, b, xor=0.0, rows=200_000):
    """Two columns of (values, zipf, sd of their effects on the logit) and the label, with or without an XOR."""
    rng = np.random.default_rng(seed)
    codes = [draw(rng, rows, values, zipf) for values, zipf, _ in (a, b)]
    logit = np.full(rows, -1.2)
    for column, (values, _, sd) in zip(codes, (a, b), strict=True):
        logit += rng.normal(0, sd, values)[column]
    sides = [rng.permutation(values)[column] % 2 for column, (values, _, _) in zip(codes, (a, b), strict=True)]
    logit += np.where(sides[0] ^ sides[1], xor, -xor)
    return *codes, (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.uint8)


def z_of(seed, a, b, xor=0.0, rows=200_000):
    pair = score_counts([("a", "b")], [count_pair(*planted(seed, a, b, xor, rows))])
    return pair["synergy_z"][0]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((2, False, 0.5), (2, False, 0.5)),
        ((50, False, 0.0), (50, False, 0.0)),
        ((50, False, 0.7), (50, False, 0.7)),
        ((2000, True, 0.7), (50, False, 0.0)),
        ((2000, False, 0.7), (50, True, 0.7)),
        ((5000, True, 0.7), (200, False, 0.7)),
        ((2000, False, 0.7), (2000, True, 0.7)),
        ((20_000, False, 0.7), (20_000, True, 0.7)),
    ],
)
def test_strong_main_effects_alone_are_no_synergy(a, b):
    z = [z_of(seed, a, b, rows=60_000) for seed in range(4)]
    assert max(z) < 3.5
    assert abs(np.mean(z)) < 1.7  # 3.4 standard errors


@pytest.mark.parametrize("effect", [0.0, 0.5])
def test_a_weak_xor_is_found_beside_main_effects_or_none(effect):
    assert min(z_of(seed, (50, False, effect), (50, False, effect), xor=0.15) for seed in range(3)) > 6


def test_synergy_is_the_information_that_the_interaction_holds():
    a, b, labels = planted(0, (2, False, 0.0), (2, False, 0.0), xor=0.3)
    found = score_counts([("a", "b")], [count_pair(a, b, labels)])
    assert found["synergy"][0] == pytest.approx(found["score"][0], rel=0.1)  # neither column says anything alone


def test_cells_are_the_same_by_table_and_by_walk():
    from autoembed.ranking import pair_kernels

    rng = np.random.default_rng(0)
    a, b = (draw(rng, 5000, *side).astype(np.uint16) for side in ((300, True), (40, False)))
    a = np.argsort(np.argsort(-np.bincount(a, minlength=300)))[a].astype(np.uint16)
    labels = rng.integers(0, 2, 5000).astype(np.uint8)
    found = []
    for walk in (False, True):
        for bits, dtype in ((16, np.uint32), (32, np.uint64)):
            out = [np.empty(5001, dtype) for dtype in (np.uint32, np.uint32, np.int32, np.int32)]
            counter, packed, y = np.zeros(12_000, dtype), np.empty(5001, dtype), np.empty(5000, np.uint16)
            order, starts = pair_kernels.sort_rows(a, 300) if walk else np.zeros((2, 0), np.uint32)
            rows = a, b, labels, order, starts, a[order], labels[order], 300, 40
            numbers = np.zeros(2, np.int64)
            pair_kernels.cells(*rows, counter, bits, 2, packed, y, *out, numbers)
            some, seen = numbers.tolist()
            assert not counter.any()  # it is left as it was found
            found.append((seen, sorted(zip(*(part[:some].tolist() for part in out), strict=True))))
    whole = count_pair(a, b, labels)
    n = whole.table.sum(axis=1)
    cells = zip(whole.a[n > 1].tolist(), whole.b[n > 1].tolist(), n[n > 1].tolist(), whole.table[n > 1, 1], strict=True)
    assert found == [(len(n), [(x, y, m, int(k)) for x, y, m, k in cells])] * 4


def test_the_joint_column_is_scored_as_a_column_is():
    for a, b in ((draw(np.random.default_rng(s), 40_000, k, z) for s, k, z in pair) for pair in [
        ((1, 5, False), (2, 3, True)), ((3, 3000, True), (4, 50, False)), ((5, 9000, False), (6, 9000, True)),
    ]):  # fmt: skip
        labels = (np.random.default_rng(7).random(40_000) < 0.2).astype(np.uint8)
        counts = count_pair(a, b, labels)
        pair, joint = score_counts([("a", "b")], [counts]).row(0, named=True), score(counts.table)
        for name in ("score", "z", "normalized", "mi", "expected_mi"):
            assert pair[name] == pytest.approx(getattr(joint, name), abs=1e-9)


@pytest.fixture
def table(tmp_path):
    """Six columns, of which x and y are an XOR; as a file."""
    rng = np.random.default_rng(0)
    columns = {name: draw(rng, 20_000, k, False) for name, k in (("x", 10), ("y", 10), ("p", 3), ("q", 50), ("r", 700))}
    logit = np.where((columns["x"] + columns["y"]) % 2, 0.5, -0.5) + rng.normal(0, 0.5, 3)[columns["p"]]
    label = rng.random(20_000) < 1 / (1 + np.exp(-logit))
    path = tmp_path / "t.parquet"
    pl.DataFrame({**columns, "label": label}).write_parquet(path)
    return path


def test_all_pairs_and_the_best(table):
    every = rank_table(table, pairs="all")
    assert len(every.pairs) == 10
    assert every.top_pairs(1) == (("x", "y"),)
    assert every.pairs["synergy_z"][0] > 20 > 4 > every.pairs["synergy_z"][1]
    assert every.pairs["synergy_z"].is_sorted(descending=True)
    assert rank_table(table, pairs=3).pairs.equals(every.pairs.head(3))
    named = rank_table(table, pairs=[("y", "x"), ("p", "r")]).pairs
    assert named.select("a", "b").rows() == [("y", "x"), ("p", "r")]
    joint = every.pairs.filter(pl.col("a").is_in(["x"]) & pl.col("b").is_in(["y"]))
    assert named["score"][0] == pytest.approx(joint["score"][0], abs=1e-12)


def test_a_large_table_is_screened_on_fewer_rows(table, monkeypatch):
    whole = rank_table(table, pairs=2).pairs
    monkeypatch.setattr(module, "_SCREEN", 50_000)
    monkeypatch.setattr(module, "_SCREEN_ROWS", 5_000)
    monkeypatch.setattr(module, "_KEPT_CELLS", 0)
    sampled = rank_table(table, pairs=2).pairs
    assert sampled.row(0) == whole.row(0)  # measured on all rows in the end
    assert len(sampled) == 2


def test_pairs_that_screening_lets_pass_are_measured_as_all_are(table, monkeypatch):
    monkeypatch.setattr(module, "_FIT_ABOVE", -99.0)
    fitted = rank_table(table, pairs="all").pairs
    codes = read_table(table, "label", keep=True)
    counts = [
        count_pair(codes.codes(a), codes.codes(b), codes.labels) for a, b in combinations(range(len(codes.names)), 2)
    ]
    names = list(combinations(codes.names, 2))
    merged = score_counts(names, [a + b for a, b in zip(counts, counts, strict=True)])
    direct = score_counts(names, counts)
    assert np.allclose(direct.drop("a", "b").to_numpy(), fitted.drop("a", "b").to_numpy(), atol=1e-9, rtol=1e-6)
    assert merged["mi"].sort().to_list() == pytest.approx(direct["mi"].sort().to_list(), abs=1e-12)


def test_pairs_are_written_beside_the_ranking(table, tmp_path):
    ranking = rank_table(table, pairs=4)
    ranking.write(tmp_path / "r.parquet")
    back = Ranking.read(tmp_path / "r.parquet")
    assert back.pairs.equals(ranking.pairs)
    assert back.table.equals(ranking.table)
    other = rank_table(table)
    other.write(tmp_path / "r.parquet")
    assert Ranking.read(tmp_path / "r.parquet").pairs is None
    with pytest.raises(ValueError, match="no pairs were ranked"):
        other.top_pairs(1)
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "r.pairs.parquet")
    with pytest.raises(DataError, match="is not a ranking"):
        Ranking.read(tmp_path / "r.parquet")


def test_wrong_numbers_of_pairs_are_refused(table):
    with pytest.raises(DataError, match="pairs must be at least 1, but got 0"):
        rank_table(table, pairs=0)
    with pytest.raises(DataError, match="pairs must be a number or all, but got 'some'"):
        rank_table(table, pairs="some")


def test_hardly_any_rows_together_are_no_evidence():
    rng = np.random.default_rng(0)
    a, b = draw(rng, 3000, 1000, False), draw(rng, 3000, 1000, False)
    found = score_counts([("a", "b")], [count_pair(a, b, rng.integers(0, 2, 3000).astype(np.uint8))])
    assert found["synergy_z"][0] == found["synergy"][0] == 0.0
