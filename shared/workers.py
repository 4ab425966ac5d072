"""Who works: one row per worker process, written while it lives."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from shared import deeds
from shared.db import clock
from shared.deeds import By
from shared.errors import NotFound
from shared.models import Worker

FORGOTTEN_S = 86_400.0


def beat(session: Session, worker_id: str, *, first: bool = False, **columns: Any) -> bool:
    """Say that this worker lives, and learn whether it is to drain; `columns` are queues, bundle, runtime and holds.

    With the `first` beat of a process, what was said of another of that name, which died, is forgotten.
    """
    now = clock(session)
    row = session.get(Worker, worker_id)
    if row is None:
        row = Worker(id=worker_id, queues=[], started_at=now, draining=False)
        session.add(row)
    elif first:
        row.started_at, row.draining = now, False
    row.seen_at = now
    for name, value in columns.items():
        setattr(row, name, value)
    return row.draining


def leave(session: Session, worker_id: str) -> None:
    """Forget a worker that stops in good order, and those not seen for a day."""
    session.execute(delete(Worker).where(Worker.id == worker_id))
    session.execute(delete(Worker).where(Worker.seen_at < clock(session) - timedelta(seconds=FORGOTTEN_S)))


def drain(session: Session, worker_id: str | None, *, draining: bool = True, by: By) -> list[str]:
    """Let a worker, or all (None), claim nothing more, or claim again; the ids of those that are told. NotFound."""
    told = update(Worker).values(draining=draining).returning(Worker.id)
    if worker_id is not None:
        told = told.where(Worker.id == worker_id)
    found = sorted(session.scalars(told.execution_options(synchronize_session=False)))
    if worker_id is not None and not found:
        raise NotFound(f"There is no worker {worker_id}; `hilum worker list` names them.")
    if found and draining:
        deeds.record(session, "worker.drained", None, tenant_id=None, **by, workers=found)
    elif found:
        deeds.record(session, "worker.undrained", None, tenant_id=None, **by, workers=found)
    return found


def listed(session: Session) -> Sequence[tuple[Worker, float]]:
    """Every worker that has not signed off, and how many seconds ago it was last seen."""
    now = clock(session)
    return [(row, (now - row.seen_at).total_seconds()) for row in session.scalars(select(Worker).order_by(Worker.id))]


def alive(session: Session, within_s: float) -> Sequence[Worker]:
    """The workers seen within the last `within_s` seconds."""
    since = clock(session) - timedelta(seconds=within_s)
    return session.scalars(select(Worker).where(Worker.seen_at >= since).order_by(Worker.id)).all()
