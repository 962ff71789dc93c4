"""A bundle is trained on with later logs: daily, its values come and go."""

import copy
from dataclasses import replace
from inspect import signature

import numpy as np
import polars as pl
import pytest
import torch

import autoembed as ae
import autoembed.cli
from autoembed.data.dataset import build_dataset
from autoembed.data.schema import FeatureSchema, Field
from autoembed.data.vocabulary import Vocabulary
from autoembed.following import Follower, JudgedEpoch
from autoembed.metrics import evaluate
from autoembed.plans import Block, FieldPlan
from autoembed.refreshing import EVICT, MEMORY, _other, refresh
from autoembed.reuse import _kept, averaged, carried, rows_seen, train_architecture, with_weights_of
from tests.serving.conftest import make, table

RECIPE = {"epochs": 4, "lr": 5e-3, "batch_size": 512}
SPLIT = {"split": {"by": "random", "valid": 0.1, "test": 0.1}}
BACKBONE = {"name": "deepfm", "hidden": [8], "batch_norm": False}
DRIFT = 12  # items that are new each day


def logs(day, rows, seed=0):
    """A day's log: items of a window that moves on by DRIFT, the newest most often, and users that stay."""
    truth = np.random.default_rng(seed)
    effects, users = truth.normal(size=2000), truth.normal(size=300)
    rng = np.random.default_rng(1000 * seed + day)
    item = DRIFT * day + 150 - np.minimum(rng.geometric(0.02, rows), 150)
    user, noise = rng.integers(0, 300, rows), rng.integers(0, 50, rows)
    rate = 1 / (1 + np.exp(-(1.5 * effects[item] + users[user])))
    columns = {"item": [f"i{one}" for one in item], "user": user, "noise": noise}
    return pl.DataFrame(columns | {"label": (rng.random(rows) < rate).astype(int)})


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder of the first days' logs and of a bundle of the first."""
    folder = tmp_path_factory.mktemp("refresh")
    for day in range(3):
        logs(day, 6000).write_parquet(folder / f"{day}.parquet")
    model = ae.AutoEmbedClassifier(
        embedding={"dim": 4, "blocks": 2},
        backbone=BACKBONE,
        train=RECIPE,
        stages=[{"method": "frequency"}],
        budget={"width": 3},
        random_state=0,
    )
    model.fit(logs(0, 6000)).export(folder / "bundle")
    return folder


def column(values):
    frame = pl.DataFrame({"a": values, "y": [0] * len(values)}).lazy()
    return Vocabulary.fit(frame, FeatureSchema(fields=(Field(name="a"),), label="y"), 1, 8)


def test_values_come_and_go_by_their_rows():
    old = column(["a"] * 8 + ["b"] * 4 + ["c"] + [None] * 3)
    new = column(["d"] * 9 + ["e"] + ["b"] * 6 + ["a"])
    after = old.grown(new, least=2, evict=1.0, memory=0.5)
    grown = after.table()
    assert grown["value"].to_list() == [None, "d", "b", "a", None]
    assert grown["count"].to_list() == [2, 9, 8, 5, 2]  # c with half a row is gone, and e with one is not admitted
    assert after.recent("a").tolist() == [1.5, 9, 8, 5, 1.5]
    later = after.grown(new, least=1, evict=1.0, memory=0.5)
    assert later.recent("a").tolist() == [1.5, 13.5, 10, 3.5, 1.0]
    assert old.grown(new, least=1, evict=0.5, memory=0.5).cardinality("a") == 7
    assert old.grown(new, least=1, evict=1.0, memory=0.0).table()["value"].to_list() == [None, "d", "b", "a", "e"]
    again = old.grown(old, least=1, evict=1.0, memory=1.0)
    assert again.table().drop("count").equals(old.table().drop("count"))
    assert old.pruned(4).table()["value"].to_list() == [None, "a", "b"]
    assert old.pruned(4).counts("a").tolist() == [4, 8, 4]


