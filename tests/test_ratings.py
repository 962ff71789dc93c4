"""Labels that are numbers: read, standardised, learnt, judged, bundled; and what goes with clicks only is refused."""

import json
import math

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from autoembed.bundle import load_bundle, verify_bundle, write_bundle
from autoembed.data.dataset import build_dataset
from autoembed.data.spec import DataSpec
from autoembed.errors import BundleError, DataError, SpaceError
from autoembed.export.formats import export_bundle
from autoembed.export.scorer import Scorer
from autoembed.ranking.ranking import rank, rank_table
from autoembed.ratings import LabelScale, Ratings, scale_of
from autoembed.reuse import train_architecture
from autoembed.scoring import score_table
from autoembed.serving.state import Loaded
from autoembed.space import SearchSpace
from autoembed.task import RATINGS, metric_in, metric_of, task_of, titled
from autoembed.training import metrics_on, pick_device
from autoembed.trial import check, run_trial

SCALED = Ratings(LabelScale(mean=3.5, sd=1.25, cut=3))
PLANTED = {
    "rows": 20000,
    "marginal": [4, 30],
    "marginal_effect": 1.0,
    "xor": [],
    "low_rank": [],
    "noise": [5, 50],
}
TRAIN = {"epochs": 4, "batch_size": 512, "lr": 0.01}


@pytest.fixture(scope="module")
def stars(tmp_path_factory):
    """Labels 100 + 10 * (effects of a column + noise), with a number and a column of noise."""
    rng = np.random.default_rng(0)
    shop, noise, x = rng.integers(0, 8, 6000), rng.integers(0, 40, 6000), rng.random(6000)
    label = 100 + 10 * (rng.normal(size=8)[shop] + 2 * (x > 0.5) + 0.5 * rng.normal(size=6000))
    path = tmp_path_factory.mktemp("stars") / "stars.parquet"
    pl.DataFrame({"label": label, "shop": shop, "noise": noise, "x": x}).write_parquet(path)
    return path


