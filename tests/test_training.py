import weakref

import numpy as np
import pytest
import torch

from autoembed.batches import batches
from autoembed.data.schema import FeatureSchema
from autoembed.errors import DataError, SpaceError, TrialError
from autoembed.events import values_of
from autoembed.metrics import Metrics, evaluate
from autoembed.nn.model import CTRModel
from autoembed.retraining import retrain
from autoembed.task import CLICKS, metric_of
from autoembed.training import Adam, Optimiser, Plateau, TrainConfig, fit, pick_device, predict
from autoembed.trial import TrialConfig, check, root_architecture, run_trial

CPU = torch.device("cpu")


def config(**changes):
    node = {
        "arm": "uniform",
        "stages": [{"method": "uniform"}],
        "embedding": {"dim": 4, "blocks": 2},
        "backbone": {"name": "deepfm", "hidden": [8], "dropout": 0.0},
        "train": {"epochs": 2, "lr": 3e-3, "batch_size": 512},
        "limit": {"width": 2},
    }
    return check(node | changes)


def fresh(dataset, seed=0):
    torch.manual_seed(seed)
    return CTRModel(dataset.schema, root_architecture(config(), dataset))


def test_batches_cover_every_row_once_in_the_order_asked_for(planted):
    order = np.random.default_rng(0).permutation(planted.rows("train"))
    ids = torch.cat([ids for ids, _ in batches(planted, "train", 1000, CPU, rows=order)])
    assert np.array_equal(ids.numpy(), np.asarray(planted.ids("train"))[order])
    assert sum(len(labels) for _, labels in batches(planted, "valid", 999, CPU)) == planted.rows("valid")


@pytest.mark.parametrize("options", [{"fused": True}, {"weight_decay": 1e-2}])
def test_adam_is_torchs(options):
    torch.manual_seed(0)
    start, gradients = torch.randn(7, 3), torch.randn(5, 7, 3)
    ends = []
    for kind in (Adam, torch.optim.Adam):
        weight, unused = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
        optimiser = kind([weight, unused], lr=0.1, **options)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimiser.step()
            optimiser.zero_grad()
            assert weight.grad is None
        ends.append(weight.detach())
        assert torch.equal(unused, start)
    assert torch.equal(*ends)


def test_the_kept_weights_are_those_of_the_best_epoch(planted):
    model, curve = fresh(planted), []
    recipe = TrainConfig(epochs=6, lr=2e-2, batch_size=256, patience=6)
    fitted = fit(model, planted, recipe, device=CPU, seed=0, report=curve.append)
    aucs = [event.valid.auc for event in curve]
    assert fitted.valid.auc == max(aucs)
    assert fitted.epoch == int(np.argmax(aucs)) + 1
    again = evaluate(planted.labels("valid"), predict(model, planted, "valid", CPU))
    assert again.auc == pytest.approx(fitted.valid.auc, abs=1e-12)


def test_training_stops_after_patience_epochs_without_a_better_auc(planted):
    curve = []
    recipe = TrainConfig(epochs=40, lr=5e-2, batch_size=256, patience=2, min_gain=0)
    fitted = fit(fresh(planted), planted, recipe, device=CPU, seed=0, report=curve.append)
    assert len(curve) == fitted.epoch + 2 < 40


class Scripted(torch.nn.Module):
    """A click model whose predictions on valid are written down: in each epoch those of one column's 0 and 1."""

    auxiliary_labels = ()

    def __init__(self, script):
        super().__init__()
        self.script = script
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.register_buffer("epoch", torch.zeros(1, dtype=torch.int64))

    def embedding_weights(self):
        return []

    def weight_parameters(self):
        return [self.weight]

    def sparse_gradients(self, sparse):
        pass

    def train(self, mode=True):
        self.epoch += mode and not self.training
        return super().train(mode)

    def forward(self, ids):
        if self.training:
            return self.weight.expand(len(ids))
        column, low, high = self.script[int(self.epoch) - 1]
        return torch.logit(low + (high - low) * ids[:, column].float())


