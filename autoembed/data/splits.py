"""Rows into train, valid and test: as the files say, at random by a seed, by time, or by groups of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from autoembed.data.spec import SPLITS, DataSpec, Split, SplitPoint, is_fraction
from autoembed.data.times import check_sorts, cut_value
from autoembed.data.values import col, key
from autoembed.errors import DataError

_NONE = 255


@dataclass(frozen=True, kw_only=True)
class SplitTable:
    """One given table, and which split each of its rows is in: 0, 1 or 2 for a place in SPLITS, 255 for none.

    `frame` must be a scan with expressions per row, as its rows are addressed by their place in the file.
    """

    frame: pl.LazyFrame
    code: pl.Expr | npt.NDArray[np.uint8]

    def select(self, *columns: str) -> SplitTable:
        return SplitTable(frame=self.frame.select(col(name) for name in columns), code=self.code)

    def rows(self) -> int:
        """The number of rows, whatever their split."""
        return int(self.frame.select(pl.len()).collect(engine="streaming").item())

    def split(self, split: Split) -> pl.LazyFrame:
        """The rows of one split, in their order."""
        if isinstance(self.code, pl.Expr):
            return self.frame.filter(self.code == SPLITS.index(split))
        code = _unused(self.frame)
        coded = pl.concat([self.frame, pl.LazyFrame({code: self.code})], how="horizontal")
        return coded.filter(pl.col(code) == SPLITS.index(split)).drop(code)

    def chunks(self, size: int) -> Iterator[tuple[pl.DataFrame, npt.NDArray[np.uint8]]]:
        """All rows and their codes, `size` at a time.

        Slices, not `collect_batches`: that decodes Parquet far ahead of a slower consumer, so that its memory grows
        with the rows (pola-rs/polars issue 28569).
        """
        name = _unused(self.frame)
        for start in range(0, self.rows(), size):
            if isinstance(self.code, pl.Expr):
                chunk = self.frame.slice(start, size).with_columns(self.code.cast(pl.UInt8).alias(name)).collect()
                yield chunk.drop(name), chunk[name].to_numpy()
            else:
                yield self.frame.slice(start, size).collect(), self.code[start : start + size]


def _unused(frame: pl.LazyFrame) -> str:
    """A name that no column has."""
    names, name = frame.collect_schema(), "split"
    while name in names:
        name += "_"
    return name


def split(frames: dict[Split, pl.LazyFrame], spec: DataSpec) -> list[SplitTable]:
    """Say of every row in which split it is.

    Args:
        frames: one table under `train`, or train with valid, test or both; the label column is 1, 0 or null, and rows
            without a label are in no split.
        spec: its `split` and `time` say what to do where a split is missing.

    Raises:
        DataError: a split cannot be made, or the time column does not fit the cuts.
    """
    rule = spec.split
    by = rule.by or ("time" if spec.time else "random")
    if by == "time" and spec.time is None:
        raise DataError("split by time needs data.time, the name of the time column")
    if by == "random" and not (is_fraction(rule.valid) and is_fraction(rule.test)):
        raise DataError(
            f"split by random must have fractions between 0 and 1, but got valid={rule.valid!r}, test={rule.test!r} "
            "(for cut values, set data.time)"
        )
    if by == "time" and {"valid", "test"} <= rule.model_fields_set:
        return _by_time(list(frames.values()), spec, rule.valid, rule.test)
    if {"valid", "test"} <= set(frames):
        _refuse(rule.model_fields_set & {"by", "valid", "test"}, "the data has its own valid and test")
        return [_whole(frame, name, spec) for name, frame in frames.items()]
    if "valid" in frames:
        raise DataError(
            "the data has train and valid but no test: add a test file (data.files), or cut all rows by time with "
            "data.time and data.split: {by: time, valid: FIRST_VALID_TIME, test: FIRST_TEST_TIME}"
        )
    own_test = "test" in frames
    if own_test:
        _refuse(rule.model_fields_set & {"test"}, "the data has its own test")
    if by == "time":
        made = _by_time([frames["train"]], spec, rule.valid, None if own_test else rule.test)
    else:
        cut = _by_group if by == "group" else _at_random
        made = [cut(frames["train"], spec, float(rule.valid), 0.0 if own_test else float(rule.test))]
    return [*made, _whole(frames["test"], "test", spec)] if own_test else made


def _labelled(code: pl.Expr, spec: DataSpec) -> pl.Expr:
    return pl.when(col(spec.label).is_null()).then(_NONE).otherwise(code)


def _whole(frame: pl.LazyFrame, name: Split, spec: DataSpec) -> SplitTable:
    return SplitTable(frame=frame, code=_labelled(pl.lit(SPLITS.index(name)), spec))


def _refuse(keys: set[str], why: str) -> None:
    if keys:
        raise DataError(
            f"{why}, so data.split must not say {', '.join(sorted(keys))} "
            "(to split all rows, give by: time with valid and test)"
        )


def _at_random(frame: pl.LazyFrame, spec: DataSpec, valid: float, test: float) -> SplitTable:
    label = frame.select(col(spec.label).alias("label")).collect(engine="streaming")["label"]
    known = label.is_not_null().to_numpy()
    rng = np.random.default_rng(spec.split.seed)
    codes = np.where(known, 0, _NONE).astype(np.uint8)
    classes = [known]
    if spec.split.stratify:
        kind = spec.predicts.strata(label.fill_null(0).to_numpy())
        classes = [known & (kind == one) for one in np.unique(kind[known])]
    for own in classes:
        places = rng.permutation(np.flatnonzero(own))
        n_valid, n_test = round(len(places) * valid), round(len(places) * test)
        codes[places[:n_valid]] = 1
        codes[places[n_valid : n_valid + n_test]] = 2
    return SplitTable(frame=frame, code=codes)


def _by_group(frame: pl.LazyFrame, spec: DataSpec, valid: float, test: float) -> SplitTable:
    """Whole groups in a random order: the first ones that have about `valid` of the rows, then test, then train."""
    name = spec.split.column
    assert name is not None
    if name not in frame.collect_schema():
        raise DataError(f"data.split.column names no column of the table: {name}")
    text = key(col(name), frame.collect_schema()[name])
    rows = frame.select(text.alias("group"), col(spec.label).is_not_null().alias("known")).collect(engine="streaming")
    counted = rows.filter("known").group_by("group").agg(pl.len().alias("rows")).sort("group")
    missing = int(counted.filter(pl.col("group").is_null())["rows"].sum())
    if missing:
        raise DataError(f"split.column {name!r} must have no missing values, but {missing} rows have none")
    order = np.random.default_rng(spec.split.seed).permutation(len(counted))
    upto = np.cumsum(counted["rows"].to_numpy()[order])
    total = int(upto[-1]) if len(upto) else 0
    first_test = int(np.abs(upto - total * valid).argmin()) + 1
    first_train = int(np.abs(upto - total * (valid + test)).argmin()) + 1 if test else first_test
    if not 0 < first_test < len(order) or (test and not first_test < first_train < len(order)):
        raise DataError(
            f"split.column {name!r} has {len(counted)} groups, too few for valid {valid:g} and test {test:g}: "
            "give other fractions, or by: random"
        )
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    code = np.where(place < first_test, 1, np.where(place < first_train, 2, 0)).astype(np.uint8)
    found = rows["group"].replace_strict(counted["group"], code, default=_NONE, return_dtype=pl.UInt8).to_numpy()
    return SplitTable(frame=frame, code=np.where(rows["known"].to_numpy(), found, _NONE).astype(np.uint8))


def _by_time(
    frames: list[pl.LazyFrame], spec: DataSpec, valid: SplitPoint, test: SplitPoint | None
) -> list[SplitTable]:
    assert spec.time is not None
    time = col(spec.time)
    labelled = [frame.filter(col(spec.label).is_not_null()) for frame in frames]
    check_sorts(labelled, spec.time)
    counted = [
        frame.select(time.alias("time")).group_by("time").agg(pl.len().alias("len")).collect(engine="streaming")
        for frame in labelled
    ]
    times = pl.concat(counted).group_by("time").agg(pl.col("len").sum()).sort("time")
    missing = int(times.filter(pl.col("time").is_null())["len"].sum())
    if missing:
        raise DataError(f"time column {spec.time!r} must have no missing values, but {missing} rows have none")
    if is_fraction(valid):
        assert test is None or isinstance(test, float)
        first_valid, first_test = _fractions(times, spec.time, float(valid), test)
    else:
        first_valid = cut_value(valid, frames, spec)
        first_test = None if test is None else cut_value(test, frames, spec)
    code = pl.when(time >= first_valid).then(1).otherwise(0)
    if first_test is not None:
        code = pl.when(time >= first_test).then(2).otherwise(code)
    return [SplitTable(frame=frame, code=_labelled(code, spec)) for frame in frames]


def _fractions(times: pl.DataFrame, name: str, valid: float, test: float | None) -> tuple[pl.Expr, pl.Expr | None]:
    """The first time of valid and of test, so that about these fractions of the rows come last."""
    before = np.concatenate([[0], np.cumsum(times["len"].to_numpy())])
    rows = before[-1]

    def first(share: float, after: int) -> int:
        nearest = int(np.argmin(np.abs(before[:-1] - rows * (1 - share))))
        return max(nearest, after)

    at_valid = first(valid + (test or 0.0), 1)
    at_test = None if test is None else first(test, at_valid + 1)
    last = at_valid if at_test is None else at_test
    if last >= len(times):
        raise DataError(
            f"time column {name!r} has {len(times)} distinct times, too few for this split: "
            "give cut values or by: random"
        )
    column = times["time"]
    cut = pl.lit(column[at_valid], dtype=column.dtype)
    return cut, None if at_test is None else pl.lit(column[at_test], dtype=column.dtype)
