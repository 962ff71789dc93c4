"""A row of weight 2 is two equal rows: in losses, steps, metrics, estimates and scores of fields."""

import numpy as np
import polars as pl
import pytest
import torch

from autoembed.architecture import Architecture
from autoembed.batches import RowWeights, sampled
from autoembed.bundle import load_bundle
from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.errors import DataError
from autoembed.knockout import field_scores, mean_embeddings, saliency
from autoembed.methods.bilevel import search
from autoembed.methods.method import configure, load
from autoembed.methods.rises import LossEstimate
from autoembed.metrics import auc_error, effective_rows, evaluate, mean_and_error, placements, scale_and_shift
from autoembed.nn.model import CTRModel
from autoembed.refreshing import refresh
from autoembed.retraining import retrain
from autoembed.reuse import train_architecture
from autoembed.scoring import score_table
from autoembed.shuffle import Stretch
from autoembed.task import CLICKS
from autoembed.training import Teacher, TrainConfig, fit, metrics_of, metrics_on, predict
from autoembed.trial import TrialConfig, run_trial

CPU = torch.device("cpu")
# Dropout would draw other entries, and batch norm has statistics of rows that count once.
PLAIN = {"name": "deepfm", "dropout": 0.0, "batch_norm": False, "hidden": [16]}


def table(rows, seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 12, rows), rng.integers(0, 7, rows)
    logit = np.sin(a) + 0.7 * np.cos(3 * b) - 0.8
    return pl.DataFrame(
        {
            "label": (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int),
            "a": [f"v{value}" for value in a],
            "b": [f"v{value}" for value in b],
            "w": rng.integers(0, 4, rows),
        }
    )


def repeated(frame):
    return frame[np.repeat(np.arange(len(frame)), frame["w"].to_numpy())].drop("w")


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """A dataset with weights, and one of the repeated rows: with the same ids."""
    folder, found = tmp_path_factory.mktemp("twins"), []
    for name, change in (("weighted", lambda frame: frame), ("repeated", repeated)):
        (folder / name).mkdir()
        for seed, split in enumerate(("train", "valid", "test")):
            change(table((1500, 500, 500)[seed], seed)).write_parquet(folder / name / f"{split}.parquet")
        spec = DataSpec(weight="w" if name == "weighted" else None)
        found.append(build_dataset(spec, folder / name, folder / "cache"))
    weighted, plain = found
    # Ids are by the number of rows, which differ: the weighted ones' are taken for both.
    copies = np.repeat(np.arange(1500), table(1500, 0)["w"].to_numpy())
    assert len(copies) == plain.rows("train")
    for split, rows in (("train", 1500), ("valid", 500), ("test", 500)):
        seed = ("train", "valid", "test").index(split)
        copies = np.repeat(np.arange(rows), table(rows, seed)["w"].to_numpy())
        np.save(plain.path / f"{split}.ids.npy", weighted.ids(split)[copies])
        assert (plain.labels(split) == weighted.labels(split)[copies]).all()
    assert plain.schema.cardinalities == weighted.schema.cardinalities
    counted = [np.bincount(ids, minlength=13) for ids in plain.ids("train").T]
    sizes = plain.schema.cardinalities
    np.save(plain.path / "counts.npy", np.concatenate([own[:size] for own, size in zip(counted, sizes, strict=True)]))
    return weighted, plain


def small_model(dataset):
    torch.manual_seed(0)
    root = Architecture.full(dataset.schema, dataset.counts, dim=4, blocks=1, backbone=PLAIN)
    return CTRModel(dataset.schema, root)


def gap(first, second):
    """The largest difference of two models' tensors."""
    return max(
        float((one - other).detach().abs().max())
        for one, other in zip(first.parameters(), second.parameters(), strict=True)
    )


@pytest.mark.parametrize("recipe", [{}, {"positive_weight": 3.0}, {"l2": 0.1}])
@pytest.mark.parametrize("taught", [False, True])
def test_a_step_on_all_rows_is_that_of_repeated_rows(twins, recipe, taught):
    losses, models = [], []
    for dataset in twins:
        model, told = small_model(dataset), []
        teacher = None
        if taught:
            logits = np.sin(dataset.ids("train").sum(axis=1)).astype(np.float32)
            teacher = Teacher(logits=logits, weight=0.4)
        train = TrainConfig(epochs=1, lr=0.05, batch_size=100_000, **recipe)
        fit(model, dataset, train, device=CPU, seed=0, report=told.append, teacher=teacher)
        losses.append(told[0].loss)
        models.append(model)
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    # Adam divides by the gradient's size: where that is tiny, so are the digits that it is told by.
    assert gap(*models) < 2e-4
    assert gap(models[0], small_model(twins[0])) > 0.01


