"""A bundle trained on with a later log: its architecture stays, and values come and go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl
import torch
from pydantic import ValidationError

from autoembed.auxiliary import auxiliary_metrics
from autoembed.bundle import Bundle, load_bundle
from autoembed.data.dataset import Dataset, build_dataset
from autoembed.data.encoding import OtherVocabulary
from autoembed.data.files import Where
from autoembed.data.readers import DataSpec, read_rows
from autoembed.data.spec import BINS
from autoembed.data.vocabulary import Vocabulary
from autoembed.errors import DataError, SpaceError, StudyError, first_line, option
from autoembed.metrics import Metric, Metrics
from autoembed.reuse import (
    averaged,
    carried,
    fitted,
    further_metrics,
    known_recipe,
    refuse_crossed,
    rows_seen,
    units_of,
    with_weights_of,
    written,
)
from autoembed.scoring import coverage_warnings
from autoembed.task import metric_in
from autoembed.training import TrainConfig, metrics_on, pick_device
from autoembed.types import Progress
from autoembed.writing import scratch

Rule = Literal["keep", "grow", "rebuild"]
RULES: tuple[Rule, ...] = ("keep", "grow", "rebuild")
MEMORY = 0.5
EVICT = 0.05  # at 1 the long tail of a day is gone on the next one, and its embeddings with it


@dataclass(frozen=True, kw_only=True)
class Refreshed:
    """What a refresh gave.

    Attributes:
        bundle: the new one; the old one where that was to be replaced by no worse a model, and the new one is worse.
        before, after: metrics of the old and of the new model on the tail, the test rows of the new log.
        further: the same of each auxiliary label.
        kept: whether the new bundle was written.
        rows: of the log that were trained on.
        values: per field the ids of before, those that are gone, and those that are new: a frame.
        coverage: as of `Bundle.coverage`: how well the old bundle knows the log.
        drift: in sentences, what the log has that train did not.
        notes: what was read and guessed.
        study: the folder of the bundle's study, if that is known.
    """

    bundle: Bundle
    before: Metrics
    after: Metrics
    further: Mapping[str, tuple[Metrics, Metrics]]
    kept: bool
    rows: int
    values: pl.DataFrame
    coverage: pl.DataFrame
    drift: tuple[str, ...]
    notes: tuple[str, ...]
    study: Path | None

    @property
    def no_worse(self) -> bool:
        """Whether the new model is at least as good on the tail, by the metric that its study was about."""
        metric = _metric(self.bundle, self.bundle.spec)
        return metric.figure(self.after) >= metric.figure(self.before)


def refresh(
    source: str | Path,
    data: Where,
    out: str | Path | None = None,
    *,
    epochs: int = 2,
    vocabulary: Rule = "grow",
    min_count: int | None = None,
    evict: float = EVICT,
    memory: float = MEMORY,
    settings: Mapping[str, object] | None = None,
    train: Mapping[str, object] | None = None,
    seed: int = 0,
    device: str = "auto",
    study: str | Path | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Refreshed:
    """Trains a bundle's model on with a later log, from its weights and without a search.

    The log is split as its `split` says: by time, if the bundle has a time column, so that test is its tail. Of ratings
    the mean and sd that logits are in stay the bundle's, and a note says so where the log's are far from them.

    Args:
        source: the bundle's folder.
        data: the log: whatever `data.path` may be, with the bundle's columns and its label.
        out: the new bundle's folder. Without it the bundle is replaced, if the new model is no worse on the tail.
        epochs: passes over the log.
        vocabulary: `keep` leaves the values that have ids; `grow` gives ids to new values and takes them from those
            that died out, in the order of frequency, which says the block of each; `rebuild` takes the values of the
            log alone. A value that has an id before and after keeps its embedding.
        min_count: rows of the log that a new value needs; by default the bundle's, as a share of the rows that the
            bundle has seen: half of it for a log of half as many rows, and 1 at least.
        evict: of `grow`: a value with fewer rows loses its id.
        memory: of `grow`: how much a row of before counts beside one of the log, from 0 to 1. After n refreshes it
            counts memory**n, so that a value stays for a while that a log does not have.
        settings: keys of the `data:` section that override those of the bundle, such as split.
        train: keys of `train` that override those of the bundle, such as lr; `patience` and `decay` have no say here.
        seed: of the order of rows.
        device: auto, cpu, cuda or cuda:N.
        progress: called with (step, done, total).
        study: the folder of the bundle's study; by default the one that the bundle stands in or names.
        cache: where encoded data are kept; a temporary folder by default.

    Raises:
        DataError: the log breaks a rule, or lacks columns of the bundle.
        SpaceError: the recipe breaks a rule, or the architecture belongs to its own data.
        BundleError: there is no bundle at `source`.
    """
    if cache is None:
        with scratch() as folder:
            return refresh(
                source,
                data,
                out,
                epochs=epochs,
                vocabulary=vocabulary,
                min_count=min_count,
                evict=evict,
                memory=memory,
                settings=settings,
                train=train,
                seed=seed,
                device=device,
                study=study,
                progress=progress,
                cache=folder,
            )
    _check(vocabulary, evict, memory)
    bundle, where = load_bundle(source), pick_device(device)
    refuse_crossed(bundle)
    _refuse_statistics(bundle)
    recipe, once, told = _recipe(bundle, epochs, train or {})
    spec = _spec(bundle, data, {} if min_count is None else {"min_count": min_count}, settings or {})
    units = units_of(bundle, spec)
    metric = _metric(bundle, spec)
    known = build_dataset(spec, data, cache, progress, vocabulary=_other(bundle, "keep", spec, 0, 0), units=units)
    before = metrics_on(bundle.model.to(where).eval(), known, "test", where)
    before_of = auxiliary_metrics(bundle.model, known, "test", where)
    bundle.model.cpu()
    dataset = known
    if vocabulary != "keep":
        counted = spec
        if min_count is None and "min_count" not in (settings or {}):
            least = _least(bundle, known)
            told = (*told, f"a new value needs {least} of this log's {known.rows('train'):,} train rows")
            counted = spec.model_copy(update={"min_count": least})  # the bundle's own rule is passed on
        other = _other(bundle, vocabulary, counted, evict, memory)
        dataset = build_dataset(counted, data, cache, progress, vocabulary=other, units=units)
    plan = carried(bundle.architecture, dataset.schema)
    torch.manual_seed(seed)
    start = with_weights_of(bundle, plan, dataset).to(where)
    mean = averaged(bundle, start, dataset, memory)
    model, valid, after = fitted(plan, dataset, once, where, seed, start, metric.monitor, progress, mean)
    coverage, further = _coverage(bundle, known), further_metrics(model, dataset)
    result = Refreshed(
        bundle=bundle,
        before=before,
        after=after,
        further={label: (own, further["test"][label]) for label, own in before_of.items()},
        kept=False,
        rows=dataset.rows("train"),
        values=_changed(bundle.vocabulary, dataset.vocabulary),
        coverage=coverage,
        drift=tuple(coverage_warnings(coverage)),
        notes=(*known.notes, *told),
        study=_study(bundle, study),
    )
    if out is None and not result.no_worse:
        return result
    provenance = bundle.manifest.provenance | {
        "train": recipe.model_dump(mode="json"),
        "bundle": str(Path(source).absolute()),
        "refreshes": int(str(bundle.manifest.provenance.get("refreshes", 0))) + 1,
        "vocabulary": vocabulary,
        "run": None if result.study is None else str(result.study),
        "tail": {"before": before.model_dump(), "after": after.model_dump()},
    }
    place = bundle.path if out is None else Path(out)
    new = written(place, model, dataset, spec, valid, after, provenance, further)
    return Refreshed(**{**vars(result), "bundle": new, "kept": True})


def _check(vocabulary: str, evict: float, memory: float) -> None:
    if vocabulary not in RULES:
        raise SpaceError(f"{option('vocabulary')} must be one of {', '.join(RULES)}, but got {vocabulary!r}")
    if evict < 0:
        raise SpaceError(f"{option('evict')} must be at least 0, but got {evict:g}")
    if not 0 <= memory <= 1:
        raise SpaceError(f"{option('memory')} must lie from 0 to 1, but got {memory:g}")


def _refuse_statistics(bundle: Bundle) -> None:
    rates = [field.name for field in bundle.schema.fields if field.statistic_of is not None]
    if rates:
        raise SpaceError(
            f"the architecture has click rates of values ({', '.join(rates)}), which are of all train rows, and a log "
            f"has the latest only: train on the whole table: `autoembed retrain {bundle.path} --data TABLE --warm`"
        )


def _study(bundle: Bundle, given: str | Path | None) -> Path | None:
    """The folder of a bundle's study: as given, that around the bundle, or what an earlier refresh noted."""
    if given is not None:
        if not (Path(given) / "study.json").is_file():
            raise StudyError(f"{given} is not the folder of a study: it has no study.json")
        return Path(given).absolute()
    noted = bundle.manifest.provenance.get("run")
    places = [bundle.path.absolute().parent, *([Path(str(noted))] if noted else [])]
    return next((place for place in places if (place / "study.json").is_file()), None)


