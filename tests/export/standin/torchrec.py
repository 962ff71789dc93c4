"""The few classes of TorchRec that an exported model.py uses, by what its documentation says of them."""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import nn


class PoolingType(Enum):
    SUM = "SUM"


@dataclass
class EmbeddingBagConfig:
    name: str
    num_embeddings: int
    embedding_dim: int
    feature_names: list
    pooling: PoolingType


@dataclass
class KeyedJaggedTensor:
    """Values of all keys one after the other, `lengths` of each row of the first key first."""

    keys: list
    values: torch.Tensor
    lengths: torch.Tensor

    def of(self):
        lengths = self.lengths.view(len(self.keys), -1).long()
        parts = torch.split(self.values, lengths.sum(1).tolist())
        return {key: (part, own) for key, part, own in zip(self.keys, parts, lengths, strict=True)}


class EmbeddingBagCollection(nn.Module):
    def __init__(self, tables):
        super().__init__()
        names = [name for table in tables for name in table.feature_names]
        assert len(set(names)) == len(names)
        self.tables = tables
        self.embedding_bags = nn.ModuleDict(
            {one.name: nn.EmbeddingBag(one.num_embeddings, one.embedding_dim, mode="sum") for one in tables}
        )

    def forward(self, rows):
        found, given = {}, rows.of()
        for table in self.tables:
            for name in table.feature_names:
                values, lengths = given[name]
                offsets = lengths.cumsum(0) - lengths
                found[name] = self.embedding_bags[table.name](values, offsets)
        return Found(found)


@dataclass
class Found:
    found: dict

    def to_dict(self):
        return self.found