def test_gradients_of_all_rows_are_those_of_repeated_rows(twins):
    found = []
    for dataset in twins:
        model = small_model(dataset).eval()
        weights = dataset.weights("train")
        own = None if weights is None else torch.from_numpy(weights / weights.mean())
        labels = torch.from_numpy(dataset.labels("train"))
        CLICKS.loss(model(torch.from_numpy(dataset.ids("train"))), labels, 2.0, weights=own).backward()
        found.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-7)


def test_the_size_of_weights_says_nothing_and_their_ratios_do(twins):
    weighted, _ = twins
    own = RowWeights(weighted, 1500)
    assert own.scale * weighted.weights("train").mean() == pytest.approx(1)
    part = Stretch(np.arange(1500), 100, 600)
    assert RowWeights(weighted, part).scale * weighted.weights("train")[100:600].mean() == pytest.approx(1)
    drawn = sampled(weighted, 1500, 0.5, [1])
    own.of_rows(drawn)
    assert own.scale * weighted.weights("train")[drawn].mean() == pytest.approx(1)


def test_an_ensembles_loss_is_the_mean_of_its_members(twins):
    logits, labels = torch.randn(50, 3), torch.randint(0, 2, (50,)).float()
    weights = torch.rand(50)
    each = [CLICKS.loss(logits[:, at], labels, weights=weights) for at in range(3)]
    assert CLICKS.loss(logits, labels, weights=weights).item() == pytest.approx(sum(each).item() / 3)


def test_metrics_are_those_of_repeated_rows(twins):
    for seed, split in ((1, "valid"), (2, "test")):
        # Of one prediction for each row: another place in a batch may move its last digit, and break ties.
        predictions = predict(small_model(twins[0]), twins[0], split, CPU)
        copies = np.repeat(np.arange(500), table(500, seed)["w"].to_numpy())
        one = metrics_of(predictions, twins[0], split)
        other = metrics_of(predictions[copies], twins[1], split)
        assert one.auc == pytest.approx(other.auc, abs=1e-9)
        assert one.logloss == pytest.approx(other.logloss, abs=1e-7)
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 400).astype(np.float32), np.round(rng.random(400), 1)  # with ties
    weights = rng.integers(0, 5, 400).astype(np.float32)
    again = np.repeat(np.arange(400), weights.astype(int))
    one, other = evaluate(labels, scores, weights), evaluate(labels[again], scores[again])
    assert (one.auc, one.logloss) == pytest.approx((other.auc, other.logloss), abs=1e-9)
    assert scale_and_shift(labels, scores, weights) == pytest.approx(scale_and_shift(labels[again], scores[again]))
    placed = placements(scores, labels == 1, weights)
    assert placed[again] == pytest.approx(placements(scores[again], labels[again] == 1))
    assert CLICKS.line(labels, scores, weights) == pytest.approx(CLICKS.line(labels[again], scores[again]), rel=1e-4)
    with pytest.raises(DataError, match="both classes"):
        evaluate(labels, scores, np.where(labels == 1, 0, weights))


def test_standard_errors_are_those_of_rows_as_they_were_seen():
    rng = np.random.default_rng(1)
    labels, twos = rng.integers(0, 2, 1000).astype(np.float32), np.full(1000, 2.0)
    ones = int(labels.sum())
    assert (
        CLICKS.error(0.7, labels, twos) == pytest.approx(CLICKS.error(0.7, labels)) == auc_error(0.7, ones, 1000 - ones)
    )
    weights = rng.exponential(1.0, 1000)
    assert effective_rows(weights) == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert CLICKS.error(0.7, labels, weights) > 1.2 * CLICKS.error(0.7, labels)
    # The spread of weighted means over samples is what one sample tells.
    values = rng.normal(size=(2000, 500)) + 1
    own = rng.exponential(1.0, (2000, 500))
    found = np.array([mean_and_error(value, weight) for value, weight in zip(values, own, strict=True)])
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.06)


def test_field_scores_are_those_of_repeated_rows(twins):
    scores = []
    for dataset in twins:
        model = small_model(dataset)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(20)
        assert torch.allclose(mean_embeddings(model, dataset, CPU), mean_embeddings(model, twins[1], CPU), atol=1e-5)
        assert saliency(model, dataset, "valid", CPU) == pytest.approx(
            saliency(model, twins[1], "valid", CPU), rel=1e-5
        )
        scores.append(field_scores(model, dataset).select("field", "logloss_rise", "auc_fall"))
    one, other = scores
    assert one["field"].to_list() == other["field"].to_list()
    for name in ("logloss_rise", "auc_fall"):
        assert one[name].to_numpy() == pytest.approx(other[name].to_numpy(), abs=1e-6)


