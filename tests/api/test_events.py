"""Events over HTTP: streams and long polls, neither of which skips or repeats what happened, whoever commits when."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest
import sqlalchemy
from sqlalchemy import insert, select, text

from api import deps, stream
from api.routes import events as route
from shared import events, ids, metrics, outbox, tenants
from shared.db import Database, clock, reading, transaction
from shared.events import Wanted
from shared.models import ApiKey, Event
from shared.settings import Settings
from tests import servers
from tests.api.conftest import Hand, Submit, both, client_of, later

on_postgres = pytest.mark.parametrize(
    "database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)
JSON = {"Accept": "application/json"}


class Reader:
    """A client of one stream, in a thread: what it was told, and how its stream stands."""

    def __init__(self, client: httpx.Client) -> None:
        self.told: list[dict[str, Any]] = []
        self.blocks: list[dict[str, str]] = []
        self.ended = False
        self._client = client

    def start(self, path: str, **options: Any) -> None:
        """Begin to read."""
        threading.Thread(target=self._read, args=(path,), kwargs=options, daemon=True).start()

    def close(self) -> None:
        """Leave."""
        self._client.close()

    @property
    def ids(self) -> list[str]:
        return [event["id"] for event in self.told]

    @property
    def last_id(self) -> str:
        """What a browser would send as Last-Event-ID."""
        return [block["id"] for block in self.blocks if "id" in block][-1]

    def _read(self, path: str, **options: Any) -> None:
        # A client that is closed here, or a server that is, ends the reading with an error.
        with (
            contextlib.suppress(httpx.HTTPError, RuntimeError),
            self._client.stream("GET", path, timeout=30, **options) as answer,
        ):
            assert answer.status_code == 200
            self._parse(answer.iter_lines())
        self.ended = True

    def _parse(self, lines: Iterator[str]) -> None:
        block: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(":")
            if line:
                block[name or "comment"] = value.removeprefix(" ")
                continue
            self.blocks.append(block)
            self.told += [json.loads(block["data"])] if "data" in block else []
            block = {}


Open = Callable[..., Reader]


@pytest.fixture
def read(url: str, key: str) -> Iterator[Open]:
    """Open a stream, and return its reader once it has begun; all are closed at the end."""
    readers: list[Reader] = []

    def opened(path: str = "/v1/events", **options: Any) -> Reader:
        reader = Reader(client_of(url, key))
        readers.append(reader)
        reader.start(path, **options)
        servers.until(lambda: reader.blocks or reader.ended, within_s=20, what="the stream begins")
        return reader

    yield opened
    for reader in readers:
        reader.close()


def happen(database: Database, tenant_id: str, count: int = 1) -> list[str]:
    """So many events that belong to no job; their ids."""
    made = []
    for _ in range(count):
        with transaction(database) as session:
            made.append(outbox.record(session, tenant_id, None, "batch.finished", batch="bat_1").id)
    return made


def poll(client: httpx.Client, path: str = "/v1/events", **params: Any) -> dict[str, Any]:
    answer = client.get(path, params=params, headers=JSON)
    assert answer.status_code == 200, answer.text
    return answer.json()


def waited(told: Reader, count: int) -> list[str]:
    servers.until(lambda: len(told.told) >= count, within_s=20, what=f"{count} events")
    return told.ids


# ---------------------------------------------------------------- streams


@both
def test_a_stream_tells_what_happens_from_now_on(database: Database, tenant_id: str, read: Open) -> None:
    happen(database, tenant_id)
    told = read()
    made = happen(database, tenant_id, 3)
    assert waited(told, 3) == made
    event = told.told[0]
    assert event == {
        "id": made[0],
        "type": "batch.finished",
        "created_at": event["created_at"],
        "data": {"batch": "bat_1"},
        "test": False,
    }
    assert [block["event"] for block in told.blocks if "data" in block] == ["batch.finished"] * 3
    assert told.last_id == made[-1]


@both
def test_a_reader_that_comes_back_hears_what_it_missed(database: Database, tenant_id: str, read: Open) -> None:
    first = read()
    made = happen(database, tenant_id, 2)
    assert waited(first, 2) == made
    first.close()
    made += happen(database, tenant_id, 2)
    second = read(headers={"Last-Event-ID": first.last_id})
    made += happen(database, tenant_id, 1)
    assert waited(second, 3) == made[2:]


@both
def test_a_reader_that_heard_nothing_yet_comes_back_to_where_it_began(
    database: Database, tenant_id: str, read: Open
) -> None:
    """A browser keeps the id that a stream begins with, although no event came with it."""
    first = read()
    first.close()
    made = happen(database, tenant_id)
    assert waited(read(headers={"Last-Event-ID": first.last_id}), 1) == made


@both
@pytest.mark.parametrize("how", ["header", "query", "start"])
def test_a_reader_that_heard_nothing_new_comes_back_to_where_it_was(
    database: Database, tenant_id: str, read: Open, how: str
) -> None:
    """A stream that begins without an id would, by the standard, make its reader forget the one that it came with."""
    told = happen(database, tenant_id)
    place = {"start": "start"}.get(how, told[0])
    headers, query = ({"Last-Event-ID": place}, "") if how == "header" else ({}, f"&after={place}")
    again = read(f"/v1/events?types=job.failed{query}", headers=headers)  # none of these happens here
    assert again.blocks[0]["id"] == again.last_id == place
    again.close()
    told += happen(database, tenant_id)
    heard = told if how == "start" else told[1:]
    assert waited(read(headers={"Last-Event-ID": again.last_id}), len(heard)) == heard


def test_a_stream_may_begin_with_the_oldest_event(database: Database, tenant_id: str, read: Open) -> None:
    made = happen(database, tenant_id, 2)
    assert waited(read("/v1/events?after=start"), 2) == made
    assert waited(read(f"/v1/events?after={made[0]}"), 1) == made[1:]
    assert waited(read(f"/v1/events?after={made[0]}", headers={"Last-Event-ID": made[1]}), 0) == []


def test_types_choose_what_a_stream_tells(
    database: Database, tenant_id: str, submit: Submit, client: httpx.Client, read: Open
) -> None:
    told = read("/v1/events?types=job.canceled,job.failed")
    happen(database, tenant_id)
    client.post(f"/v1/jobs/{submit()['id']}/cancel")
    happen(database, tenant_id)
    client.post(f"/v1/jobs/{submit()['id']}/cancel")
    waited(told, 2)
    assert [event["type"] for event in told.told] == ["job.canceled"] * 2


def test_a_stream_lives_between_events(read: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(stream, "SLOWLY_S", 0.1)
    told = read()
    servers.until(lambda: len(told.blocks) >= 4, within_s=20, what="three heartbeats")
    assert [block.get("comment") for block in told.blocks[1:4]] == ["still here"] * 3


def test_a_stream_ends_when_its_key_is_revoked(
    database: Database, read: Open, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(stream, "SLOWLY_S", 0.1)
    monkeypatch.setattr(route, "CHECK_S", 0.1)
    monkeypatch.setattr(deps, "KEY_CACHE_S", 0.1)
    told = read()
    with transaction(database) as session:
        (found,) = session.scalars(select(ApiKey)).all()
        found.revoked_at = clock(session)
    servers.until(lambda: told.ended, within_s=20, what="the stream ends")


def test_nobody_hears_another_tenant(database: Database, tenant_id: str, read: Open) -> None:
    with transaction(database) as session:
        other = tenants.create(session, "another").id
    told = read()
    happen(database, other)
    made = happen(database, tenant_id)
    assert waited(told, 1) == made


# ---------------------------------------------------------------- one job


@both
def test_the_stream_of_a_job_ends_with_its_last_explanation(submit: Submit, hand: Hand, read: Open) -> None:
    job_id = submit(explain="gradcam")["id"]
    told = read(f"/v1/jobs/{job_id}/events")
    hand.succeed()
    waited(told, 1)
    assert not told.ended
    hand.explain(job_id, gradcam_png=b"heat")
    servers.until(lambda: told.ended, within_s=20, what="the stream ends")
    assert [event["type"] for event in told.told] == ["job.succeeded", "explanation.succeeded"]
    assert [event["data"] for event in told.told] == [{"job": job_id}, {"job": job_id, "method": "gradcam"}]
    late = read(f"/v1/jobs/{job_id}/events")
    servers.until(lambda: late.ended, within_s=20, what="the stream of an ended job ends")
    assert late.ids == told.ids


def test_the_stream_of_a_job_ends_when_its_explanation_is_canceled(
    submit: Submit, hand: Hand, client: httpx.Client, read: Open
) -> None:
    job_id = submit(explain="gradcam")["id"]
    told = read(f"/v1/jobs/{job_id}/events")
    hand.succeed()
    waited(told, 1)
    client.delete(f"/v1/jobs/{job_id}/explanations/gradcam")
    servers.until(lambda: told.ended, within_s=20, what="the stream ends")
    assert len(told.told) == 1


def test_a_reader_of_an_ended_job_is_told_to_come_back_no_more(
    submit: Submit, client: httpx.Client, read: Open
) -> None:
    job_id = submit()["id"]
    client.post(f"/v1/jobs/{job_id}/cancel")
    told = read(f"/v1/jobs/{job_id}/events")
    servers.until(lambda: told.ended, within_s=20, what="the stream ends")
    assert client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": told.last_id}).status_code == 204


def test_a_stream_of_one_job_tells_of_no_other(submit: Submit, client: httpx.Client, read: Open) -> None:
    first, second = submit()["id"], submit()["id"]
    told = read(f"/v1/jobs/{second}/events")
    for job_id in (first, second):
        client.post(f"/v1/jobs/{job_id}/cancel")
    servers.until(lambda: told.ended, within_s=20, what="the stream ends")
    assert [event["data"]["job"] for event in told.told] == [second]


# ---------------------------------------------------------------- long poll


@both
def test_a_poll_goes_through_all_events_in_pages(database: Database, tenant_id: str, client: httpx.Client) -> None:
    made, seen, after = happen(database, tenant_id, 5), [], "start"
    while found := poll(client, after=after, limit=2):
        seen += [event["id"] for event in found["events"]]
        after = found["next_after"]
        if not found["events"]:
            break
    assert seen == made
    assert not found["ended"]
    assert poll(client, after=after, wait=0.2)["events"] == []


@both
def test_a_poll_that_waits_is_woken(database: Database, tenant_id: str, client: httpx.Client) -> None:
    (first,) = happen(database, tenant_id)
    timer = later(0.4, lambda: happen(database, tenant_id))
    found = poll(client, after=first, wait=20)
    timer.join()
    assert [event["type"] for event in found["events"]] == ["batch.finished"]
    assert found["next_after"] == found["events"][-1]["id"]


def test_a_poll_that_was_told_nothing_names_where_to_go_on(
    database: Database, tenant_id: str, client: httpx.Client
) -> None:
    nothing = poll(client, after="start")
    assert nothing["events"] == []
    made = happen(database, tenant_id, 2)
    assert [event["id"] for event in poll(client, after=nothing["next_after"])["events"]] == made
    passed = poll(client, after="start", types="job.failed")
    assert (passed["events"], passed["next_after"]) == ([], made[-1])


def test_a_poll_for_a_job_says_when_nothing_more_will_come(submit: Submit, hand: Hand, client: httpx.Client) -> None:
    job_id = submit(explain="gradcam")["id"]
    path = f"/v1/jobs/{job_id}/events"
    assert poll(client, path) | {"next_after": ""} == {"events": [], "next_after": "", "ended": False}
    hand.succeed()
    found = poll(client, path)
    assert ([event["type"] for event in found["events"]], found["ended"]) == (["job.succeeded"], False)
    timer = later(0.4, lambda: client.delete(f"/v1/jobs/{job_id}/explanations/gradcam"))
    last = poll(client, path, after=found["next_after"], wait=20)
    timer.join()
    assert (last["events"], last["ended"]) == ([], True)
    assert poll(client, path, limit=1)["ended"] is False  # its page is full: there might be more
    assert poll(client, path)["ended"] is True


@pytest.mark.parametrize("accepts", ["application/json", "application/json, text/event-stream;q=0.5", "application/*"])
def test_who_would_rather_have_json_gets_a_page(client: httpx.Client, accepts: str) -> None:
    answer = client.get("/v1/events", headers={"Accept": accepts})
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("query", "headers", "code"),
    [
        ("after=evt_x", {}, "invalid_event_id"),
        ("after=job_01JDJ5W1M0QZ8N4T7X2B9C3D6F", {}, "invalid_event_id"),
        ("after=evt_ZZZZZZZZZZZZZZZZZZZZZZZZZZ", {}, "invalid_event_id"),
        ("", {"Last-Event-ID": "17"}, "invalid_event_id"),
        ("types=job.started", {}, "invalid_request"),
        ("types=webhook.test", {}, "invalid_request"),
        ("wait=-1", {}, "invalid_request"),
        ("limit=0", {}, "invalid_request"),
        ("limit=501", {}, "invalid_request"),
    ],
)
def test_a_wrong_wish_is_refused(client: httpx.Client, query: str, headers: dict[str, str], code: str) -> None:
    for accepts in ("text/event-stream", "application/json"):
        answer = client.get(f"/v1/events?{query}", headers={**headers, "Accept": accepts})
        assert (answer.status_code, answer.json()["code"]) == (422, code)


@pytest.mark.parametrize("headers", [JSON, {"Accept": "text/event-stream"}])
def test_events_of_an_unknown_job_are_not_found(client: httpx.Client, headers: dict[str, str]) -> None:
    assert client.get("/v1/jobs/job_01JDJ5W1M0QZ8N4T7X2B9C3D6F/events", headers=headers).status_code == 404


# ---------------------------------------------------------------- order


@on_postgres
def test_no_reader_goes_past_an_event_that_is_committed_later(
    database: Database, tenant_id: str, client: httpx.Client, read: Open
) -> None:
    """T1 writes, T2 writes and commits, readers read, T1 commits: nobody misses T1's event, or hears one twice."""
    open_all_along = read()
    (start,) = happen(database, tenant_id)
    with transaction(database) as first:
        early = outbox.record(first, tenant_id, None, "batch.finished").id
        (late,) = happen(database, tenant_id)
        assert waited(open_all_along, 2) == [start, late]
        polled = poll(client, after=start, wait=20)
        assert [event["id"] for event in polled["events"]] == [late]
    in_order = [start, late, early]
    assert waited(open_all_along, 3) == in_order
    assert [event["id"] for event in poll(client, after=polled["next_after"], wait=20)["events"]] == [early]
    for place, event_id in enumerate(in_order, 1):
        assert waited(read(headers={"Last-Event-ID": event_id}), 3 - place) == in_order[place:]
        assert [event["id"] for event in poll(client, after=event_id)["events"]] == in_order[place:]


