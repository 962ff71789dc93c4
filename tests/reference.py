"""Pages of docs/ that are made from the source.

python tests/reference.py      writes messages, cli, keys, api and the JSON Schemas; tests say if that is needed
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

from cures import cure
from reference_api import api_page, keys_page

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, DOCS = ROOT / "autoembed", ROOT / "docs"
AREAS = {
    "Reading tables": ("data", "export/lookups.py"),
    "Ranking": ("ranking", "native.py", "knockout.py", "pruning.py"),
    "Search spaces, methods and budgets": (
        "space", "ranges.py", "shipped.py", "methods", "nn/backbones", "budget.py", "storage.py", "plans.py",
        "architecture.py", "trial.py", "drafting.py", "estimating.py", "candidates.py", "shrinking.py", "draws.py",
        "distill.py", "shuffle.py", "batches.py", "auxiliary.py", "pairwise.py", "training.py", "following.py",
        "retraining.py", "task.py", "clicks.py", "ratings.py", "rankings.py", "multiclass.py", "metrics.py",
        "guessing.py",
    ),
    "Studies and clusters": (
        "study", "plugins.py", "frontier", "cli", "fast.py", "__init__.py", "api.py", "estimator.py",
        "search_estimator.py",
    ),
    "Bundles, exports and refreshing": (
        "bundle.py", "card.py", "export", "nn", "scoring.py", "reuse.py", "refreshing.py", "writing.py", "serving",
    ),
}  # fmt: skip


def text_of(node: ast.expr) -> str:
    """The text of a message, with … where values are put in; empty if it is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + (text_of(node.right) or "…")
    return ""


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """The line and text of each error that a file makes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            text = " ".join(text_of(node.args[0]).split())
            if name.endswith("Error") and name[0].isupper() and any(word.isalpha() for word in text.split()):
                yield node.lineno, text


def by_area() -> dict[str, list[tuple[str, str]]]:
    """Messages with the files that say them; a file belongs to the area that names it most closely."""
    found: dict[str, dict[str, str]] = {area: {} for area in AREAS}
    for path in sorted(PACKAGE.rglob("*.py")):
        own = str(path.relative_to(PACKAGE))
        fits = [
            (len(part), area)
            for area, parts in AREAS.items()
            for part in parts
            if own == part or own.startswith(f"{part}/")
        ]
        for _, text in messages(path):
            if not fits:
                raise AssertionError(f"{own} has messages and no place in AREAS")
            found[max(fits)[1]].setdefault(text, own)
    return {area: sorted(rows.items(), key=lambda row: (row[1], row[0])) for area, rows in found.items()}


def messages_page() -> str:
    """docs/messages.md."""
    lines = [
        "# Messages",
        "",
        "Every message of an error, made from the source by `python tests/reference.py`; … stands for a name or a "
        "value. Most messages name what to do; where one cannot, the second column does. "
        "[troubleshooting.md](troubleshooting.md) says more about those that people meet most. On the command line a "
        "message is one line on stderr, and the status is 2.",
        "",
    ]
    for area, rows in by_area().items():
        lines += [f"## {area}", "", "| message | what helps | from |", "|---|---|---|"]
        for text, own in rows:
            lines.append(f"| {_cell(text)} | {cure(text)} | `{own}` |")
        lines.append("")
    return "\n".join(lines)


def commands_page() -> str:
    """docs/cli.md."""
    from typer.main import get_command

    from autoembed.cli import app

    lines = [
        "# Command line",
        "",
        "Every command with its arguments and options, made from the source by `python tests/reference.py`. All "
        "commands end with status 0, with 2 and one line on stderr after an error, or with 130 after Ctrl-C; `doctor` "
        "ends with 1 if it finds a problem.",
        "",
    ]
    root = get_command(app)
    for name, command in sorted(root.commands.items()):
        words = [f"{{{one.name}}}" for one in command.params if one.param_type_name == "argument"]
        lines += [f"## {name}", "", f"`autoembed {' '.join([name, *words])} [OPTIONS]`", "", command.help or "", ""]
        shown = [one for one in command.params if not getattr(one, "hidden", False)]
        if shown:
            lines += ["| option | default | meaning |", "|---|---|---|"]
        for one in shown:
            flags = one.name if one.param_type_name == "argument" else ", ".join([*one.opts, *one.secondary_opts])
            told = "" if one.default in (None, False) or callable(one.default) else f"`{one.default}`"
            lines.append(f"| `{flags}` | {told} | {_cell(getattr(one, 'help', '') or '')} |")
        lines.append("")
    return "\n".join(lines)


def schemas() -> dict[str, object]:
    """The JSON Schemas in docs/, by file."""
    from autoembed.architecture import Architecture
    from autoembed.space.json_schema import json_schema

    return {"architecture.schema.json": Architecture.model_json_schema(), "search-space.schema.json": json_schema()}


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    (DOCS / "messages.md").write_text(messages_page())
    (DOCS / "cli.md").write_text(commands_page())
    (DOCS / "keys.md").write_text(keys_page())
    (DOCS / "api.md").write_text(api_page())
    for name, schema in schemas().items():
        (DOCS / name).write_text(json.dumps(schema, indent=1) + "\n")
