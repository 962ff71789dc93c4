"""One file of any known format as a LazyFrame: csv (plain, gz, zst, zip), parquet, libfm, criteo, avazu."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from autoembed.data.files import format_of, separator_of
from autoembed.data.spec import DataSpec
from autoembed.errors import DataError

CRITEO_NUMERIC = tuple(f"I{i}" for i in range(1, 14))
_MAGIC = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}
CRITEO_COLUMNS = ("label", *CRITEO_NUMERIC, *(f"C{i}" for i in range(1, 27)))


def scan(paths: list[Path], spec: DataSpec, stage: Path) -> pl.LazyFrame:
    """The raw columns of one table, lazily.

    Text formats are converted to Parquet in `stage` once, in a stream, so that later passes read single columns; their
    columns are text. Parquet is read in place.

    Raises:
        DataError: the file is corrupt, ragged or empty, or its columns are not as the spec says.
    """
    first = paths[0]
    form = format_of(first, spec)
    try:
        if form == "parquet":
            return pl.scan_parquet(paths, glob=False, missing_columns="raise", extra_columns="ignore")
        text = _text(first, spec, form, stage)
        staged = stage / f"{first.name}.{len(list(stage.iterdir()))}.parquet"
        text.sink_parquet(staged, compression="lz4", maintain_order=True, engine="streaming")
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise unreadable(first, error) from error
    return pl.scan_parquet(staged, glob=False)


def unreadable(path: Path | str, error: BaseException) -> DataError:
    """The line for a file that cannot be read, with the first line of the reason."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return DataError(f"cannot read {path}: {reason}")


def _text(path: Path, spec: DataSpec, form: str, stage: Path) -> pl.LazyFrame:
    if path.name.lower().endswith(".zip"):
        path = _unzipped(path, stage)
    _check_magic(path)
    if form == "libfm":
        return _libfm(path, spec)
    if form == "criteo":
        return _csv(path, "\t", CRITEO_COLUMNS)
    if form == "avazu":
        return _avazu(_csv(path, ",", None))
    return _csv(path, separator_of(path, spec), spec.columns)


def _csv(path: Path, separator: str, columns: Sequence[str] | None) -> pl.LazyFrame:
    # Every column as text: a type inferred from the first rows breaks on a later one, and 007 would become 7.
    frame = pl.scan_csv(path, separator=separator, has_header=columns is None, infer_schema=False, glob=False)
    names = frame.collect_schema().names()
    if columns is None:
        twice = [name.removesuffix("_duplicated_0") for name in names if name.endswith("_duplicated_0")]
        if twice:
            raise DataError(f"{path} has more than one column named {', '.join(twice)}: column names must be unique")
        return frame
    if columns == CRITEO_COLUMNS and len(names) == len(columns) - 1:
        columns = columns[1:]  # Criteo's own test file has no label
    if len(columns) != len(names):
        raise DataError(f"{path} has {len(names)} columns, but {len(columns)} names are given for them")
    return frame.rename(dict(zip(names, columns, strict=True)))


def _check_magic(path: Path) -> None:
    """DataError if a .gz or .zst file is none: Polars would read it as plain text."""
    magic = _MAGIC.get(path.suffix.lower())
    if magic is not None:
        with path.open("rb") as file:
            if file.read(len(magic)) != magic:
                raise DataError(f"cannot read {path}: it is no {path.suffix} file")


def _unzipped(path: Path, stage: Path) -> Path:
    """The one file inside a zip, copied out in a stream."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if not m.is_dir() and not m.filename.startswith("__MACOSX")]
            if len(members) != 1:
                raise DataError(f"{path} must hold exactly one file, but holds {len(members)}")
            out = stage / path.name[: -len(".zip")]
            with archive.open(members[0]) as source, out.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise unreadable(path, error) from error
    return out


def _avazu(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Avazu's columns without `id`; `hour` (YYMMDDHH) stays, with its hour of the day and weekday beside it."""
    names = frame.collect_schema().names()
    if "hour" not in names:
        raise DataError(f"format avazu needs the column hour, but the columns are {', '.join(names)}")
    moment = (pl.col("hour") + "00").str.to_datetime("%y%m%d%H%M", strict=True)
    return frame.select(
        pl.exclude("id", "hour"),
        pl.col("hour").cast(pl.Int64),
        moment.dt.hour().cast(pl.String).alias("hour_of_day"),
        moment.dt.weekday().cast(pl.String).alias("weekday"),
    )


def _libfm(path: Path, spec: DataSpec) -> pl.LazyFrame:
    """`label index:1 index:1 ...` with one token per field: field_i holds the index in place i."""
    lines = pl.scan_csv(
        path, glob=False, has_header=False, separator="\x01", quote_char=None, infer_schema=False, new_columns=["line"]
    ).select(pl.col("line").str.strip_chars().str.replace_all(r"\s+", " "))
    tokens = pl.col("line").str.count_matches(" ", literal=True) + 1
    good = pl.col("line").str.contains(r"^[-+.\d]+( \d+:1(\.0*)?)+$")
    checks = lines.select(
        tokens.min().alias("fewest"), tokens.max().alias("most"), pl.col("line").filter(~good).first().alias("bad")
    ).collect(engine="streaming")
    fewest, most, bad = checks.row(0)
    if bad is not None:
        raise DataError(f"{path}: a libfm line must read LABEL INDEX:1 INDEX:1 ..., but one reads {bad[:60]!r}")
    if fewest != most:
        raise DataError(
            f"{path}: every libfm line must have one token per field, but lines have {fewest - 1} to {most - 1} tokens"
        )
    parts = pl.col("line").str.split_exact(" ", most - 1)
    return lines.select(parts.alias("part")).select(
        pl.col("part").struct.field("field_0").str.replace(r"^\+", "").alias(spec.label),
        *(
            pl.col("part").struct.field(f"field_{i + 1}").str.replace(r":.*$", "").alias(f"field_{i}")
            for i in range(most - 1)
        ),
    )
