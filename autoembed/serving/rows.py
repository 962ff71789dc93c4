"""The rows of a request, as JSON or Arrow, to ids; what breaks a rule is told with its field and row."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import NoReturn, cast

import numpy as np
import polars as pl
import pyarrow as pa

from autoembed.bundle import Bundle
from autoembed.data.knots import plain
from autoembed.data.multi import is_list
from autoembed.data.readers import clean
from autoembed.data.values import col, is_missing
from autoembed.errors import DataError, first_line
from autoembed.export.lookups import lookups_of
from autoembed.serving.texts import FAST, UNSEEN, ArrowBody, Texts, TextTable, columns_of, rows_of
from autoembed.serving.values import GONE, BadValueError, CategoricalField, Field, MultiField, NumericField
from autoembed.types import Array

_SHAPES = ("row", "rows", "columns")
_FEW = 4096  # rows from which Polars is faster
_LONG = 1 << 14  # bytes of a body from which whole columns are faster than values
_PLAIN = (pl.String, pl.Boolean, pl.Float64, pl.Null)
_UNREADABLE = (pa.ArrowException, pl.exceptions.PolarsError, OSError, ValueError, TypeError)


class RefusedError(Exception):
    """A request that is not answered: its HTTP status and rule, and which field and row break it."""

    def __init__(self, status: int, rule: str, field: str | None = None, row: int | None = None) -> None:
        super().__init__(rule)
        self.status, self.rule, self.field, self.row = status, rule, field, row

    def node(self) -> dict[str, object]:
        """What the client is told."""
        return {"field": self.field, "row": self.row, "rule": self.rule} if self.status == 422 else {"rule": self.rule}


class RowReader:
    """Reads requests for one bundle: ids int32 [N, V], with GONE where a missing value has no id of its own.

    Args:
        bundle: a loaded bundle.
        max_rows: more rows are refused with status 413.
        strict: whether fields that the bundle does not have are refused.
    """

    def __init__(self, bundle: Bundle, *, max_rows: int, strict: bool) -> None:
        self.bundle, self.max_rows, self.strict = bundle, max_rows, strict
        self.columns = bundle.vocabulary.columns
        self.known = frozenset(self.columns)
        self._cells = itemgetter(*self.columns) if len(self.columns) > 1 else lambda row: (row[self.columns[0]],)
        self.fields: dict[str, Field] = {}
        for lookup in lookups_of(bundle.vocabulary):
            if lookup["kind"] == "categorical":
                self.fields[lookup["name"]] = CategoricalField(lookup, bundle.spec)
            elif lookup["kind"] == "multi":
                self.fields[lookup["name"]] = MultiField(lookup, bundle.spec)
            elif lookup["kind"] == "numeric":
                self.fields[lookup["name"]] = NumericField(lookup, bundle.spec)
        self.categorical = [name for name, field in self.fields.items() if isinstance(field, CategoricalField)]
        self.place = {name: number for number, name in enumerate(self.fields)}
        if FAST:
            self.table = TextTable(
                [field.direct if isinstance(field, CategoricalField) else {} for field in self.fields.values()]
            )

    def json(self, body: bytes) -> Array:
        """The ids of {"row": {}}, {"rows": [{}]} or {"columns": {"name": []}}."""
        if FAST and len(body) >= _LONG and (columns := self._of_texts(body)) is not None:
            return self.ids(columns)
        try:
            node = _JSON.decode(body.decode())
        except RecursionError:
            raise RefusedError(400, "the body is nested too deeply") from None
        except ValueError as error:
            raise RefusedError(400, f"the body must be JSON in UTF-8: {first_line(error)}") from None
        if not isinstance(node, dict) or len(node) != 1 or next(iter(node)) not in _SHAPES:
            raise RefusedError(422, 'the body must be {"row": {}}, {"rows": [{}]} or {"columns": {"name": []}}')
        ((shape, given),) = node.items()
        if shape == "columns":
            return self.ids(self._of_columns(given))
        return self.ids(self._of_rows([given] if shape == "row" else given))

    def warm(self, row: Mapping[str, object]) -> None:
        """Reads a row in every way, as the first time may take seconds: what is compiled is made then."""
        for node in ({"columns": {name: [value] for name, value in row.items()}}, {"rows": [row]}):
            if FAST:
                self._of_texts(json.dumps(node).encode())
            self.json(json.dumps(node).encode())

    def arrow(self, body: bytes) -> Array:
        """The ids of an Arrow IPC stream."""
        within, texts = ArrowBody(body), dict[str, Texts]()
        try:
            with pa.ipc.open_stream(within.handle) as stream:
                table = stream.read_all()
            table.validate()
            there = set(table.column_names)
            # A name that stands twice is refused with the frame, and one that is not there below.
            if FAST and len(body) >= _LONG and table.num_rows <= _FEW and len(there) == table.num_columns:
                texts = within.texts({name: table.column(name) for name in self.categorical if name in there})
            frame = pl.DataFrame() if there == texts.keys() else _checked(table.drop_columns(list(texts)))
            known = self._of_table(texts)
        except _UNREADABLE as error:
            raise _no_arrow(error) from None
        self._check_names(table.column_names, None)
        self._check_size(table.num_rows)
        self._check_types(frame.schema)
        if table.num_rows <= _FEW and all(_is_plain(frame.schema[name]) for name in self.columns if name not in texts):
            return self.ids([known[name] if name in known else frame[name].to_list() for name in self.columns])
        if texts:
            try:
                frame = _checked(table)
            except _UNREADABLE as error:
                raise _no_arrow(error) from None
        return self._of_frame(frame)

    def ids(self, columns: Sequence[Sequence[object] | Array]) -> Array:
        """Ids int32 [N, V] of plain values, a list for each of `self.columns`, or an array that is ids already."""
        found: dict[str, Sequence[Sequence[int] | Array]] = {}
        for (name, field), values in zip(self.fields.items(), columns, strict=True):
            if isinstance(values, np.ndarray):
                found[name] = [values]
                continue
            try:
                found[name] = list(field.columns(values))
            except BadValueError:
                _blame(field, values)
        names = self.bundle.vocabulary.names
        for name in names if len(names) > len(found) else ():
            if (cross := self.bundle.vocabulary.cross(name)) is not None:
                a, b = (_known(found[one]) for one in (cross.a, cross.b))
                found[name] = [self.bundle.vocabulary.encode_cross(name, a, b)]
            elif (of := self.bundle.vocabulary.statistic_of(name)) is not None:
                found[name] = [self.bundle.vocabulary.encode_statistic(name, _known(found[of]))]
        out: Array = np.array([column for name in names for column in found[name]], dtype=np.int32).T
        return out

    def _of_texts(self, body: bytes) -> list[Sequence[object] | Array] | None:
        """The columns of a body, those of plain texts as ids; None if the body is not simple, or breaks a rule."""
        try:
            body.decode()
            given = columns_of(body, _JSON) or rows_of(body, _JSON, self.max_rows)
        except (RecursionError, ValueError):
            return None
        if given is None or not self.known <= given.keys() or (self.strict and len(given) > len(self.known)):
            return None
        rows = len(given[self.columns[0]])
        if rows > self.max_rows or any(len(given[name]) != rows for name in self.columns):
            return None
        texts: dict[str, Texts] = {}
        columns: dict[str, Sequence[object] | Array] = {}
        for name, field in self.fields.items():
            one = given[name]
            if not isinstance(one, Texts):
                columns[name] = one
            elif isinstance(field, CategoricalField):
                texts[name] = one
            else:
                columns[name] = one.tolist()
        columns |= self._of_table(texts)
        return [columns[name] for name in self.columns]

    def _of_table(self, texts: Mapping[str, Texts]) -> dict[str, Array]:
        """The ids of columns of texts of one body."""
        if not texts:
            return {}
        found = self.table.ids({self.place[name]: own for name, own in texts.items()})
        least = found.min(axis=1, initial=0)
        for (name, own), ids, lowest in zip(texts.items(), found, least.tolist(), strict=True):
            if lowest == UNSEEN:
                unseen, field = np.flatnonzero(ids == UNSEEN), cast(CategoricalField, self.fields[name])
                ids[unseen] = field.ids([own[at] for at in unseen.tolist()])
        return dict(zip(texts, found, strict=True))

    def _of_rows(self, rows: object) -> list[Sequence[object]]:
        if not isinstance(rows, list):
            raise RefusedError(422, f"rows must be a list of objects, but got {_kind(rows)}")
        self._check_size(len(rows))
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                raise RefusedError(422, f"a row must be an object, but got {_kind(row)}", row=number)
            if len(row) != len(self.known):
                self._check_names(row, number)
        try:
            return list(zip(*map(self._cells, rows), strict=True)) or [()] * len(self.columns)
        except KeyError:
            for number, row in enumerate(rows):
                self._check_names(row, number)
            raise

    def _of_columns(self, given: object) -> list[list[object]]:
        if not isinstance(given, dict):
            raise RefusedError(422, f"columns must be an object of lists, but got {_kind(given)}")
        self._check_names(given, None)
        columns = [given[name] for name in self.columns]
        for name, values in zip(self.columns, columns, strict=True):
            if not isinstance(values, list):
                raise RefusedError(422, f"a column must be a list, but got {_kind(values)}", name)
            if len(values) != len(columns[0]):
                raise RefusedError(
                    422, f"must have {len(columns[0])} values as the others, but has {len(values)}", name
                )
        self._check_size(len(columns[0]) if columns else 0)
        return columns

    def _of_frame(self, frame: pl.DataFrame) -> Array:
        rows = clean(frame.lazy().select(col(name) for name in self.columns), self.bundle.spec).collect()
        try:
            ids = self.bundle.vocabulary.encode(rows)
        except DataError as error:
            for name, field in self.fields.items():
                if isinstance(field, NumericField) and rows[name].dtype == pl.String:
                    _blame(field, rows[name].to_list(), sure=False)
            raise RefusedError(422, str(error)) from None
        for name in self.columns:
            if not self.bundle.vocabulary.missing(name):
                ids[is_missing(rows[name]).to_numpy(), self.bundle.schema.columns([name])[0]] = GONE
        return ids

    def _check_size(self, rows: int) -> None:
        if rows > self.max_rows:
            raise RefusedError(413, f"a request must have at most {self.max_rows} rows, but has {rows}")

    def _check_types(self, kinds: Mapping[str, pl.DataType]) -> None:
        for name, field in self.fields.items():
            dtype = kinds.get(name)
            if dtype is None:  # it is among the texts
                continue
            if isinstance(field, MultiField):
                if not (is_list(dtype) or dtype == pl.Null or (dtype == pl.String and field.separator is not None)):
                    raise RefusedError(422, f"must hold lists, but its type is {dtype}", name)
            elif dtype.is_nested():
                raise RefusedError(422, f"must hold one value per row, but its type is {dtype}", name)

    def _check_names(self, given: Iterable[str], row: int | None) -> None:
        present = set(given)
        for name in self.columns:
            if name not in present:
                raise RefusedError(
                    422, "must be there: the model takes this field (null if it has no value)", name, row
                )
        if self.strict and (more := sorted(present - self.known)):
            raise RefusedError(422, "is no field of the model, and the server is strict", more[0], row)


def _checked(table: pa.Table) -> pl.DataFrame:
    """A table of Arrow's as a frame; one of `_UNREADABLE` if what a client sent is not what it says."""
    table.validate(full=True)
    return cast(pl.DataFrame, pl.from_arrow(table))


def _no_arrow(error: Exception) -> RefusedError:
    return RefusedError(400, f"the body must be an Arrow IPC stream: {first_line(error)}")


def _known(columns: Sequence[Sequence[int] | Array]) -> Array:
    """The ids of a field with one value a row, those that are gone as unknown: int32 [N].

    Of a number between knots, which has two columns, that of its bin.
    """
    ids = np.maximum(np.array(columns[0], dtype=np.int32), 0)
    return ids if len(columns) == 1 else plain(ids)


def _is_plain(dtype: pl.DataType) -> bool:
    """Whether values of the type, as Python has them, are written as Polars writes them."""
    if isinstance(dtype, pl.List):
        return _is_plain(cast(pl.DataType, dtype.inner))
    return dtype.is_integer() or dtype in _PLAIN


def _blame(field: Field, values: Sequence[object], *, sure: bool = True) -> None:
    """RefusedError with the first value that the field refuses; of a caller that is `sure`, there is one."""
    for row, value in enumerate(values):
        try:
            field.columns([value])
        except BadValueError as error:
            raise RefusedError(422, str(error), field.name, row) from None
    assert not sure


def _kind(value: object) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}
    return names[type(value)]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON (null says that there is no value)")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)
