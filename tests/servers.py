"""Real parts for tests: Redis, API, Celery worker and sweeper as processes of their own, all of them ended for sure."""

from __future__ import annotations

import contextlib
import ctypes
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import redis
from sqlalchemy import select

from api.broker import find_server
from api.migrate import migrate
from shared import tenants, workers
from shared.db import Database, open_database, reading, transaction
from shared.models import Event, Job
from shared.schemas import TERMINAL
from shared.settings import ROOT, Settings, environment

START_S = 90.0
POLL_S = 0.05
PORTS = (20_000, 32_000)
PR_SET_PDEATHSIG = 1

T = TypeVar("T")


def until(ask: Callable[[], T], *, within_s: float = START_S, what: str = "") -> T:
    """The first true answer of `ask`; AssertionError when there is none in time."""
    deadline = time.monotonic() + within_s
    while not (found := ask()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what or getattr(ask, '__name__', ask)}"
        time.sleep(POLL_S)
    return found


def free_port() -> int:
    """A port of this machine that nobody listens on now, and that no connection to elsewhere is ever given.

    A server that is stopped and started again must find its port free: it lies below those that systems give out.
    """
    while True:
        port = PORTS[0] + secrets.randbelow(PORTS[1] - PORTS[0])
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


# ---------------------------------------------------------------- processes


@dataclass
class Running:
    """A process and all that it started; what it wrote lies in `log`."""

    process: psutil.Popen
    log: Path

    def tree(self) -> list[psutil.Process]:
        """The process and its descendants, children last."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self.process, *self.process.children(recursive=True)]
        return []

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every process of the tree, parents first, so that none is replaced meanwhile."""
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill(self) -> None:
        """`kill -9` for the whole tree at once."""
        tree = self.tree()
        self.send(signal.SIGKILL)
        psutil.wait_procs(tree, timeout=10)

    def said(self) -> str:
        """What it wrote so far."""
        return self.log.read_text("utf-8", "replace")


@contextmanager
def running(name: str, command: Sequence[str], folder: Path, **options: Any) -> Iterator[Running]:
    """`command` as a process, whose tree is killed at the end, and also when this process dies before it."""
    log = folder / f"{name}-{secrets.token_hex(3)}.log"
    with log.open("wb") as file:
        process = psutil.Popen(
            list(command),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
            **options,
        )
    found = Running(process, log)
    try:
        yield found
    finally:
        found.send(signal.SIGCONT)
        found.kill()
        process.wait(10)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


# ---------------------------------------------------------------- the broker


