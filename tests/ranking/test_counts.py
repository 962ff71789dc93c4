import numpy as np

from autoembed.ranking import counts as module
from autoembed.ranking.counts import count_labels


def test_counts_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    ids = np.stack([rng.integers(0, size, 500) for size in (3, 40)], axis=1).astype(np.int32)
    labels = rng.integers(0, 2, 500).astype(np.float32)
    counts = count_labels(ids, labels, (4, 40))
    for field, size in enumerate((4, 40)):
        assert counts.rows[field].tolist() == [(ids[:, field] == value).sum() for value in range(size)]
        assert counts.positives[field].tolist() == [
            ((ids[:, field] == value) & (labels == 1)).sum() for value in range(size)
        ]
        assert counts.rows[field].dtype == np.int64


def test_chunks_and_parts_add_up_in_any_order(monkeypatch):
    rng = np.random.default_rng(1)
    ids, labels = rng.integers(0, 7, (1000, 3)).astype(np.int32), rng.integers(0, 2, 1000).astype(np.float32)
    whole = count_labels(ids, labels, (7, 7, 7))
    monkeypatch.setattr(module, "_CHUNK_BYTES", 12 * 17)
    order = rng.permutation(1000)
    parts = [count_labels(ids[part], labels[part], (7, 7, 7)) for part in (order[:300], order[300:])]
    for added in (parts[0] + parts[1], parts[1] + parts[0]):
        assert [c.tolist() for c in added.rows] == [c.tolist() for c in whole.rows]
        assert [c.tolist() for c in added.positives] == [c.tolist() for c in whole.positives]
