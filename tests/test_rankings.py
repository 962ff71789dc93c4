"""Clicks ranked within groups: metrics, hope, the order that a group's bias hides, refusals, and all doors."""

import json

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from pydantic import BaseModel

import autoembed as ae
from autoembed.bundle import load_bundle, verify_bundle, write_bundle
from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.data.schema import FeatureSchema
from autoembed.drafting import draft
from autoembed.errors import BundleError, DataError, SpaceError
from autoembed.estimating import seconds_of_epoch
from autoembed.export.formats import export_bundle
from autoembed.export.scorer import Scorer
from autoembed.metrics import GroupedRows, group_auc, group_auc_error
from autoembed.refreshing import refresh
from autoembed.reuse import train_architecture
from autoembed.scoring import score_table
from autoembed.space import SearchSpace
from autoembed.study.results.leaderboard import Leaderboard, Row
from autoembed.study.show.study_page.verdict import verdict
from autoembed.study.trackers.mlflow.view import description
from autoembed.task import CLICKS, RANKINGS, TaskMetrics, columns, metric_in, metric_of, present, task_named, task_of
from autoembed.training import metrics_on, predict
from autoembed.trial import check, run_trial
from tests.sessions import DATA, PLAIN, dataset_of, table

CPU = torch.device("cpu")
NAMES = ("gauc", "ndcg_10", "hit_10", "auc", "logloss")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return dataset_of(tmp_path_factory.mktemp("data") / "sessions")


def config_of(share=None, seed=0, stage=None, **more):
    train = {"epochs": 5, "lr": 1e-2, "batch_size": 512, "patience": 5, "pairwise_weight": share}
    node = {
        "arm": "x",
        "stages": [stage or {"method": "uniform"}],
        "embedding": {"dim": 4, "blocks": 2},
        "backbone": PLAIN,
        "train": train | more.pop("train", {}),
        "monitor": "valid_gauc",
        "seed": seed,
    }
    return check(node | more)


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """Bundles of the default share and of pairs alone, by share."""
    found = {}
    for share in (None, 1.0):
        config = config_of(share, train={"epochs": 2})
        result, model = run_trial(config, data, lambda event: None)
        found[share] = write_bundle(
            tmp_path_factory.mktemp("made") / "bundle",
            schema=data.schema,
            vocabulary=data.vocabulary,
            architecture=result.architecture,
            model=model,
            data=DataSpec.model_validate(DATA).model_dump(mode="json", exclude={"path", "split", "planted"}),
            metrics={"valid": result.valid.model_dump()},
            provenance={"train": config.train.model_dump(mode="json"), "monitor": config.monitor},
        )
    return found


def test_the_pairwise_loss_finds_the_order_that_a_groups_bias_hides(data):
    """At equal bytes and epochs. Over all rows the items that please least are clicked most."""
    found = {}
    for share in (0.0, 1.0):
        for seed in (0, 1):
            result, model = run_trial(config_of(share, seed), data, lambda event: None)
            found[share, seed] = metrics_on(model, data, "test", CPU), result.cost.bytes
    assert len({cost for _, cost in found.values()}) == 1
    for seed in (0, 1):
        rows, pairs = found[0.0, seed][0], found[1.0, seed][0]
        assert rows.gauc < 0.45  # the wrong order, though it knows who clicks
        assert rows.auc > 0.65
        assert pairs.gauc > 0.54
        assert pairs.ndcg_10 > rows.ndcg_10 + 0.04
        assert pairs.auc < 0.5
        # So by AUC the search that has found the order would be stopped as hopeless.
        labels, groups = data.labels("test"), data.groups("test")
        assert RANKINGS.hopeless(pairs.gauc, labels, None, groups) is None
        assert CLICKS.hopeless(pairs.auc, labels) is not None


def test_its_metrics_are_those_within_groups_and_then_those_of_clicks(data):
    assert data.task is RANKINGS
    assert tuple(metric.name for metric in RANKINGS.metrics) == NAMES
    assert set(RANKINGS.metrics) == {*CLICKS.metrics, *CLICKS.grouped}
    assert (RANKINGS.objective.name, RANKINGS.criterion.name) == ("ndcg_10", "logloss")
    assert task_named("ranking") is RANKINGS
    assert task_of("valid_ndcg_10") is CLICKS  # names say which metric it is; data.task says what is predicted
    assert metric_in(RANKINGS, None, "session") is RANKINGS.objective
    assert metric_in(RANKINGS, "valid_hit_10", "session") is metric_of("valid_hit_10")
    with pytest.raises(SpaceError, match=r"valid RMSE is a metric of ratings, but data.task is ranking"):
        metric_in(RANKINGS, "valid_rmse", "session")
    rng = np.random.default_rng(0)
    labels, scores, groups = rng.integers(0, 2, 300), rng.random(300), rng.integers(-1, 20, 300)
    found = RANKINGS.evaluate(labels, scores, None, groups)
    assert found.names == NAMES
    assert found.root == CLICKS.evaluate(labels, scores, None, groups).root
    assert RANKINGS.evaluate(labels, scores).names == ("auc", "logloss")
    assert list(columns(RANKINGS, "test")) == [f"test_{name}" for name in NAMES]
    assert present(RANKINGS, [found]) == RANKINGS.metrics

    class Stored(BaseModel):
        valid: TaskMetrics

    assert Stored.model_validate({"valid": found.root}).valid == found
    # Encoded data of clicks say nothing of it, as before.
    schema = data.schema.model_copy(update={"ranking": False})
    assert "ranking" not in json.loads(schema.model_dump_json())
    assert FeatureSchema.model_validate_json(data.schema.model_dump_json()).task is RANKINGS


