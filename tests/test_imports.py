"""The one-way dependency order of docs/design.md, and what a plain import may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import autoembed

PACKAGE = Path(autoembed.__file__).parent
# Each entry imports only from those before it, and from within itself.
ORDER = [
    "errors", "writing", "shipped", "ranges", "plugins", "types", "fast", "native", "metrics", "clicks", "ratings",
    "rankings", "multiclass", "task", "data", "ranking", "plans", "storage", "architecture", "nn", "budget", "events",
    "shuffle", "batches", "auxiliary", "pairwise", "knot_rows", "training", "following", "knockout", "methods", "card",
    "bundle", "export", "scoring", "serving", "candidates", "retraining", "reuse", "refreshing", "distill", "shrinking",
    "trial", "space", "search_estimator", "estimator", "pruning", "draws", "estimating", "guessing", "drafting",
    "frontier", "study", "api", "testing", "cli",
]  # fmt: skip
HEAVY = {"ray", "optuna", "mlflow"}


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def part(name):
    return name.split(".")[1] if name.count(".") else ""


def imports(path):
    """Dotted names of all imports in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            for alias in node.names:
                inside = PACKAGE.parent / node.module.replace(".", "/")
                submodule = (inside / f"{alias.name}.py").exists() or (inside / alias.name).is_dir()
                yield f"{node.module}.{alias.name}" if submodule else node.module


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_above_it(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in ("__init__",):
        return  # its imports are for type checkers, and lazy: tests/test_front.py
    assert own in ORDER, f"{own} has no place in the order"
    for name in imports(path):
        top = name.split(".")[0]
        if top == "autoembed" and part(name):
            assert ORDER.index(part(name)) <= ORDER.index(own), f"{path.name} imports {name}, which stands below it"
        assert top not in HEAVY or own == "study", f"{path.name} imports {name}: only study/ may"
        assert top != "pickle", f"{path.name} imports pickle"


@pytest.mark.parametrize("module", ["autoembed", "autoembed.cli", "autoembed.trial", "autoembed.bundle"])
def test_importing_the_package_loads_no_ray_optuna_or_mlflow(module):
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_line_starts_without_what_a_short_command_does_not_need():
    code = (
        "import sys, autoembed.cli; print(sorted({'numpy', 'polars', 'pydantic', 'torch', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_trial_loads_no_more_than_it_needs(planted):
    """What each of many processes at once would hold for itself: torch's compiler alone is 65 MiB."""
    heavy = {"torch._dynamo", "sklearn", "scipy", "numba", "llvmlite", "matplotlib", "mlflow", "optuna"}
    code = f"""
import sys, torch
import autoembed.study.engine.worker
from autoembed.data.dataset import Dataset
from autoembed.trial import check, run_trial
for sparse in (False, True):
    config = {{"arm": "x", "stages": [{{"method": "uniform"}}], "train": {{"epochs": 1, "sparse": sparse}}}}
    run_trial(check(config), Dataset.open({str(planted.path)!r}), lambda values: None)
print(sorted({heavy!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_usage_reports_are_off_by_default():
    names = ("RAY_USAGE_STATS_ENABLED", "MLFLOW_DISABLE_TELEMETRY")
    code = f"import os, autoembed.study; print(*[os.environ[name] for name in {names!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["0", "true"]
