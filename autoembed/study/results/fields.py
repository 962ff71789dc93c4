"""The fields of a study's model by what the model takes from them."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from autoembed.bundle import load_bundle
from autoembed.errors import BundleError
from autoembed.knockout import field_scores
from autoembed.nn.model import build_model
from autoembed.space import SearchSpace
from autoembed.study.engine.run import prepare
from autoembed.study.run_dir import RunDir
from autoembed.study.show.progress import Display
from autoembed.training import pick_device


def score_fields(path: Path, runs: Path, data: str | None, bar: Display) -> tuple[pl.DataFrame, str]:
    """`knockout.field_scores` on the valid split of a study's best bundle, or of a bundle, and a title for them.

    Args:
        path: a study's folder, or a bundle of one.
        runs: where the study of a bundle is looked for.
        data: the data, where they are no longer where the study found them.
        bar: told how far it is.

    Raises:
        StudyError: there is no study, its data have changed, or its model is one for each cluster of rows.
        BundleError: the study has no best bundle yet, or the bundle is of other data.
    """
    of_study = (path / "space.yaml").is_file()
    if not of_study and not (path / "manifest.json").is_file():
        raise BundleError(f"{path} is neither a run folder nor a bundle: it has no space.yaml and no manifest.json")
    bundle = load_bundle(RunDir(path).best if of_study else path)
    named = runs / str(bundle.manifest.provenance.get("study", ""))
    beside = path.absolute().parent  # a study's own bundle
    home = path if of_study else beside if (beside / "space.yaml").is_file() else named
    run = RunDir.existing(home)
    space = SearchSpace.read(run.space)
    dataset = prepare(run, space, data, bar)
    if bundle.manifest.provenance.get("fingerprint") != dataset.fingerprint:
        raise BundleError(f"the bundle {bundle.path} is of other data than the study {run.path}")
    # The bundle's schema has the columns that its model reads; in the study's, which has all, they are found by name.
    model = build_model(dataset.schema, bundle.architecture, packed=True)
    model.load_state_dict(bundle.model.state_dict())
    table = field_scores(model, dataset, "valid", pick_device(str(space.device)), bar.step)
    trial = bundle.manifest.provenance.get("trial", "")
    return table, f"{len(table)} fields of {trial} in {run.name}, {dataset.rows('valid'):,} valid rows"