@pytest.mark.parametrize("weighted", [False, True])
def test_hope_is_by_the_auc_within_groups_that_chance_has(weighted):
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(150), rng.integers(1, 15, 150))
    labels = (rng.random(len(groups)) < rng.random(150)[groups]).astype(np.float32)
    weights = rng.integers(0, 4, len(groups)).astype(np.float32) if weighted else None
    draws = []
    for _ in range(400):
        scores = rng.random(len(groups))
        draws.append(group_auc(labels, scores, groups, weights)[0])
    error = group_auc_error(0.5, labels, groups, weights)
    assert np.mean(draws) == pytest.approx(0.5, abs=4 * error / 20)
    # Kish's effective rows are a rough guide where groups are small.
    assert np.std(draws) == pytest.approx(error, rel=0.25 if weighted else 0.1)
    if weights is None:
        more = np.concatenate([labels, labels]), np.concatenate([groups, groups + 150])
        assert group_auc_error(0.5, *more) == pytest.approx(error / 2**0.5)
        missing = np.append(groups, np.full(50, -1)), np.append(labels, rng.integers(0, 2, 50))
        assert group_auc_error(0.5, missing[1], missing[0]) == pytest.approx(error)
        # NDCG@10 of a random order is no constant: it is not what hope is measured by.
        assert GroupedRows(labels, rng.random(len(groups)), groups).top(10)[0] > 0.6
    bound = 0.5 + min(3 * error, 0.02)
    assert RANKINGS.hopeless(bound - 1e-3, labels, weights, groups) == pytest.approx(bound, abs=1e-3)
    assert RANKINGS.hopeless(bound + 1e-2, labels, weights, groups) is None
    with pytest.raises(DataError, match="group AUC needs a group with both classes, but none of 2 has both"):
        group_auc_error(0.5, np.array([0, 1]), np.array([0, 1]))
    with pytest.raises(DataError, match="group AUC needs a group with both classes, but no row has a group"):
        group_auc_error(0.5, np.array([0, 1]), np.array([-1, -1]))
    with pytest.raises(ValueError, match="must have groups"):
        RANKINGS.error(0.5, labels)


NODE = {"data": {"task": "ranking", "group": "session"}, "stages": [{"method": "uniform"}]}


