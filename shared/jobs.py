"""The life of a job: queued -> running -> succeeded | failed | rejected, or canceled. Every change is made here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from shared import batches, explanations, ids, ledger, outbox, views
from shared.artifacts import Stored, keep
from shared.db import clock
from shared.errors import Conflict
from shared.ledger import Claim
from shared.models import LIVE, Job
from shared.queue import ANALYZE, ring_after_commit
from shared.schemas import Analysis, EventType, Failure, Method, Priority, Reason, Status
from shared.settings import Settings

LOST = Failure(code="worker_lost", detail="Every worker that took this job died or stopped answering.")


def new_id() -> str:
    """The id of a job that does not exist yet: its blob is stored under it first."""
    return ids.new("job")


def submit(
    session: Session,
    settings: Settings,
    *,
    tenant_id: str,
    job_id: str,
    blob_key: str,
    media_type: str,
    size: int,
    sha256: str,
    explain: Sequence[Method] = (),
    priority: Priority = "routine",
    external_id: str | None = None,
    metadata: dict[str, Any] | None = None,
    batch_id: str | None = None,
    mode: str = LIVE,
) -> Job:
    """A new queued job for a blob that is stored already (`size` in bytes); rings after the commit.

    One of mode `test` is never ready: no worker can claim it, the sweeper plays it.
    """
    now = clock(session)
    due_at = now + timedelta(seconds=settings.waiting_limits_s[priority])
    served = {"priority": priority, "created_at": now, "due_at": due_at, "ready_at": now if mode == LIVE else None}
    own = {"external_id": external_id, "free": metadata or {}, "batch_id": batch_id}
    upload = {"blob_key": blob_key, "media_type": media_type, "size": size, "sha256": sha256}
    first = {"status": Status.QUEUED.value, "attempt": 0, "version": 1}  # given, for it is shown before it is flushed
    job = Job(id=job_id, tenant_id=tenant_id, mode=mode, **first, **served, **own, **upload)
    session.add(job)
    if explain:
        session.flush()  # what is explained must be there first; without, many jobs go to the database in one trip
    for method in explain:
        explanations.hold(session, job, method)
    if mode == LIVE:
        ring_after_commit(session, ANALYZE)
    return job


def finish(session: Session, claim: Claim, analysis: Analysis, artifacts: Sequence[Stored]) -> None:
    """The diagnosis becomes durable; explanations that were asked for may begin. LeaseLost."""
    ledger.settle(
        session,
        claim,
        Status.SUCCEEDED,
        stage=None,
        bundle=analysis.bundle,
        top_class=analysis.top_class,
        result=analysis.model_dump(mode="json"),
    )
    keep(session, claim.tenant_id, claim.id, artifacts)
    explanations.release(session, claim.id)
    _leave(session, _recorded(session, [claim.id], "job.succeeded"))


def reject(session: Session, claim: Claim, reason: Reason, bundle: str, artifacts: Sequence[Stored] = ()) -> None:
    """The answer is that the image cannot honestly be judged. LeaseLost."""
    ledger.settle(session, claim, Status.REJECTED, stage=None, bundle=bundle, reason=reason.model_dump(mode="json"))
    keep(session, claim.tenant_id, claim.id, artifacts)
    _leave(session, _dropped(session, [claim.id], "job.rejected", code=reason.code))


def fail(session: Session, claim: Claim, failure: Failure) -> None:
    """Our fault, with a stable code. LeaseLost."""
    ledger.settle(session, claim, Status.FAILED, stage=None, error=failure.model_dump(mode="json"))
    _leave(session, _dropped(session, [claim.id], "job.failed", code=failure.code))


def stop(session: Session, claim: Claim) -> None:
    """The worker saw that its owner wants no answer any more. LeaseLost."""
    ledger.settle(session, claim, Status.CANCELED, stage=None)
    _leave(session, _dropped(session, [claim.id], "job.canceled"))


def hand_back(session: Session, claim: Claim) -> None:
    """A worker that stops gives its row to another; it is not counted against the job. LeaseLost."""
    ledger.requeue(session, claim, stage=None)
    ring_after_commit(session, ANALYZE)


def cancel(session: Session, tenant_id: str, job_id: str) -> Job:
    """Cancel at once what is queued, at its next stage what runs; Conflict when it ended otherwise. NotFound."""
    job = views.get(session, tenant_id, job_id, lock=True)
    if Status(job.status).terminal and job.status != Status.CANCELED:
        raise Conflict(f"The job has {job.status}: it cannot be canceled any more.", code="already_ended")
    job.cancel_requested = True
    if job.status == Status.QUEUED:
        job.status, job.finished_at, job.version = Status.CANCELED.value, clock(session), job.version + 1
        session.flush()
        _leave(session, _dropped(session, [job_id], "job.canceled"))
    session.flush()
    return job


def expire(session: Session, settings: Settings) -> ledger.Expired:
    """Free the jobs whose worker is gone; what lost too many workers fails, what was to be canceled is."""
    expired = ledger.requeue_expired(session, Job, max_losses=settings.max_attempts)
    ledger.end_expired(session, Job, expired.canceled, Status.CANCELED, stage=None)
    ledger.end_expired(session, Job, expired.exhausted, Status.FAILED, stage=None, error=LOST.model_dump())
    canceled = _dropped(session, expired.canceled, "job.canceled")
    _leave(session, canceled + _dropped(session, expired.exhausted, "job.failed", code=LOST.code))
    if expired.requeued:
        session.execute(_unstaged(expired.requeued))
        ring_after_commit(session, ANALYZE)
    return expired


def _dropped(session: Session, job_ids: Sequence[str], event: EventType, **payload: Any) -> Counter[str]:
    """Jobs ended without a diagnosis: nothing is left to explain. How many did in each batch."""
    for job_id in job_ids:
        explanations.drop(session, job_id)
    return _recorded(session, job_ids, event, **payload)


def _recorded(session: Session, job_ids: Sequence[str], event: EventType, **payload: Any) -> Counter[str]:
    """Write the event of each job that ended; how many did in each batch."""
    found = select(Job.id, Job.tenant_id, Job.mode, Job.batch_id).where(Job.id.in_(job_ids)).order_by(Job.id)
    rows = session.execute(found).all()
    for row in rows:
        outbox.record(session, row.tenant_id, row.id, event, mode=row.mode, **payload)
    return Counter(row.batch_id for row in rows if row.batch_id)


def _leave(session: Session, ended: Counter[str]) -> None:
    """Count the jobs that ended out of their batches, which are locked in the order of their ids."""
    for batch_id in sorted(ended):
        batches.ended(session, batch_id, ended[batch_id])


def _unstaged(job_ids: Sequence[str]) -> Any:
    return update(Job).where(Job.id.in_(job_ids)).values(stage=None)
