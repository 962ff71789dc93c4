"""docs/cluster.md, run as it stands on nodes of this machine; what KubeRay and SSH would do is done by hand."""

import importlib.util
import os
import re
import subprocess

import pytest
import yaml

from autoembed.study.run_dir import RunDir
from tests.pages import blocks, lines
from tests.study.conftest import SPACE
from tests.study.nodes import BIN, TOKEN, Node, cluster, command, cpus, free_port, here, python, wait_for
from tests.test_refresh import logs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("aiohttp_cors") is None, reason="ray[default] is not installed (the extra cluster)"
    ),
]
SUBMIT, KUBECTL = blocks("cluster.md", "sh")
KUBE, JOB, UP = map(yaml.safe_load, blocks("cluster.md", "yaml"))


def options(group):
    """Of `ray start` for a node of this group, as KubeRay gives them: the CPUs of a pod are its container's limit."""
    (container,) = group["template"]["spec"]["containers"]
    given = {"num-cpus": container["resources"]["limits"]["cpu"]} | group["rayStartParams"]
    return [f"--{name}={value}" for name, value in given.items()]


@pytest.fixture(scope="module")
def kube(tmp_path_factory):
    """The dashboard of the cluster that the first manifest describes, with one worker."""
    with cluster(tmp_path_factory.mktemp("kube"), *options(KUBE["spec"]["headGroupSpec"])) as (dashboard, add, address):
        add(*options(KUBE["spec"]["workerGroupSpecs"][0]))
        wait_for(lambda: cpus(address) == 8)
        yield dashboard


@pytest.fixture
def shared(tmp_path):
    """What all nodes see: a space and the data."""
    logs(0, 3000).write_parquet(tmp_path / "clicks.parquet")
    space = SPACE | {"data": {"label": "label", "split": SPACE["data"]["split"]}, "budget": {"trials": 1, "width": 2}}
    (tmp_path / "my_space.yaml").write_text(yaml.safe_dump(space))
    return tmp_path


def shell(text, folder, **variables):
    """What a shell prints that runs this."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = {"PATH": f"{folder / 'bin'}:{BIN}:{clean['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        env=clean | path | variables, cwd=folder, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def program(folder, name, text):
    """A program of this name in a folder of the path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_a_study_is_submitted_and_asked_for(kube, shared):
    job = "ID"
    for line in lines(SUBMIT):
        asked = line.replace("http://HOST:8265", kube).replace("/shared", str(shared)).replace(" ID ", f" {job} ")
        said = shell(asked, shared, **TOKEN)
        if " submit " in line:
            job = re.search(r"^job (\S+):", said)[1]
            assert "the best trial of each arm" in said
        elif " logs " in line:
            assert "the best trial of each arm" in said
        else:
            assert said.startswith(("SUCCEEDED", f"job {job}: SUCCEEDED"))
    assert RunDir(shared / "runs" / "my_space").read_json("leaderboard.json")


def test_a_cluster_of_kubernetes_is_submitted_to(kube, shared):
    asked = "case $1 in port-forward) [ $2 = service/autoembed-head-svc ];; "
    asked += "get) [ $2 = secret ] && [ $3 = autoembed ] && printf %s " + TOKEN["RAY_AUTH_TOKEN"] + " | base64;; esac"
    program(shared / "bin", "kubectl", asked)
    said = shell(KUBECTL.replace("http://127.0.0.1:8265", kube).replace("/shared", str(shared)), shared)
    assert "the best trial of each arm" in said


def test_the_job_of_kubernetes_runs(kube, shared):
    spec = JOB["spec"]
    environment = yaml.safe_load(spec["runtimeEnvYAML"])
    assert environment["env_vars"].keys() == {"MLFLOW_TRACKING_URI"}
    environment["env_vars"]["MLFLOW_TRACKING_URI"] = f"sqlite:///{shared}/mlflow.db"
    code = "from ray.job_submission import JobSubmissionClient; print(JobSubmissionClient("
    code += f"{kube!r}).submit_job(entrypoint={spec['entrypoint'].replace('/shared', str(shared))!r}, "
    done = python("-c", code + f"runtime_env={environment!r}))", check=True)
    status, out, err = command("job", "logs", done.stdout.strip(), "--follow", "--address", kube)
    assert status == 0, out + err
    assert "the best trial of each arm" in out
    assert (shared / "mlflow.db").is_file()


def test_machines_of_ones_own_become_a_cluster(tmp_path):
    """The commands that `ray up` runs on the head and on a worker; `ray stop` would end other tests' nodes."""
    from ray.autoscaler._private.util import prepare_config

    port = free_port()
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(prepare_config(UP)))
    program(tmp_path / "bin", "ssh", "exit 255")  # the autoscaler asks for the other machines
    program(tmp_path / "venv" / "bin", "ray", f'[ "$1" = stop ] || exec {BIN / "ray"} "$@" $MORE')
    nodes = []
    path = {"HOME": str(tmp_path), "RAY_HEAD_IP": "127.0.0.1", "PATH": f"{tmp_path / 'bin'}:{BIN}:{os.environ['PATH']}"}
    try:
        for kind in ("head", "worker"):
            text = "\n".join(UP[f"{kind}_start_ray_commands"]).replace("/shared/venv", str(tmp_path / "venv"))
            more = ["--num-cpus=1", *(["--include-dashboard=false"] if kind == "head" else []), *here()]
            shell_words = ("bash", "-euo", "pipefail", "-c", text.replace("6379", str(port)))
            nodes.append(Node(tmp_path, command=shell_words, env=path | {"MORE": " ".join(more)}))
            wait_for(lambda: cpus(f"127.0.0.1:{port}") == len(nodes))
    finally:
        for node in reversed(nodes):
            node.end()
