import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import optuna
import pandas as pd
import polars as pl
import pytest

from autoembed.bundle import load_bundle
from autoembed.errors import StudyError
from autoembed.metrics import evaluate
from autoembed.space import SearchSpace
from autoembed.study import ENVIRONMENT
from autoembed.study.engine.run import Request, prepare, run_study
from autoembed.study.run_dir import RunDir


def mlflow_runs(run):
    """The MLflow runs of a study: (parent, children)."""
    from mlflow import MlflowClient

    ids = run.read_json("mlflow.json")
    client = MlflowClient(tracking_uri=ids["tracking_uri"])
    runs = client.search_runs([ids["experiment"]], max_results=1000)
    parent = next(r for r in runs if r.info.run_id == ids["parent"])
    return parent, [r for r in runs if r.data.tags.get("mlflow.parentRunId") == ids["parent"]], client


def test_every_arm_gets_its_trials_and_the_board_says_what_the_folder_holds(finished):
    run, board = finished
    assert [(row.arm, row.done, row.failed) for row in board.rows] == [("dnis", 2, 0), ("uniform", 2, 0)]
    for row in board.rows:
        own = [trial for trial in run.trials() if trial.arm == row.arm]
        assert row.valid.auc == max(trial.result.valid.auc for trial in own)
        assert 0.5 < row.test.auc < 1
    assert board.winner == max(run.trials(), key=lambda trial: trial.result.valid.auc).id
    assert (run.path / "ranking.parquet").is_file()
    facts = run.read_json("dataset.json")
    assert facts["fingerprint"]
    assert "row" not in json.dumps(facts["schema"])


@pytest.mark.slow
@pytest.mark.parametrize("first", ["import ray; ray.init(num_cpus=1, include_dashboard=False)", "import ray.tune"])
def test_a_program_may_import_ray_first(write_space, tmp_path, first):
    """Ray reads its environment once, and a study's Ray wants a token; a Ray that runs already is used as it is."""
    space = write_space(stages=[{"method": "uniform"}], baselines=[], budget={"trials": 1, "width": 2})
    code = f"""
{first}
from pathlib import Path
from autoembed.study.engine.run import Request, run_study
run_study(Request(space=Path({str(space)!r}), runs=Path({str(tmp_path / "runs")!r}), cpus=1))
"""
    # As it is before this process has imported autoembed.study.
    environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert len(RunDir(tmp_path / "runs" / "tiny").trials()) == 1


def test_optuna_s_store_has_names_that_tell(finished):
    run, _ = finished
    storage = optuna.storages.RDBStorage(run.optuna)
    studies = optuna.get_all_study_summaries(storage)
    assert [one.study_name for one in studies] == ["dnis", "uniform"]
    for one in studies:
        study = optuna.load_study(study_name=one.study_name, storage=storage)
        assert study.metric_names == ["valid_auc"]
        for trial in study.trials:
            assert trial.value == pytest.approx(run.read_trial(trial.user_attrs["trial"]).result.valid["auc"])
            assert set(trial.params) == {"train.lr"}


def test_the_best_bundle_gives_the_reported_test_auc(finished):
    run, board = finished
    space = SearchSpace.read(run.space)
    dataset = prepare(run, space, None)
    bundle = load_bundle(run.best)
    ids = np.asarray(dataset.ids("test"))
    columns = [dataset.schema.index(name) for name in bundle.schema.names]
    import torch

    with torch.no_grad():
        scores = torch.sigmoid(bundle.model(torch.from_numpy(ids[:, columns].copy()))).numpy()
    row = next(row for row in board.rows if row.trial == board.winner)
    assert evaluate(dataset.labels("test"), scores).auc == pytest.approx(row.test.auc, abs=1e-9)


