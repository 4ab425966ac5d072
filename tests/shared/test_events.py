"""The order of events: given after the commit, the same for everyone, and without a gap for who reads along."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from sqlalchemy import delete, select, update

from api import sweep
from shared import batches, events, explanations, ids, jobs, ledger, outbox, tenants
from shared.db import Database, clock, reading, transaction
from shared.events import Wanted
from shared.models import Counter, Event, Explanation, Job
from shared.schemas import Failure
from shared.settings import Settings
from tests import servers
from tests.values import analysis

STORED = {"blob_key": "b", "media_type": "image/png", "size": 1, "sha256": "0" * 64}


def happen(database: Database, tenant_id: str, count: int = 1) -> list[str]:
    """So many events without a job; their ids."""
    made = []
    for _ in range(count):
        with transaction(database) as session:
            made.append(outbox.record(session, tenant_id, None, "batch.finished", batch="bat_1").id)
    return made


def told(database: Database, tenant_id: str, after: int = 0, **wanted: object) -> list[str]:
    """The ids of the events after a number."""
    events.numbered(database)
    with reading(database) as session:
        found = events.page(session, Wanted(tenant_id, **wanted), after)  # type: ignore[arg-type]
    assert [one.seq for one in found] == sorted(one.seq for one in found)
    return [one.view.id for one in found]


def placed(database: Database, tenant_id: str, event_id: str) -> int:
    with reading(database) as session:
        return events.place(session, tenant_id, event_id)


def test_numbers_are_given_once_and_without_a_gap(database: Database, tenant_id: str) -> None:
    made = happen(database, tenant_id, 3)
    assert (events.numbered(database), events.numbered(database)) == (3, 3)
    made += happen(database, tenant_id, 2)
    assert told(database, tenant_id) == made
    with reading(database) as session:
        assert list(session.scalars(select(Event.seq).order_by(Event.seq))) == [1, 2, 3, 4, 5]
        assert events.tail(session) == (5, False)


def test_the_sweeper_numbers_while_nobody_reads(database: Database, settings: Settings, tenant_id: str) -> None:
    made = happen(database, tenant_id, 2)
    assert sweep.once(database, settings, sweep.Sweeper())
    with reading(database) as session:
        assert [one.view.id for one in events.since(session, 0)] == made


def test_many_are_numbered_in_several_rounds(
    database: Database, tenant_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "AT_ONCE", 2)
    happen(database, tenant_id, 5)
    assert [events.numbered(database) for _ in range(4)] == [2, 4, 5, 5]


def test_a_reader_goes_on_after_the_event_it_saw(database: Database, tenant_id: str) -> None:
    made = happen(database, tenant_id, 4)
    told(database, tenant_id)
    for place, event_id in enumerate(made, 1):
        assert told(database, tenant_id, placed(database, tenant_id, event_id)) == made[place:]


def test_a_purged_event_is_placed_by_its_time(database: Database, tenant_id: str) -> None:
    made = happen(database, tenant_id, 4)
    told(database, tenant_id)
    long_ago = timedelta(days=30)
    with transaction(database) as session:
        session.execute(delete(Event).where(Event.id == made[0]))
        now = clock(session)
        session.execute(update(Event).where(Event.id == made[1]).values(created_at=now - long_ago))
    before, between = (ids.earliest("evt", now - days) for days in (2 * long_ago, long_ago / 2))
    assert told(database, tenant_id, placed(database, tenant_id, before)) == made[1:]
    assert told(database, tenant_id, placed(database, tenant_id, between)) == made[2:]
    assert told(database, tenant_id, placed(database, tenant_id, made[0])) == made[2:]  # its id says that it was new


def test_nothing_of_another_tenant_is_told_or_placed(database: Database, tenant_id: str) -> None:
    with transaction(database) as session:
        other = tenants.create(session, "another").id
    (strange,) = happen(database, other)
    (own,) = happen(database, tenant_id)
    assert told(database, tenant_id) == [own]
    assert told(database, other) == [strange]
    assert placed(database, tenant_id, strange) == 0
    with reading(database) as session:
        assert events.newest(session, tenant_id) == (own, 2)


def test_types_and_jobs_choose(database: Database, settings: Settings, tenant_id: str) -> None:
    with transaction(database) as session:
        batches.create(session, tenant_id=tenant_id, batch_id="bat_1", total=2)
        for job_id in ("job_1", "job_2"):
            jobs.submit(session, settings, tenant_id=tenant_id, job_id=job_id, batch_id="bat_1", **STORED)  # type: ignore[arg-type]
            jobs.cancel(session, tenant_id, job_id)
    assert len(told(database, tenant_id)) == 3
    (finished,) = told(database, tenant_id, types=frozenset({"batch.finished"}))
    (canceled,) = told(database, tenant_id, job_id="job_1")
    assert told(database, tenant_id)[0] == canceled
    assert told(database, tenant_id)[-1] == finished
    assert told(database, tenant_id, job_id="job_1", types=frozenset({"batch.finished"})) == []


def test_a_job_is_over_when_its_explanations_are_and_all_is_numbered(
    database: Database, settings: Settings, tenant_id: str
) -> None:
    def is_over() -> bool:
        with reading(database) as session:
            return "job_1" in events.over(session, ["job_1", "job_that_was_purged"])

    with transaction(database) as session:
        jobs.submit(session, settings, tenant_id=tenant_id, job_id="job_1", explain=["gradcam"], **STORED)  # type: ignore[arg-type]
    with transaction(database) as session:
        (claim,) = ledger.claim_next(session, Job, 1, lease_s=60)
        jobs.finish(session, claim, analysis(), [])
    events.numbered(database)
    assert not is_over()
    with transaction(database) as session:
        (claim,) = ledger.claim_next(session, Explanation, 1, lease_s=60)
        explanations.fail(session, claim, Failure(code="not_available", detail=""))
    assert not is_over()
    events.numbered(database)
    assert is_over()


# SQLite has one writer at a time: there, no transaction commits while another has written.
on_postgres = pytest.mark.parametrize(
    "database_url", [pytest.param("postgresql", marks=pytest.mark.postgres)], indirect=True
)


@on_postgres
def test_a_commit_that_comes_late_is_numbered_late(database: Database, tenant_id: str) -> None:
    """T1 writes, T2 writes and commits, a reader reads, T1 commits: the reader misses neither."""
    with transaction(database) as first:
        early = outbox.record(first, tenant_id, None, "batch.finished").id
        (late,) = happen(database, tenant_id)
        assert told(database, tenant_id) == [late]
    seen = placed(database, tenant_id, late)
    assert told(database, tenant_id, seen) == [early]


@on_postgres
def test_a_process_that_is_numbering_is_not_waited_for(database: Database, tenant_id: str) -> None:
    happen(database, tenant_id)
    with transaction(database) as busy:
        busy.execute(update(Counter).values(value=Counter.value))
        assert events.numbered(database) == 0
    assert events.numbered(database) == 1


def test_readers_that_number_at_the_same_time_see_each_event_once_and_in_order(
    database: Database, tenant_id: str
) -> None:
    stop, seen = threading.Event(), {name: [] for name in range(3)}

    def read(name: int) -> None:
        place, last_round = 0, False
        while not last_round:
            last_round = stop.is_set()
            events.numbered(database)
            with reading(database) as session:
                for one in events.page(session, Wanted(tenant_id), place):
                    seen[name].append(one.view.id)
                    place = one.seq

    readers = [threading.Thread(target=read, args=(name,)) for name in seen]
    writers = [threading.Thread(target=happen, args=(database, tenant_id, 20)) for _ in range(4)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    servers.until(lambda: events.numbered(database) == 80, within_s=30, what="all are numbered")
    stop.set()
    for thread in readers:
        thread.join()
    assert len(set(seen[0])) == 80
    assert seen[0] == seen[1] == seen[2]