def test_a_rare_value_is_known_for_some_days_without_a_row(tmp_path):
    known, log, days = column(["a"] * 9 + ["b"]), column(["a"] * 9), 0
    while "b" in known.table()["value"].to_list():
        known.write(tmp_path / "vocabulary.parquet")
        known, days = Vocabulary.read(tmp_path / "vocabulary.parquet"), days + 1
        assert known.recent("a").tolist()[-1] == 0.5 ** (days - 1)
        known = known.grown(log, least=1, evict=EVICT, memory=MEMORY)
    assert days == 5


@pytest.mark.parametrize("rule", ["keep", "grow", "rebuild"])
def test_each_rule_for_values_learns_the_next_day(first, tmp_path, rule):
    done = refresh(first / "bundle", first / "2.parquet", tmp_path / "new", vocabulary=rule, settings=SPLIT)
    old, new = ae.load_bundle(first / "bundle"), ae.load_bundle(tmp_path / "new")
    assert done.kept
    assert done.after.auc >= done.before.auc + (0.0 if rule == "keep" else 0.005)
    assert done.no_worse
    known = {"keep": old.vocabulary.cardinality("item")}.get(rule)
    assert known in (None, new.vocabulary.cardinality("item"))
    changed = dict(zip(*done.values.select("field", "new"), strict=True))
    assert (changed["item"] > 10) == (rule != "keep")
    assert [line.partition(":")[0] for line in done.drift] == ["'item'"], done.coverage
    provenance = new.manifest.provenance
    assert (provenance["refreshes"], provenance["vocabulary"]) == (1, rule)
    assert provenance["train"]["epochs"] == RECIPE["epochs"]
    rows = logs(2, 500)
    assert np.isfinite(new.predict(rows)).all()
    again = refresh(first / "bundle", first / "2.parquet", tmp_path / "again", vocabulary=rule, settings=SPLIT)
    assert np.array_equal(again.bundle.predict(rows), new.predict(rows))


@pytest.mark.parametrize("rule", ["keep", "grow", "rebuild"])
def test_a_value_keeps_its_embedding(first, tmp_path, rule):
    """With next to no learning rate, rows whose values all have an id before and after score as they did."""
    done = refresh(
        first / "bundle", first / "0.parquet", tmp_path / "new", vocabulary=rule, settings=SPLIT, train={"lr": 1e-12}
    )
    rows = logs(0, 3000)
    shared = rows
    for name in ("item", "user", "noise"):
        known = [
            set(b.vocabulary.keep([name]).table()["value"].drop_nulls())
            for b in (ae.load_bundle(first / "bundle"), done.bundle)
        ]
        shared = shared.filter(pl.col(name).cast(pl.String).is_in(known[0] & known[1]))
    assert len(shared) > 2000
    assert np.allclose(done.bundle.predict(shared), ae.load_bundle(first / "bundle").predict(shared), atol=1e-5)


def test_weights_are_averaged_by_the_rows_that_they_have_seen(first, tmp_path):
    """Of weights that all moved by 1, a value's embedding moves by the log's share of its rows, a new one's by all."""
    bundle = ae.load_bundle(first / "bundle")
    spec = bundle.spec.model_copy(update={"path": str(first / "1.parquet")})
    log = build_dataset(spec, None, tmp_path, vocabulary=_other(bundle, "grow", spec, 1.0, 0.5))
    start = with_weights_of(bundle, carried(bundle.architecture, log.schema), log)
    trained, moved = copy.deepcopy(start), copy.deepcopy(start)
    with torch.no_grad():
        for weight in trained.parameters():
            weight += 1
    moved.load_state_dict(dict(averaged(bundle, start, log, memory=0.5)(trained)))
    place = [field.name for field in start.architecture.fields].index("item")
    values = log.vocabulary.keep(["item"]).table()["value"].to_list()
    old = bundle.vocabulary.keep(["item"]).table()["value"].to_list()
    before = dict(zip(old, bundle.vocabulary.counts("item").tolist(), strict=True))
    seen = np.bincount(log.ids("train")[:, place], minlength=len(values))
    ids = torch.zeros((len(values), len(start.architecture.fields)), dtype=torch.int32)
    ids[:, place] = torch.arange(len(values))
    change = (moved.embedding(ids) - start.embedding(ids))[:, place].abs().amax(1)
    had = [0.5 * before.get(value, 0) for value in values]
    wanted = [new / (new + old) if new + old else 1 for new, old in zip(seen.tolist(), had, strict=True)]
    np.testing.assert_allclose(change.detach(), wanted, atol=1e-5)
    assert {value for value in values if value not in before}
    assert min(wanted) == 0  # a value that the log does not have stays where it was
    assert any(0.4 < one < 0.6 for one in wanted)


