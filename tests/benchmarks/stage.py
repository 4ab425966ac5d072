"""Where benchmarks happen: a home of its own on the disk of this checkout, a real Redis, real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api import broker, migrate
from shared import tenants
from shared.db import open_database, transaction
from shared.settings import ROOT, Settings, environment

HOMES = ROOT / ".hilum"  # where the default home lies: a temporary folder in memory would make every flush free
READY_S = 60.0
STOP_S = 20.0


@dataclass(frozen=True)
class Stage:
    """A migrated database with the default tenant, its API key, and a broker that answers."""

    settings: Settings
    key: str

    def with_settings(self, **values: Any) -> Stage:
        """The same stage, seen with other settings."""
        given = {name: getattr(self.settings, name) for name in self.settings.model_fields_set}
        return Stage(Settings(**{**given, **values}), self.key)


@contextmanager
def staged(**values: Any) -> Iterator[Stage]:
    """A stage that is gone after the block; `values` are settings of its own."""
    HOMES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=HOMES, ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        redis = broker.plan(home, os.environ)
        # Empty values are given as well: no benchmark may write into the database that the environment names.
        own = {"home": home, "broker_url": redis.url, "database_url": "", "storage_url": "", "log_level": "info"}
        settings = Settings(**{**own, **values})
        with running(home / "redis.log", redis.program.argv):
            wait_until(lambda: broker.answers(redis.url), "the broker answers")
            migrate.migrate(settings)
            yield Stage(settings, _key(settings))


@contextmanager
def running(log: Path, command: Sequence[str], *, fds: Sequence[int] = (), **options: Any) -> Iterator[Any]:
    """A process that writes into `log`, ended after the block; says the log's end when the block fails."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(command), cwd=ROOT, stderr=output, pass_fds=fds, **{"stdout": output, **options}
        )
        try:
            yield process
        except BaseException:
            print(f"--- {log.name}", *log.read_text("utf-8", "replace").splitlines()[-15:], sep="\n", file=sys.stderr)
            raise
        finally:
            end(process)


@contextmanager
def serving(log: Path, command: Sequence[str], settings: Settings | None = None) -> Iterator[int]:
    """A process that serves HTTP on a socket it inherits as `--fd N`: the port, once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd, port = listener.fileno(), listener.getsockname()[1]
        env = environment(settings) if settings else dict(os.environ)
        with running(log, [*command, "--fd", str(fd)], fds=(fd,), env=env):
            wait_until(lambda: _answers(port), f"{command[-1]} answers")
            yield port


def hilum(*arguments: str) -> list[str]:
    """The command line of `hilum` in this interpreter."""
    return [sys.executable, "-m", "api.cli", *arguments]


def end(process: subprocess.Popen[Any]) -> None:
    """End a process in good order, or else by force."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(true: Callable[[], bool], what: str, timeout_s: float = READY_S) -> None:
    """Return once `true` holds; TimeoutError says what did not come true."""
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.02)


def _key(settings: Settings) -> str:
    database = open_database(settings)
    try:
        with transaction(database) as session:
            key = tenants.ensure_default(session)
        assert key
        return key
    finally:
        database.engine.dispose()


def _answers(port: int) -> bool:
    """Whether an HTTP server has begun to answer on a socket that has been listening all the time."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as client:
        client.settimeout(1)
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: benchmark\r\nConnection: close\r\n\r\n")
        return client.recv(16).startswith(b"HTTP/1.1")
    return False