@pytest.fixture(scope="module")
def dataset(stars, tmp_path_factory):
    return build_dataset(DataSpec(task="ratings"), str(stars), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def bundle(dataset, tmp_path_factory):
    config = check({"arm": "uniform", "stages": [{"method": "uniform"}], "monitor": "valid_rmse", "train": TRAIN})
    result, model = run_trial(config, dataset, lambda values: None)
    path = write_bundle(
        tmp_path_factory.mktemp("made") / "bundle",
        schema=dataset.schema,
        vocabulary=dataset.vocabulary,
        architecture=result.architecture,
        model=model,
        data={"task": "ratings"},
        metrics={"valid": result.valid.model_dump()},
        provenance={"train": config.train.model_dump(mode="json"), "monitor": config.monitor},
    )
    return load_bundle(path), model


def test_metrics_are_those_of_scikit_learn_with_and_without_weights():
    rng = np.random.default_rng(0)
    labels, found = rng.normal(size=300).astype(np.float32), rng.normal(size=300).astype(np.float32)
    for weights in (None, rng.random(300).astype(np.float32)):
        own = RATINGS.evaluate(labels, found, weights)
        assert own.rmse == pytest.approx(root_mean_squared_error(labels, found, sample_weight=weights), rel=1e-6)
        assert own.mae == pytest.approx(mean_absolute_error(labels, found, sample_weight=weights), rel=1e-6)
    with pytest.raises(DataError, match="finite"):
        RATINGS.evaluate(labels, found * np.nan)
    with pytest.raises(DataError, match="must have a row"):
        RATINGS.evaluate(labels, found, np.zeros(300))


def test_the_loss_is_one_function_in_torch_and_in_numpy():
    rng = np.random.default_rng(0)
    logits, labels, weights = rng.normal(size=50), rng.normal(3, 1, size=50), rng.random(50)
    told = SCALED.loss(torch.tensor(logits), torch.tensor(labels), weights=torch.tensor(weights)).item()
    own = SCALED.losses(labels, logits)
    assert (own * weights).mean() == pytest.approx(told, rel=1e-12)
    assert own.mean() * 1.25**2 == pytest.approx(
        RATINGS.evaluate(labels, SCALED.link(torch.tensor(logits)).numpy()).rmse ** 2
    )
    both = torch.tensor(np.stack([logits, logits], axis=1))
    assert SCALED.loss(both, torch.tensor(labels)).item() == pytest.approx(own.mean(), rel=1e-12)
    assert np.allclose(SCALED.unlink(SCALED.link(torch.tensor(logits)).numpy()), logits)
    changes = rng.normal(size=(50, 3)).astype(np.float32)
    slow = np.stack([SCALED.losses(labels, logits + one) - own for one in changes.T], axis=1)
    small, answers = logits[:, None].astype(np.float32), labels[:, None].astype(np.float32)
    assert np.allclose(SCALED.rises(answers, small, changes), slow, atol=1e-4)


def test_calibration_is_least_squares():
    rng = np.random.default_rng(0)
    logits, weights = rng.normal(size=200), rng.random(200)
    labels = 3 + 2 * logits + rng.normal(size=200)
    fitted = LinearRegression().fit(logits[:, None], (labels - 3.5) / 1.25, weights)
    assert np.allclose(SCALED.calibration(labels, logits, weights), (fitted.coef_[0], fitted.intercept_))
    predictions = SCALED.link(torch.tensor(logits)).numpy()
    assert np.allclose(SCALED.line(labels, predictions, weights), (fitted.coef_[0], fitted.intercept_))
    assert SCALED.line(labels, np.ones(200)) is None


def test_errors_are_those_of_many_draws():
    rng = np.random.default_rng(0)
    labels, logits = rng.normal(size=(400, 500)), rng.normal(0, 0.3, size=(400, 500))
    roots = [math.sqrt(np.square(a - b).mean()) for a, b in zip(labels, logits, strict=True)]
    assert RATINGS.error(np.mean(roots), labels[0]) == pytest.approx(np.std(roots), rel=0.15)
    others = logits + rng.normal(0, 0.3, size=logits.shape)
    found = [RATINGS.compare(*one)(other) for *one, other in zip(labels, logits, others, strict=True)]
    for name in ("mse", "rmse", "mae"):
        rises = [one[f"{name}_rise"] for one in found]
        assert np.mean([one[f"{name}_se"] for one in found]) == pytest.approx(np.std(rises), rel=0.15)
        assert np.mean(rises) > 0


def test_hopeless_is_no_better_than_the_mean():
    labels = np.random.default_rng(0).normal(5, 2, size=1000)
    assert RATINGS.hopeless(labels.std(), labels) == pytest.approx(0.98 * labels.std())
    assert RATINGS.hopeless(0.9 * labels.std(), labels) is None


def test_the_scale_is_of_rows_by_their_weights_and_the_cut_divides_them_evenly():
    scale = scale_of(np.array([5, 1, 3]), np.array([2, 1, 1]))
    assert (scale.mean, scale.cut) == (3.5, 3)
    assert scale.sd == pytest.approx(np.std([5, 5, 1, 3]))
    assert SCALED.classes(np.array([1, 3, 4])).tolist() == [0, 0, 1]


def test_labels_are_stored_as_numbers_and_the_schema_knows_their_scale(dataset, stars, tmp_path):
    train = dataset.labels("train")
    scale = dataset.schema.ratings
    assert (scale.mean, scale.sd) == pytest.approx((train.mean(), train.std()), rel=1e-5)
    assert (train > scale.cut).mean() == pytest.approx(0.5, abs=0.01)
    text = pl.read_parquet(stars).with_columns(pl.col("label").cast(pl.String))
    text.vstack(text.head(1).with_columns(label=pl.lit(None, pl.String))).write_parquet(tmp_path / "t.parquet")
    spec = DataSpec(task="ratings", missing_label="drop")
    again = build_dataset(spec, str(tmp_path / "t.parquet"), tmp_path)
    assert sum(map(again.rows, again.splits)) == 6000
    with pytest.raises(DataError, match="label 'label' is missing in 1 rows"):
        build_dataset(DataSpec(task="ratings"), str(tmp_path / "t.parquet"), tmp_path)


@pytest.mark.parametrize(
    ("label", "why"),
    [(["1", "much", "2"], "'much'"), ([1.0, math.inf, 2.0], "'inf'"), ([1.0, 1e39, 2.0], "finite numbers")],
)
def test_labels_that_are_no_finite_numbers_are_refused(label, why, tmp_path):
    pl.DataFrame({"label": label * 20, "a": [1, 2, 3] * 20}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=why):
        build_dataset(DataSpec(task="ratings"), str(tmp_path / "t.parquet"), tmp_path)


def test_labels_of_a_split_that_are_all_the_same_are_refused(tmp_path):
    pl.DataFrame({"label": [2.5] * 60, "a": [1, 2, 3] * 20}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"two values or more in train, but all .* rows are 2\.5"):
        build_dataset(DataSpec(task="ratings"), str(tmp_path / "t.parquet"), tmp_path)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"positive": [5]}, "positive makes clicks"),
        ({"above": 3}, "above makes clicks"),
        ({"group": "user"}, "metric of clicks"),
        ({"split": {"by": "random", "stratify": True}}, "stratify"),
        ({"target_statistics": {"columns": ["a"]}}, "click rates"),
    ],
)
def test_keys_of_clicks_are_refused(keys, why):
    with pytest.raises((DataError, SpaceError), match=why):
        DataSpec.checked({"task": "ratings", **keys})


