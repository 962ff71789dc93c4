"""What `import autoembed` gives, and the classifier."""

import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import check_estimator

import autoembed as ae
from autoembed import ranges
from autoembed.space import SearchSpace

SMALL = {
    "embedding": {"dim": 4, "blocks": 2},
    "backbone": {"name": "deepfm", "hidden": [8]},
    "train": {"epochs": 30, "batch_size": 32, "lr": 1e-2},
}


def test_a_bare_import_is_light_and_changes_nothing():
    code = """
import os, sys
before = dict(os.environ)
import autoembed
assert dict(os.environ) == before
print(sorted({"torch", "ray", "optuna", "mlflow", "polars", "numpy", "pydantic"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
    # Told apart from Python's own start by its own count; the best of several, as other work may run beside.
    timed = [sys.executable, "-X", "importtime", "-c", "import autoembed"]
    found = []
    for _ in range(5):
        lines = subprocess.run(timed, capture_output=True, text=True, timeout=60, check=True, env=os.environ).stderr
        (own,) = [line for line in lines.splitlines() if line.endswith("| autoembed")]
        found.append(int(own.split("|")[1]))
    assert min(found) < 100_000


def test_every_name_is_there_and_no_other():
    assert all(getattr(ae, name) is not None for name in ae.__all__)
    assert set(ae.__all__) <= set(dir(ae))
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        ae.serach  # noqa: B018


@pytest.fixture
def clicks():
    rng = np.random.default_rng(0)
    site, item = rng.integers(0, 8, 3000), rng.integers(0, 60, 3000)
    rate = 1 / (1 + np.exp(-2 * np.sin(site) - 2 * np.cos(item)))
    columns = {"site": [f"s{one}" for one in site], "item": item, "noise": rng.integers(0, 300, 3000)}
    return pl.DataFrame(columns | {"label": (rng.random(3000) < rate).astype(int)})


def test_a_frame_a_file_and_a_space_are_ranked(clicks, tmp_path):
    clicks.write_parquet(tmp_path / "t.parquet")
    frame, file = ae.rank(clicks, pairs=2), ae.rank(tmp_path / "t.parquet", pairs=2)
    assert frame.table.equals(file.table)
    assert frame.pairs.equals(file.pairs)
    assert ae.rank(clicks.to_pandas()).table.equals(frame.table)
    assert ae.rank(clicks.head(2000)).fingerprint != frame.fingerprint
    space = ae.SearchSpace(data={"path": str(tmp_path / "t.parquet")}, stages=[{"method": "uniform"}])
    assert set(ae.rank(space, cache=tmp_path / "cache").table["feature"]) == {"site", "item", "noise"}
    with pytest.raises(ae.DataError, match="source must be a frame, a path, a SearchSpace or a DataSpec, but got int"):
        ae.rank(3)
    with pytest.raises(ae.DataError, match="drop names no column of the table: x"):
        ae.rank(clicks, settings={"drop": ["x"]})


def test_a_space_built_in_python_is_the_one_of_its_text(tmp_path):
    space = ae.SearchSpace(
        stages=[{"method": "dnis", "warm_epochs": ranges.integer(1, 3)}],
        backbone={"name": ranges.choice(["deepfm", "fm"])},
        train={"lr": ranges.log(1e-3, 1e-2), "l2": ranges.uniform(0.0, 1e-3), "epochs": ranges.log_integer(2, 8)},
        budget={"width": 2},
    )
    (tmp_path / "space.yaml").write_text(space.text())
    assert SearchSpace.read(tmp_path / "space.yaml") == space.checked()
    kinds = {place: leaf.kind for place, leaf in space.ranges("dnis").items()}
    assert kinds == {
        "stages.0.warm_epochs": "int", "backbone.name": "choice", "train.lr": "log", "train.l2": "uniform",
        "train.epochs": "log_int",
    }  # fmt: skip


def test_the_classifier_keeps_scikit_learns_conventions():
    # Batches are drawn by rows, whatever their weights: a row of weight 2 is in one batch, two equal rows are in two.
    drawn = {"check_sample_weight_equivalence_on_dense_data": "equal in expectation, as batches are drawn by rows"}
    # With three classes as well, which deepfm does not give; fast enough that the first epoch with an AUC of 1 is sure.
    several = {"backbone": {"name": "dcn", "hidden": [8]}, "train": SMALL["train"] | {"lr": 5e-2}}
    classifier = ae.AutoEmbedClassifier(**SMALL | several)
    found = check_estimator(classifier, expected_failed_checks=drawn, on_fail="raise", on_skip=None)
    assert {one["check_name"] for one in found if one["status"] == "skipped"} == {"check_array_api_input"}
    assert {one["check_name"] for one in found if one["status"] == "xfail"} == set(drawn)


def test_the_classifier_finds_what_there_is_within_its_budget(clicks, tmp_path):
    options = SMALL | {"train": {"epochs": 4, "lr": 1e-2, "batch_size": 256}, "random_state": 0}
    features, labels = clicks.drop("label"), clicks["label"].to_numpy()
    few = {"method": "uniform", "bits": 1}
    one = ae.AutoEmbedClassifier(budget={"embedding_bytes": 2500}, baselines=["uniform", few], **options)
    scores = one.fit(features, labels).predict_proba(features)[:, 1]
    assert set(one.results_) == {"sensitivity", "uniform-2"}
    assert one.failures_["uniform"].startswith("uniform needs a budget of one dim for every value")
    assert one.architecture_.cost.embedding_bytes <= 2500
    assert np.array_equal(one.export(tmp_path / "out").predict(features), scores)
    assert np.array_equal(ae.load_bundle(tmp_path / "out").predict(features.to_pandas()), scores)
    # The label may stand in the table; the same seed gives the same model.
    again = ae.AutoEmbedClassifier(budget={"embedding_bytes": 2500}, baselines=["uniform", few], **options).fit(clicks)
    assert np.array_equal(again.predict_proba(features)[:, 1], scores)
    plain = ae.AutoEmbedClassifier(**options)
    assert cross_val_score(plain, features.to_pandas(), labels, scoring="roc_auc", cv=2).min() > 0.75


def test_the_classifier_takes_weights_as_a_space_does(clicks, tmp_path):
    options = SMALL | {"train": {"epochs": 2, "lr": 1e-2, "batch_size": 256}, "random_state": 0}
    features, labels = clicks.drop("label"), clicks["label"].to_numpy()
    rng = np.random.default_rng(1)
    weights = rng.exponential(1.0, len(labels))
    named = clicks.with_columns(w=pl.Series(weights))
    one = ae.AutoEmbedClassifier(**options).fit(features, labels, sample_weight=weights)
    other = ae.AutoEmbedClassifier(data={"weight": "w"}, **options).fit(named)
    assert one.results_["uniform"].valid == other.results_["uniform"].valid
    scores = one.predict_proba(features)
    assert np.array_equal(scores, other.predict_proba(features))
    assert one.export(tmp_path / "out").schema.weight == "sample_weight"
    # Ones are no weights; the classes' weights are seen in predictions; score weighs as scikit-learn does.
    plain = ae.AutoEmbedClassifier(**options).fit(features, labels)
    ones = ae.AutoEmbedClassifier(**options).fit(features, labels, sample_weight=pl.Series([1] * len(labels)))
    assert np.allclose(plain.predict_proba(features), ones.predict_proba(features), atol=1e-6)
    clicked = ae.AutoEmbedClassifier(**options).fit(features, labels, sample_weight=np.where(labels == 1, 5.0, 1.0))
    assert clicked.predict_proba(features)[:, 1].mean() > scores[:, 1].mean() + 0.15
    right = one.predict(features) == labels
    assert one.score(features, labels, sample_weight=weights) == pytest.approx(np.average(right, weights=weights))


def test_rows_of_weight_zero_are_not_learnt(clicks):
    options = SMALL | {"train": {"epochs": 4, "lr": 1e-2, "batch_size": 256}, "random_state": 0}
    features, labels = clicks.drop("label"), clicks["label"].to_numpy()
    wrong = np.arange(len(labels)) % 3 > 0  # two of three labels are the other class, and do not count
    given = np.where(wrong, 1 - labels, labels)
    one = ae.AutoEmbedClassifier(**options).fit(features, given, sample_weight=np.where(wrong, 0, 1))
    assert one.score(features, labels) > 0.65
    assert ae.AutoEmbedClassifier(**options).fit(features, given).score(features, labels) < 0.4


@pytest.mark.parametrize(
    ("weights", "line"),
    [
        (np.ones(2999), r"a weight for each row, \(3000,\), but its shape is \(2999,\)"),
        (np.ones((3000, 1)), r"but its shape is \(3000, 1\)"),
        (np.full(3000, -1.0), "sample_weight must be 0 or more, but the least weight is -1"),
        (np.zeros(3000), "sample_weight must be above 0 in some rows"),
        (np.full(3000, np.nan), "sample_weight must be finite"),
        (np.full(3000, 1e39), "sample_weight must be finite"),
        (np.arange(3000) == 0, "rows .n_samples. whose sample_weight is above 0, but .* of n_samples=3000"),
    ],
)
def test_weights_that_mean_nothing_are_told(clicks, weights, line):
    with pytest.raises(ValueError, match=line):
        ae.AutoEmbedClassifier(**SMALL).fit(clicks, sample_weight=weights)


def test_weights_come_from_one_place(clicks):
    ones = np.ones(len(clicks))
    with pytest.raises(ValueError, match=r"from sample_weight or from data.weight \('item'\), but got both"):
        ae.AutoEmbedClassifier(data={"weight": "item"}, **SMALL).fit(clicks, sample_weight=ones)
    with pytest.raises(ValueError, match="X must have no column 'sample_weight'"):
        ae.AutoEmbedClassifier(**SMALL).fit(clicks.rename({"item": "sample_weight"}), sample_weight=ones)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"train": {"lr": ranges.log(1e-3, 1e-2)}}, "train.lr is a range, .* use autoembed.search"),
        ({"stages": [{"method": "magic"}]}, "unknown method 'magic'"),
        ({"budget": {"bits": 3}}, "budget.bits: unknown key: must be one of bytes, .* width"),
    ],
)
def test_a_wrong_parameter_is_named(clicks, options, line):
    with pytest.raises(ae.SpaceError, match=line):
        ae.AutoEmbedClassifier(**options).fit(clicks)
