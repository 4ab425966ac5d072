"""Retention: what ended long ago, or what its owner wants gone, disappears with all that belongs to it.

The rows go in one transaction, and their files after its commit: a row never names a file that is gone. Files that a
process did not live to delete, or the store would not give up, belong to no row any more and are collected as orphans.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, delete, exists, or_, select
from sqlalchemy.orm import Session

from shared import deeds, ids, ledger, logs
from shared.db import Database, clock, reading, transaction, written
from shared.deeds import HILUM, By
from shared.errors import Conflict, HilumError, NotFound
from shared.models import (
    Artifact,
    Attempt,
    Batch,
    Delivery,
    Event,
    Explanation,
    IdempotencyKey,
    Job,
    Tenant,
)
from shared.schemas import TERMINAL, Status
from shared.settings import Settings
from shared.storage import Blob, Storage

AT_ONCE = 100  # jobs or events in one transaction
# Retention waits this much longer for a job or an event that a receiver has not been told of: the default schedule of
# deliveries ends within four days.
UNDELIVERED_DAYS = 7
LONGEST_DAYS = 36_500  # the calendar has an end

log = logs.get("shared.purge")


class Files(NamedTuple):
    """What some jobs left in the storage: the keys that their rows named, and a folder for each job."""

    keys: list[str]
    folders: list[str]


@dataclass(frozen=True)
class Purged:
    """How many jobs and events are gone, how many files, and how many of their files are left to be collected."""

    jobs: int = 0
    events: int = 0
    files: int = 0
    left: int = 0

    def __add__(self, other: Purged) -> Purged:
        return Purged(
            self.jobs + other.jobs, self.events + other.events, self.files + other.files, self.left + other.left
        )


def purge_job(database: Database, storage: Storage, tenant_id: str, job_id: str, *, by: By) -> Purged:
    """Purge one job that has ended, now. NotFound; Conflict while it has not ended."""
    with transaction(database) as session:
        found = select(Job.status).where(Job.id == job_id, Job.tenant_id == tenant_id)
        status = session.scalars(found).one_or_none()
        if status is None:
            raise NotFound("There is no such job.")
        if not Status(status).terminal:
            raise Conflict(f"The job is {status}: cancel it first.", code="not_ended")
        files = _erase(session, [job_id], by)
        if not files.folders:  # another purged it between our two looks
            raise NotFound("There is no such job.")
    return _delete_files(storage, files)


def purge_ended(database: Database, storage: Storage, tenant_id: str, *, before: datetime | None, by: By) -> Purged:
    """Purge up to AT_ONCE of a tenant's jobs that ended before a moment (None: that ended); none: all are gone."""
    with transaction(database) as session:
        job_ids = session.scalars(_ended(tenant_id, before).order_by(Job.id).limit(AT_ONCE)).all()
        files = _erase(session, job_ids, by)
    return _delete_files(storage, files)


def retire(database: Database, storage: Storage, settings: Settings) -> Purged:
    """Purge up to AT_ONCE jobs, or else events, that have been kept for as long as they are to be."""
    with reading(database) as session:
        now = clock(session)
        kept = [(row.id, days_of(row, settings)) for row in session.scalars(select(Tenant).order_by(Tenant.id))]
    for tenant_id, days in kept:
        if days:
            before = now - timedelta(days=days)
            purged = _retire_jobs(database, storage, tenant_id, before)
            if purged.jobs:
                return purged
    return _retire_events(database, now - timedelta(days=min(settings.event_retention_days, LONGEST_DAYS)))


def days_of(tenant: Tenant, settings: Settings) -> int:
    """For how many days the jobs of a tenant are kept after their end; 0: for ever."""
    own = settings.retention_days if tenant.retention_days is None else tenant.retention_days
    return min(own, LONGEST_DAYS)


# ---------------------------------------------------------------- what is to go


def _retire_jobs(database: Database, storage: Storage, tenant_id: str, before: datetime) -> Purged:
    with transaction(database) as session:
        files = _erase(session, session.scalars(_told_jobs(tenant_id, before)).all(), HILUM)
    return _delete_files(storage, files)


def _retire_events(database: Database, before: datetime) -> Purged:
    with transaction(database) as session:
        return Purged(events=_erase_events(session, _told_events(before)))


def _told_jobs(tenant_id: str, before: datetime) -> Any:
    """Ids of a tenant's jobs that ended before a moment, of whose end every receiver that wants it has been told."""
    late = before - timedelta(days=UNDELIVERED_DAYS)
    told = or_(Job.finished_at < late, ~_undelivered(Event.job_id == Job.id))
    return _ended(tenant_id, before).where(told).order_by(Job.id).limit(AT_ONCE)