def test_a_value_in_a_wider_block_takes_all_of_the_dims_that_it_had_not():
    stops = ((2, (0, 2), 32), (5, (1,), 32), (6, (), 0))
    blocks = tuple(Block(stop=stop, level=0, dims=dims, bits=bits) for stop, dims, bits in stops)
    field = FieldPlan(name="item", cardinality=6, blocks=blocks)
    kept = _kept(field, np.array([5, 1, 2, 4]), 3).astype(int)
    assert kept.tolist() == [[0, 0, 0, 0], [1, 0, 1, 1], [0, 1, 0, 1], [0, 1, 0, 1]]


def test_rows_are_counted_by_a_column_with_one_value_a_row(tmp_path):
    make(tmp_path / "b")
    bundle = ae.load_bundle(tmp_path / "b")
    assert rows_seen(bundle) == table().height < bundle.vocabulary.counts("tags").sum()


def test_the_last_epoch_stays_unless_an_earlier_one_is_surely_better():
    rng = np.random.default_rng(0)
    losses, noise = rng.exponential(0.5, 400), rng.normal(0, 0.3, 400)
    for gap, wanted in ((0.0, 2), (-0.05, 2), (0.005, 2), (0.2, 1)):
        follower = Follower.__new__(Follower)
        first, last = (JudgedEpoch(epoch=n, valid=None, losses=losses, state={}) for n in (1, 2))
        follower.best = first
        follower.last = replace(last, losses=losses + gap + noise - noise.mean())
        assert follower.kept()[0] == wanted, gap


def test_a_new_value_needs_fewer_rows_of_a_shorter_log(first, tmp_path):
    table = pl.read_parquet(first / "1.parquet").with_columns(item=pl.lit("i1"))
    for rows, given, wanted in ((6000, {}, False), (1500, {}, True), (1500, {"min_count": 2}, False)):
        name = f"{rows}-{len(given)}"
        log = table.head(rows).with_columns(item=pl.when(pl.int_range(rows) == 0).then(pl.lit("new")).otherwise("item"))
        log.with_row_index("at").write_parquet(tmp_path / f"{name}.parquet")
        later = SPLIT | {"split": {"by": "time", "valid": rows - 400, "test": rows - 200}, "time": "at"}
        done = refresh(first / "bundle", tmp_path / f"{name}.parquet", tmp_path / name, settings=later, **given)
        assert any(note.startswith("a new value needs") for note in done.notes) == (not given)
        assert done.bundle.spec.min_count == 2  # what the next refresh goes by
        assert ("new" in done.bundle.vocabulary.keep(["item"]).table()["value"]) == wanted


def test_a_bundle_is_replaced_by_no_worse_one_only(first, tmp_path):
    old = refresh(first / "bundle", first / "1.parquet", tmp_path / "b", settings=SPLIT).bundle
    noise = logs(1, 6000).with_columns(label=pl.Series(np.random.default_rng(1).integers(0, 2, 6000)))
    pl.concat([noise.head(4800), logs(1, 6000).tail(1200)]).write_parquet(tmp_path / "noise.parquet")
    split = {"split": {"by": "time", "valid": 4200, "test": 4800}, "time": "at"}
    pl.read_parquet(tmp_path / "noise.parquet").with_row_index("at").write_parquet(tmp_path / "noise.parquet")
    worse = refresh(
        tmp_path / "b",
        tmp_path / "noise.parquet",
        settings=split,
        train={"lr": 0.05, "epochs": 8},
        vocabulary="rebuild",
    )
    assert not worse.no_worse
    assert not worse.kept
    assert ae.load_bundle(tmp_path / "b").manifest == old.manifest
    better = refresh(tmp_path / "b", first / "2.parquet", settings=SPLIT)
    assert better.kept
    assert ae.load_bundle(tmp_path / "b").manifest.provenance["refreshes"] == 2


