"""What commands show as plain data, for other programs: the content of `--json`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from autoembed.study.results.retrain import ARMS
from autoembed.study.show.compared import boards_of, differences
from autoembed.study.show.watching import listed

if TYPE_CHECKING:
    import polars as pl

    from autoembed.bundle import Bundle
    from autoembed.ranking.ranking import Ranking
    from autoembed.study.study import Study


def of_study(study: Study, trial: str | None) -> dict[str, object]:
    """A study's state, leaderboard and best trial, or one of its trials.

    `leaderboard` and `best` are null before there is a leaderboard, `arms` without a retraining over seeds, and
    `pareto` without a cost in the objective.
    """
    if trial is not None:
        return {"study": study.name, **_trial(study, trial)}
    board = study.leaderboard if study.finished else None
    ended = [asdict(one) for one in study.ended]
    front = study.pareto.table.to_dicts() if study.space.objective.cost and board else None
    return {
        **listed(study.run),
        "leaderboard": None if board is None else board.model_dump(mode="json"),
        "arms": study.run.read_json(ARMS),
        "pareto": front,
        "ended": ended,
        "best": None if board is None else _trial(study, board.winner),
    }


def _trial(study: Study, which: str) -> dict[str, object]:
    found = study.trial(which)
    return {"trial": found.id, "arm": found.arm, **found.result.model_dump(mode="json")}


def of_bundle(bundle: Bundle) -> dict[str, object]:
    """A bundle's manifest and architecture."""
    architecture = bundle.architecture.model_dump(mode="json")
    return {
        "bundle": str(bundle.path),
        "manifest": bundle.manifest.model_dump(mode="json"),
        "architecture": architecture,
    }


def of_ranking(ranking: Ranking, title: str, top: int | None) -> dict[str, object]:
    """A ranking's tables, as lists of rows; null where they were not asked for."""
    return {
        "title": title,
        "fingerprint": ranking.fingerprint,
        "columns": _rows(ranking.table, top),
        "pairs": _rows(ranking.pairs, top),
        "selected": _rows(ranking.selected, None),
        "stability": _rows(ranking.stability, None),
        "findings": [asdict(one) for one in ranking.findings],
        "notes": list(ranking.notes),
    }


def _rows(table: pl.DataFrame | None, top: int | None) -> list[dict[str, object]] | None:
    return None if table is None else (table if top is None else table.head(top)).to_dicts()


def of_compared(first: Path, second: Path) -> dict[str, object]:
    """Two studies' leaderboards and what differs about them; StudyError if one of them has none."""
    runs, boards = boards_of(first, second)
    parts = [
        {"path": str(run.path), "leaderboard": board.model_dump(mode="json")}
        for run, board in zip(runs, boards, strict=True)
    ]
    return {"first": parts[0], "second": parts[1], "differences": differences(*runs)}
