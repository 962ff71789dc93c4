"""A folder that scores with NumPy alone: the operations of a model as data, its weights, and a file that runs them."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from autoembed.bundle import Bundle
from autoembed.errors import BundleError
from autoembed.export import scorer
from autoembed.export.lookups import write_lookups
from autoembed.export.program import core_of, program_of
from autoembed.types import Array

REQUIREMENTS = ("numpy>=2",)
LIMITS = "It runs one operation after the other in NumPy: for tests and small loads, not for speed."
# Checks of the program that say nothing about its result.
_CHECKS = ("_assert_tensor_metadata.default", "_assert_scalar.default", "sym_constrain_range_for_size.default")


class Node(TypedDict):
    """One operation: where an argument is {"ref": NAME}, it is a value; `last` names those that nobody reads later."""

    op: str
    args: list[object]
    kwargs: dict[str, object]
    out: str
    last: list[str]


class Graph(TypedDict):
    """The operations in their order, the names of what comes in and out, and the kinds of the stored numbers."""

    version: int
    input: str
    output: str
    weights: dict[str, str]
    nodes: list[Node]


def write(bundle: Bundle, folder: Path) -> None:
    """Writes graph.json, weights.npz, vocabulary.json and scorer.py; BundleError names an unknown operation."""
    graph, weights = graph_of(core_of(program_of(bundle)))
    unknown = sorted({node["op"] for node in graph["nodes"]} - set(scorer._OPS))
    if unknown:
        raise BundleError(f"the NumPy scorer does not know the operation {unknown[0]}: export to onnx or torch instead")
    (folder / "graph.json").write_text(json.dumps(graph) + "\n")
    save: Callable[..., None] = np.savez  # whose stub takes arrays under no names but its own
    save(folder / "weights.npz", **weights)
    write_lookups(bundle.vocabulary, folder)
    (folder / "scorer.py").write_text(Path(scorer.__file__).read_text())


def graph_of(program: ExportedProgram) -> tuple[Graph, dict[str, Array]]:
    """The operations of a program of core ATen as JSON, and its tensors by name."""
    signature = program.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = signature.inputs_to_lifted_tensor_constants
    weights: dict[str, Array] = {}
    dtypes: dict[str, str] = {}
    nodes: list[Node] = []
    given = result = ""
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
            nodes.append(Node(op=_name(node.target), args=args, kwargs=kept, out=node.name, last=[]))
    used = {name for node in nodes for name in _refs([node["args"], list(node["kwargs"].values())])}
    _add_ends(nodes, keep={result, *weights})
    graph: Graph = {
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


def _name(target: object) -> str:
    if target in (operator.getitem, operator.mul):
        return "getitem" if target is operator.getitem else "mul"
    return str(target).removeprefix("aten.")


def _plain(value: object) -> object:
    if isinstance(value, fx.Node):
        return {"ref": value.name}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return str(value) if isinstance(value, torch.device | torch.layout | torch.memory_format) else value


def _refs(value: object) -> set[str]:
    if isinstance(value, dict):
        return {str(value["ref"])}
    return set().union(*map(_refs, value)) if isinstance(value, list) else set()


def _add_ends(nodes: list[Node], keep: set[str]) -> None:
    """Says of each node which values nobody reads after it, so that they can be let go."""
    seen = set(keep)
    for node in reversed(nodes):
        own = _refs([node["args"], list(node["kwargs"].values()), {"ref": node["out"]}])
        node["last"] = sorted(own - seen)
        seen |= own


def _array(tensor: Tensor) -> tuple[Array, str]:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy(), "bfloat16"
    return tensor.numpy(), str(tensor.dtype).removeprefix("torch.")
