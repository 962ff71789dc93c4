"""Bundles of a study's trials, and of what a trial's search finds within other limits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from autoembed.auxiliary import recorded
from autoembed.budget import Limit
from autoembed.bundle import write_bundle
from autoembed.data.dataset import Dataset
from autoembed.errors import SpaceError, StudyError, option
from autoembed.nn.model import Model
from autoembed.space import SearchSpace
from autoembed.study.run_dir import RunDir
from autoembed.study.show.progress import Display
from autoembed.trial import TrialResult, run_limits


def trial_of(path: Path) -> str | None:
    """The trial that a bundle is of, or None if there is no bundle."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((path / "manifest.json").read_text())["provenance"]["trial"])
    return None


def export(run: RunDir, space: SearchSpace, dataset: Dataset, trial_id: str, path: Path) -> Path:
    """A bundle of a trial's architecture and weights."""
    trial = run.read_trial(trial_id)
    model = run.load_model(trial, dataset.schema)
    return _bundle(path, run, space, dataset, trial.id, trial.result, model)


def resize(
    run: RunDir,
    space: SearchSpace,
    dataset: Dataset,
    trial_id: str,
    limits: Sequence[Limit],
    out: Path,
    bar: Display,
    epochs: int | None = None,
) -> list[tuple[TrialResult, Path]]:
    """Searches once more as a trial did and reads an architecture off within each limit; a bundle for each in `out`.

    With `epochs`, each is trained on for so many from the searched weights, as `run_limits` says.
    """
    config = run.read_trial(trial_id).result.config
    if not limits:
        raise StudyError(f"give at least one {option('width')} or {option('bytes')}")
    bar.step("resize", 0, 1)
    found, refused = [], None
    for one in run_limits(config, limits, dataset, lambda values: None, epochs=epochs):
        if isinstance(one, SpaceError):
            refused = refused or one
            continue
        result, model = one
        limit = result.config.limit
        name = f"{limit.bytes}-bytes" if limit.bytes else f"width-{limit.width:g}"
        path = _bundle(out / name, run, space, dataset, trial_id, result, model)
        found.append((result, path))
    bar.step("resize", 1, 1)
    if refused is not None:
        raise refused
    return found


def _bundle(
    path: Path, run: RunDir, space: SearchSpace, dataset: Dataset, trial_id: str, result: TrialResult, model: Model
) -> Path:
    return write_bundle(
        path,
        schema=dataset.schema,
        vocabulary=dataset.vocabulary,
        architecture=result.architecture,
        model=model,
        data=space.data.model_dump(mode="json", exclude={"path", "planted", "split", "files", "crosses"}),
        metrics=recorded("valid", result.valid, result.auxiliary),
        provenance={
            "study": run.name,
            "trial": trial_id,
            "fingerprint": dataset.fingerprint,
            "train": result.config.train.model_dump(mode="json"),
            "monitor": result.config.monitor,
            "sources": list(dataset.sources),
        },
    )
