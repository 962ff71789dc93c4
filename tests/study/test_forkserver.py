import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from autoembed.study.engine import forkserver

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
def folder(monkeypatch):
    """The folder of this test's sockets, which is not there yet."""
    place = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own is too long for a socket's path
    place.chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(place))
    yield place / f"autoembed-{os.getuid()}"
    shutil.rmtree(place)


def address_of(job, words=WORDS):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_JOB_ID", job)
        return Path(forkserver._address(words))


def answers(address):
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(address)) == 0


def serve(raylet):
    """A server that imports nothing, once it listens: (its process, its socket, what its workers' environment has)"""
    variables = {"RAY_JOB_ID": f"test-{os.getpid()}", "RAY_RAYLET_PID": str(raylet.pid)}
    address = address_of(variables["RAY_JOB_ID"])
    code = f"from autoembed.study.engine import forkserver; forkserver.MODULES = (); forkserver.serve({str(address)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | variables)
    end = time.monotonic() + 30
    while not answers(address):
        assert time.monotonic() < end
        time.sleep(0.05)
    return process, address, variables


@pytest.fixture
def raylet():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate(timeout=10)


@pytest.fixture
def server(raylet, folder):
    """A server that imports nothing: (its process, that of the raylet which it ends with, what its workers' environment
    has)"""
    process, _, variables = serve(raylet)
    yield process, raylet, variables
    process.kill()
    process.communicate(timeout=10)


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


def test_the_server_ends_with_the_raylet_and_leaves_no_file(server, script, folder):
    process, raylet, variables = server
    assert run(script, **variables)[0]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert list(folder.iterdir()) == [address_of(variables["RAY_JOB_ID"])]
    raylet.communicate(b"\n", timeout=10)
    assert process.wait(timeout=10) == 0
    assert not folder.exists()


def test_the_socket_of_a_dead_server_does_not_block_a_new_one(server, script, folder):
    killed, raylet, variables = server
    os.link(address_of(variables["RAY_JOB_ID"]), folder / "of another job")
    killed.kill()
    killed.wait(timeout=10)
    assert len(list(folder.iterdir())) == 2
    process, address, _ = serve(raylet)
    assert list(folder.iterdir()) == [address]
    script.write_text("import os; print(os.getppid())")
    assert run(script, **variables)[0] == f"{process.pid}\n"
    raylet.communicate(b"\n", timeout=10)
    assert process.wait(timeout=10) == 0


def test_of_two_servers_the_second_ends_and_the_first_keeps_its_socket(server, script):
    process, _, variables = server
    code = "import sys; from autoembed.study.engine import forkserver; forkserver.serve(sys.argv[1])"
    command = [sys.executable, "-c", code, str(address_of(variables["RAY_JOB_ID"]))]
    second = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=60)
    assert "FileExistsError" in second.stderr
    script.write_text("import os; print(os.getppid())")
    assert run(script, **variables)[0] == f"{process.pid}\n"


def test_a_folder_that_others_can_open_is_refused(server, script, folder):
    _, _, variables = server
    for mode in (0o755, 0o701, 0o770):
        folder.chmod(mode)
        assert run(script, **variables)[0] == f"{WORDS} itself\n"
        with (
            pytest.raises(PermissionError, match="must be a folder that only this user can open"),
            forkserver._listening(str(folder / "new")),
        ):
            pass
    folder.chmod(0o700)
    assert "itself" in run(script, **variables | {"RAY_JOB_ID": "other", "RAY_RAYLET_PID": "none"})[0]
    script.write_text("import os; print(os.getppid())")
    assert run(script, **variables)[0] == f"{server[0].pid}\n"


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user")
def test_another_users_folder_is_refused(script, folder):
    job = f"test-{os.getpid()}"
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address_of(job)))
        listener.listen()
        listener.setblocking(False)
        assert run(script, RAY_JOB_ID=job)[0] == f"{WORDS} itself\n"
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_link_to_a_folder_is_refused(folder, tmp_path):
    (tmp_path / "own").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "own")
    with pytest.raises(PermissionError):
        forkserver._check(str(folder))


def test_a_sockets_path_is_never_too_long(monkeypatch):
    words = [f"--node-id={'f' * 56}"]
    for place in ("/tmp", "/var/tmp", "/" + "long/" * 30):
        monkeypatch.setenv("TMPDIR", place)
        address = str(address_of("01000000", words))
        assert len(f"{address}.4194304".encode()) <= 107
        assert address.startswith(place if len(place) < 50 else "/tmp/")


@pytest.mark.parametrize("variables", [{}, {"RAY_JOB_ID": "0", "RAY_RAYLET_PID": "no number"}])
def test_without_a_server_the_worker_is_started_as_it_would_have_been(script, folder, variables):
    out, _ = run(script, **variables)
    assert out == f"{WORDS} itself\n"


def test_workers_have_the_drivers_autoembed_or_are_no_forks(script, folder, tmp_path):
    (tmp_path / "autoembed").mkdir()
    (tmp_path / "autoembed" / "__init__.py").touch()
    job = f"test-{os.getpid()}"
    out, err = run(script, RAY_JOB_ID=job, RAY_RAYLET_PID=str(os.getpid()), PYTHONPATH=str(tmp_path))
    assert out == f"{WORDS} itself\n"
    assert "the driver's autoembed is not that of" in err
    assert not folder.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user")
def test_another_users_server_gets_nothing(script, folder):
    """Who listens is another user, even if the socket's place is ours."""
    job = f"test-{os.getpid()}"
    folder.mkdir(mode=0o700)
    code = f"""
import os, socket
listener = socket.socket(socket.AF_UNIX)
listener.bind({str(address_of(job))!r})
os.setuid({NOBODY})
listener.listen()
print(flush=True)
client, _ = listener.accept()
print(client.recv(1))
"""
    with subprocess.Popen(["python3", "-c", code], stdout=subprocess.PIPE, cwd="/", env=PLAIN) as other:
        assert other.stdout.readline() == b"\n"
        out, _ = run(script, RAY_JOB_ID=job)
        assert out == f"{WORDS} itself\n"
        assert other.communicate(timeout=10)[0] == b"b''\n"


@pytest.mark.skipif(os.getuid() != 0, reason="needs another user")
@pytest.mark.parametrize("let_in", [False, True])
def test_another_user_gets_no_worker(server, folder, let_in):
    """Not through the folder, nor where a hole in it lets them reach the socket."""
    process, _, variables = server
    address = address_of(variables["RAY_JOB_ID"])
    if let_in:
        folder.chmod(0o755)
        address.chmod(0o777)
    code = f"""
import os, socket
client = socket.socket(socket.AF_UNIX)
try:
    client.connect({str(address)!r})
except PermissionError:
    print("refused")
    raise SystemExit
try:
    socket.send_fds(client, [b"?"], [0, 1, 2, os.memfd_create("told")])
    print(client.recv(1))
except ConnectionError:
    print("closed")
"""
    done = subprocess.run(["python3", "-c", code], user=NOBODY, capture_output=True, cwd="/", env=PLAIN, timeout=300)
    assert done.stdout in ((b"b''\n", b"closed\n") if let_in else (b"refused\n",)), done.stderr
    assert process.poll() is None
    assert not psutil.Process(process.pid).children()
