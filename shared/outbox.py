"""One outbox: an event is written in the transaction that makes it true, with one delivery per destination."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared import ids
from shared.db import clock
from shared.models import LIVE, Delivery, Destination, Event, Job
from shared.queue import DELIVER, ring_after_commit
from shared.schemas import EventType, Failure, Status

DISABLED = Failure(code="webhook_disabled", detail="The webhook was disabled; enable it, then redeliver.")


def record(
    session: Session, tenant_id: str, job_id: str | None, type: EventType, *, mode: str | None = None, **payload: Any
) -> Event:
    """Write the event `type` and what is owed to each destination that wants it; never patient data.

    Its mode is that of its job, unless it is given. A destination that is disabled is owed it too, for later: its
    delivery is canceled at once, so that its owner sees it in the log and can ask for it.
    """
    event = _event(session, tenant_id, job_id, type, mode or _mode_of(session, job_id), payload)
    for destination in session.scalars(_known(tenant_id)):
        if not destination.events or type in destination.events:
            _owe(session, event, destination)
    return event


def record_for(session: Session, destination: Destination, type: EventType, *, mode: str, **payload: Any) -> Delivery:
    """Write an event that concerns one destination only, whatever it wants to hear; its delivery."""
    event = _event(session, destination.tenant_id, None, type, mode, payload)
    return _owe(session, event, destination)


def _mode_of(session: Session, job_id: str | None) -> str:
    return session.scalars(select(Job.mode).where(Job.id == job_id)).one() if job_id else LIVE


def _known(tenant_id: str) -> Any:
    return select(Destination).where(Destination.tenant_id == tenant_id, Destination.deleted_at.is_(None))


def _event(
    session: Session, tenant_id: str, job_id: str | None, type: EventType, mode: str, payload: dict[str, Any]
) -> Event:
    event = Event(
        id=ids.new("evt"),
        tenant_id=tenant_id,
        job_id=job_id,
        type=type,
        mode=mode,
        payload={"job": job_id, **payload} if job_id else payload,
        created_at=clock(session),
    )
    session.add(event)
    session.flush()
    return event


def _owe(session: Session, event: Event, destination: Destination) -> Delivery:
    now = event.created_at
    delivery = Delivery(
        id=ids.new("dlv"),
        tenant_id=event.tenant_id,
        event_id=event.id,
        destination_id=destination.id,
        status=Status.QUEUED.value,
        due_at=now,
        ready_at=now,
        created_at=now,
    )
    if destination.enabled:
        ring_after_commit(session, DELIVER)
    else:
        delivery.status, delivery.finished_at = Status.CANCELED.value, now
        delivery.error = DISABLED.model_dump()
    session.add(delivery)
    return delivery
