"""Studies as jobs of a Ray cluster that the test starts on this machine, with ports and a token of its own."""

import importlib.util
import os
import re
from pathlib import Path

import pytest
import ray
import yaml
from mlflow import MlflowClient

from autoembed.errors import StudyError
from autoembed.study.engine.run import Request, run_study
from autoembed.study.engine.submit import Cluster, Job, check, variables
from autoembed.study.results.leaderboard import Leaderboard
from autoembed.study.run_dir import RunDir
from tests.pages import blocks
from tests.study.nodes import cluster, command, cpus, python, wait_for

needs_job_server = pytest.mark.skipif(
    importlib.util.find_spec("aiohttp_cors") is None, reason="ray[default] is not installed (the extra cluster)"
)
LONG = {"method": "dnis", "warm_epochs": 1, "epochs": 5000}


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A head with one CPU, as `cluster` gives it."""
    with cluster(tmp_path_factory.mktemp("cluster"), "--num-cpus=1") as made:
        yield made


def statuses(run):
    known = run.read_json("mlflow.json")
    return {
        one.info.run_name: one.info.status
        for one in MlflowClient(known["tracking_uri"]).search_runs([known["experiment"]])
    }


def submitted(out):
    return re.search(r"^job (\S+):", out).group(1)


@needs_job_server
@pytest.mark.slow
def test_a_study_runs_as_a_job_and_its_logs_are_followed(head, write_space, tmp_path):
    run = RunDir(tmp_path / "runs" / "tiny")
    status, out, err = command("submit", write_space(), "--address", head[0], "--runs", run.path.parent)
    assert (status, err) == (0, ""), out
    assert "warning" not in out
    assert out.index("trial dnis-1 has ended") < out.index("the best trial of each arm")
    assert "4 of 4" in out
    assert Leaderboard.read(run).trials == (4, 0, 0)
    assert set(statuses(run).values()) == {"FINISHED"}
    job = submitted(out)
    assert command("job", "status", job, "--address", head[0])[1].startswith("SUCCEEDED")
    assert "the best trial of each arm" in command("job", "logs", job, "--address", head[0])[1]
    # The same again is refused there, and told here.
    status, out, err = command("submit", write_space(), "--address", head[0], "--runs", run.path.parent)
    assert status == 2
    assert "holds a study already" in out
    assert re.search(r"error: job \S+ FAILED: .*exit code 2", err)


@needs_job_server
@pytest.mark.slow
def test_a_job_has_the_space_file_and_this_source(head, write_space, tmp_path):
    """The job's own view: its working directory, and where it imports autoembed from."""
    (tmp_path / "job").mkdir()
    environment = Job(space=write_space(), runs=tmp_path, options={}, variables={"A": "b"}).environment(
        tmp_path / "job"
    )
    look = "import os, autoembed; print(*os.listdir(), autoembed.__file__, os.environ['A'])"
    script = f"""
from ray.job_submission import JobSubmissionClient
client = JobSubmissionClient({head[0]!r})
print(client.submit_job(entrypoint={f'python -c "{look}"'!r}, runtime_env={environment!r}))
"""
    done = python("-c", script, check=True)
    status, out, err = command("job", "logs", done.stdout.strip(), "--follow", "--address", head[0])
    assert status == 0, err
    place = r"\S+/py_modules_files/\S+/autoembed/__init__.py"
    assert re.search(rf"^tiny.yaml {place} b$", out, re.MULTILINE), out


@needs_job_server
@pytest.mark.slow
def test_a_job_that_is_stopped_ends_in_order(head, write_space, tmp_path):
    space, run = write_space(stages=[{"method": "uniform"}], baselines=[LONG]), RunDir(tmp_path / "runs" / "tiny")
    words = ("submit", space, "--address", head[0], "--runs", run.path.parent, "--trials", "1")
    status, out, err = command(*words, "--no-follow")
    assert status == 0, err
    job = submitted(out)
    wait_for(lambda: run.state("uniform-1") and run.curves("dnis-1"))
    assert command("job", "status", job, "--address", head[0])[1].startswith("RUNNING")
    assert command("job", "stop", job, "--address", head[0])[1] == f"job {job}: STOPPED\n"
    assert [(ended.id, ended.reason) for ended in run.ended()] == [("uniform-1", "")]
    assert statuses(run) == {"tiny": "KILLED", "uniform-1": "FINISHED", "dnis-1": "KILLED"}


