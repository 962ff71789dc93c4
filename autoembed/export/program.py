"""A bundle's model as a `torch.export` program: ids int64 [B, F] -> click probabilities float [B], B open."""

from __future__ import annotations

import copy
import warnings

import torch
from torch.export import Dim, ExportedProgram

from autoembed.bundle import Bundle
from autoembed.export.serving import ServingModel
from autoembed.nn.model import Model
from autoembed.types import Array

INPUT = "ids"
_MOST_ROWS = 1 << 24


def program_of(bundle: Bundle) -> ExportedProgram:
    """The program of a bundle, on the CPU."""
    return program_of_model(bundle.model, len(bundle.schema.fields))


def program_of_model(model: Model, fields: int) -> ExportedProgram:
    """The program of a compact model that reads so many columns; the model stays as it is."""
    served = ServingModel(copy.deepcopy(model).cpu())
    example = torch.zeros(4, fields, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its own code
        return torch.export.export(served, (example,), dynamic_shapes={INPUT: {0: Dim("batch", min=1, max=_MOST_ROWS)}})


@torch.no_grad()
def expected(bundle: Bundle, ids: Array) -> Array:
    """What the bundle's model predicts for ids int [N, F], float32 [N]."""
    model = bundle.model.cpu().eval()
    return torch.sigmoid(model(torch.from_numpy(ids))).numpy()
