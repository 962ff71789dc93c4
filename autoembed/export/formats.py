"""What a bundle can be exported to, and the folder that each export is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from autoembed import __version__
from autoembed.bundle import Bundle, sha256
from autoembed.errors import BundleError, option
from autoembed.export.outputs import output_name
from autoembed.writing import scratch

# The module of each format: `write(bundle, folder)`, which may return a note for the README, REQUIREMENTS of whoever
# scores, and LIMITS in a sentence.
FORMATS = {
    "onnx": "onnx_graph",
    "torch": "torch_package",
    "aoti": "aoti_package",
    "numpy": "numpy_scorer",
    "tables": "raw_tables",
    "fuxictr": "fuxictr_config",
    "torchrec": "torchrec_tables",
}
_CLICKS = ("fuxictr",)  # formats whose readers end with a sigmoid
_ONE = ("fuxictr", "torchrec")  # formats whose readers give one number a row
_INSTALL = {
    "torchrec": "pip install -r requirements.txt, then pip install --no-deps -r torchrec.txt: torchrec names the GPU "
    "build of FBGEMM, which does not load without CUDA",
}
_USE = {
    "onnx": """import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("rows.onnx")     # model.onnx takes ids int64 [N, F] as "ids"
some = {"tensor(string)": np.array("a", dtype=object), "tensor(double)": np.array(1.0)}
feeds = {i.name: some[i.type].reshape([1] * len(i.shape)) for i in session.get_inputs()}
click, = session.run(None, feeds)                       # float32 [N]""",
    "torch": """import torch
model = torch.export.load("model.pt2").module()
click = model(torch.zeros(2, FIELDS, dtype=torch.int64))    # ids int64 [N, F] -> float32 [N]""",
    "numpy": """from scorer import Scorer
model = Scorer.load(".")
click = model.predict({name: [None] for name in model.columns})     # raw rows -> float32 [N]""",
    "tables": """import json
from safetensors.numpy import load_file
tables, described = load_file("tables.safetensors"), json.load(open("tables.json"))""",
    "aoti": """import torch
model = torch._inductor.aoti_load_package("model.pt2")
click = model(torch.zeros(2, FIELDS, dtype=torch.int64))    # ids int64 [N, F] -> float32 [N]""",
    "fuxictr": """import numpy as np
from model import load, predict
model = load(".")                                           # a BaseModel of FuxiCTR; python model.py trains it
click = predict(model, np.zeros((2, FIELDS), dtype=int))    # ids int [N, F] -> float32 [N]""",
    "torchrec": """import torch
from model import Model
model = Model.load(".")                                     # model.tables is an EmbeddingBagCollection
click = model(torch.zeros(2, FIELDS, dtype=torch.int64))    # ids int64 [N, F] -> float32 [N]""",
}


@dataclass(frozen=True, kw_only=True)
class Export:
    """A folder that was written, its format and the bytes of its files."""

    path: Path
    format: str
    bytes: int


def export_bundle(bundle: Bundle, out: str | Path, format: str) -> Export:
    """Writes a bundle in another format, into a folder that must be new or empty.

    Beside the model the folder holds README.md (how to score, what the format cannot say), requirements.txt (all that
    scoring needs), sample.json (ids with the bundle's own predictions, to check a port against) and export.json.

    Args:
        bundle: a loaded bundle.
        out: the folder.
        format: a name in FORMATS.

    Raises:
        BundleError: there is no such format, the folder is not empty, a package is missing, or the format cannot say
            what the model does.
    """
    path = Path(out)
    if format not in FORMATS:
        raise BundleError(
            f"{option('format')} must be onnx, torch, aoti, numpy, tables, fuxictr or torchrec, but got {format!r}"
        )
    if bundle.schema.ratings is not None and format in _CLICKS:
        raise BundleError(
            f"{format} is for click probabilities, but the model {bundle.path} is of data.task: ratings: use "
            f"{', '.join(name for name in FORMATS if name not in _CLICKS)}, or the bundle itself"
        )
    if bundle.schema.classes is not None and format in _ONE:
        raise BundleError(
            f"{format} has one prediction a row, but the model {bundle.path} is of data.task: multiclass: use "
            f"{', '.join(name for name in FORMATS if name not in _ONE)}, or the bundle itself"
        )
    require_empty(path)
    module = import_module(f"autoembed.export.{FORMATS[format]}")
    write: Callable[[Bundle, Path], str | None] = module.write
    with scratch(path.parent) as temporary:
        folder = temporary / "made"
        folder.mkdir(mode=0o755)
        note = write(bundle, folder)
        bundle.write_sample(folder)
        (folder / "requirements.txt").write_text("\n".join(module.REQUIREMENTS) + "\n")
        (folder / "README.md").write_text(_readme(bundle, format, module.LIMITS, note))
        files = {file.relative_to(folder).as_posix(): sha256(file) for file in _files(folder)}
        facts = {
            "version": 1,
            "format": format,
            "autoembed": __version__,
            "bundle": sha256(bundle.path / "manifest.json"),
            "files": files,
        }
        (folder / "export.json").write_text(json.dumps(facts, indent=1) + "\n")
        for file in _files(folder):
            file.chmod(0o644)
        if path.exists():
            path.rmdir()
        folder.rename(path)
    return Export(path=path, format=format, bytes=sum(file.stat().st_size for file in _files(path)))


def require_empty(path: Path) -> None:
    """BundleError unless a folder is new or empty."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise BundleError(f"{path} exists and is not empty: choose another place")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _readme(bundle: Bundle, format: str, limits: str, note: str | None) -> str:
    rows = [
        f"| {field.name} | {field.kind} | {field.cardinality:,} |"
        for field in bundle.schema.fields
        if not field.derived
    ]
    schema, predicted = bundle.schema, output_name(bundle.schema)
    use = _USE[format].replace("FIELDS", str(sum(schema.lengths))).replace("click", predicted)
    further, labels = "", ", ".join(schema.auxiliary_labels)
    if schema.classes is not None:
        use = use.replace("float32 [N]", f"float32 [N, {schema.task.outputs}]")
        further = (
            f"The columns of what it predicts are the probabilities of these classes of {schema.label}: "
            f"{', '.join(schema.classes.names)}."
        )
    if labels:
        further = f"It predicts {schema.label} alone; the bundle predicts {labels} as well."
    if labels and format == "onnx":
        use = use.replace(f"{predicted}, = ", f"{predicted}, auxiliary = ").replace("# float32 [N]", "# [N], [N, L]")
        further = f"The columns of the second output, `auxiliary`, are the probabilities of {labels}, in this order."
    elif labels and format == "tables":
        further = f"The weights of the towers for {labels} are under `heads.towers.0` and so on, in this order."
    return "\n".join(
        [
            f"# A {'multiclass' if schema.classes else predicted} model for {format}",
            "",
            f"Exported by autoembed {__version__}. All that scoring needs: "
            f"{_INSTALL.get(format, 'pip install -r requirements.txt')}.",
            "",
            "```python",
            use,
            "```",
            "",
            limits,
            "",
            *([note, ""] if note else []),
            *([further, ""] if further else []),
            "sample.json holds ids and what the bundle predicts for them. A port is right if it gives them to 1e-5.",
            "",
            "| column | kind | ids |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )
