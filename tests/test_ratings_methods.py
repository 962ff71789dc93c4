"""Every method, ensembles, teachers, weights, knock-outs and frontiers under ratings, on small planted data."""

import json

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from autoembed.bundle import load_bundle, write_bundle
from autoembed.data.crosses import CrossSpec
from autoembed.data.dataset import build_dataset
from autoembed.data.spec import DataSpec
from autoembed.draws import prepare
from autoembed.errors import BundleError, StudyError
from autoembed.frontier import run
from autoembed.frontier.curves import Curves
from autoembed.frontier.points import FrontierPlan, FrontierPoint
from autoembed.knockout import field_scores
from autoembed.methods.method import load, names
from autoembed.metrics import Metrics
from autoembed.nn.model import CTRModel
from autoembed.pruning import kept_fields
from autoembed.ranking.ranking import rank
from autoembed.space import SearchSpace
from autoembed.training import Teacher, TrainConfig, fit, metrics_on, predict
from autoembed.trial import check, prepared_teacher, root_architecture, run_trial

CPU = torch.device("cpu")
NOISE = 0.5
PLANTED = {
    "rows": 8000,
    "marginal": [4, 30],
    "marginal_effect": 1.0,
    "xor": [6],
    "low_rank": [],
    "noise": [5, 50],
    "multi": [20],
    "label_noise": NOISE,
}
MATTERS = {"marginal_0", "marginal_1", "xor_0_a", "xor_0_b", "multi_0"}
MEASURED = {"method": "sensitivity", "warm_epochs": 2, "rounds": 1, "guard": "measured"}
DNIS = {"method": "dnis", "warm_epochs": 1, "epochs": 1, "precisions": [32], "guard": "measured"}
TRAIN = {"epochs": 3, "batch_size": 256, "lr": 1e-2}


def ignore(values):
    pass


def trial(*stages, **changes):
    node = {
        "arm": "x",
        "stages": [*stages] or [{"method": "uniform"}],
        "monitor": "valid_rmse",
        "embedding": {"dim": 4, "blocks": 2},
        "backbone": {"name": "deepfm", "hidden": [16]},
        "train": TRAIN,
    }
    return check(node | changes)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("ratings")


@pytest.fixture(scope="module")
def ratings(cache):
    spec = {"task": "ratings", "planted": PLANTED, "split": {"by": "random"}}
    return build_dataset(DataSpec.checked(spec), None, cache)


@pytest.fixture(scope="module")
def with_pairs(ratings, cache):
    pairs = [("xor_0_a", "xor_0_b"), ("marginal_0", "noise_0")]
    return ratings.cross(pairs, CrossSpec(min_count=2), cache, candidates=True)


@pytest.fixture(scope="module")
def model(ratings):
    return run_trial(trial(train=TRAIN | {"epochs": 6}), ratings, ignore)[1]


def written(path, model, dataset):
    return write_bundle(
        path,
        schema=dataset.schema,
        vocabulary=dataset.vocabulary,
        architecture=model.architecture,
        model=model,
        data={"task": "ratings"},
        metrics={},
        provenance={},
    )


def rmse(model, dataset, split="test"):
    return metrics_on(model, dataset, split, CPU).rmse


@pytest.mark.parametrize("method", names())
def test_each_method_learns_ratings(method, ratings, with_pairs):
    """Far from the bound after so short a training, but well below the mean's RMSE, unless values share few rows."""
    pairs = load(method).Supernet.chooses_pairs
    data, few = (with_pairs if pairs else ratings), load(method).Supernet.makes_clusters or method == "unified"
    short = {name: 1 for name in ("warm_epochs", "epochs") if name in load(method).Config.model_fields}
    stage = {"method": method, **short}
    result, model = run_trial(trial(stage, limit={} if pairs or method == "ihas" else {"width": 3}), data, ignore)
    assert result.valid.names == ("rmse", "mae")
    found = rmse(model, data)
    assert np.isfinite(found)
    assert found < (1.0 if few else 0.8) * data.labels("test").std(), found


