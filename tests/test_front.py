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
    found = check_estimator(ae.AutoEmbedClassifier(**SMALL), on_fail="raise", on_skip=None)
    assert {one["check_name"] for one in found if one["status"] == "skipped"} == {"check_array_api_input"}


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
