"""The page on Python, run as it stands, and what a study tells of itself."""

import numpy as np
import polars as pl
import pytest

import autoembed as ae
from autoembed.study.run_dir import RunDir
from tests.pages import blocks


@pytest.fixture
def clicks():
    rng = np.random.default_rng(0)
    site, item = rng.integers(0, 8, 4000), rng.integers(0, 60, 4000)
    rate = 1 / (1 + np.exp(1 - np.sin(site) - np.cos(item)))
    return pl.DataFrame(
        {
            "site": [f"s{one}" for one in site],
            "item": item,
            "noise": rng.integers(0, 300, 4000),
            "price": np.round(rng.gamma(2.0, 3.0, 4000), 2),
            "is_click": (rng.random(4000) < rate).astype(int),
        }
    )


def test_the_page_runs_as_it_stands(ray_here, clicks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = {"df": clicks}
    given = blocks("python.md", "python")
    assert len(given) == 6
    for block in given:
        exec(compile(block, "python.md", "exec"), there)
    assert there["ranking"].top(1) != ("noise",)
    study = there["study"]
    assert set(study.leaderboard.table["arm"]) == {"dnis", "uniform"}
    assert {"time", "retrain_epoch", "valid_auc"} <= set(study.trial("dnis").curves.columns)
    assert study.pareto.table.columns == ["trial", "valid_auc", "bytes"]
    assert study.pareto._repr_png_().startswith(b"\x89PNG")
    for shown in (there["ranking"], study.leaderboard, study.pareto):
        assert "<table" in shown._repr_html_()
    scores = there["bundle"].predict(clicks)
    assert np.array_equal(scores, there["bundle"].predict(clicks.to_pandas()))
    assert there["bundle"].manifest.provenance["trial"] == study.best.id
    assert there["classifier"].predict_proba(clicks).shape == (4000, 2)
    assert 3 < there["regressor"].predict(clicks).mean() < 9


def test_the_readme_runs_as_it_stands(ray_here, clicks, tmp_path, monkeypatch, write_space):
    write_space("space", data={"label": "is_click"}, budget={"trials": 1, "width": 2})
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("README.md", "python")
    there = {"df": clicks}
    exec(compile(block, "README.md", "exec"), there)
    assert len(there["model"].predict(clicks)) == len(clicks)


def test_a_frame_is_kept_and_a_study_of_it_goes_on(ray_here, clicks, tmp_path, write_space):
    space = write_space(data={"label": "is_click", "format": "csv"}, budget={"trials": 1, "width": 2})
    study = ae.search(space, data=clicks, runs=tmp_path)
    assert (study.path / "data.parquet").is_file()
    assert len(study.trials) == 2
    more = ae.search(space, data=clicks.lazy(), runs=tmp_path, resume=True, trials=2)
    assert len(more.trials) == 4
    with pytest.raises(ae.StudyError, match="the data have changed"):
        ae.search(space, data=clicks.head(3000), runs=tmp_path, resume=True)


def test_an_opened_study_is_the_one_that_was_run(finished):
    run, board = finished
    study = ae.Study.open(run.path)
    assert study.leaderboard == board
    assert (study.best.id, study.trial("dnis").arm) == (board.winner, "dnis")
    assert len(study.trials) == len(study.ended) == 4
    assert "4 trials have ended" in repr(study)


def test_errors_speak_of_arguments(finished, tmp_path):
    run, _ = finished
    study = ae.Study.open(run.path)
    with pytest.raises(ae.StudyError, match=r"pick goes by quality and cost, .* or name a trial"):
        study.export(tmp_path / "out", pick="knee")
    with pytest.raises(ae.StudyError, match="trial and pick each name a trial"):
        study.export(tmp_path / "out", "dnis", pick="knee")
    with pytest.raises(ae.StudyError, match="unknown trial 'dnis-9': must be one of dnis-1"):
        study.trial("dnis-9")
    with pytest.raises(ae.StudyError, match=r"there are tiny"):
        ae.Study.open(run.path.parent / "other")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "space.yaml").write_text(run.space.read_text())
    with pytest.raises(ae.StudyError, match="has no leaderboard yet: go on with it by resume=True"):
        ae.Study(RunDir(tmp_path / "bare")).leaderboard  # noqa: B018