def test_mlflow_mirrors_the_study_and_nothing_runs_on(finished):
    run, _ = finished
    parent, children, client = mlflow_runs(run)
    assert parent.info.status == "FINISHED"
    assert {child.info.status for child in children} == {"FINISHED"}
    assert len(children) == 4
    assert parent.data.tags["dataset.fingerprint"] == run.read_json("dataset.json")["fingerprint"]
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    tables = {"ranking.parquet", "ranking.findings.parquet", "ranking.csv", "leaderboard.csv"}
    assert {"space.yaml", "ranking.html"} | tables <= names
    for child in children:
        trial = run.read_trial(child.data.tags["trial"]).result
        assert child.data.metrics["valid_auc"] == pytest.approx(trial.valid.auc)
        curve = client.get_metric_history(child.info.run_id, "retrain/valid_auc")
        assert [point.step for point in curve] == [1, 2]
        assert float(child.data.params["train.lr"]) == pytest.approx(trial.config.train.lr)
        assert "architecture.json" in {file.path for file in client.list_artifacts(child.info.run_id)}
    searched = next(child for child in children if child.data.tags["arm"] == "dnis")
    assert len(client.get_metric_history(searched.info.run_id, "search/alpha_mean")) == 1


def test_the_logged_model_has_a_signature_and_predicts(finished):
    import mlflow

    run, _ = finished
    parent, _, client = mlflow_runs(run)
    mlflow.set_tracking_uri(run.read_json("mlflow.json")["tracking_uri"])
    models = client.search_logged_models([parent.info.experiment_id])
    info = mlflow.models.get_model_info(models[0].model_uri)
    assert {column.name for column in info.signature.inputs} == set(load_bundle(run.best).schema.names)
    model = mlflow.pyfunc.load_model(models[0].model_uri)
    example = load_bundle(run.best).example()
    assert model.predict(example.to_pandas())["prediction"][0] == pytest.approx(
        load_bundle(run.best).predict(example)[0]
    )
    # Numbers and texts in one column, as JSON requests and read_csv with low_memory make them.
    texts = example.to_pandas().astype(object)
    mixed = pd.concat([texts, texts.map(lambda value: 7)], ignore_index=True)
    assert {type(value) for value in mixed.iloc[:, 0]} == {str, int}
    assert model.predict(mixed)["prediction"].tolist() == pytest.approx(
        load_bundle(run.best).predict(mixed.astype(str))
    )


def test_a_finished_study_is_not_run_again(finished):
    run, board = finished
    space = run.path.parents[1] / "tiny.yaml"
    with pytest.raises(StudyError, match="holds a study already: go on with it by resume=True"):
        run_study(Request(space=space, runs=run.path.parent))
    before = {path: path.stat().st_mtime_ns for path in run.path.glob("trials/*/DONE")}
    _, again = run_study(Request(space=space, runs=run.path.parent, resume=True))
    assert again == board
    assert before == {path: path.stat().st_mtime_ns for path in run.path.glob("trials/*/DONE")}


def test_more_trials_on_resume_go_on_where_the_study_ended(write_space, ray_here, tmp_path):
    space = write_space(baselines=[])
    run, _ = run_study(Request(space=space, runs=tmp_path / "runs", trials=1))
    first = run.read_trial("dnis-1").result
    run, _ = run_study(Request(space=space, runs=tmp_path / "runs", trials=2, resume=True))
    assert [trial.id for trial in run.trials()] == ["dnis-1", "dnis-2"]
    assert run.read_trial("dnis-1").result == first
    assert run.read_trial("dnis-2").result.config.train.lr != first.config.train.lr


def test_another_space_or_other_data_are_refused_on_resume(finished, tmp_path):
    run, _ = finished
    text = run.space.read_text()
    changed = tmp_path / "tiny.yaml"
    changed.write_text(text.replace("dim: 6", "dim: 7"))
    with pytest.raises(StudyError, match=r"another search space \(embedding differs\)"):
        run_study(Request(space=changed, runs=run.path.parent, resume=True))
    facts = run.read_json("dataset.json")
    try:
        run.write_json("dataset.json", facts | {"fingerprint": "0" * 16})
        with pytest.raises(StudyError, match="the data have changed"):
            run_study(Request(space=run.path.parents[1] / "tiny.yaml", runs=run.path.parent, resume=True))
    finally:
        run.write_json("dataset.json", facts)


