"""Deliveries in the ledger: order of service, shares, the schedule, and what becomes of a receiver that fails."""

from __future__ import annotations

import ast
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import delete, func, select, update

from shared import deeds, deliveries, destinations, events, ledger, outbox, tenants
from shared.db import Database, reading, transaction
from shared.deeds import HILUM
from shared.deliveries import Answer, Parcel
from shared.errors import Conflict, LeaseLost, NotFound
from shared.ledger import Claim
from shared.models import Attempt, Deed, Delivery, Destination, Event
from shared.schemas import Status
from shared.settings import Settings
from shared.webhook_views import page
from tests.crowds import pile_up

NOW = datetime.now(UTC)
TAKEN, REFUSED = Answer(NOW, 5, 200), Answer(NOW, 5, 503, "unsuccessful", "The receiver answered 503.", "no")
SCHEDULE = [10.0, 100.0, 1000.0]

Make = Callable[..., str]

on_postgresql = pytest.mark.parametrize(
    "database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_schedule_s": "10, 100, 1000"})


@pytest.fixture
def webhook(database: Database, tenant_id: str) -> Make:
    """Make a webhook and return its id."""

    def one(*events: Any, url: str = "https://hooks.example/") -> str:
        with transaction(database) as session:
            row = destinations.create(session, tenant_id, url=url, events=events, description="", by=HILUM)
        return row.id

    return one


@pytest.fixture
def happen(database: Database, tenant_id: str) -> Callable[..., str]:
    """Let an event happen that concerns no job, and return its id."""

    def one(type: Any = "batch.finished", **payload: Any) -> str:
        with transaction(database) as session:
            return outbox.record(session, tenant_id, None, type, **payload).id

    return one


def take(database: Database, n: int = 1, share: int = 4, held: dict[str, int] | None = None) -> list[Claim]:
    """Claim what is ready, as a dispatcher does."""
    return [claim for claim, _ in take_parcels(database, n, share, held)]


def take_parcels(
    database: Database, n: int = 1, share: int = 4, held: dict[str, int] | None = None
) -> list[tuple[Claim, Parcel | None]]:
    with reading(database) as session:
        found = deliveries.ready(session, n, held=held or {}, share=share)
    with transaction(database) as session:
        return deliveries.claim(session, [row for row, _ in found], lease_s=30)


def settle(database: Database, settings: Settings, claim: Claim, answer: Answer) -> Delivery:
    with transaction(database) as session:
        deliveries.settle(session, settings, claim, answer)
    return row_of(database, claim.id)


def row_of(database: Database, delivery_id: str) -> Delivery:
    with reading(database) as session:
        return session.get_one(Delivery, delivery_id)


def destination_of(database: Database, webhook_id: str) -> Destination:
    with reading(database) as session:
        return session.get_one(Destination, webhook_id)


def rows(database: Database) -> list[Delivery]:
    with reading(database) as session:
        return list(session.scalars(select(Delivery).order_by(Delivery.id)))


def make_due(database: Database) -> None:
    """Let the time pass that those who wait must wait."""
    with transaction(database) as session:
        session.execute(update(Delivery).where(Delivery.status == "queued").values(due_at=NOW - timedelta(hours=1)))


# ---------------------------------------------------------------- the outbox


def test_an_event_is_owed_to_whom_wants_it(database: Database, webhook: Make, happen: Make, rung: list[str]) -> None:
    everything, some, others = webhook(), webhook("batch.finished", "job.failed"), webhook("job.failed")
    event_id = happen()
    found = {row.destination_id: row for row in rows(database)}
    assert set(found) == {everything, some}
    assert others not in found
    assert {(row.event_id, row.status) for row in found.values()} == {(event_id, "queued")}
    assert rung == ["deliver"]


def test_another_tenant_hears_nothing(database: Database, webhook: Make, settings: Settings) -> None:
    webhook()
    with transaction(database) as session:
        outbox.record(session, tenants.create(session, "clinic").id, None, "batch.finished")
    assert rows(database) == []


