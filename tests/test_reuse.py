"""An architecture that was chosen before is trained on another table."""

import json

import numpy as np
import polars as pl
import pytest
import torch

import autoembed as ae
from autoembed.architecture import Architecture
from autoembed.data.schema import FeatureSchema, Field
from autoembed.reuse import carried, train_architecture
from tests.study.conftest import call

RECIPE = {"epochs": 4, "lr": 1e-2, "batch_size": 256}


def clicks(seed, first, rows=4000):
    """A day's log: of 80 items those from `first` on, some more often than others."""
    rng = np.random.default_rng(seed)
    site = rng.integers(0, 8, rows)
    item = np.minimum(first + rng.geometric(0.06, rows), 79)
    rate = 1 / (1 + np.exp(-2 * np.sin(site) - 2 * np.cos(item)))
    columns = {"site": [f"s{one}" for one in site], "item": item, "noise": rng.integers(0, 300, rows)}
    return pl.DataFrame(columns | {"label": (rng.random(rows) < rate).astype(int)})


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """The folder of two days' logs and of a bundle of the first."""
    folder = tmp_path_factory.mktemp("days")
    for day in (0, 1):
        clicks(day, 20 * day).write_parquet(folder / f"{day}.parquet")
    model = ae.AutoEmbedClassifier(
        embedding={"dim": 4, "blocks": 3},
        backbone={"name": "deepfm", "hidden": [8]},
        train=RECIPE,
        stages=[{"method": "sensitivity", "warm_epochs": 3, "rounds": 1}],
        budget={"embedding_bytes": 600},
        random_state=0,
    )
    model.fit(clicks(0, 0)).export(folder / "bundle")
    return folder


def test_blocks_keep_their_ranks():
    blocks = [
        {"stop": 4, "level": 0, "dims": [0, 1, 2], "bits": 8},
        {"stop": 10, "level": 1, "dims": [0], "bits": 4},
        {"stop": 30, "level": 2, "dims": [], "bits": 0},
    ]
    node = {"dim": 3, "fields": [{"name": "a", "cardinality": 30, "blocks": blocks}], "backbone": {"name": "fm"}}
    old = Architecture.model_validate(node)
    for cardinality, stops in ((50, [4, 10, 50]), (30, [4, 10, 30]), (8, [4, 8]), (3, [3])):
        schema = FeatureSchema(
            fields=(Field(name="b", cardinality=9), Field(name="a", cardinality=cardinality)), label="y"
        )
        (field,) = carried(old, schema).fields
        assert [block.stop for block in field.blocks] == stops
        kept = [(block.dims, block.bits) for block in old.fields[0].blocks]
        assert [(block.dims, block.bits) for block in field.blocks] == kept[: len(stops)]
    with pytest.raises(ae.DataError, match="lacks columns of the architecture: a"):
        carried(old, FeatureSchema(fields=(Field(name="b", cardinality=9),), label="y"))


@pytest.mark.parametrize("exported", ["bundle", "bundle/architecture.json"])
def test_the_next_day_is_learned_without_a_search(days, tmp_path, exported):
    old = ae.load_bundle(days / "bundle")
    settings = {"split": {"by": "random", "valid": 0.2, "test": 0.2}}
    given = {"train": RECIPE} if exported.endswith("json") else {}
    found = train_architecture(days / exported, days / "1.parquet", tmp_path / "new", settings=settings, **given)
    new = found.bundle
    assert new.architecture.names == old.architecture.names
    widths = [[(b.dims, b.bits) for field in one.architecture.fields for b in field.blocks[:1]] for one in (old, new)]
    assert widths[0] == widths[1]
    assert new.manifest.metrics["test"]["auc"] == found.test.auc > 0.75
    rows = clicks(2, 20)
    coverage = {one.path.name: dict(one.coverage(rows).select("field", "unknown").iter_rows()) for one in (old, new)}
    assert coverage["bundle"]["item"] > 10 * coverage["new"]["item"]
    assert new.predict(rows).std() > 0.1
    again = train_architecture(days / exported, days / "1.parquet", tmp_path / "again", settings=settings, **given)
    assert np.array_equal(again.bundle.predict(rows), new.predict(rows))
    third = train_architecture(tmp_path / "new", days / "0.parquet", tmp_path / "third", settings=settings)
    assert third.bundle.manifest.provenance["train"] == new.manifest.provenance["train"]


