"""Purging on SQLite and on PostgreSQL: what goes, what stays, in which order, and who is in the way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, func, select, update

from shared import batches, deliveries, destinations, explanations, ids, jobs, ledger, outbox, purge, tenants
from shared.artifacts import Stored, key_of
from shared.columns import Base
from shared.db import Database, clock, reading, transaction
from shared.deeds import HILUM, By
from shared.deeds import page as deeds_of
from shared.deliveries import Answer
from shared.errors import Conflict, LeaseLost, NotFound, Unavailable
from shared.models import Attempt, Batch, Deed, Delivery, Event, Explanation, IdempotencyKey, Job
from shared.schemas import Failure
from shared.settings import Settings
from shared.storage import LocalStorage, Storage, open_storage
from tests.values import analysis

BY: By = {"actor": "key_of_a_test", "request_id": "r1"}
KEPT = {"tenants", "deeds", "destinations", "counters", "locks", "api_keys", "workers"}
Make = Callable[..., str]


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return open_storage(settings)


@pytest.fixture
def make(database: Database, settings: Settings, storage: Storage, tenant_id: str) -> Make:
    """A job with everything that can belong to one, ended `days` ago unless `ends` is false; its id."""

    def one(*, days: float = 0, ends: bool = True, whose: str = tenant_id, batch_id: str | None = None) -> str:
        job_id = jobs.new_id()
        key = f"{whose}/{job_id}/input"
        storage.put(key, b"a film", "image/png")
        details = {"blob_key": key, "media_type": "image/png", "size": 6, "sha256": "0" * 64, "batch_id": batch_id}
        with transaction(database) as session:
            jobs.submit(session, settings, tenant_id=whose, job_id=job_id, explain=["gradcam"], **details)
            now, first = clock(session), {"tenant_id": whose, "request_sha256": "0" * 64}
            session.add(IdempotencyKey(key=job_id, job_id=job_id, created_at=now, **first))
        if ends:
            _end(database, storage, job_id)
        with transaction(database) as session:
            past = clock(session) - timedelta(days=days)
            session.execute(
                update(Job).where(Job.id == job_id).values(created_at=past, finished_at=past if ends else None)
            )
        return _dated(database, job_id, days) if days else job_id

    return one


def _end(database: Database, storage: Storage, job_id: str) -> None:
    """As workers do: one attempt was lost with its pictures, the next one and the explanation succeed."""
    with transaction(database) as session:
        job = session.get_one(Job, job_id)
        (claim,) = ledger.claim_chosen(session, Job, select(Job.id).where(Job.id == job_id), lease_s=60)
    stored = []
    for attempt, name in ((7, "lungs.png"), (claim.attempt, "lungs.png"), (claim.attempt, "input.png")):
        key = key_of(job.tenant_id, job_id, attempt, name)
        storage.put(key, b"a picture", "image/png")
        stored.append(Stored(name, key, "image/png", 9))
    with transaction(database) as session:
        jobs.finish(session, claim, analysis(), stored[1:])
        chosen = select(Explanation.id).where(Explanation.job_id == job_id)
        (claim,) = ledger.claim_chosen(session, Explanation, chosen, lease_s=60)
        explanations.finish(session, claim, {}, [Stored("gradcam.png", stored[0].key, "image/png", 9)])


def _dated(database: Database, job_id: str, days: float) -> str:
    """The same job under the id that it would have got `days` ago, since ids tell when they were made."""
    older = f"{ids.earliest('job', _ago(database, days))[:14]}{job_id[14:]}"
    with database.engine.begin() as connection:
        if database.engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        copy = connection.execute(select(Job.__table__).where(Job.id == job_id)).mappings().one()
        connection.execute(Job.__table__.insert().values({**copy, "id": older}))
        for table in (Explanation, IdempotencyKey, Event, Base.metadata.tables["artifacts"]):
            mine = getattr(table, "__table__", table)
            connection.execute(mine.update().where(mine.c.job_id == job_id).values(job_id=older))
        connection.execute(Job.__table__.delete().where(Job.id == job_id))
    return older


def _ago(database: Database, days: float) -> Any:
    with reading(database) as session:
        return clock(session) - timedelta(days=days)


def hook(database: Database, tenant_id: str) -> str:
    with transaction(database) as session:
        told = {"url": "https://192.0.2.1/hook", "events": [], "description": "", "by": HILUM}
        return destinations.create(session, tenant_id, **told).id


def deliver(database: Database, settings: Settings) -> None:
    """Every delivery that waits arrives."""
    with transaction(database) as session:
        for claim, _ in deliveries.claim(session, list(session.scalars(select(Delivery.id))), lease_s=60):
            deliveries.settle(session, settings, claim, Answer(clock(session), status=200))


def counts(database: Database) -> dict[str, int]:
    """Rows by table, of those that a purge is to empty."""
    with reading(database) as session:
        tables = {name: table for name, table in Base.metadata.tables.items() if name not in KEPT}
        return {n: session.scalars(select(func.count()).select_from(t)).one() for n, t in tables.items()}


def files(settings: Settings) -> list[str]:
    return sorted(p.relative_to(settings.home / "blobs").as_posix() for p in settings.home.rglob("blobs/**/*"))


# ---------------------------------------------------------------- one job, now


def test_a_purged_job_leaves_nothing_but_the_audit_log(
    database: Database, settings: Settings, storage: Storage, make: Make, tenant_id: str
) -> None:
    hook(database, tenant_id)
    job_id = make()
    deliver(database, settings)
    with reading(database) as session:
        assert session.scalars(select(func.count()).select_from(Attempt)).one() == 2
    assert len([name for name in files(settings) if name.startswith(f"{tenant_id}/{job_id}/")]) > 4
    purged = purge.purge_job(database, storage, tenant_id, job_id, by=BY)
    assert (purged.jobs, purged.files, purged.left) == (1, 4, 0)
    assert {name: count for name, count in counts(database).items() if count} == {}
    assert files(settings) == [tenant_id]
    with reading(database) as session:
        (deed, *_) = deeds_of(session, tenant_id, limit=1).deeds
    assert (deed.action, deed.subject, deed.actor, deed.request_id) == ("job.purged", job_id, BY["actor"], "r1")


def test_what_is_not_the_job_stays(
    database: Database, settings: Settings, storage: Storage, make: Make, tenant_id: str
) -> None:
    hook(database, tenant_id)
    gone, kept = make(), make()
    before, lying = counts(database), files(settings)
    purge.purge_job(database, storage, tenant_id, gone, by=BY)
    after = counts(database)
    assert {name: count * 2 for name, count in after.items()} == before
    assert files(settings) == [name for name in lying if gone not in name]
    with reading(database) as session:
        assert session.scalars(select(Job.id)).all() == [kept]


def test_only_what_has_ended_can_be_purged(database: Database, storage: Storage, make: Make, tenant_id: str) -> None:
    job_id = make(ends=False)
    with transaction(database) as session:
        stranger = tenants.create(session, "stranger").id
    before = counts(database)
    with pytest.raises(Conflict, match="cancel it first"):
        purge.purge_job(database, storage, tenant_id, job_id, by=BY)
    for whose, which in ((stranger, job_id), (tenant_id, jobs.new_id())):
        with pytest.raises(NotFound, match="There is no such job"):
            purge.purge_job(database, storage, whose, which, by=BY)
    assert counts(database) == before


def test_files_go_after_the_rows_and_a_store_that_is_away_keeps_them(
    database: Database,
    settings: Settings,
    storage: Storage,
    make: Make,
    tenant_id: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id, seen = make(), []

    def away(self: LocalStorage, key: str) -> None:
        with reading(database) as session:
            seen.append(session.get(Job, job_id))
        raise Unavailable("The storage does not answer.", code="storage_unavailable")

    monkeypatch.setattr(LocalStorage, "delete", away)
    purged = purge.purge_job(database, storage, tenant_id, job_id, by=BY)
    assert seen == [None]
    assert (purged.jobs, purged.files, purged.left) == (1, 0, 4)
    assert len(files(settings)) > 4


def test_an_error_leaves_rows_and_files_as_they_were(
    database: Database, settings: Settings, storage: Storage, make: Make, tenant_id: str
) -> None:
    job_id = make()
    before, lying = counts(database), files(settings)

    def refuse(connection: object, cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("DELETE FROM jobs"):
            raise RuntimeError("the machine stops here")

    event.listen(database.engine, "before_cursor_execute", refuse)
    try:
        with pytest.raises(RuntimeError):
            purge.purge_job(database, storage, tenant_id, job_id, by=BY)
    finally:
        event.remove(database.engine, "before_cursor_execute", refuse)
    assert (counts(database), files(settings)) == (before, lying)
    with reading(database) as session:
        assert session.scalars(select(func.count()).select_from(Deed).where(Deed.action == "job.purged")).one() == 0


def test_who_still_works_on_it_writes_nothing(
    database: Database, storage: Storage, make: Make, tenant_id: str, settings: Settings
) -> None:
    hook(database, tenant_id)
    job_id = make()
    with transaction(database) as session:
        explanations.request(session, tenant_id, job_id, "gradcam")
        session.execute(update(Explanation).values(status="queued", ready_at=clock(session)))
    with transaction(database) as session:
        (explaining,) = ledger.claim_next(session, Explanation, 1, lease_s=60)
        (sending, *_) = deliveries.claim(session, list(session.scalars(select(Delivery.id))), lease_s=60)
    purge.purge_job(database, storage, tenant_id, job_id, by=BY)
    with pytest.raises(LeaseLost), transaction(database) as session:
        explanations.finish(session, explaining, {}, [Stored("gradcam.png", "a/b/c", "image/png", 1)])
    with pytest.raises(LeaseLost), transaction(database) as session:
        explanations.fail(session, explaining, Failure(code="x", detail="x"))
    with pytest.raises(LeaseLost), transaction(database) as session:
        deliveries.settle(session, settings, sending[0], Answer(clock(session), status=200))
    assert {name: count for name, count in counts(database).items() if count} == {}


def test_a_batch_goes_with_the_last_of_its_jobs(
    database: Database, storage: Storage, make: Make, tenant_id: str
) -> None:
    with transaction(database) as session:
        batch = batches.create(session, tenant_id=tenant_id, batch_id=batches.new_id(), total=4)
    made = [make(batch_id=batch.id) for _ in range(3)]
    running = make(batch_id=batch.id, ends=False)
    for job_id in made[:1]:
        purge.purge_job(database, storage, tenant_id, job_id, by=BY)
    with reading(database) as session:
        view = batches.view(session, batches.get(session, tenant_id, batch.id))
    assert (view.total, view.counts["succeeded"], view.counts["queued"]) == (4, 2, 1)
    with transaction(database) as session:
        jobs.cancel(session, tenant_id, running)
    threads = [
        threading.Thread(target=purge.purge_job, args=(database, storage, tenant_id, job_id), kwargs={"by": BY})
        for job_id in (*made[1:], running)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with reading(database) as session:
        assert session.scalars(select(func.count()).select_from(Job)).one() == 0
        assert session.scalars(select(func.count()).select_from(Batch)).one() == 0
        assert session.scalars(select(Event.type)).all() == ["batch.finished"]


def test_many_who_purge_the_same_job_purge_it_once(
    database: Database, storage: Storage, make: Make, tenant_id: str
) -> None:
    job_id, outcomes, start = make(), [], threading.Barrier(4)

    def once() -> None:
        start.wait()
        try:
            purge.purge_job(database, storage, tenant_id, job_id, by=BY)
            outcomes.append("purged")
        except NotFound:
            outcomes.append("not there")

    threads = [threading.Thread(target=once) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("purged") == 1, outcomes
    assert len(outcomes) == 4
    with reading(database) as session:
        assert session.scalars(select(func.count()).select_from(Deed).where(Deed.action == "job.purged")).one() == 1


# ---------------------------------------------------------------- retention


@pytest.fixture
def retire(database: Database, storage: Storage, settings: Settings) -> Callable[..., purge.Purged]:
    """Rounds of the retention until nothing is past its time."""

    def all_of_it(**changes: object) -> purge.Purged:
        total, now = purge.Purged(), settings.model_copy(update=changes)
        while (purged := purge.retire(database, storage, now)) != purge.Purged():
            total += purged
        return total

    return all_of_it


def left(database: Database) -> set[str]:
    with reading(database) as session:
        return set(session.scalars(select(Job.id)))


def test_jobs_go_by_the_days_since_their_end(database: Database, make: Make, retire: Any) -> None:
    old, older, young = make(days=31), make(days=400), make(days=29)
    open_ones = {make(days=31, ends=False), make(ends=False)}
    assert retire() == purge.Purged()
    assert retire(retention_days=30).jobs == 2
    assert left(database) == {young, *open_ones}
    with transaction(database) as session:
        session.execute(update(Job).where(Job.id.in_(open_ones)).values(status="canceled", finished_at=clock(session)))
    assert retire(retention_days=30).jobs == 0  # it is the end that counts, not the beginning
    assert {old, older} & left(database) == set()


def test_a_tenant_may_keep_its_jobs_longer_shorter_or_for_ever(
    database: Database, make: Make, retire: Any, tenant_id: str
) -> None:
    with transaction(database) as session:
        others = [tenants.create(session, name) for name in ("short", "ever")]
        for tenant, days in zip(others, (2, 0), strict=True):
            tenants.configure(session, tenant, {"retention_days": days})
    mine, short, ever = (make(days=5, whose=whose) for whose in (tenant_id, others[0].id, others[1].id))
    assert retire(retention_days=30).jobs == 1
    assert left(database) == {mine, ever}
    assert retire(retention_days=3).jobs == 1
    assert left(database) == {ever}
    assert short not in left(database)


def test_a_purge_is_done_in_bounded_batches(
    database: Database,
    storage: Storage,
    settings: Settings,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    tenant_id: str,
) -> None:
    monkeypatch.setattr(purge, "AT_ONCE", 2)
    made = [make(days=10) for _ in range(5)]
    sizes = []
    while (purged := purge.purge_ended(database, storage, tenant_id, before=None, by=BY)).jobs:
        sizes.append(purged.jobs)
        assert len(left(database)) == len(made) - sum(sizes)
    assert sizes == [2, 2, 1]
    with reading(database) as session:
        actors = session.scalars(select(Deed.actor).where(Deed.action == "job.purged")).all()
    assert actors == [BY["actor"]] * 5


def test_retention_waits_for_a_receiver_but_not_for_ever(
    database: Database, make: Make, retire: Any, tenant_id: str, settings: Settings
) -> None:
    hook(database, tenant_id)
    untold, hopeless = make(days=3), make(days=3 + purge.UNDELIVERED_DAYS)
    assert retire(retention_days=2).jobs == 1
    assert left(database) == {untold}
    deliver(database, settings)
    assert retire(retention_days=2).jobs == 1
    assert hopeless not in left(database)


def test_a_request_does_not_wait_for_a_receiver(
    database: Database, storage: Storage, make: Make, tenant_id: str
) -> None:
    hook(database, tenant_id)
    make(days=3)
    before = _ago(database, 2)
    assert purge.purge_ended(database, storage, tenant_id, before=before, by=BY).jobs == 1


def _event(database: Database, tenant_id: str, days: float) -> str:
    with transaction(database) as session:
        moment = clock(session) - timedelta(days=days)
        made = outbox.record(session, tenant_id, None, "batch.finished", batch="bat_x")
        session.flush()
        older = f"{ids.earliest('evt', moment)[:14]}{made.id[14:]}"
        told = {"tenant_id": tenant_id, "type": made.type, "payload": {}, "created_at": moment}
        session.add(Event(id=older, **told))
        session.flush()
        session.execute(update(Delivery).where(Delivery.event_id == made.id).values(event_id=older))
        session.delete(made)
    return older


def test_events_and_their_log_go_by_a_time_of_their_own(
    database: Database, make: Make, retire: Any, tenant_id: str, settings: Settings
) -> None:
    hook(database, tenant_id)
    job_id = make(days=100)
    old, young = _event(database, tenant_id, 31), _event(database, tenant_id, 29)
    deliver(database, settings)
    untold, hopeless = _event(database, tenant_id, 32), _event(database, tenant_id, 31 + purge.UNDELIVERED_DAYS)
    assert retire().events == 2
    with reading(database) as session:
        kept = set(session.scalars(select(Event.id)))
        attempts = session.scalars(select(Delivery.event_id).join(Attempt, Attempt.delivery_id == Delivery.id)).all()
        assert {old, hopeless} & kept == set()
        assert {young, untold} <= kept
        assert old not in attempts
        assert young in attempts
        assert session.get(Job, job_id) is not None
    deliver(database, settings)
    assert retire().events == 1


def test_what_is_kept_for_longer_than_the_calendar_is_kept(database: Database, make: Make, retire: Any) -> None:
    make(days=3)
    assert retire(retention_days=10**9, event_retention_days=10**9) == purge.Purged()