@pytest.fixture
def coins():
    """Rows whose label the first column tells in 3 of 4 cases; the second column is as good for half of the rows."""
    rows = 400
    label = np.tile([1.0, 0.0], rows // 2).astype(np.float32)
    told = np.where(np.arange(rows) % 8 < 2, 1 - label, label).astype(np.int32)
    half = np.where(np.arange(rows) % 16 < 8, told, 1).astype(np.int32)
    ids = np.stack([told, half], axis=1)

    class Data:
        task = CLICKS

        def rows(self, split):
            return rows

        def ids(self, split):
            return ids

        def labels(self, split):
            return label

        def weights(self, split):
            return None

        groups = weights
        schema = FeatureSchema(fields=(), label="label")

    return Data()


@pytest.mark.parametrize(("monitor", "kept"), [("valid_auc", 2), ("valid_logloss", 1)])
def test_the_kept_epoch_is_the_best_by_the_objective(coins, monitor, kept):
    """The first epoch is calibrated, the second ranks better and is too sure, the third is worse in both."""
    model = Scripted([(1, 0.3, 0.6), (0, 0.001, 0.999), (1, 0.001, 0.999)])
    recipe = TrainConfig(epochs=3, batch_size=100, patience=3)
    curve = []
    fitted = fit(model.eval(), coins, recipe, device=CPU, seed=0, report=curve.append, monitor=monitor)
    aucs, losses = ([getattr(event.valid, name) for event in curve] for name in ("auc", "logloss"))
    assert (int(np.argmax(aucs)) + 1, int(np.argmin(losses)) + 1) == (2, 1)
    assert (fitted.epoch, int(model.epoch)) == (kept, kept)
    assert (fitted.valid.auc, fitted.valid.logloss) == (aucs[kept - 1], losses[kept - 1])


def test_small_gains_keep_an_epoch_but_do_not_count():
    def follow(monitor, figures, min_gain=0.01):
        plateau, seen = Plateau(metric_of(monitor), min_gain), []
        for epoch, figure in enumerate(figures, 1):
            best = plateau.see(epoch, Metrics(auc=figure, logloss=figure))
            seen.append((best, plateau.idle))
        return plateau, seen

    # Epoch 2 and 3 gain too little to count, but together they do; epoch 4 is the first's equal and is not kept.
    plateau, seen = follow("valid_auc", [0.7, 0.706, 0.712, 0.712, 0.714])
    assert seen == [(True, 0), (True, 1), (True, 0), (False, 1), (True, 2)]
    assert (plateau.epoch, plateau.best.auc) == (5, 0.714)
    plateau, seen = follow("valid_logloss", [0.5, 0.495, 0.485, 0.6, 0.485])
    assert seen == [(True, 0), (True, 1), (True, 0), (False, 1), (False, 2)]
    assert (plateau.epoch, plateau.best.logloss) == (3, 0.485)
    _, seen = follow("valid_auc", [0.7, 0.7, 0.7001], min_gain=0)
    assert seen == [(True, 0), (False, 1), (True, 0)]


def test_training_stops_where_epochs_gain_too_little(coins):
    script = [(0, 0.5 - step, 0.5 + step) for step in (0.1, 0.102, 0.104, 0.106, 0.108)]
    for min_gain, epochs, kept in ((0, 5, 5), (1e-3, 5, 5), (0.02, 3, 3)):
        curve, model = [], Scripted(script).eval()
        recipe = TrainConfig(epochs=5, batch_size=100, patience=2, min_gain=min_gain)
        fitted = fit(model, coins, recipe, device=CPU, seed=0, report=curve.append, monitor="valid_logloss")
        assert (len(curve), fitted.epoch) == (epochs, kept)


def test_every_training_of_a_trial_follows_the_objective(planted, monkeypatch):
    seen = []

    def watch(*args, **options):
        seen.append(options["monitor"])
        return fit(*args, **options)

    monkeypatch.setattr("autoembed.retraining.fit", watch)
    monkeypatch.setattr("autoembed.methods.bilevel.fit", watch)
    trial = config(stages=[{"method": "magnitude", "warm_epochs": 1}], monitor="valid_logloss")
    result, _ = run_trial(trial, planted, lambda values: None)
    retrain(result.architecture, planted, trial.train, CPU, 1, lambda values: None, monitor=result.config.monitor)
    assert seen == ["valid_logloss"] * 4  # warm start, retraining from inherited and from fresh weights, and once more


def test_a_configuration_of_before_the_objective_had_a_say_loads():
    node = config().model_dump(mode="json")
    del node["monitor"], node["train"]["min_gain"]
    assert TrialConfig.model_validate(node) == config()


def test_l2_is_half_the_weight_times_the_whole_tables_squared_norm(planted):
    """One step equals Adam's on the loss with the term written out, for rows that the batch lacks too."""
    ours, theirs = fresh(planted), fresh(planted)
    ids, labels = next(batches(planted, "train", 8, CPU))
    CLICKS.loss(ours(ids), labels).backward()
    Optimiser(ours, ours.parameters(), TrainConfig(lr=1e-2, l2=0.3)).step()
    norm = sum(table.square().sum() for table in theirs.embedding_weights())
    (CLICKS.loss(theirs(ids), labels) + 0.5 * 0.3 * norm).backward()
    torch.optim.Adam(theirs.parameters(), lr=1e-2).step()
    before = fresh(planted)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    for table, start in zip(ours.embedding_weights(), before.embedding_weights(), strict=True):
        assert (table != start).all()


def test_sparse_gradients_move_only_the_rows_of_the_batch(planted):
    model, before = fresh(planted), fresh(planted)
    model.sparse_gradients(True)
    ids, labels = next(batches(planted, "train", 8, CPU))
    CLICKS.loss(model(ids), labels).backward()
    Optimiser(model, model.parameters(), TrainConfig(lr=1e-2, sparse=True)).step()
    moved = sum(
        int((a != b).any(dim=1).sum())
        for a, b in zip(model.embedding_weights(), before.embedding_weights(), strict=True)
    )
    assert 0 < moved <= ids.numel()
    recipe = TrainConfig(epochs=2, lr=1e-2, batch_size=512, sparse=True)
    assert fit(fresh(planted), planted, recipe, device=CPU, seed=0, report=lambda values: None).valid.auc > 0.6
    with pytest.raises(ValueError, match=r"with sparse it must be 0, but got 0\.1"):
        TrainConfig(sparse=True, l2=0.1)


def test_clicks_count_as_often_as_their_weight_says():
    logits, labels = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([1.0, 0.0, 1.0])
    expected = (3 * -torch.log(torch.sigmoid(logits[[0, 2]])).sum() - torch.log(1 - torch.sigmoid(logits[1]))) / 3
    assert CLICKS.loss(logits, labels, 3.0).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_learning_rate_falls_and_the_gradient_is_clipped(planted, monkeypatch):
    rates = []
    step = Adam.step
    monkeypatch.setattr(Adam, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self))[1])
    recipe = TrainConfig(epochs=30, lr=5e-2, batch_size=4096, patience=2, decay=0.1, min_gain=0)
    curve = []
    fit(fresh(planted), planted, recipe, device=CPU, seed=0, report=curve.append)
    aucs = [event.valid.auc for event in curve]
    per_epoch = rates[:: len(rates) // len(curve)]
    expected = [5e-2]
    for number in range(1, len(aucs)):
        worse = aucs[number - 1] <= max(aucs[: number - 1], default=0)  # no gain is too small here
        expected.append(expected[-1] * (0.1 if worse else 1))
    assert per_epoch == pytest.approx(expected)
    model = fresh(planted)
    ids, labels = next(batches(planted, "train", 64, CPU))
    (1e4 * CLICKS.loss(model(ids), labels)).backward()
    optimiser = Optimiser(model, model.parameters(), TrainConfig(clip=0.5))
    seen = []
    monkeypatch.setattr(optimiser, "parts", [])
    optimiser.step()
    seen = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert seen.item() == pytest.approx(0.5, rel=1e-3)


def test_the_same_seed_gives_the_same_weights(planted):
    recipe = TrainConfig(epochs=2, lr=1e-2, batch_size=512)
    models = [fresh(planted) for _ in range(2)]
    for model in models:
        fit(model, planted, recipe, device=CPU, seed=7, report=lambda values: None)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_not_finite_ends_the_trial_with_its_reason(planted):
    with pytest.raises(TrialError, match=r"loss must be finite, but got \S+ in epoch 1 with lr=.*lower train.lr"):
        run_trial(config(train={"epochs": 1, "lr": 1e30, "batch_size": 512}), planted, lambda values: None)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_memory_that_runs_out_is_named(planted, monkeypatch, error):
    held = []

    def fail(net, *args, **kwargs):
        held.append(weakref.ref(net.weight))
        raise error

    monkeypatch.setattr("autoembed.trial.search", fail)
    with pytest.raises(TrialError, match=r"memory ran out .*: lower embedding.dim=4, train.batch_size=512") as told:
        run_trial(config(), planted, lambda values: None)
    assert held[0]() is None  # nor is what it had allocated held for as long as the error is
    assert told.value.__context__ is None


def test_a_trial_never_reads_the_test_split(planted, monkeypatch):
    ids, labels = type(planted).ids, type(planted).labels

    def refuse(read):
        def guarded(self, split):
            assert split != "test", "a trial read the test split"
            return read(self, split)

        return guarded

    monkeypatch.setattr(type(planted), "ids", refuse(ids))
    monkeypatch.setattr(type(planted), "labels", refuse(labels))
    for method in ({"method": "uniform"}, {"method": "dnis", "warm_epochs": 1, "epochs": 1}):
        run_trial(config(stages=[method]), planted, lambda values: None)


def test_only_retraining_reports_the_objective(planted):
    seen = []
    stage = {"method": "dnis", "warm_epochs": 1, "epochs": 1, "precisions": [32], "retrain": "inherit", "guard": "none"}
    run_trial(config(stages=[stage]), planted, seen.append)
    assert [event.phase for event in seen] == ["warm", "search", "retrain", "retrain"]
    assert ["valid_auc" in values_of(event) for event in seen] == [False, False, True, True]


def test_metrics_need_both_classes():
    with pytest.raises(DataError, match="both classes, but all 3 labels are 1"):
        evaluate(np.ones(3), np.array([0.1, 0.5, 0.9]))


def test_devices_are_checked():
    with pytest.raises(SpaceError, match="device must be auto, cpu, cuda"):
        pick_device("gpu please")
    if not torch.cuda.is_available():
        with pytest.raises(SpaceError, match="'cuda' is not available here"):
            pick_device("cuda")


def test_an_annealed_rate_falls_evenly_to_nothing(planted, monkeypatch):
    rates = []

    class Told(Optimiser):
        def step(self):
            rates.append(self.parts[0].param_groups[0]["lr"])
            super().step()

    monkeypatch.setattr("autoembed.training.Optimiser", Told)
    recipe = TrainConfig(epochs=2, lr=1e-2, batch_size=4096, anneal=True)
    fit(fresh(planted), planted, recipe, device=CPU, seed=0, report=lambda values: None)
    assert len(rates) > 4
    assert rates == pytest.approx(np.linspace(1e-2, 0, len(rates) + 1)[:-1])


def test_a_sample_of_the_rows_without_a_click_gives_the_probabilities_of_all(tmp_path):
    from autoembed.batches import sampled
    from autoembed.data.dataset import build_dataset
    from autoembed.data.spec import DataSpec

    planted = {
        "rows": 20_000,
        "seed": 2,
        "marginal": [20, 40],
        "xor": [],
        "low_rank": [],
        "noise": [],
        "intercept": -3.5,
    }
    data = build_dataset(DataSpec.model_validate({"planted": planted}), None, tmp_path)
    labels = data.labels("train")
    rows = np.arange(1000, len(labels))
    some = sampled(data, rows, 0.2, [1])
    assert set(np.flatnonzero(labels[1000:] == 1) + 1000) <= set(some)
    assert (labels[some] == 0).sum() == pytest.approx(0.2 * (labels[rows] == 0).sum(), rel=0.1)
    assert sampled(data, 500, 1.0, [1]) == 500
    found = {}
    for share in (1.0, 0.2):
        recipe = {"epochs": 12, "lr": 2e-2, "batch_size": 256, "negative_sampling": share}
        stage = {"method": "magnitude", "warm_epochs": 1}
        config = {"arm": "a", "stages": [stage], "limit": {"width": 2}, "train": recipe, "embedding": {"dim": 4}}
        config = check({**config, "backbone": {"name": "fm"}})
        _, model = run_trial(config, data, lambda event: None)
        found[share] = predict(model, data, "test", torch.device("cpu"))
    base = data.labels("test").mean()
    assert found[0.2].mean() == pytest.approx(base, rel=0.25)
    assert found[0.2].mean() < 2 * found[1.0].mean()  # uncorrected, it would be four times as large
    aucs = [evaluate(data.labels("test"), one).auc for one in found.values()]
    assert aucs[1] > aucs[0] - 0.03
