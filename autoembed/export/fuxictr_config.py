"""FuxiCTR: the fields as its feature map, the backbone as its model config, and the weights under its names.

Ids stay those of the bundle's vocabulary. FuxiCTR's own preprocessing numbers values otherwise, so it is left out:
feature_map.json stands where FuxiCTR looks before it makes one, and `write_table` encodes tables for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
import torch
import yaml
from pydantic import JsonValue
from safetensors.torch import save_file
from torch import Tensor, nn

from autoembed.architecture import Architecture
from autoembed.bundle import Bundle
from autoembed.data.frames import Frame, to_lazy
from autoembed.data.labels import label_of
from autoembed.data.readers import clean
from autoembed.errors import BundleError
from autoembed.export.fuxictr_weights import Kept, state_of
from autoembed.export.lookups import write_lookups
from autoembed.nn.backbones.base import DeepConfig, configure
from autoembed.nn.backbones.dcn import Config as CrossConfig
from autoembed.nn.model import CTRModel, measure
from autoembed.training import TrainConfig

# With polars 2 its reader of CSV fails.
REQUIREMENTS = ("fuxictr==2.3.10", "polars>=1.30,<2", "torch>=2.6", "safetensors", "numpy")
LIMITS = (
    "FuxiCTR has one width for each field and 32 bits for each number: rows of narrow blocks are filled up with zeros, "
    "which training there moves. It reads the bundle's ids: encode tables with write_table of "
    "autoembed.export.fuxictr_config."
)
DATASET, EXPERIMENT = "clicks", "autoembed"  # as fuxictr_model.py has it
# The classes of FuxiCTR's model zoo whose forward is that of a backbone here; those of FLAT may have a width per field.
MODELS = {"lr": "LR", "fm": "FM", "dnn": "DNN", "deepfm": "DeepFM", "widedeep": "WideDeep", "dcn": "DCNv2"}
FLAT = ("dnn", "dcn")
_ROWS = 1 << 14


def write(bundle: Bundle, folder: Path) -> str:
    """Writes feature map, both configs, weights.safetensors, vocabulary.json and model.py; says how the bytes compare.

    BundleError names what FuxiCTR has no form for.
    """
    model = _sayable(bundle)
    kept = Kept.of(model.architecture, flat=_backbone(model) in FLAT)
    tables = _dense_tables(model)
    labels = bundle.schema.label
    (folder / DATASET).mkdir()
    _write_json(folder / DATASET / "feature_map.json", _feature_map(model.architecture, kept, labels))
    _write_yaml(folder / "dataset_config.yaml", _dataset_config(model.architecture, labels))
    _write_yaml(folder / "model_config.yaml", _model_config(bundle, model))
    state = state_of(model, tables, kept)
    save_file(state, folder / "weights.safetensors")
    write_lookups(bundle.vocabulary, folder)
    # Read as text, since it imports fuxictr.
    (folder / "model.py").write_text(Path(__file__).with_name("fuxictr_model.py").read_text())
    there = sum(tensor.nbytes for name, tensor in state.items() if ".embedding_layers." in name)
    here = measure(model).embedding_bytes
    return f"Embeddings take {there:,} bytes here, where the bundle's take {here:,}."


def write_table(bundle: Bundle, frame: Frame, path: str | Path) -> None:
    """Writes a raw table as FuxiCTR trains on it: Parquet with a column of ids for each field, and the label, 0 or 1.

    Name the files train.parquet, valid.parquet and test.parquet, in the export's folder `clicks`. Rows without a label
    are left out. DataError names a column that the table lacks.
    """
    rows = clean(to_lazy(frame), bundle.spec)
    rows = rows.with_columns(label_of({"train": rows}, bundle.spec).alias(bundle.spec.label))
    table = rows.drop_nulls(bundle.spec.label).collect()
    ids = bundle.vocabulary.encode(table)
    places = {name: bundle.vocabulary.names.index(name) for name in bundle.architecture.names}
    columns = {name: ids[:, place].astype(np.int64) for name, place in places.items()}
    pl.DataFrame(columns).with_columns(table[bundle.spec.label]).write_parquet(path)


def _sayable(bundle: Bundle) -> CTRModel:
    """The bundle's model, if FuxiCTR has its form."""
    architecture = bundle.architecture
    name = str(architecture.backbone["name"])
    parts = {
        "clusters": architecture.clusters,
        "ensemble": architecture.ensemble,
        "pairs": architecture.built,
        "columns that share a table": [field for field in architecture.fields if field.readers],
        "numbers between knots (numeric_embedding)": [field for field in architecture.fields if field.interpolated],
        "multi-valued columns": [field for field in architecture.fields if field.pool],
    }
    if name not in MODELS or not isinstance(bundle.model, CTRModel) or any(parts.values()):
        what = next((f"{part} in" for part, present in parts.items() if present), f"backbone {name} of")
        raise BundleError(
            f"the format fuxictr has no form for the {what} this bundle, only for plain models with the backbone "
            f"{', '.join(MODELS)}: use onnx or torch"
        )
    own = nn.ModuleDict()
    for field in architecture.names:
        if "." in field or not field or hasattr(own, field):
            raise BundleError(f"FuxiCTR names a module after each field, which cannot be called {field!r}: rename it")
    return bundle.model


