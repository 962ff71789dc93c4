"""TorchRec: a table for each distinct width as an EmbeddingBagConfig, and the rest of the model as a program.

A value whose block is not in a table is an empty bag there, which gives zeros: rows of mixed width need no padding.
B batch, F field, C column of a pair.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from pydantic import JsonValue
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim

from autoembed.bundle import Bundle
from autoembed.data.schema import FeatureSchema
from autoembed.errors import BundleError
from autoembed.export.lookups import write_lookups
from autoembed.export.program import MOST_ROWS, quiet
from autoembed.nn.embedding import MixedEmbedding, PairEmbedding, starts
from autoembed.nn.model import CTRModel, joined, measure
from autoembed.task import Task

# TorchRec 1.8 is built for torch 2.13, and so is FBGEMM 1.8.
REQUIREMENTS = (
    "torch==2.13.*", "safetensors", "numpy", "tensordict", "torchmetrics==1.0.3", "tqdm", "pyre-extensions",
)  # fmt: skip
NO_DEPS = ("torchrec==1.8.0", "fbgemm-gpu-cpu==1.8.0")
LIMITS = (
    "Rows have 32 bits for each number. The dense part is a program that scores and does not train, and FBGEMM's "
    "sharded tables want widths that are multiples of 4."
)


def write(bundle: Bundle, folder: Path) -> str:
    """Writes tables.json, tables.safetensors, dense.pt2, model.py, torchrec.txt and vocabulary.json.

    BundleError for clusters, multi-valued columns, numbers between knots, columns that share a table, and storage other
    than `mixed`.
    """
    model, kind = bundle.model, bundle.architecture.storage.kind
    fields = bundle.architecture.fields
    parts = {
        "clusters": bundle.architecture.clusters,
        "columns that share a table": [field for field in fields if field.readers],
        # A bag of values from blocks of one width and several places cannot be put into place once it is summed.
        "numbers between knots (numeric_embedding)": any(field.interpolated for field in fields)
        or bundle.schema.interpolated & bundle.architecture.factors().keys(),
        "multi-valued columns": [field for field in fields if field.pool]
        or any(bundle.architecture.factor_pools().values()),
        f"storage of kind {kind}": kind != "mixed",
    }
    what = next((part for part, present in parts.items() if present), "form")
    if any(parts.values()) or not isinstance(model, CTRModel) or not isinstance(model.embedding, MixedEmbedding):
        raise BundleError(f"the format torchrec has no form for the {what} of this bundle: use onnx or torch")
    tables, where = _field_tables(model, model.embedding, bundle.schema)
    pair_tables, columns = _pair_tables(model, bundle.schema)
    weights = {**tables, **pair_tables}
    node: dict[str, JsonValue] = {
        "version": 1,
        "columns": model.embedding.columns,
        "tables": _configs(weights, where, columns),
        "fields": where,
        "pair_columns": columns,
    }
    (folder / "tables.json").write_text(json.dumps(node, indent=1) + "\n")
    save_file(weights, folder / "tables.safetensors")
    with quiet():
        torch.export.save(_dense(model, bundle.schema.task), folder / "dense.pt2")
    write_lookups(bundle.vocabulary, folder)
    (folder / "torchrec.txt").write_text("\n".join(NO_DEPS) + "\n")
    # Read as text, since it imports torchrec.
    (folder / "model.py").write_text(Path(__file__).with_name("torchrec_model.py").read_text())
    there = sum(tensor.nbytes for tensor in weights.values())
    return f"Tables take {there:,} bytes here, where the bundle's take {measure(model).embedding_bytes:,}."


@torch.no_grad()
def _field_tables(
    model: CTRModel, own: MixedEmbedding, schema: FeatureSchema
) -> tuple[dict[str, Tensor], list[JsonValue]]:
    """The float rows of each width, first-order weights as their last numbers, and where each field's values are."""
    parts: dict[str, list[Tensor]] = {}
    first_rows = []
    for rows, slot, width in zip(own.tables, own.slot_of_row(), own.widths, strict=True):
        there = parts.setdefault(f"width_{width}", [])
        first_rows.append(sum(map(len, there)))
        there.append(_rows(rows, slot))
    fields = []
    for place, blocks in enumerate(_blocks(model, own, first_rows)):
        name = model.architecture.fields[place].name
        fields.append(cast(JsonValue, {"name": name, "column": schema.index(name), "blocks": blocks}))
    return {name: torch.cat(tensors) for name, tensors in parts.items()}, fields