def test_what_cannot_be_is_refused(first, tmp_path):
    logs(1, 500).drop("item", "noise").write_parquet(tmp_path / "less.parquet")
    with pytest.raises(ae.DataError, match=r"lacks columns that the model takes: item, noise: bring them back"):
        refresh(first / "bundle", tmp_path / "less.parquet", tmp_path / "new")
    for options, line in (
        ({"vocabulary": "new"}, "vocabulary must be one of keep, grow, rebuild"),
        ({"memory": 2.0}, "memory must lie from 0 to 1"),
        ({"evict": -1.0}, "evict must be at least 0"),
        ({"epochs": 0}, "train.epochs"),
    ):
        with pytest.raises(ae.SpaceError, match=line):
            refresh(first / "bundle", first / "1.parquet", tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_the_command_has_the_functions_defaults():
    ours, of_command = signature(refresh).parameters, signature(autoembed.cli.refresh.refresh).parameters
    for name in ("epochs", "vocabulary", "evict", "memory", "min_count"):
        assert of_command[name].default == ours[name].default, name


def daily(tmp_path, days, rows):
    """AUCs on each following day of the first day's bundle, of one refreshed daily, and of training anew on all."""
    folder, found = tmp_path / "logs", {"frozen": [], "refreshed": [], "anew": []}
    folder.mkdir()
    for day in range(days):
        logs(day, rows).write_parquet(folder / f"{day}.parquet")
    model = ae.AutoEmbedClassifier(
        embedding={"dim": 4, "blocks": 2}, backbone=BACKBONE, train=RECIPE,
        stages=[{"method": "frequency"}], budget={"width": 3}, random_state=0,
    )  # fmt: skip
    model.fit(logs(0, rows)).export(tmp_path / "frozen")
    ae.load_bundle(tmp_path / "frozen")
    current = tmp_path / "frozen"
    for day in range(1, days - 1):
        log, out = folder / f"{day}.parquet", tmp_path / f"day{day}"
        current = refresh(current, log, out, epochs=2, settings=SPLIT).bundle.path
        every = [str(folder / f"{one}.parquet") for one in range(day + 1)]
        anew = train_architecture(tmp_path / "frozen", every, tmp_path / f"anew{day}", settings=SPLIT).bundle.path
        later = logs(day + 1, 20_000)
        for name, path in (("frozen", tmp_path / "frozen"), ("refreshed", current), ("anew", anew)):
            scores = ae.load_bundle(path).predict(later)
            found[name].append(evaluate(later["label"].to_numpy(), scores).auc)
    return {name: np.array(aucs) for name, aucs in found.items()}


def test_a_bundle_that_is_refreshed_daily_beats_a_frozen_one(tmp_path):
    found = daily(tmp_path, days=4, rows=20_000)
    print({name: aucs.round(4).tolist() for name, aucs in found.items()})
    assert (found["refreshed"] > found["frozen"] + 0.01).all()
    assert found["refreshed"].mean() > found["anew"].mean() - 0.01


@pytest.mark.slow
def test_over_eight_days_refreshing_is_nearly_as_good_as_training_anew(tmp_path):
    found = daily(tmp_path, days=9, rows=40_000)
    print({name: aucs.round(4).tolist() for name, aucs in found.items()})
    assert (found["refreshed"] > found["frozen"]).all()
    # Measured: .8163 beside .8165, and .7447 of the frozen one.
    assert found["refreshed"].mean() > found["anew"].mean() - 0.002
