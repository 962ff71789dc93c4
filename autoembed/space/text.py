"""YAML as plain data, by the safe loader and bounded."""

from __future__ import annotations

import yaml

_NODES = 1_000_000


def load_yaml(text: str) -> object:
    """Plain data from YAML; yaml.YAMLError as well where aliases make more of a text than anyone would write."""
    node = yaml.safe_load(text)
    sizes: dict[int, int] = {}

    def size(part: object) -> int:
        if not isinstance(part, (dict, list)):
            return 1
        if id(part) not in sizes:
            sizes[id(part)] = _NODES  # a part that holds itself has no end
            sizes[id(part)] = 1 + sum(map(size, part.values() if isinstance(part, dict) else part))
        return sizes[id(part)]

    if size(node) >= _NODES:
        raise yaml.YAMLError(f"its aliases make more than {_NODES:,} values of it")
    return node


def load_mapping(text: str) -> dict[str, object]:
    """As `load_yaml`, of a text that holds a mapping."""
    node = load_yaml(text)
    assert isinstance(node, dict)
    return node
