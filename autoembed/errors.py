"""What a user can cause: each error is one clear line, and the command line exits with status 2."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel

_LONGEST = 2000
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


class ServingError(AutoembedError):
    """A server cannot start."""


_flags = False


def speak_of_flags() -> None:
    """Makes `option` name the command line's options; until then it names arguments."""
    global _flags
    _flags = True


def option(name: str, value: object = None) -> str:
    """An option as its user knows it: `--name`, `--name X` and `--resume` on the command line, and for a caller in
    Python `name`, `name='X'` and `resume=True`."""
    if _flags:
        return f"--{name.replace('_', '-')}" + ("" if value is None or value is True else f" {value}")
    return name if value is None else f"{name}={value!r}"


def first_line(error: BaseException, model: type[BaseModel] | None = None) -> str:
    """The first rule broken, in one line, of a pydantic or JSON error; of any other the first line, or its kind.

    With the `model` that was broken, an unknown key is told with those that there are.
    """
    pydantic = sys.modules.get("pydantic")  # to import it takes a tenth of the time of a short command
    if pydantic is not None and isinstance(error, pydantic.ValidationError):
        detail = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in detail["loc"]) or "the file"
        line = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            known = _fields(model, detail["loc"][:-1])
            line = f"unknown key: must be one of {', '.join(sorted(known))}" if known else "unknown key"
        return hinted(f"{place}: {line}", repr(detail.get("input")))
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def in_one_line(error: BaseException) -> str | None:
    """What to tell a user of an error of the system or of a library; None of one that is a fault of this package."""
    kind = type(error).__module__.partition(".")[0]
    if isinstance(error, OSError):
        reason = error.strerror or first_line(error)
        name = f": {error.filename}" if error.filename else ""
        hint = {
            errno.ENOSPC: " (free some space, then try again)",
            errno.EDQUOT: " (free some space, then try again)",
            errno.EACCES: " (choose another place, or change who may write there)",
            errno.EROFS: " (choose another place)",
            errno.EMFILE: " (raise the limit: ulimit -n)",
        }.get(error.errno or 0, "")
        return f"{reason}{name}{hint}"
    if isinstance(error, MemoryError):
        return "memory ran out: take fewer rows or columns, smaller batches, or a larger machine"
    if isinstance(error, RecursionError):
        return "a file is nested too deeply to be read"
    if kind in ("polars", "pyarrow", "safetensors", "sqlalchemy", "sqlite3", "mlflow", "ray", "optuna"):
        return f"{kind}: {first_line(error)}"
    return None


def printable(text: str) -> str:
    """Text for a terminal: signs that would steer it are escaped, and what is longer than a page is cut."""
    shown = "".join(sign if sign.isprintable() or sign == "\n" else ascii(sign)[1:-1] for sign in text[: _LONGEST + 1])
    return shown if len(text) <= _LONGEST else f"{shown[:_LONGEST]}..."


def hinted(line: str, given: str = "") -> str:
    """The line, and what to write where a power of ten is text in it, or in what was given."""
    hint = " (YAML reads 1e-3 as text: write 1.0e-3)"
    return line + hint if hint not in line and re.search(_POWER, f"{line} {given}") else line


def _fields(model: object, place: Sequence[int | str]) -> list[str]:
    """The keys of the model at a place within a model, none if there is no model."""
    for part in place:
        field = getattr(model, "model_fields", {}).get(part)
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        model = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
    return list(getattr(model, "model_fields", ()))


def unknown(kind: str, name: str, known: list[str]) -> str:
    """The line for a name that does not exist: says what does."""
    return f"unknown {kind} {name!r}: must be one of {', '.join(sorted(known))}"
