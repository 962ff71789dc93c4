"""What training tells those who listen: the end of an epoch, and the end of a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from autoembed.metrics import Metrics
from autoembed.task import under

Phase = Literal["warm", "search", "refit", "teacher", "retrain"]


@dataclass(frozen=True, kw_only=True)
class EpochEnd:
    """An epoch has ended.

    Attributes:
        epoch: counted from 1 within a phase of a trial.
        loss: the mean loss on train.
        valid: the metrics on valid, of the supernet before retraining and of the compact model in it.
        phase: what was trained.
        stage: the place of the method in the trial, from 0; None where no method is at work.
        extra: further figures, such as those of the gates.
    """

    epoch: int
    loss: float
    valid: Metrics
    phase: Phase = "retrain"
    stage: int | None = None
    extra: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SearchEnd:
    """The search of a stage has ended; `extra` are figures of what it found."""

    extra: Mapping[str, float]
    stage: int | None = None


Event = EpochEnd | SearchEnd
Report = Callable[[Event], None]
EpochReport = Callable[[EpochEnd], None]


def values_of(event: Event) -> dict[str, float]:
    """An event under the names of curves and of Ray's results.

    The phase stands before each name, but before `train_loss` and the metrics on valid of retraining: only
    these are of the model that a trial answers with.
    """
    if isinstance(event, SearchEnd):
        values = {f"search_{name}": value for name, value in event.extra.items()}
    else:
        named = {"train_loss": event.loss, **under("valid", event.valid), **event.extra}
        prefix = "" if event.phase == "retrain" else f"{event.phase}_"
        values = {f"{event.phase}_epoch": event.epoch, **{f"{prefix}{name}": value for name, value in named.items()}}
    return values if event.stage is None else {**values, "stage": event.stage}
