"""The slots of a deliver process, against real receivers: what is sent, when, and who waits for whom."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select, text, update
from standardwebhooks import Webhook, WebhookVerificationError

from api.migrate import migrate
from shared import deliveries, destinations, ledger, outbox
from shared.bundles import Bundle
from shared.db import Database, reading, transaction
from shared.deeds import HILUM
from shared.deliveries import Parcel
from shared.models import Attempt, Delivery, Destination, Event
from shared.schemas import TERMINAL
from shared.settings import ROOT, Settings
from tests import receivers, servers
from tests.crowds import pile_up
from tests.receivers import Receiver, Request, answers, headers_of
from tests.servers import until
from worker import deliver
from worker.deliver import Dispatcher
from worker.parts import Parts, open_parts

Start = Callable[..., Receiver]
Hook = Callable[..., str]
Happen = Callable[..., str]


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """The slots are tested on SQLite; the rows are tested on both."""
    return f"sqlite:///{tmp_path / 'hilum.db'}"


@pytest.fixture
def settings(empty_settings: Settings, tiny: Bundle) -> Settings:
    """A receiver on this machine may be sent to; a second try follows at once, then none."""
    migrate(empty_settings)
    values = {"webhook_private": True, "webhook_schedule_s": "0.1", "webhook_slots": 8, "bundle": tiny.root}
    return empty_settings.model_copy(update=values)


@pytest.fixture
def parts(settings: Settings, tiny: Bundle, database: Database) -> Parts:
    """What a deliver process holds."""
    opened = open_parts(settings, tiny, queues=("deliver",))
    opened.database.engine.dispose()
    opened.database = database
    return opened


@pytest.fixture
def run(parts: Parts) -> Iterator[Callable[[], Dispatcher]]:
    """Start a dispatcher, which is stopped at the end unless the test has."""
    begun: list[Dispatcher] = []

    def start() -> Dispatcher:
        begun.append(Dispatcher(parts))
        begun[-1].start()
        return begun[-1]

    yield start
    for dispatcher in begun:
        dispatcher.stop()


@pytest.fixture
def start() -> Iterator[Start]:
    """Start receivers that end with the test."""
    with ExitStack() as stack:
        yield lambda *given, **options: stack.enter_context(receivers.receiver(*given, **options))


@pytest.fixture
def hook(database: Database, tenant_id: str) -> Hook:
    """Make a webhook and return its id."""

    def one(url: str, *events: Any) -> str:
        with transaction(database) as session:
            row = destinations.create(session, tenant_id, url=url, events=events, description="", by=HILUM)
        return row.id

    return one


@pytest.fixture
def happen(database: Database, tenant_id: str) -> Happen:
    """Let an event happen, and return its id."""

    def one(type: Any = "batch.finished", **payload: Any) -> str:
        with transaction(database) as session:
            return outbox.record(session, tenant_id, None, type, **payload).id

    return one


def rows(database: Database, webhook_id: str | None = None) -> list[Delivery]:
    with reading(database) as session:
        found = select(Delivery).order_by(Delivery.id)
        return list(session.scalars(found.where(Delivery.destination_id == webhook_id) if webhook_id else found))


def ended(database: Database, webhook_id: str | None = None) -> list[str] | None:
    """How the deliveries ended, once all have."""
    found = [row.status for row in rows(database, webhook_id)]
    return found if found and all(status in TERMINAL for status in found) else None


def tries(database: Database) -> list[Attempt]:
    with reading(database) as session:
        return list(session.scalars(select(Attempt).order_by(Attempt.id)))


def secrets_of(database: Database, webhook_id: str) -> list[str]:
    with reading(database) as session:
        return session.get_one(Destination, webhook_id).secrets


def verified(request: Request, secret: str) -> dict[str, Any]:
    return Webhook(secret).verify(request.body, dict(request.headers))


def test_a_receiver_gets_the_event_signed_as_the_standard_says(
    database: Database, run: Callable[[], Dispatcher], start: Start, hook: Hook, happen: Happen
) -> None:
    receiver = start()
    webhook_id = hook(receiver.url + "/hook")
    event_id = happen(batch="bat_1")
    run()
    (request,) = receiver.wait_for(1)
    said = verified(request, secrets_of(database, webhook_id)[0])
    assert said["id"] == headers_of(request)["webhook-id"] == event_id
    assert (said["type"], said["data"], said["test"]) == ("batch.finished", {"batch": "bat_1"}, False)
    assert headers_of(request)["content-type"] == "application/json"
    assert headers_of(request)["user-agent"].startswith("Hilum")
    assert until(lambda: ended(database)) == ["succeeded"]
    (attempt,) = tries(database)
    assert (attempt.number, attempt.status, attempt.error, attempt.response) == (1, 200, None, "taken")


def secret_of(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


@given(
    key=st.binary(min_size=24, max_size=64),
    other=st.binary(min_size=24, max_size=64),
    said=st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=5),
    at=st.integers(min_value=0),
)
def test_a_signature_holds_for_one_key_and_one_body(key: bytes, other: bytes, said: dict[str, Any], at: int) -> None:
    body = json.dumps(said, ensure_ascii=False)
    headers = deliver.signed(Parcel("https://x.example/", "evt_1", body, [secret_of(key)]))
    assert Webhook(secret_of(key)).verify(body.encode(), headers) == said
    place = at % len(body)
    forged = body[:place] + ("0" if body[place] != "0" else "1") + body[place + 1 :]
    with pytest.raises(WebhookVerificationError):
        Webhook(secret_of(key)).verify(forged.encode(), headers)
    if other.ljust(64, b"\0") != key.ljust(64, b"\0"):  # HMAC itself fills keys up so
        with pytest.raises(WebhookVerificationError):
            Webhook(secret_of(other)).verify(body.encode(), headers)
    for name, value in (("webhook-id", "evt_2"), ("webhook-timestamp", str(int(headers["webhook-timestamp"]) + 1))):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret_of(key)).verify(body.encode(), {**headers, name: value})


def test_both_secrets_verify_while_they_overlap(
    database: Database, run: Callable[[], Dispatcher], start: Start, hook: Hook, happen: Happen, tenant_id: str
) -> None:
    receiver = start()
    webhook_id = hook(receiver.url)
    (old,) = secrets_of(database, webhook_id)
    with transaction(database) as session:
        row = destinations.get(session, tenant_id, webhook_id)
        destinations.rotate(session, row, timedelta(hours=1), by=HILUM)
    new = secrets_of(database, webhook_id)[0]
    happen()
    run()
    (request,) = receiver.wait_for(1)
    assert verified(request, old) == verified(request, new)
    with transaction(database) as session:
        session.get_one(Destination, webhook_id).old_secret_until = datetime.now(UTC) - timedelta(seconds=1)
    happen()
    request = receiver.wait_for(2)[1]
    assert verified(request, new)
    with pytest.raises(WebhookVerificationError):
        verified(request, old)


def test_one_that_fails_is_tried_again_with_the_same_id(
    database: Database, run: Callable[[], Dispatcher], start: Start, hook: Hook, happen: Happen
) -> None:
    receiver = start(receivers.one_after_another(answers(500, b"oh"), answers(204, b"")))
    webhook_id = hook(receiver.url)
    happen()
    run()
    first, second = receiver.wait_for(2)
    assert headers_of(first)["webhook-id"] == headers_of(second)["webhook-id"]
    assert first.body == second.body
    assert verified(second, secrets_of(database, webhook_id)[0])
    assert until(lambda: ended(database)) == ["succeeded"]
    assert [(a.number, a.status, a.error, a.response) for a in tries(database)] == [
        (1, 500, "unsuccessful", "oh"),
        (2, 204, None, ""),
    ]


def test_what_the_schedule_does_not_mend_has_failed_and_can_be_sent_again(
    database: Database, run: Callable[[], Dispatcher], start: Start, hook: Hook, happen: Happen, tenant_id: str
) -> None:
    receiver = start(receivers.drops)
    webhook_id = hook(receiver.url)
    happen()
    run()
    assert until(lambda: ended(database)) == ["failed"]
    assert len(receiver.seen) == 2
    receiver.behave = answers()
    with transaction(database) as session:
        destination = destinations.get(session, tenant_id, webhook_id)
        deliveries.redeliver(session, destination, rows(database)[0].id)
    assert until(lambda: ended(database)) == ["succeeded"]
    assert [(a.number, a.error) for a in tries(database)] == [(1, "connection_lost"), (2, "connection_lost"), (3, None)]


def test_a_receiver_that_asks_for_more_time_gets_it(
    database: Database, run: Callable[[], Dispatcher], start: Start, hook: Hook, happen: Happen
) -> None:
    receiver = start(answers(429, b"", Retry_After="3600"))
    hook(receiver.url)
    happen()
    run()
    until(lambda: tries(database), what="the first try")
    (row,) = rows(database)
    assert row.status == "queued"
    assert 3500 < (row.due_at - datetime.now(UTC)).total_seconds() <= 3600


def test_one_that_is_gone_hears_nothing_more(
    database: Database, run: Callable[[], Dispatcher], start: Start, hook: Hook, happen: Happen
) -> None:
    gone, other = start(answers(410, b"")), start()
    webhook_id = hook(gone.url, "batch.finished")
    hook(other.url, "webhook.disabled")
    happen()
    run()
    (news,) = other.wait_for(1)
    assert json.loads(news.body)["data"] == {"webhook": webhook_id, "because": "gone"}
    happen()
    assert until(lambda: ended(database, webhook_id)) == ["failed", "canceled"]
    assert len(gone.seen) == 1


def test_a_slow_receiver_takes_its_share_and_nobody_elses_time(
    parts: Parts, database: Database, run: Callable[[], Dispatcher], start: Start, hook: Hook, happen: Happen
) -> None:
    """Three receivers that never answer, each with more to get than there are slots, and one that is well."""
    parts.settings = parts.settings.model_copy(update={"webhook_timeout_s": 60.0})
    slow = [start(receivers.never_answers) for _ in range(3)]
    well = start()
    for receiver in slow:
        hook(receiver.url, "job.failed")
    webhook_id = hook(well.url, "batch.finished")
    for _ in range(10):
        happen("job.failed")
    run()
    for receiver in slow:
        receiver.wait_for(2)
    for _ in range(20):
        happen()
    assert until(lambda: ended(database, webhook_id)) == ["succeeded"] * 20
    assert [len(receiver.seen) for receiver in slow] == [2, 2, 2]  # a quarter of 8 slots


def test_slots_are_used_side_by_side(
    parts: Parts, database: Database, run: Callable[[], Dispatcher], start: Start, hook: Hook, happen: Happen
) -> None:
    """Each of four receivers answers only once all of them have been asked."""
    meeting = threading.Barrier(4)

    def together(handler: Any, receiver: Receiver) -> None:
        meeting.wait(30)
        answers()(handler, receiver)

    for _ in range(4):
        hook(start(together).url)
    happen()
    run()
    assert until(lambda: ended(database)) == ["succeeded"] * 4


def test_a_bell_wakes_it(
    parts: Parts,
    database: Database,
    run: Callable[[], Dispatcher],
    start: Start,
    hook: Hook,
    happen: Happen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a bell it would look again after an hour."""
    monkeypatch.setattr(deliver, "LOOK_S", 3600.0)
    receiver = start()
    hook(receiver.url)
    run()
    until(lambda: not parts.rung.is_set(), what="a look that finds nothing")
    time.sleep(0.2)
    happen()
    parts.rung.set()
    receiver.wait_for(1)