def test_a_space_of_ratings_minimises_rmse_and_refuses_what_is_of_clicks():
    node = {"data": {"task": "ratings"}, "stages": [{"method": "uniform"}]}
    space = SearchSpace.parse(node)
    assert (space.objective.metric, space.objective.mode) == ("valid_rmse", "min")
    assert SearchSpace.parse({**node, "objective": {"minimize": ["valid.mae", "bytes"]}}).objective.cost == "bytes"
    assert SearchSpace.parse({"stages": node["stages"]}).objective.metric == "valid_auc"
    with pytest.raises(SpaceError, match=r"valid AUC is a metric of clicks, but data.task is ratings"):
        SearchSpace.parse({**node, "objective": {"maximize": "valid.auc"}})
    with pytest.raises(SpaceError, match=r"valid RMSE is a metric of ratings, but data\.task is clicks"):
        SearchSpace.parse({"stages": node["stages"], "objective": {"minimize": "valid.rmse"}})
    for key, value in (("positive_weight", 2), ("negative_sampling", 0.5)):
        with pytest.raises(SpaceError, match=rf"train\.{key} is of clicks"):
            SearchSpace.parse({**node, "train": {key: value}})
    assert titled("mse_rise") == "mse rise"
    assert metric_of("valid_rmse") is RATINGS.metrics[0]
    assert task_of("test_mae") is RATINGS
    assert metric_in(SCALED, None).monitor == "valid_rmse"


def test_columns_are_ranked_by_the_cut_that_the_notes_name(dataset, stars):
    ranking = rank(dataset)
    assert set(ranking.top(2)) == {"shop", "x"}
    assert any("whether it is above 1" in note for note in ranking.notes)
    with pytest.raises(DataError, match="rank a search-space file"):
        rank_table(str(stars), settings={"task": "ratings"})


LONG = [pytest.param(method, marks=pytest.mark.slow) for method in ("sensitivity", "dnis", "ihas")]


@pytest.mark.parametrize("method", ["uniform", "select", *LONG])
def test_methods_come_near_the_noise_of_planted_ratings(method, planted_ratings):
    config = {
        "arm": "x",
        "stages": [{"method": method}],
        "monitor": "valid_rmse",
        "train": TRAIN,
        "embedding": {"dim": 8},
        "limit": {} if method == "ihas" else {"width": 4},
    }
    _, model = run_trial(check(config), planted_ratings, lambda values: None)
    found = metrics_on(model, planted_ratings, "test", pick_device("cpu"))
    assert planted_ratings.labels("test").std() > 1.6
    assert 0.97 < found.rmse < 1.06  # the noise has a standard deviation of 1