def _metric(bundle: Bundle, spec: DataSpec) -> Metric:
    """The metric that the bundle's study was about; SpaceError if it needs groups that the log is read without."""
    monitor = bundle.manifest.provenance.get("monitor")
    return metric_in(bundle.spec.predicts, monitor if isinstance(monitor, str) else None, spec.group)


def _recipe(
    bundle: Bundle, epochs: int, train: Mapping[str, object]
) -> tuple[TrainConfig, TrainConfig, tuple[str, ...]]:
    """The bundle's recipe, which the new bundle passes on, the one of this training, and notes.

    SpaceError if they break a rule.
    """
    own, notes = known_recipe(bundle.manifest.provenance.get("train"))
    try:
        recipe = TrainConfig.model_validate({**own, "distill": None})
        once = TrainConfig.model_validate({**recipe.model_dump(), "epochs": epochs, **train})
    except ValidationError as error:
        raise SpaceError(f"train.{first_line(error, TrainConfig)}") from None
    if once.pairwise_weight == 1:
        raise SpaceError(
            "a refresh keeps weights by the loss of rows, and train.pairwise_weight: 1 leaves that out: train on by "
            f"`autoembed retrain --warm`, or give {option('train', 'pairwise_weight=0.5')}"
        )
    return recipe, once, notes


