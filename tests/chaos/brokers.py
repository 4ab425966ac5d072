"""The brokers that are broken here: a real Redis with its append-only file, and a real RabbitMQ."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import amqp
import redis

from api.broker import find_server
from shared.queue import QUEUES
from tests import servers
from tests.servers import Running, free_port

# Debian's rabbitmq-server on PATH changes the user and the folder; the script behind it does neither.
RABBIT = (Path("/usr/lib/rabbitmq/bin/rabbitmq-server"), Path("/usr/local/lib/rabbitmq/bin/rabbitmq-server"))


class Missing(Exception):
    """A server that this run was asked for is not installed; the message says which."""


class Broker(Protocol):
    """A broker on a port of its own."""

    @property
    def url(self) -> str:
        """Where it answers."""

    def restart(self, *, keep: bool, down: Callable[[], object]) -> None:
        """`kill -9`, call `down` while nobody answers, and start again, with its data or without."""

    def flush(self) -> None:
        """Empty it while it runs."""

    def tree(self) -> Running:
        """Its processes."""


class Redis:
    """A Redis that writes every command into its append-only file."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder / "redis", free_port()
        self._held, self._running = ExitStack(), None
        self._start()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"redis://127.0.0.1:{self._port}/0"

    def restart(self, *, keep: bool, down: Callable[[], object]) -> None:
        """`kill -9`, and start again, with its file or without."""
        self._held.close()
        down()
        if not keep:
            shutil.rmtree(self._folder)
        self._start()

    def flush(self) -> None:
        """FLUSHALL."""
        self._client().flushall()

    def tree(self) -> Running:
        """Its process."""
        assert self._running
        return self._running

    def stop(self) -> None:
        """End it for good."""
        self._held.close()

    def _start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        options = ["--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)]
        command = [str(find_server()), *options, "--appendonly", "yes", "--appendfsync", "always"]
        self._running = self._held.enter_context(servers.running("redis", command, self._folder.parent))
        servers.until(self._answers, what="redis")

    def _answers(self) -> bool:
        try:
            return bool(self._client().ping())
        except redis.RedisError:
            return False

    def _client(self) -> redis.Redis:
        return redis.Redis(port=self._port, socket_timeout=10)


class Rabbit:
    """A RabbitMQ with a port mapper of its own, so that it meets no other one of this machine."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port, mapper, distribution = folder / "rabbit", free_port(), free_port(), free_port()
        self._held, self._all, self._running = ExitStack(), ExitStack(), None
        self._folder.mkdir()
        (self._folder / "enabled_plugins").write_text("[].", "utf-8")
        (self._folder / "rabbitmq.conf").write_text("heartbeat = 10\n", "utf-8")
        own = {
            "HOME": self._folder,
            "ERL_EPMD_PORT": mapper,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": "chaos@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": self._port,
            "RABBITMQ_DIST_PORT": distribution,
            "RABBITMQ_MNESIA_BASE": self._folder / "data",
            "RABBITMQ_LOG_BASE": self._folder,
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONF_ENV_FILE": self._folder / "none",
            "RABBITMQ_CONFIG_FILE": self._folder / "rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self._folder / "enabled_plugins",
            "RABBITMQ_PID_FILE": self._folder / "pid",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1 +sbwt none",
        }
        self._env = {**os.environ, **{name: str(value) for name, value in own.items()}}
        command = [_found("epmd"), "-port", str(mapper), "-address", "127.0.0.1"]
        self._all.enter_context(servers.running("epmd", command, folder))
        self._start()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"amqp://guest:guest@127.0.0.1:{self._port}//"

    def restart(self, *, keep: bool, down: Callable[[], object]) -> None:
        """`kill -9`, and start again, with its data or without."""
        self._held.close()
        down()
        if not keep:
            shutil.rmtree(self._folder / "data")
        self._start()

    def flush(self) -> None:
        """Delete every queue under the hands of its consumers."""
        with self._client() as client:
            for bell in QUEUES:
                # On a channel of its own: the broker closes a channel on which a queue was not found.
                with contextlib.suppress(amqp.NotFound):
                    client.channel().queue_delete(bell)

    def tree(self) -> Running:
        """Its processes."""
        assert self._running
        return self._running

    def stop(self) -> None:
        """End it for good, and its port mapper."""
        self._held.close()
        self._all.close()

    def _start(self) -> None:
        command = [str(_rabbit())]
        self._running = self._held.enter_context(servers.running("rabbit", command, self._folder.parent, env=self._env))
        servers.until(self._answers, what="rabbitmq")

    def _answers(self) -> bool:
        try:
            with self._client() as client:
                return bool(client.connected)
        except (TimeoutError, OSError, amqp.AMQPError):
            return False

    def _client(self) -> amqp.Connection:
        return amqp.Connection(f"127.0.0.1:{self._port}", connect_timeout=10, read_timeout=10)


@contextmanager
def opened(kind: str, folder: Path) -> Iterator[Redis | Rabbit]:
    """A broker of the kind `redis` or `amqp` that answers; Missing."""
    if kind == "amqp":
        _rabbit(), _found("epmd")
    made = {"redis": Redis, "amqp": Rabbit}[kind](folder)
    try:
        yield made
    finally:
        made.stop()


def _rabbit() -> Path:
    for script in RABBIT:
        if script.exists():
            return script
    return Path(_found("rabbitmq-server"))


def _found(program: str) -> str:
    if found := shutil.which(program):
        return found
    raise Missing(f"{program} is not installed (apt install rabbitmq-server)")
