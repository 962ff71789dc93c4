"""What a user can cause: each error is one clear line, and the command line exits with status 2."""

from __future__ import annotations

from pydantic import ValidationError


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


def first_line(error: BaseException) -> str:
    """The first rule broken, in one line, of a pydantic or JSON error; of any other the first line, or its kind."""
    if isinstance(error, ValidationError):
        detail = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in detail["loc"]) or "the file"
        return f"{place}: {detail['msg'].removeprefix('Value error, ')}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def unknown(kind: str, name: str, known: list[str]) -> str:
    """The line for a name that does not exist: says what does."""
    return f"unknown {kind} {name!r}: must be one of {', '.join(sorted(known))}"
