"""Batches: many jobs submitted as one, which finish together with one event."""

from __future__ import annotations

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from shared import outbox
from shared.db import clock
from shared.models import Batch, Job
from shared.schemas import Status


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


def counts(session: Session, batch_id: str) -> dict[str, int]:
    """How many jobs of the batch are in each state."""
    found = select(Job.status, func.count()).where(Job.batch_id == batch_id).group_by(Job.status)
    known = {status: count for status, count in session.execute(found)}
    return {status.value: known.get(status.value, 0) for status in Status}


def _finish(session: Session, batch_id: str) -> None:
    finished = update(Batch).where(Batch.id == batch_id).values(finished_at=clock(session))
    row = session.execute(finished.returning(Batch.tenant_id, Batch.mode)).one()
    outbox.record(
        session, row.tenant_id, None, "batch.finished", mode=row.mode, batch=batch_id, counts=counts(session, batch_id)
    )
