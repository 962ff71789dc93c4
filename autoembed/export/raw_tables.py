"""The stored tensors as they are, and a description of each field's rows: for readers in C, Rust or Java.

The description says where a value's row is and how its bytes become numbers (docs/production.md shows a reader).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from autoembed.bundle import Bundle, weights_of
from autoembed.data.schema import FeatureSchema
from autoembed.errors import BundleError
from autoembed.export.lookups import write_lookups
from autoembed.nn.embedding import MixedEmbedding
from autoembed.nn.model import CTRModel, members
from autoembed.nn.rows import PackedRows, Rows, lowest
from autoembed.plans import Input
from autoembed.storage import PLANES, first_order_bits

REQUIREMENTS = ("safetensors", "numpy")
LIMITS = (
    "It holds embeddings, and the backbone's weights under their names; running the backbone is left to the reader."
)


def write(bundle: Bundle, folder: Path) -> None:
    """Writes tables.safetensors, tables.json and vocabulary.json; BundleError for storage other than `mixed`."""
    models = members(bundle.model)
    for model in models:
        kind = model.architecture.storage.kind
        if kind != "mixed":
            raise BundleError(
                f"the format tables describes storage of kind mixed, but this bundle's is {kind}: use onnx"
            )
    prefixes = (
        [""] if len(models) == 1 and models[0] is bundle.model else [f"clusters.{k}." for k in range(len(models))]
    )
    described = [_described(model, prefix) for model, prefix in zip(models, prefixes, strict=True)]
    # Many readers know no bfloat16, in which steps of rows are stored.
    tensors = {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in weights_of(bundle.model).items()}
    save_file(tensors, folder / "tables.safetensors")
    node = {"version": 1, "prediction": _prediction(bundle.schema), "models": described}
    (folder / "tables.json").write_text(json.dumps(node, indent=1) + "\n")
    write_lookups(bundle.vocabulary, folder)


def _prediction(schema: FeatureSchema) -> dict[str, object]:
    """What makes predictions of what the backbone gives."""
    if schema.classes is not None:
        return {"link": "softmax", "classes": list(schema.classes.names)}
    if schema.ratings is not None:
        return {"link": "linear", "scale": schema.ratings.sd, "shift": schema.ratings.mean}
    return {"link": "sigmoid"}


def _described(model: CTRModel, prefix: str) -> dict[str, object]:
    """One model: its tables, and for each field the blocks of its ids, and the fields that read them too."""
    own, architecture = model.embedding, model.architecture
    assert isinstance(own, MixedEmbedding)
    names = [f"{prefix}embedding.tables.{number}" for number in range(len(own.tables))]
    tables = [_table(name, rows) for name, rows in zip(names, own.tables, strict=True)]
    mask, ranges, field_of = architecture.mask(), architecture.block_ranges(), architecture.field_of_block()
    blocks: list[list[dict[str, object]]] = [[] for _ in architecture.fields]
    for block, number in enumerate(own.group.tolist()):
        start, stop = map(int, ranges[block])
        entry: dict[str, object] = {"first_id": start, "end_id": stop, "table": None}
        if number >= 0:
            entry |= {
                "table": number,
                "row_of_first_id": start + int(own.shift[block]),
                "dims": np.flatnonzero(mask[block]).tolist(),
                "block_of_table": int(own.slot[block]) if own.steps else 0,
            }
        blocks[int(field_of[block])].append(entry)
    fields = [
        {**_input(field), "blocks": own} | ({"readers": [*map(_input, field.readers)]} if field.readers else {})
        for field, own in zip(architecture.fields, blocks, strict=True)
    ]
    return {"dim": architecture.dim, "first_order": model.first_order, "fields": fields, "tables": tables}


def _input(field: Input) -> dict[str, object]:
    """The name of a field, or of one that reads its table, and how several values a row become one embedding."""
    return {"name": field.name} | ({"pool": field.pool.model_dump()} if field.pool else {})


def _table(name: str, rows: object) -> dict[str, object]:
    """How the bytes of a table become numbers."""
    assert isinstance(rows, Rows | PackedRows)
    common = {"bits": rows.bits, "width": rows.width, "first_order": bool(rows.first_order)}
    if isinstance(rows, Rows) or rows.bits == 16:
        tensor = f"{name}.weight" if isinstance(rows, Rows) else f"{name}.halves"
        return {**common, "numbers": tensor}
    found: dict[str, object] = {
        **common,
        "codes": f"{name}.codes",
        "planes": list(PLANES[rows.bits]),
        "lowest": lowest(rows.bits),
        "step": f"{name}.step",
        "step_of": "row" if rows.per_row else "block",
    }
    if rows.first_order:
        bits = first_order_bits(rows.bits)
        found["first"] = {
            "codes": f"{name}.first_codes",
            "bits": bits,
            "lowest": lowest(bits),
            "step": f"{name}.first_step",
        }
    return found