def test_what_is_sent_is_the_event_as_everybody_tells_it(database: Database, webhook: Make, happen: Make) -> None:
    webhook(url="https://hooks.example/a")
    event_id = happen(batch="bat_1", counts={"failed": 1})
    ((_, parcel),) = take_parcels(database)
    assert parcel is not None
    assert (parcel.url, parcel.event_id, len(parcel.secrets)) == ("https://hooks.example/a", event_id, 1)
    said = json.loads(parcel.body)
    with reading(database) as session:
        assert said == events.view(session.get_one(Event, event_id)).model_dump(mode="json")
    assert said["data"] == {"batch": "bat_1", "counts": {"failed": 1}}
    assert said["test"] is False


def test_a_rehearsed_event_says_so(database: Database, webhook: Make, happen: Make) -> None:
    webhook()
    happen(mode="test")
    ((_, parcel),) = take_parcels(database)
    assert parcel is not None
    assert json.loads(parcel.body)["test"] is True


# ---------------------------------------------------------------- order and shares


def test_what_has_been_due_the_longest_is_first(database: Database, webhook: Make, happen: Make) -> None:
    a, b = webhook("batch.finished"), webhook("job.failed")
    order = [happen("job.failed"), happen(), happen(), happen("job.failed"), happen()]
    with reading(database) as session:
        found = deliveries.ready(session, 16, held={}, share=4)
        events_of = dict(session.execute(select(Delivery.id, Delivery.event_id)).all())  # type: ignore[arg-type]
    assert [events_of[row] for row, _ in found] == order
    assert [destination for _, destination in found] == [b, a, a, b, a]
    with reading(database) as session:
        assert deliveries.ready(session, 2, held={}, share=4) == found[:2]


def test_nobody_gets_more_than_a_share_of_the_slots(database: Database, webhook: Make, happen: Make) -> None:
    dead, alive = webhook("batch.finished"), webhook("job.failed")
    for _ in range(9):
        happen()
    happen("job.failed")
    with reading(database) as session:
        counted = Counter(d for _, d in deliveries.ready(session, 16, held={}, share=4))
        assert counted == {dead: 4, alive: 1}
        assert Counter(d for _, d in deliveries.ready(session, 16, held={dead: 3}, share=4)) == {dead: 1, alive: 1}
        assert [d for _, d in deliveries.ready(session, 16, held={dead: 4}, share=4)] == [alive]
        assert deliveries.ready(session, 16, held={dead: 4, alive: 4}, share=4) == []


