"""Metrics within groups: their formulas, where they are stored and shown, and that training follows them."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import BaseModel, ValidationError
from sklearn.metrics import ndcg_score

from autoembed.bundle import load_bundle
from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.errors import DataError, SpaceError
from autoembed.metrics import GroupedRows, Metrics, evaluate, group_auc
from autoembed.reuse import train_architecture
from autoembed.scoring import score_table
from autoembed.space import SearchSpace
from autoembed.study.results.leaderboard import Leaderboard, Row
from autoembed.study.trackers.mlflow.view import description, saved_view
from autoembed.task import CLICKS, TaskMetrics, columns, metric_in, metric_of, present
from autoembed.training import TrainConfig, fit, metrics_on, predict
from autoembed.trial import TrialConfig, run_trial

CPU = torch.device("cpu")


def table(rows=3000, seed=0):
    """Users differ in how often they click, and items in how much they please: AUC sees both, GAUC the items alone."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 60, rows), rng.integers(0, 20, rows)
    logit = 1.5 * np.sin(user) + 0.8 * np.cos(item) - 0.5
    return pl.DataFrame(
        {
            "label": (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int),
            "user": [f"u{value}" for value in user],
            "item": [f"i{value}" for value in item],
            "w": rng.integers(1, 4, rows),
        }
    )


def by_hand(labels, scores, groups, weights):
    """Pairs of a click and another row of a group, one by one."""
    total = whole = counted = 0.0
    for group in set(groups.tolist()):
        own = groups == group
        y, s, w = labels[own], scores[own], weights[own]
        pairs = won = 0.0
        for i in np.flatnonzero(y == 1):
            for j in np.flatnonzero(y == 0):
                pairs += w[i] * w[j]
                won += w[i] * w[j] * ((s[i] > s[j]) + 0.5 * (s[i] == s[j]))
        if pairs:
            total, whole, counted = total + w.sum() * won / pairs, whole + w.sum(), counted + 1
    return total / whole, counted


def test_it_is_that_of_all_pairs_of_rows_of_a_group():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 300).astype(np.float32), np.round(rng.random(300), 1)
    groups, weights = rng.integers(0, 40, 300), rng.integers(0, 4, 300).astype(np.float32)
    again = np.repeat(np.arange(300), weights.astype(int))
    for own in (np.ones(300), weights):
        assert group_auc(labels, scores, groups, own) == pytest.approx(by_hand(labels, scores, groups, own))
    assert group_auc(labels, scores, groups) == pytest.approx(group_auc(labels, scores, groups, np.full(300, 7.0)))
    assert group_auc(labels, scores, groups, weights) == pytest.approx(
        group_auc(labels[again], scores[again], groups[again])
    )
    texts = np.array([f"u{group:02d}" for group in groups], dtype=object)
    assert group_auc(labels, scores, texts) == pytest.approx(group_auc(labels, scores, groups))


def test_rows_without_a_group_count_in_no_group():
    rng = np.random.default_rng(1)
    labels, scores, groups = rng.integers(0, 2, 300), rng.random(300), rng.integers(-1, 10, 300)
    found = CLICKS.evaluate(labels, scores, None, groups)
    assert found.names == ("auc", "logloss", "gauc", "ndcg_10", "hit_10")
    assert found.auc == evaluate(labels, scores).auc
    assert found["gauc"] == group_auc(labels[groups >= 0], scores[groups >= 0], groups[groups >= 0])[0]
    ndcg, hits, _ = GroupedRows(labels[groups >= 0], scores[groups >= 0], groups[groups >= 0]).top(10)
    assert (found["ndcg_10"], found["hit_10"]) == (ndcg, hits)


@pytest.mark.parametrize("digits", [1, 8])  # with ties and without
@pytest.mark.parametrize("k", [1, 3, 10, 500])
def test_ndcg_is_scikit_learns_mean_over_groups_with_a_click(digits, k):
    rng = np.random.default_rng(2)
    groups = np.sort(rng.integers(0, 60, 700))
    labels = (rng.random(700) < rng.random(60)[groups] ** 3).astype(np.float32)
    scores = np.round(rng.random(700), digits)
    parts = [(labels[groups == one], scores[groups == one]) for one in np.unique(groups)]
    clicked = [(y, s) for y, s in parts if y.any()]
    assert 10 < len(clicked) < len(parts)
    expected = np.mean([ndcg_score(y[None], s[None], k=k) for y, s in clicked])
    order = rng.permutation(700)
    ndcg, _, number = GroupedRows(labels[order], scores[order], groups[order]).top(k)
    assert number == len(clicked)
    assert ndcg == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_the_hit_rate_is_the_mean_over_orders_of_equal_scores(k):
    rng = np.random.default_rng(3)
    groups, labels = rng.integers(0, 25, 150), (rng.random(150) < 0.25).astype(np.float32)
    scores = np.round(rng.random(150) * 2)
    _, hits, number = GroupedRows(labels, scores, groups).top(k)
    chances = []
    for one in np.unique(groups[labels == 1]):
        own = groups == one
        drawn = [np.lexsort((rng.random(own.sum()), -scores[own]))[:k] for _ in range(3000)]
        chances.append(np.mean([labels[own][top].any() for top in drawn]))
    assert number == len(chances)
    assert hits == pytest.approx(np.mean(chances), abs=0.006)
    apart = scores + rng.random(150)
    firsts = [labels[groups == one][np.argsort(-apart[groups == one])[:k]] for one in np.unique(groups[labels == 1])]
    assert GroupedRows(labels, apart, groups).top(k)[1] == pytest.approx(np.mean([own.any() for own in firsts]))


