"""Ranges for a search space that is built in Python: what the driver may choose from, for any leaf below `train` etc.

`train={"lr": ranges.log(1e-4, 1e-2), "batch_size": ranges.choice([1024, 4096])}`
"""

from __future__ import annotations

from collections.abc import Sequence

Range = dict[str, list[object]]


def choice(options: Sequence[object]) -> Range:
    """One of these values, or of these stages."""
    return {"choice": list(options)}


def uniform(low: float, high: float) -> Range:
    """A number between both, each as likely."""
    return {"uniform": [low, high]}


def log(low: float, high: float) -> Range:
    """A number between both, its logarithm uniform."""
    return {"log": [low, high]}


def integer(low: int, high: int) -> Range:
    """A whole number from `low` to `high`, both included."""
    return {"int": [low, high]}


def log_integer(low: int, high: int) -> Range:
    """A whole number from `low` to `high`, its logarithm uniform."""
    return {"log_int": [low, high]}
