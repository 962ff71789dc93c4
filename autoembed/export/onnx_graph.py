"""ONNX: model.onnx takes ids, rows.onnx takes raw values, column by column. Tables keep their packed bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.export import ExportedProgram

from autoembed.bundle import Bundle
from autoembed.data.knots import ONE, SPAN
from autoembed.errors import BundleError
from autoembed.export.lookups import Categorical, Crossed, Lookup, MultiLookup, Numeric, Statistic, lookups_of
from autoembed.export.outputs import output_name
from autoembed.export.program import INPUT, program_of, quiet
from autoembed.types import Array

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

REQUIREMENTS = ("onnxruntime>=1.20", "numpy")
LIMITS = (
    "rows.onnx knows a value by its text: numbers of categorical columns must be given as text, whole ones without a "
    "decimal point, and a missing value as an empty text, or NaN in numeric columns. A multi-valued column is a table "
    "of texts [N, values], empty where a row has fewer."
)
FURTHER = "auxiliary"
_OPSET, _ML = 18, 2
_TRUTH = {"true": ("true", "True", "TRUE", "1"), "false": ("false", "False", "FALSE", "0")}


def write(bundle: Bundle, folder: Path) -> None:
    """Writes model.onnx and rows.onnx; BundleError says which package is missing.

    rows.onnx is left out where a column is hashed, which ONNX has no operation for.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise BundleError(f"exporting to ONNX needs the package {error.name}: pip install 'autoembed[onnx]'") from None
    every = bool(bundle.schema.auxiliary_labels)
    outputs = [output_name(bundle.schema), *([FURTHER] if every else [])]
    model = graph_of_ids(program_of(bundle, every=every), outputs)
    onnx.save(model, folder / "model.onnx")
    fields = lookups_of(bundle.vocabulary)
    if not any(field.get("buckets") for field in fields):
        onnx.save(_with_lookups(model, fields), folder / "rows.onnx")


def graph_of_ids(program: ExportedProgram, outputs: Sequence[str] = ("click",)) -> ModelProto:
    """A program as an ONNX model, without a word of the machine that made it."""
    with quiet():
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=_OPSET,
            input_names=[INPUT],
            output_names=list(outputs),
            verbose=False,
        )
    assert made is not None
    model = made.model_proto
    for one in model.graph.node:  # where in the exporting machine's files each operation comes from
        del one.metadata_props[:]
        one.ClearField("doc_string")
    return model


def _with_lookups(model: ModelProto, fields: list[Lookup]) -> ModelProto:
    """A copy of a graph of ids with the lookups of raw values before it."""
    from onnx import checker, helper

    lookups = _Lookups()
    for field in fields:
        lookups.add(field)
    lookups.join(INPUT)
    graph = model.graph
    merged = helper.make_graph(
        [*lookups.nodes, *graph.node],
        "rows",
        lookups.inputs,
        graph.output,
        initializer=[*lookups.constants, *graph.initializer],
        value_info=graph.value_info,
    )
    opsets = [*model.opset_import, helper.make_opsetid("ai.onnx.ml", _ML)]
    made = helper.make_model(merged, opset_imports=opsets, ir_version=model.ir_version, functions=model.functions)
    checker.check_model(made)
    return made


