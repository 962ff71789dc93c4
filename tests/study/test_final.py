"""`final`: a study that ends with each arm's best trial retrained over seeds."""

import pytest
from mlflow import MlflowClient

from autoembed.errors import SpaceError
from autoembed.space import SearchSpace
from autoembed.study.engine.run import Request, run_study
from autoembed.study.results import retrain as retrain_module
from autoembed.study.results.retrain import ARMS, PARTIAL
from autoembed.study.show.progress import Bar

FINAL = {"budget": {"trials": 1, "width": 2}, "final": {"seeds": 2}}


@pytest.fixture
def count(monkeypatch):
    """The seeds that were retrained, by call; the call of number `stop_at` is interrupted."""
    calls, whole = [], retrain_module.retrain

    def counted(architecture, dataset, train, where, seed, *words, **named):
        if len(calls) == counted.stop_at:
            raise KeyboardInterrupt
        calls.append(seed)
        return whole(architecture, dataset, train, where, seed, *words, **named)

    counted.stop_at = None
    monkeypatch.setattr(retrain_module, "retrain", counted)
    return counted, calls


def test_a_study_ends_with_seeds_goes_on_where_it_was_killed_and_does_none_twice(
    write_space, ray_here, tmp_path, cli, count
):
    counted, calls = count
    request = Request(space=write_space(**FINAL), runs=tmp_path / "runs")
    counted.stop_at = 0
    with pytest.raises(KeyboardInterrupt):
        run_study(request, Bar(lines=True))
    run = request.run
    assert (run.read_json(ARMS), run.read_json(PARTIAL)) == (None, None)
    assert run.read_json("mlflow.json")["status"] == "KILLED"
    again = Request(space=request.space, runs=request.runs, resume=True)
    counted.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        run_study(again, Bar(lines=True))
    assert calls == [1, 2, 1]
    assert {trial: len(rows) for trial, rows in run.read_json(PARTIAL).items()} == {"dnis-1": 2, "uniform-1": 1}
    counted.stop_at = None
    _, board = run_study(again, Bar(lines=True))
    assert calls == [1, 2, 1, 2]
    assert not (run.path / PARTIAL).exists()
    found = run.read_json(ARMS)
    assert {arm: (one["trial"], len(one["seeds"])) for arm, one in found["arms"].items()} == {
        "dnis": ("dnis-1", 2),
        "uniform": ("uniform-1", 2),
    }
    leader = found["arms"][found["leader"]]
    assert leader["mean"]["test_auc"] == pytest.approx(sum(row["test_auc"] for row in leader["seeds"]) / 2)
    assert run_study(again, Bar(lines=True))[1] == board
    assert len(calls) == 4

    status, out, _ = cli("search", request.space, "--runs", request.runs, "--resume")
    assert (status, len(calls)) == (0, 4)
    for text in (out, cli("show", run.path)[1]):
        assert "each arm's best trial retrained from fresh weights, mean ± sd of 2 seeds" in text
        assert f"{leader['mean']['test_auc']:.4f} ± {leader['sd']['test_auc']:.4f}" in text
    known = run.read_json("mlflow.json")
    client = MlflowClient(known["tracking_uri"])
    runs = {one.info.run_name: one for one in client.search_runs([known["experiment"]])}
    for name, arm in (("dnis-1", "dnis"), ("uniform-1", "uniform"), ("tiny", found["leader"])):
        for what in ("mean", "sd"):
            for metric, value in found["arms"][arm][what].items():
                assert runs[name].data.metrics[f"seeds/{metric}_{what}"] == pytest.approx(value)
    assert ARMS in {file.path for file in client.list_artifacts(known["parent"])}


def test_final_may_be_added_to_a_finished_study_and_follows_its_best_trials(
    write_space, ray_here, tmp_path, count, capsys
):
    _, calls = count
    plain = {"baselines": [], "budget": FINAL["budget"]}
    run, _ = run_study(Request(space=write_space(**plain), runs=tmp_path / "runs"))
    assert not calls
    request = Request(space=write_space(**plain, final={"seeds": 2}), runs=tmp_path / "runs", resume=True)
    run_study(request, Bar(lines=True))
    assert calls == [1, 2]
    assert "dnis-1 is retrained with seed 2, 2 of 2" in capsys.readouterr().out
    content = run.read_json(ARMS)
    content["arms"]["dnis"]["trial"] = "dnis-0"
    run.write_json(ARMS, content)
    run_study(request, Bar(lines=True))
    assert calls == [1, 2, 1, 2]
    assert run.read_json(ARMS)["arms"]["dnis"]["trial"] == "dnis-1"


def test_final_needs_two_seeds(write_space):
    with pytest.raises(SpaceError, match=r"final.seeds: Input should be greater than or equal to 2"):
        SearchSpace.read(write_space(final={"seeds": 1}))
    assert SearchSpace.read(write_space()).final is None


def test_retraining_over_seeds_has_the_trials_teacher(write_space, ray_here, tmp_path, monkeypatch):
    teachers, whole = [], retrain_module.retrain

    def watch(*words, teacher=None, **named):
        teachers.append(teacher)
        return whole(*words, teacher=teacher, **named)

    monkeypatch.setattr(retrain_module, "retrain", watch)
    train = {"epochs": 1, "lr": 3e-3, "batch_size": 512, "distill": {"teacher": {"ensemble": 1}}}
    space = write_space(**FINAL, train=train, baselines=[])
    run, _ = run_study(Request(space=space, runs=tmp_path / "runs"))
    assert len(teachers) == 2
    assert teachers[0] is teachers[1]
    assert teachers[0].weight == 0.5
    (trial,) = run.trials()
    assert trial.result.config.train.distill.teacher.ensemble == 1
    told = [point["teacher_epoch"] for point in run.curves(trial.id) if "teacher_epoch" in point]
    assert told == [1]
