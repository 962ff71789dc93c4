"""Labels of several classes: read, counted, learnt and judged; and what goes with clicks only is refused."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import BaseModel, ValidationError
from sklearn.metrics import log_loss, roc_auc_score
from torch.nn import functional

from autoembed.architecture import Architecture
from autoembed.data.dataset import build_dataset
from autoembed.data.spec import DataSpec
from autoembed.errors import DataError, SpaceError
from autoembed.multiclass import LabelClasses, Multiclass
from autoembed.nn.model import build_model, cost_of
from autoembed.plans import Ensemble
from autoembed.ranking.ranking import rank, rank_table
from autoembed.space import SearchSpace
from autoembed.task import CLICKS, MULTICLASS, Monitor, TaskMetrics, metric_in, metric_of, task_of, titled
from autoembed.training import TrainConfig, fit, metrics_on
from autoembed.trial import check, root_architecture, run_trial
from tests.actions import ACTIONS, PLAIN, TRAIN, dataset_of, entropy_of, table

CPU = torch.device("cpu")
NAMES = ("cross_entropy", "accuracy", "macro_auc")
FLAT = {"name": "dnn", "hidden": [8], "dropout": 0.0, "batch_norm": False}
FOUR = Multiclass(LabelClasses(names=ACTIONS, rows=(50, 30, 15, 5)))


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(300, 4)).astype(np.float32)
    return rng.integers(0, 4, 300).astype(np.float32), logits, rng.integers(0, 4, 300).astype(np.float32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return dataset_of(tmp_path_factory.mktemp("data"))


def test_metrics_are_those_of_scikit_learn_with_and_without_weights(drawn):
    labels, logits, weights = drawn
    chances = FOUR.link(torch.tensor(logits)).numpy()
    assert np.allclose(chances.sum(1), 1)
    for own in (None, weights):
        found = FOUR.evaluate(labels, chances, own)
        assert found.cross_entropy == pytest.approx(
            log_loss(labels, chances.astype(float), sample_weight=own), rel=1e-5
        )
        assert found.accuracy == pytest.approx(np.average(chances.argmax(1) == labels, weights=own))
        ones = [
            roc_auc_score(labels == place, chances[:, place], sample_weight=own) for place in range(4)
        ]  # scikit-learn takes weights of two classes alone
        assert found.macro_auc == pytest.approx(np.mean(ones), rel=1e-9)
    assert FOUR.evaluate(labels, chances).macro_auc == pytest.approx(
        roc_auc_score(labels, chances, multi_class="ovr"), rel=1e-6
    )
    twice = np.repeat(np.arange(300), weights.astype(int))
    assert FOUR.evaluate(labels[twice], chances[twice]).root == pytest.approx(
        FOUR.evaluate(labels, chances, weights).root, rel=1e-6
    )


def test_classes_without_rows_are_left_out_of_the_macro_auc_and_nonsense_is_refused(drawn):
    labels, logits, _ = drawn
    some, chances = labels < 3, FOUR.link(torch.tensor(logits)).numpy()
    found = FOUR.evaluate(labels[some], chances[some]).macro_auc
    assert found == pytest.approx(
        np.mean([roc_auc_score(labels[some] == place, chances[some, place]) for place in range(3)])
    )
    with pytest.raises(DataError, match="rows of two classes"):
        FOUR.evaluate(np.zeros(5), chances[:5])
    with pytest.raises(DataError, match="finite"):
        FOUR.evaluate(labels, chances * np.nan)
    with pytest.raises(DataError, match="not compared within groups"):
        FOUR.told_within(labels, chances, labels, "user")


def test_the_loss_is_torchs_and_one_function_in_torch_and_in_numpy(drawn):
    labels, logits, weights = drawn
    wide, teacher = logits.astype(np.float64), np.random.default_rng(1).normal(size=(300, 4))
    own = functional.cross_entropy(torch.tensor(wide), torch.tensor(labels).long(), reduction="none")
    assert torch.allclose(FOUR.loss(torch.tensor(wide), torch.tensor(labels)), own.mean())
    assert torch.allclose(FOUR.loss(torch.tensor(wide), torch.tensor(labels), reduction="sum"), own.sum())
    weighted = FOUR.loss(torch.tensor(wide), torch.tensor(labels), weights=torch.tensor(weights))
    assert torch.allclose(weighted, (own * torch.tensor(weights)).mean())
    assert np.allclose(FOUR.losses(labels, wide), own)
    assert np.allclose(FOUR.losses(labels, FOUR.unlink(FOUR.link(torch.tensor(wide)).numpy())), own)
    changes = np.random.default_rng(2).normal(size=(300, 5, 4)).astype(np.float32)
    slow = np.stack([FOUR.losses(labels, wide + changes[:, one]) - own.numpy() for one in range(5)], axis=1)
    assert np.allclose(FOUR.rises(labels[:, None], logits[:, None], changes), slow, atol=1e-5)
    soft = functional.cross_entropy(torch.tensor(wide), torch.tensor(teacher).softmax(1))
    assert torch.allclose(FOUR.distil(torch.tensor(wide), torch.tensor(teacher)), soft)


def test_of_two_classes_it_is_what_clicks_are(drawn):
    """A third class that nothing is of changes no number."""
    z, other = drawn[1].astype(np.float64)[:, 0], drawn[1].astype(np.float64)[:, 1]
    labels = (drawn[0] > 1).astype(np.float32)
    three = Multiclass(LabelClasses(names=("a", "b", "none")))

    def logits(one):
        return np.stack([np.zeros(300), one, np.full(300, -80.0)], axis=1)

    assert np.allclose(three.losses(labels, logits(z)), CLICKS.losses(labels, z))
    plain, soft = (torch.tensor(one, requires_grad=True) for one in (z, logits(z)))
    CLICKS.loss(plain, torch.tensor(labels, dtype=torch.float64)).backward()
    three.loss(soft, torch.tensor(labels)).backward()
    assert torch.allclose(plain.grad, soft.grad[:, 1])
    found, wanted = three.compare(labels, logits(z))(logits(other)), CLICKS.compare(labels, z)(other)
    for name, own in {"cross_entropy": "logloss", "macro_auc": "auc"}.items():
        assert found[f"{name}_se"] == pytest.approx(wanted[f"{own}_se"], rel=0.01)
    assert found["cross_entropy_rise"] == pytest.approx(wanted["logloss_rise"])
    assert found["macro_auc_fall"] == pytest.approx(wanted["auc_fall"])
    probabilities = three.link(torch.tensor(logits(z))).numpy()
    both = three.evaluate(labels, probabilities), CLICKS.evaluate(labels, probabilities[:, 1])
    assert (both[0].cross_entropy, both[0].macro_auc) == pytest.approx((both[1].logloss, both[1].auc))


def test_calibration_finds_the_temperature(drawn):
    _, logits, weights = drawn
    wide = 3 * np.repeat(logits, 40, axis=0).astype(np.float64)
    chances = FOUR.link(torch.tensor(wide / 3)).numpy()
    labels = (chances.cumsum(1) < np.random.default_rng(3).random((len(wide), 1))).sum(1).astype(np.float32)
    for own in (None, np.repeat(weights, 40)):
        scale, shift = FOUR.calibration(labels, wide, own)
        assert (scale, shift) == pytest.approx((1 / 3, 0), abs=0.02)
        near = [np.average(FOUR.losses(labels, one * wide), weights=own) for one in (scale - 0.01, scale, scale + 0.01)]
        assert min(near) == near[1]
    assert FOUR.calibration(labels, np.zeros_like(wide)) == (1, 0)
    assert FOUR.line(labels, chances) is None


def test_errors_are_those_of_many_draws():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(200, 300, 4))
    others = logits + rng.normal(0, 0.5, size=logits.shape)
    chances = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    labels = (chances.cumsum(2) < rng.random((200, 300, 1))).sum(2)
    found = [FOUR.compare(*one)(other) for *one, other in zip(labels, logits, others, strict=True)]
    for name, way in (("cross_entropy", "rise"), ("accuracy", "fall"), ("macro_auc", "fall")):
        rises = [one[f"{name}_{way}"] for one in found]
        assert np.mean([one[f"{name}_se"] for one in found]) == pytest.approx(np.std(rises), rel=0.15)
        assert np.mean(rises) > 0
    entropies = [FOUR.losses(*one).mean() for one in zip(labels, logits, strict=True)]
    assert 1 < FOUR.error(np.mean(entropies), labels[0]) / np.std(entropies) < 2


def test_weights_are_repeated_rows_in_comparisons(drawn):
    labels, logits, weights = drawn
    other, twice = logits[:, ::-1], np.repeat(np.arange(300), weights.astype(int))
    found, wanted = (
        FOUR.compare(labels, logits, weights)(other),
        FOUR.compare(labels[twice], logits[twice])(other[twice]),
    )
    for name in ("cross_entropy_rise", "accuracy_fall", "macro_auc_fall"):
        assert found[name] == pytest.approx(wanted[name], rel=1e-5)


def test_hopeless_is_no_better_than_the_shares_of_the_classes():
    labels = np.repeat(np.arange(4.0), [500, 300, 150, 50])
    entropy = -sum(share * np.log(share) for share in (0.5, 0.3, 0.15, 0.05))
    assert FOUR.hopeless(entropy, labels) == pytest.approx(0.98 * entropy)
    assert FOUR.hopeless(0.9 * entropy, labels) is None


def test_classes_are_sorted_counted_and_stored_and_other_schemas_stay_as_they_were(dataset, tmp_path):
    counts = np.bincount(dataset.labels("train").astype(int)).tolist()
    stored = json.loads((dataset.path / "schema.json").read_text())
    assert stored["classes"] == {"names": list(ACTIONS), "rows": counts}
    assert dataset.task.outputs == 4
    assert FOUR.known.cut == 0  # half of the rows
    assert FOUR.classes(np.array([0, 1, 3])).tolist() == [1, 0, 0]
    spec = DataSpec.checked({"planted": {"rows": 500}, "split": {"by": "random"}})
    assert "classes" not in json.loads((build_dataset(spec, None, tmp_path).path / "schema.json").read_text())


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda code: code.cast(pl.Int64), ("0", "1", "2", "10")),
        (lambda code: code.cast(pl.Float64), ("0", "1", "2", "10")),
        (lambda code: code.cast(pl.String), ("0", "1", "2", "10")),
        (lambda code: "c" + code.cast(pl.String), ("c0", "c1", "c10", "c2")),
        (lambda code: ("c" + code.cast(pl.String)).cast(pl.Categorical), ("c0", "c1", "c10", "c2")),
    ],
)
def test_labels_are_read_from_text_and_whole_numbers(change, names, tmp_path):
    def changed(frame):
        code = pl.col("action").replace_strict(dict(zip(ACTIONS, (0, 1, 2, 10), strict=True)), return_dtype=pl.Int32)
        return frame.with_columns(action=change(code))

    found = dataset_of(tmp_path, rows=400, change=changed)
    assert found.schema.classes.names == names


def test_classes_of_a_spec_are_written_as_a_table_has_them():
    assert DataSpec.checked({"task": "multiclass", "classes": [2.0, 10, True, "x"]}).classes == ("2", "10", "true", "x")
    with pytest.raises(DataError, match="classes"):
        DataSpec.checked({"task": "multiclass", "classes": ["a", "", "b"]})


def test_classes_are_named_in_an_order_of_ones_own_and_missing_labels_are_left_out(tmp_path):
    def with_gaps(frame):
        return frame.with_columns(action=pl.when(pl.col("user") > 0).then("action"))

    order = list(reversed(ACTIONS))
    found = dataset_of(tmp_path, rows=600, change=with_gaps, classes=order, missing_label="drop")
    assert found.schema.classes.names == tuple(order)
    kept = with_gaps(table(600, 0)).drop_nulls()
    assert sum(map(found.rows, found.splits)) == len(kept)
    with pytest.raises(DataError, match=r"label 'action' is missing in \d+ rows"):
        dataset_of(tmp_path, rows=600, change=with_gaps)
    with pytest.raises(DataError, match="has the class 'leave', which is none of buy, cart, like"):
        dataset_of(tmp_path, rows=600, classes=["buy", "cart", "like"])


@pytest.mark.parametrize(
    ("label", "why"),
    [
        (pl.Series([*("ab" * 30)]), r"3 classes or more, but label 'action' has 'a', 'b': set task: clicks"),
        (pl.Series([True, False] * 30), r"has 'false', 'true': set task: clicks"),
        (pl.Series([0.5, 1.0, 2.0] * 20), r"text or whole numbers, but label 'action' has the value '0.5'"),
        (pl.Series(range(300)), r"must be 3 to 255 classes.* has 300 values: set task: ratings"),
    ],
)
def test_labels_that_are_no_classes_are_refused(label, why, tmp_path):
    frame = pl.DataFrame({"action": label, "a": [value % 7 for value in range(len(label))]})
    frame.write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=why):
        build_dataset(DataSpec(task="multiclass", label="action"), str(tmp_path / "t.parquet"), tmp_path)


def test_a_class_that_train_lacks_is_refused_and_few_rows_are_told(tmp_path):
    def late(frame):
        return frame.with_row_index("at").with_columns(
            action=pl.when(pl.col("at") >= len(frame) - 20).then(pl.lit("new")).otherwise("action")
        )

    where = {"split": {"by": "time", "valid": 0.1, "test": 0.1}, "time": "at"}
    with pytest.raises(DataError, match="must have rows of each class in train, but has none of new"):
        dataset_of(tmp_path, rows=600, change=late, **where)
    spread = dataset_of(tmp_path, rows=600, change=late, split={"by": "random", "stratify": True})
    assert [np.bincount(spread.labels(split).astype(int), minlength=5)[4] for split in spread.splits] == [16, 2, 2]
    assert any(note.startswith("train has fewer than 30 rows of new (16)") for note in spread.notes)

    def early(frame):
        return frame.with_row_index("at").with_columns(
            action=pl.when(pl.col("at") < 40).then(pl.lit("old")).otherwise("action")
        )

    alone = pl.when(pl.col("at").is_between(400, 420)).then(pl.lit("old")).otherwise("action")
    with pytest.raises(DataError, match="must have rows of two classes in valid, but all 20 rows are of one"):
        dataset_of(
            tmp_path,
            rows=600,
            change=lambda frame: early(frame).with_columns(action=alone),
            time="at",
            split={"by": "time", "valid": 400, "test": 420},
        )
    found = dataset_of(tmp_path, rows=600, change=early, **where)
    assert any("valid has no row of old: macro AUC there is the mean" in note for note in found.notes)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"positive": ["buy"]}, "positive makes clicks"),
        ({"above": 3}, "above makes clicks"),
        ({"group": "user"}, "metric of clicks"),
        ({"target_statistics": {"columns": ["a"]}}, "click rates"),
        ({"auxiliary_labels": ["b"]}, "auxiliary_labels are of clicks"),
        ({"planted": {}}, "planted data have clicks or ratings"),
        ({"classes": ["a", "b"]}, "classes must list 3 to 255 different names"),
        ({"classes": ["a", "b", "a"]}, "different names"),
        ({"task": "clicks", "classes": ["a", "b", "c"]}, "classes are of task: multiclass, but task is clicks"),
    ],
)
def test_keys_that_do_not_go_with_classes_are_refused(keys, why):
    with pytest.raises((DataError, SpaceError), match=why):
        DataSpec.checked({"task": "multiclass", **keys})


def test_a_space_minimises_cross_entropy_has_a_backbone_for_classes_and_refuses_what_has_one_logit():
    node = {"data": {"task": "multiclass"}, "stages": [{"method": "uniform"}]}
    space = SearchSpace.parse(node)
    assert (space.objective.metric, space.objective.mode) == ("valid_cross_entropy", "min")
    assert space.config("uniform", {}).backbone == {"name": "dcn"}
    assert SearchSpace.parse({**node, "objective": {"maximize": "valid.macro_auc"}}).objective.mode == "max"
    assert SearchSpace.parse({"stages": node["stages"]}).backbone == "deepfm"
    with pytest.raises(SpaceError, match=r"valid AUC is a metric of clicks, but data.task is multiclass"):
        SearchSpace.parse({**node, "objective": {"maximize": "valid.auc"}})
    with pytest.raises(SpaceError, match=r"backbone deepfm sums numbers to one: use one of armnet, autoint, dcn, dlrm"):
        SearchSpace.parse({**node, "backbone": {"choice": ["dnn", "deepfm"]}})
    for key, value in (("positive_weight", 2), ("negative_sampling", 0.5)):
        with pytest.raises(SpaceError, match=rf"train\.{key} is of clicks"):
            SearchSpace.parse({**node, "train": {key: value}})
    with pytest.raises(SpaceError, match="does not go with the method ihas, which makes several models"):
        SearchSpace.parse({**node, "baselines": ["ihas"]})
    with pytest.raises(SpaceError, match=r"does not go with ensemble\.members: 3"):
        SearchSpace.parse({**node, "ensemble": {"members": 3}})
    assert [titled(name) for name in ("valid_cross_entropy", "test_macro_auc")] == [
        "valid cross-entropy",
        "test macro AUC",
    ]
    assert metric_of("valid_accuracy") is MULTICLASS.metrics[1]
    assert task_of("test_macro_auc") is MULTICLASS
    assert metric_in(FOUR, None).monitor == "valid_cross_entropy"


def test_columns_are_ranked_by_the_class_that_the_notes_name(dataset, tmp_path):
    ranking = rank(dataset)
    assert ranking.table["feature"].to_list()[-1] == "noise"
    assert any(
        "the label has 4 classes: columns are ranked by what they say of whether" in one for one in ranking.notes
    )
    table(500, 0).drop("p0", "p1", "p2", "p3").write_parquet(tmp_path / "t.parquet")
    # A raw table is ranked by all classes.
    settings = {"task": "multiclass"}
    assert len(rank_table(str(tmp_path / "t.parquet"), label="action", settings=settings).table) == 4


def test_weights_in_training_are_those_of_repeated_rows(tmp_path):
    """One step on all rows moves the outputs' bias by the shares of the classes, each row by its weight."""

    def weighted(frame):
        return frame.with_columns(weight=pl.Series(np.tile([1, 2, 0, 1], len(frame) // 4)))

    def repeated(frame):
        return weighted(frame).select(pl.exclude("weight").repeat_by("weight").explode())

    found = []
    for change, keys in ((weighted, {"weight": "weight"}), (repeated, {})):
        folder = tmp_path / str(len(keys))
        folder.mkdir()
        for split, seed in {"train": 0, "valid": 1, "test": 2}.items():
            change(table(400, seed).drop("p0", "p1", "p2", "p3")).write_parquet(folder / f"{split}.parquet")
        spec = DataSpec.checked({"task": "multiclass", "label": "action", "min_count": 1, **keys})
        data = build_dataset(spec, str(folder), folder / "cache")
        config = check({"arm": "x", "stages": [{"method": "uniform"}], "backbone": FLAT, "embedding": {"dim": 2}})
        model = build_model(data.schema, root_architecture(config, data))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        train = TrainConfig(epochs=1, batch_size=10_000, lr=0.05, clip=1e-3)
        bias, moved = model.backbone.tower.output.bias, []
        bias.register_hook(lambda gradient, moved=moved: moved.append(gradient.clone()))
        done = fit(model, data, train, device=CPU, seed=0, report=lambda event: None)
        found.append((moved[0], done.valid))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6)
    assert found[0][1].root == pytest.approx(found[1][1].root, rel=1e-5)


def test_stored_formats_keep_metrics_of_the_task_and_classes_that_fit():
    class Stored(BaseModel):
        monitor: Monitor
        valid: TaskMetrics

    Stored.model_validate({"monitor": "valid_macro_auc", "valid": dict.fromkeys(NAMES, 0.5)})
    with pytest.raises(ValidationError):
        Stored.model_validate({"monitor": "valid_macro_auc", "valid": dict.fromkeys(NAMES[:2], 0.5)})
    for names, rows in ((("a", "b"), ()), (("a", "b", "b"), ()), (("a", "b", "c"), (1, 2))):
        with pytest.raises(ValidationError):
            LabelClasses(names=names, rows=rows)


def test_a_model_comes_near_the_best_that_there_is(dataset):
    config = check(
        {
            "arm": "x",
            "stages": [{"method": "uniform"}],
            "monitor": "valid_cross_entropy",
            "backbone": PLAIN,
            "train": TRAIN,
            "embedding": {"dim": 4},
        }
    )
    result, model = run_trial(config, dataset, lambda event: None)
    test = metrics_on(model, dataset, "test", CPU)
    assert entropy_of(table(8000, 0)) < test.cross_entropy < entropy_of(table(8000, 0)) + 0.09
    shares = np.bincount(dataset.labels("test").astype(int)) / dataset.rows("test")
    assert -(shares @ np.log(shares)) > 1.3
    assert test.accuracy > shares.max() + 0.2
    assert test.macro_auc > 0.8
    assert result.cost == cost_of(result.architecture)
    assert Architecture.model_validate_json(result.architecture.model_dump_json()).outputs == 4
    with pytest.raises(ValidationError, match="must have no clusters and no ensemble"):
        result.architecture.replace(ensemble=Ensemble(members=2, share="tables"))