def _blocks(model: CTRModel, own: MixedEmbedding, first_rows: Sequence[int]) -> list[list[JsonValue]]:
    """For each field, its ranges of ids: the table and row of the first one, and the columns that its numbers are."""
    architecture = model.architecture
    ranges, field_of = architecture.block_ranges(), architecture.field_of_block()
    blocks: list[list[JsonValue]] = [[] for _ in architecture.fields]
    for block, number in enumerate(own.group.tolist()):
        start, stop = map(int, ranges[block])
        entry: dict[str, JsonValue] = {"first_id": start, "end_id": stop, "table": None}
        if number >= 0:
            width = own.widths[number]
            entry |= {
                "table": f"width_{width}",
                "row_of_first_id": first_rows[number] + start + int(own.shift[block]),
                "columns": own.place[block, :width].tolist(),
            }
        blocks[int(field_of[block])].append(entry)
    return blocks


@torch.no_grad()
def _pair_tables(model: CTRModel, schema: FeatureSchema) -> tuple[dict[str, Tensor], list[JsonValue]]:
    """The float rows of memorized pairs and of factorized columns, and the first row of each of their columns."""
    tables: dict[str, Tensor] = {}
    columns: list[JsonValue] = []
    pairs = model.pairs
    if pairs is None:
        return tables, columns
    kinds = [kind for kind in zip(("memorized", "factorized"), pairs.names, pairs.sizes, strict=True) if kind[1]]
    for rows, slot, (kind, names, sizes) in zip(pairs.tables, pairs.slot_of_row(), kinds, strict=True):
        tables[f"pairs_{kind}"] = _rows(rows, slot)
        for name, first in zip(names, starts(sizes), strict=True):
            columns.append(
                {"name": name, "column": schema.index(name), "table": f"pairs_{kind}", "row_of_first_id": first}
            )
    return tables, columns


def _rows(rows: nn.Module, slot: Tensor) -> Tensor:
    """All rows of a table as floats [rows, width (+ 1)]."""
    found: Tensor = rows(torch.arange(len(slot)), slot)
    return found.float().contiguous()


def _configs(weights: dict[str, Tensor], fields: list[JsonValue], columns: list[JsonValue]) -> list[JsonValue]:
    """What an EmbeddingBagConfig takes, for each table; a feature is a field in a table."""
    features: dict[str, list[JsonValue]] = {name: [] for name in weights}
    for field in cast(list[dict[str, JsonValue]], fields):
        blocks = cast(list[dict[str, JsonValue]], field["blocks"])
        for name in sorted({str(block["table"]) for block in blocks if block["table"]}):
            features[name].append(f"{name}/{field['name']}")
    for column in cast(list[dict[str, JsonValue]], columns):
        features[str(column["table"])].append(f"{column['table']}/{column['name']}")
    return [
        {
            "name": name,
            "num_embeddings": len(tensor),
            "embedding_dim": tensor.shape[1],
            "feature_names": features[name],
            "pooling": "SUM",
        }
        for name, tensor in weights.items()
    ]


class _Dense(nn.Module):
    """What comes behind the tables: embeddings [B, F, D (+ 1)] and rows of pairs' columns [B, C, E] -> clicks [B]."""

    def __init__(self, model: CTRModel, task: Task) -> None:
        super().__init__()
        self.link, self.backbone, self.first_order = task.link, model.backbone, model.first_order
        self.inputs = None if model.pairs is None else _Inputs(model.pairs)

    def forward(self, e_BFD: Tensor, rows_BCE: Tensor | None = None) -> Tensor:
        pairs = None if self.inputs is None else self.inputs(rows_BCE)
        logits: Tensor = self.backbone(*joined(e_BFD, pairs, first_order=self.first_order))
        return self.link(logits if logits.dim() == 1 else logits.mean(1))


class _Inputs(nn.Module):
    """The inputs of pairs, as `PairEmbedding` makes them of what it looks up."""

    left: Tensor
    right: Tensor
    order: Tensor

    def __init__(self, pairs: PairEmbedding) -> None:
        super().__init__()
        self.memorized = pairs.memorized
        for name in ("left", "right", "order"):
            self.register_buffer(name, getattr(pairs, name))

    def forward(self, rows_BCE: Tensor) -> Tensor:
        memorized, factors = rows_BCE[:, : self.memorized], rows_BCE[:, self.memorized :]
        products = factors.index_select(1, self.left) * factors.index_select(1, self.right)
        return torch.cat([memorized, products], dim=1).index_select(1, self.order)


def _dense(model: CTRModel, task: Task) -> torch.export.ExportedProgram:
    batch = {0: Dim("batch", min=1, max=MOST_ROWS)}
    architecture, columns = model.architecture, cast(MixedEmbedding, model.embedding).columns
    example = [torch.zeros(4, len(architecture.fields), columns)]
    if model.pairs is not None:
        example.append(torch.zeros(4, sum(map(len, model.pairs.names)), architecture.pair_dim))
    dense = _Dense(model, task).eval().requires_grad_(False)
    return torch.export.export(dense, tuple(example), dynamic_shapes=(batch,) * len(example))
