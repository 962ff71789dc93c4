"""The JSON Schema of search spaces, by which editors complete and check keys while one is written."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from pydantic import BaseModel

from autoembed.methods import method as methods
from autoembed.nn.backbones import base as backbones
from autoembed.plans import Ensemble, TowerOptions
from autoembed.space.leaves import KINDS
from autoembed.space.space import SearchSpace
from autoembed.training import TrainConfig
from autoembed.trial import EmbeddingConfig

Node = dict[str, Any]  # a schema: as deep as it has to be
_RANGE: Node = {
    "type": "object",
    "properties": {kind: {"type": "array", "minItems": 1} for kind in KINDS},
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 1,
}
_DOTTED: Node = {"type": "string", "pattern": r"\."}


def json_schema() -> Node:
    """The schema of a search-space file, draft 2020-12; every leaf that may be a range may be one here."""
    schema = SearchSpace.model_json_schema()
    defs: Node = schema["$defs"]
    defs["Range"] = _RANGE
    sections: Node = {
        "embedding": _section(EmbeddingConfig, defs),
        "ensemble": _section(Ensemble, defs),
        "tower": _section(TowerOptions, defs),
        "train": _section(TrainConfig, defs),
        "backbone": _backbone(defs),
    }
    defs["Stage"] = _stage(defs)
    stage: Node = {"$ref": "#/$defs/Stage"}
    one: Node = {"anyOf": [stage, _ref("Range")]}
    stages: Node = {"type": "array", "minItems": 1, "items": one}
    named: Node = {"type": "string", "enum": methods.names()}
    properties: Node = schema["properties"]
    properties |= deepcopy(sections)
    properties["stages"] = {"anyOf": [stages, _ref("Range")]}
    properties["baselines"]["items"] = {"anyOf": [named, _DOTTED, stage, {"type": "array", "items": stage}]}
    defs["Variant"]["properties"] = deepcopy(sections)
    for limit in ("parameters", "width", "embedding_bytes", "bytes"):
        kinds = defs["Budget"]["properties"][limit]["anyOf"]
        defs["Budget"]["properties"][limit]["anyOf"] = [
            _ref("Range") if kind.get("type") == "object" else kind for kind in kinds
        ]
    multi = defs["DataSpec"]["properties"]["multi"]["additionalProperties"]
    defs["DataSpec"]["properties"]["multi"]["additionalProperties"] = {"anyOf": [multi, {"type": ["string", "null"]}]}
    properties["scheduler"] = {"anyOf": [_ref("Scheduler"), defs["Scheduler"]["properties"]["name"]]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "autoembed search space"}


def _ref(name: str) -> Node:
    return {"$ref": f"#/$defs/{name}"}


def _section(model: type[BaseModel], defs: Node) -> Node:
    """The schema of a section whose leaves may be ranges; what it refers to goes into `defs`."""
    own = model.model_json_schema()
    for name, part in own.pop("$defs", {}).items():
        defs.setdefault(name, part)
    own["properties"] = {name: _or_range(part) for name, part in own.get("properties", {}).items()}
    own["additionalProperties"] = False
    own.pop("required", None)
    return dict(own)


def _or_range(leaf: Node) -> Node:
    """A leaf or a range of it; what is said of the leaf stands outside, where editors look."""
    told: Node = {key: leaf[key] for key in ("title", "description", "default") if key in leaf}
    return {**told, "anyOf": [{key: value for key, value in leaf.items() if key not in told}, _ref("Range")]}


def _backbone(defs: Node) -> Node:
    """A backbone's name, or its name and options."""
    options = []
    for name in backbones.names():
        own = _section(backbones.find(name).Config, defs)
        own["properties"]["name"] = {"const": name}
        options.append({**own, "required": ["name"]})
    dotted: Node = {"type": "object", "properties": {"name": _DOTTED}, "required": ["name"]}
    named: Node = {"type": "string", "enum": backbones.names()}
    return {"anyOf": [named, _DOTTED, *options, dotted, _ref("Range")]}


def _stage(defs: Node) -> Node:
    """A method and its options, by the method's name."""
    options = []
    for name in methods.names():
        own = _section(methods.load(name).Config, defs)
        own["properties"]["method"] = {"const": name}
        options.append({**own, "required": ["method"]})
    dotted: Node = {"type": "object", "properties": {"method": _DOTTED}, "required": ["method"]}
    return {"anyOf": [*options, dotted]}