class _Lookups:
    """The nodes that turn raw columns into ids, int64 [N] each."""

    def __init__(self) -> None:
        self.inputs: list[ValueInfoProto] = []
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.ids: dict[str, str] = {}  # of each field, the name of its ids in the graph
        self.columns: list[str] = []  # of the encoded table, int64 [N, 1] each, or [N, values]
        self.axis = self._constant("raw/axis", [1])

    def add(self, field: Lookup) -> None:
        """A field, after those that it is made of."""
        at = f"raw/{len(self.ids)}"
        if field["kind"] == "categorical":
            self.ids[field["name"]] = self._categorical(field, at)
        elif field["kind"] == "numeric":
            self.ids[field["name"]] = self._numeric(field, at)
            if "knots" in field:
                knots = [math.nan if knot is None else knot for knot in field["knots"]]
                self.columns += [self._column(name) for name in self._between(field, knots, at)]
                return
        elif field["kind"] == "multi":
            self.columns.append(self._multi(field, at))
            self.ids[field["name"]] = ""  # neither crosses nor click rates are of several values
            return
        elif field["kind"] == "crossed":
            self.ids[field["name"]] = self._crossed(field, at)
        elif field["kind"] == "statistic":
            self.ids[field["name"]] = self._statistic(field, at)
        self.columns.append(self._column(self.ids[field["name"]]))

    def join(self, output: str) -> None:
        """The columns of the encoded table side by side, [N, V]."""
        self._node("Concat", self.columns, output, axis=1)

    def _column(self, name: str) -> str:
        return self._node("Unsqueeze", [name, self.axis], f"raw/{len(self.columns)}/side/{name}")

    def _categorical(self, field: Categorical, at: str) -> str:
        from onnx import TensorProto

        texts = _texts(field)
        return self._encoder(
            [self._input(field["name"], TensorProto.STRING)],
            f"{at}/id",
            keys_strings=list(texts),
            values_int64s=list(texts.values()),
        )

    def _multi(self, field: MultiLookup, at: str) -> str:
        """The ids of as many values of each row as are kept, -1 behind them: [N, length].

        The last ones come in falling order of their places; pooling knows no order.
        """
        from onnx import TensorProto

        def node(kind: str, *inputs: str, **attributes: object) -> str:
            return self._node(kind, list(inputs), f"{at}/several/{len(self.nodes)}", **attributes)

        def constant(values: object) -> str:
            return self._constant(f"{at}/several/constant/{len(self.constants)}", values)

        texts, none, zero = _texts(field) | {"": -1}, constant(-1), constant(0)
        own = self._encoder(
            [self._input(field["name"], TensorProto.STRING, f"{at}/values")],
            f"{at}/every",
            keys_strings=list(texts),
            values_int64s=list(texts.values()),
        )
        padded = node("Pad", own, constant([0, 0, 0, field["length"]]), none)  # a batch may have fewer than are kept
        held = node("Cast", node("GreaterOrEqual", padded, zero), to=TensorProto.INT64)
        ones = node("Add", node("Mul", held, zero), constant(1))
        place = node("CumSum", ones, constant(1), reverse=int(field["keep"] == "first"))
        kept = f"{at}/several/kept"
        self._node("TopK", [node("Mul", held, place), constant([field["length"]])], kept, f"{kept}/places", axis=1)
        found = node("GatherElements", padded, f"{kept}/places", axis=1)
        missing = [[field["missing"]] + [-1] * (field["length"] - 1)]
        nothing = node("Less", node("ReduceMax", found, self.axis, keepdims=1), zero)
        return node("Where", nothing, constant(missing), found)

    def _numeric(self, field: Numeric, at: str) -> str:
        """The number of upper bounds below a value is its bin."""
        from onnx import TensorProto

        name = self._input(field["name"], TensorProto.DOUBLE)
        uppers = [math.inf if upper is None else upper for upper in field["uppers"]]
        column = self._node("Unsqueeze", [name, self.axis], f"{at}/column")
        above = self._node("Greater", [column, self._constant(f"{at}/uppers", [uppers])], f"{at}/above")
        counted = self._node("Cast", [above], f"{at}/whole", to=TensorProto.INT64)
        bin_ = self._node("ReduceSum", [counted, self.axis], f"{at}/bin", keepdims=0)
        known = self._node("Gather", [self._constant(f"{at}/ids", [*field["ids"], 0]), bin_], f"{at}/known")
        missing = self._constant(f"{at}/missing", field["missing"])
        return self._node("Where", [self._node("IsNaN", [name], f"{at}/nan"), missing, known], f"{at}/id")

    def _between(self, field: Numeric, knots: list[float], at: str) -> tuple[str, str]:
        """The codes of the two knots that a number lies between, those of `data.knots.encode`, after `_numeric`."""
        from onnx import TensorProto

        def node(kind: str, *inputs: str, **attributes: object) -> str:
            return self._node(kind, list(inputs), f"{at}/between/{len(self.nodes)}", **attributes)

        def constant(values: object) -> str:
            return self._constant(f"{at}/between/constant/{len(self.constants)}", values)

        x, bin_, none = field["name"], f"{at}/bin", constant(-1)
        size = len(knots)
        neighbours = [np.clip(np.arange(size) + step, 0, size - 1) for step in (1, -1)]
        own_knot = node("Gather", constant([*knots]), bin_)
        above = node("Greater", x, own_knot)

        def other(values: Array) -> str:
            up, down = (node("Gather", constant(values[at_side].tolist()), bin_) for at_side in neighbours)
            return node("Where", above, up, down)

        half, zero = constant(2.0), constant(0.0)
        own, far, from_x = (node("Div", one, half) for one in (own_knot, other(np.array(knots)), x))
        gap = node("Sub", far, own)
        part = node("Div", node("Sub", from_x, own), gap)
        alone = node("Or", node("Equal", gap, zero), node("IsNaN", gap))
        share = node("Where", alone, zero, part)
        rounded = node("Floor", node("Add", node("Mul", share, constant(float(ONE))), constant(0.5)))
        parts = node("Cast", node("Min", rounded, constant(float(ONE - 1))), to=TensorProto.INT64)
        gone, span = f"{at}/nan", constant(SPAN)
        first = node("Add", f"{at}/known", node("Mul", parts, span))
        left = node("Mul", node("Sub", constant(ONE), parts), span)
        second = node("Add", other(np.array(field["ids"])), left)
        whole = node("Or", gone, node("Equal", parts, constant(0)))
        return node("Where", gone, f"{at}/missing", first), node("Where", whole, none, second)

    def _crossed(self, field: Crossed, at: str) -> str:
        size = self._constant(f"{at}/size", field["size"])
        scaled = self._node("Mul", [self.ids[field["a"]], size], f"{at}/scaled")
        key = self._node("Add", [scaled, self.ids[field["b"]]], f"{at}/key")
        # A lookup must have a key, and ids are never below 0.
        keys, ids = (field["keys"], field["ids"]) if field["keys"] else ([-1], [0])
        return self._encoder([key], f"{at}/id", keys_int64s=keys, values_int64s=ids)

    def _statistic(self, field: Statistic, at: str) -> str:
        return self._node("Gather", [self._constant(f"{at}/ids", field["ids"]), self.ids[field["of"]]], f"{at}/id")

    def _encoder(self, inputs: list[str], output: str, **tables: list[str] | list[int]) -> str:
        return self._node("LabelEncoder", inputs, output, domain="ai.onnx.ml", default_int64=0, **tables)

    def _input(self, name: str, kind: int, *more: str) -> str:
        """An input [N], or of `more` dims."""
        from onnx import helper

        self.inputs.append(helper.make_tensor_value_info(name, kind, ["batch", *more]))
        return name

    def _node(self, kind: str, inputs: list[str], *outputs: str, **attributes: object) -> str:
        """A node; the name of its first output."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [*outputs], **attributes))
        return outputs[0]

    def _constant(self, name: str, values: object) -> str:
        from onnx import TensorProto, helper

        own = np.asarray(values)
        kind = TensorProto.DOUBLE if own.dtype.kind == "f" else TensorProto.INT64
        self.constants.append(helper.make_tensor(name, kind, own.shape, own.reshape(-1).tolist()))
        return name


def _texts(field: Categorical | MultiLookup) -> dict[str, int]:
    """The ids of a categorical field's texts; empty means missing, and truth values have all their spellings."""
    known = {value: place for place, value in enumerate(field["values"]) if value is not None}
    words = set(known)
    if words and (words <= set(_TRUTH) or words <= {"0", "1"}):
        for word, spellings in _TRUTH.items():
            own = known.get(word, known.get(spellings[-1]))
            known |= {} if own is None else dict.fromkeys(spellings, own)
    return {**known, "": field["missing"]}
