"""Several formats of one bundle by one command, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from autoembed.bundle import Bundle, copy_bundle
from autoembed.errors import BundleError, option
from autoembed.export.formats import FORMATS, Export, export_bundle, require_empty
from autoembed.writing import scratch


@dataclass(frozen=True, kw_only=True)
class Exports:
    """The formats that were written, and why each of the others was not."""

    made: tuple[Export, ...]
    skipped: dict[str, str]


def formats_of(text: str) -> tuple[str, ...] | None:
    """The formats in `onnx,torch`, each once; None for `all`. BundleError names one that does not exist."""
    if text == "all":
        return None
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in ("bundle", *FORMATS):
            raise BundleError(
                f"{option('format')} must be bundle, onnx, torch, aoti, numpy, tables, fuxictr or torchrec, several of "
                f"them with commas, or all, but got {name!r}"
            )
    return names


def export_several(
    bundle: Bundle,
    out: str | Path,
    formats: Sequence[str] | None,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> Exports:
    """Writes a bundle in several formats, each into `out/FORMAT`; `out` must be new or empty.

    Args:
        bundle: a loaded bundle.
        out: the folder, which is there at the end with all that was written, or not at all.
        formats: names as in FORMATS, or `bundle` for a copy. None: all of them, and those that cannot say what the
            model does, or whose package is missing, are skipped.
        progress: told the phase, and how many of how many formats are done.

    Raises:
        BundleError: the folder is not empty, or a format that is named cannot be written.
    """
    path, names = Path(out), ("bundle", *FORMATS) if formats is None else tuple(formats)
    require_empty(path)
    made: list[Export] = []
    skipped: dict[str, str] = {}
    with scratch(path.parent) as temporary:
        folder = temporary / "made"
        folder.mkdir(mode=0o755)
        for number, name in enumerate(names):
            progress("export", number, len(names))
            try:
                written = _written(bundle, folder / name, name)
            except BundleError as error:
                if formats is not None:
                    raise
                skipped[name] = str(error)
            else:
                made.append(replace(written, path=path / name))
        progress("export", len(names), len(names))
        if path.exists():
            path.rmdir()
        folder.rename(path)
    return Exports(made=tuple(made), skipped=skipped)


def _written(bundle: Bundle, folder: Path, name: str) -> Export:
    if name != "bundle":
        return export_bundle(bundle, folder, name)
    copy_bundle(bundle.path, folder)
    return Export(path=folder, format=name, bytes=sum(file.stat().st_size for file in folder.iterdir()))
