"""A `torch.export` archive: the model as a graph that torch runs without this package."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import torch

from autoembed.bundle import Bundle
from autoembed.export.numpy_scorer import vocabulary_of
from autoembed.export.program import program_of

REQUIREMENTS = (f"torch>={torch.__version__.partition('+')[0]}", "numpy")
LIMITS = "It takes ids: look values up by vocabulary.json, as the NumPy scorer of the format numpy does."


def write(bundle: Bundle, folder: Path) -> None:
    """Writes model.pt2 and vocabulary.json."""
    quiet = logging.getLogger("torch")
    level = quiet.level
    try:
        quiet.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of its own code
            torch.export.save(program_of(bundle), folder / "model.pt2")
    finally:
        quiet.setLevel(level)
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary_of(bundle.vocabulary), allow_nan=False) + "\n")
