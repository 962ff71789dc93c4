"""Scores rows with an exported model, with NumPy and nothing else.

    from scorer import Scorer

    model = Scorer.load(".")
    model.predict({"country": ["de", None], "price": [9.5, 3.0]})      # click probabilities, float32 [N]
    model.predict_proba(...)                                           # of no click and click, float32 [N, 2]

This file is copied into the folder that it reads: graph.json (the operations), weights.npz and vocabulary.json.
"""

from __future__ import annotations

import datetime as dt
import decimal
import json
import math
import re
import zlib
from pathlib import Path

import numpy as np

_EXACT = 2.0**53
_WHOLE = re.compile(r"^(-?\d+)\.0+$")
_MISSING = ("", "nan", "NaN")
_TRUTH = {"True": "true", "TRUE": "true", "False": "false", "FALSE": "false"}
_MOMENT = re.compile(r"^(\d{4}-\d{2}-\d{2})[T ](\d{2}:\d{2})(:\d{2}(?:\.\d+)?)?(?: ?(Z|UTC|[+-]\d{2}:?\d{2}))?$")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
CHUNK = 4096
_SPAN, _ONE = 1 << 16, 1 << 15  # of the codes of numbers between knots


def text_of(value):
    """The text by which a value is known, or None where it is missing."""
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        if math.isnan(value):
            return None
        value = float(value)
        return str(int(value)) if value == round(value) and abs(value) < _EXACT else _number(value)
    if isinstance(value, decimal.Decimal):
        plain = format(value, "f")
        return plain.rstrip("0").rstrip(".") if "." in plain else plain
    if isinstance(value, dt.datetime):
        value = value.isoformat()
    if isinstance(value, bytes):
        value = value.decode()
    text = _moment(_WHOLE.sub(r"\1", str(value)))
    return None if text in _MISSING else _TRUTH.get(text, text)


def _number(value):
    """As Polars writes it: numbers near 0 have another form in Python."""
    body, sign, power = repr(value).partition("e-")
    if not sign:
        return body
    return format(decimal.Decimal(repr(value)), "f") if int(power) == 5 else f"{body}e-{int(power)}"


def _moment(text):
    """A moment in UTC, which one without a zone is in, and short: midnight is its date. Other text as it is."""
    found = _MOMENT.match(text)
    if not found:
        return text
    day, clock, seconds, zone = found.groups()
    zone = "+00:00" if zone in (None, "Z", "UTC") else zone
    try:
        moment = dt.datetime.fromisoformat(f"{day} {clock}{seconds or ':00'}{zone}").astimezone(dt.UTC)
    except ValueError:
        return text
    short = re.sub(r"\.?0{1,6}$", "", moment.strftime("%Y-%m-%d %H:%M:%S.%f"), count=1)
    return short.removesuffix(" 00:00:00")


class _Categorical:
    def __init__(self, field):
        self.known = {value: place for place, value in enumerate(field["values"]) if value is not None}
        self.missing, self.buckets = field["missing"], field.get("buckets")
        words = set(self.known)
        self.truth = {}
        if words and words <= {"true", "false"}:
            self.truth = {"1": "true", "0": "false"}
        self.numbers = bool(words) and words <= {"0", "1"}

    def ids(self, column):
        return np.array([self._id(value) for value in column], dtype=np.int64)

    def _id(self, value):
        if isinstance(value, str) and value in self.known:  # as it stands, before it is tidied
            return self.known[value]
        text = text_of(value)
        if text is None:
            return self.missing
        text = self.truth.get(text, text)
        if self.numbers or isinstance(value, (bool, np.bool_)):
            text = {"true": "1", "false": "0"}.get(text, text) if text not in self.known else text
        if self.buckets and text not in self.known:
            text = f"#hash:{zlib.crc32(text.encode()) % self.buckets}"
        return self.known.get(text, 0)


class _Multi:
    def __init__(self, field):
        self.value, self.missing = _Categorical(field), field["missing"]
        self.separator, self.length, self.last = field["separator"], field["length"], field["keep"] == "last"

    def ids(self, column):
        found = np.full((len(column), self.length), -1, dtype=np.int64)
        for row, values in zip(found, column, strict=True):
            if isinstance(values, str):
                if self.separator is None:
                    raise ValueError(f"a multi-valued column must hold lists, but got {values!r}")
                values = [value.strip() for value in values.split(self.separator)]
            held = [] if values is None else [value for value in values if text_of(value) is not None]
            kept = held[-self.length :] if self.last else held[: self.length]
            row[: max(len(kept), 1)] = self.value.ids(kept) if kept else self.missing
        return found


