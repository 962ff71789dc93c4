"""Which files a `data:` section means: a file, a directory of splits or fragments, or a resource of a package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from autoembed.data.spec import SPLITS, DataSpec, Format, Split
from autoembed.errors import DataError

_EXTENSIONS: dict[str, Format] = {
    ".csv": "csv",
    ".csv.gz": "csv",
    ".csv.zst": "csv",
    ".csv.zip": "csv",
    ".tsv": "csv",
    ".tsv.gz": "csv",
    ".tsv.zst": "csv",
    ".tsv.zip": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".libfm": "libfm",
    ".libsvm": "libfm",
    ".svm": "libfm",
}


def locate(spec: DataSpec, data: str | Path | None) -> dict[Split, list[Path]]:
    """The files of each given split, in reading order; a single table stands under `train` alone.

    Raises DataError if there is no such file, or if a directory does not say which file is which.
    """
    where = data if data is not None else spec.path
    if where is None:
        raise DataError("no data: name a file or a directory with --data, or set data.path or data.planted")
    path = _resource(str(where)) if str(where).startswith("package:") else Path(where).expanduser()
    if not path.exists():
        raise DataError(f"no such file or directory: {path} (give the place of the data with --data or data.path)")
    if path.is_file():
        if spec.files:
            raise DataError(f"data.files names files inside a directory, but {path} is a file: give the directory")
        return {"train": [path]}
    if spec.files:
        if "train" not in spec.files:
            raise DataError(f"data.files must name train, but names only {', '.join(spec.files)}")
        return {split: _table(path / name) for split, name in spec.files.items()}
    return _by_name(path)


def format_of(path: Path, spec: DataSpec) -> Format:
    """The format of a file: as the spec says, or by its extension; DataError if neither tells."""
    if spec.format != "auto":
        return spec.format
    extension = _extension(path)
    if extension is None:
        known = ", ".join(sorted(_EXTENSIONS))
        raise DataError(
            f"cannot tell the format of {path.name}: set data.format to csv, parquet, libfm, criteo or avazu "
            f"(known extensions: {known})"
        )
    return _EXTENSIONS[extension]


def separator_of(path: Path, spec: DataSpec) -> str:
    """A tab for .tsv files, the spec's separator for all others."""
    extension = _extension(path) or ""
    return "\t" if extension.startswith(".tsv") else spec.separator


def _extension(path: Path) -> str | None:
    name = path.name.lower()
    return next((end for end in sorted(_EXTENSIONS, key=len, reverse=True) if name.endswith(end)), None)


def _resource(where: str) -> Path:
    """The file behind `package:NAME/path`, found without importing the package."""
    name, _, inside = where.removeprefix("package:").partition("/")
    if not name.isidentifier() or not inside or ".." in inside.split("/"):
        raise DataError(f"a package resource must read package:NAME/path/in/it, but got {where!r}")
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise DataError(
            f"{where} needs the package {name}, which is not installed: pip install {name} "
            "(the demo data comes with pip install 'autoembed[demo]')"
        )
    return Path(next(iter(found.submodule_search_locations))) / inside


def _table(path: Path) -> list[Path]:
    """One file, or the Parquet fragments of a directory in the order of their names."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"no such file: {path}")
    fragments = sorted(p for p in path.rglob("*") if p.suffix in (".parquet", ".pq") and p.is_file())
    if not fragments:
        raise DataError(f"no Parquet files in {path}: a directory of fragments holds .parquet files")
    return fragments


def _by_name(directory: Path) -> dict[Split, list[Path]]:
    """train.*, valid.* and test.* of a directory; if there are none, its Parquet files are fragments of one table."""
    found: dict[Split, list[Path]] = {}
    for split in SPLITS:
        matches = sorted(
            p for p in directory.iterdir() if p.name == split or (p.name.startswith(f"{split}.") and p.is_file())
        )
        if len(matches) > 1:
            names = ", ".join(p.name for p in matches)
            raise DataError(f"{directory} has more than one {split} table ({names}): say which under data.files")
        if matches:
            found[split] = _table(matches[0])
    if not found:
        if not any(p.suffix in (".parquet", ".pq") for p in directory.rglob("*")):
            raise DataError(
                f"{directory} has no train.*, valid.*, test.* and no Parquet fragments: name its files under data.files"
            )
        return {"train": _table(directory)}
    if "train" not in found:
        raise DataError(f"{directory} has {', '.join(found)} but no train.*: name its files under data.files")
    return found
