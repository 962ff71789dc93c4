"""The task: what it knows of its metrics, and that nobody else names them."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ValidationError

import autoembed
from autoembed.errors import SpaceError
from autoembed.metrics import Metrics
from autoembed.task import CLICKS, Monitor, TaskMetrics, columns, metric_in, metric_of, task_of, titled, told, under

PACKAGE = Path(autoembed.__file__).parent
# Who may name a metric of clicks: the task, and what is of binary labels whatever the task is.
MAY_NAME = {
    "metrics.py": "their formulas",
    "clicks.py": "the task itself",
    "multiclass.py": "macro AUC, the mean over classes",
    "data/readers.py": "the best AUC that planted data allow",
    "export/fuxictr_config.py": "FuxiCTR's own names",
    "study/results/leaderboard.py": "names in leaderboard.json",
    "study/show/report.py": "the same",
}


def texts(path):
    """Strings of a file but docstrings, and the names of its attributes and arguments."""
    tree = ast.parse(path.read_text())
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.value
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, (ast.arg, ast.keyword)):
            yield node.arg or ""


def test_nobody_but_the_task_names_its_metrics():
    named = set()
    for path in PACKAGE.rglob("*.py"):
        if any("auc" in text.lower().replace("cauc", "") or "logloss" in text.lower() for text in texts(path)):
            named.add(str(path.relative_to(PACKAGE)))
    assert named == set(MAY_NAME)


def test_metrics_are_a_mapping_whose_values_are_attributes_too():
    found = Metrics(auc=0.7, logloss=0.4)
    assert (found["auc"], found.logloss, found.names) == (0.7, 0.4, ("auc", "logloss"))
    assert found.model_dump_json() == '{"auc":0.7,"logloss":0.4}'
    assert Metrics.model_validate_json('{"auc":0.7,"logloss":0.4}') == found
    with pytest.raises(AttributeError, match="no metric 'rmse'"):
        _ = found.rmse
    with pytest.raises(ValidationError):
        found.root = {}


def test_a_metric_knows_which_way_is_better():
    auc, logloss = CLICKS.metrics
    good, bad = Metrics(auc=0.8, logloss=0.3), Metrics(auc=0.7, logloss=0.5)
    assert auc.figure(good) > auc.figure(bad)
    assert logloss.figure(good) > logloss.figure(bad)
    assert (auc.best([0.7, 0.8]), logloss.best([0.5, 0.3]), auc.best([])) == (0.8, 0.3, None)
    assert (auc.mode, logloss.mode) == ("max", "min")


def test_names_titles_and_columns():
    assert [titled(name) for name in ("valid_auc", "test_logloss", "best_epoch")] == [
        "valid AUC",
        "test logloss",
        "best epoch",
    ]
    assert list(columns(CLICKS, "valid", "test")) == ["valid_auc", "valid_logloss", "test_auc", "test_logloss"]
    assert under("test", Metrics(auc=0.7, logloss=0.4)) == {"test_auc": 0.7, "test_logloss": 0.4}
    assert under("test", None) == {}
    assert told(Metrics(auc=0.7, logloss=0.4), "test") == "test AUC 0.7000, test logloss 0.4000"
    assert told(Metrics(auc=0.7, logloss=0.4)) == "AUC 0.7000, logloss 0.4000"
    assert metric_of("valid_logloss") is CLICKS.metrics[1]
    assert task_of("test_auc") is CLICKS
    assert metric_in(CLICKS, None) is CLICKS.metrics[0]
    for look_up in (metric_of, task_of, lambda name: metric_in(CLICKS, name)):
        with pytest.raises(SpaceError, match=r"unknown metric 'valid_map'.*valid_auc"):
            look_up("valid_map")


def test_stored_metrics_must_be_those_of_a_task():
    class Stored(BaseModel):
        monitor: Monitor
        valid: TaskMetrics

    Stored.model_validate({"monitor": "valid_auc", "valid": {"auc": 0.7, "logloss": 0.4}})
    for monitor, valid in (
        ("valid_map", {"auc": 0.7, "logloss": 0.4}),
        ("valid_auc", {"auc": 0.7}),
        ("valid_auc", {"auc": 0.7, "logloss": 0.4, "rmse": 1.0}),
        ("valid_auc", {"auc": "much", "logloss": 0.4}),
    ):
        with pytest.raises(ValidationError):
            Stored.model_validate({"monitor": monitor, "valid": valid})


def test_losses_are_one_function_in_torch_and_in_numpy():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=50), rng.integers(0, 2, 50).astype(float)
    mean = CLICKS.loss(torch.tensor(logits), torch.tensor(labels)).item()
    assert CLICKS.losses(labels, logits).mean() == pytest.approx(mean, rel=1e-12)
    changes = rng.normal(size=(50, 3)).astype(np.float32)
    small, answers = logits[:, None].astype(np.float32), labels[:, None].astype(np.float32)
    slow = np.stack([CLICKS.losses(labels, logits + own) - CLICKS.losses(labels, logits) for own in changes.T], axis=1)
    assert np.allclose(CLICKS.rises(answers, small, changes), slow, atol=1e-6)
    teacher = torch.tensor(rng.normal(size=50))
    assert CLICKS.distil(teacher, teacher) <= CLICKS.distil(torch.tensor(logits), teacher)


def test_hopeless_is_what_chance_explains():
    labels = np.tile([0.0, 1.0], 500)
    error = CLICKS.error(0.5, labels)
    assert error == pytest.approx(0.018, abs=0.001)
    assert CLICKS.hopeless(0.5 + error, labels) == pytest.approx(0.52)
    assert CLICKS.hopeless(0.53, labels) is None