def _spec(bundle: Bundle, data: Where, least: Mapping[str, object], settings: Mapping[str, object]) -> DataSpec:
    """How the log is read: the bundle's columns alone, each of the kind that it has there; DataError if one is gone."""
    own = bundle.spec.model_dump(exclude_unset=True) | dict(least) | dict(settings)
    none: dict[str, object] = {"drop": [], "categorical": [], "numeric": [], "multi": {}, "shared": {}, "hash": {}}
    spec = DataSpec.checked(own | none | {"numeric_embedding": "bins", "bins": BINS, "max_values": None})
    with scratch() as staging:
        there = read_rows(spec, data, staging).collect_schema().names()
    gone = [name for name in bundle.vocabulary.columns if name not in there]
    if gone:
        raise DataError(
            f"the log lacks columns that the model takes: {', '.join(gone)}: bring them back, or search again without "
            "them, as what the model has learned of the others counts on them"
        )
    beside = {"time": spec.time, "weight": spec.weight, "group": spec.group}
    for role, name in beside.items():
        if name is not None and name not in there:
            raise DataError(
                f"the log lacks the {role} column {name!r} of the bundle: bring it back, or set data.{role} to null"
            )
    for name in bundle.schema.auxiliary_labels:
        if name not in there:
            raise DataError(
                f"the log lacks the auxiliary label {name!r} of the bundle: bring it back, or train again without it"
            )
    wanted = {*bundle.vocabulary.columns, spec.label, *spec.auxiliary_labels, *beside.values()}
    fields = {field.name: field for field in bundle.schema.fields}
    columns: dict[str, object] = {
        kind: [name for name, field in fields.items() if field.kind == kind] for kind in ("categorical", "numeric")
    }
    lists = {
        name: {"separator": field.multi.separator, "max_length": field.multi.length, "keep": field.multi.keep}
        for name, field in fields.items()
        if field.multi is not None
    }
    shared = {name: field.shares for name, field in fields.items() if field.shares}
    hashed = {name: field.buckets for name, field in fields.items() if field.buckets}
    between = {name: field.interpolation for name, field in fields.items() if field.interpolation} or "bins"
    # A group that is no field of the bundle stays beside the ids alone.
    dropped = [name for name in there if name not in wanted or (name == spec.group and name not in fields)]
    for key in ("bins", "max_values"):
        if isinstance(named := own.get(key), dict):
            columns[key] = {name: number for name, number in named.items() if name in fields}
    columns |= {"multi": lists, "shared": shared, "hash": hashed, "numeric_embedding": between, "drop": dropped}
    return DataSpec.checked(own | columns)


def _least(bundle: Bundle, log: Dataset) -> int:
    """The rows of a log that a new value needs: the bundle's `min_count`, as a share of the rows that it has seen."""
    own = bundle.spec.min_count
    return min(own, max(1, round(own * log.rows("train") / rows_seen(bundle))))


def _other(bundle: Bundle, rule: Rule, spec: DataSpec, evict: float, memory: float) -> OtherVocabulary:
    table = bundle.manifest.files["vocabulary.parquet"]
    owner = {field.name: field.shares or field.name for field in bundle.schema.fields}

    def most(name: str) -> int | None:
        return spec.most_of(owner[name])

    make = {
        "keep": lambda log: bundle.vocabulary,
        "grow": lambda log: bundle.vocabulary.grown(log, least=spec.min_count, evict=evict, memory=memory, most=most),
        "rebuild": lambda log: log.pruned(spec.min_count, most),
    }[rule]
    return OtherVocabulary(key=f"{rule} {evict:g} {memory:g} {table}", fields=bundle.vocabulary.names, make=make)


def _coverage(bundle: Bundle, known: Dataset) -> pl.DataFrame:
    """How well the old bundle knows the rows that the new one is trained on, as `Bundle.coverage` says it."""
    return bundle.shares(bundle.vocabulary.gaps(known.ids("train")))


def _values(vocabulary: Vocabulary, name: str) -> set[str]:
    """The values of a field that have an id; of a numeric one, none."""
    return set() if vocabulary.knots(name) is not None else set(vocabulary.keep([name]).table()["value"].drop_nulls())


def _changed(before: Vocabulary, after: Vocabulary) -> pl.DataFrame:
    """Per field: ids before, and how many values are gone and new."""
    rows = []
    for name in before.names:
        old, new = (_values(one, name) for one in (before, after))
        rows.append((name, before.cardinality(name), len(old - new), len(new - old)))
    return pl.DataFrame(rows, schema=["field", "ids", "gone", "new"], orient="row")