def test_estimates_of_loss_are_those_of_repeated_rows():
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(size=200), rng.integers(0, 2, 200).astype(np.float32)
    changes, blocks = rng.normal(size=(200, 2, 3)).astype(np.float32), rng.integers(0, 2, (200, 2)) + np.array([0, 2])
    weights = rng.integers(0, 4, 200).astype(np.float32)
    again = np.repeat(np.arange(200), weights.astype(int))
    one = LossEstimate(logits, labels, changes.copy(), blocks, task=CLICKS, weights=weights)
    other = LossEstimate(logits[again], labels[again], changes[again], blocks[again], task=CLICKS)
    options = np.arange(3)
    for _ in range(2):
        assert one.loss() == pytest.approx(other.loss(), abs=1e-7)
        for block in range(4):
            assert one.rises(block, options) == pytest.approx(other.rises(block, options), abs=1e-6)
            # Two equal rows are more evidence than one of weight 2.
            gaps = one.cautious(block, options, 1.0) - other.cautious(block, options, 1.0)
            assert (gaps >= -1e-6).all()
            assert gaps.max() > 1e-4
        for estimate in (one, other):
            estimate.take(1, 2)


@pytest.mark.parametrize("method", ["sensitivity", "select", "dnis"])
def test_a_net_compares_answers_by_weighted_rows(twins, method):
    weighted, _ = twins
    config = configure({"method": method, "warm_epochs": 1})
    torch.manual_seed(0)
    root = Architecture.full(weighted.schema, weighted.counts, dim=4, blocks=1, backbone={"name": "deepfm"})
    net = load(method).Supernet(weighted.schema, root, config, weighted.counts, 0)
    told = []
    search(net, weighted, TrainConfig(epochs=1), device=CPU, seed=0, report=told.append)
    assert told
    if net.held is None:
        return
    (ids, labels), weights = net.held, net.held_weights
    assert weights.mean().item() == pytest.approx(1)
    loss = net.loss_of(root)
    keep = torch.repeat_interleave(torch.arange(len(ids)), (weights / weights[weights > 0].min()).round().long())
    net.held, net.held_weights = (ids[keep], labels[keep]), None
    assert net.loss_of(root) == pytest.approx(loss, abs=1e-6)


def test_a_trial_follows_weighted_metrics_and_a_bundle_remembers_the_weight(twins, tmp_path):
    weighted, _ = twins
    folder = weighted.path.parent.parent / "weighted"
    config = TrialConfig(
        arm="search", stages=[{"method": "uniform"}], backbone={"name": "fm"}, train=TrainConfig(epochs=2), device="cpu"
    )
    result, model = run_trial(config, weighted, lambda values: None)
    assert result.valid.auc == pytest.approx(metrics_on(model, weighted, "valid", CPU).auc)
    path = tmp_path / "architecture.json"
    result.architecture.write(path)
    trained = train_architecture(
        path, str(folder), tmp_path / "bundle", settings={"weight": "w"}, train={"epochs": 1}, device="cpu"
    )
    bundle = load_bundle(tmp_path / "bundle")
    assert (bundle.schema.weight, bundle.spec.weight) == ("w", "w")
    rows = table(300, 9)
    assert len(bundle.predict(rows.select("a", "b"), device="cpu")) == 300
    rows.write_parquet(tmp_path / "rows.parquet")
    scored = score_table(bundle, str(tmp_path / "rows.parquet"), device="cpu")
    expected = evaluate(rows["label"].to_numpy(), scored.table["prediction"].to_numpy(), rows["w"].to_numpy())
    assert f"weighted by 'w', AUC {expected.auc:.4f}" in scored.quality
    log = tmp_path / "log.parquet"
    table(900, 11).write_parquet(log)
    settings = {"split": {"by": "random", "valid": 0.2, "test": 0.2}}
    found = refresh(tmp_path / "bundle", str(log), tmp_path / "new", epochs=1, settings=settings, device="cpu")
    assert found.bundle.schema.weight == "w"
    table(900, 11).drop("w").write_parquet(log)
    with pytest.raises(DataError, match="the log lacks the weight column 'w' of the bundle: bring it back, or set"):
        refresh(tmp_path / "bundle", str(log), tmp_path / "new", epochs=1, settings=settings, device="cpu")
    plain = refresh(
        tmp_path / "bundle", str(log), tmp_path / "new", epochs=1, settings={**settings, "weight": None}, device="cpu"
    )
    assert plain.bundle.schema.weight is None
    assert trained.valid.names == ("auc", "logloss")


def test_retraining_moves_towards_heavy_rows(twins):
    """The weighted model fits what the weights say, not what the rows do."""
    weighted, _ = twins
    model, fitted = retrain(
        small_model(weighted).architecture, weighted, TrainConfig(epochs=5, lr=0.02), CPU, 0, lambda event: None
    )
    assert fitted.valid.auc > 0.65
    assert metrics_on(model, weighted, "valid", CPU).auc == pytest.approx(fitted.valid.auc)
