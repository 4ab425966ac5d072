"""A part of the service is away: what clients are told, what is kept, and how long anybody is held."""

from __future__ import annotations

import signal
import socket
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import amqp
import httpx
import numpy as np
import psutil
import pytest
from sqlalchemy import create_engine, func, make_url, select, text

from shared.db import reading
from shared.models import IdempotencyKey, Job
from shared.queue import ANALYZE, EXPLAIN
from shared.schemas import Status
from shared.settings import Settings
from tests import builders, servers
from tests.chaos import brokers
from tests.conftest import postgres_database
from tests.e2e.conftest import Configure
from tests.servers import Broker, Service

FILM = builders.png(builders.chest(3))
LARGE = builders.png(np.kron(builders.chest(3), np.ones((8, 8), np.uint8)))
NO_PULSE_S = 300.0  # no worker looks into the database by itself before the test is over
HELD_S = 3.0  # the promise: a broker that is away, or a database that refuses, holds no request longer
CROWD = 14  # more than may wait for the broker at a time, so that some wait for those who wait


def submit(service: Service, data: bytes = FILM, key: str = "") -> httpx.Response:
    with service.client() as client:
        headers = {"Idempotency-Key": key} if key else {}
        return client.post("/v1/jobs", files={"file": data}, headers=headers)


