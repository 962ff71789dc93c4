"""What predict tells: unknown and missing values beside train's, labels that are none, rows of train."""

import re

import numpy as np
import pandas as pd
import polars as pl
import pytest

from autoembed.bundle import load_bundle, write_bundle
from autoembed.data.dataset import build_dataset
from autoembed.data.spec import DataSpec
from autoembed.errors import DataError
from autoembed.scoring import score_table
from autoembed.training import TrainConfig
from autoembed.trial import EmbeddingConfig, TrialConfig, run_trial


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with train.parquet, whose rows it also holds as CSV, and a bundle trained on it."""
    folder = tmp_path_factory.mktemp("scoring")
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "click": rng.integers(0, 2, 600),
            "site": rng.choice(["a", "b", "c"], 600),
            "user": [None if row % 20 == 0 else row % 50 for row in range(600)],
        }
    )
    frame.write_parquet(folder / "train.parquet")
    frame.write_csv(folder / "same.csv")
    spec = DataSpec(label="click")
    dataset = build_dataset(spec, folder / "train.parquet", folder / "cache")
    config = TrialConfig(
        arm="u",
        stages=({"method": "uniform"},),
        embedding=EmbeddingConfig(dim=2, blocks=2),
        device="cpu",
        backbone={"name": "dnn", "hidden": [4]},
        train=TrainConfig(epochs=1, lr=1e-2, batch_size=64),
    )
    result, model = run_trial(config, dataset, lambda values: None)
    write_bundle(
        folder / "bundle",
        schema=dataset.schema,
        vocabulary=dataset.vocabulary,
        architecture=result.architecture,
        model=model,
        data=spec.model_dump(mode="json", exclude={"path", "planted", "split", "files", "crosses"}),
        metrics={},
        provenance={"study": "x", "sources": list(dataset.sources)},
    )
    return folder, frame, load_bundle(folder / "bundle")


def test_coverage_tells_unknown_and_missing_beside_train(made):
    _, frame, bundle = made
    strange = frame.with_columns(
        site=pl.when(pl.int_range(pl.len()) % 2 == 0).then(pl.lit("new")).otherwise(pl.col("site")),
        user=pl.when(pl.int_range(pl.len()) % 4 != 0).then(pl.col("user")),
    )
    site, user = bundle.coverage(strange).sort("field").iter_rows(named=True)
    assert (site["unknown"], site["missing"], site["train_unknown"]) == (0.5, 0.0, 0.0)
    assert (user["unknown"], user["missing"]) == (0.0, 0.25)
    assert user["train_missing"] == pytest.approx(0.05, abs=0.02)


def test_unknown_values_warn_and_can_be_refused(made, tmp_path):
    _, frame, bundle = made
    frame.with_columns(site=pl.lit("new")).write_parquet(tmp_path / "t.parquet")
    scored = score_table(bundle, str(tmp_path / "t.parquet"))
    assert scored.warnings == ("'site': 100.0% of the values are unknown to the model (of train's 0.0%)",)
    with pytest.raises(DataError, match=r"more than max_unknown=0.2 of the values are unknown .* 'site' 100.0%"):
        score_table(bundle, str(tmp_path / "t.parquet"), max_unknown=0.2)


@pytest.mark.parametrize("label", [["-1"] * 5, ["?"] * 5, [""] * 5, ["1"], ["0", "1"]])
def test_a_placeholder_label_is_no_error(made, tmp_path, label):
    _, frame, bundle = made
    rows = frame.head(len(label)).with_columns(click=pl.Series(label))
    rows.write_csv(tmp_path / "t.csv")
    scored = score_table(bundle, str(tmp_path / "t.csv"))
    assert len(scored.table) == len(label)
    assert ("AUC" in scored.quality) == (label == ["0", "1"] or label[0] in ("-1", "?", ""))


def test_rows_of_train_are_told(made):
    folder, frame, bundle = made
    told = "the model was trained on rows of this very table"
    assert told in score_table(bundle, str(folder / "train.parquet")).quality
    assert told not in score_table(bundle, str(folder / "same.csv")).quality
    scored = [score_table(bundle, str(folder / name)).table for name in ("train.parquet", "same.csv")]
    assert scored[0].equals(scored[1])
    assert np.allclose(bundle.predict(frame), scored[0]["prediction"])


def test_frames_of_pandas_are_scored(made):
    _, frame, bundle = made
    expected = bundle.predict(frame)
    plain = frame.to_pandas()
    assert np.allclose(bundle.predict(plain), expected)
    mixed = plain.copy()
    mixed["user"] = [None if pd.isna(value) else (str(int(value)) if place % 2 else int(value))
                     for place, value in enumerate(plain["user"])]  # fmt: skip
    assert mixed["user"].dtype == object
    assert np.allclose(bundle.predict(mixed), expected)
    with pytest.raises(DataError, match=r"rows must be a frame of Polars, pandas or Arrow, .* but got list"):
        bundle.predict([1, 2])


def test_no_kept_column_is_overwritten(made, tmp_path):
    _, frame, bundle = made
    frame.with_columns(prediction=pl.lit("mine")).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="keep='prediction' would stand beside the new predictions"):
        score_table(bundle, str(tmp_path / "t.parquet"), keep=["prediction"])


def test_kept_columns_may_have_commas_in_their_names(made, tmp_path):
    _, frame, bundle = made
    frame.with_columns(pl.lit(1).alias("a,b"), pl.lit(2).alias("a")).write_parquet(tmp_path / "t.parquet")
    one = score_table(bundle, str(tmp_path / "t.parquet"), keep=["a,b", "user,a", "user"]).table
    assert one.columns == ["a,b", "user", "a", "prediction"]
    with pytest.raises(DataError, match="unknown column 'b' in keep"):
        score_table(bundle, str(tmp_path / "t.parquet"), keep=["a,user,b"])


def test_settings_go_before_those_of_the_bundle(made, tmp_path):
    _, frame, bundle = made
    frame.write_csv(tmp_path / "t.csv", separator=";")
    with pytest.raises(DataError):
        score_table(bundle, str(tmp_path / "t.csv"))
    scored = score_table(bundle, str(tmp_path / "t.csv"), settings={"separator": ";"})
    assert np.allclose(scored.table["prediction"], bundle.predict(frame))


def test_quality_within_groups(made, tmp_path):
    folder, frame, bundle = made
    path = str(folder / "same.csv")
    plain, grouped = (score_table(bundle, path, group=group).quality for group in (None, "user"))
    assert grouped.startswith(plain)
    within = r"; AUC within user 0\.\d{4} \(\d+ groups with both labels\), NDCG@10 0\.\d{4} and HR@10 [01]\.\d{4} "
    assert re.search(within + r"\(\d+ with a click\)$", grouped)
    with pytest.raises(DataError, match="unknown column 'nobody' in group"):
        score_table(bundle, path, group="nobody")
    alone = frame.with_columns(user=pl.int_range(len(frame)).cast(pl.String))
    alone.write_csv(tmp_path / "alone.csv")
    with pytest.raises(DataError, match="group"):
        score_table(bundle, str(tmp_path / "alone.csv"), group="user")