def test_optinter_gives_the_pair_that_only_memorizing_or_a_product_can_tell_an_input(with_pairs):
    stage = {"method": "optinter", "warm_epochs": 2, "epochs": 3, "pair_dim": 4}
    result, model = run_trial(trial(stage, backbone={"name": "dnn", "hidden": [16]}), with_pairs, ignore)
    choices = {(pair.a, pair.b): pair.choice for pair in result.architecture.pairs}
    assert choices["xor_0_a", "xor_0_b"] in ("memorize", "factorize"), choices
    assert rmse(model, with_pairs) < 1.6 * NOISE


@pytest.mark.parametrize("share", ["tables", "all", "none"])
def test_an_ensemble_predicts_the_mean_of_its_members(share, ratings):
    plain = {"name": "deepfm", "hidden": [16], "batch_norm": False, "dropout": 0.0}  # the same in training
    given = trial(ensemble={"members": 2, "share": share}, train=TRAIN | {"epochs": 6}, backbone=plain)
    _, both = run_trial(given, ratings, ignore)
    ids = torch.from_numpy(np.asarray(ratings.ids("test")))
    found = predict(both, ratings, "test", CPU)
    with torch.no_grad():
        members = ratings.task.link(both.train()(ids)).numpy()
    assert members.shape == (len(found), 2)
    assert np.abs(members[:, 0] - members[:, 1]).mean() > 0.01
    assert np.allclose(members.mean(1), found, atol=1e-5)
    assert rmse(both.eval(), ratings) < 1.6 * NOISE


def test_a_bundle_of_models_in_every_shape_predicts_as_the_model(ratings, tmp_path):
    for name, changes in {
        "ensemble": {"ensemble": {"members": 2, "share": "tables"}},
        "bits": {"embedding": {"dim": 4, "bits": 4}},
        "tower": {"tower": {"bits": 8}},
    }.items():
        _, model = run_trial(trial(**changes), ratings, ignore)
        bundle = written(tmp_path / name, model, ratings)
        found = load_bundle(bundle).predict_ids(ratings.ids("test"))
        assert np.allclose(found, predict(model, ratings, "test", CPU), atol=1e-5), name


def test_columns_that_share_a_table_and_numbers_between_knots(cache):
    rng = np.random.default_rng(0)
    item, last, price = rng.integers(0, 20, 6000), rng.integers(0, 20, 6000), rng.random(6000)
    effects = rng.normal(size=20)
    label = effects[item] + 0.5 * effects[last] + 4 * price + NOISE * rng.normal(size=6000)
    columns = {"item": [f"i{one}" for one in item], "last": [f"i{one}" for one in last], "price": price}
    pl.DataFrame(columns | {"label": label}).write_parquet(cache / "shared.parquet")
    spec = {"task": "ratings", "shared": {"last": "item"}, "numeric_embedding": {"price": "piecewise"}}
    data = build_dataset(DataSpec.checked(spec), str(cache / "shared.parquet"), cache)
    for stage in ({"method": "uniform"}, MEASURED):
        result, found = run_trial(trial(stage, limit={"width": 3}, train=TRAIN | {"epochs": 8}), data, ignore)
        assert len(result.architecture.fields) == 2
        assert rmse(found, data) < 1.35 * NOISE


def test_select_closes_what_says_nothing(ratings):
    result, _ = run_trial(trial({"method": "select", "warm_epochs": 4}), ratings, ignore)
    kept = set(result.architecture.inputs)
    assert kept >= MATTERS
    assert "noise_1" not in kept


def test_knockouts_are_rises_of_squared_error_in_units_of_the_label(model, ratings):
    scores = field_scores(model, ratings, "valid")
    assert set(scores["field"][:5]) == MATTERS
    noise = scores.filter(pl.col("field").str.starts_with("noise"))
    for name in ("mse", "rmse", "mae"):
        own = scores.filter(pl.col("field").is_in(MATTERS))
        assert (own[f"{name}_rise"] > 5 * own[f"{name}_se"]).all()
        assert noise[f"{name}_rise"].max() < own[f"{name}_rise"].min() / 10
    # Against the table itself: all rows have the field's mean embedding.
    place = ratings.schema.index("marginal_0")
    sizes = ratings.schema.cardinalities
    rows = slice(sum(sizes[:place]), sum(sizes[: place + 1]))
    table = model.embedding.tables[0].weight
    before, own = rmse(model, ratings, "valid"), table[rows].detach().clone()
    with torch.no_grad():
        table[rows] = own[
            torch.from_numpy(np.asarray(ratings.schema.one(ratings.ids("train"), "marginal_0"))).long()
        ].mean(0)
    after = rmse(model, ratings, "valid")
    with torch.no_grad():
        table[rows] = own
    (row,) = scores.filter(pl.col("field") == "marginal_0").to_dicts()
    assert row["rmse_rise"] == pytest.approx(after - before, abs=1e-4)
    assert row["mse_rise"] == pytest.approx(after**2 - before**2, abs=1e-4)