def assert_problem(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def blobs(settings: Settings) -> list[Path]:
    return [path for path in (settings.home / "blobs").rglob("*") if path.is_file()]


def all_succeeded(service: Service) -> bool:
    return {job.status for job in service.jobs()} == {Status.SUCCEEDED}


# ---------------------------------------------------------------- the broker


def test_without_a_broker_uploads_are_accepted_and_the_sweeper_rings_later(
    configure: Configure, own_broker: Broker, started: ExitStack
) -> None:
    settings = configure(pulse_s=NO_PULSE_S, sweep_every_s=0.3)
    service = started.enter_context(servers.service(settings, own_broker))
    started.enter_context(servers.worker(service.settings))
    own_broker.stop()
    answers = [submit(service) for _ in range(3)]
    assert {answer.status_code for answer in answers} == {202}
    with service.client() as client:
        ready = client.get("/readyz")
    assert_problem(ready, 503, "not_ready")
    assert [name for name, said in ready.json()["parts"].items() if said != "ok"] == ["broker"]
    assert {job.status for job in service.jobs()} == {Status.QUEUED}
    own_broker.start()
    started.enter_context(servers.hilum(service.settings, "sweep"))
    servers.until(lambda: all_succeeded(service), what="the jobs of the meantime")


@contextmanager
def black_hole(*, full: bool) -> Iterator[int]:
    """A port that says nothing: it takes connections, or with `full` not even these, as where packets vanish."""
    with socket.socket() as hole, ExitStack() as held:
        hole.bind(("127.0.0.1", 0))
        hole.listen(0 if full else 512)
        for _ in range(3 if full else 0):  # they fill the queue of connections that nobody accepts
            client = held.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(hole.getsockname())
        time.sleep(0.1)
        yield hole.getsockname()[1]


@pytest.mark.parametrize("full", [False, True], ids=["silent", "unreachable"])
@pytest.mark.parametrize("url", ["redis://127.0.0.1:{}/0", "amqp://guest:guest@127.0.0.1:{}//"], ids=["redis", "amqp"])
def test_a_black_holed_broker_holds_no_upload_beyond_its_limit(
    configure: Configure, own_broker: Broker, started: ExitStack, url: str, full: bool
) -> None:
    """With the default timeouts, and a rate limit: it is counted on Redis too, which nobody has asked before."""
    service = started.enter_context(servers.service(configure(rate_per_minute=10_000), own_broker))
    port = started.enter_context(black_hole(full=full))
    settings = service.settings.model_copy(update={"broker_url": url.format(port)})
    api, _ = started.enter_context(servers.api(settings))
    headers = {"Authorization": f"Bearer {service.key}"}
    client = started.enter_context(httpx.Client(base_url=api, headers=headers, timeout=60, trust_env=False))

    def took(_: int) -> float:
        began = time.monotonic()
        assert client.post("/v1/jobs", files={"file": FILM}).status_code == 202
        return time.monotonic() - began

    with ThreadPoolExecutor(CROWD) as pool:
        waits = list(pool.map(took, range(CROWD)))
    assert max(waits) < HELD_S, statistics.quantiles(waits)
    assert len(service.jobs()) == CROWD


@pytest.fixture
def rabbit(tmp_path: Path) -> Iterator[brokers.Rabbit]:
    """A RabbitMQ of this test's own."""
    try:
        with brokers.opened("amqp", tmp_path) as found:
            assert isinstance(found, brokers.Rabbit)
            yield found
    except brokers.Missing as missing:
        pytest.skip(str(missing))


def test_rabbitmq_by_settings_alone_loses_no_bell_that_rang_before_any_worker(
    configure: Configure, rabbit: brokers.Rabbit, own_broker: Broker, started: ExitStack
) -> None:
    """Neither a sweeper nor a pulse helps: only the bells can wake the worker."""
    service = started.enter_context(servers.service(configure(pulse_s=NO_PULSE_S), own_broker))
    settings = service.settings.model_copy(update={"broker_url": rabbit.url})
    api, _ = started.enter_context(servers.api(settings))
    headers = {"Authorization": f"Bearer {service.key}"}
    with httpx.Client(base_url=api, headers=headers, timeout=60, trust_env=False) as client:
        for _ in range(3):
            answer = client.post("/v1/jobs", files={"file": FILM}, data={"explain": "gradcam"})
            assert answer.status_code == 202, answer.text
        assert client.get("/readyz").json()["parts"]["broker"] == "ok"
        with amqp.Connection(rabbit.url.removeprefix("amqp://guest:guest@").rstrip("/")) as connection:
            assert connection.channel().queue_declare(ANALYZE, passive=True).message_count == 3
        started.enter_context(servers.worker(settings, "--queues", f"{ANALYZE},{EXPLAIN}"))
        servers.until(lambda: all_succeeded(service), what="the bells to be heard")
        jobs = client.get("/v1/jobs").json()["jobs"]
    servers.until(lambda: len(list(_pictures(service))) == len(jobs), what="the explanations")


def _pictures(service: Service) -> Iterator[Path]:
    return (path for path in blobs(service.settings) if path.name == "gradcam.png")


# ---------------------------------------------------------------- the database


@contextmanager
def refusing(url: str) -> Iterator[None]:
    """Within the block the database takes no connection, and has cut those that there were."""
    where = make_url(url)
    admin = create_engine(where.set(database="postgres"), isolation_level="AUTOCOMMIT")
    cut = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")
    with admin.connect() as connection:
        connection.execute(text(f"ALTER DATABASE {where.database} ALLOW_CONNECTIONS false"))
        connection.execute(cut, {"name": where.database})
        yield
        connection.execute(text(f"ALTER DATABASE {where.database} ALLOW_CONNECTIONS true"))
    admin.dispose()


@pytest.mark.postgres
def test_without_the_database_an_upload_is_refused_at_once_and_leaves_nothing(
    configure: Configure, own_broker: Broker, started: ExitStack, postgres_url: str
) -> None:
    url = started.enter_context(postgres_database(postgres_url))
    service = started.enter_context(servers.service(configure(database_url=url), own_broker))
    assert submit(service).status_code == 202
    kept = blobs(service.settings)
    with refusing(url):
        for key in ("", "with a key"):
            began = time.monotonic()
            answer = submit(service, key=key)
            assert time.monotonic() - began < HELD_S
            assert_problem(answer, 503, "database_unavailable")
            assert answer.headers["retry-after"]
        assert blobs(service.settings) == kept
        with service.client() as client:
            assert client.get("/healthz").status_code == 200
            assert_problem(client.get("/v1/jobs"), 503, "database_unavailable")
            ready = client.get("/readyz")
        assert_problem(ready, 503, "not_ready")
        assert "database" in [name for name, said in ready.json()["parts"].items() if said != "ok"]
    assert len(service.jobs()) == 1
    assert submit(service, key="with a key").status_code == 202
    assert len(service.jobs()) == 2


# ---------------------------------------------------------------- the storage


def test_a_full_storage_refuses_an_upload_and_keeps_nothing_of_it(
    configure: Configure, own_broker: Broker, started: ExitStack
) -> None:
    """No file of the API's process may grow beyond a limit, which is how a full disk looks to it."""
    service = started.enter_context(servers.service(configure(), own_broker))
    noise = builders.png(np.random.default_rng(1).integers(0, 255, (1500, 1500), dtype=np.uint8))
    assert len(noise) > 2**21
    api = psutil.Process(_listener(service))
    before = api.rlimit(psutil.RLIMIT_FSIZE)
    api.rlimit(psutil.RLIMIT_FSIZE, (2**21, before[1]))
    answer = submit(service, noise, key="large")
    assert_problem(answer, 507, "storage_full")
    assert (service.jobs(), blobs(service.settings)) == ([], [])
    with reading(service.database) as session:
        assert session.scalar(select(func.count()).select_from(IdempotencyKey)) == 0
    assert submit(service).status_code == 202  # what fits is taken still
    api.rlimit(psutil.RLIMIT_FSIZE, before)
    assert submit(service, noise, key="large").status_code == 202
    assert len(service.jobs()) == 2


def _listener(service: Service) -> int:
    """The process that answers at the service's address."""
    port = int(service.url.rsplit(":", 1)[-1])
    for process in psutil.process_iter():
        try:
            if "api" in process.cmdline() and any(
                one.laddr.port == port and one.status == psutil.CONN_LISTEN for one in process.net_connections("tcp")
            ):
                return process.pid
        except psutil.Error:
            continue
    raise AssertionError("nobody listens")


# ---------------------------------------------------------------- scaling down


@pytest.mark.parametrize("asked", ["the worker", "all of its processes"])
def test_a_worker_that_is_asked_to_stop_hands_its_rows_to_another_in_seconds(
    configure: Configure, own_broker: Broker, started: ExitStack, asked: str
) -> None:
    """A lease of five minutes: what is not handed back would be held far beyond the patience of this test."""
    settings = configure(lease_s=300.0, pulse_s=1.0)
    service = started.enter_context(servers.service(settings, own_broker))
    first = started.enter_context(servers.worker(service.settings, "--concurrency", "2"))
    for _ in range(6):
        assert submit(service, LARGE).status_code == 202
    servers.until(lambda: any(job.status == Status.RUNNING for job in service.jobs()), what="a job in the middle")
    family = psutil.Process(first.process.pid).children(recursive=True) if asked == "all of its processes" else []
    for one in (first.process, *family):
        with suppress(psutil.NoSuchProcess):  # it had ended by itself since, as a sandbox does after its row
            one.send_signal(signal.SIGTERM)
    assert first.process.wait(20) == 0, first.said()[-3000:]
    assert not any(job.status == Status.RUNNING for job in service.jobs())
    started.enter_context(servers.worker(service.settings))
    servers.until(lambda: all_succeeded(service), what="the rest of the jobs")
    with reading(service.database) as session:
        assert not session.scalars(select(Job.id).where(Job.losses > 0)).all()
