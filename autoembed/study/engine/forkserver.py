"""Ray's workers as forks of one process that has imported all that a trial needs.

What is imported, most of what a trial on small data takes, is then in memory once for all of them, and a worker starts
without importing it again. Ray runs this file in the place of Python (`py_executable`), followed by its worker's script
and arguments. The first of a job on a node starts the server, which ends with the node's raylet. Its socket is a
file in a folder that only this user can open. Linux only.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from typing import NoReturn

MODULES = ("ray.tune", "autoembed.study.engine.worker")
FILES = 4  # stdin, stdout, stderr, and what is told
LONGEST = 99  # bytes of a socket's path; Linux takes 107, and a server's process number is added for a moment
STARTS = 5.0  # seconds that a server may take to listen
ANSWERS = 300.0  # and to import MODULES and fork; Ray gives a worker up before


def command() -> str | None:
    """What Ray shall run in the place of Python; None where this system has not what it takes."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return None
    return shlex.join([sys.executable, "-I", "-S", __file__])


def start(arguments: list[str]) -> None:
    """Has the server fork a worker; where there can be no server, runs the worker in this process, as Ray would have.

    TimeoutError if the server does not answer: it may still fork, and there must be one worker only.
    """
    try:
        with _connected(_address(arguments)) as server:
            _ask(server, arguments)
    except TimeoutError:
        raise
    except (OSError, KeyError, StopIteration):
        os.execv(sys.executable, [sys.executable, *arguments])


def _address(arguments: list[str]) -> str:
    """The socket of this user's, node's and job's server."""
    node = next(word for word in arguments if word.startswith("--node-id=")).partition("=")[2]
    name = f"autoembed-{os.getuid()}/{node[:16]}-{os.environ['RAY_JOB_ID']}"
    wanted = os.path.join(os.environ.get("TMPDIR") or "/tmp", name)
    return wanted if len(os.fsencode(wanted)) <= LONGEST else os.path.join("/tmp", name)


def _check(folder: str) -> None:
    """PermissionError if anybody else may have put something into the folder."""
    facts = os.lstat(folder)
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o077:
        raise PermissionError(f"{folder} must be a folder that only this user can open")


def _connected(address: str) -> socket.socket:
    """A connection to the server, which is started if there is none."""
    server, end = None, time.monotonic() + STARTS
    while True:
        # Of several that are started at once, all end but the first to take the address.
        ended = server is not None and server.poll() is not None
        connection = socket.socket(socket.AF_UNIX)
        try:
            _check(os.path.dirname(address))
            connection.connect(address)
        except (ConnectionRefusedError, FileNotFoundError):
            connection.close()
            if ended or time.monotonic() > end:
                raise
            server = server or subprocess.Popen([sys.executable, "-P", __file__, address], start_new_session=True)
            time.sleep(0.01)
        else:
            return connection


def _ours(connection: socket.socket) -> bool:
    """Whether a process of this user is at the other end: who asks for a worker has code run."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return bool(struct.unpack("3i", credentials)[1] == os.getuid())


def _ask(server: socket.socket, arguments: list[str]) -> None:
    if not _ours(server):
        raise PermissionError("the server is another user's")
    server.settimeout(ANSWERS)
    told = os.memfd_create("told")
    os.write(told, json.dumps([arguments, dict(os.environ), os.getcwd()]).encode())
    socket.send_fds(server, [b"?"], [0, 1, 2, told])
    if not server.recv(1):
        raise ConnectionError("the server has ended")


def serve(address: str) -> None:
    """Forks a worker for each that asks, until the raylet has ended.

    ImportError if a fork would have another autoembed than the driver, who may have it from a folder of its own.
    """
    raylet = os.pidfd_open(int(os.environ["RAY_RAYLET_PID"]))
    with _listening(address) as listener:
        _prepare()
        _serve(listener, raylet)


@contextlib.contextmanager
def _listening(address: str) -> Iterator[socket.socket]:
    """A socket at the address, whose file is gone at the end; FileExistsError if another server listens there."""
    folder, own, server = os.path.dirname(address), f"{address}.{os.getpid()}", os.getpid()
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    _check(folder)
    _sweep(folder)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(own)
    try:
        # Only a socket that listens gets its name: one that refuses is a dead server's.
        listener.listen(128)
        os.link(own, address)
    finally:
        os.unlink(own)
    try:
        yield listener
    finally:
        if os.getpid() == server:  # a fork ends as well
            with contextlib.suppress(OSError):
                os.unlink(address)
                os.rmdir(folder)  # where no other server is


def _sweep(folder: str) -> None:
    """Removes the sockets of servers that were killed."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.setblocking(False)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)


def _prepare() -> None:
    """Imports what the forks will share."""
    # The collector would write to pages that are shared.
    gc.disable()
    package = importlib.import_module("autoembed")
    if not os.path.samefile(package.__path__[0], os.path.dirname(os.path.dirname(os.path.dirname(__file__)))):
        raise ImportError(f"the driver's autoembed is not that of {package.__path__[0]}")
    for module in MODULES:
        importlib.import_module(module)
    gc.freeze()


def _serve(listener: socket.socket, raylet: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while raylet not in select.select([listener.fileno(), raylet], [], [])[0]:
        with listener.accept()[0] as client:
            files = _received(client)
            if len(files) == FILES:
                if _fork() == 0:
                    listener.close()
                    client.close()
                    _work(*files)
                with contextlib.suppress(OSError):
                    client.sendall(b"!")
        for file in files:
            os.close(file)


def _received(client: socket.socket) -> list[int]:
    """The files that the client sent; none if it is another user's, or gone."""
    client.settimeout(STARTS)
    try:
        return socket.recv_fds(client, 1, FILES)[1] if _ours(client) else []
    except OSError:
        return []


def _fork() -> int:
    # Python warns of the threads of other libraries, which know how to be forked.
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        return os.fork()


def _work(stdin: int, stdout: int, stderr: int, told: int) -> NoReturn:
    """What a fork does: it becomes the worker that was asked for."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for stream, file in enumerate((stdin, stdout, stderr)):
        os.dup2(file, stream)
        os.close(file)
    with open(told, "rb") as text:
        text.seek(0)
        sys.argv, environment, folder = json.load(text)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    gc.enable()
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        start(sys.argv[1:])