@needs_job_server
@pytest.mark.slow
def test_a_study_goes_on_after_its_job_was_stopped(head, write_space, tmp_path):
    stages, run = [LONG | {"epochs": 200}], RunDir(tmp_path / "runs" / "tiny")
    space = write_space(stages=[{"method": "uniform"}], baselines=stages, budget={"trials": 1, "width": 2})
    words = ("submit", space, "--address", head[0], "--runs", run.path.parent)
    status, out, err = command(*words, "--no-follow")
    assert status == 0, err
    wait_for(lambda: run.state("uniform-1") and len(run.curves("dnis-1")) > 3)
    assert command("job", "stop", submitted(out), "--address", head[0])[1].endswith(": STOPPED\n")
    done = (run.trial("uniform-1") / "DONE").stat().st_mtime_ns
    config = (run.trial("dnis-1") / "config.json").read_text()
    status, out, err = command(*words, "--resume")
    assert (status, err) == (0, ""), out
    # What was running begins again under its number, with the values that it had.
    assert out.index("trial dnis-1 has ended, 2 of 2") < out.index("the best trial of each arm")
    assert [(ended.id, ended.state) for ended in run.ended()] == [("dnis-1", "done"), ("uniform-1", "done")]
    assert (run.trial("uniform-1") / "DONE").stat().st_mtime_ns == done
    assert (run.trial("dnis-1") / "config.json").read_text() == config
    assert Leaderboard.read(run).trials == (2, 0, 0)
    assert statuses(run) == dict.fromkeys(("tiny", "uniform-1", "dnis-1"), "FINISHED")


@needs_job_server
@pytest.mark.slow
def test_a_node_that_is_lost_costs_no_trial(head, write_space, tmp_path):
    """Two raylets on this machine; the second is killed while it runs a trial."""
    stage = LONG | {"epochs": 150}
    space, run = write_space(stages=[stage], baselines=[]), RunDir(tmp_path / "runs" / "tiny")
    node = head[1]("--num-cpus=1")
    wait_for(lambda: cpus(head[2]) == 2)
    words = ("submit", space, "--address", head[0], "--runs", run.path.parent, "--trials", "3", "--no-follow")
    status, out, err = command(*words)
    assert status == 0, err
    wait_for(lambda: all(run.curves(f"dnis-{number}") for number in (1, 2)))
    first = {number: run.curves(f"dnis-{number}")[0]["time"] for number in (1, 2)}
    node.kill("raylet")
    status, out, err = command("job", "logs", submitted(out), "--follow", "--address", head[0])
    assert status == 0, out + err
    assert [(ended.id, ended.state) for ended in run.ended()] == [(f"dnis-{n}", "done") for n in (1, 2, 3)]
    again = {number: run.curves(f"dnis-{number}")[0]["time"] for number in (1, 2)}
    assert sum(first[number] != again[number] for number in first) == 1, "one of the two was run again"
    assert set(statuses(run).values()) == {"FINISHED"}


@needs_job_server
@pytest.mark.slow
def test_a_node_that_does_not_see_the_run_folder_is_named(head, write_space, tmp_path):
    """The driver's own working directory, by a path that means another folder to every other process."""
    node = head[1]("--num-cpus=1")
    try:
        wait_for(lambda: cpus(head[2]) == 2)
        words = ("search", write_space(), "--runs", "/proc/self/cwd/runs", "--address", head[2])
        status, _, err = command(*words, cwd=tmp_path)
    finally:
        node.end()
    assert status == 2
    line = r"error: node \S+ does not see /proc/self/cwd/runs/tiny: choose --runs on storage that all nodes share\n"
    assert re.fullmatch(line, err)


@needs_job_server
@pytest.mark.slow
def test_another_token_is_refused_in_one_line(head):
    status, _, err = command("job", "status", "any", "--address", head[0], env={"RAY_AUTH_TOKEN": "another"})
    assert status == 2
    assert re.match(r"error: the cluster at \S+ refuses this machine's token: set RAY_AUTH_TOKEN", err)
    assert err.count("\n") == 1


