"""One outbox: an event is written in the transaction that makes it true, with one delivery per destination."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared import ids
from shared.db import clock
from shared.models import LIVE, Delivery, Destination, Event, Job
from shared.queue import DELIVER, ring_after_commit
from shared.schemas import EventType


def record(
    session: Session, tenant_id: str, job_id: str | None, type: EventType, *, mode: str | None = None, **payload: Any
) -> Event:
    """Write the event `type` and what is owed to each destination that wants it; never patient data.

    Its mode is that of its job, unless it is given.
    """
    now = clock(session)
    event = Event(
        id=ids.new("evt"),
        tenant_id=tenant_id,
        job_id=job_id,
        type=type,
        mode=mode or _mode_of(session, job_id),
        payload={"job": job_id, **payload} if job_id else payload,
        created_at=now,
    )
    session.add(event)
    session.flush()
    for destination in session.scalars(_wanting(tenant_id)):
        if not destination.events or type in destination.events:
            session.add(_owed(event, destination))
            ring_after_commit(session, DELIVER)
    return event


def _mode_of(session: Session, job_id: str | None) -> str:
    return session.scalars(select(Job.mode).where(Job.id == job_id)).one() if job_id else LIVE


def _wanting(tenant_id: str) -> Any:
    return select(Destination).where(Destination.tenant_id == tenant_id, Destination.enabled)


def _owed(event: Event, destination: Destination) -> Delivery:
    return Delivery(
        id=ids.new("dlv"),
        tenant_id=event.tenant_id,
        event_id=event.id,
        destination_id=destination.id,
        due_at=event.created_at,
        ready_at=event.created_at,
        created_at=event.created_at,
    )
