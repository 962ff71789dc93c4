"""Files of any known format as one LazyFrame: csv, jsonl, parquet, arrow, libfm, criteo, avazu."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import polars as pl
import polars.selectors as cs

from autoembed.data.files import format_of, separator_of
from autoembed.data.plain import plain_text
from autoembed.data.spec import DataSpec
from autoembed.data.values import col, key
from autoembed.errors import DataError

CRITEO_NUMERIC = tuple(f"I{i}" for i in range(1, 14))
CRITEO_COLUMNS = ("label", *CRITEO_NUMERIC, *(f"C{i}" for i in range(1, 27)))
Tell = Callable[[str], None]
Check = Callable[[pl.LazyFrame], None]
_LINE = "line"
_HELD = 1 << 29


# Columns with their types, and the columns that the folders of a file say.
Alike = tuple[tuple[tuple[str, pl.DataType], ...], tuple[str, ...]]


def scan(
    paths: Sequence[Path], spec: DataSpec, stage: Path, tell: Tell = lambda line: None, *, hold: bool = False
) -> pl.LazyFrame:
    """The raw columns of one table, lazily; files of other columns or types than the first are told of.

    Text formats are converted to Parquet in `stage` once, in a stream, so that later passes read single columns; their
    columns are text. With `hold` the one text file is held in memory instead (see `can_hold`). Parquet is read in
    place. Folders `key=value` right above a file are columns.

    Raises:
        DataError: a file is corrupt, ragged or empty, or its columns are not as the spec says.
    """
    parts: dict[Alike, list[Path]] = {}
    firsts: dict[Alike, Path] = {}
    for path in paths:
        form = format_of(path, spec)
        keys = _partition(path)
        try:
            if hold:
                frame, check = _frame(path, spec, form, stage, tell)
                held = frame.collect(engine="streaming").lazy()
                check(held)
                return _with_keys(held, keys)
            file = path if form == "parquet" else _staged(path, spec, form, keys, stage, tell)
            schema = pl.scan_parquet(file, glob=False).collect_schema()
        except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
            raise unreadable(path, error) from error
        same = (tuple(schema.items()), tuple(keys) if form == "parquet" else ())
        parts.setdefault(same, []).append(file)
        firsts.setdefault(same, path)
    frames = [_parquet(files, list(same[1])) for same, files in parts.items()]
    return frames[0] if len(frames) == 1 else _joined(frames, list(firsts.values()), spec, tell)


def can_hold(paths: Sequence[Path], spec: DataSpec) -> bool:
    """Whether a table is one small text file, which is best read into memory at once."""
    return len(paths) == 1 and format_of(paths[0], spec) == "csv" and paths[0].stat().st_size < _HELD


def unreadable(path: Path | str, error: BaseException) -> DataError:
    """The line for a file that cannot be read, with the first line of the reason and what may help."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    hint = ""
    if isinstance(error, UnicodeDecodeError) or "utf-8" in reason.lower() or "utf8" in reason.lower():
        hint = ": it is not UTF-8 text; name its encoding as data.encoding (--set encoding=latin-1)"
    elif "found more fields" in reason:
        hint = ": a line has more values than the header; is data.separator right?"
    elif "could not parse" in reason and '"' in reason:
        hint = ": if quotes are plain characters there, set data.quote: null (--set quote=null)"
    return DataError(f"cannot read {path}: {reason}{hint}")


def _partition(path: Path) -> dict[str, str]:
    """What the folders `key=value` right above a file say."""
    found: dict[str, str] = {}
    for folder in path.parents:
        name, sign, value = folder.name.partition("=")
        if not sign:
            break
        found = {name: unquote(value)} | found
    return found


def _parquet(files: list[Path], keys: list[str]) -> pl.LazyFrame:
    """Files of one schema, with the columns that their folders say."""
    if not keys:
        return pl.scan_parquet(files, glob=False)
    every = {name: pl.String() for name in dict.fromkeys(part.split("=")[0] for file in files for part in _keyed(file))}
    frame = pl.scan_parquet(files, glob=False, hive_partitioning=True, hive_schema=every)
    return frame.drop(cs.by_name(*(name for name in every if name not in keys), require_all=False))


def _keyed(file: Path) -> list[str]:
    return [part for part in file.parts[:-1] if "=" in part]


def _joined(frames: list[pl.LazyFrame], firsts: list[Path], spec: DataSpec, tell: Tell) -> pl.LazyFrame:
    """Fragments of other columns or types as one table: what one lacks is missing there, what differs becomes text.

    DataError if some have a label and others have none: they are tables of other things.
    """
    schemas = [frame.collect_schema() for frame in frames]
    names = list(dict.fromkeys(name for schema in schemas for name in schema.names()))
    mixed = {name for name in names if len({str(schema[name]) for schema in schemas if name in schema}) > 1}
    for name in names:
        lacks = [first.name for first, schema in zip(firsts, schemas, strict=True) if name not in schema]
        if lacks and name == spec.label:
            raise DataError(
                f"{lacks[0]} lacks the label {name!r} that other files of the table have: name the files of the table "
                "under data.files"
            )
        if lacks:
            tell(f"column {name!r} is not in every file ({lacks[0]} lacks it): it is missing in their rows")
    if mixed:
        tell(f"columns of other types in other files are read as text: {', '.join(sorted(mixed))}")
    whole = []
    for frame, schema in zip(frames, schemas, strict=True):
        columns = []
        for name in names:
            column = col(name) if name in schema else pl.lit(None).alias(name)
            columns.append(key(column, schema[name]) if name in mixed and name in schema else column)
        whole.append(frame.select(columns))
    return pl.concat(whole, how="vertical_relaxed")


