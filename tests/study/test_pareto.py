"""Quality against cost: the front, picking from it, and a study whose method, width and stages Optuna chooses."""

from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from autoembed.errors import StudyError
from autoembed.space import Objective, SearchSpace
from autoembed.study.engine.run import Request, prepare, run_study
from autoembed.study.engine.sampler import make_sampler
from autoembed.study.engine.scheduler import PerArm
from autoembed.study.results import pareto
from autoembed.study.results.leaderboard import best, build
from autoembed.study.results.pareto import ParetoPoint, front, pick
from autoembed.study.trackers.mlflow.store import store

STAGES = {
    "choice": [
        [{"method": "dnis", "warm_epochs": 1, "epochs": 1, "l1": {"log": [1.0e-6, 1.0e-3]}}],
        [{"method": "magnitude", "warm_epochs": 1, "width": 3}, {"method": "ihas", "warm_epochs": 0, "epochs": 1}],
    ]
}
CHANGES = {
    "stages": STAGES,
    "budget": {"trials": 4, "bytes": {"log_int": [6000, 20000]}},
    "objective": {"maximize": "valid.auc", "minimize": "bytes"},
}


def fake(values):
    """Points named by their place."""
    return [
        ParetoPoint(trial=SimpleNamespace(id=str(place), arm="a"), quality=quality, cost=cost)
        for place, (quality, cost) in enumerate(values)
    ]


@pytest.fixture
def space(write_space):
    return SearchSpace.read(write_space(**CHANGES))


def test_the_front_by_hand(space):
    found = fake([(0.7, 100), (0.8, 200), (0.75, 250), (0.8, 300), (0.9, 1000), (0.7, 90), (0.9, 1000)])
    assert [point.trial.id for point in front(found, space)] == ["5", "1", "4"]
    falling = space.model_copy(update={"objective": Objective(minimize=["valid.logloss", "parameters"])})
    assert [point.trial.id for point in front(found, falling)] == ["5"]
    assert falling.objective.cost == "parameters"


def test_picking(space):
    kept = front(fake([(0.70, 10), (0.899, 100), (0.9, 100_000)]), space)
    assert pick(kept, "knee").id == "1"
    assert pick(kept, "smallest-within 0.001").id == "1"
    assert pick(kept, "smallest-within 0").id == "2"
    assert pick(kept, "0").id == "0"
    assert pick(kept[:1], "knee").id == "0"
    with pytest.raises(
        StudyError, match="must be knee, smallest-within X or a trial of the Pareto front, 0, 1, 2, but"
    ):
        pick(kept, "best")
    with pytest.raises(StudyError, match="needs a number"):
        pick(kept, "smallest-within a bit")
    with pytest.raises(StudyError, match="no trial is done yet"):
        pick([], "knee")


def test_samplers_and_schedulers_by_name(write_space):
    for name, kind in (("tpe", "TPESampler"), ("nsga2", "NSGAIISampler"), ("random", "RandomSampler")):
        space = SearchSpace.read(write_space(**CHANGES, sampler=name))
        assert type(make_sampler(space, 0)).__name__ == kind
        assert PerArm({"auto": 9}, space)._arms == {}  # a cheap trial may be behind for good reason
    for name, kind in (("asha", "AsyncHyperBandScheduler"), ("median", "MedianStoppingRule")):
        space = SearchSpace.read(write_space(scheduler=name))
        assert type(PerArm({"dnis": 9, "uniform": 2}, space)._arms["dnis"]).__name__ == kind
    assert PerArm({"dnis": 9}, SearchSpace.read(write_space(scheduler="none")))._arms == {}


def test_a_choice_of_stages_with_ranges_of_their_own(space):
    ranges = space.ranges("auto")
    assert ranges["stages"].values == ("dnis", "magnitude+ihas")
    assert ranges["stages.dnis.0.l1"].given == (("stages", "dnis"),)
    asked = []

    def first(place, leaf):
        asked.append(place)
        return leaf.values[-1]

    values = space.draw("auto", first)
    assert asked == ["stages", "train.lr", "limit.bytes"]
    config = space.config("auto", values)
    assert [stage["method"] for stage in config.stages] == ["magnitude", "ihas"]
    assert len(list(space.corners("auto"))) >= 5


def test_a_study_of_quality_and_bytes(write_space, tmp_path, ray_here, cli):
    run, board = run_study(Request(space=write_space("front", **CHANGES), runs=tmp_path / "runs"))
    assert [(row.arm, row.done, row.failed) for row in board.rows] == [("auto", 4, 0), ("uniform", 4, 0)]
    space = SearchSpace.read(run.space)
    for trial in run.trials():
        assert trial.result.cost.bytes <= trial.result.config.limit.bytes
    kept = front(pareto.points(run.trials(), space), space)
    assert [row["trial"] for row in run.read_json("pareto.json")] == [point.trial.id for point in kept]
    assert (run.path / "pareto.png").read_bytes().startswith(b"\x89PNG")

    status, out, _ = cli("show", run.path)
    assert status == 0
    assert "Pareto front of valid AUC and bytes" in out
    smallest = kept[0].trial.id
    status, out, _ = cli("export", run.path, tmp_path / "bundle", "--pick", smallest)
    assert (status, f"bundle of {smallest} written" in out) == (0, True)
    status, _, err = cli("export", run.path, tmp_path / "bundle", "--pick", "knee", "--trial", "auto")
    assert (status, "give one of them" in err) == (2, True)

    client = MlflowClient(store(run.path.parent))
    (experiment,) = [e for e in client.search_experiments() if e.name == "front"]
    parent = [r for r in client.search_runs(experiment.experiment_id) if "mlflow.parentRunId" not in r.data.tags]
    assert "pareto.png" in {artifact.path for artifact in client.list_artifacts(parent[0].info.run_id)}

    slow = space.model_copy(update={"budget": space.budget.model_copy(update={"latency_ms": 1e-6})})
    with pytest.raises(StudyError, match=r"no trial holds budget\.latency_ms=1e-06, the fastest takes"):
        best(run.trials(), slow)
    with pytest.raises(StudyError, match=r"no trial holds budget\.latency_ms=1e-06"):
        build(run, slow, prepare(run, slow, None))
    middle = sorted(trial.result.latency_ms for trial in run.trials())[3]
    held = space.model_copy(update={"budget": space.budget.model_copy(update={"latency_ms": middle})})
    assert best(run.trials(), held).result.latency_ms <= middle
