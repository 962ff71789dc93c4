"""What followed an impression, one of four actions: three columns say it, a fourth says nothing. Its truth is known."""

import numpy as np
import polars as pl

from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec

ACTIONS = ("buy", "cart", "leave", "like")
SIZES = {"user": 6, "item": 12, "place": 30}
SPLIT = {"by": "random", "valid": 0.2, "test": 0.2}
PLAIN = {"name": "dcn", "hidden": [16], "dropout": 0.0, "layers": 1}
TRAIN = {"epochs": 4, "batch_size": 256, "lr": 0.01}


def table(rows, seed):
    """Rows with `action`, the fields, and the chances of the actions, p0 to p3."""
    effects = np.random.default_rng(0)
    rng = np.random.default_rng(seed)
    columns = {name: rng.integers(0, size, rows) for name, size in SIZES.items()}
    logits = sum(effects.normal(size=(size, len(ACTIONS)))[columns[name]] for name, size in SIZES.items())
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    drawn = (chances.cumsum(1) < rng.random((rows, 1))).sum(1)
    columns |= {"noise": rng.integers(0, 40, rows), "action": np.array(ACTIONS)[drawn]}
    return pl.DataFrame(columns | {f"p{place}": chances[:, place] for place in range(len(ACTIONS))})


def dataset_of(folder, rows=8000, seed=0, change=lambda frame: frame, **data):
    """The table encoded, with further keys of `data:`."""
    folder.mkdir(parents=True, exist_ok=True)
    change(table(rows, seed).drop("p0", "p1", "p2", "p3")).write_parquet(folder / "log.parquet")
    spec = DataSpec.checked({"task": "multiclass", "label": "action", "split": SPLIT, "min_count": 1, **data})
    return build_dataset(spec, str(folder / "log.parquet"), folder / "cache")


def entropy_of(frame):
    """The cross-entropy of the true chances, which no model can expect to be below."""
    chances = frame.select("p0", "p1", "p2", "p3").to_numpy()
    return float(-np.log(chances[np.arange(len(chances)), places(frame)]).mean())


def places(frame):
    """The place of each row's action."""
    return np.searchsorted(ACTIONS, frame["action"].to_numpy().astype(str))