def _staged(path: Path, spec: DataSpec, form: str, keys: dict[str, str], stage: Path, tell: Tell) -> Path:
    """A file of another format as Parquet in `stage`."""
    frame, check = _frame(path, spec, form, stage, tell)
    staged = stage / f"{len(list(stage.iterdir()))}.parquet"
    _with_keys(frame, keys).sink_parquet(staged, compression="lz4", maintain_order=True, engine="streaming")
    check(pl.scan_parquet(staged, glob=False).drop(list(keys)))
    return staged


def _with_keys(frame: pl.LazyFrame, keys: dict[str, str]) -> pl.LazyFrame:
    return frame.with_columns(pl.lit(value).alias(name) for name, value in keys.items()) if keys else frame


def _frame(path: Path, spec: DataSpec, form: str, stage: Path, tell: Tell) -> tuple[pl.LazyFrame, Check]:
    """The rows of a file of another format than Parquet, and what is to be called with them once they are read."""
    if form == "arrow":
        return pl.scan_ipc(path, glob=False), lambda rows: None
    path = plain_text(path, spec.encoding, stage, tell)
    if form == "jsonl":
        return pl.scan_ndjson(path, infer_schema_length=None), lambda rows: None
    if form == "libfm":
        return _libfm(path, spec), lambda rows: None
    if form == "criteo":
        return _csv(path, "\t", CRITEO_COLUMNS, None, tell)
    if form == "avazu":
        return _avazu(_csv(path, ",", None, '"', tell)[0]), lambda rows: None
    return _csv(path, separator_of(path, spec), spec.columns, spec.quote, tell)


def _csv(
    path: Path, separator: str, columns: Sequence[str] | None, quote: str | None, tell: Tell
) -> tuple[pl.LazyFrame, Check]:
    if quote == "auto":
        quote = _quote(path, separator, columns is None, tell)
    # Every column as text: a type inferred from the first rows breaks on a later one, and 007 would become 7.
    frame = pl.scan_csv(
        path, separator=separator, has_header=columns is None, infer_schema=False, glob=False, quote_char=quote
    )
    names = frame.collect_schema().names()
    check = partial(_check_lines, path, separator, quote)
    frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))  # lines that are blank
    if columns is None:
        twice = [name.removesuffix("_duplicated_0") for name in names if name.endswith("_duplicated_0")]
        if twice:
            raise DataError(f"{path} has more than one column named {', '.join(twice)}: column names must be unique")
        return frame, check
    if columns == CRITEO_COLUMNS and len(names) == len(columns) - 1:
        columns = columns[1:]  # Criteo's own test file has no label
    if len(columns) != len(names):
        raise DataError(f"{path} has {len(names)} columns, but {len(columns)} names are given for them")
    return frame.rename(dict(zip(names, columns, strict=True))), check


def _lines(path: Path) -> pl.LazyFrame:
    """The lines of a text file, null where they are blank."""
    return pl.scan_csv(
        path, separator="\x1f", quote_char=None, has_header=False, infer_schema=False, new_columns=[_LINE], glob=False
    )


def _holds(path: Path, sign: bytes) -> bool:
    """Whether a file holds a sign anywhere."""
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            if sign in block:
                return True
    return False


def _quote(path: Path, separator: str, header: bool, tell: Tell) -> str | None:
    """The quote of a file whose spec leaves it open: none where a quote would swallow lines and plain ones fit."""
    if not _holds(path, b'"'):
        return '"'
    line = pl.col(_LINE)
    lines = _lines(path).select(line.count()).collect(engine="streaming").item()
    try:
        rows = (
            pl.scan_csv(path, separator=separator, has_header=header, infer_schema=False, glob=False)
            .filter(~pl.all_horizontal(pl.all().is_null()))
            .select(pl.len())
            .collect(engine="streaming")
            .item()
        )
    except pl.exceptions.PolarsError:
        rows = -1
    if rows == lines - header:
        return '"'
    separators = line.str.count_matches(separator, literal=True)
    least, most = _lines(path).select(separators.min(), separators.max().alias("most")).collect().row(0)
    if least == most and separator == "\t":
        tell(f"{path.name} is read without quotes: each line has {most + 1} values, and a quote would swallow lines")
        return None
    lost = f"with quotes {rows:,} rows" if rows >= 0 else "a quote that nothing closes"
    raise DataError(
        f"{path} has {lines:,} lines and {lost}: set data.quote (--set) to '\"' if quoted values hold line breaks, or "
        "to null if quotes are plain characters"
    )


def _check_lines(path: Path, separator: str, quote: str | None, rows: pl.LazyFrame) -> None:
    """DataError if a line has fewer values than `rows` have columns: they would be missing without a word."""
    names = rows.collect_schema().names()
    if len(names) < 2:
        return
    last = cs.by_name(names[-1]).as_expr()
    if not rows.select(last.is_null().any()).collect(engine="streaming").item():
        return  # a short line has no last value
    text = pl.col(_LINE).str.replace_all(r'"[^"]*"', "") if quote == '"' else pl.col(_LINE)
    counted = _lines(path).with_row_index("number", offset=1).filter(pl.col(_LINE).is_not_null())
    values = text.str.count_matches(separator, literal=True) + 1
    short = counted.filter(values < len(names), ~text.str.contains('"', literal=True) if quote == '"' else pl.lit(True))
    found = short.select("number", values.alias("values")).head(1).collect(engine="streaming")
    if found.height:
        number, own = found.row(0)
        raise DataError(
            f"{path} line {number:,} has {own} values, but there are {len(names)} columns: mend the line, or take it "
            "out (the file may have been cut off)"
        )


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
