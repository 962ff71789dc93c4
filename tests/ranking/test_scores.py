import math
from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import adjusted_mutual_info_score

from autoembed.errors import DataError
from autoembed.ranking.scores import (
    SCORES,
    ScoredColumn,
    label_entropy,
    measure,
    mutual_information,
    null_moments,
    require,
    score,
)


def table(k, n):
    """[K, 2] from the positives and rows of each value."""
    k, n = np.asarray(k), np.asarray(n)
    return np.stack([n - k, k], axis=1)


def column_of(codes, labels):
    size = (int(codes.max()) + 1, int(labels.max()) + 1)
    counts = np.bincount(codes * size[1] + labels, minlength=size[0] * size[1]).reshape(size)
    return ScoredColumn(table=counts, places=np.arange(size[0]), rows=lambda: (codes, labels))


def shuffled(n, positives, times, seed=0):
    """The mutual information of the same value counts with permuted labels, `times` times."""
    rng = np.random.default_rng(seed)
    column = np.repeat(np.arange(len(n)), n)
    found = []
    for _ in range(times):
        rng.shuffle(column)
        k = np.bincount(column[:positives], minlength=len(n))
        found.append(mutual_information(table(k, n)))
    return np.array(found)


def test_information_by_hand():
    k, n = np.array([3, 1]), np.array([4, 4])
    joint = np.array([[3, 1], [1, 3]]) / 8
    by_hand = sum(p * math.log(p / (joint.sum(1)[i] * joint.sum(0)[j])) for (i, j), p in np.ndenumerate(joint))
    assert mutual_information(table(k, n)) == pytest.approx(by_hand, abs=1e-12)
    assert label_entropy([4, 4]) == pytest.approx(math.log(2), abs=1e-12)


def test_moments_are_those_of_every_permutation():
    n, positives = np.array([3, 4, 1, 1]), 4
    column = np.repeat(np.arange(4), n)
    every = []
    for chosen in combinations(range(9), positives):
        k = np.bincount(column[list(chosen)], minlength=4)
        every.append(mutual_information(table(k, n)))
    expected, sd = null_moments(n, np.array([9 - positives, positives]))
    assert expected == pytest.approx(np.mean(every), abs=1e-12)
    assert sd == pytest.approx(np.std(every), rel=0.2)


def test_the_figures_of_the_methods():
    # 2,500 even values, 30 permutations: E 0.006307 against 0.006334 seen, sd 0.000178 against 0.000166 seen. Rows and
    # rate are not stated with these figures: 200,000 rows and a quarter give them.
    n = np.bincount(np.random.default_rng(0).integers(0, 2500, 200_000), minlength=2500)
    expected, sd = null_moments(n, np.array([200_000 - 50_000, 50_000]))
    assert expected == pytest.approx(0.006307, abs=4e-6)
    assert sd == pytest.approx(0.000178, abs=2e-6)


@pytest.mark.parametrize("zipf", [False, True])
@pytest.mark.parametrize(
    ("rows", "rate", "values"),
    [(2000, 0.5, 2), (2000, 0.1, 3), (20_000, 0.05, 50), (20_000, 0.03, 5000), (20_000, 0.5, 9000)],
)
def test_moments_are_those_of_permuted_labels(rows, rate, values, zipf):
    mass = 1 / np.arange(1, values + 1) if zipf else np.ones(values)
    n = np.random.default_rng(1).multinomial(rows, mass / mass.sum())
    found = shuffled(n, round(rows * rate), 200)
    expected, sd = null_moments(n, np.array([rows - round(rows * rate), round(rows * rate)]))
    assert abs(found.mean() - expected) < 4 * sd / math.sqrt(200)
    # 200 draws know a normal's sd to 5 %, and a chi-square's of one degree to 13 %.
    assert sd == pytest.approx(found.std(), rel=0.4 if values < 10 else 0.2)


@pytest.mark.parametrize("values", [2, 3, 5])
@pytest.mark.parametrize("each", [400, 4000])
def test_few_even_values_have_the_spread_of_a_chi_square(values, each):
    rows = values * each
    expected, sd = null_moments(np.full(values, each), np.array([rows - round(rows * 0.4), round(rows * 0.4)]))
    assert rows * expected == pytest.approx((values - 1) / 2, rel=0.01)
    assert rows * sd == pytest.approx(math.sqrt((values - 1) / 2), rel=0.01)


def test_moments_do_not_jump_where_the_closed_form_begins():
    below, above = (null_moments(np.full(200, n), np.array([200 * n - 60 * n, 60 * n])) for n in (512, 513))
    assert below[0] * 512 == pytest.approx(above[0] * 513, rel=2e-3)
    assert below[1] * 512 == pytest.approx(above[1] * 513, rel=2e-2)


@pytest.mark.parametrize("values", [2, 10, 100, 1000, 10_000, 50_000])
def test_permuted_labels_score_near_zero_up_to_50_000_values(values):
    rng = np.random.default_rng(values)
    for zipf in (False, True):
        mass = 1 / np.arange(1, values + 1) if zipf else np.ones(values)
        column = rng.choice(values, size=200_000, p=mass / mass.sum())
        n, k = np.bincount(column, minlength=values), np.bincount(column[:40_000], minlength=values)
        assert abs(score(table(k, n)).z) < 4
        assert abs(score(table(k, n)).normalized) < 0.005