class _Numeric:
    def __init__(self, field):
        self.uppers = np.array([math.inf if upper is None else upper for upper in field["uppers"]])
        self.of_place, self.missing = np.array([*field["ids"], 0], dtype=np.int64), field["missing"]
        self.knots = np.array([math.nan if knot is None else knot for knot in field.get("knots", [])])

    def ids(self, column):
        values = np.array([math.nan if value is None or value in _MISSING else float(value) for value in column])
        if len(self.knots):
            return self._between(values)
        found = self.of_place[
            np.searchsorted(self.uppers, np.nan_to_num(values, nan=0.0, posinf=np.inf, neginf=-np.inf))
        ]
        found[np.isnan(values)] = self.missing
        return found

    def _between(self, values):
        """The codes of the two knots that each number lies between, -1 where one is enough."""
        gone = np.isnan(values)
        x = np.where(gone, 0.0, values)
        place = np.searchsorted(self.uppers, x)
        other = np.clip(place + np.where(x > self.knots[place], 1, -1), 0, len(self.knots) - 1)
        own = self.knots[place] / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            gap = self.knots[other] / 2 - own
            share = np.where((gap == 0) | ~np.isfinite(gap), 0.0, (x / 2 - own) / gap)
        parts = np.minimum(np.floor(share * _ONE + 0.5), _ONE - 1).astype(np.int64)
        first = np.where(gone, self.missing, self.of_place[place] + parts * _SPAN)
        second = np.where(gone | (parts == 0), -1, self.of_place[other] + (_ONE - parts) * _SPAN)
        return np.stack([first, second], axis=1)


def _one(ids):
    """One id a row: of a number between two knots, that of its bin."""
    return ids if ids.ndim == 1 else ids[:, 0] % _SPAN


class _Crossed:
    def __init__(self, field):
        self.a, self.b, self.size, self.buckets = field["a"], field["b"], field["size"], field["buckets"]
        self.keys, self.of_place = np.array(field["keys"], dtype=np.int64), np.array(field["ids"], dtype=np.int64)

    def ids(self, a, b):
        keys = a * self.size + b
        if self.buckets is not None:
            mixed = keys.astype(np.uint64) * _FACTOR
            keys = ((mixed ^ (mixed >> np.uint64(29))) % np.uint64(self.buckets)).astype(np.int64)
        if not len(self.keys):
            return np.zeros_like(a)
        places = np.searchsorted(self.keys, keys)
        places[places == len(self.keys)] = 0
        return np.where(self.keys[places] == keys, self.of_place[places], 0)


class _Statistic:
    def __init__(self, field):
        self.of, self.of_ids = field["of"], np.array(field["ids"], dtype=np.int64)

    def ids(self, of):
        return self.of_ids[of]


_KINDS = {
    "categorical": _Categorical,
    "multi": _Multi,
    "numeric": _Numeric,
    "crossed": _Crossed,
    "statistic": _Statistic,
}


class Scorer:
    """A model to score with; `columns` are those that rows must have."""

    def __init__(self, graph, weights, vocabulary):
        self.graph, self.weights = graph, weights
        self.fields: list[tuple] = [(field["name"], _KINDS[field["kind"]](field)) for field in vocabulary]
        self.columns = [field["name"] for field in vocabulary if field["kind"] not in ("crossed", "statistic")]
        unknown = {node["op"] for node in graph["nodes"]} - set(_OPS)
        if unknown:
            raise ValueError(f"graph.json must use operations of this file, but has {', '.join(sorted(unknown))}")

    @classmethod
    def load(cls, folder):
        """A scorer from the folder of an export."""
        folder = Path(folder)
        graph = json.loads((folder / "graph.json").read_text())
        with np.load(folder / "weights.npz", allow_pickle=False) as stored:
            weights = {name: _stored(stored[name], graph["weights"][name]) for name in stored.files}
        return cls(graph, weights, json.loads((folder / "vocabulary.json").read_text()))

    def ids(self, rows):
        """Ids int64 [N, V] of raw rows: a mapping of columns, a data frame, or a list of dictionaries."""
        if isinstance(rows, list):
            rows = {name: [row.get(name) for row in rows] for name in self.columns}
        absent = [name for name in self.columns if name not in rows]
        if absent:
            raise ValueError(f"the rows lack these columns: {', '.join(absent)}")
        found: dict[str, np.ndarray] = {}
        for name, field in self.fields:
            if isinstance(field, _Crossed):
                found[name] = field.ids(_one(found[field.a]), _one(found[field.b]))
            elif isinstance(field, _Statistic):
                found[name] = field.ids(_one(found[field.of]))
            else:
                found[name] = field.ids(list(rows[name]))
        return np.concatenate([ids if ids.ndim == 2 else ids[:, None] for ids in found.values()], axis=1)

    def predict_ids(self, ids):
        """Click probabilities float32 [N], or those of classes [N, C], of ids int [N, V]."""
        ids = np.asarray(ids, dtype=np.int64)
        parts = [self._run(ids[start : start + CHUNK]) for start in range(0, len(ids), CHUNK)]
        return np.concatenate(parts).astype(np.float32) if parts else np.empty(0, dtype=np.float32)

    def predict(self, rows):
        """Click probabilities float32 [N], or those of classes [N, C], of raw rows, as `ids` takes them."""
        return self.predict_ids(self.ids(rows))

    def predict_proba(self, rows):
        """Probabilities of no click and of a click, float32 [N, 2], or of each class, [N, C]."""
        click = self.predict(rows)
        return click if click.ndim == 2 else np.stack([1 - click, click], axis=1)

    def _run(self, ids):
        values = {**self.weights, self.graph["input"]: ids}

        def read(argument):
            if isinstance(argument, dict):
                return values[argument["ref"]]
            return [read(one) for one in argument] if isinstance(argument, list) else argument

        for node in self.graph["nodes"]:
            options = {name: read(value) for name, value in node["kwargs"].items()}
            values[node["out"]] = _OPS[node["op"]](*map(read, node["args"]), **options)
            for name in node["last"]:
                del values[name]
        return values[self.graph["output"]]


