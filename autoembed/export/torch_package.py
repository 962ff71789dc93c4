"""A `torch.export` archive: the model as a graph that torch runs without this package."""

from __future__ import annotations

from pathlib import Path

import torch

from autoembed.bundle import Bundle
from autoembed.export.lookups import write_lookups
from autoembed.export.program import program_of, quiet

REQUIREMENTS = (f"torch>={torch.__version__.partition('+')[0]}", "numpy")
LIMITS = "It takes ids: look values up by vocabulary.json, as the NumPy scorer of the format numpy does."


def write(bundle: Bundle, folder: Path) -> None:
    """Writes model.pt2 and vocabulary.json."""
    with quiet():
        torch.export.save(program_of(bundle), folder / "model.pt2")
    write_lookups(bundle.vocabulary, folder)
