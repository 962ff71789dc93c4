"""docs/keys.md and docs/api.md, made from the types: the keys of a search space, the names of the Python package."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]
LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$")
KINDS = {"stages": "method", "backbone": "backbone"}
CLASSES = (
    "Study",
    "Bundle",
    "Ranking",
    "SearchSpace",
    "DataSpec",
    "Architecture",
    "AutoEmbedClassifier",
    "AutoEmbedRegressor",
)


def keys_page() -> str:
    """docs/keys.md."""
    from autoembed.space.json_schema import json_schema

    schema = json_schema()
    lines = [
        "# Keys of a search space",
        "",
        "Every key with its type and default, made from the code by `python tests/reference.py`. "
        "[search-spaces.md](search-spaces.md) says how the sections are used, and "
        "[search-space.schema.json](search-space.schema.json) is the same for editors. Below `stages`, `baselines`, "
        "`embedding`, `backbone`, `ensemble`, `tower` and `train`, keys marked with * may be a range: `choice`, "
        "`uniform`, `log`, `int` or `log_int`.",
        "",
    ]
    for name, node in schema["properties"].items():
        lines += [f"## {name}", ""]
        if name in ("stages", "backbone"):
            kinds = list(_kinds(schema, name))
            same = {
                key: one for key, one in kinds[0]["properties"].items() if all(_has(kind, key, one) for kind in kinds)
            }
            if same:
                lines += [f"### Every {KINDS[name]}", *_table(schema, {"properties": same})]
            for kind in kinds:
                own = {key: one for key, one in kind["properties"].items() if key not in same and "const" not in one}
                called = next(one["const"] for one in kind["properties"].values() if "const" in one)
                lines += [f"### {called}", "", *_table(schema, {**kind, "properties": own})]
            continue
        found = _resolve(schema, node)
        lines += _table(schema, found) if "properties" in found else [_told(schema, node), ""]
    return "\n".join(lines)


def _kinds(schema: Schema, name: str) -> Iterator[Schema]:
    parts = schema["$defs"]["Stage"]["anyOf"] if name == "stages" else schema["properties"]["backbone"]["anyOf"]
    for part in parts:
        if any("const" in one for one in part.get("properties", {}).values()):
            yield part


def _has(kind: Schema, key: str, node: Schema) -> bool:
    return kind["properties"].get(key) == node and "const" not in node


def _table(schema: Schema, node: Schema, above: str = "") -> list[str]:
    """What a section is, its keys in a table, and below it the sections that stand within."""
    lines = [*_prose(node.get("description", "")), ""]
    rows, within = [], []
    for key, one in node["properties"].items():
        inner = _inner(schema, one)
        if inner is not None:
            within.append((f"{above}{key}", inner))
        plain = inner is None and one.get("default") is not None and not isinstance(one["default"], dict)
        default = f"`{_short(one['default'])}`" if plain else ""
        star = "*" if {"$ref": "#/$defs/Range"} in one.get("anyOf", ()) else ""
        rows.append(f"| `{above}{key}`{star} | {_told(schema, one)} | {default} |")
    if rows:
        lines += ["| key | type | default |", "|---|---|---|", *rows, ""]
    for path, inner in within:
        lines += _table(schema, inner, above=f"{path}.")
    return lines


def _resolve(schema: Schema, node: Schema) -> Schema:
    for part in (node, *node.get("anyOf", ())):
        if "$ref" in part and not part["$ref"].endswith("/Range"):
            return schema["$defs"][part["$ref"].rpartition("/")[2]]
    return node


def _inner(schema: Schema, node: Schema) -> Schema | None:
    """The section that a key holds, if it holds one; a phase of a method has the keys of `train`."""
    for part in node.get("anyOf", (node,)):
        if part.get("$ref", "").endswith("/PhaseTrain"):
            return None
        found = _resolve(schema, part)
        if "properties" in found:
            return found
    return None


def _told(schema: Schema, node: Schema) -> str:
    """A type in words."""
    if "anyOf" in node:
        told = [_told(schema, part) for part in node["anyOf"] if part != {"$ref": "#/$defs/Range"}]
        return " or ".join(dict.fromkeys(one for one in told if one)) or "anything"
    if "$ref" in node:
        if node["$ref"].endswith("/PhaseTrain"):
            return "keys of [train](#train)"
        return _told(schema, _resolve(schema, node)) if "Range" not in node["$ref"] else ""
    if "const" in node:
        return f"`{node['const']}`"
    if "enum" in node:
        return ", ".join(f"`{one}`" for one in node["enum"])
    if "properties" in node:
        return "a section"
    kind = node.get("type", "anything")
    if kind == "array":
        return f"list of {_told(schema, node['items'])}" if "items" in node else "list"
    if kind == "object":
        return "mapping"
    words = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
    bounds = [f"{sign} {node[key]}" for key, sign in LIMITS.items() if key in node]
    return " ".join([words.get(kind, kind), " and ".join(bounds)]).strip()


def _short(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def api_page() -> str:
    """docs/api.md."""
    import autoembed as ae

    lines = [
        "# Python names",
        "",
        "What `import autoembed as ae` has, made from the code by `python tests/reference.py`. [python.md](python.md) "
        "shows how they are used.",
        "",
    ]
    names = [name for name in ae.__all__ if name not in CLASSES]
    functions = [name for name in names if inspect.isfunction(getattr(ae, name))]
    errors = [name for name in names if isinstance(getattr(ae, name), type)]
    lines += ["## Functions", ""]
    for name in functions:
        lines += _entry(f"ae.{name}", getattr(ae, name))
    for name in CLASSES:
        lines += _class(name, getattr(ae, name))
    lines += ["## Ranges", "", *_prose(inspect.getdoc(ae.ranges) or ""), ""]
    for name, one in vars(ae.ranges).items():
        if inspect.isfunction(one) and not name.startswith("_") and one.__module__ == ae.ranges.__name__:
            lines += _entry(f"ranges.{name}", one)
    lines += ["## Errors", "", "| class | meaning |", "|---|---|"]
    lines += [f"| `ae.{name}` | {' '.join((inspect.getdoc(getattr(ae, name)) or '').split())} |" for name in errors]
    return "\n".join([*lines, ""])


def _class(name: str, kind: type) -> list[str]:
    lines = [f"## {name}", "", *_prose(inspect.getdoc(kind) or ""), ""]
    rows = []
    own = [vars(base) for base in reversed(kind.__mro__) if base.__module__.startswith("autoembed.")]
    members = {member: one for node in own for member, one in node.items()}
    for member, one in members.items():
        if member.startswith("_") or member == "model_config":
            continue
        function: object = one.__func__ if isinstance(one, classmethod | staticmethod) else one
        if inspect.isfunction(function) and not hasattr(function, "decorator_info"):
            lines += _entry(f"{name}.{member}", function)
        elif hasattr(one, "fget") or type(one).__name__ == "cached_property":
            described = inspect.getdoc(getattr(one, "fget", None) or one.func) or ""
            first = " ".join(described.partition("\n\n")[0].split())
            rows.append(f"| `{member}` | {first} |")
    return [*lines, *(["| attribute | meaning |", "|---|---|", *rows, ""] if rows else [])]


def _entry(name: str, function: Callable[..., object]) -> list[str]:
    asked = [one for one in inspect.signature(function).parameters.values() if one.name not in ("self", "cls")]
    words = ", ".join(
        f"{'*' * ((one.kind is one.VAR_POSITIONAL) + 2 * (one.kind is one.VAR_KEYWORD))}{one.name}"
        + ("" if one.default is one.empty else f"={one.default!r}")
        for one in asked
    )
    return [f"### {name}", "", f"`{name}({words})`", "", *_prose(inspect.getdoc(function) or ""), ""]


def _prose(text: str) -> list[str]:
    """A docstring in Google's style as Markdown: sections as lists."""
    lines: list[str] = []
    listed = False
    for line in inspect.cleandoc(text).splitlines():
        if SECTION.match(line):
            lines += ["", f"**{line}**", ""]
            listed = True
        elif listed and re.match(r"^ {4}\S", line):
            name, colon, rest = line.strip().partition(": ")
            lines.append(f"- `{name}`: {rest}" if colon and re.fullmatch(r"[\w*., ]+", name) else f"- {line.strip()}")
        elif listed and line.startswith(" "):
            lines[-1] += f" {line.strip()}"
        else:
            listed = listed and not line
            lines.append(line.replace("<", "&lt;"))
    return lines
