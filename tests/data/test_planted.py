import hashlib
import json
from itertools import chain

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from autoembed.data.planted import PlantedSpec, planted, write_planted
from autoembed.metrics import evaluate


def spread(frame, columns):
    """The standard deviation of the mean logit over the values of these columns, weighted by rows."""
    means = frame.group_by(columns).agg(pl.col("logit").mean(), pl.len())
    weight = means["len"].to_numpy() / frame.height
    centred = means["logit"].to_numpy() - frame["logit"].mean()
    return float(np.sqrt(weight @ centred**2))


def test_one_seed_gives_one_table():
    spec = PlantedSpec(rows=500, seed=5)
    first, second = planted(spec), planted(spec)
    assert first[0].equals(second[0])
    assert first[1] == second[1]
    assert not first[0].equals(planted(PlantedSpec(rows=500, seed=6))[0])


@pytest.mark.parametrize(
    ("spec", "digest"),
    [
        (PlantedSpec(rows=2000, seed=7), "fa28ffa96777cb5c"),
        (PlantedSpec(rows=2000, seed=7, memorize=[12], populations=True, intercept=-1.0), "1a99f84144e14054"),
    ],
)
def test_seeds_draw_the_tables_that_they_drew_before_there_were_tails(spec, digest):
    table = planted(spec)[0].drop("logit")
    assert hashlib.sha256(table.write_csv().encode()).hexdigest()[:16] == digest
    others = planted(spec.model_copy(update={"tail": (200,)}))[0].drop("label", "logit", "tail_0", "tail_0_context")
    assert others.equals(table.drop("label"))


def test_truth_names_every_column_once():
    spec = PlantedSpec(rows=500, xor=[4, 6], low_rank=[5], populations=True, tail=[30, 40])
    frame, truth = planted(spec)
    populations = truth["populations"]
    named = [
        *truth["marginal"], *truth["noise"], *chain(*truth["xor"], *truth["low_rank"], *truth["tail"]),
        *populations["reveals"], *populations["A"], *populations["B"],
    ]  # fmt: skip
    assert sorted(named) == sorted(set(frame.columns) - {"label", "logit"})
    json.dumps(truth)


def test_effects_are_where_truth_says_and_have_their_size():
    spec = PlantedSpec(rows=60_000, marginal=[8], xor=[10], low_rank=[20], noise=[8], marginal_effect=0.5)
    frame, _ = planted(spec)
    assert spread(frame, "marginal_0") == pytest.approx(0.5, abs=0.05)
    assert spread(frame, ["xor_0_a", "xor_0_b"]) == pytest.approx(1.0, abs=0.05)
    assert spread(frame, ["low_rank_0_a", "low_rank_0_b"]) == pytest.approx(1.0, abs=0.05)
    for alone in ("xor_0_a", "xor_0_b", "low_rank_0_a", "low_rank_0_b", "noise_0"):
        assert spread(frame, alone) < 0.05, alone


def test_a_zipf_xor_has_no_effect_of_one_column():
    frame, _ = planted(PlantedSpec(rows=60_000, marginal=[], xor=[60], low_rank=[], noise=[]))
    biggest = frame["xor_0_a"].value_counts(sort=True)["xor_0_a"][0]
    rows = frame.filter(pl.col("xor_0_a") == biggest)
    assert rows.height > 5_000
    assert rows["label"].mean() == pytest.approx(0.5, abs=0.02)
    assert spread(frame, ["xor_0_a", "xor_0_b"]) == pytest.approx(1.0, abs=0.02)


def test_each_population_has_its_own_fields():
    spec = PlantedSpec(rows=40_000, marginal=[], xor=[], low_rank=[], noise=[], populations=True)
    frame, truth = planted(spec)
    populations = truth["populations"]
    assert not set(populations["values_A"]) & set(populations["values_B"])
    of_a = frame.filter(pl.col("population").is_in(populations["values_A"]))
    of_b = frame.filter(pl.col("population").is_in(populations["values_B"]))
    assert of_a.height + of_b.height == frame.height
    assert min(of_a.height, of_b.height) > 0.4 * frame.height
    for field in populations["A"]:
        assert spread(of_a, field) > 0.5 > 0.1 > spread(of_b, field)
    for field in populations["B"]:
        assert spread(of_b, field) > 0.5 > 0.1 > spread(of_a, field)


