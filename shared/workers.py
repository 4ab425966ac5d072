"""Who works: one row per worker process, written while it lives."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from shared.db import clock
from shared.models import Worker

FORGOTTEN_S = 86_400.0


def beat(session: Session, worker_id: str, **columns: Any) -> None:
    """Say that this worker lives; `columns` are queues, bundle and runtime, as far as they are known."""
    now = clock(session)
    row = session.get(Worker, worker_id)
    if row is None:
        row = Worker(id=worker_id, queues=[], started_at=now)
        session.add(row)
    row.seen_at = now
    for name, value in columns.items():
        setattr(row, name, value)


def leave(session: Session, worker_id: str) -> None:
    """Forget a worker that stops in good order, and those not seen for a day."""
    session.execute(delete(Worker).where(Worker.id == worker_id))
    session.execute(delete(Worker).where(Worker.seen_at < clock(session) - timedelta(seconds=FORGOTTEN_S)))


def alive(session: Session, within_s: float) -> Sequence[Worker]:
    """The workers seen within the last `within_s` seconds."""
    since = clock(session) - timedelta(seconds=within_s)
    return session.scalars(select(Worker).where(Worker.seen_at >= since).order_by(Worker.id)).all()
