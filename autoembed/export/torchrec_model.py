"""This folder's model in TorchRec: an EmbeddingBagCollection, and the dense part as a program. It needs no autoembed.

Each table is read by features of its own, "TABLE/FIELD". A value is looked up in one table of its field, and is an
empty bag in the others, whose zeros are added to it.
"""

import json
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType


class Model(nn.Module):
    """Ids int64 [N, F] in the order of sample.json -> click probabilities float32 [N].

    `tables` takes the jagged tensor that `rows` makes of ids; the dense part scores and does not train.
    """

    def __init__(self, described, dense):
        super().__init__()
        self.described, self.dense = described, dense
        configs = [EmbeddingBagConfig(**{**one, "pooling": PoolingType[one["pooling"]]}) for one in described["tables"]]
        self.tables = EmbeddingBagCollection(tables=configs)
        self.features = nn.ModuleList()
        for place, field in enumerate(described["fields"]):
            tables = {block["table"] for block in field["blocks"]}
            for table in configs:
                if table.name in tables:
                    self.features.append(Feature(field, place, table.name, table.embedding_dim))

    @classmethod
    def load(cls, folder="."):
        """The model of an exported folder."""
        folder = Path(folder)
        dense = torch.export.load(folder / "dense.pt2").module()
        model = cls(json.loads((folder / "tables.json").read_text()), dense)
        weights = load_file(folder / "tables.safetensors")
        model.tables.load_state_dict({f"embedding_bags.{name}.weight": table for name, table in weights.items()})
        return model

    def rows(self, ids):
        """The rows that ids [N, F] stand in, as a jagged tensor of all features: 0 or 1 row for each."""
        names, values, lengths = [], [], []
        for feature in cast(list[Feature], self.features):
            row, hit = feature(ids[:, feature.column])
            names.append(feature.name)
            values.append(row[hit])
            lengths.append(hit)
        for column in self.described["pair_columns"]:
            names.append(f"{column['table']}/{column['name']}")
            values.append(ids[:, column["column"]] + column["row_of_first_id"])
            lengths.append(torch.ones(len(ids), dtype=torch.bool, device=ids.device))
        return KeyedJaggedTensor(keys=names, values=torch.cat(values), lengths=torch.cat(lengths).int())

    @torch.no_grad()
    def forward(self, ids):
        found = self.tables(self.rows(ids)).to_dict()
        wide = torch.zeros(len(ids), len(self.described["fields"]), self.described["columns"], device=ids.device)
        for feature in cast(list[Feature], self.features):
            place = feature.place[feature.block(ids[:, feature.column])]
            wide[:, feature.field].scatter_add_(1, place, found[feature.name])
        pairs = [found[f"{one['table']}/{one['name']}"] for one in self.described["pair_columns"]]
        return self.dense(wide, torch.stack(pairs, dim=1)) if pairs else self.dense(wide)


class Feature(nn.Module):
    """A field's values in one table: ids int64 [N] -> their rows int64 [N], and whether they are in it, bool [N]."""

    ends: torch.Tensor
    own: torch.Tensor
    shift: torch.Tensor
    place: torch.Tensor

    def __init__(self, field, number, table, width):
        super().__init__()
        self.name, self.field, self.column = f"{table}/{field['name']}", number, field["column"]
        blocks = field["blocks"]
        own = [block["table"] == table for block in blocks]
        shift = [one["row_of_first_id"] - one["first_id"] if hit else 0 for one, hit in zip(blocks, own, strict=True)]
        place = [one["columns"] if hit else list(range(width)) for one, hit in zip(blocks, own, strict=True)]
        self.register_buffer("ends", torch.tensor([block["end_id"] for block in blocks[:-1]], dtype=torch.int64))
        self.register_buffer("own", torch.tensor(own))
        self.register_buffer("shift", torch.tensor(shift))
        self.register_buffer("place", torch.tensor(place))

    def block(self, ids):
        """The block that each id is in, int64 [N]."""
        return torch.bucketize(ids.contiguous(), self.ends, right=True)

    def forward(self, ids):
        block = self.block(ids)
        return ids + self.shift[block], self.own[block]
