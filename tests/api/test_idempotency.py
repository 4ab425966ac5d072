"""Idempotency-Key: the same request twice is one job and one answer, whatever dies, fails or races in between."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, event, func, select, update
from sqlalchemy.exc import OperationalError

from api import chores, waiting
from api import idempotency as door
from api.chores import Chores
from shared import idempotency, tenants
from shared.db import Database, clock, reading, transaction
from shared.errors import Conflict, Invalid
from shared.idempotency import Answer, Claim, Keyed
from shared.models import TEST, IdempotencyKey, Job
from shared.settings import Settings
from shared.storage import LocalStorage, open_storage
from tests import builders
from tests.api.conftest import FILM, Hand, both, client_of, serving
from tests.servers import until

OTHER_FILM = builders.png(builders.chest(5, (160, 144)))
SAID = ("Location", "ETag", "Cache-Control", "Content-Type", "Preference-Applied", "Hilum-Reused")
RACERS = 12


def post(
    client: httpx.Client, key: str | bytes, data: bytes = FILM, /, prefer: str = "", **fields: str
) -> httpx.Response:
    headers: dict[str, Any] = {"Idempotency-Key": key, **({"Prefer": prefer} if prefer else {})}
    return client.post("/v1/jobs", files={"file": data}, data=fields, headers=headers)


def replays(answer: httpx.Response, first: httpx.Response) -> bool:
    """Whether it is the first answer again, byte for byte, and says so."""
    assert "Idempotent-Replayed" not in first.headers
    assert answer.headers["Idempotent-Replayed"] == "true"
    assert {name: answer.headers.get(name) for name in SAID} == {name: first.headers.get(name) for name in SAID}
    return (answer.status_code, answer.content) == (first.status_code, first.content)


def rows(database: Database, table: type[Job] | type[IdempotencyKey] = Job) -> int:
    with reading(database) as session:
        return session.scalars(select(func.count()).select_from(table)).one()


def blobs(settings: Settings) -> int:
    return len(list(settings.home.joinpath("blobs").rglob("input")))


def row(database: Database, key: str) -> IdempotencyKey:
    with reading(database) as session:
        return session.scalars(select(IdempotencyKey).where(IdempotencyKey.key == key)).one()


def write(database: Database, key: str, **columns: Any) -> None:
    with transaction(database) as session:
        session.execute(update(IdempotencyKey).where(IdempotencyKey.key == key).values(**columns))


def lose(database: Database, key: str, **columns: Any) -> None:
    """Leave the row as a process that died does, and let its time run out."""
    with transaction(database) as session:
        past = clock(session) - timedelta(seconds=1)
        lost = {"status": None, "headers": None, "answer": None, "locked_until": past, **columns}
        session.execute(update(IdempotencyKey).where(IdempotencyKey.key == key).values(**lost))


# ---------------------------------------------------------------- once


@both
def test_of_many_at_once_one_makes_the_job(url: str, key: str, database: Database, settings: Settings) -> None:
    start = threading.Barrier(RACERS)

    def race(_: int) -> httpx.Response:
        with client_of(url, key) as client:
            client.get("/v1/jobs")  # the connection stands and the key is known before the start
            start.wait()
            return post(client, "one", explain="gradcam")

    with ThreadPoolExecutor(RACERS) as pool:
        answers = list(pool.map(race, range(RACERS)))
    accepted = [answer for answer in answers if answer.status_code == 202]
    firsts = [answer for answer in accepted if "Idempotent-Replayed" not in answer.headers]
    refused = [answer for answer in answers if answer.status_code != 202]
    assert len(firsts) == 1
    assert all(replays(answer, firsts[0]) for answer in accepted if answer is not firsts[0])
    assert {(answer.status_code, answer.json()["code"]) for answer in refused} <= {(409, "request_in_flight")}
    assert (rows(database), blobs(settings)) == (1, 1)


@both
def test_the_first_answer_is_replayed_byte_for_byte(client: httpx.Client, hand: Hand, database: Database) -> None:
    """Also when the job has ended since, and though every form has a boundary of its own."""
    fields = {"explain": "gradcam", "priority": "urgent", "external_id": "Fall 7 ä", "metadata": '{"a": 1, "b": [2]}'}
    first = post(client, "k" * 255, **fields)
    hand.succeed()
    same = {"metadata": '{"b":[2],"a":1}', "external_id": "Fall 7 ä", "explain": "gradcam,", "priority": "urgent"}
    again = post(client, "k" * 255, **same)
    assert again.request.headers["Content-Type"] != first.request.headers["Content-Type"]
    assert replays(again, first)
    assert first.headers["ETag"] == '"1"'
    assert client.get(first.headers["Location"]).json()["status"] == "succeeded"
    assert rows(database) == 1


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        (OTHER_FILM, {}),
        (FILM, {"priority": "stat"}),
        (FILM, {"external_id": "b"}),
        (FILM, {"metadata": '{"a": 1}'}),
        (FILM, {"explain": "gradcam"}),
        (FILM, {"reuse": "true"}),
    ],
)
def test_a_key_stands_for_one_request(
    client: httpx.Client, database: Database, data: bytes, fields: dict[str, str]
) -> None:
    first = post(client, "one")
    other = post(client, "one", data, **fields)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert replays(post(client, "one"), first)
    assert rows(database) == 1


@both
def test_a_client_that_waits_is_told_the_end_and_so_is_who_asks_again(
    url: str, key: str, client: httpx.Client, hand: Hand, database: Database
) -> None:
    with ThreadPoolExecutor(1) as pool, client_of(url, key) as patient:
        waiting = pool.submit(post, patient, "one", prefer="wait=20")
        until(lambda: rows(database) == 1, what="the job")
        early = post(client, "one", prefer="wait=20")
        assert (early.status_code, early.json()["code"]) == (409, "request_in_flight")
        assert early.headers["Retry-After"] == "1"
        hand.succeed()
        first = waiting.result()
    assert (first.status_code, first.json()["status"]) == (201, "succeeded")
    assert replays(post(client, "one", prefer="wait=20"), first)
    assert replays(post(client, "one"), first)
    assert rows(database) == 1


def test_the_same_key_of_another_tenant_is_another_key(url: str, client: httpx.Client, database: Database) -> None:
    with transaction(database) as session:
        stranger_key = tenants.create_key(session, tenants.create(session, "stranger").id)
    first = post(client, "one")
    with client_of(url, stranger_key) as stranger:
        theirs = post(stranger, "one", OTHER_FILM)
    assert theirs.status_code == 202
    assert "Idempotent-Replayed" not in theirs.headers
    assert theirs.json()["id"] != first.json()["id"]


def test_a_test_job_never_answers_for_a_live_one(
    url: str, client: httpx.Client, database: Database, tenant_id: str
) -> None:
    with transaction(database) as session:
        rehearsing = tenants.issue_key(session, tenant_id, mode=TEST).key
    with client_of(url, rehearsing) as tester:
        assert post(tester, "one").status_code == 202
    assert post(client, "one").json()["code"] == "idempotency_key_reused"


@pytest.mark.parametrize("wrong", [b"", b"x" * 256, "schl\u00fcssel".encode("latin-1"), b"a\tb", b"\x7f"])
def test_a_key_of_the_wrong_shape_is_refused(client: httpx.Client, database: Database, wrong: bytes) -> None:
    answer = post(client, wrong)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert [error["field"] for error in answer.json()["errors"]] == ["header.idempotency-key"]
    assert rows(database) == 0


def test_a_request_without_a_key_asks_nothing_about_keys_or_limits(client: httpx.Client) -> None:
    """Accepting is held to a price: one transaction, and no query that the job does not need."""
    post(client, "the tenant is known from here on")
    asked: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        asked.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        client.post("/v1/jobs", files={"file": FILM})
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    said = sorted(" ".join(statement.split()[:3]) for statement in asked)
    assert said == ["BEGIN IMMEDIATE", "INSERT INTO deeds", "INSERT INTO jobs"]


# ---------------------------------------------------------------- failures


def test_a_request_that_failed_frees_its_key(client: httpx.Client, settings: Settings, database: Database) -> None:
    blocked = settings.home / "blobs"
    blocked.write_text("a file where the folder should be")
    assert post(client, "one").status_code == 503
    assert rows(database, IdempotencyKey) == 0
    blocked.unlink()
    assert post(client, "one").status_code == 202


def test_a_request_that_was_no_request_takes_no_key(client: httpx.Client, database: Database) -> None:
    assert post(client, "one", b"text").status_code == 415
    assert post(client, "one", priority="asap").status_code == 422
    assert rows(database, IdempotencyKey) == 0
    assert post(client, "one").status_code == 202


@both
def test_a_request_that_died_before_its_job_is_taken_over(
    client: httpx.Client, database: Database, settings: Settings
) -> None:
    post(client, "another")
    digest = row(database, "another").request_sha256  # a key is no part of it
    with transaction(database) as session:
        tenant_id = session.scalars(select(Job.tenant_id)).one()
        idempotency.claim(session, Keyed(tenant_id, "one", digest), lock_s=60)
    assert post(client, "one").json()["code"] == "request_in_flight"
    assert rows(database) == 1
    lose(database, "one")
    first = post(client, "one")
    assert first.status_code == 202
    assert replays(post(client, "one"), first)
    assert (rows(database), blobs(settings)) == (2, 2)


@both
@pytest.mark.parametrize("prefer", ["", "wait=20"])
def test_a_request_that_died_after_its_job_is_answered_with_that_job(
    client: httpx.Client, database: Database, settings: Settings, hand: Hand, prefer: str
) -> None:
    job_id = post(client, "one").json()["id"]
    long_ago = datetime.now(UTC) - timedelta(hours=47)
    lose(database, "one", created_at=long_ago)
    hand.succeed()
    again = post(client, "one", prefer=prefer)
    assert row(database, "one").created_at > long_ago + timedelta(hours=1)  # kept from now on
    assert (again.status_code, again.json()["id"]) == (201 if prefer else 202, job_id)
    assert again.json()["status"] == "succeeded"
    assert replays(post(client, "one", prefer=prefer), again)
    assert (rows(database), blobs(settings)) == (1, 1)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim runs out at once, so that a test need not wait for it."""
    monkeypatch.setattr(door, "LOCK_S", 0.0)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """The first blob reaches the store, and then its request stands still until the event is set."""
    go_on, put, calls = threading.Event(), LocalStorage.put, Counter[str]()

    def slow(self: LocalStorage, key: str, *arguments: Any) -> None:
        put(self, key, *arguments)
        calls["put"] += 1
        if calls["put"] == 1:
            assert go_on.wait(60)

    monkeypatch.setattr(LocalStorage, "put", slow)
    yield go_on
    go_on.set()


