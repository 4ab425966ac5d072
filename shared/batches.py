"""Batches: many jobs submitted as one, canceled as one, which finish with one event."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import Field
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from shared import explanations, ids, outbox
from shared.db import clock
from shared.errors import Conflict, Invalid, NotFound
from shared.models import LIVE, Batch, Job
from shared.ranges import within
from shared.schemas import Frozen, Status


class BatchView(Frozen):
    """A batch as its owner sees it: how many of its jobs are in which state."""

    id: str
    external_id: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime
    finished_at: datetime | None = Field(None, description="when the last of its jobs ended; null: not yet")
    total: int
    counts: dict[Status, int] = Field(description="jobs by state; those that were purged are in none")
    jobs: str = Field(description="where its jobs are listed")
    test: bool = Field(False, description="made with a test key: no film is read")


class BatchPage(Frozen):
    """One page of batches, newest first; `next_cursor` is null on the last page."""

    batches: list[BatchView]
    next_cursor: str | None = None


def new_id() -> str:
    """The id of a batch that does not exist yet."""
    return ids.new("bat")


def create(
    session: Session,
    *,
    tenant_id: str,
    batch_id: str,
    total: int,
    external_id: str | None = None,
    metadata: dict[str, Any] | None = None,
    mode: str = LIVE,
) -> Batch:
    """A new batch, whose `total` jobs must be submitted in this same transaction."""
    batch = Batch(
        id=batch_id,
        tenant_id=tenant_id,
        mode=mode,
        external_id=external_id,
        free=metadata or {},
        total=total,
        open=total,
        created_at=clock(session),
    )
    session.add(batch)
    session.flush()
    return batch


def ended(session: Session, batch_id: str | None, jobs: int = 1) -> None:
    """`jobs` of the batch (None: of no batch) have ended in this transaction; the last one records `batch.finished`.

    The row of the batch is held until the commit, so of two that end at once exactly one is the last. Whoever ends jobs
    of several batches in one transaction calls this after having ended them all, in the order of the batches' ids.
    """
    if batch_id is None or not jobs:
        return
    session.flush()
    counted = update(Batch).where(Batch.id == batch_id).values(open=Batch.open - jobs)
    left = session.scalars(counted.returning(Batch.open).execution_options(synchronize_session=False)).one()
    if left == 0:
        _finish(session, batch_id)


def cancel(session: Session, tenant_id: str, batch_id: str) -> Batch:
    """Cancel at once the jobs that are queued, at their next stage those that run.

    Conflict when the batch has finished without one that was canceled. NotFound.
    """
    batch = get(session, tenant_id, batch_id)
    # Jobs first and their batch after: a worker that ends a job takes the locks in this order too.
    unfinished = select(Job.id, Job.status).where(
        Job.batch_id == batch_id, Job.status.in_((Status.QUEUED.value, Status.RUNNING.value))
    )
    rows = session.execute(unfinished.order_by(Job.id).with_for_update()).all()
    _cancel_queued(session, batch, [row.id for row in rows if row.status == Status.QUEUED])
    running = [row.id for row in rows if row.status == Status.RUNNING]
    session.execute(_rows(running).values(cancel_requested=True))
    if not rows and not counts(session, [batch_id])[batch_id][Status.CANCELED]:
        raise Conflict("The batch has finished: nothing of it can be canceled any more.", code="already_ended")
    return get(session, tenant_id, batch_id)


def get(session: Session, tenant_id: str, batch_id: str) -> Batch:
    """The tenant's batch as it is in the database now; NotFound, also for another's."""
    found = select(Batch).where(Batch.id == batch_id, Batch.tenant_id == tenant_id)
    batch = session.scalars(found.execution_options(populate_existing=True)).one_or_none()
    if batch is None:
        raise NotFound("There is no such batch.")
    return batch


def view(session: Session, batch: Batch) -> BatchView:
    """The batch with its jobs counted."""
    return _view(batch, counts(session, [batch.id])[batch.id])


def page(session: Session, tenant_id: str, *, limit: int, cursor: str | None = None) -> BatchPage:
    """At most `limit` batches older than `cursor`, newest first; Invalid when the cursor is none of ours."""
    if cursor is not None and not ids.PATTERN.fullmatch(cursor):
        raise Invalid("The cursor is none that a page gave out.", code="invalid_cursor")
    key, ends = (Batch.tenant_id, Batch.id), ((tenant_id, "bat_"), (tenant_id, cursor or "bat_8"))
    rows = session.scalars(within(select(Batch), key, *ends, descending=True).limit(limit + 1)).all()
    shown = rows[:limit]
    counted = counts(session, [row.id for row in shown])
    next_cursor = shown[-1].id if len(rows) > limit else None
    return BatchPage(batches=[_view(row, counted[row.id]) for row in shown], next_cursor=next_cursor)


def counts(session: Session, batch_ids: Collection[str]) -> dict[str, dict[str, int]]:
    """How many jobs of each batch are in each state; jobs that were purged are in none."""
    found = select(Job.batch_id, Job.status, func.count()).where(Job.batch_id.in_(batch_ids))
    rows = session.execute(found.group_by(Job.batch_id, Job.status)).all()
    counted = {(batch_id, status): count for batch_id, status, count in rows}
    return {one: {status.value: counted.get((one, status.value), 0) for status in Status} for one in batch_ids}


def _finish(session: Session, batch_id: str) -> None:
    finished = update(Batch).where(Batch.id == batch_id).values(finished_at=clock(session))
    row = session.execute(finished.returning(Batch.tenant_id, Batch.mode)).one()
    told = {"batch": batch_id, "counts": counts(session, [batch_id])[batch_id]}
    outbox.record(session, row.tenant_id, None, "batch.finished", mode=row.mode, **told)


def _cancel_queued(session: Session, batch: Batch, job_ids: Sequence[str]) -> None:
    values = {"status": Status.CANCELED.value, "finished_at": clock(session), "version": Job.version + 1}
    session.execute(_rows(job_ids).values(**values, cancel_requested=True))
    for job_id in job_ids:
        explanations.drop(session, job_id)
        outbox.record(session, batch.tenant_id, job_id, "job.canceled", mode=batch.mode)
    ended(session, batch.id, len(job_ids))


def _rows(job_ids: Sequence[str]) -> Any:
    return update(Job).where(Job.id.in_(job_ids)).execution_options(synchronize_session=False)


def _view(batch: Batch, counted: Mapping[str, int]) -> BatchView:
    return BatchView(
        id=batch.id,
        external_id=batch.external_id,
        metadata=batch.free,
        created_at=batch.created_at,
        finished_at=batch.finished_at,
        total=batch.total,
        counts={status: counted[status] for status in Status},
        jobs=f"/v1/jobs?batch={batch.id}",
        test=batch.mode != LIVE,
    )