def test_the_first_rows_of_a_group_are_those_of_repeated_rows():
    rng = np.random.default_rng(4)
    labels, scores = (rng.random(400) < 0.2).astype(np.float32), np.round(rng.random(400), 1)
    groups, weights = rng.integers(0, 40, 400), rng.integers(0, 4, 400).astype(np.float32)
    again = np.repeat(np.arange(400), weights.astype(int))
    for k in (1, 3, 10):
        weighted = GroupedRows(labels, scores, groups, weights).top(k)
        assert weighted == pytest.approx(GroupedRows(labels[again], scores[again], groups[again]).top(k))
    # Half a row takes half a place; all rows of a group that fit into the first places hold its clicks.
    halves = GroupedRows(np.array([0, 1]), np.array([0.9, 0.1]), np.zeros(2), np.full(2, 0.5)).top(1)
    assert halves == pytest.approx((1.0, 1.0, 1))
    with pytest.raises(DataError, match="NDCG needs a group with a click, but none of 3 has one"):
        GroupedRows(np.zeros(3), np.arange(3.0), np.arange(3)).top(10)


def test_stored_metrics_may_have_it():
    class Stored(BaseModel):
        valid: TaskMetrics

    oldest = {"auc": 0.7, "logloss": 0.4}
    old = oldest | {"gauc": 0.6}
    new = old | {"ndcg_10": 0.3, "hit_10": 0.8}
    for values in (oldest, old, new):
        assert Stored.model_validate({"valid": values}).valid.root == values
    line = (
        "must have the metrics auc, logloss or rmse, mae or gauc, ndcg_10, hit_10, auc, logloss or "
        "cross_entropy, accuracy, macro_auc or auc, logloss, gauc, ndcg_10, hit_10, but has"
    )
    for values in ({}, {"auc": 0.7}, {"gauc": 0.6}, oldest | {"hit_10": 0.8}, new | {"more": 1.0}):
        with pytest.raises(ValidationError, match=line):
            Stored.model_validate({"valid": values})


def test_it_is_a_metric_of_data_with_groups():
    assert metric_of("valid_gauc").rises
    assert metric_in(CLICKS, "valid_gauc", "user") is CLICKS.grouped[0]
    assert [metric_of(f"valid_{name}").title for name in ("ndcg_10", "hit_10")] == ["NDCG@10", "HR@10"]
    with pytest.raises(SpaceError, match=r"valid NDCG@10 is a metric within groups: set data\.group to a column"):
        metric_in(CLICKS, "valid_ndcg_10")
    with pytest.raises(SpaceError, match=r"valid GAUC is a metric within groups: set data\.group to a column such as"):
        metric_in(CLICKS, "valid_gauc")
    with pytest.raises(SpaceError, match="valid GAUC is a metric within groups"):
        SearchSpace.parse({"objective": {"maximize": "valid.gauc"}, "stages": [{"method": "uniform"}]})
    node = {"data": {"group": "user"}, "objective": {"maximize": "valid.gauc"}, "stages": [{"method": "uniform"}]}
    space = SearchSpace.parse(node)
    assert space.objective.metric == "valid_gauc"
    assert space.objective.of(Metrics(auc=0.7, logloss=0.4, gauc=0.6)) == 0.6


def test_mlflow_shows_it_where_it_is_there():
    for metric, grouped, shown in (("valid_auc", False, 0), ("valid_auc", True, 1), ("valid_gauc", True, 1)):
        assert json.loads(saved_view(metric, grouped=grouped))["selectedColumns"].count("metrics.`valid_gauc`") == shown


def test_columns_have_it_where_it_is_there():
    old, new = Metrics(auc=0.7, logloss=0.4), Metrics(auc=0.7, logloss=0.4, gauc=0.6, ndcg_10=0.3, hit_10=0.8)
    assert list(columns(CLICKS, "test")) == ["test_auc", "test_logloss"]
    assert list(columns(CLICKS, "valid", "test", there=["test_gauc"])) == [
        *("valid_auc", "valid_logloss"),
        *("test_auc", "test_logloss", "test_gauc"),
    ]
    assert present(CLICKS, [None, old]) == CLICKS.metrics
    assert present(CLICKS, [None, old, new]) == (*CLICKS.metrics, *CLICKS.grouped)
    for metrics, names in ((old, False), (new, True)):
        row = Row(arm="search", done=1, pruned=0, failed=0, trial="search-1", valid=metrics, test=metrics)
        gone = Row(arm="other", done=0, pruned=0, failed=1)
        board = Leaderboard(metric="valid_auc", winner="search-1", rows=(row, gone))
        assert Leaderboard.model_validate_json(board.model_dump_json()) == board
        assert ("test_gauc" in board.table.columns) is names


