import copy

import numpy as np
import polars as pl
import pytest
import torch

from autoembed.data.dataset import build_dataset
from autoembed.data.readers import DataSpec
from autoembed.errors import StudyError
from autoembed.knockout import field_scores, mean_embeddings
from autoembed.metrics import evaluate
from autoembed.training import predict
from autoembed.trial import check, run_trial

CPU = torch.device("cpu")


def train(dataset, method="uniform", **changes):
    node = {
        "arm": method,
        "stages": [{"method": method}],
        "embedding": {"dim": 8},
        "backbone": {"name": "deepfm", "hidden": [32]},
        "train": {"epochs": 2, "lr": 5e-3, "batch_size": 1024},
    }
    return run_trial(check(node | changes), dataset, lambda values: None)[1]


@pytest.fixture(scope="module")
def model(planted):
    """A model that knows every planted field, and has overfitted the noise of many values."""
    return train(planted, train={"epochs": 8, "lr": 5e-3, "batch_size": 1024, "l2": 1e-4})


@pytest.fixture(scope="module")
def scores(model, planted):
    return field_scores(model, planted)


def of(scores, names):
    return scores.filter(pl.col("field").is_in(names))


def test_planted_fields_stand_above_noise(scores, planted):
    truth = planted.truth
    effects = [*truth["marginal"], *(name for pair in truth["xor"] + truth["low_rank"] for name in pair)]
    assert set(scores["field"][: len(effects)]) == set(effects)
    for score, error in (("logloss_rise", "logloss_se"), ("auc_fall", "auc_se")):
        matters = pl.col(score) > 2 * pl.col(error)
        assert of(scores, effects).select(matters.all()).item()
        assert not of(scores, truth["noise"]).select(matters.any()).item()
        assert of(scores, effects)[score].min() > 2 * of(scores, truth["noise"])[score].max()


def test_the_saliency_of_an_effect_is_above_that_of_noise_of_as_few_values(scores, planted):
    few = [name for name in planted.truth["noise"] if planted.schema.cardinalities[planted.schema.index(name)] < 60]
    assert len(few) == 2
    effects = of(scores, [name for name in scores["field"] if not name.startswith("noise")])
    assert effects["saliency"].min() > 1.1 * of(scores, few)["saliency"].max()


def test_the_knockout_is_what_a_table_without_the_field_does(scores, model, planted):
    before = evaluate(planted.labels("valid"), predict(model, planted, "valid", CPU))
    ends = np.cumsum(planted.schema.cardinalities)
    for name in ("xor_0_a", "marginal_2"):
        place = planted.schema.index(name)
        other = copy.deepcopy(model)
        rows = slice(int(ends[place]) - planted.schema.cardinalities[place], int(ends[place]))
        with torch.no_grad():
            table = other.embedding.tables[0].weight
            table[rows] = table[rows][torch.from_numpy(planted.ids("train")[:, place]).long()].mean(0)
        after = evaluate(planted.labels("valid"), predict(other, planted, "valid", CPU))
        (row,) = of(scores, [name]).to_dicts()
        assert row["logloss_rise"] == pytest.approx(after.logloss - before.logloss, abs=1e-5)
        assert row["auc_fall"] == pytest.approx(before.auc - after.auc, abs=1e-5)


def test_the_errors_are_those_of_drawing_the_rows_again(scores, model, planted):
    labels, (place, name) = planted.labels("valid"), (planted.schema.index("marginal_0"), "marginal_0")
    means = mean_embeddings(model, planted, CPU)
    before = predict(model, planted, "valid", CPU)

    def knock(module, ids, e):
        return e.index_copy(1, torch.tensor([place]), means[place].expand(len(e), 1, -1))

    hook = model.embedding.register_forward_hook(knock)
    after = predict(model, planted, "valid", CPU)
    hook.remove()
    rng, drawn = np.random.default_rng(0), []
    for _ in range(400):
        rows = rng.integers(0, len(labels), len(labels))
        one, other = evaluate(labels[rows], before[rows]), evaluate(labels[rows], after[rows])
        drawn.append((other.logloss - one.logloss, one.auc - other.auc))
    (row,) = of(scores, [name]).to_dicts()
    assert row["logloss_se"] == pytest.approx(np.std(drawn, axis=0)[0], rel=0.12)
    assert row["auc_se"] == pytest.approx(np.std(drawn, axis=0)[1], rel=0.12)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    spec = {"planted": {"rows": 600, "marginal": [4, 60], "xor": [], "low_rank": [], "noise": [5]}}
    return build_dataset(DataSpec.model_validate(spec), None, tmp_path_factory.mktemp("tiny"))


