"""Teachers: what they score, what a student learns from them, and that nothing of them is left."""

import os
import statistics
import tempfile

import numpy as np
import pytest
import torch

from autoembed import distill
from autoembed.bundle import write_bundle
from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.errors import BundleError, SpaceError
from autoembed.events import EpochEnd, values_of
from autoembed.nn.model import CTRModel
from autoembed.retraining import retrain
from autoembed.space import SearchSpace
from autoembed.training import Teacher, TrainConfig, batches, fit, predict
from autoembed.trial import check, prepared_teacher, root_architecture, run_trial, teacher_of

CPU = torch.device("cpu")
TRAIN = {"epochs": 2, "lr": 3e-3, "batch_size": 512}
DNIS = {"method": "dnis", "warm_epochs": 1, "epochs": 1}


def config(teacher=None, weight=0.5, stage=None, **changes):
    told = {} if teacher is None else {"distill": {"teacher": teacher, "weight": weight}}
    node = {
        "arm": "x",
        "stages": [stage or {"method": "uniform"}],
        "embedding": {"dim": 4, "blocks": 2},
        "backbone": {"name": "deepfm", "hidden": [8], "dropout": 0.0},
        "train": TRAIN | told,
        "limit": {"width": 2},
    }
    return check(node | changes)


def ignore(values):
    pass


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def logits(model, dataset):
    """Logits on train by another way than the one that is tested."""
    p = predict(model, dataset, "train", CPU).astype(np.float64)
    return np.log(p / (1 - p))


@pytest.mark.parametrize("stage", [{"method": "uniform"}, DNIS], ids=lambda stage: stage["method"])
def test_a_teacher_without_weight_changes_nothing(planted, stage):
    plain, model = run_trial(config(stage=stage), planted, ignore)
    taught, student = run_trial(config({"ensemble": 2}, 0, stage), planted, ignore)
    assert plain.valid == taught.valid
    assert torch.equal(weights(model), weights(student))


def test_a_batch_carries_the_teachers_logits_of_its_rows(planted):
    rows = planted.rows("train")
    order = np.random.default_rng(0).permutation(rows)
    column = np.arange(rows, dtype=np.float32)
    told = torch.cat([more for _, _, more in batches(planted, "train", 1000, CPU, rows=order, columns=[column])])
    assert np.array_equal(told.numpy(), order)
    told = torch.cat([more for _, _, more in batches(planted, "train", 1000, CPU, columns=[column])])
    assert np.array_equal(told.numpy(), column)


def test_with_all_the_weight_a_student_learns_its_teacher_and_no_label(planted):
    ids = np.asarray(planted.ids("train"))
    truth = np.where(ids[:, planted.schema.index("marginal_1")] % 2, 2, -2).astype(np.float32)
    torch.manual_seed(0)
    model = CTRModel(planted.schema, root_architecture(config(), planted))
    recipe = TrainConfig(epochs=1, lr=1e-2, batch_size=64, positive_weight=9)
    teacher = Teacher(logits=truth, weight=1)
    fit(model, planted, recipe, device=CPU, seed=0, report=ignore, teacher=teacher)
    assert np.abs(logits(model, planted) - truth).mean() < 0.2


def test_a_loss_is_the_weighted_mean_of_both(planted, monkeypatch):
    told = {}
    teacher = Teacher(logits=np.linspace(-3, 3, planted.rows("train"), dtype=np.float32), weight=0.3)
    for name, given in (("labels", None), ("teacher", Teacher(logits=teacher.logits, weight=1)), ("both", teacher)):
        torch.manual_seed(0)
        model = CTRModel(planted.schema, root_architecture(config(), planted))
        recipe = TrainConfig(epochs=1, lr=1e-12, batch_size=512)
        seen = []
        fit(model, planted, recipe, device=CPU, seed=0, report=seen.append, teacher=given)
        told[name] = seen[0].loss
    assert told["both"] == pytest.approx(0.7 * told["labels"] + 0.3 * told["teacher"], rel=1e-6)


def test_an_ensemble_is_the_mean_of_models_trained_with_the_same_recipe(planted):
    trial = config({"ensemble": 2}, seed=3)
    reports = []
    teacher = prepared_teacher(trial, planted, CPU, reports.append)
    plain = config()
    root = root_architecture(plain, planted)
    members = [retrain(root, planted, plain.train, CPU, 10_006 + number, ignore)[0] for number in range(2)]
    expected = np.mean([logits(member, planted) for member in members], axis=0)
    assert np.abs(teacher.logits - expected).max() < 1e-4
    assert [(event.phase, event.epoch) for event in reports] == [("teacher", epoch) for epoch in (1, 2, 3, 4)]
    assert all("valid_auc" not in values_of(event) and event.valid.auc > 0.5 for event in reports)


def test_a_search_teaches_as_it_was_before_anything_was_cut(planted, monkeypatch):
    made = []
    searched = distill.searched

    def watch(train, net, dataset, device):
        teacher = searched(train, net, dataset, device)
        made.append((teacher, logits(net, dataset)))
        return teacher

    monkeypatch.setattr(distill, "searched", watch)
    trial = config("search", stage=DNIS)
    run_trial(trial, planted, ignore)
    ((teacher, expected),) = made
    assert np.abs(teacher.logits - expected).max() < 1e-4
    # Retraining over seeds searches once more, and comes to the same teacher.
    assert np.array_equal(teacher_of(trial, planted, CPU).logits, teacher.logits)
    with pytest.raises(SpaceError, match=r"train\.distill\.teacher: search needs .* but uniform trains none: name"):
        config("search")


