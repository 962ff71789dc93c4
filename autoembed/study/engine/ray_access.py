"""Who may reach a study's Ray: loopback only, and a token that only its user can read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray._private import services
from ray._private.authentication.authentication_token_generator import generate_new_authentication_token
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled

from autoembed.study import CHOSEN

LOOPBACK = "127.0.0.1"
MODE = "RAY_AUTH_MODE"
_GIVEN = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@contextmanager
def on_loopback() -> Iterator[None]:
    """Lets a Ray that is started within it listen on loopback: Ray takes the machine's own address in its place."""
    before = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = before


def guard_token() -> None:
    """Makes the token of this user's Rays, if there is none, and lets nobody else read it, as Ray does not."""
    if os.environ.get(MODE) != "token" or any(name in os.environ for name in _GIVEN):
        return
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(made, "w") as file:
            file.write(generate_new_authentication_token())
    for guarded, mode in ((path.parent, 0o700), (path, 0o600)):
        facts = guarded.stat()
        if facts.st_uid == os.getuid() and facts.st_mode & 0o077:
            guarded.chmod(mode)


def has_token() -> bool:
    """Whether this machine has a token for a cluster."""
    return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


def mode_for_cluster() -> str:
    """How to ask a cluster: as RAY_AUTH_MODE says if it was set, else with a token if this machine has one."""
    if MODE not in CHOSEN:
        os.environ[MODE] = "token" if has_token() else "disabled"
        Config.initialize("")
    return os.environ[MODE]