def test_two_processes_never_claim_the_same(database: Database, webhook: Make, happen: Make) -> None:
    for _ in range(3):
        webhook()
    for _ in range(20):
        happen()
    taken: list[str] = []

    def work() -> None:
        while len(taken) < 60:
            taken.extend(claim.id for claim in take(database, 5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(taken) == len(set(taken)) == 60


def test_choosing_reads_neither_what_is_full_nor_what_waits_for_its_next_try(
    database: Database, webhook: Make, happen: Make
) -> None:
    """Of 5,000 rows of a dead endpoint one is read: both halves of the choice go through the index by destination."""
    dead, alive = webhook("job.failed"), webhook("batch.finished")
    happen()
    with transaction(database) as session:
        pile_up(session, dead, 5000)
        session.connection().exec_driver_sql("ANALYZE")
    assert [d for _, d in _ready(database, held={dead: 4})] == [alive]
    for statement in (deliveries._first_due(NOW, [dead], 16), deliveries._due_at(alive, NOW, 4)):
        plan = _plan(database, statement)
        assert "ix_deliveries_waiting" in plan
        assert "ix_deliveries_destination_id_id" not in plan, plan  # it holds every delivery that there ever was
    assert _rows_read(database, deliveries._first_due(NOW, [dead], 16)) < 50


def _ready(database: Database, **options: Any) -> list[tuple[str, str]]:
    with reading(database) as session:
        return deliveries.ready(session, 16, **{"share": 4, "held": {}, **options})


def _plan(database: Database, statement: Any, how: str = "") -> str:
    name = database.engine.dialect.name
    compiled = statement.compile(dialect=database.engine.dialect, compile_kwargs={"literal_binds": True})
    explain = "EXPLAIN QUERY PLAN " if name == "sqlite" else f"EXPLAIN {how}"
    with reading(database) as session:
        found = session.connection().exec_driver_sql(explain + str(compiled).replace("%", "%%"))
        return "\n".join(str(tuple(row)) for row in found)


def _rows_read(database: Database, statement: Any) -> float:
    """Rows that PostgreSQL says it read; SQLite counts none."""
    if database.engine.dialect.name == "sqlite":
        return 0
    plan = _plan(database, statement, "(ANALYZE, FORMAT JSON) ")
    return sum(node["Actual Rows"] * node["Actual Loops"] for node in _nodes(ast.literal_eval(plan)[0][0]["Plan"]))


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for below in node.get("Plans", ()):
        yield from _nodes(below)


# ---------------------------------------------------------------- what follows a try


def test_a_delivery_that_arrives_is_done(
    database: Database, settings: Settings, webhook: Make, happen: Make, tenant_id: str
) -> None:
    webhook_id = webhook()
    happen()
    (claim,) = take(database)
    assert settle(database, settings, claim, TAKEN).status == "succeeded"
    with reading(database) as session:
        (shown,) = page(session, destinations.get(session, tenant_id, webhook_id), limit=9).deliveries
    assert [(a.number, a.status, a.error) for a in shown.attempts] == [(1, 200, None)]
    assert take(database) == []


def test_one_that_fails_is_tried_again_on_schedule_until_the_schedule_ends(
    database: Database, settings: Settings, webhook: Make, happen: Make
) -> None:
    webhook()
    happen()
    pauses = []
    for _ in SCHEDULE:
        (claim,) = take(database)
        row = settle(database, settings, claim, REFUSED)
        assert row.status == "queued"
        pauses.append((row.due_at - datetime.now(UTC)).total_seconds())
        assert take(database) == []
        make_due(database)
    for pause, wanted in zip(pauses, SCHEDULE, strict=True):
        assert 0.9 * wanted - 5 < pause < 1.1 * wanted
    (claim,) = take(database)
    row = settle(database, settings, claim, REFUSED)
    assert (row.status, row.error) == ("failed", {"code": "unsuccessful", "detail": "The receiver answered 503."})
    with reading(database) as session:
        assert list(session.scalars(select(Attempt.number).order_by(Attempt.id))) == [1, 2, 3, 4]


def test_pauses_differ(settings: Settings) -> None:
    pauses = {deliveries._pause_s(100, REFUSED) for _ in range(20)}
    assert len(pauses) > 1
    assert all(90 <= pause <= 110 for pause in pauses)


@pytest.mark.parametrize(("asked", "least", "most"), [(3.0, 90, 110), (500.0, 500, 500), (1e7, 86_400, 86_400)])
def test_a_receiver_may_ask_for_more_time_but_not_for_ever(asked: float, least: float, most: float) -> None:
    assert least <= deliveries._pause_s(100, Answer(NOW, retry_after_s=asked)) <= most


@pytest.mark.parametrize("schedule", ["a", "5,-1", "1,inf", "1;2", "nan", "1e300"])
def test_a_schedule_that_is_none_is_refused(schedule: str) -> None:
    with pytest.raises(ValidationError, match="separated by commas"):
        Settings(webhook_schedule_s=schedule)


def test_the_schedule_is_that_of_the_contract() -> None:
    minute, hour = 60, 3600
    wanted = [5, 5 * minute, 30 * minute, *(h * hour for h in (2, 5, 10, 14, 20, 24))]
    assert Settings().webhook_pauses_s == wanted


def test_a_process_that_lost_its_row_writes_nothing(
    database: Database, settings: Settings, webhook: Make, happen: Make
) -> None:
    webhook()
    happen()
    (late,) = take(database)
    expire(database, settings)
    (fresh,) = take(database)
    for answer in (TAKEN, REFUSED):
        with pytest.raises(LeaseLost):
            settle(database, settings, late, answer)
    with pytest.raises(LeaseLost), transaction(database) as session:
        deliveries.hand_back(session, late)
    assert row_of(database, late.id).status == "running"
    assert settle(database, settings, fresh, TAKEN).status == "succeeded"
    with reading(database) as session:
        assert list(session.scalars(select(Attempt.error).order_by(Attempt.id))) == ["worker_lost", None]


def test_what_was_purged_while_it_was_sent_is_nobodys_any_more(
    database: Database, settings: Settings, webhook: Make, happen: Make
) -> None:
    webhook()
    happen()
    (claim,) = take(database)
    with transaction(database) as session:
        session.execute(delete(Delivery))
    for answer in (TAKEN, REFUSED):
        with pytest.raises(LeaseLost):
            settle(database, settings, claim, answer)


def expire(database: Database, settings: Settings) -> ledger.Expired:
    with transaction(database) as session:
        long_ago = NOW - timedelta(hours=1)
        session.execute(update(Delivery).where(Delivery.status == "running").values(lease_until=long_ago))
        return deliveries.expire(session, settings)


def test_what_a_dead_process_held_is_sent_again_and_never_given_up(
    database: Database, settings: Settings, webhook: Make, happen: Make, rung: list[str]
) -> None:
    webhook()
    happen()
    pauses = []
    for _ in range(6):
        (claim,) = take(database)
        rung.clear()
        assert expire(database, settings).requeued == [claim.id]
        assert rung == ["deliver"]
        row = row_of(database, claim.id)
        assert (row.status, row.tries) == ("queued", 0)
        pauses.append(round((row.due_at - datetime.now(UTC)).total_seconds() / 10) * 10)
        make_due(database)
    assert pauses == [0, *SCHEDULE, SCHEDULE[-1], SCHEDULE[-1]]
    (claim,) = take(database)
    assert settle(database, settings, claim, TAKEN).status == "succeeded"


def test_one_that_is_handed_back_is_ready_at_once(database: Database, webhook: Make, happen: Make) -> None:
    webhook()
    happen()
    (claim,) = take(database)
    with transaction(database) as session:
        deliveries.hand_back(session, claim)
    (again,) = take(database)
    assert (again.id, again.attempt) == (claim.id, 2)
    row = row_of(database, claim.id)
    assert (row.tries, row.losses) == (0, 0)


# ---------------------------------------------------------------- receivers that fail


def test_one_that_is_gone_is_disabled_and_the_others_hear_of_it(
    database: Database, settings: Settings, webhook: Make, happen: Make
) -> None:
    gone, other = webhook(), webhook("webhook.disabled")
    happen()
    happen()
    (claim,) = take(database)
    row = settle(database, settings, claim, Answer(NOW, 5, 410, "gone", "gone"))
    assert (row.status, row.error) == ("failed", {"code": "gone", "detail": "gone"})
    found = destination_of(database, gone)
    assert (found.enabled, found.disabled_because) == (False, "gone")
    assert statuses(database, gone) == {"failed": 1, "canceled": 2}  # the third is the news itself
    ((_, parcel),) = take_parcels(database)
    assert parcel is not None
    assert json.loads(parcel.body)["data"] == {"webhook": gone, "because": "gone"}
    assert statuses(database, other) == {"running": 1}
    with reading(database) as session:
        (deed,) = session.scalars(select(Deed).where(Deed.action == "webhook.disabled"))
    assert (deed.subject, deed.actor, deed.detail) == (gone, "hilum", {"because": "gone"})


def statuses(database: Database, webhook_id: str) -> dict[str, int]:
    with reading(database) as session:
        counted = select(Delivery.status, func.count()).where(Delivery.destination_id == webhook_id)
        return {status: count for status, count in session.execute(counted.group_by(Delivery.status))}


def test_one_that_fails_for_too_long_is_disabled(
    database: Database, settings: Settings, webhook: Make, happen: Make
) -> None:
    webhook_id = webhook()
    happen()
    happen()
    first, second = take(database, 2)
    settle(database, settings, first, REFUSED)
    since = destination_of(database, webhook_id).failing_since
    assert since is not None
    settle(database, settings, second, REFUSED)
    assert destination_of(database, webhook_id).failing_since == since
    assert destination_of(database, webhook_id).enabled
    with transaction(database) as session:
        long = timedelta(hours=settings.webhook_disable_hours, minutes=1)
        session.get_one(Destination, webhook_id).failing_since = since - long
    make_due(database)
    (claim,) = take(database, 1)
    settle(database, settings, claim, REFUSED)
    found = destination_of(database, webhook_id)
    assert (found.enabled, found.disabled_because) == (False, "failing")
    assert statuses(database, webhook_id) == {"canceled": 3}
    with reading(database) as session:
        assert session.scalars(select(func.count()).where(Event.type == "webhook.disabled")).one() == 1


def test_one_success_clears_the_record(database: Database, settings: Settings, webhook: Make, happen: Make) -> None:
    webhook_id = webhook()
    happen()
    (claim,) = take(database)
    settle(database, settings, claim, REFUSED)
    assert destination_of(database, webhook_id).failing_since is not None
    make_due(database)
    (claim,) = take(database)
    settle(database, settings, claim, TAKEN)
    assert destination_of(database, webhook_id).failing_since is None


def test_two_that_see_it_fail_at_once_disable_it_once(
    database: Database, settings: Settings, webhook: Make, happen: Make
) -> None:
    webhook_id = webhook()
    for _ in range(4):
        happen()
    claims = take(database, 4)
    barrier = threading.Barrier(4)

    def fail(claim: Claim) -> None:
        barrier.wait(10)
        settle(database, settings, claim, Answer(NOW, 5, 410, "gone", "gone"))

    threads = [threading.Thread(target=fail, args=(claim,)) for claim in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert statuses(database, webhook_id) == {"failed": 4, "canceled": 1}
    with reading(database) as session:
        assert session.scalars(select(func.count()).where(Event.type == "webhook.disabled")).one() == 1


def test_what_was_claimed_for_a_receiver_that_is_disabled_meanwhile_is_not_sent(
    database: Database, settings: Settings, webhook: Make, happen: Make, tenant_id: str
) -> None:
    webhook_id = webhook()
    happen()
    with reading(database) as session:
        found = deliveries.ready(session, 1, held={}, share=4)
    with transaction(database) as session:
        session.execute(update(Destination).values(enabled=False))
    with transaction(database) as session:
        ((claim, parcel),) = deliveries.claim(session, [found[0][0]], lease_s=30)
        assert parcel is None
        deliveries.cancel(session, claim)
    assert statuses(database, webhook_id) == {"canceled": 1}


def test_a_failure_after_it_was_disabled_is_not_tried_again(
    database: Database, settings: Settings, webhook: Make, happen: Make, tenant_id: str
) -> None:
    webhook_id = webhook()
    happen()
    (claim,) = take(database)
    with transaction(database) as session:
        destinations.disable(session, destinations.get(session, tenant_id, webhook_id), destinations.OWNER)
    settle(database, settings, claim, REFUSED)
    assert statuses(database, webhook_id) == {"canceled": 1}
    with reading(database) as session:
        assert session.scalars(select(Event.id).where(Event.type == "webhook.disabled")).first() is None


# ---------------------------------------------------------------- asking again


def test_what_came_while_it_was_disabled_can_be_asked_for(
    database: Database, settings: Settings, webhook: Make, happen: Make, tenant_id: str
) -> None:
    webhook_id = webhook()
    before = happen()
    with transaction(database) as session:
        destinations.disable(session, destinations.get(session, tenant_id, webhook_id), destinations.OWNER)
    while_disabled = happen()
    assert statuses(database, webhook_id) == {"canceled": 2}
    with transaction(database) as session:
        row = destinations.get(session, tenant_id, webhook_id)
        with pytest.raises(Conflict):
            deliveries.redeliver_some(session, row, since=NOW, until=None, statuses=[Status.CANCELED])
        destinations.enable(session, row, by=HILUM)
        asked = {"since": NOW - timedelta(hours=1), "until": None, "statuses": [Status.CANCELED]}
        assert len(deliveries.redeliver_some(session, row, **asked)) == 2
    sent = [parcel.event_id for _, parcel in take_parcels(database, 4) if parcel]
    assert sent == [before, while_disabled]


def test_a_redelivery_starts_the_schedule_anew(
    database: Database, settings: Settings, webhook: Make, happen: Make, tenant_id: str
) -> None:
    webhook_id = webhook()
    happen()
    short = settings.model_copy(update={"webhook_schedule_s": ""})
    (claim,) = take(database)
    assert settle(database, short, claim, REFUSED).status == "failed"
    with transaction(database) as session:
        row = deliveries.redeliver(session, destinations.get(session, tenant_id, webhook_id), claim.id)
        assert (row.status, row.tries, row.error, row.finished_at) == ("queued", 0, None, None)
    (again,) = take(database)
    assert settle(database, settings, again, REFUSED).status == "queued"
    with transaction(database) as session:
        with pytest.raises(NotFound):
            deliveries.redeliver(session, destinations.get(session, tenant_id, webhook_id), "dlv_none")
        deliveries.redeliver(session, destinations.get(session, tenant_id, webhook_id), claim.id)  # its pause ends
    assert len(take(database)) == 1


def test_a_range_has_two_ends(
    database: Database, settings: Settings, webhook: Make, happen: Make, tenant_id: str
) -> None:
    webhook_id = webhook()
    for hours in (1, 2, 3):
        happen()
        (claim,) = take(database)
        settle(database, settings, claim, TAKEN)
        with transaction(database) as session:
            session.get_one(Delivery, claim.id).created_at = NOW - timedelta(hours=hours)
    with transaction(database) as session:
        row = destinations.get(session, tenant_id, webhook_id)
        bounds = {"since": NOW - timedelta(hours=2), "until": NOW - timedelta(hours=1)}
        assert not deliveries.redeliver_some(session, row, **bounds, statuses=[Status.FAILED])
        assert len(deliveries.redeliver_some(session, row, **bounds, statuses=[Status.SUCCEEDED])) == 1
    assert statuses(database, webhook_id) == {"succeeded": 2, "queued": 1}


def test_a_pile_is_canceled_and_asked_for_again_in_parts(
    database: Database, webhook: Make, tenant_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destinations, "CANCELED_AT_ONCE", 4)
    monkeypatch.setattr(deliveries, "AT_ONCE", 4)
    webhook_id, other_id = webhook("job.failed"), webhook("job.failed", url="https://other.example/")
    with transaction(database) as session:
        pile_up(session, webhook_id, 10)
        pile_up(session, other_id, 3)
    with transaction(database) as session:
        destinations.disable(session, destinations.get(session, tenant_id, webhook_id), destinations.OWNER)
    assert statuses(database, webhook_id) == {"canceled": 4, "queued": 6}
    counts = []
    for _ in range(3):  # what the sweeper does
        with transaction(database) as session:
            counts.append(deliveries.cancel_disabled(session))
    assert counts == [4, 2, 0]
    assert (statuses(database, webhook_id), statuses(database, other_id)) == ({"canceled": 10}, {"queued": 3})
    asked = {"since": NOW - timedelta(hours=1), "until": None, "statuses": [Status.CANCELED]}
    parts: list[Sequence[str]] = []
    while not parts or parts[-1]:
        with transaction(database) as session:
            row = destinations.get(session, tenant_id, webhook_id)
            destinations.enable(session, row, by=HILUM)
            parts.append(deliveries.redeliver_some(session, row, **asked, after=parts[-1][-1] if parts else ""))
    assert [len(part) for part in parts] == [4, 4, 2, 0]
    assert statuses(database, webhook_id) == {"queued": 10}


def test_of_two_who_change_a_webhook_the_second_sees_what_the_first_made(
    database: Database, webhook: Make, tenant_id: str
) -> None:
    """Two rotations at once: the first new secret was shown to somebody, so it must sign as the one before."""
    webhook_id, read = webhook(), threading.Event()
    made: list[str] = []

    def rotate() -> None:
        with transaction(database) as session:
            row = destinations.get(session, tenant_id, webhook_id, to_change=True)
            read.set()
            destinations.rotate(session, row, timedelta(hours=1), by=HILUM)
            made.append(row.secrets[0])

    second = threading.Thread(target=rotate)
    with transaction(database) as session:
        row = destinations.get(session, tenant_id, webhook_id, to_change=True)
        second.start()
        read.wait(0.5)  # in vain: the second waits for the commit
        destinations.rotate(session, row, timedelta(hours=1), by=HILUM)
        made.append(row.secrets[0])
    second.join()
    with reading(database) as session:
        assert session.get_one(Destination, webhook_id).secrets == made[::-1]


@on_postgresql
def test_what_happens_does_not_wait_for_who_changes_a_webhook(
    database: Database, webhook: Make, happen: Make, tenant_id: str
) -> None:
    webhook_id = webhook()
    with transaction(database) as session:
        destinations.get(session, tenant_id, webhook_id, to_change=True)
        happening = threading.Thread(target=happen)
        happening.start()
        happening.join(30)
        assert not happening.is_alive()
    assert statuses(database, webhook_id) == {"queued": 1}


@on_postgresql
def test_renewing_many_waits_for_none_that_is_being_written(database: Database, webhook: Make, happen: Make) -> None:
    webhook()
    for _ in range(2):
        happen()
    claims = free, settled = take(database, 2)
    age(database)
    with transaction(database) as session:
        session.get_one(Delivery, settled.id, with_for_update=True)
        with transaction(database) as renewing:
            assert ledger.renew_free(renewing, Delivery, claims, lease_s=60) == []
    assert [is_held(database, claim) for claim in (free, settled)] == [True, False]


def test_renewing_many_tells_which_are_lost(database: Database, webhook: Make, happen: Make) -> None:
    webhook()
    for _ in range(3):
        happen()
    claims = free, stolen, ended = take(database, 3)
    age(database)
    with transaction(database) as session:
        session.execute(update(Delivery).where(Delivery.id == stolen.id).values(lease_token="another's"))
        ledger.settle(session, ended, Status.SUCCEEDED)
        assert ledger.renew_free(session, Delivery, claims, lease_s=60) == [stolen, ended]
    assert [is_held(database, claim) for claim in (free, stolen)] == [True, False]


def age(database: Database) -> None:
    """Let the leases of all that is held have run out."""
    with transaction(database) as session:
        session.execute(update(Delivery).values(lease_until=NOW - timedelta(hours=1)))


def is_held(database: Database, claim: Claim) -> bool:
    until = row_of(database, claim.id).lease_until
    return until is not None and until > NOW


def test_both_secrets_sign_until_the_overlap_ends(database: Database, webhook: Make, tenant_id: str) -> None:
    webhook_id = webhook()
    with transaction(database) as session:
        row = destinations.get(session, tenant_id, webhook_id)
        (first,) = row.secrets
        destinations.rotate(session, row, timedelta(hours=1), by=HILUM)
        second = row.secrets[0]
        assert destinations.live_secrets(row, datetime.now(UTC)) == [second, first]
        assert destinations.live_secrets(row, datetime.now(UTC) + timedelta(hours=2)) == [second]
        destinations.rotate(session, row, timedelta(hours=1), by=HILUM)
        assert destinations.live_secrets(row, datetime.now(UTC)) == [row.secrets[0], second]
        assert len({first, second, row.secrets[0]}) == 3


def test_what_is_done_to_a_webhook_is_in_the_audit_log(database: Database, webhook: Make, tenant_id: str) -> None:
    webhook_id = webhook("job.failed")
    with transaction(database) as session:
        row = destinations.get(session, tenant_id, webhook_id)
        destinations.change(session, row, {"description": "new"}, by=HILUM)
        destinations.rotate(session, row, timedelta(0), by=HILUM)
        destinations.disable(session, row, destinations.OWNER)
        destinations.enable(session, row, by=HILUM)
        destinations.delete(session, row, by=HILUM)
        secret = row.secrets
    assert secret == []
    with reading(database) as session:
        found = deeds.page(session, tenant_id, limit=50).deeds
    kinds = ("created", "changed", "secret_rotated", "disabled", "enabled", "deleted")
    assert [deed.action for deed in reversed(found) if deed.subject == webhook_id] == [f"webhook.{k}" for k in kinds]
    assert "whsec_" not in str(found)