@both
@pytest.mark.usefixtures("impatient")
def test_a_request_that_was_frozen_and_taken_over_makes_no_second_job(
    url: str, key: str, client: httpx.Client, database: Database, settings: Settings, stuck: threading.Event
) -> None:
    with ThreadPoolExecutor(1) as pool, client_of(url, key) as frozen:
        late = pool.submit(post, frozen, "one")
        until(lambda: blobs(settings) == 1, what="the blob of the frozen request")
        second = post(client, "one")
        stuck.set()
        answer = late.result()
    assert second.status_code == 202
    assert (answer.status_code, answer.json()["code"]) == (409, "request_in_flight")
    assert replays(post(client, "one"), second)
    assert (rows(database), blobs(settings)) == (1, 1)


def test_an_error_after_the_commit_keeps_the_job_for_the_next_request(
    settings: Settings, key: str, database: Database, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A freed key would make a second job of the same request."""

    def away(*_: object) -> None:
        raise OperationalError("SELECT", {}, Exception("the database is away"))

    with serving(settings) as url, client_of(url, key) as client:
        with monkeypatch.context() as broken:
            broken.setattr(waiting, "read", away)
            failed = post(client, "one", prefer="wait=0")
        assert (failed.status_code, failed.json()["code"]) == (503, "database_unavailable")
        again = post(client, "one")
        assert again.json()["id"] == hand.succeed()
        assert replays(post(client, "one"), again)
    assert rows(database) == 1


# ---------------------------------------------------------------- the rows


@both
def test_a_claim_that_was_taken_over_writes_nothing(database: Database, tenant_id: str) -> None:
    asked = Keyed(tenant_id, "one", "a" * 64)

    def claim(lock_s: float) -> Claim:
        with transaction(database) as session:
            found = idempotency.claim(session, asked, lock_s=lock_s)
        assert isinstance(found, Claim)
        return found

    lost, mine = claim(-1), claim(60)
    with pytest.raises(Conflict), transaction(database) as session:
        idempotency.note(session, lost, Answer(202, {}, "{}"))
    with transaction(database) as session:
        idempotency.release(session, lost)
        idempotency.note(session, mine, Answer(202, {"A": "b"}, '{"c":1}'))
    with transaction(database) as session:
        assert idempotency.claim(session, asked, lock_s=60) == Answer(202, {"A": "b"}, '{"c":1}')
        idempotency.release(session, mine)
    with pytest.raises(Conflict), transaction(database) as session:
        idempotency.note(session, mine, Answer(500, {}, ""))
    with pytest.raises(Invalid), transaction(database) as session:
        idempotency.claim(session, Keyed(tenant_id, "one", "b" * 64), lock_s=60)
    assert row(database, "one").answer == '{"c":1}'


@both
def test_of_many_that_take_over_at_once_one_goes_on(database: Database, tenant_id: str) -> None:
    asked, start = Keyed(tenant_id, "one", "a" * 64), threading.Barrier(RACERS)
    with transaction(database) as session:
        idempotency.claim(session, asked, lock_s=-1)

    def take_over(_: int) -> str:
        start.wait()
        try:
            with transaction(database) as session:
                return type(idempotency.claim(session, asked, lock_s=60)).__name__
        except Conflict as error:
            return error.code

    with ThreadPoolExecutor(RACERS) as pool:
        ends = Counter(pool.map(take_over, range(RACERS)))
    assert ends == {"Claim": 1, "request_in_flight": RACERS - 1}


@both
def test_old_keys_are_forgotten(client: httpx.Client, database: Database, settings: Settings) -> None:
    first, kept = post(client, "old"), post(client, "young", OTHER_FILM)
    with transaction(database) as session:
        age: Callable[[float], Any] = lambda hours: clock(session) - timedelta(hours=hours)  # noqa: E731
        for name, hours in (("old", settings.idempotency_hours + 0.1), ("young", settings.idempotency_hours - 0.1)):
            aged = update(IdempotencyKey).where(IdempotencyKey.key == name)
            session.execute(aged.values(created_at=age(hours)))
    chores.once(Chores(database, open_storage(settings), settings))
    assert rows(database, IdempotencyKey) == 1
    assert replays(post(client, "young", OTHER_FILM), kept)
    fresh = post(client, "old")
    assert "Idempotent-Replayed" not in fresh.headers
    assert fresh.json()["id"] != first.json()["id"]
