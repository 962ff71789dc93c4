import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoembed.errors import DataError
from autoembed.ranking import column_kernels
from autoembed.ranking import counts as module
from autoembed.ranking.counts import check_classes, count_columns, count_pair
from autoembed.ranking.scores import mutual_information, score

SIZES = (3, 40, 30_000)


def drawn(rows=2000, classes=2, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, size, rows).astype(np.int32) for size in SIZES], rng.integers(0, classes, rows).astype(
        np.uint8
    )


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("compiled", [False, True])
def test_counts_are_those_of_a_loop(classes, compiled, monkeypatch):
    if compiled:
        monkeypatch.setattr(module, "_SMALL", 0)
    columns, labels = drawn(70_001, classes)  # in parts, in one table, or in that of 64 bits
    counts = count_columns(columns, labels, SIZES, classes, threads=2)
    for codes, table in zip(columns, counts.tables, strict=True):
        expected = np.zeros(table.shape, np.int64)
        np.add.at(expected, (codes, labels), 1)
        assert table.dtype == np.int64
        assert (table == expected).all()


@pytest.mark.parametrize(
    ("sizes", "most", "expected"),
    [
        ((2, 2), 1024, [(0, 1)]),  # rows two by two as well
        ((40, 9, 500, 3, 2), 1024, [(2, 4), (0, 1), (3, None)]),
        ((600, 1), 1024, [(0, 1)]),
        ((40, 30), 1000, [(0, None), (1, None)]),
        ((40, 30), 0, [(0, None), (1, None)]),
    ],
)
def test_columns_of_few_values_are_counted_in_couples(sizes, most, expected, monkeypatch):
    assert module._couples(sizes, most) == expected
    monkeypatch.setattr(module, "_SMALL", 0)
    rng = np.random.default_rng(1)
    columns = [rng.integers(0, size, 5003).astype(np.int32) for size in sizes]
    labels = rng.integers(0, 2, 5003).astype(np.uint8)
    for codes, table in zip(columns, count_columns(columns, labels, sizes).tables, strict=True):
        assert (table == np.bincount(codes * 2 + labels, minlength=table.size).reshape(table.shape)).all()


def test_the_parts_of_a_large_table_are_counted_by_the_kernels(monkeypatch):
    columns, labels = drawn()
    used = []
    monkeypatch.setattr(column_kernels, "count_column", lambda *arguments: used.append(arguments))
    count_columns(columns, labels, SIZES)
    assert not used
    count_columns(columns, labels, SIZES, rows=module._SMALL)
    assert used


@given(st.integers(1, 60), st.integers(2, 4), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_parts_add_up_in_any_order_and_values_may_be_renamed(rows, parts, random):
    rng = np.random.default_rng(random.randrange(1 << 30))
    codes, labels = rng.integers(0, 7, rows).astype(np.int32), rng.integers(0, 3, rows).astype(np.uint8)
    whole = count_columns([codes], labels, (7,), 3)
    order = rng.permutation(rows)
    added = None
    for part in np.array_split(order, parts):
        size = int(codes[part].max(initial=0)) + 1  # a part does not know the values of the others
        found = count_columns([codes[part]], labels[part], (size,), 3)
        added = found if added is None else found + added
    table = added.tables[0]
    assert (table == whole.tables[0][: len(table)]).all()
    assert whole.tables[0][len(table) :].sum() == 0
    if len(np.unique(labels)) > 1:
        renamed = count_columns([rng.permutation(7).astype(np.int32)[codes]], labels, (7,), 3)
        assert score(renamed.tables[0]).score == pytest.approx(score(whole.tables[0]).score, abs=1e-12)


@given(st.integers(1, 60), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_pair_counts_add_up_to_those_of_a_dictionary(rows, random):
    rng = np.random.default_rng(random.randrange(1 << 30))
    a, b = rng.integers(0, 5, rows).astype(np.int32), rng.integers(0, 9, rows).astype(np.int32)
    labels, half = rng.integers(0, 2, rows).astype(np.uint8), rng.random(rows) < 0.5
    found = count_pair(a[half], b[half], labels[half]) + count_pair(a[~half], b[~half], labels[~half])
    expected = {}
    for row in zip(a.tolist(), b.tolist(), labels.tolist(), strict=True):
        expected.setdefault(row[:2], [0, 0])[row[2]] += 1
    keys = list(zip(found.a.tolist(), found.b.tolist(), strict=True))
    assert keys == sorted(expected)
    assert found.table.tolist() == [expected[key] for key in keys]


@pytest.mark.parametrize("compiled", [False, True])
def test_whole_weights_are_repeated_rows(compiled, monkeypatch):
    if compiled:
        monkeypatch.setattr(module, "_SMALL", 0)
    columns, labels = drawn(rows=500)
    weights = np.random.default_rng(1).integers(1, 4, 500)
    weighted = count_columns(columns, labels, SIZES, weights=weights.astype(float))
    repeated = count_columns([np.repeat(c, weights) for c in columns], np.repeat(labels, weights), SIZES)
    for one, other in zip(weighted.tables, repeated.tables, strict=True):
        assert (one == other).all()
        assert mutual_information(one) == pytest.approx(mutual_information(other))


def test_a_label_of_one_class_or_one_row_is_refused():
    with pytest.raises(DataError, match="at least 2 rows with a label, but has 1"):
        check_classes(np.array([0, 1]), "y")
    with pytest.raises(DataError, match="label 'y' must have two classes or more, but all 5 rows are of one"):
        check_classes(np.array([0, 5]), "y")
