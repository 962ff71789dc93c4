"""From ranked pairs to a search-space file whose data have them as crossed columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from autoembed.space import SearchSpace, load_mapping
from autoembed.writing import beside

# What a bare table is searched with until its owner says more.
START: dict[str, object] = {
    "embedding": {"dim": 16, "blocks": 6},
    "stages": [{"method": "dnis", "warm_epochs": 5, "epochs": 5}],
    "baselines": ["uniform", "frequency", "random", "magnitude"],
    "backbone": {"name": "deepfm", "hidden": [128, 64], "dropout": {"uniform": [0.0, 0.5]}},
    "train": {"epochs": 10, "lr": {"log": [3.0e-4, 5.0e-3]}, "l2": {"log": [1.0e-5, 1.0e-2]}, "batch_size": 2048},
    "budget": {"trials": 4, "width": 2},
}


def write_crossed(out: Path, source: str, data: str | None, label: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Write a space that crosses `pairs`: `source` if it is a space, else a first one for the table that it is.

    Pairs that a space crosses already stay. SpaceError if what comes out is no valid space.
    """
    if source.endswith((".yaml", ".yml")):
        node = load_mapping(Path(source).read_text())
    else:
        node = {"data": {"path": str(Path(source).expanduser().absolute()), "label": label}, **START}
    section = node.setdefault("data", {})
    assert isinstance(section, dict)
    if data is not None:
        section["path"] = data
    crosses = section.setdefault("crosses", {})
    before = [list(pair) for pair in crosses.get("pairs", [])]
    crosses["pairs"] = before + [list(pair) for pair in pairs if list(pair) not in before]
    text = f"# Written by `autoembed rank {source} --cross {len(pairs)}`.\n"
    with beside(out) as temporary:
        temporary.write_text(text + yaml.safe_dump(node, sort_keys=False, width=120))
        SearchSpace.read(temporary)
