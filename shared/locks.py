"""A lease on a name: of several processes that would do the same work, one does it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import or_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from shared.db import clock, written
from shared.models import Lock

INSERT: dict[str, Any] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


def take(session: Session, name: str, holder: str, *, lease_s: float) -> bool:
    """Take or renew the lease on `name` for `lease_s`; False while another holds it."""
    now = clock(session)
    until = now + timedelta(seconds=lease_s)
    mine = update(Lock).where(Lock.name == name, or_(Lock.holder == holder, Lock.until < now))
    if written(session, mine.values(holder=holder, until=until)):
        return True
    insert = INSERT[session.get_bind().dialect.name](Lock).values(name=name, holder=holder, until=until)
    # The row that was inserted says so itself: a driver need not know how many rows an insert wrote.
    return session.scalars(insert.on_conflict_do_nothing().returning(Lock.name)).first() is not None
