"""Every end of a job is an event, and counts it out of its batch, wherever it ends."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import select

from shared import batches, jobs, ledger
from shared.db import Database, reading, transaction
from shared.ledger import Claim
from shared.models import Batch, Event, Job
from shared.schemas import Failure, Reason
from shared.settings import Settings
from tests.values import analysis

SUBMITTED = {"blob_key": "b", "media_type": "image/png", "size": 1, "sha256": "0" * 64}


def batch_of(database: Database, settings: Settings, tenant_id: str, count: int, batch_id: str = "bat_1") -> list[str]:
    """A batch of so many queued jobs."""
    job_ids = [jobs.new_id() for _ in range(count)]
    with transaction(database) as session:
        batches.create(session, tenant_id=tenant_id, batch_id=batch_id, total=count)
        for job_id in job_ids:
            jobs.submit(session, settings, tenant_id=tenant_id, job_id=job_id, batch_id=batch_id, **SUBMITTED)
    return job_ids


def claimed(database: Database, count: int = 1, lease_s: float = 60) -> list[Claim]:
    with transaction(database) as session:
        return ledger.claim_next(session, Job, count, lease_s=lease_s)


def told(database: Database) -> list[str]:
    """The types of all events, in the order in which they were made."""
    with reading(database) as session:
        return list(session.scalars(select(Event.type).order_by(Event.created_at)))


def left(database: Database, batch_id: str = "bat_1") -> int:
    with reading(database) as session:
        return session.get_one(Batch, batch_id).open


ENDS: dict[str, Callable[..., None]] = {
    "job.succeeded": lambda session, claim: jobs.finish(session, claim, analysis(), []),
    "job.rejected": lambda session, claim: jobs.reject(session, claim, Reason(code="too_small", detail=""), "tiny"),
    "job.failed": lambda session, claim: jobs.fail(session, claim, Failure(code="internal_error", detail="")),
    "job.canceled": lambda session, claim: jobs.stop(session, claim),
}


@pytest.mark.parametrize("event", ENDS)
def test_each_end_leaves_the_batch(database, settings, tenant_id, event):
    batch_of(database, settings, tenant_id, 2)
    for expected in (1, 0):
        (claim,) = claimed(database)
        with transaction(database) as session:
            ENDS[event](session, claim)
        assert left(database) == expected
    assert told(database) == [event, event, "batch.finished"]


def test_a_queued_job_that_is_canceled_leaves_its_batch_once(database, settings, tenant_id):
    first, second = batch_of(database, settings, tenant_id, 2)
    for job_id in (first, first, second):
        with transaction(database) as session:
            assert jobs.cancel(session, tenant_id, job_id).status == "canceled"
    assert left(database) == 0
    assert told(database) == ["job.canceled", "job.canceled", "batch.finished"]


def test_jobs_of_several_batches_that_the_sweeper_ends_leave_theirs(database, settings, tenant_id):
    batch_of(database, settings, tenant_id, 2, "bat_2")
    batch_of(database, settings, tenant_id, 1, "bat_1")
    canceled, *_ = claimed(database, 3, lease_s=-1)
    with transaction(database) as session:
        jobs.cancel(session, tenant_id, canceled.id)
    with transaction(database) as session:
        jobs.expire(session, settings.model_copy(update={"max_attempts": 1}))
    assert (left(database, "bat_1"), left(database, "bat_2")) == (0, 0)
    assert sorted(told(database)) == ["batch.finished"] * 2 + ["job.canceled"] + ["job.failed"] * 2


def test_no_worker_is_given_a_rehearsed_job(database, settings, tenant_id, rung):
    with transaction(database) as session:
        jobs.submit(session, settings, tenant_id=tenant_id, job_id=jobs.new_id(), mode="test", **SUBMITTED)
    assert claimed(database) == []
    assert rung == []
    with reading(database) as session:
        job = session.scalars(select(Job)).one()
    with transaction(database) as session:
        jobs.cancel(session, tenant_id, job.id)
    with reading(database) as session:
        assert session.scalars(select(Event.mode)).one() == "test"
