"""Every process of one run, each started again when it has died, on ports and in a folder of its own."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import psutil

from api.migrate import migrate
from shared import tenants
from shared.bundles import Bundle
from shared.db import open_database, transaction
from shared.settings import Settings, environment
from tests import servers
from tests.chaos import brokers, postgres, process
from tests.chaos.plan import Plan
from tests.chaos.postgres import Postgres
from tests.servers import Running
from tests.tiny import tiny_bundle
from worker.runtimes import compiled

START_S = 240.0
HANG_S = 1.0  # a receiver that takes longer has failed
# Tries in seconds for as long as a run may need, instead of in days.
RETRIES = ",".join(["0.5", "1", "1"] + ["2"] * 60)


class Kept:
    """A process to start again when it has died; use it from one thread, for the process dies with that thread."""

    def __init__(self, name: str, command: list[str], env: Mapping[str, str], folder: Path, fds: tuple[int, ...] = ()):
        self.name = name
        self._command, self._env, self._folder, self._fds = command, dict(env), folder, fds
        self._held = ExitStack()
        self.running: Running | None = None

    def start(self) -> None:
        """Start it; what runs already is killed."""
        self.stop()
        started = servers.running(self.name, self._command, self._folder, env=self._env, pass_fds=self._fds)
        self.running = self._held.enter_context(started)

    def stop(self) -> None:
        """`kill -9` for it and all that it started."""
        self._held.close()
        self.running = None

    def leave(self, within_s: float) -> None:
        """Ask it to stop, and kill what is left when it takes longer."""
        assert self.running
        self.running.process.terminate()
        psutil.wait_procs([self.running.process], timeout=within_s)
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.running is not None and self.running.process.poll() is None

    def children(self) -> list[psutil.Process]:
        """The processes that it started itself: those of a worker's pool."""
        try:
            return self.running.process.children() if self.running else []
        except psutil.NoSuchProcess:
            return []


@dataclass
class Stage:
    """The service of one run, and what may be done to it."""

    settings: Settings
    url: str
    key: str
    journal: Path
    broker: brokers.Redis | brokers.Rabbit
    database: Postgres | None
    api: Kept
    sweeper: Kept
    workers: list[Kept]
    sender: Kept
    died: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Start every process and return when the API answers and a worker has loaded."""
        for kept in self.all():
            kept.start()
        servers.until(self.answers, within_s=START_S, what="the API")
        loaded = partial(servers.worker_pids, self.settings)
        servers.until(loaded, within_s=START_S, what="a worker that has loaded")

    def stop(self) -> None:
        """End every process."""
        for kept in self.all():
            kept.stop()

    def tend(self) -> None:
        """Start again what has died by itself."""
        for kept in self.all():
            if not kept.alive:
                said = kept.running.said()[-600:] if kept.running else ""
                self.died.append(f"{kept.name}: {said}")
                kept.start()

    def all(self) -> list[Kept]:
        """Every process of Hilum."""
        return [self.api, self.sweeper, *self.workers, self.sender]

    def answers(self) -> bool:
        """Whether the API lives."""
        try:
            return httpx.get(f"{self.url}/healthz", timeout=2, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False


@contextmanager
def staged(plan: Plan, folder: Path, bundle: Bundle | None = None, cache: Path | None = None) -> Iterator[Stage]:
    """A stage whose processes run; the tiny bundle is made and compiled unless both are given. Missing."""
    with ExitStack() as held:
        broker = held.enter_context(brokers.opened(plan.broker, folder))
        database = held.enter_context(postgres.opened(folder)) if plan.database == "postgresql" else None
        settings = _settings(plan, folder, bundle or tiny_bundle(folder / "bundle"), broker.url, database)
        if cache:
            settings.cache.symlink_to(cache)
        else:
            compiled.ensure(tiny_bundle(folder / "bundle"), settings.cache)
        migrate(settings)
        listening = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
        stage = _stage(plan, settings, broker, database, listening)
        held.callback(stage.stop)
        stage.start()
        yield stage


def _settings(plan: Plan, folder: Path, bundle: Bundle, broker_url: str, database: Postgres | None) -> Settings:
    home = folder / "home"
    home.mkdir()
    return Settings(
        home=home,
        bundle=bundle.root,
        threads=1,
        broker_url=broker_url,
        database_url=database.url if database else "",
        webhook_private=True,
        webhook_schedule_s=RETRIES,
        webhook_timeout_s=HANG_S,
        log_level="warning",
        **plan.settings,
    )


def _stage(
    plan: Plan,
    settings: Settings,
    broker: brokers.Redis | brokers.Rabbit,
    database: Postgres | None,
    listening: socket.socket,
) -> Stage:
    journal, logs = settings.home / "journal", settings.home / "logs"
    journal.mkdir()
    logs.mkdir()
    env = {**environment(settings), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    env |= {process.JOURNAL: str(journal), process.SABOTAGE: plan.sabotage}

    def kept(name: str, *arguments: str, module: str = "tests.chaos.process", fds: tuple[int, ...] = ()) -> Kept:
        return Kept(name, [sys.executable, "-m", module, *arguments], env, logs, fds)

    fd = listening.fileno()
    worker = ("worker", "--queues", "analyze,explain", "--concurrency", str(plan.children))
    return Stage(
        settings=settings,
        url=f"http://127.0.0.1:{listening.getsockname()[1]}",
        key=_key(settings),
        journal=journal,
        broker=broker,
        database=database,
        api=kept("api", "api", "--fd", str(fd), module="api.cli", fds=(fd,)),
        sweeper=kept("sweep", "sweep"),
        workers=[kept(f"worker-{n}", *worker) for n in range(plan.workers)],
        sender=kept("sender", "worker", "--queues", "deliver"),
    )


def _key(settings: Settings) -> str:
    database = open_database(settings)
    try:
        with transaction(database) as session:
            tenant_id = tenants.create(session, "platform").id
            return tenants.create_key(session, tenant_id)
    finally:
        database.engine.dispose()
