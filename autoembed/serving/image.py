"""A folder from which Docker builds an image that serves a bundle."""

from __future__ import annotations

import shutil
import sys
from importlib import metadata
from pathlib import Path

import autoembed
from autoembed.bundle import copy_bundle
from autoembed.errors import BundleError
from autoembed.writing import scratch

# All that serving imports: no Ray, no Optuna, no MLflow.
REQUIREMENTS = (
    *("llvmlite", "numba", "numpy", "polars", "pyarrow", "pydantic"),
    *("safetensors", "starlette", "torch", "typer", "uvicorn"),
)


def write_image(bundle: Path, out: Path) -> Path:
    """Writes Dockerfile, requirements.txt with the versions that are installed here, this package and the bundle.

    BundleError if the bundle is damaged, or if the folder is not empty.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BundleError(f"{out} exists and is not empty: choose another place")
    package = Path(autoembed.__file__).parent
    with scratch(out.parent) as temporary:
        folder = temporary / "made"
        folder.mkdir(mode=0o755)
        copy_bundle(bundle, folder / "bundle")
        shutil.copytree(package, folder / "autoembed", ignore=shutil.ignore_patterns("__pycache__"))
        text, own = (package / "serving" / "Dockerfile").read_text(), f"{sys.version_info[0]}.{sys.version_info[1]}"
        (folder / "Dockerfile").write_text(text.replace("ARG PYTHON=3.11", f"ARG PYTHON={own}"))
        # A local version such as 2.7.0+cu126 is on no index.
        pins = [f"{name}=={metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS]
        (folder / "requirements.txt").write_text("\n".join(pins) + "\n")
        if out.exists():
            out.rmdir()
        folder.rename(out)
    return out
