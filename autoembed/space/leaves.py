"""The leaves of a search space that may take several values, and how a template is filled with values for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeGuard, get_args

from autoembed.errors import SpaceError

Kind = Literal["choice", "uniform", "log", "int", "log_int"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True)
class Range:
    """What a leaf of a search space may be: one of `values` (choice), or a number from `values[0]` to `values[1]`.

    A choice among stages has them as `options` and their names as `values`; the ranges inside an option are drawn only
    where it is taken. `given` tells which options of such choices a range stands in: (place, value).
    """

    kind: Kind
    values: tuple[object, ...]
    options: tuple[object, ...] = ()
    given: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, place: str, node: Mapping[str, object]) -> Range:
        ((kind, values),) = node.items()
        if not isinstance(values, list) or not values:
            raise SpaceError(f"{place}: {kind} must hold a list, but got {values!r}")
        if kind != "choice":
            whole = kind in ("int", "log_int")
            numbers = all(isinstance(v, int if whole else (int, float)) and not isinstance(v, bool) for v in values)
            if len(values) != 2 or not numbers or not values[0] <= values[1]:
                raise SpaceError(f"{place}: {kind} must hold two rising {'whole ' * whole}numbers, but got {values!r}")
            if kind.startswith("log") and values[0] <= 0:
                raise SpaceError(f"{place}: {kind} must start above 0, but got {values!r} (write 1.0e-4, not 1e-4)")
        options = tuple(values) if kind == "choice" and all(map(_is_stage, values)) else ()
        if options:
            values = ["+".join(map(method_of, option if isinstance(option, list) else [option])) for option in options]
            values = numbered(values)
        named = next(one for one in KINDS if one == kind)
        return cls(kind=named, values=tuple(values), options=options)

    def option(self, value: object) -> object:
        """What a value stands for."""
        return self.options[self.values.index(value)] if self.options else value

    @property
    def first(self) -> object:
        return self.values[0]

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest value of a range of numbers."""
        low, high = self.values
        assert isinstance(low, (int, float))
        assert isinstance(high, (int, float))
        return low, high


def is_range(node: object) -> TypeGuard[dict[str, object]]:
    return isinstance(node, dict) and len(node) == 1 and next(iter(node)) in KINDS


def method_of(baseline: str | dict[str, object]) -> str:
    method = baseline if isinstance(baseline, str) else baseline.get("method", "")
    if not isinstance(method, str):
        raise SpaceError(f"method must be one name, but got {method!r}: list the others under baselines")
    return method


def _is_stage(option: object) -> bool:
    """Whether an option of a choice is a stage or a list of stages."""
    stages = option if isinstance(option, list) else [option]
    return bool(stages) and all(isinstance(stage, dict) and "method" in stage for stage in stages)


def numbered(names: Sequence[str]) -> list[str]:
    """Names made unique: the second of NAME is NAME-2."""
    before = [names[:place].count(name) for place, name in enumerate(names)]
    return [f"{name}-{n + 1}" if n else name for name, n in zip(names, before, strict=True)]


def ranges_in(place: str, node: object, given: tuple[tuple[str, str], ...]) -> Iterator[tuple[str, Range]]:
    if is_range(node):
        leaf = replace(Range.parse(place, node), given=given)
        yield place, leaf
        for name, option in zip(leaf.values, leaf.options, strict=False):
            yield from ranges_in(f"{place}.{name}", option, (*given, (place, str(name))))
    elif isinstance(node, (dict, list, tuple)):
        for key, child in _items(node):
            yield from ranges_in(f"{place}.{key}" if place else str(key), child, given)


def filled(place: str, node: object, pick: Callable[[str, Range], object]) -> object:
    if is_range(node):
        leaf = Range.parse(place, node)
        value = pick(place, leaf)
        return filled(f"{place}.{value}", leaf.option(value), pick) if leaf.options else value
    if isinstance(node, dict):
        return {key: filled(f"{place}.{key}" if place else str(key), child, pick) for key, child in node.items()}
    if isinstance(node, (list, tuple)):
        return [filled(f"{place}.{key}" if place else str(key), child, pick) for key, child in enumerate(node)]
    return node


def _items(node: dict[str, object] | Sequence[object]) -> Iterator[tuple[object, object]]:
    return iter(node.items()) if isinstance(node, dict) else iter(enumerate(node))
