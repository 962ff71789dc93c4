"""Made data of two labels: clicks, and purchases that follow the same truth."""

import numpy as np
import polars as pl

from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec

PLAIN = {"name": "deepfm", "dropout": 0.0, "batch_norm": False, "hidden": [16]}
VALUES = 150


def logits(ids):
    """What users and items like: effects of each, and of their vectors together, float [N] of about sd 2."""
    rng = np.random.default_rng(99)
    effects = rng.normal(size=(2, VALUES))
    users, items = rng.normal(size=(2, VALUES, 2))
    together = (users[ids[:, 0]] * items[ids[:, 1]]).sum(1)
    return effects[0, ids[:, 0]] + effects[1, ids[:, 1]] + together


def table(rows, seed, *, rare=0.03, noise=False):
    """Clicks that are frequent and purchases that are rare, by one truth of users and items; with weights and gaps."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, VALUES, (rows, 2))
    chance = 1 / (1 + np.exp(-logits(ids)))
    click = rng.random(rows) < (0.4 if noise else chance)
    bought = rng.random(rows) < 2 * rare * chance
    return pl.DataFrame(
        {
            "bought": bought.astype(int),
            "click": click.astype(int),
            "user": [f"u{value}" for value in ids[:, 0]],
            "item": [f"i{value}" for value in ids[:, 1]],
            "w": rng.integers(0, 3, rows),
            "known": rng.integers(0, 3, rows),
        }
    )


def dataset_of(folder, rows=(3000, 1500, 1500), change=lambda frame: frame, noise=False, **spec):
    folder.mkdir(exist_ok=True)
    for seed, (split, size) in enumerate(zip(("train", "valid", "test"), rows, strict=True)):
        change(table(size, seed, noise=noise)).write_parquet(folder / f"{split}.parquet")
    own = {"label": "bought", "drop": ["w", "known"], "categorical": ["user", "item"], "min_count": 1}
    return build_dataset(DataSpec.model_validate(own | spec), folder, folder / "cache")


def gaps(frame):
    """Whether a row's click is known, in two of three rows."""
    return frame.with_columns(click=pl.when(pl.col("known") > 0).then("click"))
