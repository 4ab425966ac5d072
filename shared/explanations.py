"""The life of an explanation: a resource of its own, which never touches the diagnosis it explains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from shared import ids, ledger, outbox, views
from shared.artifacts import Stored, keep
from shared.db import clock, written
from shared.errors import Conflict, NotFound
from shared.ledger import Claim
from shared.models import LIVE, Explanation, Job
from shared.queue import EXPLAIN, ring_after_commit
from shared.schemas import EventType, Failure, Method, Status
from shared.settings import Settings

LOST = Failure(code="worker_lost", detail="Every worker that took this explanation died or stopped answering.")


def hold(session: Session, job: Job, method: Method) -> Explanation:
    """Note that `method` is wanted; it can be claimed once the job has succeeded, in the job's order of service."""
    row = Explanation(
        id=ids.new("exp"),
        tenant_id=job.tenant_id,
        job_id=job.id,
        method=method,
        mode=job.mode,
        status=Status.QUEUED.value,
        created_at=clock(session),
        due_at=job.due_at,
        ready_at=None,
    )
    session.add(row)
    session.flush()
    return row


def _held_once(session: Session, job: Job, method: Method) -> Explanation:
    """As `hold`, for a job that others see already: one of them may ask for the same, or purge it, at this moment."""
    try:
        return hold(session, job, method)
    except IntegrityError as error:
        detail = "The same was asked for, or the job was purged, at this moment: ask again."
        raise Conflict(detail, code="changed_meanwhile", retry_after_s=1) from error


def release(session: Session, job_id: str) -> None:
    """The job has succeeded: its explanations may be claimed, unless they are rehearsed."""
    live = _queued_of(job_id).where(Explanation.mode == LIVE)
    if written(session, live.values(ready_at=clock(session))):
        ring_after_commit(session, EXPLAIN)


def drop(session: Session, job_id: str) -> None:
    """The job ended without a diagnosis: there is nothing to explain."""
    values = {"status": Status.CANCELED.value, "finished_at": clock(session)}
    session.execute(_queued_of(job_id).values(**values))


def request(session: Session, tenant_id: str, job_id: str, method: Method) -> bool:
    """Ask for an explanation, or for another try of one that failed or was canceled; False when there is one already.

    Raises Conflict without a diagnosis, and NotFound.
    """
    job = views.get(session, tenant_id, job_id)
    _ensure_explicable(job)
    row = _row(session, job_id, method)
    if row is None:
        row = _held_once(session, job, method)
    elif row.status in (Status.FAILED, Status.CANCELED):
        row.status, row.losses, row.error = Status.QUEUED.value, 0, None
        row.cancel_requested, row.started_at, row.finished_at, row.ready_at = False, None, None, None
    else:
        return False
    session.flush()
    # It waits for a worker that ends the job at this moment and could not see the row: look again at what it became.
    _touch(session, job_id)
    job = views.get(session, tenant_id, job_id)
    _ensure_explicable(job)
    if job.status == Status.SUCCEEDED:
        release(session, job_id)
    return True


def cancel(session: Session, tenant_id: str, job_id: str, method: Method) -> None:
    """Cancel at once what is queued, at its next step what runs; Conflict when it has ended. NotFound."""
    views.get(session, tenant_id, job_id)
    values = {"status": Status.CANCELED.value, "finished_at": clock(session), "cancel_requested": True}
    if written(session, _queued_of(job_id).where(Explanation.method == method).values(**values)):
        return _touch(session, job_id)
    running = update(Explanation).where(
        Explanation.job_id == job_id,
        Explanation.method == method,
        Explanation.status == Status.RUNNING.value,
    )
    if written(session, running.values(cancel_requested=True)):
        return None
    row = _row(session, job_id, method)
    if row is None:
        raise NotFound(f"No {method} explanation of this job was asked for.")
    if row.status != Status.CANCELED:
        raise Conflict(f"The explanation has {row.status}.", code="already_ended")
    return None


def finish(session: Session, claim: Claim, result: dict[str, Any], artifacts: Sequence[Stored]) -> None:
    """The explanation and its pictures become durable. LeaseLost."""
    ledger.settle(session, claim, Status.SUCCEEDED, result=result, error=None)
    row = session.get_one(Explanation, claim.id)
    keep(session, claim.tenant_id, row.job_id, artifacts, claim.id)
    _ended(session, row, "explanation.succeeded")


def fail(session: Session, claim: Claim, failure: Failure) -> None:
    """The explanation could not be made; the diagnosis stands. LeaseLost."""
    ledger.settle(session, claim, Status.FAILED, error=failure.model_dump(mode="json"))
    _ended(session, session.get_one(Explanation, claim.id), "explanation.failed", code=failure.code)


def stop(session: Session, claim: Claim) -> None:
    """The worker saw that its owner wants it no more. LeaseLost."""
    ledger.settle(session, claim, Status.CANCELED)
    _touch(session, session.get_one(Explanation, claim.id).job_id)


def hand_back(session: Session, claim: Claim) -> None:
    """A worker that stops gives its row to another; it is not counted against the explanation. LeaseLost."""
    ledger.requeue(session, claim)
    ring_after_commit(session, EXPLAIN)


def expire(session: Session, settings: Settings) -> ledger.Expired:
    """Free the explanations whose worker is gone; what lost too many workers fails."""
    expired = ledger.requeue_expired(session, Explanation, max_losses=settings.max_attempts)
    ledger.end_expired(session, Explanation, expired.canceled, Status.CANCELED)
    ledger.end_expired(session, Explanation, expired.exhausted, Status.FAILED, error=LOST.model_dump())
    for row_id in expired.canceled:
        _touch(session, session.get_one(Explanation, row_id).job_id)
    for row_id in expired.exhausted:
        _ended(session, session.get_one(Explanation, row_id), "explanation.failed", code=LOST.code)
    if expired.requeued:
        ring_after_commit(session, EXPLAIN)
    return expired


def _ended(session: Session, row: Explanation, event: EventType, **payload: Any) -> None:
    _touch(session, row.job_id)
    outbox.record(session, row.tenant_id, row.job_id, event, method=row.method, **payload)


def _ensure_explicable(job: Job) -> None:
    status = Status(job.status)
    if status.terminal and status is not Status.SUCCEEDED:
        raise Conflict(f"The job has no diagnosis to explain: it was {status}.", code="no_diagnosis")


def _touch(session: Session, job_id: str) -> None:
    """Those who wait for the job see that something of it changed."""
    session.execute(update(Job).where(Job.id == job_id).values(version=Job.version + 1))


def _row(session: Session, job_id: str, method: Method) -> Explanation | None:
    found = select(Explanation).where(Explanation.job_id == job_id, Explanation.method == method)
    return session.scalars(found.with_for_update()).one_or_none()


def _queued_of(job_id: str) -> Any:
    return update(Explanation).where(Explanation.job_id == job_id, Explanation.status == Status.QUEUED.value)