def test_the_lease_is_renewed_while_a_receiver_takes_its_time(
    parts: Parts, database: Database, run: Callable[[], Dispatcher], start: Start, hook: Hook, happen: Happen
) -> None:
    parts.settings = parts.settings.model_copy(update={"lease_s": 0.6, "renew_s": 0.1, "webhook_timeout_s": 30.0})
    leave = threading.Event()

    def slow(handler: Any, receiver: Receiver) -> None:
        leave.wait(30)
        answers()(handler, receiver)

    hook(start(slow).url)
    happen()
    run()
    (first,) = until(lambda: [row.lease_until for row in rows(database) if row.status == "running"])
    assert first is not None

    def renewed() -> bool:
        with transaction(database) as session:
            assert deliveries.expire(session, parts.settings).requeued == []
        return rows(database)[0].lease_until > first + timedelta(seconds=1)

    until(renewed, what="a lease that outlives itself")
    leave.set()
    assert until(lambda: ended(database)) == ["succeeded"]
    assert len(tries(database)) == 1


def test_an_answer_that_comes_after_another_took_over_is_not_written(
    parts: Parts, database: Database, run: Callable[[], Dispatcher], start: Start, hook: Hook, happen: Happen
) -> None:
    leave = threading.Event()

    def slow(handler: Any, receiver: Receiver) -> None:
        leave.wait(30)
        answers()(handler, receiver)

    receiver = start(slow)
    hook(receiver.url)
    happen()
    dispatcher = run()
    receiver.wait_for(1)
    (claim,) = [held.claim for held in dispatcher._now_held()]
    with transaction(database) as session:
        session.execute(update(Delivery).values(lease_until=datetime.now(UTC) - timedelta(hours=1)))
        deliveries.expire(session, parts.settings)
        ((theirs, _),) = deliveries.claim(session, [claim.id], lease_s=60)
    leave.set()
    until(lambda: not dispatcher._now_held(), what="the late answer")
    (row,) = rows(database)
    assert (row.status, row.lease_token) == ("running", theirs.token)
    assert [a.error for a in tries(database)] == ["worker_lost"]


