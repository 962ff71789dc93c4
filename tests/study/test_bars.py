"""The shipped BARS space on tables of Frappe's columns, small and made up."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from autoembed.data.dataset import build_dataset
from autoembed.nn.backbones.base import names
from autoembed.space import SearchSpace
from autoembed.study.engine import tune
from autoembed.study.engine.run import prepare
from autoembed.study.results import leaderboard
from autoembed.study.run_dir import RunDir
from autoembed.trial import run_trial

PATH = Path(__file__).parents[2] / "search_spaces" / "bars_frappe.yaml"
SPACE = SearchSpace.read(PATH)
COLUMNS = {
    "user": 90, "item": 200, "daytime": 7, "weekday": 7, "isweekend": 2, "homework": 3, "cost": 2, "weather": 9,
    "country": 30, "city": 60,
}  # fmt: skip


def write_tables(folder):
    """Writes train, valid and test Parquet tables in which users and items have tastes."""
    rng = np.random.default_rng(0)
    taste = {name: rng.normal(size=size) for name, size in COLUMNS.items()}
    for split, rows in {"train": 3000, "valid": 800, "test": 800}.items():
        columns = {name: rng.integers(0, size, rows) for name, size in COLUMNS.items()}
        logit = taste["user"][columns["user"]] + taste["item"][columns["item"]] + taste["weather"][columns["weather"]]
        labels = (rng.random(rows) < 1 / (1 + np.exp(-1.5 * logit))).astype(np.int64)
        table = pl.DataFrame({**columns, "label": labels})
        table.select("label", *COLUMNS).write_parquet(folder / f"{split}.parquet")


@pytest.fixture(scope="module")
def frappe(tmp_path_factory):
    """A directory with the tables."""
    folder = tmp_path_factory.mktemp("frappe")
    write_tables(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(frappe, tmp_path_factory):
    return build_dataset(SPACE.data, frappe, tmp_path_factory.mktemp("cache"))


def test_every_backbone_has_its_variant():
    assert {SPACE.template(arm)["backbone"]["name"] for arm in SPACE.arms()} == set(names())


@pytest.mark.parametrize("arm", SPACE.arms())
def test_each_backbone_trains_at_full_width(dataset, arm):
    config = SPACE.config(arm, {})
    assert (config.train.lr, config.train.batch_size, config.train.decay, config.train.clip) == (1e-3, 4096, 0.1, 10)
    # The recipe's L2 belongs to Frappe's 200,000 rows; on 3,000 it would leave nothing of the tables.
    short = config.train.model_copy(update={"epochs": 2, "batch_size": 256, "lr": 1e-2, "l2": 1e-4})
    result, _ = run_trial(config.model_copy(update={"train": short}), dataset, lambda values: None)
    values = sum(dataset.schema.cardinalities)
    width = 1 if arm == "uniform@lr" else 10 + (arm.partition("@")[2] in ("fm", "widedeep", "deepfm"))
    assert result.cost.embedding_parameters == values * width
    assert result.valid.auc > 0.55


def test_a_study_shows_valid_and_test_of_each(frappe, tmp_path, ray_here):
    node = yaml.safe_load(PATH.read_text())
    node["variants"] = {name: node["variants"][name] for name in ("lr", "dcn")}
    node["train"] |= {"epochs": 1, "batch_size": 256}
    run = RunDir(tmp_path / "runs" / "bars")
    run.path.mkdir(parents=True)
    run.space.write_text(yaml.safe_dump(node, sort_keys=False))
    space = SearchSpace.read(run.space)
    data = prepare(run, space, str(frappe))
    tune.run_trials(run, space, data, dict.fromkeys(space.arms(), 1), [])
    board = leaderboard.build(run, space, data)
    assert [(row.arm, row.done) for row in board.rows] == [("uniform@lr", 1), ("uniform@dcn", 1)]
    assert all(0 < metrics.auc < 1 for row in board.rows for metrics in (row.valid, row.test))