def test_the_saliency_is_the_mean_gradient_of_single_rows(tiny):
    model = train(tiny).eval()
    ids, labels = (torch.from_numpy(part) for part in (tiny.ids("valid"), tiny.labels("valid")))
    starts = np.cumsum([0, *tiny.schema.cardinalities[:-1]])
    norms = np.zeros((len(ids), len(starts)))
    for number in range(len(ids)):
        logit = model(ids[number : number + 1])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, labels[number : number + 1])
        (gradient,) = torch.autograd.grad(loss, [model.embedding.tables[0].weight])
        norms[number] = gradient[starts + ids[number].numpy()].norm(dim=1)
    scores = field_scores(model, tiny).sort("field")
    assert scores["field"].to_list() == sorted(tiny.schema.names)
    order = [tiny.schema.index(name) for name in scores["field"]]
    assert scores["saliency"].to_numpy() == pytest.approx(norms.mean(axis=0)[order], rel=1e-4)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("uniform", {}),
        ("magnitude", {"limit": {"width": 2}}),
        ("unified", {"limit": {"width": 2}}),
        ("quotient_remainder", {"stages": [{"method": "quotient_remainder", "split_above": 9}], "limit": {"width": 4}}),
        ("uniform", {"backbone": {"name": "lr"}, "embedding": {"dim": 1}}),
    ],
)
def test_every_way_to_store_embeddings_has_its_means_and_is_left_as_it_was(tiny, method, changes):
    model = train(tiny, method, **changes)
    names = [field.name for field in model.architecture.fields]
    ids = tiny.ids("train")[:, [tiny.schema.index(name) for name in names]]
    with torch.no_grad():
        expected = model.embedding(torch.from_numpy(ids)).mean(0)
    assert torch.allclose(mean_embeddings(model, tiny, CPU), expected, atol=1e-6)
    before, weights = predict(model, tiny, "valid", CPU), copy.deepcopy(model.state_dict())
    scores = field_scores(model, tiny, "train")
    assert set(scores["field"]) == set(names)
    assert np.isfinite(scores.drop("field").to_numpy()).all()
    assert np.array_equal(predict(model, tiny, "valid", CPU), before)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_a_field_that_no_dim_is_left_of_says_nothing(tiny):
    model = train(tiny)
    plan = model.architecture.fields[0]
    empty = plan.model_copy(update={"blocks": tuple(b.model_copy(update={"dims": ()}) for b in plan.blocks)})
    architecture = model.architecture.model_copy(update={"fields": (empty, *model.architecture.fields[1:])})
    other = type(model)(tiny.schema, architecture)
    (row,) = of(field_scores(other, tiny), [plan.name]).to_dicts()
    assert [row[name] for name in row if name != "field"] == [0.0] * 5


def test_pairs_are_left_as_they_are(planted_pairs):
    pairs = {"method": "all_memorize"}
    model = train(planted_pairs, stages=[pairs])
    scores = field_scores(model, planted_pairs)
    assert model.pairs is not None
    assert set(scores["field"]) == {field.name for field in model.architecture.fields}


def test_progress_is_told(tiny):
    told = []
    field_scores(train(tiny), tiny, progress=lambda *step: told.append(step))
    assert told == [("knockout", 1, 3), ("knockout", 2, 3), ("knockout", 3, 3)]


def test_a_model_for_each_cluster_is_refused(tiny):
    model = train(tiny, "random_clusters")
    with pytest.raises(StudyError, match="field scores are of one model, but this one has 2, one for each cluster"):
        field_scores(model, tiny)
