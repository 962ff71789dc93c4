"""A bundle's model as a `torch.export` program: ids int64 [B, V] -> predictions float [B] or [B, C], B open."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import torch
from torch.export import Dim, ExportedProgram

from autoembed.bundle import Bundle
from autoembed.export.serving import ServingModel
from autoembed.nn.model import Model
from autoembed.task import CLICKS, Task

INPUT = "ids"
MOST_ROWS = 1 << 24


def program_of(bundle: Bundle, *, every: bool = False) -> ExportedProgram:
    """The program of a bundle, on the CPU; with `every` label a second result, the chances of auxiliary ones [B, L]."""
    return program_of_model(bundle.model, sum(bundle.schema.lengths), bundle.schema.task, every=every)


def program_of_model(model: Model, columns: int, task: Task = CLICKS, *, every: bool = False) -> ExportedProgram:
    """The program of a compact model that reads so many columns; the model stays as it is."""
    served = ServingModel(copy.deepcopy(model).cpu(), task, every=every)
    example = torch.zeros(4, columns, dtype=torch.int64)
    with quiet():
        return torch.export.export(served, (example,), dynamic_shapes={INPUT: {0: Dim("batch", min=1, max=MOST_ROWS)}})


def core_of(program: ExportedProgram) -> ExportedProgram:
    """The same program in the operations of core ATen alone."""
    with quiet():
        core: ExportedProgram = program.run_decompositions()
    return core


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's exporters warn of, log and print about their own code."""
    log = logging.getLogger("torch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
