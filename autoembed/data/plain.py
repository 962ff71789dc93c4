"""Text files as Polars reads them: unpacked, and in UTF-8."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from autoembed.errors import DataError

_MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".bz2": b"BZh", ".xz": b"\xfd7zXZ", ".zip": b"PK"}
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BLOCK = 1 << 20
# Text packs to a hundredth at best; what grows further and is large is made to fill a disk.
_RATIO, _LARGE = 1000, 1 << 30


def plain_text(path: Path, encoding: str, stage: Path, tell: Callable[[str], None]) -> Path:
    """A file that Polars reads as UTF-8: `path` itself, or a copy in `stage`.

    DataError if the file is not what its name says, if it grows beyond measure, if its encoding is unknown, or if that
    does not fit its text.
    """
    end = path.suffix.lower()
    magic = _MAGIC.get(end)
    with path.open("rb") as file:
        head = file.read(8)
    if magic is not None and not head.startswith(magic):
        raise DataError(f"cannot read {path}: it is not a {end} file")
    try:
        if magic is None and head.startswith(_UTF16) and encoding == "utf-8":
            encoding = "utf-16"
            tell(f"{path.name} is read as UTF-16")
        if codecs.lookup(encoding).name == "utf-8" and magic is None:
            return path
    except LookupError:
        raise DataError(f"data.encoding must be one that Python knows, such as latin-1, but got {encoding!r}") from None
    out = stage / f"{len(list(stage.iterdir()))}.{_inner(path)}"
    try:
        with _opened(path, end) as source, out.open("wb") as target:
            _copy(path, source, target, encoding)
    except (OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk, not the file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"cannot read {path}: {reason}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}: it is not {encoding} text ({error.reason})") from None
    return out


def _inner(path: Path) -> str:
    """The name without what says that it is packed."""
    return path.name[: -len(path.suffix)] if path.suffix.lower() in _MAGIC else path.name


@contextmanager
def _opened(path: Path, end: str) -> Iterator[IO[bytes]]:
    """The unpacked bytes of a file; of a zip those of the one file inside."""
    if end == ".zip":
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX")]
            if len(members) != 1:
                raise DataError(f"{path} must hold exactly one file, but holds {len(members)}")
            with archive.open(members[0]) as inside:
                yield inside
        return
    # Any: the kinds of files have no type in common that says they can be read.
    opens: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zst}
    with opens[end](path) if end in opens else path.open("rb") as plain:
        yield plain


def _zst(path: Path) -> Any:
    from pyarrow import CompressedInputStream  # half a second, which only such a file needs

    return CompressedInputStream(str(path), "zstd")


def _copy(path: Path, source: IO[bytes], target: IO[bytes], encoding: str) -> None:
    decoder = None if codecs.lookup(encoding).name == "utf-8" else codecs.getincrementaldecoder(encoding)()
    most = max(_LARGE, _RATIO * path.stat().st_size)
    done = 0
    while True:
        block = source.read(_BLOCK)
        done += len(block)
        if done > most:
            raise DataError(f"{path} grows to more than {_RATIO} times its size: unpack it yourself if it is meant")
        if decoder is None:
            target.write(block)
        else:
            target.write(decoder.decode(block, final=not block).encode())
        if not block:
            return
