"""Rows into train, valid and test: as the files say, at random by a seed, or by time."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import polars as pl

from autoembed.data.spec import Cut, DataSpec, Split, is_fraction
from autoembed.errors import DataError

Frames = dict[Split, pl.LazyFrame]
_CODE = "__split"


def split(frames: Frames, spec: DataSpec, label: pl.Expr) -> Frames:
    """The three splits of the given tables, lazily.

    Args:
        frames: one table under `train`, or train with valid, test or both.
        spec: its `split` and `time` say what to do where a split is missing.
        label: 1, 0 or null per row; rows without a label are in no split.

    Raises:
        DataError: a split cannot be made, or the time column does not fit the cuts.
    """
    rule = spec.split
    by = rule.by or ("time" if spec.time else "random")
    if by == "time" and spec.time is None:
        raise DataError("split by time needs data.time, the name of the time column")
    frames = {name: frame.filter(label.is_not_null()) for name, frame in frames.items()}
    cuts_both = by == "time" and {"valid", "test"} <= rule.model_fields_set
    if by == "random" and not (is_fraction(rule.valid) and is_fraction(rule.test)):
        raise DataError(
            f"split by random must have fractions between 0 and 1, but got valid={rule.valid!r}, test={rule.test!r} "
            "(for cut values, set data.time)"
        )
    if cuts_both:
        return _by_time(pl.concat(list(frames.values()), how="vertical"), spec, rule.valid, rule.test)
    if {"valid", "test"} <= set(frames):
        _refuse(rule.model_fields_set & {"by", "valid", "test"}, "the data has its own valid and test")
        return frames
    if "valid" in frames:
        raise DataError(
            "the data has train and valid but no test: add a test file (data.files), or cut all rows by time with "
            "data.time and data.split: {by: time, valid: FIRST_VALID_TIME, test: FIRST_TEST_TIME}"
        )
    test = frames.get("test")
    if test is not None:
        _refuse(rule.model_fields_set & {"test"}, "the data has its own test")
    if by == "time":
        made = _by_time(frames["train"], spec, rule.valid, None if test is not None else rule.test)
    else:
        made = _at_random(frames["train"], float(rule.valid), 0.0 if test is not None else float(rule.test), rule.seed)
    return made if test is None else {**made, "test": test}


def _refuse(keys: set[str], why: str) -> None:
    if keys:
        raise DataError(
            f"{why}, so data.split must not say {', '.join(sorted(keys))} "
            "(to cut all rows anew, give by: time with valid and test)"
        )


def _at_random(table: pl.LazyFrame, valid: float, test: float, seed: int) -> Frames:
    rows = int(table.select(pl.len()).collect(engine="streaming").item())
    order = np.random.default_rng(seed).permutation(rows)
    n_valid, n_test = round(rows * valid), round(rows * test)
    codes = np.zeros(rows, dtype=np.uint8)
    codes[order[:n_valid]] = 1
    codes[order[n_valid : n_valid + n_test]] = 2
    coded = pl.concat([table, pl.LazyFrame({_CODE: codes})], how="horizontal")
    parts: Frames = {"train": coded, "valid": coded, "test": coded}
    made = {name: frame.filter(pl.col(_CODE) == code).drop(_CODE) for code, (name, frame) in enumerate(parts.items())}
    return {name: frame for name, frame in made.items() if name != "test" or test > 0}


def _by_time(table: pl.LazyFrame, spec: DataSpec, valid: Cut, test: Cut | None) -> Frames:
    assert spec.time is not None
    time = pl.col(spec.time)
    dtype = table.collect_schema()[spec.time]
    times = table.group_by(time).len().collect(engine="streaming").sort(spec.time)
    missing = int(times.filter(time.is_null())["len"].sum())
    if missing:
        raise DataError(f"time column {spec.time!r} must have no missing values, but {missing} rows have none")
    if is_fraction(valid):
        assert test is None or isinstance(test, float)
        first_valid, first_test = _fractions(times, spec.time, float(valid), test)
    else:
        first_valid, first_test = _literal(valid, dtype, spec.time), _literal(test, dtype, spec.time)
    made: Frames = {"train": table.filter(time < first_valid)}
    if first_test is None:
        return {**made, "valid": table.filter(time >= first_valid)}
    made["valid"] = table.filter((time >= first_valid) & (time < first_test))
    return {**made, "test": table.filter(time >= first_test)}


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
    column = times[name]
    cut = pl.lit(column[at_valid], dtype=column.dtype)
    return cut, None if at_test is None else pl.lit(column[at_test], dtype=column.dtype)


def _literal(cut: Cut | None, dtype: pl.DataType, name: str) -> Any:
    """A cut value in the type of the time column; DataError if it cannot be."""
    if cut is None:
        return None
    try:
        if dtype.is_numeric():
            if isinstance(cut, str):
                cut = int(cut) if cut.lstrip("-").isdigit() else float(cut)
            return pl.lit(cut)
        if dtype == pl.Date:
            return pl.lit(dt.date.fromisoformat(str(cut)))
        if isinstance(dtype, pl.Datetime):
            moment = dt.datetime.fromisoformat(str(cut))
            if moment.tzinfo is None and dtype.time_zone is not None:
                return pl.lit(moment).dt.replace_time_zone(dtype.time_zone).cast(dtype)
            return pl.lit(moment).cast(dtype)
        if dtype == pl.String:
            return pl.lit(str(cut))
    except ValueError:
        raise DataError(f"a cut of time column {name!r} must be of its type {dtype}, but got {cut!r}") from None
    raise DataError(f"time column {name!r} must hold numbers, dates or text, but its type is {dtype}")