def _stored(array, dtype):
    """bfloat16 is stored as 16-bit integers, the upper half of a float32."""
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else array


def _dtype(name):
    return np.dtype("float32" if name == "bfloat16" else name)


def _index(x, indices):
    return x[tuple(slice(None) if index is None else index for index in indices)]


def _slice(x, dim=0, start=None, end=None, step=1):
    at = [slice(None)] * x.ndim
    at[dim] = slice(start, end, step)
    return x[tuple(at)]


def _scatter_add(x, dim, index, source):
    out = x.copy()
    at = list(np.ogrid[tuple(slice(size) for size in index.shape)])
    at[dim] = index
    np.add.at(out, tuple(at), source[tuple(slice(size) for size in index.shape)])
    return out


def _scatter(x, dim, index, source):
    out = x.copy()
    np.put_along_axis(out, index, source, dim)
    return out


def _softmax(x, dim, half=False):
    e = np.exp(x - x.max(dim, keepdims=True))
    return e / e.sum(dim, keepdims=True)


def _batch_norm(x, weight, bias, mean, variance, momentum, eps):
    shape = (1, -1) + (1,) * (x.ndim - 2)
    out = (x - mean.reshape(shape)) / np.sqrt(variance + np.float32(eps)).reshape(shape)
    out = out if weight is None else out * weight.reshape(shape)
    return (out if bias is None else out + bias.reshape(shape),)


def _layer_norm(x, shape, weight, bias, eps):
    dims = tuple(range(x.ndim - len(shape), x.ndim))
    centred = x - x.mean(dims, keepdims=True)
    out = centred / np.sqrt((centred * centred).mean(dims, keepdims=True) + np.float32(eps))
    out = out if weight is None else out * weight
    return (out if bias is None else out + bias,)


def _sort(x, dim=-1, descending=False):
    order = np.argsort(-x if descending else x, axis=dim, kind="stable")
    return np.take_along_axis(x, order, dim), order


def _reduce(function):
    def reduced(x, dim=None, keepdim=False, *, dtype=None):
        dims = tuple(dim) if isinstance(dim, list) else dim
        out = function(x, axis=dims or None, keepdims=keepdim)
        return out if dtype is None else out.astype(_dtype(dtype))

    return reduced


def _clamp(x, low=None, high=None):
    return np.clip(x, low, high)


def _pad(x, pad, value=0):
    widths = [(0, 0)] * x.ndim
    for place in range(len(pad) // 2):
        widths[-1 - place] = (pad[2 * place], pad[2 * place + 1])
    return np.pad(x, widths, constant_values=value)


def _split(x, sizes, dim=0):
    return np.split(x, np.cumsum(sizes)[:-1], axis=dim)


def _sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype)


def _divide(a, b, rounding_mode=None):
    return {"floor": np.floor_divide, None: np.true_divide}[rounding_mode](a, b)


def _full(shape, value, dtype="float32", **_):
    return np.full([int(size) for size in shape], value, dtype=_dtype(dtype))


def _expand(x, shape, implicit=False):
    before = (1,) * (len(shape) - x.ndim) + x.shape
    return np.broadcast_to(x, [own if size == -1 else size for own, size in zip(before, shape, strict=True)])


def _squeeze(x, dims):
    return x.squeeze(tuple(d for d in ([dims] if isinstance(dims, int) else dims) if x.shape[d] == 1))