@on_postgres
def test_readers_that_come_and_go_hear_each_event_once_and_in_the_same_order(
    database: Database, tenant_id: str, client: httpx.Client, read: Open
) -> None:
    """Transactions of several writers overlap and commit in any order, while one reader stays, and others do not."""
    stays, hops, polled = read(), [], []
    (start,) = happen(database, tenant_id)
    writers = [threading.Thread(target=_overlap, args=(database, tenant_id, seed)) for seed in range(4)]
    for thread in writers:
        thread.start()
    last = start
    while len(hops) < 60:
        hop = read(headers={"Last-Event-ID": last})
        waited(hop, 1)
        hop.close()
        hops += hop.ids
        last = hops[-1]  # not what its thread has heard meanwhile
        found = poll(client, after=polled[-1] if polled else start, limit=7)
        polled += [event["id"] for event in found["events"]]
    for thread in writers:
        thread.join()
    while found := poll(client, after=polled[-1] if polled else start)["events"]:
        polled += [event["id"] for event in found]
    assert len(set(polled)) == 60
    assert hops == polled
    assert waited(stays, 61)[1:] == polled


def _overlap(database: Database, tenant_id: str, seed: int) -> None:
    """Fifteen transactions, each open while others of its kind begin and end."""
    for number in range(15):
        with transaction(database) as session:
            outbox.record(session, tenant_id, None, "batch.finished", batch=f"bat_{seed}")
            session.execute(text("SELECT pg_sleep(:s)"), {"s": ((seed * 7 + number * 3) % 5) / 100})


