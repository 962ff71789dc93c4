import numpy as np
import pytest

from autoembed.shuffle import Shuffle, Stretch


def whole(rows):
    return rows[np.arange(len(rows))]


@pytest.mark.parametrize("total", [*range(1, 70), 255, 256, 257, 1000, 4097, 65536, 100_003])
def test_every_number_stands_once(total):
    for seed in (0, [5, 1]):
        assert np.array_equal(np.sort(whole(Shuffle(total, seed))), np.arange(total))


def test_a_billion_rows_are_read_anywhere_in_little_memory():
    order = Shuffle(10**9, 1)
    places = np.random.default_rng(0).integers(0, 10**9, 100_000)
    rows = order[places]
    assert len(np.unique(rows)) == len(np.unique(places))
    assert 0 <= rows.min() < rows.max() < 10**9
    assert sum(table.nbytes for table in order.tables) < 2 * 2**20


def test_the_order_depends_on_the_seed_alone():
    first, again, other = (whole(Shuffle(1000, seed)) for seed in ([3, 1], [3, 1], [3, 2]))
    assert np.array_equal(first, again)
    assert (first == other).sum() < 10
    assert np.array_equal(Shuffle(1000, 7)[np.array([999, 0, 5])], whole(Shuffle(1000, 7))[[999, 0, 5]])


def test_it_looks_uniform():
    """Counts of fixed points, of neighbours that stay neighbours, and of which tenth goes where, over 300 orders."""
    total, seeds = 1000, 300
    orders = np.stack([whole(Shuffle(total, [9, seed])) for seed in range(seeds)])
    # In a random order both counts are near Poisson with mean 1: their mean over seeds has an sd of .058.
    assert abs((orders == np.arange(total)).sum(1).mean() - 1) < 0.25
    assert abs((np.abs(np.diff(orders, axis=1)) == 1).sum(1).mean() - 2) < 0.35
    table = np.zeros((10, 10))
    np.add.at(table, (np.arange(total)[None, :].repeat(seeds, 0) // 100, orders // 100), 1)
    # A cell of one order is hypergeometric, mean 10 and variance 8.1; fixed margins leave 81 of 100 degrees of freedom.
    chi2 = 0.81 * ((table - 10 * seeds) ** 2 / (seeds * 100 * 0.1 * 0.9 * 900 / 999)).sum()
    assert abs(chi2 - 81) < 4 * np.sqrt(2 * 81)
    correlation = [np.corrcoef(order[:-1], order[1:])[0, 1] for order in orders]
    assert abs(np.mean(correlation)) < 4 / np.sqrt(total * seeds)


def test_parts_of_one_order_share_no_row():
    order = Shuffle(1003, 4)
    held, rest = Stretch(order, 0, 200), Stretch(order, 200, 1003)
    assert np.array_equal(np.sort(np.concatenate([whole(held), whole(rest)])), np.arange(1003))
    again = whole(Shuffle(held, 1))
    assert not np.array_equal(again, whole(held))
    assert set(again) == set(whole(held))
