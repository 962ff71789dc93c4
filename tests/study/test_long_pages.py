"""Commands of pages that take hours, as they stand there, on small tables and with short recipes; pieces of YAML."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from autoembed.study.run_dir import RunDir
from tests.pages import ROOT, blocks, commands
from tests.study.conftest import SPACE
from tests.study.test_bars import write_tables

ADULT = ROOT.parent / "shared" / "data" / "adult"
pytestmark = pytest.mark.slow


def shorter(node):
    """A search space with fewer rows, epochs, trials and baselines."""
    node["baselines"] = ["uniform"]
    node["train"] |= {"epochs": 1, "batch_size": 256}
    for stage in node["stages"]:
        stage |= {name: 1 for name in ("epochs", "warm_epochs") if name in stage}
    if "planted" in node["data"]:
        node["data"]["planted"]["rows"] = 1500
    if "budget" in node:
        node["budget"]["trials"] = 1
    return node


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with shorter forms of the shipped search spaces where the pages look for them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search_spaces").mkdir()
    for name in ("frontier_planted", "frontier_adult", "bars_frappe", "frappe"):
        node = shorter(yaml.safe_load((ROOT / "search_spaces" / f"{name}.yaml").read_text()))
        (tmp_path / "search_spaces" / f"{name}.yaml").write_text(yaml.safe_dump(node, sort_keys=False))
    return tmp_path


def run_all(given, cli):
    for words in given:
        status, _, err = cli(*words)
        assert status == 0, (words, err)


@pytest.mark.skipif(not ADULT.is_dir(), reason="needs UCI's Adult in ../shared/data/adult")
def test_the_page_on_frontiers(place, monkeypatch, cli):
    (place / "clone").mkdir()
    shutil.move("search_spaces", "clone")
    (place / "shared" / "data" / "adult").mkdir(parents=True)
    for name in ("adult.data", "adult.test"):
        rows = (ADULT / name).read_text().splitlines(keepends=True)[:1500]
        (place / "shared" / "data" / "adult" / name).write_text("".join(rows))
    monkeypatch.chdir(place / "clone")
    given = commands("frontier.md")
    assert [words[0] for words in given] == ["frontier"] * 2
    run_all(given, cli)
    for name in ("frontier_planted", "frontier_adult"):
        table = pl.read_parquet(f"runs/{name}-frontier/frontier.parquet")
        assert (table["seed"].n_unique(), table["arm"].n_unique(), table["size"].n_unique()) == (5, 2, 5)


def test_the_page_on_published_figures(place, ray_here, cli):
    (place / "frappe").mkdir()
    write_tables(place / "frappe")
    given = commands("reproduce.md")
    assert [words[0] for words in given] == ["search", "retrain", "search"]
    run_all(given, cli)
    assert len(list(RunDir(Path("runs/bars_frappe")).ended())) == 15
    assert RunDir(Path("runs/bars_frappe")).read_json("retrain.json")


def test_the_page_on_search_spaces(place, ray_here, cli):
    (place / "frappe").mkdir()
    write_tables(place / "frappe")
    given = commands("search-spaces.md")
    assert len(given) == 1
    run_all(given, cli)


@pytest.fixture
def clicks(tmp_path):
    """A table with the columns that the pages' search spaces name."""
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, 60, 3000), rng.integers(0, 40, 3000)
    rate = 1 / (1 + np.exp(-np.sin(user) - np.cos(item)))
    table = pl.DataFrame(
        {
            "user": [f"u{one}" for one in user],
            "item": [f"i{one}" for one in item],
            "last_item": [f"i{one}" for one in rng.integers(0, 40, 3000)],
            "genres": ["|".join(f"g{one}" for one in rng.integers(0, 6, 2)) for _ in item],
            "history": [" ".join(f"i{one}" for one in rng.integers(0, 40, 5)) for _ in item],
            "date": np.repeat([20220502, 20220503, 20220504], [2000, 500, 500]),
            "is_click": (rng.random(3000) < rate).astype(int),
            "action": np.array(["buy", "cart", "leave", "like"])[(4 * rng.random(3000) * rate).astype(int)],
        }
    )
    table.write_parquet(tmp_path / "clicks.parquet")
    return tmp_path / "clicks.parquet"


@pytest.mark.parametrize("piece", blocks("search-spaces.md", "yaml"))
def test_a_piece_of_a_search_space_runs(piece, clicks, tmp_path, ray_here, cli):
    given = yaml.safe_load(piece)
    data = {"label": "is_click", "drop": ["date"], "split": SPACE["data"]["split"]} | given.get("data", {})
    if data["label"] != "action":
        data["drop"] = [*data["drop"], "action"]
    if "multi" not in data:
        data["drop"] = [*data["drop"], "genres", "history"]
    train = SPACE["train"] | {"epochs": 1}
    space = SPACE | {"baselines": [], "train": train} | given | {"data": data}
    space["embedding"] = SPACE["embedding"] | given.get("embedding", {})
    (tmp_path / "piece.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
    words = ("--data", clicks, "--runs", tmp_path / "runs", "--trials", "1")
    status, _, err = cli("search", tmp_path / "piece.yaml", *words)
    assert status == 0, err


def test_the_readme_s_own_table(clicks, monkeypatch, ray_here, cli):
    monkeypatch.chdir(clicks.parent)
    (space,) = blocks("README.md", "yaml")
    Path("my_space.yaml").write_text(space)
    given = commands("README.md")
    assert given == [["search", "my_space.yaml", "--data", "clicks.parquet"]]
    run_all(given, cli)
    assert RunDir(Path("runs/my_space")).read_json("arms.json")