def test_columns_are_pruned_by_what_a_model_takes_from_them(tmp_path):
    node = {
        "data": {"task": "ratings", "planted": PLANTED, "split": {"by": "random"}},
        "embedding": {"dim": 4},
        "stages": [{"method": "uniform"}],
        "backbone": {"name": "deepfm", "hidden": [16]},
        "train": TRAIN | {"epochs": 6},
        "features": {"score": "knockout", "z": 3},
        "device": "cpu",
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(node | {"features": {}}))
    data = prepare(SearchSpace.read(tmp_path / "s.yaml"), None, 0, tmp_path)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(node))
    space, ranking = SearchSpace.read(tmp_path / "s.yaml"), rank(data)
    assert set(kept_fields(space, ranking, data)) == MATTERS
    few = space.model_copy(update={"features": space.features.model_copy(update={"z": 1e6})})
    with pytest.raises(StudyError, match="no column"):
        kept_fields(few, ranking, data)


def test_a_student_learns_its_teacher_in_units_of_logits(ratings):
    ids = np.asarray(ratings.ids("train"))
    truth = np.where(ids[:, ratings.schema.index("marginal_0")] % 2, 1.5, -1.5).astype(np.float32)
    torch.manual_seed(0)
    student = CTRModel(ratings.schema, root_architecture(trial(), ratings))
    recipe = TrainConfig(epochs=4, lr=1e-2, batch_size=64)
    fit(student, ratings, recipe, device=CPU, seed=0, report=ignore, teacher=Teacher(logits=truth, weight=1))
    found = ratings.task.unlink(predict(student, ratings, "train", CPU))
    assert np.abs(found - truth).mean() < 0.2


@pytest.mark.parametrize("stage", [{"method": "uniform"}, DNIS], ids=lambda stage: stage["method"])
def test_teachers_of_every_kind(stage, ratings, model, tmp_path):
    path = tmp_path / "b"
    written(path, model, ratings)
    teachers = [{"ensemble": 2}, str(path)] + (["search"] if stage["method"] == "dnis" else [])
    for teacher in teachers:
        taught = trial(stage, limit={"width": 3}, train=TRAIN | {"distill": {"teacher": teacher, "weight": 0.5}})
        _, student = run_trial(taught, ratings, ignore)
        assert rmse(student, ratings) < 0.7 * ratings.labels("test").std()
    found = prepared_teacher(trial(train=TRAIN | {"distill": {"teacher": str(path)}}), ratings, CPU, ignore)
    assert np.allclose(
        ratings.task.link(torch.from_numpy(found.logits)), predict(model, ratings, "train", CPU), atol=1e-4
    )


def test_a_teacher_of_other_labels_is_refused(ratings, model, cache, tmp_path):
    written(tmp_path / "b", model, ratings)
    spec = {"task": "ratings", "planted": PLANTED | {"label_noise": 2.0}, "split": {"by": "random"}}
    other = build_dataset(DataSpec.checked(spec), None, cache)
    with pytest.raises(BundleError, match="must have the task and the scale or classes of labels"):
        prepared_teacher(trial(train=TRAIN | {"distill": {"teacher": str(tmp_path / "b")}}), other, CPU, ignore)


def table(rows=4000):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 8, rows), rng.integers(0, 20, rows)
    label = 5 + np.sin(a) + np.cos(b) + 0.3 * rng.normal(size=rows)
    return pl.DataFrame({"a": a, "b": b, "label": label})