def test_a_value_keeps_its_embedding(days, tmp_path):
    """On a log of the same values nothing is lost before training; on the next day's one epoch is worth more."""
    old = ae.load_bundle(days / "bundle")
    settings = {"split": {"by": "random", "valid": 0.2, "test": 0.2}}
    same = train_architecture(
        days / "bundle", days / "0.parquet", tmp_path / "same", settings=settings, warm=True,
        train={"epochs": 1, "lr": 1e-9, "quantise": "round"},
    )  # fmt: skip
    rows = clicks(0, 0)
    # The splits differ, and so do the values that are too rare for an id; steps of few bits are found again.
    assert np.corrcoef(same.bundle.predict(rows), old.predict(rows))[0, 1] > 0.97
    tests = {}
    for warm in (False, True):
        found = train_architecture(
            days / "bundle",
            days / "1.parquet",
            tmp_path / str(warm),
            settings=settings,
            warm=warm,
            train={"epochs": 1, "lr": 1e-3},
        )
        tests[warm] = found.test.auc
    assert tests[True] > tests[False] + 0.05, tests


def test_the_model_alone_serves_a_loop_of_ones_own(days):
    bundle = ae.load_bundle(days / "bundle")
    model = ae.build_model(bundle.schema, bundle.architecture)
    ids = torch.from_numpy(bundle.vocabulary.encode(clicks(3, 0)))
    model(ids).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_the_command_line(days, tmp_path, monkeypatch, capsys):
    def cli(*words):
        return call(monkeypatch, capsys, *words)

    options = ["--set", "split={by: random, valid: 0.2, test: 0.2}"]
    words = ["retrain", days / "bundle", "--data", days / "1.parquet", "--out", tmp_path / "new"]
    status, out, err = cli(*words, *options, "--train", "epochs=2")
    assert status == 0, err
    assert "read 1.parquet" in out
    assert "test AUC 0." in out
    assert json.loads((tmp_path / "new" / "manifest.json").read_text())["provenance"]["train"]["epochs"] == 2
    for more, line in (
        (["--seeds", "3"], "--seeds does not go with a bundle or an architecture"),
        (["--train", "epochs=0"], "train.epochs: Input should be greater than or equal to 1"),
        (["--train", "epoch=3"], "train.epoch: unknown key: must be one of"),
        (["--train", "epochs"], "--train must be KEY=VALUE"),
        (["--label", "click"], "there is no label column 'click'"),
    ):
        status, _, err = cli(*words, *options, *more)
        assert (status, line in err) == (2, True), err
    status, _, err = cli("retrain", days / "bundle")
    assert (status, "give --data TABLE and --out BUNDLE" in err) == (2, True)
    clicks(1, 20).drop("item").write_parquet(tmp_path / "less.parquet")
    words[3] = tmp_path / "less.parquet"
    assert "the table lacks columns of the architecture: item" in cli(*words)[2]
    assert "is neither a bundle nor an architecture" in cli("retrain", days, *words[2:])[2]


def test_what_belongs_to_its_own_data_is_refused(planted_pairs):
    full = Architecture.full(
        planted_pairs.schema, planted_pairs.counts, dim=4, blocks=2, backbone={"name": "deepfm", "hidden": [8]}
    )
    with_pairs = full.with_choices(["memorize"] + ["naive"] * (len(full.pairs) - 1), 2)
    with pytest.raises(ae.SpaceError, match=r"has pairs of columns that have an input, .*: search again on these data"):
        carried(with_pairs, planted_pairs.schema)
