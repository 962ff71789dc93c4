import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from autoembed.study import forkserver

SCRIPT = "import sys; print(sys.argv[1:], 'isolated' if sys.flags.isolated else 'itself')"
WORDS = ["--node-id=0", "--more"]
NOBODY = 65534
PLAIN = {"PATH": "/usr/local/bin:/usr/bin:/bin"}

pytestmark = pytest.mark.skipif(forkserver.command() is None, reason="not Linux")


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "worker.py"
    path.write_text(SCRIPT)
    return path


def run(script, **environment):
    """(what a worker prints that Ray starts so, stderr)"""
    command = [*shlex.split(forkserver.command()), str(script), *WORDS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | environment)
    return done.stdout, done.stderr


def test_workers_are_forks_that_hold_together_what_they_import(ray_here):
    import ray

    class Worker:
        def look(self):
            # What this test counts: a process that imports all of it has 240 MiB to itself.
            held = dict(line.split()[:2] for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
            private = int(held["Private_Dirty:"])
            return os.getpid(), os.getppid(), private, "torch" in sys.modules, sys.argv[0].endswith("default_worker.py")

    workers = [ray.remote(num_cpus=0)(Worker).remote() for _ in range(2)]
    looks = ray.get([worker.look.remote() for worker in workers], timeout=300)
    assert looks[0][0] != looks[1][0]
    assert looks[0][1] == looks[1][1]
    assert all(private < 60 * 1024 and torch and name for _, _, private, torch, name in looks)
    server = psutil.Process(looks[0][1])
    assert "forkserver.py" in " ".join(server.cmdline())


@pytest.fixture
def server():
    """A server that imports nothing: (its process, that of the raylet which it ends with, what its workers' environment
    has)"""
    raylet = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    variables = {"RAY_JOB_ID": f"test-{os.getpid()}", "RAY_RAYLET_PID": str(raylet.pid)}
    address = f"autoembed{WORDS[0]}-{variables['RAY_JOB_ID']}"
    code = f"from autoembed.study import forkserver; forkserver.MODULES = (); forkserver.serve({address!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | variables)
    try:
        end = time.monotonic() + 30
        while address not in Path("/proc/net/unix").read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        yield process, raylet, variables
    finally:
        for one in (raylet, process):
            one.kill()
            one.communicate(timeout=10)


def test_a_fork_is_what_its_client_was(script, server, tmp_path, monkeypatch):
    process, _, variables = server
    script.write_text("import os, sys; print(sys.argv[1:], os.environ['MINE'], os.getcwd(), os.getppid())")
    monkeypatch.chdir(tmp_path)
    for mine in ("1", "2"):
        out, _ = run(script, **variables, MINE=mine)
        assert out == f"{WORDS} {mine} {tmp_path} {process.pid}\n"


def test_a_worker_that_fails_leaves_the_server(script, server):
    process, _, variables = server
    script.write_text("raise OSError('mine')")
    assert run(script, **variables)[1].endswith("OSError: mine\n")
    script.write_text("print('next')")
    assert run(script, **variables)[0] == "next\n"
    _, alive = psutil.wait_procs(psutil.Process(process.pid).children(), timeout=10)
    assert not alive


def test_the_server_ends_with_the_raylet(server):
    process, raylet, _ = server
    raylet.communicate(b"\n", timeout=10)
    assert process.wait(timeout=10) == 0


@pytest.mark.parametrize("variables", [{}, {"RAY_JOB_ID": "0", "RAY_RAYLET_PID": "no number"}])
def test_without_a_server_the_worker_is_started_as_it_would_have_been(script, variables):
    out, _ = run(script, **variables)
    assert out == f"{WORDS} itself\n"


def test_workers_have_the_drivers_autoembed_or_are_no_forks(script, tmp_path):
    (tmp_path / "autoembed").mkdir()
    (tmp_path / "autoembed" / "__init__.py").touch()
    job = f"test-{os.getpid()}"
    out, err = run(script, RAY_JOB_ID=job, RAY_RAYLET_PID=str(os.getpid()), PYTHONPATH=str(tmp_path))
    assert out == f"{WORDS} itself\n"
    assert "the driver's autoembed is not that of" in err


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user")
def test_another_users_server_gets_nothing(script):
    job = f"test-{os.getpid()}"
    code = f"""
import socket
listener = socket.socket(socket.AF_UNIX)
listener.bind("\\0autoembed{WORDS[0]}-{job}")
listener.listen()
print(flush=True)
client, _ = listener.accept()
print(client.recv(1))
"""
    with subprocess.Popen(["python3", "-c", code], user=NOBODY, stdout=subprocess.PIPE, cwd="/", env=PLAIN) as other:
        assert other.stdout.readline() == b"\n"
        out, _ = run(script, RAY_JOB_ID=job)
        assert out == f"{WORDS} itself\n"
        assert other.communicate(timeout=10)[0] == b"b''\n"


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user")
def test_another_user_gets_no_worker(script, server):
    process, _, variables = server
    code = f"""
import os, socket
client = socket.socket(socket.AF_UNIX)
client.connect("\\0autoembed{WORDS[0]}-{variables["RAY_JOB_ID"]}")
try:
    socket.send_fds(client, [b"?"], [0, 1, 2, os.memfd_create("told")])
    print(client.recv(1))
except ConnectionError:
    print("closed")
"""
    done = subprocess.run(["python3", "-c", code], user=NOBODY, capture_output=True, cwd="/", env=PLAIN, timeout=300)
    assert done.stdout in (b"b''\n", b"closed\n"), done.stderr
    assert process.poll() is None
    assert not psutil.Process(process.pid).children()