def test_signal_is_found_where_raw_information_prefers_noise():
    rng = np.random.default_rng(0)
    label = rng.random(20_000) < 0.5
    noise, signal = rng.integers(0, 5000, 20_000), np.where(rng.random(20_000) < 0.6, label, ~label)
    of_noise, of_signal = (
        score(table(np.bincount(column[label], minlength=column.max() + 1), np.bincount(column)))
        for column in (noise, signal.astype(int))
    )
    assert of_noise.mi > of_signal.mi
    assert of_signal.score > 5 * abs(of_noise.score)
    assert of_signal.z > 50 > 4 > abs(of_noise.z)


def test_a_column_that_tells_the_label_is_normalized_to_one():
    found = score(table([30, 0], [30, 70]))
    assert found.normalized == pytest.approx(1.0)
    assert found.mi == pytest.approx(label_entropy([70, 30]))


@pytest.mark.parametrize("n", [[100], [1] * 100, [100, 0, 0]])
def test_constant_columns_and_row_numbers_score_zero(n):
    n = np.array(n)
    k = np.minimum(n, 1) if len(n) == 100 else np.where(n == 100, 30, 0)
    k[30:] = 0
    found = score(table(k, n))
    assert found.score == pytest.approx(0.0, abs=1e-12)
    assert found.z == found.normalized == 0.0


def test_values_without_rows_change_nothing():
    k, n = np.array([3, 0, 5, 1]), np.array([9, 0, 11, 8])
    assert score(table(k, n)).z == pytest.approx(score(table(k[[0, 2, 3]], n[[0, 2, 3]])).z)


def test_wrong_counts_are_refused():
    with pytest.raises(ValueError, match="numbers >= 0"):
        score(table([3], [2]))
    with pytest.raises(ValueError, match=r"two classes with rows, but they have \[9, 0\]"):
        score(table([0, 0], [4, 5]))


@pytest.mark.parametrize("zipf", [False, True])
@pytest.mark.parametrize(("values", "rates"), [(3, [0.5, 0.3, 0.2]), (200, [0.9, 0.05, 0.05]), (4000, [0.25] * 4)])
def test_moments_of_several_classes_are_those_of_permuted_labels(values, rates, zipf):
    rng = np.random.default_rng(2)
    rows = 20_000
    mass = 1 / np.arange(1, values + 1) if zipf else np.ones(values)
    codes = rng.choice(values, size=rows, p=mass / mass.sum())
    labels = np.repeat(np.arange(len(rates)), (np.array(rates) * rows).astype(int))
    n, totals = np.bincount(codes, minlength=values), np.bincount(labels)
    drawn = []
    for _ in range(200):
        counts = np.bincount(rng.permutation(codes) * len(rates) + labels, minlength=values * len(rates))
        drawn.append(mutual_information(counts.reshape(values, len(rates))))
    expected, sd = null_moments(n, totals)
    assert abs(np.mean(drawn) - expected) < 4 * sd / math.sqrt(200)
    assert sd == pytest.approx(np.std(drawn), rel=0.25 if values < 10 else 0.18)


def test_three_classes_of_which_one_is_empty_are_two():
    two = np.array([[30, 10], [20, 40]])
    three = np.insert(two, 1, 0, axis=1)
    assert score(three).z == pytest.approx(score(two).z)


def test_weights_that_are_whole_are_repeated_rows():
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 9, (40, 2))
    assert mutual_information(3.0 * counts) == pytest.approx(mutual_information(counts))
    assert mutual_information(counts.astype(float)) == pytest.approx(mutual_information(np.repeat(counts, 1, axis=0)))


def test_ami_is_that_of_scikit_learn():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, 2000)
    codes = np.where(rng.random(2000) < 0.1, labels, rng.integers(0, 60, 2000))
    column = column_of(codes, labels)
    (ours,) = measure("ami", [column], [score(column.table)])
    assert ours == pytest.approx(adjusted_mutual_info_score(labels, codes), abs=1e-9)


def test_the_named_scores():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, 5000)
    signal, noise = np.where(rng.random(5000) < 0.3, labels * 4, rng.integers(0, 5, 5000)), rng.integers(0, 5, 5000)
    of = {
        name: [SCORES[name](c, score(c.table)) for c in (column_of(signal, labels), column_of(noise, labels))]
        for name in set(SCORES) - {"lightgbm"}  # an extra, tested where it is installed
    }
    for name in ("adjusted_mi", "mi", "ami", "rotation", "pearson", "permutation"):
        assert of[name][0] > 10 * abs(of[name][1]) or name == "permutation"
    assert of["pearson"][0] == pytest.approx(abs(np.corrcoef(signal, labels)[0, 1]))
    assert of["coverage"][1] == np.bincount(noise).max() / 5000
    assert of["permutation"][0] > 50 > 4 > abs(of["permutation"][1])
    assert of["mi"][0] == pytest.approx(mutual_information(column_of(signal, labels).table))


def test_an_unknown_score_says_which_there_are():
    with pytest.raises(DataError, match="unknown score 'gini': must be one of adjusted_mi, mi, ami"):
        require("gini")
