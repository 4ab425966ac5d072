"""Limits of a tenant: requests per minute and jobs that wait, over a real Redis that comes, goes and falls silent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import httpx
import pytest
import structlog
from sqlalchemy import text, update

from api import deps, intake, rates
from api.app import create_app
from api.deps import Caller
from api.rates import Rates
from shared import tenants
from shared.db import Database, reading, transaction
from shared.errors import Throttled
from shared.models import TEST, Tenant
from shared.settings import Settings
from tests import servers
from tests.api.conftest import FILM, Hand, Submit, both, client_of, serving
from tests.servers import Broker

LIMIT_HEADERS = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")
LONG_S = 10**9  # no minute ends while a test counts it


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tenant may do is read at every request, and one window is longer than any test."""
    monkeypatch.setattr(deps, "KEY_CACHE_S", 0.0)
    monkeypatch.setattr(rates, "WINDOW_S", LONG_S)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A Redis of the module's own, which every test finds running and empty."""
    with servers.broker(tmp_path_factory.mktemp("redis")) as found:
        yield found


@pytest.fixture
def broker(redis: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    """The Redis, emptied, and put right again afterwards; a busy machine may take its time, silence lasts."""
    monkeypatch.setattr(rates, "REDIS_TIMEOUT_S", 2.0)
    monkeypatch.setattr(rates, "AWAY_S", 1000.0)
    redis.client.flushall()
    yield redis
    if redis.running is None:
        redis.start()
    redis.thaw()


def allow(database: Database, tenant_id: str, **limits: int | None) -> None:
    with transaction(database) as session:
        session.execute(update(Tenant).where(Tenant.id == tenant_id).values(**limits))


def left(answer: httpx.Response) -> int:
    assert 1 <= int(answer.headers["RateLimit-Reset"]) <= LONG_S
    return int(answer.headers["RateLimit-Remaining"])


# ---------------------------------------------------------------- requests per minute


@both
def test_the_last_request_of_a_minute_is_served_and_the_next_is_not(
    client: httpx.Client, database: Database, tenant_id: str
) -> None:
    allow(database, tenant_id, rate_per_minute=3)
    answers = [client.get("/v1/jobs") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [left(answer) for answer in answers] == [2, 1, 0, 0]
    assert {answer.headers["RateLimit-Limit"] for answer in answers} == {"3"}
    assert answers[3].json()["code"] == "too_many_requests"
    assert answers[3].headers["Retry-After"] == answers[3].headers["RateLimit-Reset"]


def test_every_answer_of_a_limited_tenant_says_what_is_left(
    client: httpx.Client, database: Database, tenant_id: str
) -> None:
    allow(database, tenant_id, rate_per_minute=100)
    answers = [
        client.get("/v1/jobs"),
        client.get("/v1/jobs/job_x"),
        client.get("/v1/jobs?limit=x"),
        client.post("/v1/jobs", files={"file": FILM}),
        client.post("/v1/jobs", files={"file": b"text"}),
        client.post("/predict", files={"file": b"text"}),
    ]
    assert [answer.status_code for answer in answers] == [200, 404, 422, 202, 415, 415]
    assert [left(answer) for answer in answers] == [99, 98, 97, 96, 95, 94]
    for answer in (client.get("/healthz"), client.get("/v1/jobs", headers={"Authorization": "Bearer no"})):
        assert not set(LIMIT_HEADERS) & set(answer.headers)


def test_the_keys_of_a_tenant_share_its_limit_and_no_other_tenant_does(
    url: str, client: httpx.Client, database: Database, tenant_id: str
) -> None:
    allow(database, tenant_id, rate_per_minute=1)
    with transaction(database) as session:
        second = tenants.create_key(session, tenant_id)
        strangers = tenants.create_key(session, tenants.create(session, "stranger").id)
    assert client.get("/v1/jobs").status_code == 200
    with client_of(url, second) as colleague, client_of(url, strangers) as stranger:
        assert colleague.get("/v1/jobs").status_code == 429
        free = stranger.get("/v1/jobs")
    assert free.status_code == 200
    assert not set(LIMIT_HEADERS) & set(free.headers)


def test_the_settings_say_what_the_tenant_does_not(
    settings: Settings, key: str, database: Database, tenant_id: str
) -> None:
    strict = settings.model_copy(update={"rate_per_minute": 1, "queued_cap": 1})
    with serving(strict) as url, client_of(url, key) as client:
        assert client.post("/v1/jobs", files={"file": FILM}).status_code == 202
        assert client.get("/v1/jobs").status_code == 429
        allow(database, tenant_id, rate_per_minute=0)
        assert client.post("/v1/jobs", files={"file": FILM}).json()["code"] == "queue_full"
        allow(database, tenant_id, rate_per_minute=50, queued_cap=0)
        assert left(client.post("/v1/jobs", files={"file": FILM})) == 49


def test_what_needs_no_key_is_counted_as_the_default_tenants(settings: Settings, database: Database) -> None:
    opened = settings.model_copy(update={"legacy_open": True, "rate_per_minute": 1})
    with transaction(database) as session:
        tenants.ensure_default(session)
    with serving(opened) as url, client_of(url, None) as client:
        assert client.post("/predict", files={"file": b"text"}).status_code == 415
        assert client.post("/predict", files={"file": b"text"}).status_code == 429


def test_every_operation_that_needs_a_key_documents_it(settings: Settings) -> None:
    paths = create_app(settings).openapi()["paths"]
    operations = [operation for methods in paths.values() for operation in methods.values()]
    assert all(("429" in operation["responses"]) == bool(operation.get("security")) for operation in operations)


# ---------------------------------------------------------------- Redis, and without it


def counted(broker: Broker) -> list[int]:
    return [int(broker.client.get(key) or 0) for key in broker.client.keys("hilum:rates:*")]


def test_all_processes_count_together(
    settings: Settings, key: str, database: Database, tenant_id: str, broker: Broker
) -> None:
    allow(database, tenant_id, rate_per_minute=5)
    shared = settings.model_copy(update={"broker_url": broker.url})
    with serving(shared) as one, serving(shared) as other, client_of(one, key) as a, client_of(other, key) as b:
        assert [left(client.get("/v1/jobs")) for client in (a, b, a)] == [4, 3, 2]
    assert counted(broker) == [3]


def test_a_tenant_without_a_limit_costs_redis_nothing(settings: Settings, key: str, broker: Broker) -> None:
    shared = settings.model_copy(update={"broker_url": broker.url})
    with serving(shared) as url, client_of(url, key) as client:
        before = broker.client.info("stats")["total_connections_received"]
        for _ in range(3):
            client.get("/v1/jobs")
        assert broker.client.info("stats")["total_connections_received"] <= before + 1  # ours
    assert counted(broker) == []


@contextmanager
def counting_here() -> Iterator[list[str]]:
    """How often Redis was tried in vain."""
    with structlog.testing.capture_logs() as lines:
        found: list[str] = []
        yield found
        found += [line["event"] for line in lines if line["event"] == "rates_counted_here"]


def within(broker: Broker, act: Callable[[Rates], Awaitable[None]]) -> None:
    """Run `act` with the counters of one process; what blocks fails."""

    async def run() -> None:
        found = Rates(broker.url)
        try:
            await asyncio.wait_for(act(found), 60)
        finally:
            await found.close()

    asyncio.run(run())


@pytest.mark.parametrize("end", [Broker.freeze, Broker.stop])
def test_while_redis_is_away_each_process_counts_for_itself_and_asks_it_once(
    broker: Broker, end: Callable[[Broker], None]
) -> None:
    async def act(found: Rates) -> None:
        assert (await found.take("ten", 4)).used == 1
        end(broker)
        windows = [await found.take("ten", 4) for _ in range(6)]
        assert [window.used for window in windows] == [1, 2, 3, 4, 5, 6]
        assert [window.exceeded for window in windows] == [False] * 4 + [True] * 2

    with counting_here() as tried:
        within(broker, act)
    assert tried == ["rates_counted_here"]


def test_of_many_at_once_one_asks_whether_redis_is_back(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(found: Rates) -> None:
        broker.freeze()
        await found.take("ten", 100)
        monkeypatch.setattr(found, "_away_until", 0.001)  # its time is over
        await asyncio.gather(*(found.take("ten", 100) for _ in range(20)))

    with counting_here() as tried:
        within(broker, act)
    assert tried == ["rates_counted_here"] * 2


def test_a_silent_redis_delays_a_request_by_no_more_than_its_time_limit(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the limit it would wait for ever: nothing else bounds it."""
    monkeypatch.setattr(rates, "REDIS_TIMEOUT_S", 100)

    async def act(found: Rates) -> None:
        await found.take("ten", 100)
        broker.freeze()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(found.take("ten", 100), 2)
        monkeypatch.setattr(rates, "REDIS_TIMEOUT_S", 0.5)
        assert (await asyncio.wait_for(found.take("ten", 100), 10)).used == 1

    within(broker, act)


def test_redis_counts_again_when_it_is_back(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "AWAY_S", 0.05)

    async def act(found: Rates) -> None:
        broker.freeze()
        await found.take("ten", 1000)
        broker.thaw()
        while not counted(broker):
            await found.take("ten", 1000)

    within(broker, act)


@pytest.mark.parametrize("in_redis", [True, False])
def test_a_window_ends(broker: Broker, monkeypatch: pytest.MonkeyPatch, in_redis: bool) -> None:
    monkeypatch.setattr(rates, "WINDOW_S", 1)
    if not in_redis:
        broker.stop()

    async def act(found: Rates) -> None:
        seen = [await found.take("ten", 5)]
        while not (len(seen) > 1 and seen[-1].used < seen[-2].used):
            seen.append(await found.take("ten", 5))
        assert seen[-1].used == 1
        assert {window.reset_s for window in seen} == {1}

    within(broker, act)


@pytest.mark.parametrize("url", ["", "amqp://guest@127.0.0.1:1//", "memory://"])
def test_a_broker_that_is_no_redis_is_not_asked(url: str) -> None:
    async def act() -> list[int]:
        found = Rates(url)
        taken = [(await found.take("ten", 5)).used for _ in range(3)]
        await found.close()
        return taken

    assert asyncio.run(act()) == [1, 2, 3]


def test_a_valkey_is_asked_as_a_redis(broker: Broker) -> None:
    """Redis by another name: the same client speaks to it."""

    async def act() -> int:
        found = Rates(broker.url.replace("redis://", "valkey://"))
        try:
            return (await found.take("ten", 5)).used
        finally:
            await found.close()

    assert asyncio.run(act()) == 1
    assert counted(broker) == [1]


# ---------------------------------------------------------------- jobs that wait


@both
def test_a_tenant_may_have_only_so_many_jobs_waiting(
    client: httpx.Client, database: Database, tenant_id: str, submit: Submit, hand: Hand, settings: Settings
) -> None:
    allow(database, tenant_id, queued_cap=2)
    first, second = submit()["id"], submit()["id"]
    refused = client.post("/v1/jobs", files={"file": FILM})
    assert (refused.status_code, refused.json()["code"], refused.json()["queued_cap"]) == (429, "queue_full", 2)
    assert int(refused.headers["Retry-After"]) > 0
    assert {job.parent.name for job in (settings.home / "blobs").rglob("input")} == {first, second}
    assert len(client.get("/v1/jobs").json()["jobs"]) == 2
    hand.claim()
    submit()
    assert client.post("/predict", files={"file": FILM}).json()["code"] == "queue_full"


@pytest.mark.parametrize("per_minute", [0, 100])
def test_a_full_queue_says_so_in_the_headers(
    client: httpx.Client, database: Database, tenant_id: str, submit: Submit, per_minute: int
) -> None:
    """Of the cap, and not of the requests of which there are some left."""
    allow(database, tenant_id, queued_cap=3, rate_per_minute=per_minute)
    submit(), submit()
    three = [("file", (f"{name}.png", FILM)) for name in "abc"]
    refused = client.post("/v1/batches", files=three)  # as a whole; one alone would have room
    submit()
    answers = [client.post(path, files={"file": FILM}) for path in ("/v1/jobs", "/v1/batches", "/predict")]
    for answer, remaining in ((refused, 1), *((answer, 0) for answer in answers)):
        assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
        assert [answer.headers[name] for name in LIMIT_HEADERS[:2]] == ["3", str(remaining)]
        assert answer.headers["RateLimit-Reset"] == answer.headers["Retry-After"]
    served = client.get("/v1/jobs").headers
    assert served.get("RateLimit-Limit") == (str(per_minute) if per_minute else None)


def test_a_full_queue_refuses_nothing_that_adds_nothing(
    client: httpx.Client, database: Database, tenant_id: str
) -> None:
    """A replay and a reused job; and a request that was refused may come again with the same key."""
    allow(database, tenant_id, queued_cap=1)
    key = {"Idempotency-Key": "one"}
    first = client.post("/v1/jobs", files={"file": FILM}, headers=key)
    assert client.post("/v1/jobs", files={"file": FILM}, headers=key).content == first.content
    assert client.post("/v1/jobs", files={"file": FILM}, data={"reuse": "true"}).json()["id"] == first.json()["id"]
    second = {"Idempotency-Key": "two"}
    assert client.post("/v1/jobs", files={"file": FILM}, headers=second).status_code == 429
    client.post(f"/v1/jobs/{first.json()['id']}/cancel")
    assert client.post("/v1/jobs", files={"file": FILM}, headers=second).status_code == 202


def test_live_and_test_jobs_are_counted_apart(
    url: str, client: httpx.Client, database: Database, tenant_id: str, submit: Submit
) -> None:
    allow(database, tenant_id, queued_cap=1)
    with transaction(database) as session:
        rehearsing = tenants.issue_key(session, tenant_id, mode=TEST).key
    submit()
    with client_of(url, rehearsing) as tester:
        assert tester.post("/v1/jobs", files={"file": FILM}).status_code == 202
        assert tester.post("/v1/jobs", files={"file": FILM}).json()["code"] == "queue_full"


@pytest.fixture
def crowded(database: Database, tenant_id: str) -> Database:
    """Many jobs of the tenant that ended, and after them a tenth as many that wait."""
    statement = """
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)
        INSERT INTO jobs (id, tenant_id, status, mode, priority, due_at, ready_at, created_at, attempt, losses, version,
                          cancel_requested, metadata, blob_key, media_type, size, sha256)
        SELECT 'job_' || (100000 + i), :tenant_id, CASE WHEN i > 45000 THEN 'queued' ELSE 'succeeded' END, 'live',
               'stat', CURRENT_TIMESTAMP, CURRENT_TIMESTAMP, CURRENT_TIMESTAMP, 0, 0, 1, false, '{}', 'b', 'image/png',
               1, 'c' FROM n"""
    with transaction(database) as session:
        session.execute(text(statement), {"tenant_id": tenant_id})
        session.execute(text("ANALYZE"))
    database.engine.dispose()  # an open connection would plan with the numbers it remembers
    return database


@both
def test_what_waits_is_counted_to_the_cap_and_no_further(crowded: Database, tenant_id: str) -> None:
    """Through the index of the states: by the primary key, every job that ended before would be read first."""
    caller = Caller(tenant_id, frozenset(), "key", queued_cap=100)
    query = intake._waiting(caller).compile(crowded.engine, compile_kwargs={"literal_binds": True})
    explain = "EXPLAIN" if crowded.engine.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    with reading(crowded) as session:
        plan = "\n".join(str(tuple(row)) for row in session.connection().exec_driver_sql(f"{explain} {query}"))
    assert "ix_jobs_tenant_id_status_id" in plan
    assert "Sort" not in plan
    assert "TEMP B-TREE" not in plan
    for cap, is_full in ((1, True), (100, True), (5000, True), (5001, False)):
        with pytest.raises(Throttled) if is_full else nullcontext():
            intake.ensure_room(crowded, replace(caller, queued_cap=cap))


def test_a_batch_is_counted_as_a_whole(database: Database, tenant_id: str, submit: Submit) -> None:
    submit()
    caller = Caller(tenant_id, frozenset(), "key", queued_cap=4)
    intake.ensure_room(database, caller, 3)
    for count in (4, 5, 1000):
        with pytest.raises(Throttled):
            intake.ensure_room(database, caller, count)
