import numpy as np
import polars as pl
import pytest

from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.ranking.quality import divergence
from autoembed.ranking.ranking import Ranking, rank, rank_table

ROWS = 6000


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, ROWS)
    plain = rng.integers(0, 12, ROWS)
    columns = {
        "label": label,
        "plain": plain,
        "copy": [f"x{value}" for value in (7 * plain + 3) % 12],
        "close": np.where(rng.random(ROWS) < 0.001, 0, plain),
        "constant": ["a"] * ROWS,
        "row_id": np.arange(ROWS),
        "leak": np.where(rng.random(ROWS) < 0.01, 1 - label, label),
        "hint": np.where(rng.random(ROWS) < 0.2, 1 - label, label),
        "sparse": [None if value else "x" for value in rng.random(ROWS) > 0.02],
        "tail": np.where(rng.random(ROWS) < 0.7, 0, rng.integers(1, 1500, ROWS)),
        "dominant": (rng.random(ROWS) < 0.0005).astype(int),
        "moving": np.where(np.arange(ROWS) < 4800, rng.integers(0, 5, ROWS), rng.integers(3, 8, ROWS)),
        "day": np.arange(ROWS) // 600,
    }
    path = tmp_path_factory.mktemp("quality") / "t.parquet"
    pl.DataFrame(columns).write_parquet(path)
    return path


def tripped(ranking):
    return {(finding.rule, finding.column): finding.severity for finding in ranking.findings}


def test_each_rule_is_tripped_by_its_column_and_by_no_other(path, tmp_path):
    expected = {
        ("constant", "constant"): "warning",
        ("id-like", "row_id"): "warning",
        ("leak", "leak"): "error",
        ("leak", "hint"): "warning",
        ("sparse", "sparse"): "warning",
        ("rare values", "tail"): "note",
        ("dominant", "dominant"): "note",
        ("duplicate", "plain = copy"): "warning",
    }
    assert tripped(rank_table(path)) == expected
    # With codes at hand, near copies show too.
    near = {("duplicate", "plain = close"): "warning", ("duplicate", "copy = close"): "warning"}
    ranking = rank_table(path, pairs=1)
    assert tripped(ranking) == expected | near
    ranking.write(tmp_path / "r.parquet")
    assert Ranking.read(tmp_path / "r.parquet").findings == ranking.findings
    written = pl.read_parquet(tmp_path / "r.findings.parquet")
    assert written.columns == ["severity", "rule", "column", "value", "advice"]
    severities = written["severity"].to_list()
    assert severities == sorted(severities, key=["error", "warning", "note"].index)


def test_drift_compares_valid_with_train(path, tmp_path):
    spec = {"time": "day", "split": {"by": "time", "valid": 8, "test": 9}, "min_count": 1, "drop": ["row_id"]}
    dataset = build_dataset(DataSpec.model_validate(spec), path, tmp_path)
    found = tripped(rank(dataset))
    assert [column for rule, column in found if rule == "drift"] == ["moving"]


def test_divergence_is_one_for_strangers_and_none_for_samples_of_one_source():
    assert divergence(np.array([10_000, 0]), np.array([0, 10_000])) == pytest.approx(1, abs=1e-3)
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(500))
    found = [divergence(rng.multinomial(20_000, p), rng.multinomial(5_000, p)) for _ in range(20)]
    assert max(found) < 0.005