def test_rows_of_no_weight_are_not_learnt_and_metrics_are_weighted(cache):
    wrong = np.arange(4000) % 3 > 0
    frame = table().with_columns(
        label=pl.when(pl.Series(wrong)).then(50.0).otherwise("label"), w=pl.Series(np.where(wrong, 0.0, 2.0))
    )
    frame.write_parquet(cache / "weighted.parquet")
    data = build_dataset(DataSpec.checked({"task": "ratings", "weight": "w"}), str(cache / "weighted.parquet"), cache)
    assert data.schema.ratings.mean == pytest.approx(5.2, abs=0.3)
    for stage in ({"method": "uniform"}, MEASURED):
        result, found = run_trial(trial(stage, limit={"width": 3}, train=TRAIN | {"epochs": 6}), data, ignore)
        assert rmse(found, data) < 0.45
        assert result.valid.rmse < 0.45
        assert np.abs(predict(found, data, "test", CPU) - 5).max() < 4


@pytest.mark.parametrize("stage", [{"method": "uniform"}, DNIS, MEASURED], ids=lambda stage: stage["method"])
def test_units_of_labels_make_no_difference(stage, cache):
    """Stars or thousandths of them: the same epochs are kept and the same dims, and predictions are scaled."""
    found = {}
    for unit in (1.0, 2.0**-10, 2.0**10):
        path = cache / f"unit{unit}.parquet"
        table().with_columns(pl.col("label") * unit).write_parquet(path)
        data = build_dataset(DataSpec.checked({"task": "ratings"}), str(path), cache)
        recipe = TRAIN | {"epochs": 8, "patience": 1, "decay": 0.3, "min_gain": 1e-3}
        result, model = run_trial(trial(stage, limit={"width": 3}, train=recipe), data, ignore)
        found[unit] = (result.architecture, result.best_epoch, predict(model, data, "test", CPU) / unit)
    for unit in (2.0**-10, 2.0**10):
        assert found[unit][:2] == found[1.0][:2]
        assert np.allclose(found[unit][2], found[1.0][2], atol=1e-4)


def test_a_frontier_of_ratings(tmp_path):
    space = {
        "data": {"task": "ratings", "planted": PLANTED | {"rows": 2000}, "split": {"by": "random"}},
        "embedding": {"dim": 4, "blocks": 3},
        "stages": [{"method": "magnitude", "warm_epochs": 1}],
        "baselines": ["uniform", {"method": "uniform", "bits": 4}],
        "backbone": {"name": "deepfm", "hidden": [8]},
        "train": {"epochs": 2, "lr": 1e-2, "batch_size": 256},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(space))
    request = run.FrontierRequest(
        space=tmp_path / "tiny.yaml", sizes=(700, 2000), seeds=2, runs=tmp_path / "runs", command="autoembed ..."
    )
    folder, curves = run.run_frontier(request, lambda *_: None, lambda *_: None, lambda _: None)
    page = (folder / "frontier.md").read_text()
    assert "## Test RMSE" in page
    assert "is at most 0.1% above that of its own largest models" in page
    assert "within 0.1% of its own" in page
    assert "Below 0 is better." in page
    assert {"test_rmse", "test_mae", "valid_rmse"} <= set(pl.read_parquet(folder / "frontier.parquet").columns)
    assert curves.best()[0] == min(
        curves.mean(arm, size, curves._test) for arm in curves.space.arms() for size in curves.sizes_of(arm)
    )


def test_how_few_bytes_are_enough_is_a_share_of_the_rmse(tmp_path):
    node = {"data": {"task": "ratings", "planted": PLANTED}, "stages": [{"method": "uniform"}]}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(node))
    space, plan = SearchSpace.read(tmp_path / "s.yaml"), FrontierPlan(sizes=(1, 2, 3), of="embeddings", trials=None)
    for unit in (1e-4, 1.0, 1e4):
        points = [point(size, unit * value) for size, value in ((1, 1.002), (2, 1.0009), (3, 1.0))]
        curves = Curves(space=space, plan=plan, points=points, seconds={})
        assert curves.enough("uniform", curves.full("uniform")) == 2


def point(size, value):
    metrics = Metrics({"rmse": value, "mae": value})
    return FrontierPoint(
        arm="uniform",
        seed=0,
        size=size,
        embedding_bytes=size,
        bytes=size,
        valid=metrics,
        test=metrics,
        notes=(),
        values={},
    )


def test_json_of_a_task_is_what_it_was(ratings):
    assert set(json.loads((ratings.path / "schema.json").read_text())["ratings"]) == {"mean", "sd", "cut"}