# ---------------------------------------------------------------- many readers, and slow ones


def test_what_a_reader_is_too_slow_for_is_read_again(database: Database, tenant_id: str) -> None:
    """A listener that takes nothing keeps a bounded buffer, and yet hears all of it when it takes again."""

    async def scene() -> list[str]:
        broadcast = stream.Broadcast(database, tick_s=0.01)
        with broadcast.listening(Wanted(tenant_id), 0) as slow, broadcast.listening(Wanted(tenant_id), 0) as fast:
            heard = [told.view.id for told in await broadcast.next(slow)]
            seen = 0
            await asyncio.to_thread(happen, database, tenant_id, 10)
            while seen < 11:
                seen += len(await broadcast.next(fast))
                assert len(slow.buffer) <= stream.ROOM
            async with asyncio.timeout(30):  # the other may have read them from the database before they were offered
                while not slow.gap:
                    assert len(slow.buffer) <= stream.ROOM
                    await asyncio.sleep(0.01)
            while len(heard) < 11:
                heard += [told.view.id for told in await broadcast.next(slow)]
        await broadcast.close()
        return heard

    happen(database, tenant_id)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "ROOM", 3)
        heard = asyncio.run(scene())
    events.numbered(database)
    with reading(database) as session:
        assert heard == [told.view.id for told in events.page(session, Wanted(tenant_id), 0)]


