"""Which column of a table is the label, and what it is: clicks or numbers. What cannot be told is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable

import polars as pl

from autoembed.errors import DataError, option
from autoembed.ratings import scale_of

Node = dict[str, object]
_CLICKS = ("label", "click", "clicked", "is_click", "target", "y", "converted", "conversion", "purchase", "response")
_RATINGS = ("rating", "ratings", "stars")
_OF_CLICKS = ("positive", "above", "group", "target_statistics")  # keys of `data:`, and so is split.stratify
_PLAIN = {"0", "1", "true", "false", "yes", "no"}
_FEW = 20  # so many whole numbers may be names of classes
_SHOWN = 5
_AMOUNTS = {
    *_RATINGS, "score", "price", "amount", "count", "days", "hours", "minutes", "seconds", "duration", "delay", "cost",
    "revenue", "sales",
}  # fmt: skip


def label_column(head: pl.DataFrame, task: object, ask: Callable[[list[str]], str] | None, notes: list[str]) -> str:
    """The column to predict: one of a usual name, else, unless the `task` has more, the only one of two values.

    Args:
        head: the first rows.
        task: what `data.task` says, None if it is not given.
        ask: chooses among several columns; without it they are a DataError.
        notes: takes a sentence on what was guessed.
    """
    names = (
        (*_RATINGS, *_CLICKS)
        if task == "ratings"
        else _CLICKS
        if task in ("clicks", "ranking")
        else (*_CLICKS, *_RATINGS)
    )
    for name in names:
        for own in head.columns:
            if own.lower() == name:
                notes.append(f"label: {own}, by its name")
                return own
    more = ("ratings", "multiclass")
    two = [name for name in head.columns if task not in more and head[name].drop_nulls().n_unique() == 2]
    named = [name for name in two if not _words(name).isdisjoint(_CLICKS)]
    if len(named or two) == 1:
        (own,) = named or two
        notes.append(f"label: {own}, the only column {'of that name' if named else 'of two values'}")
        return own
    if ask is not None:
        return ask(named or two or head.columns)
    told = f"those of two values are {', '.join(two)}" if two else f"the columns are {', '.join(head.columns)}"
    raise DataError(f"which column is the label? Name it by {option('label')}: {told}")


def label_values(counted: pl.DataFrame, name: str, data: Node, notes: list[str]) -> float:
    """Says in `data` what is predicted: which values count as 1, or that the label is a number.

    Args:
        counted: the `len` rows of each `value` of the label, as text.
        name: the label's column.
        data: the `data:` section so far, which takes positive, above or task, where they are not given.
        notes: takes a sentence on each guess.

    Returns:
        The share of the rarer class; a half of numbers.

    Raises:
        DataError: it cannot be told, or there is one value alone.
    """
    gone = int(counted.filter(pl.col("value").is_null())["len"].sum())
    if gone and "missing_label" not in data:
        data["missing_label"] = "drop"
        notes.append(f"{gone:,} rows without a label are left out (missing_label)")
    known = counted.drop_nulls("value").sort("len")
    if known.height < 2:
        raise DataError(f"the label {name!r} must have two values or more, but has {known.height}")
    if data.get("task") in ("ratings", "multiclass") or data.keys() & {"positive", "above"}:
        return 0.5
    if known.height == 2:
        if not {value.lower() for value in known["value"]} <= _PLAIN:
            data["positive"] = [known["value"][0]]
            notes.append(f"label 1: {name} = {known['value'][0]}, the rarer value (positive)")
        return float(known["len"][0]) / int(known["len"].sum())
    numbers = known["value"].cast(pl.Float64, strict=False)
    if numbers.null_count():
        such = known["value"][-1]
        raise DataError(
            f"the label {name!r} has {known.height} values, such as {such!r}: say which count as 1, such as "
            f"{option('set', f'positive=[{such}]')}, or predict which it is by {option('set', 'task=multiclass')}"
        )
    middle = scale_of(numbers.to_numpy(), known["len"].to_numpy()).cut
    if _is_number(name, numbers.sort(), data, middle):
        data["task"] = "ratings"
        notes.append(
            f"label: {name} is a number, which is predicted as such (task: ratings); clicks are {name} above "
            f"{middle:g} with {option('set', f'above={middle:g}')}"
        )
    else:
        data["above"] = middle
        notes.append(f"label 1: {name} above {middle:g}, which divides the rows most evenly (above)")
    return 0.5


def _is_number(name: str, numbers: pl.Series, data: Node, middle: float) -> bool:
    """Whether the numbers that a label has, in order, are to be predicted as such; DataError if it cannot be told."""
    split = data.get("split")
    stratified = isinstance(split, dict) and bool(split.get("stratify"))
    if data.get("task") in ("clicks", "ranking") or data.keys() & set(_OF_CLICKS) or stratified:
        return False
    named = not _AMOUNTS.isdisjoint(_words(name))
    if named or len(numbers) > _FEW or bool((numbers != numbers.floor()).any()):
        return True
    shown = ", ".join(f"{value:g}" for value in numbers.head(_SHOWN)) + (", ..." if len(numbers) > _SHOWN else "")
    raise DataError(
        f"the label {name!r} has {len(numbers)} whole numbers, {shown}, which may be amounts or names of classes: "
        f"{option('set', 'task=ratings')} predicts the number, {option('set', f'above={middle:g}')} whether it is "
        f"larger, {option('set', f'positive=[{numbers[-1]:g}]')} whether it is of a class, and "
        f"{option('set', 'task=multiclass')} of which"
    )


def _words(name: str) -> set[str]:
    return set(re.split(r"\W|_", name.lower()))