def written(path, trial, dataset):
    result, model = run_trial(trial, dataset, ignore)
    spec = DataSpec.model_validate({"label": "label"})
    write_bundle(
        path,
        schema=dataset.schema,
        vocabulary=dataset.vocabulary,
        architecture=result.architecture,
        model=model,
        data=spec.model_dump(mode="json", exclude={"path", "planted", "split", "files", "crosses"}),
        metrics={},
        provenance={},
    )
    return model


def test_a_bundle_teaches_any_other_backbone(planted, tmp_path):
    model = written(tmp_path / "b", config(backbone={"name": "dcn", "hidden": [8]}), planted)
    trial = config(str(tmp_path / "b"))
    teacher = prepared_teacher(trial, planted, CPU, ignore)
    assert np.abs(teacher.logits - logits(model, planted)).max() < 1e-4
    result, _ = run_trial(trial, planted, ignore)
    assert result.valid.auc > 0.5
    # A study may have its columns in another order, and more of them.
    order = planted.schema.names[::-1]
    turned = build_dataset(DataSpec.model_validate(SPEC), None, tmp_path / "cache").keep(order, tmp_path / "cache")
    assert np.abs(prepared_teacher(trial, turned, CPU, ignore).logits - teacher.logits).max() < 1e-5


SPEC = {
    "planted": {
        "rows": 30000,
        "seed": 3,
        "marginal": [4, 30, 300],
        "xor": [6],
        "low_rank": [20],
        "noise": [5, 50, 500, 2000],
    },
    "split": {"by": "random", "valid": 0.2, "test": 0.2},
}


def test_a_bundle_that_does_not_fit_is_refused_in_one_line(planted, tmp_path):
    written(tmp_path / "b", config(), planted)
    trial = config(str(tmp_path / "b"))
    fewer = planted.keep(["marginal_0", "noise_0"], tmp_path / "cache")
    with pytest.raises(BundleError, match=r"^the teacher .*b reads the column 'marginal_1', which the study's data do"):
        run_trial(trial, fewer, ignore)
    spec = DataSpec.model_validate(SPEC | {"min_count": 40})
    other = build_dataset(spec, None, tmp_path / "cache")
    with pytest.raises(BundleError, match=r"^the teacher .*b has other ids for the values of 'marginal_2' than the"):
        run_trial(trial, other, ignore)
    with pytest.raises(BundleError, match="not a bundle"):
        run_trial(config(str(tmp_path / "none")), planted, ignore)


def test_nothing_is_left_of_the_file_of_logits(planted, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept, link = [], os.path.join("/proc/self/fd", "{}")

    def mapped():
        with open("/proc/self/maps") as file:
            return [line for line in file if str(tmp_path) in line]

    def report(event):
        if isinstance(event, EpochEnd) and event.phase == "retrain":
            kept.append(len(mapped()))
            assert not list(tmp_path.iterdir())

    run_trial(config({"ensemble": 1}), planted, report)
    assert kept == [1, 1]
    assert not mapped()
    assert not list(tmp_path.iterdir())
    assert not [fd for fd in os.listdir("/proc/self/fd") if str(tmp_path) in os.path.realpath(link.format(fd))]


def test_a_student_of_an_ensemble_does_better_where_rows_are_few(tmp_path):
    """Mean logloss on valid over three seeds, same architecture and recipe."""
    planted = {"rows": 8000, "marginal": [10, 20, 50, 100], "xor": [], "low_rank": [20], "noise": []}
    planted |= {"marginal_effect": 0.8, "low_rank_effect": 1.5}
    losses = {None: [], 3: []}
    for seed in range(3):
        spec = {"planted": {**planted, "seed": seed}, "split": {"by": "random", "valid": 0.3, "test": 0.2}}
        dataset = build_dataset(DataSpec.model_validate(spec), None, tmp_path)
        for members, found in losses.items():
            told = {"distill": {"teacher": {"ensemble": members}}} if members else {}
            trial = config(
                embedding={"dim": 8, "blocks": 4},
                backbone={"name": "deepfm", "hidden": [32], "dropout": 0.0},
                train={"epochs": 25, "lr": 5e-3, "l2": 1e-2, "batch_size": 256, **told},
                limit={"width": 3},
                seed=seed,
                monitor="valid_logloss",
            )
            found.append(run_trial(trial, dataset, ignore)[0].valid.logloss)
    assert statistics.mean(losses[3]) < statistics.mean(losses[None]) - 0.003


def test_paths_of_teachers_are_absolute_since_trials_run_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(
        "data: {path: x.csv, label: y}\n"
        "stages: [{method: dnis}]\n"
        "train: {distill: {teacher: {choice: [best, search, {ensemble: 2}]}, weight: {uniform: [0.2, 0.8]}}}\n"
        "variants: {a: {train: {distill: {teacher: runs/best}}}}\n"
        "budget: {width: 2}\n"
    )
    space = SearchSpace.read(tmp_path / "s.yaml")
    assert space.template("dnis@a")["train"]["distill"]["teacher"] == str(tmp_path / "runs" / "best")
    (tmp_path / "s.yaml").write_text((tmp_path / "s.yaml").read_text().replace("variants", "#"))
    space = SearchSpace.read(tmp_path / "s.yaml")
    teachers = space.ranges("dnis")["train.distill.teacher"].values
    assert teachers == (str(tmp_path / "best"), "search", {"ensemble": 2})
    trial = space.config("dnis", {"train.distill.teacher": {"ensemble": 2}, "train.distill.weight": 0.3})
    assert trial.train.distill.teacher.ensemble == 2