def test_arms_of_earlier_commits_stand_beside_new_ones():
    old = Metrics(auc=0.7, logloss=0.4, gauc=0.6)
    new = Metrics(auc=0.8, logloss=0.3, gauc=0.7, ndcg_10=0.3, hit_10=0.9)
    rows = [
        Row(arm=arm, done=1, pruned=0, failed=0, trial=f"{arm}-1", valid=metrics, test=metrics, embedding_bytes=8)
        for arm, metrics in (("new", new), ("old", old))
    ]
    board = Leaderboard(metric="valid_ndcg_10", winner="new-1", rows=tuple(rows))
    assert board.table["test_ndcg_10"].to_list() == [0.3, None]
    head, _, first, second = description(board, "1", {"new-1": "a", "old-1": "b"}, []).splitlines()[2:6]
    assert "| test GAUC | test NDCG@10 | test HR@10 | embedding bytes |" in head
    assert "| 0.7000 | 0.3000 | 0.9000 | 8 |" in first
    assert "| 0.6000 | - | - | 8 |" in second


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grouped")
    table().write_parquet(folder / "table.parquet")
    split = {"by": "random", "valid": 0.25, "test": 0.25}
    spec = DataSpec.model_validate({"group": "user", "weight": "w", "split": split})
    return build_dataset(spec, folder / "table.parquet", folder / "cache")


@pytest.mark.parametrize("name", ["gauc", "ndcg_10"])
def test_training_follows_it(grouped, name):
    from autoembed.architecture import Architecture
    from autoembed.nn.model import CTRModel

    torch.manual_seed(0)
    root = Architecture.full(grouped.schema, grouped.counts, dim=8, blocks=1, backbone={"name": "deepfm"})
    told, model = [], CTRModel(grouped.schema, root)
    train = TrainConfig(epochs=8, lr=0.03, patience=8)
    found = fit(model, grouped, train, device=CPU, seed=0, report=told.append, monitor=f"valid_{name}")
    within = [event.valid[name] for event in told]
    assert found.valid[name] == max(within) == within[found.epoch - 1]
    assert metrics_on(model, grouped, "valid", CPU)["gauc"] == pytest.approx(found.valid["gauc"])
    labels, weights, groups = (part("valid") for part in (grouped.labels, grouped.weights, grouped.groups))
    expected = by_hand(labels, predict(model, grouped, "valid", CPU), groups, weights)[0]
    assert found.valid["gauc"] == pytest.approx(expected)
    assert found.valid["gauc"] < found.valid["auc"] - 0.03  # which user it is says much, but not within users


def test_a_trial_and_a_bundle_have_it(grouped, tmp_path):
    config = TrialConfig(
        arm="search",
        stages=[{"method": "uniform"}],
        backbone={"name": "fm"},
        train=TrainConfig(epochs=2),
        monitor="valid_gauc",
        device="cpu",
    )
    result, _ = run_trial(config, grouped, lambda values: None)
    assert result.valid.names == ("auc", "logloss", "gauc", "ndcg_10", "hit_10")
    assert type(result).model_validate_json(result.model_dump_json()) == result
    path = tmp_path / "architecture.json"
    result.architecture.write(path)
    source = grouped.path.parent.parent / "table.parquet"
    settings = {"group": "user", "split": {"by": "random", "valid": 0.25, "test": 0.25}, "drop": ["w"]}
    trained = train_architecture(
        path, str(source), tmp_path / "bundle", settings=settings, train={"epochs": 1}, device="cpu"
    )
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.manifest.metrics["test"]["gauc"] == trained.test["gauc"]
    assert bundle.schema.group == "user"
    rows = table(400, 5).with_columns(user=pl.when(pl.col("user") != "u1").then("user"))
    rows.write_parquet(tmp_path / "rows.parquet")
    told = score_table(bundle, str(tmp_path / "rows.parquet"), device="cpu").quality
    assert "; AUC within user 0." in told
    known = rows.filter(pl.col("user").is_not_null()).group_by("user").agg(pl.col("label").n_unique())
    some = (known["label"] == 2).sum()
    assert f"({some} groups" in told


def test_a_split_without_a_group_of_both_labels_is_told(tmp_path):
    frame = table(400).with_columns(user=pl.int_range(400))
    frame.write_parquet(tmp_path / "table.parquet")
    with pytest.raises(DataError, match="group 'user' must have a value with both labels in valid, but has none"):
        build_dataset(DataSpec(group="user", drop=("w",)), tmp_path / "table.parquet", tmp_path / "cache")
    frame = table(400).with_columns(user=pl.when(pl.int_range(400) % 2 == 0).then("user"))
    frame.write_parquet(tmp_path / "table.parquet")
    dataset = build_dataset(DataSpec(group="user", drop=("w",)), tmp_path / "table.parquet", tmp_path / "cache")
    assert any("rows of valid have no 'user': they are in no group" in note for note in dataset.notes)