@pytest.fixture(scope="module")
def planted_ratings(tmp_path_factory):
    spec = DataSpec.checked({"task": "ratings", "planted": PLANTED, "split": {"by": "random"}})
    return build_dataset(spec, None, tmp_path_factory.mktemp("planted"))


def test_a_bundle_predicts_in_units_of_the_label(bundle, dataset, stars, tmp_path):
    own, model = bundle
    assert own.schema.ratings == dataset.schema.ratings
    assert "2 stored" not in verify_bundle(own.path)[-1]
    text = (own.path / "README.md").read_text()
    assert "predicts `label` for each row, in its own units" in text
    assert "probability" not in text
    rows = pl.read_parquet(stars)
    found = own.predict(rows, device="cpu")
    assert root_mean_squared_error(rows["label"], found) < 7
    assert rows["label"].std() > 12
    assert np.allclose(own.predict_ids(dataset.ids("test")).mean(), dataset.labels("test").mean(), atol=1)
    served = Loaded(own, "x", max_rows=10, strict=False)
    assert np.allclose(served.predict(dataset.ids("test")[:5]), own.predict_ids(dataset.ids("test")[:5]))
    scored = score_table(own, str(stars), device="cpu")
    assert scored.quality.startswith("on its 6,000 labelled rows RMSE ")
    with pytest.raises(DataError, match="not compared within groups"):
        score_table(own, str(stars), device="cpu", group="shop")
    assert metrics_on(model, dataset, "test", pick_device("cpu")).rmse < 7


def test_exported_models_predict_in_units_of_the_label(bundle, dataset, stars, tmp_path):
    own, _ = bundle
    ids = dataset.ids("test")[:50].astype(np.int64)
    wanted = own.predict_ids(ids.astype(np.int32))
    assert wanted.min() > 1 or wanted.max() > 1
    pytest.importorskip("onnx", reason="needs the package onnx")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")
    folder = export_bundle(own, tmp_path / "onnx", "onnx").path
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    assert np.allclose(session.run(None, {session.get_inputs()[0].name: ids})[0], wanted, rtol=1e-5)
    program = torch.export.load(export_bundle(own, tmp_path / "torch", "torch").path / "model.pt2")
    assert np.allclose(program.module()(torch.from_numpy(ids)).detach(), wanted, rtol=1e-5)
    scorer = Scorer.load(export_bundle(own, tmp_path / "numpy", "numpy").path)
    assert np.allclose(scorer.predict_ids(ids), wanted, rtol=1e-5)
    assert "rating = model.predict" in (tmp_path / "numpy" / "README.md").read_text()
    said = json.loads((export_bundle(own, tmp_path / "tables", "tables").path / "tables.json").read_text())[
        "prediction"
    ]
    assert said.pop("link") == "linear"
    logits = own.model.cpu().eval()(torch.from_numpy(ids)).detach().numpy()
    assert np.allclose(said["scale"] * logits + said["shift"], wanted, rtol=1e-5)


def test_what_is_not_there_for_ratings_is_refused(bundle, stars, tmp_path):
    own, _ = bundle
    with pytest.raises(BundleError, match=r"ratings: use onnx, torch, aoti, numpy, tables, torchrec, or"):
        export_bundle(own, tmp_path / "fuxictr", "fuxictr")
    again = train_architecture(own.path, str(stars), tmp_path / "new", train={"epochs": 2})
    assert again.test.rmse < 13


def test_data_of_clicks_are_stored_as_before(tmp_path):
    spec = DataSpec.checked({"planted": PLANTED | {"rows": 500}, "split": {"by": "random"}})
    dataset = build_dataset(spec, None, tmp_path)
    assert "ratings" not in json.loads((dataset.path / "schema.json").read_text())
    assert dataset.task.name == "clicks"
