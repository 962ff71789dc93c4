"""The regressor keeps scikit-learn's conventions, learns what there is, and refuses what is no number."""

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import r2_score, root_mean_squared_error
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import check_estimator

import autoembed as ae

SMALL = {
    "embedding": {"dim": 4, "blocks": 2},
    "backbone": {"name": "deepfm", "hidden": [8]},
    "train": {"epochs": 30, "batch_size": 32, "lr": 1e-2},
}
FAST = SMALL | {"train": {"epochs": 6, "lr": 2e-2, "batch_size": 256}, "random_state": 0}
NOISE = 0.5


@pytest.fixture(scope="module")
def stars():
    """Stars around 30, by the site and the item, and noise of sd NOISE."""
    rng = np.random.default_rng(0)
    site, item = rng.integers(0, 8, 3000), rng.integers(0, 20, 3000)
    stars = 30 + 2 * np.sin(site) + 2 * np.cos(item) + NOISE * rng.normal(size=3000)
    columns = {"site": [f"s{one}" for one in site], "item": item, "noise": rng.integers(0, 30, 3000)}
    return pl.DataFrame(columns | {"label": stars})


def test_it_keeps_scikit_learns_conventions():
    # Batches are drawn by rows, whatever their weights: a row of weight 2 is in one batch, two equal rows are in two.
    drawn = {"check_sample_weight_equivalence_on_dense_data": "equal in expectation, as batches are drawn by rows"}
    regressor = ae.AutoEmbedRegressor(**SMALL)
    found = check_estimator(regressor, expected_failed_checks=drawn, on_fail="raise", on_skip=None)
    assert {one["check_name"] for one in found if one["status"] == "skipped"} == {"check_array_api_input"}
    assert {one["check_name"] for one in found if one["status"] == "xfail"} == set(drawn)
    assert not hasattr(regressor, "predict_proba")


def test_it_comes_near_the_noise_within_its_budget(stars, tmp_path):
    features, labels = stars.drop("label"), stars["label"].to_numpy()
    few = {"method": "uniform", "bits": 1}
    one = ae.AutoEmbedRegressor(budget={"embedding_bytes": 700}, baselines=["uniform", few], **FAST)
    found = one.fit(features[:2500], labels[:2500]).predict(features)
    rmse = root_mean_squared_error(labels[2500:], found[2500:])
    print(f"RMSE {rmse:.4f} where the noise has sd {NOISE}")
    assert rmse < 1.2 * NOISE
    assert labels.std() > 3 * NOISE
    assert one.score(features, labels) == pytest.approx(r2_score(labels, found))
    assert one.architecture_.cost.embedding_bytes <= 700
    best = min(one.results_.values(), key=lambda result: result.valid.rmse)
    assert one.architecture_ == best.architecture
    assert np.array_equal(one.export(tmp_path / "out").predict(features), found)
    assert ae.load_bundle(tmp_path / "out").schema.task.name == "ratings"
    # The label may stand in the table; the same seed gives the same model.
    again = ae.AutoEmbedRegressor(budget={"embedding_bytes": 700}, baselines=["uniform", few], **FAST)
    assert np.array_equal(again.fit(stars[:2500]).predict(features), found)
    assert cross_val_score(ae.AutoEmbedRegressor(**FAST), features.to_pandas(), labels, cv=2).min() > 0.7


def test_weights_count(stars, tmp_path):
    features, labels = stars.drop("label"), stars["label"].to_numpy()
    wrong = np.arange(3000) % 3 > 0  # two of three labels are far off, and do not count
    given = np.where(wrong, 5 * labels, labels)
    one = ae.AutoEmbedRegressor(**FAST).fit(features, given, sample_weight=np.where(wrong, 0.0, 1.0))
    assert one.score(features, labels) > 0.7
    assert one.export(tmp_path / "out").schema.weight == "sample_weight"
    named = ae.AutoEmbedRegressor(data={"weight": "w"}, **FAST)
    weights = np.random.default_rng(1).exponential(1.0, 3000)
    other = ae.AutoEmbedRegressor(**FAST).fit(features, labels, sample_weight=weights)
    assert (
        named.fit(stars.with_columns(w=pl.Series(weights))).results_["uniform"].valid == other.results_["uniform"].valid
    )


def test_its_model_is_trained_on_with_a_later_log(stars, tmp_path):
    ae.AutoEmbedRegressor(**FAST).fit(stars).export(tmp_path / "out")
    stars.with_columns(pl.col("label") + 1).write_parquet(tmp_path / "log.parquet")
    split = {"split": {"by": "random", "valid": 0.1, "test": 0.1}}
    done = ae.refresh(tmp_path / "out", tmp_path / "log.parquet", tmp_path / "new", settings=split)
    assert done.after.rmse < done.before.rmse


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        (np.full(3000, 2.5), r"y must have two values or more, but all of n_samples=3000 are 2\.5"),
        (np.full(3000, 1e39), "y must be finite, but some labels are not, as numbers of 32 bits"),
        (np.where(np.arange(3000) == 3, np.nan, 1.0), "Input y contains NaN"),
        (np.array(["good"] * 3000), "could not convert string to float"),
        (np.ones(2999), "as many rows, but have 3000 and 2999"),
    ],
)
def test_labels_that_are_no_numbers_are_told(stars, labels, line):
    with pytest.raises(ValueError, match=line):
        ae.AutoEmbedRegressor(**SMALL).fit(stars.drop("label"), labels)


def test_all_labels_that_count_must_not_be_the_same(stars):
    weights = np.arange(3000) < 1
    with pytest.raises(ValueError, match="two values or more in rows whose sample_weight is above 0"):
        ae.AutoEmbedRegressor(**SMALL).fit(stars, sample_weight=weights)


def test_each_class_is_for_its_task(stars):
    with pytest.raises(
        ae.SpaceError, match="must be ratings, but got 'clicks': leave it out, or use AutoEmbedClassifier"
    ):
        ae.AutoEmbedRegressor(data={"task": "clicks"}).fit(stars)
    rows = stars.with_columns(label=pl.col("label") > 30)
    with pytest.raises(
        ae.SpaceError, match="must be clicks, but got 'ratings': leave it out, or use AutoEmbedRegressor"
    ):
        ae.AutoEmbedClassifier(data={"task": "ratings"}).fit(rows)
