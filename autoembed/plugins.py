"""Methods, backbones and trackers by name: files of the package, or modules of somebody else's by a dotted name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

from autoembed.errors import SpaceError, unknown

_IMPORTS = ContextVar("imports", default=True)


@contextmanager
def without_imports() -> Iterator[None]:
    """Within it no module is imported because a file names it: a run folder may be a stranger's."""
    before = _IMPORTS.set(False)
    try:
        yield
    finally:
        _IMPORTS.reset(before)


def load(kind: str, name: str, home: str, known: Sequence[str], needed: Sequence[str]) -> ModuleType | None:
    """The module of a method, a backbone or a tracker.

    Args:
        kind: "method", "backbone" or "tracker", for errors.
        name: a file's name, or a dotted module name.
        home: the package that has the files.
        known: the names of its files.
        needed: the classes that the module must define.

    Returns:
        None of a dotted name that has not been imported yet, within `without_imports`.

    Raises:
        SpaceError: there is no such name, or the module cannot be imported or lacks a class.
    """
    if "." not in name:
        if name not in known:
            raise SpaceError(unknown(kind, name, list(known)))
        return importlib.import_module(f"{home}.{name}")
    if not _IMPORTS.get() and name not in sys.modules:
        return None
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise SpaceError(f"cannot load the {kind} {name!r}: {error}") from None
    if not all(isinstance(getattr(module, one, None), type) for one in needed):
        raise SpaceError(f"the {kind} module {name!r} must define {' and '.join(needed)}")
    return module
