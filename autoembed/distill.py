"""Distillation: a model learns from the labels and from the logits of a teacher (Hinton et al., arXiv 1503.02531).

The student's loss is (1 - weight) * loss(label) + weight * loss(link(teacher's logit)). A teacher scores the rows of
train once, before the student trains; its logits stand in a file without a name, memory-mapped, 4 bytes each, which
the system deletes with the last reference to it, even if the process is killed.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import nn

from autoembed.architecture import Architecture
from autoembed.batches import batches
from autoembed.bundle import load_bundle
from autoembed.data.dataset import Dataset
from autoembed.data.vocabulary import Vocabulary
from autoembed.errors import BundleError, SpaceError
from autoembed.events import EpochEnd, EpochReport
from autoembed.nn.model import build_model
from autoembed.training import Teacher, TeacherEnsemble, TrainConfig, fit
from autoembed.types import Array

_BATCH = 16384
_SEEDS = 10_000  # members of an ensemble start at this seed: no student is trained with one of theirs


def wants_search(train: TrainConfig) -> bool:
    """Whether the teacher is the supernet that the trial's last stage has searched."""
    return train.distill is not None and train.distill.weight > 0 and train.distill.teacher == "search"


def require_searched(train: TrainConfig, method: str, searches: bool) -> None:
    """SpaceError if the teacher should be the last stage's supernet and the stage trains none."""
    if wants_search(train) and not searches:
        raise SpaceError(
            f"train.distill.teacher: search needs a last stage that trains a supernet, but {method} trains none: "
            "name a bundle, or {ensemble: 2}"
        )


def searched(train: TrainConfig, net: nn.Module, dataset: Dataset, device: torch.device) -> Teacher | None:
    """The teacher that a searched supernet is, before anything is cut; None if the recipe names another one."""
    if not wants_search(train):
        return None
    logits = _file(dataset)
    _score(net, dataset, device, logits)
    return _teacher(train, logits)


def prepared(
    train: TrainConfig,
    root: Architecture,
    dataset: Dataset,
    device: torch.device,
    *,
    seed: int,
    report: EpochReport,
    monitor: str | None,
) -> Teacher | None:
    """The teacher that a bundle or an ensemble is; None if the recipe names neither.

    An ensemble's members have the root's full width and are trained with the same recipe, each from a seed of its own;
    their epochs are reported as those of the phase "teacher", counted on from member to
    member. BundleError if a bundle does not fit the data.
    """
    distill = train.distill
    if distill is None or distill.weight == 0 or distill.teacher == "search":
        return None
    logits = _file(dataset)
    if isinstance(distill.teacher, TeacherEnsemble):
        members, epochs = distill.teacher.ensemble, count(1)

        def told(event: EpochEnd) -> None:
            report(replace(event, phase="teacher", epoch=next(epochs)))

        for number in range(members):
            own = _SEEDS + seed * members + number
            torch.manual_seed(own)
            model = build_model(dataset.schema, root).to(device)
            fit(model, dataset, train, device=device, seed=own, report=told, monitor=monitor, fresh=True)
            _score(model, dataset, device, logits, share=1 / members)
    else:
        _bundle(Path(distill.teacher), dataset, device, logits)
    return _teacher(train, logits)


def _file(dataset: Dataset) -> Array:
    """Zeros float32 [rows of train], or [rows of train, C] of classes, in a file that has no name."""
    rows, outputs = dataset.rows("train"), dataset.task.outputs
    shape = (rows,) if outputs == 1 else (rows, outputs)
    with tempfile.TemporaryFile(prefix="autoembed-teacher-") as file:
        return np.memmap(file, dtype=np.float32, mode="w+", shape=shape)


def _teacher(train: TrainConfig, logits: Array) -> Teacher:
    assert train.distill is not None
    return Teacher(logits=logits, weight=train.distill.weight)


@torch.no_grad()
def _score(
    model: nn.Module,
    dataset: Dataset,
    device: torch.device,
    out: Array,
    *,
    share: float = 1.0,
    columns: list[int] | None = None,
) -> None:
    """Adds `share` times a model's logits on train to float [N] or [N, C]; `columns` of the data are those it reads."""
    model.eval()
    place = 0
    for ids, _ in batches(dataset, "train", _BATCH, device):
        logits = model(ids if columns is None else ids[:, columns]).float().cpu().numpy()
        out[place : place + len(logits)] += share * logits
        place += len(logits)


def _meaning(vocabulary: Vocabulary, name: str) -> tuple[object, str]:
    """What the ids of a column stand for, as something to compare."""
    table = vocabulary.keep([name]).table().drop("count")
    return vocabulary.cross(name), table.write_csv()


def _bundle(path: Path, dataset: Dataset, device: torch.device, out: Array) -> None:
    bundle = load_bundle(path)
    names = bundle.schema.names
    if missing := [name for name in names if name not in dataset.schema.names]:
        raise BundleError(f"the teacher {path} reads the column {missing[0]!r}, which the study's data do not have")
    taught, wanted = (
        (schema.task.name, schema.ratings, schema.classes and schema.classes.names)
        for schema in (bundle.schema, dataset.schema)
    )
    if taught != wanted:
        raise BundleError(
            f"the teacher {path} must have the task and the scale or classes of labels of the study's data, but was "
            "trained on others: name one that was trained on these data"
        )
    own = Vocabulary.read(dataset.path / "vocabulary.parquet")
    for name in names:
        fields = (schema.fields[schema.index(name)] for schema in (dataset.schema, bundle.schema))
        if len({field.multi for field in fields}) > 1:
            raise BundleError(f"the teacher {path} reads other values of {name!r} than the study (data.multi differs)")
        if _meaning(own, name) != _meaning(bundle.vocabulary, name):
            raise BundleError(f"the teacher {path} has other ids for the values of {name!r} than the study's data have")
    _score(bundle.model.to(device), dataset, device, out, columns=dataset.schema.columns(names))
