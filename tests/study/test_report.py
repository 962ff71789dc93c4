"""A study's page: what it says, and that it is one sound HTML file whatever columns are called."""

import dataclasses
import re
from html.parser import HTMLParser

import polars as pl
import pytest
from mlflow import MlflowClient

from autoembed.errors import StudyError
from autoembed.plans import PairPlan
from autoembed.ranking.quality import Finding
from autoembed.space import SearchSpace
from autoembed.study.results.importance import importances
from autoembed.study.results.leaderboard import Leaderboard
from autoembed.study.run_dir import RunDir
from autoembed.study.show.study_page.charts import Axis, Mark, curves, scatter
from autoembed.study.show.study_page.facts import gather
from autoembed.study.show.study_page.markup import Html, tag
from autoembed.study.show.study_page.verdict import holm, verdict
from autoembed.study.show.study_page.write import render

EVIL = '<script src="https://evil.example/x.js">alert(1)</script>\u202e"onload=alert(2) x="'


LINKS = {"href", "src", "srcset", "xlink:href", "action", "formaction", "data", "poster", "background"}


class Strict(HTMLParser):
    """Holds a page to what XML would ask of it: each element closed where it was opened, each attribute once."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.ids, self.links, self.styles, self.text = [], [], [], [], [], []

    def handle_starttag(self, name, given):
        names = [one for one, _ in given]
        assert len(names) == len(set(names)), (name, given)
        assert not any(one.startswith("on") for one in names), given
        self.tags.append(name)
        self.ids += [value for one, value in given if one == "id"]
        self.links += [value for one, value in given if one in LINKS]
        self.styles += [value for one, value in given if one in ("style", "d", "transform", "class")]
        if name not in ("meta", "br"):
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, text):
        (self.styles if self.open[-1:] == ["style"] else self.text).append(text)


def read(page):
    found = Strict()
    found.feed(page)
    found.close()
    assert found.open == []
    assert not {"script", "iframe", "link", "img", "object", "base"} & set(found.tags)
    assert len(found.ids) == len(set(found.ids))
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links), found.links
    assert not re.search(r"//|url\(|@import|expression", " ".join(found.styles)), "something from outside"
    return found


@pytest.fixture(scope="module")
def facts(finished):
    run, _ = finished
    return gather(run, SearchSpace.read(run.space))


def test_a_study_ends_with_its_page_which_mlflow_has_too(finished, cli):
    run, board = finished
    path = run.path / "report.html"
    page = path.read_text()
    found = read(page)
    assert len(page) < 200_000
    text = " ".join(found.text)
    for words in (board.winner, "is best by valid AUC", "95 % interval", "uniform 32-bit rows", "Quality and bytes"):
        assert words in text
    facts = run.read_json("mlflow.json")
    client = MlflowClient(tracking_uri=facts["tracking_uri"])
    assert "report.html" in {one.path for one in client.list_artifacts(facts["parent"])}
    assert str(path) in cli("show", run.path)[1]
    versions = run.read_json("study.json")["versions"]
    assert {"python", "torch", "ray", "optuna"} <= set(versions)
    assert f"torch {versions['torch']}" in text


def test_the_command_measures_columns_if_asked(cli, finished, tmp_path):
    run, _ = finished
    status, out, _ = cli("report", run.path, "--explain", "--out", tmp_path / "deep" / "page.html")
    assert status == 0
    assert str(tmp_path / "deep" / "page.html") in out
    text = " ".join(read((tmp_path / "deep" / "page.html").read_text()).text)
    assert "logloss rise without it" in text
    assert "± 0." in text
    assert "logloss rise without it" not in " ".join(read((run.path / "report.html").read_text()).text)
    assert cli("report", run.path, "--out", tmp_path / "page.pdf")[0] == 2
    assert "is not a run folder" in cli("report", tmp_path / "none")[2]


def test_names_from_data_are_text_and_nothing_else(facts):
    table = facts.ranking.table.with_columns(feature=pl.format("{}{}", pl.lit(EVIL), "feature"))
    pairs = pl.DataFrame({"a": [EVIL], "b": ["&amp;"], "synergy": [0.1], "synergy_z": [9.0], "cells": [4]})
    finding = Finding(severity="warning", rule="id-like", column=EVIL, value=0.5, advice=EVIL)
    ranking = dataclasses.replace(facts.ranking, table=table, pairs=pairs, findings=(finding,))
    architecture = facts.best.architecture
    fields = tuple(one.model_copy(update={"name": EVIL + one.name}) for one in architecture.fields)
    pair = PairPlan(a=EVIL, b="&amp;", name="p", cardinalities=(3, 3), crossed=4, choice="naive")
    changed = architecture.model_copy(update={"fields": fields, "pairs": (pair,)})
    best = dataclasses.replace(facts.best, result=facts.best.result.model_copy(update={"architecture": changed}))
    explained = facts.explained.with_columns(field=pl.lit(EVIL))
    data = {**facts.data, "source": EVIL}
    page = render(dataclasses.replace(facts, ranking=ranking, best=best, explained=explained, data=data))
    found = read(page)
    assert "<script" not in page
    assert "\u202e" not in page
    text = "".join(found.text)
    assert text.count("alert(1)") > 10
    assert "&amp;" in text  # the column's own name, shown as it is
    assert "1 pairs: 1 naive" in text


def test_a_page_of_many_trials_and_columns_stays_small(facts):
    trials = [dataclasses.replace(one, id=f"{one.arm}-{n}") for n in range(1000) for one in facts.trials]
    ended = [
        dataclasses.replace(facts.ended[0], id=f"a-{n}", state="failed", reason=f"{n} {EVIL * 20}") for n in range(4000)
    ]
    wide = pl.concat([facts.ranking.table] * 200).with_columns(feature=pl.lit("<" * 300))
    explained = pl.concat([facts.explained] * 200).with_columns(field=pl.lit("<" * 300))
    ranking = dataclasses.replace(facts.ranking, table=wide)
    page = render(dataclasses.replace(facts, trials=trials, ended=ended, ranking=ranking, explained=explained))
    read(page)
    assert len(page) < 3_000_000


def test_markup_escapes_all_but_markup():
    assert tag("td", "<b>", Html("<br>"), None, title='"') == '<td title="&quot;">&lt;b&gt;<br></td>'
    assert tag("p", "a\x00b\nc") == "<p>a\\x00b\nc</p>"


@pytest.mark.parametrize(
    "values", [[(1, 0.5)], [(1, 0.5), (1, 0.5)], [(1e3, 0.7), (1e9, 0.71)], [(3e5, 0.5), (3.1e5, 0.9)]]
)
def test_charts_of_few_and_of_far_points_are_sound(values):
    marks = {"a": [Mark(x=x, y=y, says=EVIL) for x, y in values], "none": []}
    for chart in (scatter(marks, values, "bytes", "AUC", bytes_=True), curves(marks, "epoch", "AUC")):
        found = read(chart)
        assert found.tags.count("title") == len(values)
        assert "none" not in " ".join(found.text)
        assert "nan" not in chart


def test_an_axis_puts_its_ends_at_its_ends():
    axis = Axis(low=100, high=10_000, start=0, end=200, log=True)
    assert [axis.at(value) for value in (100, 1000, 10_000)] == [0, 100, 200]
    assert axis.ticks() == [100, 200, 500, 1000, 2000, 5000, 10_000]
    assert Axis(low=0.5, high=2.5, start=0, end=1, whole=True).ticks() == [1, 2]
    assert Axis(low=0.71, high=0.75, start=100, end=0).ticks() == pytest.approx([0.71, 0.72, 0.73, 0.74, 0.75])


def board(*rows):
    """A leaderboard of (arm, valid AUC, test AUC, bytes), the standard error of each .002."""
    made = [
        {"arm": arm, "done": 1, "pruned": 0, "failed": 0, "trial": f"{arm}-1", "valid": {"auc": valid, "logloss": 0.5},
         "test": {"auc": test, "logloss": 0.5}, "test_auc_error": 0.002, "embedding_bytes": size, "bytes": size}
        for arm, valid, test, size in rows
    ]  # fmt: skip
    return Leaderboard(metric="valid_auc", winner=f"{max(rows, key=lambda row: row[1])[0]}-1", rows=made)


def test_the_verdict_is_honest_with_one_seed():
    level = verdict(board(("dnis", 0.8, 0.79, 1000), ("uniform", 0.79, 0.788, 4000)), None, 16_000)
    assert "dnis is best by valid AUC, with 0.8000" in level[0]
    assert "0.7861 to 0.7939" in level[0]
    assert "lies within the error" in level[0]
    assert "not shown to be better" in level[0]
    assert level[1] == (
        "Its embeddings take 1 kB, 94% less than uniform 32-bit rows of the same width would take (16 kB), and "
        "75% less than the arm uniform takes (4 kB)."
    )
    ahead = verdict(board(("dnis", 0.8, 0.8, 1000), ("uniform", 0.79, 0.78, 4000)), None, 16_000)
    assert "ahead of every other arm on test by more than the error" in ahead[0]
    behind = verdict(board(("dnis", 0.8, 0.78, 1000), ("uniform", 0.79, 0.8, 4000)), None, 16_000)
    assert "uniform is ahead of it, so do not rely on it" in behind[0]
    own = verdict(board(("dnis", 0.78, 0.78, 1000), ("uniform-2", 0.79, 0.8, 4000)), None, 16_000)
    assert "brought nothing beyond these" in own[1]
    assert "no other arm" in verdict(board(("dnis", 0.8, 0.8, 1000)), None, None)[0]


def test_the_verdict_over_seeds_goes_by_corrected_p():
    gaps = {"a": {"mean": 0.01, "sd": 0.001, "p": 0.004}, "b": {"mean": 0.001, "sd": 0.002, "p": 0.03}}
    assert holm({**gaps, "c": {"mean": 0.0, "sd": 0.0, "p": 0.02}}) == pytest.approx({"a": 0.012, "c": 0.04, "b": 0.04})
    row = {"mean": {}, "sd": {}, "trial": "x", "seeds": [{"seed": 1}, {"seed": 2}]}
    arms = {"leader": "dnis", "metric": "test_auc", "arms": dict.fromkeys(("dnis", "a", "b"), row), "paired": gaps}
    found = board(("dnis", 0.8, 0.79, 1000), ("a", 0.79, 0.78, 4000), ("b", 0.79, 0.78, 4000))
    said = verdict(found, arms, 16_000)[0]
    assert "over 2 seeds it is ahead of a and b by 0.0010 of test AUC or more (p ≤ 0.030)" in said
    unsure = {**arms, "paired": {**gaps, "b": {"mean": 0.001, "sd": 0.002, "p": 0.4}}}
    said = verdict(found, unsure, 16_000)[0]
    assert "ahead of a by 0.0100" in said
    assert "not told apart from b (from b: +0.0010 of test AUC, p = 0.400)" in said
    worse = {**arms, "metric": "test_logloss", "paired": {"a": gaps["a"]}}
    assert "behind a on test, although not on valid" in verdict(found, worse, 16_000)[0]


def test_importance_needs_some_trials(finished, tmp_path):
    run, _ = finished
    assert importances(run, ("dnis", "uniform", "no such arm")) == {}
    assert importances(RunDir(tmp_path), ("dnis",)) == {}


def test_importance_finds_the_range_that_matters(tmp_path):
    import optuna

    run = RunDir(tmp_path)
    study = optuna.create_study(study_name="arm", storage=run.optuna, sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_float("lr", 0, 1) + 0.01 * trial.suggest_float("l2", 0, 1), n_trials=12)
    found = importances(run, ("arm",))["arm"]
    assert found.trials == 12
    assert found.shares["lr"] > 0.8 > found.shares["l2"]


def test_a_study_without_a_leaderboard_has_no_page(finished, tmp_path):
    run, _ = finished
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "space.yaml").write_text(run.space.read_text())
    other = RunDir(tmp_path / "begun")
    with pytest.raises(StudyError, match="has no leaderboard yet"):
        gather(other, SearchSpace.read(other.space))
