"""What a user can cause: each error is one clear line, and the command line exits with status 2."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

_POWER = r"'[-+]?\d+e[-+]?\d+'"


class AutoembedError(Exception):
    """Base of every error that a user can cause and mend."""


class DataError(AutoembedError):
    """The table, its label or its columns break a rule."""


class SpaceError(AutoembedError):
    """A search-space file breaks a rule, or names something that does not exist."""


class BundleError(AutoembedError):
    """A run folder or a bundle is missing, incomplete or corrupt."""


class TrialError(AutoembedError):
    """A trial cannot go on: the loss is not finite, or memory ran out."""


class StudyError(AutoembedError):
    """A study cannot start, go on or be found."""


def first_line(error: BaseException, model: type[BaseModel] | None = None) -> str:
    """The first rule broken, in one line, of a pydantic or JSON error; of any other the first line, or its kind.

    With the `model` that was broken, an unknown key is told with those that there are.
    """
    if isinstance(error, ValidationError):
        detail = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in detail["loc"]) or "the file"
        line = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            known = _fields(model, detail["loc"][:-1])
            line = f"unknown key: must be one of {', '.join(sorted(known))}" if known else "unknown key"
        return hinted(f"{place}: {line}", repr(detail.get("input")))
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def hinted(line: str, given: str = "") -> str:
    """The line, and what to write where a power of ten is text in it, or in what was given."""
    hint = " (YAML reads 1e-3 as text: write 1.0e-3)"
    return line + hint if hint not in line and re.search(_POWER, f"{line} {given}") else line


def _fields(model: Any, place: Sequence[int | str]) -> list[str]:
    """The keys of the model at a place within a model, none if there is no model."""
    for part in place:
        field = getattr(model, "model_fields", {}).get(part)
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        model = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
    return list(getattr(model, "model_fields", ()))


def unknown(kind: str, name: str, known: list[str]) -> str:
    """The line for a name that does not exist: says what does."""
    return f"unknown {kind} {name!r}: must be one of {', '.join(sorted(known))}"