def test_a_trial_that_fails_ends_alone_with_its_reason(write_space, ray_here, tmp_path):
    space = write_space(
        stages=[{"method": "uniform"}], baselines=[], train={"epochs": 1, "lr": {"choice": [1e30, 3e-3]}}
    )
    run, board = run_study(Request(space=space, runs=tmp_path / "runs", trials=6))
    failed = [ended for ended in run.ended() if ended.state == "failed"]
    assert failed, "TPE drew no bad learning rate in six trials"
    assert len(failed) + board.rows[0].done + board.rows[0].pruned == 6
    assert all("must be finite" in ended.reason for ended in failed)
    _, children, _ = mlflow_runs(run)
    assert sum(child.info.status == "FAILED" for child in children) == len(failed)
    assert not [child for child in children if child.info.status == "RUNNING"]


def test_a_study_whose_trials_all_fail_says_why(write_space, ray_here, tmp_path):
    space = write_space(baselines=[], train={"epochs": 1, "lr": 1e30})
    with pytest.raises(StudyError, match=r"all 1 trials failed; the first, dnis-1: .* must be finite"):
        run_study(Request(space=space, runs=tmp_path / "runs"))
    parent, children, _ = mlflow_runs(RunDir(tmp_path / "runs" / "tiny"))
    assert [parent.info.status, children[0].info.status] == ["FAILED", "FAILED"]


def test_resources_that_are_not_there_are_named(write_space, ray_here, tmp_path):
    space = write_space(budget={"trials": 1, "width": 2, "cpus_per_trial": 64})
    with pytest.raises(StudyError, match=r"budget.cpus_per_trial must not exceed the 2 CPUs that there are, but is 64"):
        run_study(Request(space=space, runs=tmp_path / "runs"))


def test_two_studies_in_one_folder_are_refused(write_space, tmp_path):
    run = RunDir(tmp_path / "runs" / "tiny")
    with run.locked(), pytest.raises(StudyError, match=rf"process {os.getpid()} on \S+ is running the study") as raised:
        run_study(Request(space=write_space(), runs=tmp_path / "runs"))
    assert "\n" not in str(raised.value)
    assert not run.space.exists()


def test_pruning_by_rank_reaches_the_model(write_space, ray_here, tmp_path):
    space = write_space(features={"keep": 2}, baselines=[])
    run, _ = run_study(Request(space=space, runs=tmp_path / "runs", trials=1))
    names = run.trials()[0].result.architecture.names
    assert set(names) <= {"marginal_0", "marginal_1"}
    assert pl.read_parquet(run.path / "ranking.parquet").height == 8


@pytest.mark.slow  # kills at many moments are in test_kills
def test_a_killed_study_loses_only_its_running_trials(write_space, tmp_path):
    """SIGKILL of the driver mid-study, then --resume: finished trials stay, and MLflow has no run left RUNNING."""
    space = write_space(
        stages=[{"method": "dnis", "warm_epochs": 1, "epochs": 10, "precisions": [32], "guard": "measured"}],
        budget={"trials": 3, "width": 2},
        baselines=["uniform"],
    )
    command = [
        sys.executable,
        "-m",
        "autoembed.cli",
        "search",
        str(space),
        "--runs",
        str(tmp_path / "runs"),
        "--cpus",
        "1",
    ]
    run = RunDir(tmp_path / "runs" / "tiny")
    driver = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 600
    while not list(run.path.glob("trials/*/DONE")):
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline, "no trial finished in ten minutes"
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait(timeout=20)
    done = {path: path.stat().st_mtime_ns for path in run.path.glob("trials/*/DONE")}
    assert 1 <= len(done) < 6, "the kill came too late to test anything"
    after = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=200)
    assert after.returncode == 0, after.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert sorted(ended.arm for ended in run.ended()) == ["dnis"] * 3 + ["uniform"] * 3
    parent, children, _ = mlflow_runs(run)
    assert parent.info.status == "FINISHED"
    assert not [child for child in children if child.info.status == "RUNNING"]
    assert sum(child.info.status == "FINISHED" for child in children) == 6