_OPS = {
    "add.Tensor": lambda a, b, alpha=1: a + (b if alpha == 1 else alpha * b),
    "sub.Tensor": lambda a, b, alpha=1: a - (b if alpha == 1 else alpha * b),
    "rsub.Scalar": lambda a, b, alpha=1: b - alpha * a,
    "mul.Tensor": lambda a, b: a * b,
    "mul": lambda a, b: a * b,
    "div.Tensor": lambda a, b: a / b,
    "div.Tensor_mode": _divide,
    "remainder.Scalar": lambda a, b: a % b,
    "remainder.Tensor": lambda a, b: a % b,
    "pow.Tensor_Scalar": lambda a, b: a * a if b == 2 else a**b,
    "neg.default": lambda a: -a,
    "abs.default": np.abs,
    "exp.default": np.exp,
    "log.default": np.log,
    "sqrt.default": np.sqrt,
    "rsqrt.default": lambda a: 1 / np.sqrt(a),
    "reciprocal.default": lambda a: 1 / a,
    "tanh.default": np.tanh,
    "relu.default": lambda a: np.maximum(a, 0),
    "sigmoid.default": _sigmoid,
    "minimum.default": np.minimum,
    "maximum.default": np.maximum,
    "clamp.default": _clamp,
    "clamp_min.default": lambda a, low: np.maximum(a, low),
    "eq.Scalar": lambda a, b: a == b,
    "eq.Tensor": lambda a, b: a == b,
    "ne.Scalar": lambda a, b: a != b,
    "ge.Tensor": lambda a, b: a >= b,
    "ge.Scalar": lambda a, b: a >= b,
    "gt.Scalar": lambda a, b: a > b,
    "gt.Tensor": lambda a, b: a > b,
    "lt.Scalar": lambda a, b: a < b,
    "lt.Tensor": lambda a, b: a < b,
    "le.Scalar": lambda a, b: a <= b,
    "le.Tensor": lambda a, b: a <= b,
    "logical_and.default": np.logical_and,
    "bitwise_and.Tensor": lambda a, b: a & b,
    "logical_not.default": np.logical_not,
    "bitwise_not.default": np.invert,
    "where.self": np.where,
    "sum.dim_IntList": _reduce(np.sum),
    "mean.dim": _reduce(np.mean),
    "amax.default": _reduce(np.max),
    "any.dim": _reduce(np.any),
    "argmax.default": lambda a, dim=None, keepdim=False: a.argmax(dim, keepdims=keepdim),
    "cumsum.default": lambda a, dim, dtype=None: a.cumsum(dim, dtype=a.dtype if dtype is None else _dtype(dtype)),
    "cat.default": lambda parts, dim=0: np.concatenate(parts, axis=dim),
    "view.default": lambda a, shape: a.reshape([int(size) for size in shape]),
    "expand.default": _expand,
    "permute.default": lambda a, dims: a.transpose(dims),
    "select.int": lambda a, dim, at: a.take(at, axis=dim),
    "slice.Tensor": _slice,
    "squeeze.dims": _squeeze,
    "squeeze.dim": _squeeze,
    "unsqueeze.default": lambda a, dim: np.expand_dims(a, dim),
    "index.Tensor": _index,
    "index_select.default": lambda a, dim, index: a.take(index, axis=dim),
    "embedding.default": lambda table, index, *_: table[index],
    "gather.default": lambda a, dim, index: np.take_along_axis(a, index, dim),
    "scatter_add.default": _scatter_add,
    "scatter.src": _scatter,
    "mm.default": np.matmul,
    "bmm.default": np.matmul,
    "addmm.default": lambda bias, a, b: a @ b + bias,
    "_to_copy.default": lambda a, dtype=None, **_: a if dtype is None else a.astype(_dtype(dtype)),
    "clone.default": lambda a, **_: a,
    "alias.default": lambda a: a,
    "full.default": _full,
    "full_like.default": lambda a, value, **_: np.full_like(a, value),
    "scalar_tensor.default": lambda value, dtype="float32", **_: np.asarray(value, dtype=_dtype(dtype)),
    "arange.start_step": lambda start, end, step=1, dtype="int64", **_: np.arange(
        start, end, step, dtype=_dtype(dtype)
    ),
    "constant_pad_nd.default": _pad,
    "split_with_sizes.default": _split,
    "_softmax.default": _softmax,
    "sort.default": _sort,
    "_native_batch_norm_legit_no_training.default": _batch_norm,
    "native_layer_norm.default": _layer_norm,
    "getitem": lambda a, at: a[at],
    "sym_size.int": lambda a, dim: a.shape[dim],
}