def test_no_job_server_is_one_line(cli, unused_port, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    for address, line in (
        (f"http://127.0.0.1:{unused_port}", f"no Ray job server answers at http://127.0.0.1:{unused_port}"),
        ("127.0.0.1:8265", "--address must be the Ray dashboard's, such as http://HOST:8265, but got 127.0.0.1:8265"),
    ):
        status, _, err = cli("job", "status", "any", "--address", address)
        assert status == 2
        assert line in err
        assert err.count("\n") == 1
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"runs": Path("runs")}, "--runs must be an absolute path"),
        ({"runs": Path("s3://bucket/runs")}, "runs must be a path, .* but got the URI s3:"),
        ({"options": {"--data": "clicks.parquet"}}, "--data must be an absolute path .* but got clicks.parquet"),
        ({"modules": [Path("none")]}, "--module must name"),
        ({"space": Path("none.yaml")}, "cannot read the search space none.yaml"),
    ],
)
def test_what_cannot_work_on_a_cluster_is_told_before_anything_is_sent(write_space, change, line):
    facts = {"space": write_space(), "runs": Path("/shared/runs"), "options": {}}
    check(Job(**facts))
    with pytest.raises(Exception, match=line):
        check(Job(**facts | change))


def test_search_refuses_a_uri(write_space):
    with pytest.raises(StudyError, match="runs must be a path"):
        run_study(Request(space=write_space(), runs=Path("s3://bucket/runs")))


def test_a_job_s_environment_and_command(write_space, tmp_path, monkeypatch):
    pins = tmp_path / "requirements.txt"
    pins.write_text("# what the image lacks\nlightgbm==4.6.0  # a reason\n\n--no-deps\n")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    job = Job(
        space=write_space(),
        runs=Path("/shared/my runs"),
        options={"--data": None, "--trials": "3", "--minutes": "10"},
        resume=True,
        package="autoembed==0.1.0",
        requirements=pins,
        variables=variables(["A=b=c"]),
    )
    assert job.entrypoint() == (
        "python -m autoembed.cli search tiny.yaml --address auto --lines --runs '/shared/my runs' --trials 3"
        " --minutes 10 --resume"
    )
    (tmp_path / "job").mkdir()
    found = job.environment(tmp_path / "job")
    assert found["pip"] == ["lightgbm==4.6.0", "--no-deps", "autoembed==0.1.0"]
    assert found["env_vars"].items() >= {"A": "b=c", "MLFLOW_TRACKING_URI": "http://mlflow:5000"}.items()
    assert "py_modules" not in found
    assert [path.name for path in (tmp_path / "job").iterdir()] == ["tiny.yaml"]
    pins.write_text("lightgbm>=4\n")
    with pytest.raises(StudyError, match="requirements must be pinned by ==, but got 'lightgbm>=4'"):
        job.environment(tmp_path / "job")
    with pytest.raises(StudyError, match="--env must be KEY=VALUE, but got 'A'"):
        variables(["A"])
    with pytest.raises(StudyError, match="--address must be"):
        Cluster("ray://head:10001")


def test_the_manifests_in_the_documentation_are_well_formed():
    """Kubernetes' by their shape, since no cluster is here to ask; the one for `ray up` by Ray's own schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    kube, job, up = map(yaml.safe_load, blocks("cluster.md", "yaml"))
    assert (kube["kind"], job["kind"]) == ("RayCluster", "RayJob")
    for spec in (kube["spec"], job["spec"]["rayClusterSpec"]):
        assert spec["rayVersion"] == ray.__version__
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            mounted = {mount["name"] for box in pod["containers"] for mount in box["volumeMounts"]}
            assert mounted == {volume["name"] for volume in pod["volumes"]}
    words = job["spec"]["entrypoint"].split()
    assert words[:2] == ["autoembed", "search"]
    options = {option for command in main_commands()["search"].params for option in command.opts}
    assert {word for word in words if word.startswith("--")} <= options
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]
    validate_config(prepare_config(up))


def main_commands():
    import typer

    from autoembed.cli import app

    return typer.main.get_command(app).commands
