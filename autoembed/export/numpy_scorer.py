"""A folder that scores with NumPy alone: the operations of a model as data, its weights, and a file that runs them."""

from __future__ import annotations

import json
import operator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from autoembed.bundle import Bundle
from autoembed.data.vocabulary import Vocabulary
from autoembed.errors import BundleError
from autoembed.export import scorer
from autoembed.export.program import program_of

REQUIREMENTS = ("numpy>=2",)
LIMITS = "It runs one operation after the other in NumPy: for tests and small loads, not for speed."
# Checks of the program that say nothing about its result.
_CHECKS = ("_assert_tensor_metadata.default", "_assert_scalar.default", "sym_constrain_range_for_size.default")


def write(bundle: Bundle, folder: Path) -> None:
    """Writes graph.json, weights.npz, vocabulary.json and scorer.py; BundleError names an unknown operation."""
    graph, weights = graph_of(program_of(bundle).run_decompositions())
    unknown = sorted({node["op"] for node in graph["nodes"]} - set(scorer._OPS))
    if unknown:
        raise BundleError(f"the NumPy scorer does not know the operation {unknown[0]}: export to onnx or torch instead")
    (folder / "graph.json").write_text(json.dumps(graph) + "\n")
    np.savez(folder / "weights.npz", allow_pickle=False, **weights)
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary_of(bundle.vocabulary), allow_nan=False) + "\n")
    (folder / "scorer.py").write_text(Path(scorer.__file__).read_text())


def graph_of(program: ExportedProgram) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """The operations of a program of core ATen as JSON, and its tensors by name."""
    signature = program.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = signature.inputs_to_lifted_tensor_constants
    weights: dict[str, np.ndarray[Any, Any]] = {}
    dtypes: dict[str, str] = {}
    nodes, given, result = [], "", ""
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in (*stored, *constants):
            own = program.constants if node.name in constants else None
            name = constants.get(node.name) or stored[node.name]
            tensor = own[name] if own is not None else _tensor(program, name)
            weights[node.name], dtypes[node.name] = _array(tensor)
        elif node.op == "placeholder":
            given = node.name
        elif node.op == "output":
            (result,) = (one.name for one in node.args[0])
        elif _name(node.target) not in _CHECKS:
            kwargs = {name: _plain(value) for name, value in node.kwargs.items()}
            kept = {name: value for name, value in kwargs.items() if name not in ("device", "layout", "pin_memory")}
            args = [_plain(value) for value in node.args]
            nodes.append({"op": _name(node.target), "args": args, "kwargs": kept, "out": node.name})
    used = {name for node in nodes for name in _refs([node["args"], list(node["kwargs"].values())])}
    _add_ends(nodes, keep={result, *weights})
    graph = {
        "version": 1,
        "input": given,
        "output": result,
        "weights": {name: dtype for name, dtype in dtypes.items() if name in used},
        "nodes": nodes,
    }
    return graph, {name: array for name, array in weights.items() if name in used}


def _tensor(program: ExportedProgram, name: str) -> Tensor:
    found: Tensor = program.state_dict[name] if name in program.state_dict else program.constants[name]
    return found


def _name(target: Any) -> str:
    if target in (operator.getitem, operator.mul):
        return str(target.__name__)
    return str(target).removeprefix("aten.")


def _plain(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return {"ref": value.name}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return str(value) if isinstance(value, torch.device | torch.layout | torch.memory_format) else value


def _refs(value: Any) -> set[str]:
    if isinstance(value, dict):
        return {value["ref"]}
    return set().union(*map(_refs, value)) if isinstance(value, list) else set()


def _add_ends(nodes: list[dict[str, Any]], keep: set[str]) -> None:
    """Says of each node which values nobody reads after it, so that they can be let go."""
    seen = set(keep)
    for node in reversed(nodes):
        own = _refs([node["args"], list(node["kwargs"].values()), {"ref": node["out"]}])
        node["last"] = sorted(own - seen)
        seen |= own


def _array(tensor: Tensor) -> tuple[np.ndarray[Any, Any], str]:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy(), "bfloat16"
    return tensor.numpy(), str(tensor.dtype).removeprefix("torch.")


def vocabulary_of(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """What turns raw values into ids, field by field, as JSON; None as an upper bound means infinity."""
    table, found = vocabulary.table(), []
    for name in vocabulary.names:
        own = table.filter(pl.col("field") == name)
        kind = own["kind"][0]
        field: dict[str, Any] = {"name": name, "kind": kind, "missing": vocabulary.missing(name)}
        if kind == "categorical":
            field["values"] = own["value"].to_list()
        elif kind == "numeric":
            bins = own.filter(pl.col("upper").is_not_null()).sort("upper")
            field["uppers"] = [upper if np.isfinite(upper) else None for upper in bins["upper"].to_list()]
            field["ids"] = bins["id"].to_list()
        else:
            cross = vocabulary.cross(name)
            assert cross is not None
            keys = own[1:].select("id", pl.col("value").cast(pl.Int64)).sort("value")
            field |= {"a": cross.a, "b": cross.b, "size": vocabulary.cardinality(cross.b), "buckets": cross.buckets}
            field |= {"keys": keys["value"].to_list(), "ids": keys["id"].to_list()}
        found.append(field)
    return found