def _backbone(model: CTRModel) -> str:
    return str(model.architecture.backbone["name"])


@torch.no_grad()
def _dense_tables(model: CTRModel) -> dict[str, Tensor]:
    """For each field, what every id looks up: float [cardinality, D (+ 1)], zeros where nothing is kept."""
    fields = model.architecture.fields
    sizes = torch.tensor([field.cardinality for field in fields])
    parts = []
    for start in range(0, int(sizes.max()), _ROWS):
        ids = torch.arange(start, min(start + _ROWS, int(sizes.max()))).unsqueeze(1)
        parts.append(model.embedding(torch.minimum(ids, sizes - 1)))
    every = torch.cat(parts)
    return {field.name: every[: field.cardinality, place].clone() for place, field in enumerate(fields)}


def _feature_map(architecture: Architecture, kept: Kept, label: str) -> JsonValue:
    """What FuxiCTR's preprocessing would have written."""
    features: list[JsonValue] = []
    for field, width in zip(architecture.fields, kept.widths(), strict=True):
        described: dict[str, JsonValue] = {"source": "", "type": "categorical", "vocab_size": field.cardinality}
        if width != architecture.dim:
            described["embedding_dim"] = width
        features.append({field.name: described})
    return {
        "dataset_id": DATASET,
        "num_fields": len(features),
        "total_features": sum(field.cardinality for field in architecture.fields),
        "input_length": len(features),
        "labels": [label],
        "features": features,
    }


def _dataset_config(architecture: Architecture, label: str) -> JsonValue:
    fields: list[JsonValue] = [
        {"name": name, "active": True, "dtype": "int", "type": "categorical"} for name in architecture.names
    ]
    own: dict[str, JsonValue] = {
        "data_root": "./",
        "data_format": "parquet",
        **{f"{split}_data": f"./{DATASET}/{split}.parquet" for split in ("train", "valid", "test")},
        "feature_cols": fields,
        "label_col": {"name": label, "dtype": "float"},
    }
    return {DATASET: own}


def _model_config(bundle: Bundle, model: CTRModel) -> JsonValue:
    """The recipe of the bundle as far as FuxiCTR has it, and the backbone's options under the zoo's names."""
    stored = bundle.manifest.provenance.get("train")
    recipe = TrainConfig().model_dump(mode="json") | (stored if isinstance(stored, dict) else {})
    name = _backbone(model)
    # LR and FM of the zoo have one regulariser for all weights.
    penalty = "regularizer" if name in ("lr", "fm") else "embedding_regularizer"
    own: dict[str, JsonValue] = {
        "model": MODELS[name],
        "dataset_id": DATASET,
        "loss": "binary_crossentropy",
        "metrics": ["logloss", "AUC"],
        "task": "binary_classification",
        "optimizer": "adam",
        "learning_rate": recipe["lr"],
        penalty: recipe["l2"],
        "batch_size": recipe["batch_size"],
        "epochs": recipe["epochs"],
        "max_gradient_norm": recipe["clip"] or 1e9,
        "embedding_dim": model.architecture.dim,
        "shuffle": True,
        "seed": 0,
        "monitor": "AUC",
        "monitor_mode": "max",
    }
    base: dict[str, JsonValue] = {
        "model_root": "./checkpoints/",
        "num_workers": 1,
        "verbose": 1,
        "early_stop_patience": 2,
        "save_best_only": True,
        "eval_steps": None,
        "group_id": None,
        "use_features": None,
        "feature_specs": None,
    }
    return {"Base": base, EXPERIMENT: own | _options(model)}


def _options(model: CTRModel) -> dict[str, JsonValue]:
    config = configure(model.architecture.backbone)
    if not isinstance(config, DeepConfig):
        return {}
    hidden = cast(list[JsonValue], list(config.hidden))
    common: dict[str, JsonValue] = {"net_dropout": config.dropout, "batch_norm": config.batch_norm}
    if not isinstance(config, CrossConfig):
        return {"hidden_units": hidden, "hidden_activations": "relu", **common}
    return {
        "model_structure": config.structure,
        "use_low_rank_mixture": False,
        "num_cross_layers": config.layers,
        f"{config.structure}_dnn_hidden_units": hidden,
        "dnn_activations": "relu",
        **common,
    }


def _write_json(path: Path, node: JsonValue) -> None:
    path.write_text(json.dumps(node, indent=1) + "\n")


def _write_yaml(path: Path, node: JsonValue) -> None:
    path.write_text(yaml.safe_dump(node, sort_keys=False))