def test_labels_follow_the_logit():
    frame, _ = planted(PlantedSpec(rows=40_000, intercept=-1.0))
    cut = ((pl.col("logit").rank("ordinal") - 1) * 5 // pl.len()).cast(pl.String)
    probability = 1 / (1 + (-pl.col("logit")).exp())
    groups = frame.group_by(cut.alias("bin")).agg(pl.col("label").mean(), probability.mean().alias("p"))
    assert (groups["label"] - groups["p"]).abs().max() < 0.025


def test_large_columns_are_zipf_and_small_ones_even():
    frame, _ = planted(PlantedSpec(rows=20_000, noise=[40, 1000]))
    even = frame["noise_0"].value_counts()["count"]
    assert even.max() < 2 * even.min()
    assert frame["noise_1"].value_counts()["count"].max() > 0.1 * frame.height


TAIL = PlantedSpec(marginal=[], xor=[], low_rank=[], noise=[], tail=[2500])


def without_tail(spec):
    """The same rows, but for what the tail adds to the logit."""
    return planted(spec.model_copy(update={"tail_effect": 0.0}))[0]["logit"].to_numpy()


def test_most_values_of_a_tail_are_rare_and_few_take_half_of_the_rows():
    rows = planted(TAIL)[0].head(48_000)["tail_0"].value_counts(sort=True)["count"]
    assert ((rows >= 5) & (rows <= 50)).sum() > 0.9 * 2500
    assert 0.45 < rows.head(250).sum() / rows.sum() < 0.55
    assert rows[0] > 2000


def test_a_tail_has_the_effect_of_its_values_and_that_of_its_pair():
    frame, _ = planted(TAIL)
    assert spread(frame, "tail_0") == pytest.approx(1.0, abs=0.1)
    assert spread(frame, "tail_0_context") < 0.05
    frequent = frame.filter(pl.len().over("tail_0") > 500)
    centred = frequent.with_columns(pl.col("logit") - pl.col("logit").mean().over("tail_0"))
    assert spread(centred, ["tail_0", "tail_0_context"]) > 0.7
    assert spread(centred, "tail_0") < 1e-9


def test_the_rare_values_of_a_tail_matter_and_one_number_each_is_not_enough():
    spec = TAIL.model_copy(update={"marginal": (10,)})
    frame, _ = planted(spec)
    rest = without_tail(spec)
    frame = frame.with_columns(pl.Series("added", frame["logit"].to_numpy() - rest))
    whole = frame["added"].to_numpy()
    head = frame.select(pl.when(pl.len().over("tail_0") > 50).then("added").otherwise(0.0)).to_series().to_numpy()
    mean = frame.select(pl.col("added").mean().over("tail_0")).to_series().to_numpy()
    auc = [evaluate(frame["label"].to_numpy(), 1 / (1 + np.exp(-(rest + part)))).auc for part in (head, mean, whole)]
    assert auc[2] > auc[0] + 0.08
    assert auc[2] > auc[1] + 0.06


def test_written_tables_read_back(tmp_path, build):
    spec = PlantedSpec(rows=2000, seed=2)
    out = write_planted(spec, tmp_path / "out")
    frame, truth = planted(spec)
    assert json.loads((out / "truth.json").read_text()) == truth
    assert np.load(out / "logit.npy", allow_pickle=False).tolist() == frame["logit"].to_list()
    assert build(out).fingerprint == build(planted=spec.model_dump()).fingerprint


def test_a_wrong_specification_names_the_rule():
    with pytest.raises(ValidationError, match=r"unknown key 'colour': must be one of .*marginal.*xor"):
        PlantedSpec(colour=3)
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        PlantedSpec(marginal=[1])