@pytest.mark.parametrize("payload", [{"batch": "\ud800"}, ["no", "object"]], ids=["untellable", "unreadable"])
def test_an_event_that_cannot_be_told_silences_nobody_else(database: Database, tenant_id: str, payload: Any) -> None:
    """Who asks for that one is told of the failure; the others hear what is theirs, before it and after it."""
    with transaction(database) as session:
        other_id = tenants.create(session, "another").id

    async def scene() -> tuple[int, int]:
        broadcast = stream.Broadcast(database, tick_s=0.01)
        with broadcast.listening(Wanted(tenant_id), 0) as ours, broadcast.listening(Wanted(other_id), 0) as theirs:
            before = len(await broadcast.next(ours))
            assert not await broadcast.next(theirs)
            await asyncio.to_thread(_corrupt, database, other_id, payload)
            with pytest.raises(ValueError, match=r"surrogates|dict"):
                await _endless(broadcast, theirs)
            await asyncio.to_thread(happen, database, tenant_id)
            while not (found := await broadcast.next(ours)):
                pass
        await broadcast.close()
        return before, len(found)

    happen(database, tenant_id)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "HEARTBEAT_S", 0.2)
        patch.setattr(stream, "SLOWLY_S", 0.05)
        assert asyncio.run(asyncio.wait_for(scene(), 20)) == (1, 1)