def _told_events(before: datetime) -> Any:
    """Ids of the events before a moment that every receiver that wants them has been told of."""
    late = before - timedelta(days=UNDELIVERED_DAYS)
    told = or_(Event.created_at < late, ~_undelivered(Delivery.event_id == Event.id))
    old = select(Event.id).where(Event.id < ids.earliest("evt", before), Event.created_at < before, told)
    return old.order_by(Event.id).limit(AT_ONCE)


def _ended(tenant_id: str, before: datetime | None) -> Any:
    """Ids of a tenant's jobs that ended before a moment; by id first, which an index has in order."""
    found = select(Job.id).where(Job.tenant_id == tenant_id, Job.status.in_([status.value for status in TERMINAL]))
    if before is None:
        return found
    return found.where(Job.id < ids.earliest("job", before), Job.finished_at < before)


def _undelivered(belongs: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether a receiver has yet to be told of what `belongs` to the row in question."""
    waiting = Delivery.status.in_([ledger.QUEUED, ledger.RUNNING])
    return exists().where(and_(Delivery.event_id == Event.id, waiting, belongs))


# ---------------------------------------------------------------- how it goes


def _erase(session: Session, job_ids: Sequence[str], by: By) -> Files:
    """Delete the rows of jobs that have ended and of all that belongs to them; what they left in the storage."""
    if not job_ids:
        return Files([], [])
    # Explanations before their jobs, as a worker that ends an explanation takes the locks.
    session.execute(_locked(Explanation.id, Explanation.job_id.in_(job_ids)))
    jobs = session.execute(_locked(Job.id, Job.id.in_(job_ids), Job.tenant_id, Job.batch_id, Job.blob_key)).all()
    mine = [job.id for job in jobs]
    keys = list(session.scalars(select(Artifact.key).where(Artifact.job_id.in_(mine))))
    _erase_events(session, select(Event.id).where(Event.job_id.in_(mine)))
    for table in (Artifact, Explanation, IdempotencyKey):
        session.execute(_deleted(table, table.job_id.in_(mine)))
    session.execute(_deleted(Job, Job.id.in_(mine)))
    _erase_batches(session, {job.batch_id for job in jobs if job.batch_id})
    for job in jobs:
        deeds.record(session, "job.purged", job.id, tenant_id=job.tenant_id, **by)
    return Files([*keys, *(job.blob_key for job in jobs)], [f"{job.tenant_id}/{job.id}" for job in jobs])


def _erase_events(session: Session, chosen: Any) -> int:
    """Delete events, what was owed of them, and the log of it; how many events."""
    event_ids = session.scalars(_locked(Event.id, Event.id.in_(chosen))).all()
    owed = select(Delivery.id).where(Delivery.event_id.in_(event_ids))
    delivery_ids = session.scalars(owed.order_by(Delivery.id).with_for_update()).all()
    session.execute(_deleted(Attempt, Attempt.delivery_id.in_(delivery_ids)))
    session.execute(_deleted(Delivery, Delivery.id.in_(delivery_ids)))
    return written(session, _deleted(Event, Event.id.in_(event_ids)))


def _erase_batches(session: Session, batch_ids: Collection[str]) -> None:
    """Delete the batches that have no job left; of two who purge their last jobs, the second sees it."""
    session.execute(_locked(Batch.id, Batch.id.in_(batch_ids)))
    empty = ~exists().where(Job.batch_id == Batch.id)
    session.execute(_deleted(Batch, Batch.id.in_(batch_ids), Batch.finished_at.is_not(None), empty))


def _delete_files(storage: Storage, files: Files) -> Purged:
    """Delete what the rows named, and what else lies in the folders of the jobs: lost attempts drew pictures too."""
    left = set(files.keys)
    done = 0
    try:
        left |= {blob.key for folder in files.folders for blob in _listed(storage, folder)}
        for key in sorted(left, key=lambda key: -key.count("/")):  # the deepest first: folders go when they are empty
            storage.delete(key)
            done += 1
    except HilumError as error:
        log.warning("files_left", code=error.code, files=len(left) - done)
    return Purged(jobs=len(files.folders), files=done, left=len(left) - done)


def _listed(storage: Storage, folder: str) -> list[Blob]:
    with contextlib.suppress(NotFound):
        return list(storage.list(folder))
    return []


def _locked(row_id: Any, wanted: ColumnElement[bool], *columns: Any) -> Any:
    """The rows' ids and some more of their columns, locked in the order of the ids, as everyone takes the locks."""
    return select(row_id, *columns).where(wanted).order_by(row_id).with_for_update()


def _deleted(table: Any, *wanted: ColumnElement[bool]) -> Any:
    return delete(table).where(*wanted).execution_options(synchronize_session=False)
