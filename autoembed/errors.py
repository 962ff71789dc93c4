"""What a user can cause: each error is one clear line, and the command line exits with status 2."""


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


def unknown(kind: str, name: str, known: list[str]) -> str:
    """The line for a name that does not exist: says what does."""
    return f"unknown {kind} {name!r}: must be one of {', '.join(sorted(known))}"