def test_a_space_of_rankings():
    space = SearchSpace.parse(NODE)
    assert space.objective.metric == "valid_ndcg_10"
    assert space.config("uniform", {}).monitor == "valid_ndcg_10"
    for name in ("gauc", "hit_10", "auc"):
        assert SearchSpace.parse(NODE | {"objective": {"maximize": f"valid.{name}"}}).objective.direction.name == name
    ranged = SearchSpace.parse(NODE | {"train": {"pairwise_weight": {"uniform": [0.0, 1.0]}}})
    assert list(ranged.ranges("uniform")) == ["train.pairwise_weight"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"data": {"task": "ranking"}}, r"task: ranking is of the order within groups.*set group to a column"),
        ({"train": {"pairwise_weight": 1.5}}, r"pairwise_weight.*less than or equal to 1"),
        (
            {"train": {"pairwise_weight": 1.0, "positive_weight": 2.0}},
            r"positive_weight counts clicks in the loss of rows, which train.pairwise_weight: 1 leaves out",
        ),
        (
            {"train": {"pairwise_weight": {"choice": [0.5, 1.0]}, "positive_weight": 2.0}},
            r"but got positive_weight=2: set it to 1, or pairwise_weight below 1",
        ),
        (
            {"data": {"group": "session"}, "train": {"pairwise_weight": 0.5}},
            r"train.pairwise_weight is of data.task: ranking, but data.task is clicks, and got 0.5: set data.task",
        ),
        (
            {"data": {"task": "ratings"}, "train": {"pairwise_weight": 0.0}},
            r"train.pairwise_weight is of data.task: ranking, but data.task is ratings",
        ),
        ({"objective": {"minimize": "valid.rmse"}}, r"valid RMSE is a metric of ratings, but data.task is ranking"),
        ({"train": {"stop_by": "all_labels"}}, r"stop_by: all_labels is of data.auxiliary_labels"),
        (
            {"data": {**NODE["data"], "auxiliary_labels": ["like"]}, "train": {"stop_by": "all_labels"}},
            r"needs a metric that all labels have, valid AUC or valid logloss, but the objective is valid NDCG@10",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(change, line):
    with pytest.raises(SpaceError, match=line):
        SearchSpace.parse(NODE | change)


def test_groups_must_have_both_labels(tmp_path):
    def change(frame):
        return frame.with_columns(session=pl.int_range(pl.len()))

    with pytest.raises(DataError, match="group 'session' must have a value with both labels in train, but has none"):
        dataset_of(tmp_path / "one", (800, 800, 800), change)


@pytest.mark.parametrize(
    "change",
    [
        {"ensemble": {"members": 3}},
        pytest.param(
            {
                "stage": {"method": "ihas", "clusters": 2, "warm_epochs": 1, "epochs": 1},
                "train": {"pairwise_weight": 0.9},
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"stage": {"method": "sensitivity", "warm_epochs": 1}, "limit": {"width": 2}}, marks=pytest.mark.slow
        ),
        pytest.param(
            {"stage": {"method": "dnis", "warm_epochs": 1, "epochs": 1}, "limit": {"width": 2}}, marks=pytest.mark.slow
        ),
        {"stage": {"method": "uniform", "bits": 4}},
        {"train": {"distill": {"teacher": {"ensemble": 2}}}},
        {"train": {"negative_sampling": 0.5}},
    ],
    ids=str,
)
def test_what_goes_with_it(data, change):
    own = {**change, "train": {"epochs": 2, **change.get("train", {})}}
    result, _ = run_trial(config_of(1.0, **own), data, lambda event: None)
    assert result.valid.gauc > 0.5  # by rows alone it is near 0.4


def test_scikit_learns_interface_is_of_clicks():
    model = ae.AutoEmbedClassifier(data={"task": "ranking", "group": "session"})
    with pytest.raises(SpaceError, match=r"must be clicks, but got 'ranking': leave it out, or use autoembed\.search"):
        model.fit(table(80, 0).drop("label"), table(80, 0)["label"])


def test_clusters_are_calibrated_by_rows():
    with pytest.raises(SpaceError, match=r"ihas makes a model for each cluster.*pairwise_weight: 1 leaves that out"):
        config_of(1.0, stage={"method": "ihas"})


def test_auxiliary_labels_are_learnt_beside_it(tmp_path):
    def change(frame):
        return frame.with_columns(like=pl.col("hour").is_in([f"h{hour}" for hour in range(12)]).cast(pl.Int8))

    data = dataset_of(tmp_path / "both", change=change, auxiliary_labels=["like"])
    result, _ = run_trial(config_of(1.0, train={"epochs": 4}), data, lambda event: None)
    assert result.valid.gauc > 0.5
    assert result.auxiliary["like"].auc > 0.99


def test_estimates_time_steps_of_pairs(data):
    for share in (0.0, 1.0):
        assert seconds_of_epoch(config_of(share), data) > 0


def test_the_model_card_says_what_predictions_mean(made):
    cards = {share: (path / "README.md").read_text() for share, path in made.items()}
    assert "predicts the probability of `label` for each row, trained to rank the rows of one `session`." in cards[None]
    assert "scores rows, so that those of one `session` can be ranked by `label`. Scores are no prob" in cards[1.0]
    assert "probability" not in cards[1.0]


def test_a_bundle_is_scored_as_those_of_clicks(made, data, tmp_path):
    bundle = load_bundle(made[1.0])
    assert bundle.schema.task is RANKINGS
    assert verify_bundle(made[1.0])[-1].startswith("64 stored predictions are the same")
    table(8000, 2).write_parquet(tmp_path / "new.parquet")
    wanted = predict(bundle.model, data, "test", CPU)
    scored = score_table(bundle, str(tmp_path / "new.parquet"))
    assert np.allclose(scored.table["prediction"].to_numpy(), wanted, atol=1e-6)
    gauc = RANKINGS.evaluate(data.labels("test"), wanted, None, data.groups("test")).gauc
    assert f"AUC within session {gauc:.4f}" in scored.quality
    table(8000, 2).drop("session").write_parquet(tmp_path / "bare.parquet")
    assert "within" not in score_table(bundle, str(tmp_path / "bare.parquet")).quality


@pytest.mark.slow
def test_an_export_gives_the_scores_of_the_bundle(made, data, tmp_path):
    bundle, ids = load_bundle(made[1.0]), data.ids("test")[:64]
    for format in ("numpy", "onnx"):
        export_bundle(bundle, tmp_path / format, format)
    wanted = bundle.predict_ids(ids)
    assert np.allclose(Scorer.load(tmp_path / "numpy").predict_ids(ids), wanted, atol=1e-5)
    session = pytest.importorskip("onnxruntime").InferenceSession(tmp_path / "onnx" / "model.onnx")
    assert np.allclose(session.run(None, {"ids": ids.astype(np.int64)})[0], wanted, atol=1e-5)


def test_a_bundle_is_trained_again_by_its_recipe(made, tmp_path):
    log = tmp_path / "log.parquet"
    table(8000, 5).write_parquet(log)
    settings = {"split": {"by": "group", "column": "session", "valid": 0.2, "test": 0.2}}
    cold = train_architecture(made[1.0], log, tmp_path / "cold", settings=settings, train={"epochs": 3})
    assert cold.bundle.manifest.provenance["train"]["pairwise_weight"] == 1
    assert cold.bundle.manifest.provenance["monitor"] == "valid_gauc"
    assert set(cold.bundle.manifest.metrics["test"]) == set(NAMES)
    assert cold.bundle.manifest.metrics["test"]["gauc"] > 0.5
    done = refresh(made[None], log, tmp_path / "fresh", epochs=1, settings=settings)
    assert done.bundle.schema.task is RANKINGS
    assert done.after.names == NAMES
    assert refresh(made[1.0], log, tmp_path / "some", settings=settings, train={"pairwise_weight": 0.9}).kept
    warm = train_architecture(made[1.0], log, tmp_path / "warm", settings=settings, warm=True, train={"epochs": 1})
    assert warm.bundle.manifest.metrics["test"]["gauc"] > 0.5
    with pytest.raises(SpaceError, match=r"a refresh keeps weights by the loss of rows, and train.pairwise_weight: 1"):
        refresh(made[1.0], log, tmp_path / "no", settings=settings)
    with pytest.raises(SpaceError, match=r"were trained for data.task: ranking, but data.task is clicks: leave it"):
        refresh(made[None], log, tmp_path / "no", settings={**settings, "task": "clicks"})
    with pytest.raises(SpaceError, match=r"train.pairwise_weight is of data.task: ranking, but data.task is clicks"):
        train_architecture(made[1.0], log, tmp_path / "no", settings={**settings, "task": "clicks"})


def test_a_teacher_has_the_task_of_its_student(made, data, tmp_path):
    train = {"epochs": 1, "distill": {"teacher": str(made[1.0]), "weight": 1.0}}
    result, _ = run_trial(config_of(1.0, train=train), data, lambda event: None)
    assert result.valid.gauc > 0.5
    clicks = build_dataset(
        DataSpec(group="session", drop=("session", "w"), min_count=1), data.path.parents[1], tmp_path / "cache"
    )
    with pytest.raises(BundleError, match="must have the task and the scale or classes of labels of the study's data"):
        run_trial(config_of(None, train=train), clicks, lambda event: None)


def test_init_drafts_a_space_of_rankings(tmp_path):
    table(2000, 0).drop("w").write_parquet(tmp_path / "log.parquet")
    settings = {"task": "ranking", "group": "session"}
    text = draft(str(tmp_path / "log.parquet"), tmp_path / "cache", settings=settings).text
    space = SearchSpace.parse(yaml.safe_load(text))
    assert (space.data.task, space.objective.metric) == ("ranking", "valid_ndcg_10")


def test_a_leaderboard_knows_its_task():
    first, second = ({"gauc": value, "ndcg_10": 0.5, "hit_10": 1.0, "auc": 0.4, "logloss": 0.9} for value in (0.7, 0.6))
    rows = tuple(
        Row(
            arm=arm,
            done=1,
            pruned=0,
            failed=0,
            trial=f"{arm}-0",
            valid=own,
            test=own,
            test_auc_error=0.01,
            parameters=1,
        )
        for arm, own in (("dnis", first), ("uniform", second))
    )
    board = Leaderboard(metric="valid_ndcg_10", task="ranking", winner="dnis-0", rows=rows)
    assert board.predicts is RANKINGS
    assert board.table.columns[2:7] == [f"valid_{name}" for name in NAMES]
    assert "its test GAUC is 0.7000" in " ".join(verdict(board, None, None))
    assert "| valid GAUC | test GAUC | test NDCG@10 |" in description(board, "1", {"dnis-0": "a", "uniform-0": "b"}, [])
    # Earlier commits stored no task: the metric says it.
    old = board.model_dump(mode="json")
    del old["task"]
    assert Leaderboard.model_validate(old).predicts is CLICKS
