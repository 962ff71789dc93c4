"""The `data:` section of a search-space file: where the table is, what its columns mean and how it is split."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated, Literal

import polars as pl
from pydantic import Field, field_validator, model_validator

from autoembed.data.crosses import CrossSpec
from autoembed.data.knots import FUNCTIONS, Function, Interpolation
from autoembed.data.multi import MultiSpec
from autoembed.data.planted import PlantedSpec
from autoembed.data.schema import FeatureSchema
from autoembed.data.schema import Field as Column
from autoembed.data.strict import StrictModel
from autoembed.data.target_statistics import TargetStatistics
from autoembed.data.values import key
from autoembed.multiclass import LEAST, MOST, LabelClasses, Multiclass
from autoembed.task import Task, task_named

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
Format = Literal["auto", "csv", "jsonl", "parquet", "arrow", "libfm", "criteo", "avazu"]
SplitPoint = float | int | str
NumericEmbedding = Literal["bins"] | Interpolation
TaskName = Literal["clicks", "ratings", "ranking", "multiclass"]
Bins = Annotated[int, Field(ge=2)]
MaxValues = Annotated[int, Field(ge=1)]
BINS = 32


class SplitSpec(StrictModel):
    """How rows are divided into train, valid and test.

    `by: random` takes fractions of the rows. `by: time` takes fractions of the rows (rows of equal time stay together)
    or cut values: train < valid <= valid rows < test <= test rows. Without `by`, a table is split by time if it has a
    time column, and at random if it has none; a directory with train, valid and test is used as it is, unless by time
    both cuts are given, which split all its rows. `stratify` takes the fractions of `by: random` from each class, so
    that every split has its share of a rare one. `by: group` keeps rows of one value of `column` together, such as a
    patient's: a random part of the values, which have about the fractions of the rows, is in valid, another in test.
    """

    by: Literal["random", "time", "group"] | None = None
    column: str | None = None
    valid: SplitPoint = 0.1
    test: SplitPoint = 0.1
    seed: int = Field(default=0, ge=0)
    stratify: bool = False

    @field_validator("valid", "test", mode="before")
    @classmethod
    def _dates_as_text(cls, value: object) -> object:
        # YAML turns an unquoted 2013-10-01 into a date.
        return value.isoformat() if isinstance(value, dt.date) else value

    @model_validator(mode="after")
    def _fractions_or_cuts(self) -> SplitSpec:
        if self.by in ("random", "group") and not (is_fraction(self.valid) and is_fraction(self.test)):
            raise ValueError(
                f"split by {self.by} must have fractions between 0 and 1, but got valid={self.valid!r}, "
                f"test={self.test!r}"
            )
        if (self.by == "group") != (self.column is not None):
            raise ValueError(f"split by: group and split.column go together, but got {self.by=} {self.column=}")
        if self.stratify and (self.by in ("time", "group") or not is_fraction(self.valid)):
            raise ValueError("split stratify goes with by: random and fractions only")
        given = self.model_fields_set & {"valid", "test"}
        if given == {"valid", "test"}:
            if is_fraction(self.valid) != is_fraction(self.test):
                raise ValueError(
                    "split valid and test must both be fractions or both be cut values, "
                    f"but got valid={self.valid!r}, test={self.test!r}"
                )
            if is_fraction(self.valid) and float(self.valid) + float(self.test) >= 1:
                raise ValueError(
                    f"split must leave rows for train: valid + test < 1, but got {self.valid} + {self.test}"
                )
            if not is_fraction(self.valid) and not _before(self.valid, self.test):
                raise ValueError(f"split cuts must ascend: valid < test, but got {self.valid!r}, {self.test!r}")
        return self


def is_fraction(cut: SplitPoint) -> bool:
    """Whether a cut is a fraction of the rows, and not a value of the time column."""
    return isinstance(cut, float) and 0 < cut < 1


def _before(first: SplitPoint, second: SplitPoint) -> bool:
    if isinstance(first, str) or isinstance(second, str):
        return isinstance(first, str) and isinstance(second, str) and first < second
    return first < second


class Crosses(CrossSpec):
    """Pairs of columns that become crossed columns of the table."""

    pairs: tuple[tuple[str, str], ...] = Field(min_length=1)


class DataSpec(StrictModel):
    """The `data:` section: source, format, label, columns, split and vocabulary.

    `path` is a file, a directory, a pattern such as part-*.csv, a list of these, or `package:NAME/path/in/it`, the
    resource of an installed package. `task` is what is predicted: `clicks`, labels of two classes, `ratings`, labels
    that are numbers, such as stars or seconds, `ranking`, clicks in their order within a `group`, or `multiclass`,
    labels of 3 to 255 classes, such as which action followed. `classes` names these in the order of the columns of
    predictions; by default they are those of the table, sorted. `quote` is what stands around values of CSV: with
    "auto" a double quote, unless it would swallow lines. A label of clicks is 0/1 (or false/true, no/yes), or
    `positive` lists the values that count as 1, or `above` is the threshold that a 1 exceeds. `time_format` says how a
    time column of text is written, such as "%m/%d/%Y". `multi` names columns that hold several values a row, with the
    separator between them or with how they are read; columns of lists need no entry. `shared` names columns whose
    values are another column's, such as {last_item: item}: they have its ids and read its table. `hash` says into how
    many ids the rare and unknown values of a column are hashed, such as {user_id: 10000}; without it they share one.
    `max_values` says how many values of a column have ids, the most frequent ones, for all columns, or by name, such as
    {user_id: 100000}. `weight` names a column of weights: a row of weight 2 counts as two equal rows. `group` names a
    column, such as user_id, within whose values models are compared as well (gauc, ndcg_10 and hit_10); it is a field
    all the same, unless it stands under `drop`. `target_statistics` makes columns of the click rates of others' values.
    `bins` is into how many ranges a numeric column is cut, about; for all, or by name, such as {price: 128}.
    `numeric_embedding` says what a number's embedding is: that of its bin ("bins"), between those of two neighbouring
    bins ("piecewise"), between those of the column's two ends ("linear"), or between those that a function of the
    number gives ("periodic", "soft_bins"); for all numeric columns, or by name, such as {price: piecewise}.
    `auxiliary_labels` names columns of clicks that models predict beside the label, such as [is_like, long_view], whose
    values may be missing; they are no fields.
    """

    path: str | tuple[str, ...] | None = None
    planted: PlantedSpec | None = None
    format: Format = "auto"
    files: dict[Split, str | tuple[str, ...]] | None = None
    header: bool = True
    columns: tuple[str, ...] | None = None
    separator: str | None = None
    quote: Literal["auto", '"'] | None = "auto"
    encoding: str = "utf-8"
    strip: bool = False
    null_values: tuple[str, ...] = ()
    label: str = "label"
    auxiliary_labels: tuple[str, ...] = ()
    task: TaskName = "clicks"
    positive: tuple[bool | int | float | str, ...] | None = None
    above: float | None = None
    classes: tuple[str, ...] | None = None
    missing_label: Literal["error", "drop"] = "error"
    time: str | None = None
    time_format: str | None = None
    weight: str | None = None
    group: str | None = None
    drop: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    multi: dict[str, MultiSpec] = Field(default={})
    shared: dict[str, str] = Field(default={})
    hash: dict[str, Annotated[int, Field(ge=2)]] = Field(default={})
    split: SplitSpec = SplitSpec()
    min_count: int = Field(default=2, ge=1)
    max_values: MaxValues | dict[str, MaxValues] | None = None
    bins: Bins | dict[str, Bins] = BINS
    numeric_embedding: NumericEmbedding | dict[str, NumericEmbedding] = "bins"
    crosses: Crosses | None = None
    target_statistics: TargetStatistics | None = None

    @field_validator("multi", mode="before")
    @classmethod
    def _separators(cls, multi: object) -> object:
        if not isinstance(multi, dict):
            return multi
        return {name: {"separator": value} if isinstance(value, str) else value or {} for name, value in multi.items()}

    @field_validator("classes", mode="before")
    @classmethod
    def _classes_as_text(cls, names: object) -> object:
        if not isinstance(names, (list, tuple)):
            return names
        texts = pl.DataFrame({"name": [str(one) for one in names]}, schema={"name": pl.String})
        return tuple(texts.select(key(pl.col("name"), pl.String())).to_series())

    @property
    def readers(self) -> dict[str, str]:
        """The columns that read another one's table, and which."""
        return dict(self.shared) | {name: how.shared for name, how in self.multi.items() if how.shared}

    def most_of(self, name: str) -> int | None:
        """How many values of a categorical column may have ids, or None for any number."""
        return self.max_values.get(name) if isinstance(self.max_values, dict) else self.max_values

    def bins_of(self, name: str) -> int:
        """Into how many ranges a numeric column is cut, about."""
        return self.bins if isinstance(self.bins, int) else self.bins.get(name, BINS)

    def interpolation(self, name: str) -> Interpolation | None:
        """How the embedding of a numeric column's numbers is interpolated, or None if it is that of their bins."""
        how = self.numeric_embedding if isinstance(self.numeric_embedding, str) else self.numeric_embedding.get(name)
        return None if how is None or how == "bins" else how

    @property
    def has_knots(self) -> bool:
        """Whether numbers lie between knots whose rows may be given by functions."""
        how = self.numeric_embedding
        return any(kind not in ("bins", "linear") for kind in ([how] if isinstance(how, str) else how.values()))

    @property
    def functions(self) -> tuple[Function, ...]:
        """The kinds of `numeric_embedding` that are functions of the number."""
        how = self.numeric_embedding
        kinds = {how} if isinstance(how, str) else set(how.values())
        return tuple(kind for kind in FUNCTIONS if kind in kinds)

    @property
    def predicts(self) -> Task:
        """What is predicted; the labels' scale is not known here, nor are classes that `classes` does not name."""
        if self.classes is not None:
            return Multiclass(LabelClasses(names=self.classes))
        return task_named(self.task)

    def schema_of(self, fields: tuple[Column, ...]) -> FeatureSchema:
        """The schema of a table with these columns."""
        return FeatureSchema(
            fields=fields,
            label=self.label,
            time=self.time,
            weight=self.weight,
            group=self.group,
            ranking=self.task == "ranking",
            auxiliary_labels=self.auxiliary_labels,
        )

    def name(self, data: str | None = None) -> str:
        """A short name of the data, where `data` overrides `path`."""
        where = data or self.path or "planted"
        return Path(where if isinstance(where, str) else where[0]).name

    @model_validator(mode="after")
    def _consistent(self) -> DataSpec:
        if self.planted is not None and self.path is not None:
            raise ValueError("data must have path or planted, but got both")
        if self.task == "ratings":
            self._check_ratings()
        elif self.planted is not None and self.planted.label_noise != 1:
            raise ValueError("planted.label_noise is the noise of ratings: set task: ratings, or leave it out")
        if self.task == "multiclass":
            self._check_multiclass()
        elif self.classes is not None:
            raise ValueError(f"classes are of task: multiclass, but task is {self.task}: set it, or leave classes out")
        if self.positive is not None and self.above is not None:
            raise ValueError("data must have positive or above, but got both")
        if self.positive is not None and not self.positive:
            raise ValueError("positive must list at least one label value, but got []")
        if not self.header and self.columns is None and self.format in ("auto", "csv"):
            raise ValueError("a table without a header needs columns: the list of its column names")
        if self.header and self.columns is not None:
            raise ValueError("columns names the columns of a table without a header: set header: false with it")
        if self.separator is not None and len(self.separator.encode()) != 1:
            raise ValueError(f"separator must be one byte, but got {self.separator!r}")
        named = [*self.categorical, *self.numeric, *self.multi]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise ValueError(
                f"a column must be categorical, numeric or multi, but these are several: {', '.join(twice)}"
            )
        dropped = sorted(set(self.drop) & {self.label, self.time, self.weight, *named})
        if dropped:
            raise ValueError(f"drop must not name columns that are used elsewhere, but got {', '.join(dropped)}")
        if self.label in {self.time, *named, *self.readers}:
            raise ValueError(f"the label must not be a field or the time column, but {self.label!r} is")
        fields = {*named, *self.readers, *self.readers.values(), *self.hash}
        if self.weight in {self.label, self.time, self.group, self.split.column, *fields} - {None}:
            raise ValueError(
                f"the weight must not be a field, the label, the time or a group, but {self.weight!r} is: "
                "name a column of its own"
            )
        if self.task == "ranking" and self.group is None:
            raise ValueError(
                "task: ranking is of the order within groups, and there are none: set group to a column such as "
                "user_id, or task: clicks"
            )
        if self.group == self.label:
            raise ValueError(f"the group must not be the label, but {self.group!r} is: name another column")
        self._check_auxiliary({self.label, self.time, self.weight, self.group, self.split.column, *self.drop, *fields})
        return self

    def _check_auxiliary(self, used: set[str | None]) -> None:
        """ValueError for auxiliary labels that are `used` as something else, or named twice."""
        names = self.auxiliary_labels
        wrong = sorted(set(names) & used)
        if wrong:
            raise ValueError(
                f"auxiliary_labels must be columns that are nothing else, but {', '.join(wrong)} is used elsewhere: "
                "name each column once"
            )
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"auxiliary_labels must name each column once, but got {', '.join(twice)} twice")
        if names and self.planted is not None:
            raise ValueError(f"planted data have one label: leave auxiliary_labels out, but got {list(names)}")

    def _check_ratings(self) -> None:
        """ValueError for what goes with labels of two classes only."""
        for name in ("positive", "above"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name} makes clicks of labels, which task: ratings takes as numbers: leave one out")
        if self.group is not None:
            raise ValueError(
                f"group is for a metric of clicks, and task: ratings has none, but got {self.group!r}: leave group out"
            )
        if self.split.stratify:
            raise ValueError("split.stratify divides two classes, and task: ratings has none: leave it out")
        if self.target_statistics is not None:
            raise ValueError("target_statistics are click rates, and task: ratings has no clicks: leave them out")

    def _check_multiclass(self) -> None:
        """ValueError for what goes with labels of two classes only, and for classes that break a rule."""
        for name in ("positive", "above"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} makes clicks of labels, of which task: multiclass takes each class as it is: leave one out"
                )
        if self.group is not None:
            raise ValueError(
                f"group is for a metric of clicks, and task: multiclass has none, but got {self.group!r}: leave group "
                "out"
            )
        if self.target_statistics is not None:
            raise ValueError("target_statistics are click rates, and task: multiclass has no clicks: leave them out")
        if self.auxiliary_labels:
            raise ValueError(
                f"auxiliary_labels are of clicks, which go with task: clicks and ratings, but got "
                f"{list(self.auxiliary_labels)}: leave them out"
            )
        if self.planted is not None:
            raise ValueError("planted data have clicks or ratings: set task to one of them, or path to a table")
        names = self.classes
        if names is not None and not (LEAST <= len(set(names)) == len(names) <= MOST):
            raise ValueError(f"classes must list {LEAST} to {MOST} different names, but got {list(names)}")
