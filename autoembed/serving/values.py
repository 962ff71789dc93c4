"""Plain values to ids, one field at a time: what `Vocabulary.encode` gives, without its 20 ms for each table.

A text that the vocabulary has is one look-up in a dictionary. Other values are written as Polars would write them; the
few that only Polars can write, such as moments and numbers near 0, are given to it.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import polars as pl

from autoembed.data.columns import bucket_of
from autoembed.data.knots import encode
from autoembed.data.schema import PAD
from autoembed.data.spec import DataSpec
from autoembed.data.values import MISSING, as_text, numbers, tidy
from autoembed.errors import DataError
from autoembed.export import lookups
from autoembed.types import Array

GONE = PAD - 1  # a missing value that has no id of its own: the model reads it as id 0
_EXACT = 2.0**53
_SMALL = 1e-4  # from here to 0, Python and Polars write numbers differently
_BATCH = 32
_KEPT, _LONGEST = 1 << 14, 64
_WHOLE = re.compile(r"(-?\d+)\.0+")
_MOMENT = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_TRUTH = {"True": "true", "TRUE": "true", "False": "false", "FALSE": "false"}
_WORDS = {"1": "true", "0": "false"}
_SPELLINGS = {"true": "1", "false": "0", **{word: {"true": "1", "false": "0"}[one] for word, one in _TRUTH.items()}}
# What Rust strips: str.strip() also takes the separators of ASCII.
_BLANK = "".join(sign for sign in map(chr, range(0x3001)) if sign.isspace() and not "\x1c" <= sign <= "\x1f")


class BadValueError(ValueError):
    """A value that breaks a rule of its field; the text is the rule."""


class CategoricalField:
    """Values of a categorical field -> ids."""

    def __init__(self, field: lookups.Categorical | lookups.MultiLookup, spec: DataSpec) -> None:
        self.name, self.cleaner = field["name"], Cleaner(spec)
        self.known = {text: place for place, text in enumerate(field["values"]) if text is not None}
        self.missing, self.buckets = field["missing"] or GONE, field.get("buckets")
        words = set(self.known) if len(self.known) <= len(_WORDS) else set()
        self.truth: dict[str, str] = {}
        if words and words <= set(_WORDS.values()):
            self.truth = _WORDS
        elif words and words <= set(_WORDS):
            self.truth = _SPELLINGS
        self.truth_of_bool = self.truth or _SPELLINGS
        # Texts that no cleaning changes; the rest takes the longer way.
        self.direct = self.known
        if self.cleaner.strip or self.cleaner.nulls:
            self.direct = {text: place for text, place in self.known.items() if self.cleaner.text(text) == text}

    def columns(self, values: Sequence[object]) -> list[Sequence[int] | Array]:
        """Its one column of the encoded table; BadValueError if a value is a list or an object."""
        return [self.ids(values)]

    def ids(self, values: Sequence[object]) -> Sequence[int] | Array:
        """The id of each value."""
        texts: Iterable[object] = values
        if values and type(values[0]) is int and set(map(type, values)) == {int}:
            texts = map(str, values)
        try:
            # What is no known text gives None, and a list or an object cannot be looked up: both are TypeErrors here.
            return np.fromiter(map(self.direct.get, texts), np.int32, len(values))  # type: ignore[arg-type]  # any value may be asked for
        except TypeError:
            pass
        found = [self.direct.get(value) if type(value) is str else None for value in values]
        return [self._id(value) if at is None else at for value, at in zip(values, found, strict=True)]

    def _id(self, value: object) -> int:
        text = self.cleaner.text(value)
        if text is None:
            return self.missing
        truth = self.truth_of_bool if isinstance(value, bool) else self.truth
        text = truth.get(text, text)
        if text in self.known:
            return self.known[text]
        tidied = tidy_text(text)
        if tidied is None:
            return self.missing
        written = truth.get(tidied, tidied)
        if self.buckets and written not in self.known:
            written = bucket_of(written, self.buckets)
        return self.known.get(written, 0)


class MultiField:
    """Lists of values, or text with a separator between them -> ids, PAD behind those of a row."""

    def __init__(self, field: lookups.MultiLookup, spec: DataSpec) -> None:
        self.name, self.separator, self.length = field["name"], field["separator"], field["length"]
        self.last, self.nulls = field["keep"] == "last", frozenset(spec.null_values)
        self.value = CategoricalField(field, DataSpec())  # the rules of lists are here

    def columns(self, values: Sequence[object]) -> list[list[int]]:
        """As many columns of the encoded table as a row may have values; BadValueError if one is no list."""
        rows = [self._row(value) for value in values]
        return [[row[place] for row in rows] for place in range(self.length)]

    def _row(self, value: object) -> list[int]:
        if isinstance(value, str) and self.separator is not None:
            value = value.split(self.separator)
        if value is not None and not isinstance(value, list):
            raise BadValueError("must be a list" + (f", or text with {self.separator!r}" if self.separator else ""))
        texts = [text for one in value or () if (text := self._text(one)) is not None]
        kept = texts[-self.length :] if self.last else texts[: self.length]
        ids = self.value.ids(kept) if kept else [self.value.missing]
        return [*ids, *[PAD] * (self.length - len(ids))]

    def _text(self, value: object) -> str | None:
        written = value.strip(_BLANK) if isinstance(value, str) else text_of(value)
        tidied = None if written is None else tidy_text(written)
        return None if tidied in self.nulls else tidied


class NumericField:
    """Values of a numeric field -> ids of their bins, or codes of the knots that they lie between."""

    def __init__(self, field: lookups.Numeric, spec: DataSpec) -> None:
        self.name, self.cleaner = field["name"], Cleaner(spec)
        self.uppers = [math.inf if upper is None else upper for upper in field["uppers"]]
        self.of_place, self.missing = [*field["ids"], 0], field["missing"] or GONE
        self.arrays = np.array(self.uppers), np.array(self.of_place)
        knots = [math.nan if knot is None else knot for knot in field.get("knots", [])]
        self.knots = np.array(knots) if knots else None

    def columns(self, values: Sequence[object]) -> list[list[int]] | Array:
        """Its columns of the encoded table, one or with knots two; BadValueError if a value is no number."""
        if self.knots is None:
            return [self.ids(values)]
        found = [self._number(value) for value in values]
        x = np.array([math.nan if number is None else number for number in found])
        uppers, of_place = self.arrays
        return encode(x, uppers, self.knots, of_place[:-1], self.missing).T

    def ids(self, values: Sequence[object]) -> list[int]:
        """The id of each value."""
        if len(values) < _BATCH or self.cleaner.nulls or not set(map(type, values)) <= {int, float, type(None)}:
            return [self._id(value) for value in values]
        try:
            found = np.array(values, dtype=np.float64)
        except OverflowError:
            return [self._id(value) for value in values]
        uppers, of_place = self.arrays
        gone = np.isnan(found)
        ids = of_place[np.searchsorted(uppers, np.where(gone, 0.0, found))]
        out: list[int] = np.where(gone, self.missing, ids).tolist()
        return out

    def _id(self, value: object) -> int:
        number = self._number(value)
        if number is None or math.isnan(number):
            return self.missing
        return self.of_place[bisect_left(self.uppers, number)]

    def _number(self, value: object) -> float | None:
        if self.cleaner.nulls or not isinstance(value, (int, float)):
            text = self.cleaner.text(value)
            if text is None or text in MISSING:
                return None
            if isinstance(value, str):
                return _number_of_text(text)
        assert isinstance(value, (int, float))
        try:
            return float(value)
        except OverflowError:
            raise BadValueError("must be a number of 64 bits") from None


Field = CategoricalField | MultiField | NumericField


class Cleaner:
    """What `readers.clean` does to a value: text stripped, null values missing."""

    def __init__(self, spec: DataSpec) -> None:
        self.strip = spec.strip
        self.nulls = frozenset(spec.null_values)

    def text(self, value: object) -> str | None:
        """The text of a value, untidied, or None where it is missing; BadValueError if it is a list or an object."""
        if isinstance(value, str):
            text = value.strip(_BLANK) if self.strip else value
            return None if text in self.nulls or (self.strip and not text) else text
        written = text_of(value)
        if self.nulls and written is not None and tidy_text(written) in self.nulls:
            return None
        return written


def text_of(value: object) -> str | None:
    """A number or truth value as `values.as_text` writes it, None if there is none; BadValueError if it is neither."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if value.is_integer() and abs(value) < _EXACT:
            return str(int(value))
        return repr(value) if abs(value) >= _SMALL else _small(value)
    raise BadValueError(f"must be one value, but got {'a list' if isinstance(value, list) else 'an object'}")


def tidy_text(text: str) -> str | None:
    """A text as `values.tidy` writes it, None if it says that there is no value."""
    whole = _WHOLE.fullmatch(text)
    text = whole[1] if whole else text
    if text in MISSING:
        return None
    if not _MOMENT.match(text):
        return _TRUTH.get(text, text)
    # What is kept of requests must be small: no moment is longer.
    return _moment(text) if len(text) <= _LONGEST else _moment.__wrapped__(text)


@lru_cache(maxsize=_KEPT)
def _moment(text: str) -> str:
    try:
        found: str = pl.DataFrame({"x": [text]}).select(tidy(pl.col("x"))).item()
    except UnicodeEncodeError:  # half a character of JSON's: no train had it
        return text
    return found


@lru_cache(maxsize=_KEPT)
def _small(value: float) -> str:
    found: str = pl.DataFrame({"x": [value]}).select(as_text(pl.col("x"), pl.Float64())).item()
    return found


def _number_of_text(text: str) -> float | None:
    if _NUMBER.fullmatch(text):
        return float(text)
    try:
        found: float | None = numbers(pl.Series("x", [text])).item()
    except (DataError, UnicodeEncodeError):
        raise BadValueError(f"must be a number, but got {text[:80]!r}") from None
    return found
