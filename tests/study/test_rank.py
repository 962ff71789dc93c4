"""`autoembed rank` and `compare` as a user runs them."""

import numpy as np
import polars as pl
import pytest
import yaml

from autoembed.data.dataset import build_dataset
from autoembed.space import SearchSpace

ROWS = 4000


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(0, 2, ROWS) for _ in range(3))
    logit = 1.0 * (2 * a - 1) + 1.2 * (2 * b - 1) * (2 * c - 1)
    columns = {"a": a, "b": b, "c": c, "noise": rng.integers(0, 900, ROWS), "one": ["x"] * ROWS}
    columns["label"] = (rng.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(int)
    path = tmp_path_factory.mktemp("rank") / "clicks.csv"
    pl.DataFrame(columns).write_csv(path)
    return path


def test_everything_at_once(table, tmp_path, cli):
    options = ["--pairs", "all", "--select", "3", "--stability", "5", "--cross", "1", "--top", "3"]
    places = ["--space", tmp_path / "c.yaml", "--out", tmp_path / "r.parquet", "--html", tmp_path / "r.html"]
    status, out, err = cli("rank", table, *options, *places)
    assert status == 0, err
    for text in ("5 columns by adjusted_mi", "places on halves", "10 pairs by synergy", "3 columns taken by jmi"):
        assert text in out
    assert "constant" in out
    assert "drop it" in out
    page = (tmp_path / "r.html").read_text()
    assert page.count("<svg") == 2
    assert "<script" not in page
    space = SearchSpace.read(tmp_path / "c.yaml")
    assert {*space.data.crosses.pairs[0]} == {"b", "c"}
    dataset = build_dataset(space.data, None, tmp_path / "cache")
    assert dataset.schema.names[-1] in ("b*c", "c*b")


def test_a_name_with_signs_of_formulas_is_drawn_as_it_is(tmp_path, cli):
    pl.DataFrame({"$a$ $b_$": [1, 2] * 20, "label": [0, 1] * 20}).write_parquet(tmp_path / "t.parquet")
    status, _, err = cli("rank", tmp_path / "t.parquet", "--html", tmp_path / "r.html")
    assert status == 0, err
    assert "$a$ $b_$" in (tmp_path / "r.html").read_text()


def test_crossing_a_space_keeps_what_it_says(table, tmp_path, cli):
    node = {
        "data": {"path": str(table), "crosses": {"pairs": [["a", "noise"]], "min_count": 7}},
        "stages": [{"method": "uniform"}],
        "seed": 3,
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(node))
    status, _, err = cli(
        "rank", tmp_path / "s.yaml", "--cross", "1", "--space", tmp_path / "c.yaml", "--runs", tmp_path / "runs"
    )
    assert status == 0, err
    space = SearchSpace.read(tmp_path / "c.yaml")
    assert space.seed == 3
    assert space.data.crosses.min_count == 7
    assert space.data.crosses.pairs[0] == ("a", "noise")
    assert {*space.data.crosses.pairs[1]} == {"b", "c"}


def test_compare_tables_and_rankings(table, tmp_path, cli):
    cli("rank", table, "--out", tmp_path / "r.parquet")
    status, out, err = cli("compare", tmp_path / "r.parquet", table)
    assert status == 0, err
    assert "rank-biased overlap 1.0000 (p = 0.9)" in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--label", "clicks"], "there is no label column 'clicks': name one of a, b, c, noise, one, label"),
        (["--label", "one"], "label 'one' must have two classes or more, but all 4000 rows are 'x'"),
        (["--score", "gini"], "unknown score 'gini': must be one of adjusted_mi, mi, ami"),
        (["--pairs", "none"], "--pairs must be a number from 1 on, or all, but got none"),
        (["--select", "2", "--criterion", "mrmr"], "unknown criterion 'mrmr': must be one of jmi, 3mr"),
        (["--stability", "0"], "--stability must be at least 1, but got 0"),
    ],
)
def test_what_is_wrong_is_one_line(table, cli, arguments, line):
    status, _, err = cli("rank", table, *arguments)
    assert status == 2
    assert err.startswith(f"error: {line}")
    assert err.count("\n") == 1
