"""What a study's page is made of, read from its run folder."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import polars as pl

from autoembed import __version__
from autoembed.budget import first_order
from autoembed.data.schema import FeatureSchema
from autoembed.errors import StudyError, option
from autoembed.study.results.explain import described
from autoembed.study.results.leaderboard import Leaderboard
from autoembed.study.results.retrain import ARMS, ArmsContent
from autoembed.study.run_dir import Ended, RunDir, Trial

if TYPE_CHECKING:
    from autoembed.ranking.ranking import Ranking
    from autoembed.space import SearchSpace
    from autoembed.study.results.importance import Importance

PACKAGES = ("torch", "ray", "optuna", "polars", "numpy", "mlflow")


@dataclass(frozen=True, kw_only=True)
class StudyFacts:
    """A finished study as its folder has it.

    Attributes:
        best: the winner.
        champions: the best trial of each arm by name, those that have one.
        explained: a row for each column, as `explain` or `described` have it.
        plain: bytes of uniform 32-bit rows of the winner's width for the same fields.
        seconds: from the first to the last report of a trial, over all starts of the study; None without reports.
        data: the content of dataset.json.
        study: the content of study.json.
    """

    run: RunDir
    space: SearchSpace
    board: Leaderboard
    best: Trial
    trials: Sequence[Trial]
    champions: dict[str, Trial]
    ended: Sequence[Ended]
    arms: ArmsContent | None
    ranking: Ranking | None
    explained: pl.DataFrame | None
    importance: dict[str, Importance]
    plain: int | None
    seconds: float | None
    data: dict[str, Any] = field(default_factory=dict)
    study: dict[str, Any] = field(default_factory=dict)


def gather(run: RunDir, space: SearchSpace, explained: pl.DataFrame | None = None) -> StudyFacts:
    """Reads a study; StudyError if it has no leaderboard yet.

    `explained` is what the study's best trial loses without each column, if that was measured.
    """
    from autoembed.ranking.ranking import Ranking
    from autoembed.study.results.importance import importances

    board = Leaderboard.read(run)
    if board is None:
        raise StudyError(f"{run.path} has no leaderboard yet: go on with it by {option('resume', True)}")
    trials = run.trials()
    by_id = {trial.id: trial for trial in trials}
    best = by_id.get(board.winner) or run.read_trial(board.winner)
    data = run.read_json("dataset.json") or {}
    fields = _fields(data)
    path = run.path / "ranking.parquet"
    if explained is None and path.is_file():
        explained = described(run, best, [one.name for one in fields])
    return StudyFacts(
        run=run,
        space=space,
        board=board,
        best=best,
        trials=trials,
        champions={row.arm: by_id[row.trial] for row in board.rows if row.trial in by_id},
        ended=run.ended(),
        arms=run.read_json(ARMS),
        ranking=Ranking.read(path) if path.is_file() else None,
        explained=explained,
        importance=importances(run, space.arms()),
        plain=_plain(best, fields),
        seconds=_seconds(run),
        data=data,
        study=run.read_json("study.json") or {},
    )


def versions() -> dict[str, str]:
    """Of Python, of this package, and of what a study's figures depend on."""
    return {"python": platform.python_version(), "autoembed": __version__} | {name: version(name) for name in PACKAGES}


def _fields(data: dict[str, Any]) -> list[Any]:
    """The fields that the ranking kept, without candidates and those that read another field's table."""
    if "schema" not in data:
        return []
    schema = FeatureSchema.model_validate(data["schema"])
    kept = set(data.get("fields", []))
    return [one for one in schema.fields if one.name in kept and not one.candidate]


def _plain(best: Trial, fields: Sequence[Any]) -> int | None:
    rows = sum(one.cardinality for one in fields if one.shares is None)
    return 4 * rows * (best.architecture.dim + first_order(best.architecture)) or None


def _seconds(run: RunDir) -> float | None:
    """Between the first and the last report of all trials; a line that cannot be read is passed over."""
    times: list[int] = []
    for path in run.path.glob("trials/*/curves.jsonl"):
        lines = path.read_text().splitlines()
        for line in (*lines[:1], *lines[-1:]):
            try:
                times.append(int(json.loads(line)["time"]))
            except (ValueError, KeyError, TypeError):
                continue
    return (max(times) - min(times)) / 1000 if len(times) > 1 else None
