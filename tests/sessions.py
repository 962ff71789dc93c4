"""Made data of sessions whose own bias hides what ranks within them."""

import numpy as np
import polars as pl

from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec

PLAIN = {"name": "deepfm", "dropout": 0.0, "hidden": [16]}
SIZE, ITEMS = 8, 60
DATA = {"task": "ranking", "group": "session", "drop": ["session", "w"], "min_count": 1}


def table(rows, seed):
    """Sessions of eight rows. Eager ones are shown what pleases least, so that over all rows it is clicked most."""
    pleases = np.random.default_rng(99).normal(size=ITEMS)
    rng = np.random.default_rng(seed)
    session = np.repeat(np.arange(rows // SIZE), SIZE)
    eager = 3 * rng.normal(size=rows // SIZE)[session]
    place = np.argsort(np.argsort(-pleases)) / (ITEMS - 1)  # 1 of what pleases least
    offers = rng.integers(0, ITEMS, (len(session), 3))
    nearest = np.abs(place[offers] - 1 / (1 + np.exp(-eager))[:, None]).argmin(1)
    item = offers[np.arange(len(session)), nearest]
    chance = 1 / (1 + np.exp(1 - eager - pleases[item]))
    return pl.DataFrame(
        {
            "label": (rng.random(len(session)) < chance).astype(int),
            "session": [f"s{seed}.{value}" for value in session],
            "item": [f"i{value}" for value in item],
            "hour": [f"h{value}" for value in rng.integers(0, 24, len(session))],
            "w": rng.integers(1, 4, len(session)),
        }
    )


def dataset_of(folder, rows=(8000, 4000, 8000), change=lambda frame: frame, **spec):
    folder.mkdir(exist_ok=True)
    for seed, (split, size) in enumerate(zip(("train", "valid", "test"), rows, strict=True)):
        change(table(size, seed)).write_parquet(folder / f"{split}.parquet")
    return build_dataset(DataSpec.model_validate(DATA | spec), folder, folder / "cache")
