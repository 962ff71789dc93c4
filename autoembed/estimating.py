"""How long a study takes and how large it gets, from a few timed steps of its own model on its own data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heapreplace
from time import perf_counter, process_time

import torch

from autoembed.auxiliary import AuxiliaryLosses, logits_of
from autoembed.batches import RowWeights, batches
from autoembed.budget import Limit
from autoembed.data.dataset import Dataset
from autoembed.errors import SpaceError
from autoembed.fast import cores
from autoembed.knot_rows import knot_rows
from autoembed.methods.method import GateConfig, SearchConfig, WidthConfig, configure
from autoembed.nn.model import CTRModel, cost_of
from autoembed.pairwise import PairwiseLoss
from autoembed.space import SearchSpace
from autoembed.training import Optimiser, pick_device, predict
from autoembed.trial import TrialConfig, root_architecture

_STEPS, _TIMED = 6, 2.0  # at least so many steps, and seconds of them
_PROCESS = 300 << 20  # bytes of a worker before it has a model
_TRIAL = 2.0  # seconds to start one, to encode nothing, and to write what it found
# Measured on quickstart, KuaiRand, Adult and flights: what a phase takes beside an epoch of plain training, what share
# of its epochs a training reaches before it stops, and what training on in few bits makes of a training.
_WARM, _GATES, _READING, _REACHED, _ROUNDING = 1.1, 2.2, 2.0, 0.8, 2.2


@dataclass(frozen=True, kw_only=True)
class StudyEstimate:
    """What a study will take.

    Attributes:
        trials: of each arm.
        seconds: of the whole study, mostly within a factor of two; more if no training stops early.
        memory: bytes of all processes at their most.
        disk: bytes of the encoded data.
        bytes: of the model before anything is cut, embeddings and tower in 32 bits.
        at_once: trials that run at the same time.
    """

    trials: Mapping[str, int]
    seconds: float
    memory: int
    disk: int
    bytes: int
    at_once: int


def estimate(space: SearchSpace, dataset: Dataset, cpus: int | None = None) -> StudyEstimate:
    """What a study on these data will take; SpaceError if an arm has no valid configuration.

    A few steps of the full-width model are trained and thrown away.
    """
    at_once = max(1, int((cpus or cores()) / space.budget.cpus_per_trial))
    if space.budget.concurrent is not None:
        at_once = min(at_once, space.budget.concurrent)
    trials, lengths = {}, []
    timed: dict[tuple[object, ...], float] = {}
    size = 0
    for arm in space.arms():
        ranges = space.ranges(arm)
        config = space.config(arm, {place: leaf.first for place, leaf in ranges.items()})
        trials[arm] = space.trials(arm)
        key = (config.backbone["name"], config.embedding.dim, config.train.batch_size, config.device)
        if key not in timed:
            with _threads(max(1, int(space.budget.cpus_per_trial))):
                timed[key] = seconds_of_epoch(config, dataset)
            size = max(size, cost_of(root_architecture(config, dataset)).bytes)
        lengths += trials[arm] * [_TRIAL + epochs_of(config) * timed[key]]
    together = min(at_once, sum(trials.values()))
    disk = sum(path.stat().st_size for path in dataset.path.iterdir() if path.is_file())
    memory = _PROCESS * (2 + together) + together * 4 * size + disk
    return StudyEstimate(
        trials=trials, seconds=_makespan(lengths, together), memory=memory, disk=disk, bytes=size, at_once=together
    )


def _makespan(lengths: Sequence[float], at_once: int) -> float:
    """How long trials take that run so many at a time: never less than the longest, which may run alone at the end."""
    ends = [0.0] * at_once
    for length in sorted(lengths, reverse=True):
        heapreplace(ends, ends[0] + length)
    return max(ends)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """So many threads of torch, as a trial has: more of them wait in loops, which counts as time of the processor."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds_of_epoch(config: TrialConfig, dataset: Dataset) -> float:
    """Seconds of an epoch of plain training at full width, with the reading of valid after it."""
    device = pick_device(config.device)
    model = CTRModel(dataset.schema, root_architecture(config, dataset)).to(device).train()
    knots = knot_rows(model, dataset, config.train.numbers)
    optimiser = Optimiser(model, model.weight_parameters(), config.train, knots)
    rows, size = dataset.rows("train"), config.train.batch_size
    # On a processor its own time counts: what else runs now need not run then.
    clock = perf_counter if device.type == "cuda" else process_time
    begun, steps = clock(), 0
    forward, weights = logits_of(model), RowWeights(dataset, rows)
    auxiliary = AuxiliaryLosses(model, dataset, rows, weights, 1.0)
    pairs = PairwiseLoss(dataset, rows, weights, config.train.pairwise_weight, device=device, seed=0)
    # Rows in file order are read as they lie; a batch of pairs needs its groups.
    order = pairs.order(rows, [0]) if pairs.share else None
    columns = (*weights.columns, *pairs.columns, *auxiliary.columns)
    for step, (ids, labels, *told) in enumerate(
        batches(dataset, "train", size, device, rows=order, least=min(2, rows), columns=columns)
    ):
        if step == 1:
            begun, steps = clock(), 0  # the first one is slower
        both = forward(ids)
        loss = pairs.total(dataset.task.loss(both[0].float(), labels), both[0].float(), labels, told)
        auxiliary.total(loss, both, told, None).backward()
        optimiser.step()
        steps += 1
        if step >= _STEPS and clock() - begun > _TIMED:
            break
    if device.type == "cuda":
        torch.cuda.synchronize()
    training = (clock() - begun) / steps * -(-rows // size)
    begun = clock()
    predict(model, dataset, "valid", device)
    return training + clock() - begun


def epochs_of(config: TrialConfig) -> float:
    """How many epochs of plain training a trial is worth: searches, candidates and rounding."""
    total, candidates = 0.0, 1
    for stage in config.stages:
        method = configure(stage)
        if isinstance(method, SearchConfig):
            total += _WARM * method.warm_epochs * (1 + _REACHED * getattr(method, "rounds", 0))
        if isinstance(method, GateConfig):
            total += _GATES * method.epochs
        if isinstance(method, WidthConfig):
            total += _READING
            candidates = 2 if method.retrain == "best" else 1
            if method.guard == "retrained" and _limited(config.limit):
                candidates += 2
    bits = min([config.embedding.bits, *(_bits_of(stage) for stage in config.stages)])
    aware = _ROUNDING if bits < 32 and config.train.quantise == "aware" else 1.0
    return total + candidates * _REACHED * config.train.epochs * aware


def _limited(limit: Limit) -> bool:
    return any(value is not None for value in limit.model_dump().values())


def _bits_of(stage: Mapping[str, object]) -> int:
    """The fewest bits that a stage may choose."""
    method = configure(stage)
    chosen: tuple[int, ...] = getattr(method, "precisions", ())
    found = method.bits or 32
    if not isinstance(found, int):
        raise SpaceError(f"bits must be a number, but got {found!r}")
    return min([found, *chosen])
