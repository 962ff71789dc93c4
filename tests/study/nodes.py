"""Nodes of Ray clusters that tests start on this machine, with ports and a token of their own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

# Only for processes of the cluster and its clients: Ray reads a token once per process, and this one has its own Ray.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-for-this-test-alone"}
BIN = Path(sys.executable).parent


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def here():
    """Options of `ray start` for a node of this machine beside others: ports of its own, and little memory."""
    ports = ("--dashboard-agent-listen-port", "--metrics-export-port", "--runtime-env-agent-port")
    words = ["--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1", "--object-store-memory=100000000"]
    return words + [f"{port}={free_port()}" for port in ports]


class Node:
    """A raylet with what belongs to it, in a session of its own: `ray start` with these words, or another command."""

    def __init__(self, folder, *words, command=(BIN / "ray", "start"), env=None):
        self.log = (folder / f"node-{len(list(folder.glob('node-*')))}.log").open("w")
        self.process = subprocess.Popen(
            [str(word) for word in (*command, *words)],
            # A job's `python` is the one that the tests run with.
            env=os.environ | TOKEN | {"PATH": f"{BIN}:{os.environ['PATH']}"} | (env or {}),
            stdout=self.log,
            stderr=self.log,
            cwd=folder,
            start_new_session=True,
        )

    def kill(self, name):
        """Kills the one process of this node whose name begins with `name`."""
        (found,) = [one for one in psutil.Process(self.process.pid).children(True) if one.name().startswith(name)]
        found.kill()

    def end(self):
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.send_signal(signal.SIGTERM)
            _, alive = psutil.wait_procs(family, timeout=15)
            for one in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=15)
        self.process.kill()
        self.process.wait(timeout=10)
        self.log.close()


@contextlib.contextmanager
def cluster(folder, *words):
    """A head with these options and a job server: (its dashboard, a function that adds a node, drivers' address)."""
    nodes, port, dashboard = [], free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="ae", dir="/tmp") as short:
        head = ["--head", "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
        head += [f"--port={port}", f"--ray-client-server-port={free_port()}", f"--temp-dir={short}", *words]
        nodes.append(Node(folder, *head, *here()))

        def add(*words):
            # A folder of its own: a node that dies takes along the job's files in its session.
            nodes.append(
                Node(folder, f"--address=127.0.0.1:{port}", f"--temp-dir={short}/{len(nodes)}", *words, *here())
            )
            return nodes[-1]

        try:
            address = f"http://127.0.0.1:{dashboard}"
            deadline = time.monotonic() + 600
            while command("job", "status", "none", "--address", address)[2].count("does not exist") == 0:
                assert nodes[0].process.poll() is None, Path(nodes[0].log.name).read_text()
                assert time.monotonic() < deadline, "the job server did not come up"
            yield address, add, f"127.0.0.1:{port}"
        finally:
            for node in reversed(nodes):
                node.end()


def python(*words, seconds=60, **named):
    """A Python process that is a client of the cluster."""
    environment = os.environ | TOKEN | named.pop("env", {})
    return subprocess.run(
        [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True, timeout=seconds, **named
    )


def command(*words, **named):
    """(status, stdout, stderr) of the command line."""
    done = python("-m", "autoembed.cli", *words, seconds=200, **named)
    return done.returncode, done.stdout, done.stderr


def wait_for(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def cpus(address):
    """How many CPUs a driver sees in the cluster."""
    code = f"import ray; ray.init(address={address!r}, logging_level='CRITICAL'); "
    said = python("-c", code + "print(ray.cluster_resources().get('CPU', 0))").stdout.split()
    return float(said[0]) if said else -1.0