@dataclass
class Broker:
    """A real Redis that can be frozen, stopped and started again on the same port."""

    folder: Path
    port: int = field(default_factory=free_port)
    running: Running | None = None
    _held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def client(self) -> redis.Redis:
        """A client of it."""
        return redis.Redis(port=self.port, socket_timeout=5)

    def start(self) -> None:
        """Start it, empty, and return when it answers."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        command = [str(find_server()), *options, "--dir", str(self.folder)]
        self.running = self._held.enter_context(running("redis", command, self.folder))
        until(self._answers, what="redis")

    def stop(self) -> None:
        """End it: whoever asks is refused, and what it held is gone."""
        self._held.close()
        self.running = None

    def freeze(self) -> None:
        """Accept connections and answer nothing, as a network that swallows packets looks."""
        assert self.running
        self.running.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Answer again."""
        assert self.running
        self.running.send(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False


@contextmanager
def broker(folder: Path) -> Iterator[Broker]:
    """A Redis that answers."""
    made = Broker(folder)
    made.start()
    try:
        yield made
    finally:
        made.stop()


# ---------------------------------------------------------------- the service


@contextmanager
def api(settings: Settings) -> Iterator[tuple[str, Running]]:
    """`hilum api` on a socket of ours; yields its base URL and its process once it answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with hilum(settings, "api", "--fd", str(listening.fileno()), pass_fds=(listening.fileno(),)) as process:
            until(lambda: _alive(url, process), what="the API")
            yield url, process


@contextmanager
def hilum(settings: Settings, *arguments: str, **options: Any) -> Iterator[Running]:
    """Any command of `hilum` with these settings and no others."""
    env = {**environment(settings), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "api.cli", *arguments]
    with running(arguments[0], command, settings.home, env=env, **options) as process:
        yield process


@contextmanager
def worker(settings: Settings, *arguments: str) -> Iterator[Running]:
    """`hilum worker` that has loaded its networks."""
    known = set(_serving(settings))
    with hilum(settings, "worker", *arguments) as process:
        until(lambda: set(_serving(settings)) - known or _ended(process), what="a worker that has loaded")
        yield process


def worker_pids(settings: Settings) -> list[int]:
    """The process numbers of the workers that serve this database."""
    return sorted(int(name.rsplit(":", 1)[-1]) for name in _serving(settings))


@dataclass(frozen=True)
class Service:
    """The parts of one service, and a tenant's key."""

    url: str
    key: str
    tenant_id: str
    settings: Settings
    database: Database
    broker: Broker

    def client(self, **options: Any) -> httpx.Client:
        """A client with the tenant's key."""
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=70, trust_env=False, **options)

    def submit(self, data: bytes, **fields: str) -> str:
        """Submit an image and return the id of its job."""
        with self.client() as client:
            answer = client.post("/v1/jobs", files={"file": data}, data=fields)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def jobs(self) -> list[Job]:
        """Every job, oldest first."""
        with reading(self.database) as session:
            return list(session.scalars(select(Job).order_by(Job.id)))

    def unfinished(self) -> int:
        """How many jobs have not ended."""
        return sum(job.status not in TERMINAL for job in self.jobs())

    def ends(self) -> dict[str, list[str]]:
        """The types of the events of each job, in order: a job that ended once has one of them."""
        found: dict[str, list[str]] = {job.id: [] for job in self.jobs()}
        with reading(self.database) as session:
            for event in session.scalars(select(Event).where(Event.type.like("job.%")).order_by(Event.id)):
                found[str(event.job_id)].append(event.type)
        return found


@contextmanager
def service(settings: Settings, broker: Broker) -> Iterator[Service]:
    """The API on an empty database; workers and a sweeper are for the test to start."""
    settings = settings.model_copy(update={"broker_url": broker.url})
    migrate(settings)
    database = open_database(settings)
    try:
        with transaction(database) as session:
            tenant_id = tenants.create(session, "hospital").id
            key = tenants.create_key(session, tenant_id)
        with api(settings) as (url, _):
            yield Service(url, key, tenant_id, settings, database, broker)
    finally:
        database.engine.dispose()


@contextmanager
def whole_service(settings: Settings, broker: Broker) -> Iterator[Service]:
    """The API, one worker and the sweeper."""
    with service(settings, broker) as found, worker(found.settings), hilum(found.settings, "sweep"):
        yield found


def is_gone(process: psutil.Process) -> bool:
    """Whether it has ended; one that nobody has collected yet (PID 1 of a container may take its time) has."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def metric(text: str, name: str, **labels: str) -> float:
    """The value of one series in the text format of Prometheus; 0 when there is none."""
    for line in text.splitlines():
        match = re.fullmatch(rf"{re.escape(name)}(?:{{(.*)}})? (\S+)", line)
        if match and dict(re.findall(r'(\w+)="([^"]*)"', match[1] or "")) == labels:
            return float(match[2])
    return 0.0


def _alive(url: str, process: Running) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/healthz", timeout=2, trust_env=False).status_code == 200
    return _ended(process)


def _ended(process: Running) -> bool:
    """False while it runs; a process that ended will never be ready."""
    assert process.process.poll() is None, f"ended with {process.process.poll()}: {process.said()[-3000:]}"
    return False


def _serving(settings: Settings) -> list[str]:
    """The ids of the live workers whose networks are loaded; a killed one is known to be gone by its process number."""
    database = open_database(settings)
    try:
        with reading(database) as session:
            seen = [worker for worker in workers.alive(session, 3600) if worker.runtime]
        return [worker.id for worker in seen if _runs(int(worker.id.rsplit(":", 1)[-1]))]
    finally:
        database.engine.dispose()


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
