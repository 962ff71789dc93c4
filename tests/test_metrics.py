import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from autoembed.errors import DataError
from autoembed.metrics import calibration_error, evaluate, group_auc


def test_auc_equals_the_pair_count_ties_included():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 400).astype(np.float32), rng.integers(0, 20, 400) / 20
    ones, zeros = scores[labels == 1], scores[labels == 0]
    pairs = (ones[:, None] > zeros).mean() + 0.5 * (ones[:, None] == zeros).mean()
    assert evaluate(labels, scores).auc == pytest.approx(pairs, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_both_are_scikit_learns_to_the_last_digit(dtype):
    rng = np.random.default_rng(0)
    for rows in (2, 3, 5, 40, 1000, 30_000):
        for steps in (3, 20, 10**6):
            scores = (rng.integers(0, steps + 1, rows) / steps).astype(dtype)
            labels = (rng.random(rows) < 0.2 + 0.5 * scores).astype(np.float32)
            labels[:2] = 0, 1
            found = evaluate(labels, scores)
            assert found.auc == roc_auc_score(labels, scores)
            assert found.logloss == log_loss(labels, scores, labels=[0, 1])


def test_what_is_no_number_is_refused():
    with pytest.raises(DataError, match="finite"):
        evaluate(np.array([0.0, 1.0]), np.array([0.5, np.nan]))


def test_calibration_error_of_perfect_and_shifted_predictions():
    rng = np.random.default_rng(0)
    p = rng.random(200_000) * 0.5
    labels = (rng.random(200_000) < p).astype(np.float32)
    assert calibration_error(labels, p) < 0.005
    assert calibration_error(labels, p + 0.1) == pytest.approx(0.1, abs=0.005)


def test_group_auc_is_the_weighted_mean_of_groups_with_both_classes():
    rng = np.random.default_rng(1)
    groups, labels = rng.integers(0, 30, 500), rng.integers(0, 2, 500).astype(np.float32)
    labels[groups == 3] = 1
    scores = rng.integers(0, 9, 500) / 9
    expected, weights = [], []
    for group in range(30):
        own = groups == group
        if 0 < labels[own].sum() < own.sum():
            expected.append(roc_auc_score(labels[own], scores[own]))
            weights.append(own.sum())
    found, number = group_auc(labels, scores, groups)
    assert found == pytest.approx(np.average(expected, weights=weights), abs=1e-12)
    assert number == len(expected) <= 29
    with pytest.raises(DataError, match="none of 2 has both"):
        group_auc(np.array([1.0, 0.0]), np.array([0.2, 0.3]), np.array([1, 2]))