async def _endless(broadcast: stream.Broadcast, listener: stream.Listener) -> None:
    while True:
        await broadcast.next(listener)


def _corrupt(database: Database, tenant_id: str, payload: Any) -> None:
    with transaction(database) as session:
        row = {"id": ids.new("evt"), "tenant_id": tenant_id, "type": "batch.finished", "created_at": clock(session)}
        session.execute(insert(Event), [{**row, "payload": payload}])


def test_many_listeners_cost_one_query_a_tick(
    database: Database, tenant_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.5)
    monkeypatch.setattr(stream, "SLOWLY_S", 0.1)

    async def scene() -> tuple[list[str], float]:
        asked: list[str] = []
        broadcast = stream.Broadcast(database, tick_s=0.05)
        with contextlib.ExitStack() as held:
            listeners = [held.enter_context(broadcast.listening(Wanted(tenant_id), 0)) for _ in range(50)]
            assert not any(await asyncio.gather(*map(broadcast.next, listeners)))
            threads = threading.active_count()
            sqlalchemy.event.listen(database.engine, "before_cursor_execute", lambda *of: asked.append(of[2]))
            began = time.monotonic()
            assert not any(await asyncio.gather(*map(broadcast.next, listeners)))
            took_s = time.monotonic() - began
            assert threading.active_count() <= threads
        await broadcast.close()
        return [statement for statement in asked if statement != "BEGIN"], took_s

    asked, took_s = asyncio.run(scene())
    assert 0 < len(asked) <= took_s / 0.05 + 1
    assert len(set(asked)) == 1


def test_a_reader_that_takes_nothing_is_left(
    database: Database, tenant_id: str, url: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "SEND_S", 0.5)
    before = metrics.LISTENING._value.get()
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as deaf:
        deaf.sendall(f"GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
        assert deaf.recv(12) == b"HTTP/1.1 200"
        servers.until(lambda: metrics.LISTENING._value.get() == before + 1, within_s=20, what="the stream is open")
        long = {"batch": "b" * 40_000}  # more than the buffers between the two processes hold
        with transaction(database) as session:
            row = {"tenant_id": tenant_id, "type": "batch.finished", "payload": long, "created_at": clock(session)}
            session.execute(insert(Event), [{**row, "id": ids.new("evt")} for _ in range(400)])
        servers.until(lambda: metrics.LISTENING._value.get() == before, within_s=20, what="it is left")


def test_an_api_opens_as_many_files_as_it_may(settings: Settings) -> None:
    """Each listener is an open file, and a thousand of them are more than many a shell allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        with servers.api(settings) as (_, process):
            assert process.process.rlimit(psutil.RLIMIT_NOFILE)[0] > 1024
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_api_that_stops_ends_its_streams_at_once(settings: Settings, key: str) -> None:
    """`hilum api` is given 5 seconds by its supervisor; a stream must not use them up."""
    with servers.api(settings) as (url, process), client_of(url, key) as client:
        told = Reader(client)
        told.start("/v1/events")
        servers.until(lambda: told.blocks, within_s=20, what="the stream begins")
        began = time.monotonic()
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(20) in (0, -signal.SIGTERM)
        assert time.monotonic() - began < 4
        servers.until(lambda: told.ended, within_s=5, what="the client sees the end")