def test_a_process_that_stops_hands_back_what_is_not_answered(
    parts: Parts,
    database: Database,
    run: Callable[[], Dispatcher],
    start: Start,
    hook: Hook,
    happen: Happen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until then its lease is renewed, although it is shorter than the time that is left to the receiver."""
    monkeypatch.setattr(deliver, "HAND_BACK_S", 1.5)
    parts.settings = parts.settings.model_copy(update={"lease_s": 0.8, "renew_s": 0.1, "webhook_timeout_s": 60.0})
    receiver = start(receivers.never_answers)
    hook(receiver.url)
    happen()
    dispatcher = run()
    receiver.wait_for(1)
    stopping = threading.Thread(target=dispatcher.stop)
    stopping.start()
    while stopping.is_alive():
        with transaction(database) as session:
            assert deliveries.expire(session, parts.settings).requeued == []
        stopping.join(0.1)
    (row,) = rows(database)
    assert (row.status, row.losses, row.tries, row.lease_token) == ("queued", 0, 0, None)
    assert [a.error for a in tries(database)] == ["handed_back"]
    receiver.behave = answers()
    run()
    assert until(lambda: ended(database)) == ["succeeded"]


def test_a_process_that_was_asked_to_stop_begins_nothing(
    parts: Parts, database: Database, run: Callable[[], Dispatcher], start: Start, hook: Hook, happen: Happen
) -> None:
    receiver = start()
    hook(receiver.url)
    happen()
    parts.stop.set()
    run().stop()
    assert [row.status for row in rows(database)] == ["queued"]
    assert receiver.seen == []


def test_what_nobody_foresaw_is_a_failed_try(
    database: Database,
    run: Callable[[], Dispatcher],
    start: Start,
    hook: Hook,
    happen: Happen,
) -> None:
    webhook_id = hook(start().url)
    with transaction(database) as session:
        session.get_one(Destination, webhook_id).secrets = ["whsec_"]  # the library refuses to sign with an empty one
    happen()
    run()
    assert until(lambda: ended(database)) == ["failed"]
    assert {a.error for a in tries(database)} == {"internal_error"}


def test_a_database_that_goes_away_and_comes_back_costs_nothing(
    parts: Parts,
    database: Database,
    run: Callable[[], Dispatcher],
    start: Start,
    hook: Hook,
    happen: Happen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deliver, "LOOK_S", 0.05)
    receiver = start()
    hook(receiver.url)
    happen()
    with transaction(database) as session:
        session.execute(text("ALTER TABLE deliveries RENAME TO hidden"))
    run()
    time.sleep(0.3)  # it looks in vain a few times
    with transaction(database) as session:
        session.execute(text("ALTER TABLE hidden RENAME TO deliveries"))
    assert until(lambda: ended(database)) == ["succeeded"]


def failing_at_first(act: Callable[..., Any]) -> Callable[..., Any]:
    """The same, but the first call raises what nobody foresaw."""
    left = [ValueError("nobody foresaw this")]

    def once(*given: Any, **options: Any) -> Any:
        if left:
            raise left.pop()
        return act(*given, **options)

    return once


@pytest.mark.parametrize("name", ["ready", "claim"])
def test_what_nobody_foresaw_does_not_end_the_handing_out(
    database: Database,
    run: Callable[[], Dispatcher],
    start: Start,
    hook: Hook,
    happen: Happen,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr(deliver, "LOOK_S", 0.05)
    monkeypatch.setattr(deliveries, name, failing_at_first(getattr(deliveries, name)))
    hook(start().url)
    happen()
    run()
    assert until(lambda: ended(database)) == ["succeeded"]


def test_what_nobody_foresaw_does_not_end_the_renewing(
    parts: Parts,
    database: Database,
    run: Callable[[], Dispatcher],
    start: Start,
    hook: Hook,
    happen: Happen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger, "renew_free", failing_at_first(ledger.renew_free))
    parts.settings = parts.settings.model_copy(update={"renew_s": 0.05, "webhook_timeout_s": 60.0})
    monkeypatch.setattr(deliver, "HAND_BACK_S", 0.1)
    hook(start(receivers.never_answers).url)
    happen()
    run()
    first = until(lambda: [row.lease_until for row in rows(database) if row.status == "running"])[0]
    until(lambda: rows(database)[0].lease_until > first, what="a lease that is renewed")


def test_an_event_that_cannot_be_put_into_words_keeps_no_other_waiting(
    database: Database, run: Callable[[], Dispatcher], start: Start, hook: Hook, happen: Happen
) -> None:
    receiver = start()
    hook(receiver.url)
    with transaction(database) as session:
        session.get_one(Event, happen()).payload = ["no object"]  # type: ignore[assignment]
    well = happen()
    run()
    assert until(lambda: ended(database)) == ["failed", "succeeded"]
    assert [headers_of(request)["webhook-id"] for request in receiver.seen] == [well]
    assert [a.error for a in tries(database)].count("internal_error") == 2


def test_a_system_that_has_no_room_for_a_thread_costs_no_event(
    parts: Parts,
    database: Database,
    run: Callable[[], Dispatcher],
    start: Start,
    hook: Hook,
    happen: Happen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deliver, "LOOK_S", 0.05)
    begin, refused = threading.Thread.start, list(range(2))

    def no_room(thread: threading.Thread) -> None:
        if thread.name.startswith("deliver-") and refused:
            refused.pop()
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", no_room)
    hook(start().url)
    happen()
    happen()
    dispatcher = run()
    assert until(lambda: ended(database)) == ["succeeded", "succeeded"]
    assert [a.error for a in tries(database)].count("handed_back") == 2
    until(lambda: not dispatcher._now_held(), what="slots that are free again")
    assert parts.held == set()


@pytest.mark.parametrize("private", [False, True])
def test_the_operator_decides_whether_addresses_inside_are_sent_to(
    parts: Parts,
    database: Database,
    run: Callable[[], Dispatcher],
    start: Start,
    hook: Hook,
    happen: Happen,
    private: bool,
) -> None:
    parts.settings = parts.settings.model_copy(update={"webhook_private": private})
    receiver = start()
    hook(receiver.url.replace("127.0.0.1", "localhost"))
    happen()
    run()
    assert until(lambda: ended(database)) == ["succeeded" if private else "failed"]
    assert len(receiver.seen) == (1 if private else 0)
    assert {a.error for a in tries(database)} == {None if private else "not_https"}


def test_ten_thousand_waiting_for_a_dead_receiver_delay_nobody(
    parts: Parts, database: Database, run: Callable[[], Dispatcher], start: Start, hook: Hook, happen: Happen
) -> None:
    dead, well = start(receivers.never_answers), start()
    webhook_id = hook(dead.url, "job.failed")
    hook(well.url, "batch.finished")
    with transaction(database) as session:
        pile_up(session, webhook_id, 10_000)
    run()
    dead.wait_for(2)
    for _ in range(5):
        happen()
    assert len(well.wait_for(5)) == 5
    with reading(database) as session:
        waiting = select(func.count()).where(Delivery.destination_id == webhook_id, Delivery.status == "queued")
        assert session.scalars(waiting).one() >= 9_990
        assert session.scalars(select(func.count()).select_from(Event)).one() == 10_005


# ---------------------------------------------------------------- the examples of docs/webhooks.md


def example(language: str, holding: str) -> str:
    """The only block of code of that language in the page that holds those words."""
    page = (ROOT / "docs" / "webhooks.md").read_text("utf-8")
    blocks = re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if holding in block]
    return found


@pytest.fixture
def example_receiver(tmp_path: Path) -> Iterator[Callable[[str, int], servers.Running]]:
    """Run the receiver of the page with a secret, on the port that its URL says."""
    with ExitStack() as stack:

        def run(secret: str, port: int) -> servers.Running:
            env = {"WEBHOOK_SECRET": secret, "PORT": str(port), "INBOX": str(tmp_path / "inbox.db")}
            command = [sys.executable, "-c", example("python", "BaseHTTPRequestHandler")]
            found = stack.enter_context(servers.running("receiver", command, tmp_path, env={**os.environ, **env}))
            until(lambda: _listens(port) or found.process.poll() is not None, what="the receiver of the page")
            return found

        yield run


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_receiver_of_the_page_acts_once_on_what_is_signed(
    database: Database,
    run: Callable[[], Dispatcher],
    hook: Hook,
    happen: Happen,
    tenant_id: str,
    example_receiver: Callable[[str, int], servers.Running],
) -> None:
    port = servers.free_port()
    webhook_id = hook(f"http://127.0.0.1:{port}/")
    receiver = example_receiver(secrets_of(database, webhook_id)[0], port)
    happen(batch="bat_1")
    run()
    assert until(lambda: ended(database)) == ["succeeded"]
    with transaction(database) as session:
        deliveries.redeliver(session, destinations.get(session, tenant_id, webhook_id), rows(database)[0].id)
    until(lambda: len(tries(database)) == 2, what="the same event again")
    with transaction(database) as session:
        deliveries.send_test(session, destinations.get(session, tenant_id, webhook_id))
    assert until(lambda: ended(database)) == ["succeeded", "succeeded"]
    assert [(a.status, a.error) for a in tries(database)] == [(204, None)] * 3
    assert receiver.said().splitlines()[0] == "batch.finished {'batch': 'bat_1'}"
    assert receiver.said().count("batch.finished") == 1
    assert "webhook.test" not in receiver.said()
    with transaction(database) as session:
        session.get_one(Destination, webhook_id).secrets = ["whsec_" + "A" * 43 + "="]  # a forger's
    happen(batch="bat_2")
    assert until(lambda: ended(database)) == ["succeeded", "succeeded", "failed"]
    assert tries(database)[-1].status == 401
    assert "bat_2" not in receiver.said()


def test_openssl_finds_the_signature_that_was_sent(
    database: Database, run: Callable[[], Dispatcher], start: Start, hook: Hook, happen: Happen, tmp_path: Path
) -> None:
    receiver = start()
    webhook_id = hook(receiver.url)
    happen(batch="bat_1")
    run()
    (request,) = receiver.wait_for(1)
    headers = headers_of(request)
    (tmp_path / "body.json").write_bytes(request.body)
    env = {"WEBHOOK_SECRET": secrets_of(database, webhook_id)[0], "WEBHOOK_ID": headers["webhook-id"]}
    env["WEBHOOK_TIMESTAMP"] = headers["webhook-timestamp"]
    script = ["sh", "-euc", example("sh", "openssl dgst")]
    done = subprocess.run(script, env={**os.environ, **env}, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == headers["webhook-signature"]
    assert done.stdout.startswith("v1,")
