"""What jobs, explanations and deliveries have in common: claimed in order, held under a lease, settled once.

A claim writes a fresh token. Whoever writes about a row afterwards must show that token, so a worker that was frozen
and wakes late changes nothing (the fencing token of Gray and Cheriton's leases, 1989).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, literal_column, select, update
from sqlalchemy.orm import Session

from shared.columns import Leased
from shared.db import clock, written
from shared.errors import LeaseLost
from shared.schemas import Status

SWEEP_AT_ONCE = 500

# Written into the statement, not bound to it: only then can a planner prove that a partial index covers the rows.
QUEUED: ColumnElement[str] = literal_column(f"'{Status.QUEUED.value}'")
RUNNING: ColumnElement[str] = literal_column(f"'{Status.RUNNING.value}'")


@dataclass(frozen=True)
class Claim:
    """The right to work on one row, until the lease ends or another claim replaces its token."""

    table: type[Leased]
    id: str
    tenant_id: str
    token: str
    attempt: int
    losses: int = 0  # earlier claims whose worker never came back


@dataclass(frozen=True)
class Expired:
    """Rows whose lease had run out: those that wait again, and those that died too often or were to be canceled."""

    requeued: Sequence[str]
    exhausted: Sequence[str]
    canceled: Sequence[str]


def claim_next(session: Session, table: type[Leased], n: int, *, lease_s: float) -> list[Claim]:
    """Claim up to `n` queued rows, the earliest `due_at` first; a row that lost a worker before is claimed alone."""
    now = clock(session)
    waiting = _waiting(table, now)
    if n > 1:
        head = session.execute(waiting.add_columns(table.losses).limit(1)).first()
        if head is None:
            return []
        n, waiting = (1, waiting) if head.losses else (n, waiting.where(table.losses == 0))
    return _claim(session, table, waiting.limit(n), now, lease_s)


def claim_chosen(session: Session, table: type[Leased], chosen: Select[Any], *, lease_s: float) -> list[Claim]:
    """Claim the queued rows among those whose ids are `chosen`, ready or not; the earliest `due_at` comes first."""
    return _claim(session, table, chosen, clock(session), lease_s)


def renew(session: Session, claim: Claim, *, lease_s: float, **columns: Any) -> bool:
    """Hold the row for another `lease_s` and write `columns`; True when its owner asked to cancel. LeaseLost."""
    until = clock(session) + timedelta(seconds=lease_s)
    bumped = _bumped(claim.table) if columns else {}
    statement = _held(claim).values(lease_until=until, **columns, **bumped)
    row = session.execute(statement.returning(claim.table.cancel_requested)).first()
    if row is None:
        raise LeaseLost()
    return bool(row.cancel_requested)


def renew_free(session: Session, table: type[Leased], claims: Sequence[Claim], *, lease_s: float) -> Sequence[Claim]:
    """Hold many rows for another `lease_s`; the claims whose row is another's by now.

    A row that some transaction is writing at this moment is left out and no other waits for it: it is being settled.
    """
    chosen = select(table.id, table.lease_token, table.status).where(table.id.in_([claim.id for claim in claims]))
    found = session.execute(chosen.order_by(table.id).with_for_update(skip_locked=True)).all()
    tokens = {row.id: row.lease_token for row in found if row.status == Status.RUNNING.value}
    mine = [claim.id for claim in claims if tokens.get(claim.id) == claim.token]
    if mine:
        until = clock(session) + timedelta(seconds=lease_s)
        session.execute(_rows(table, mine).values(lease_until=until))
    free = {row.id for row in found}
    return [claim for claim in claims if claim.id in free and claim.id not in mine]


def settle(session: Session, claim: Claim, status: Status, **columns: Any) -> None:
    """End the row with `status` and write `columns`; LeaseLost, and nothing written, when the token is not ours."""
    _write(session, claim, status=status.value, finished_at=clock(session), **columns)


def requeue(session: Session, claim: Claim, *, delay_s: float = 0.0, **columns: Any) -> None:
    """Hand the row back in good order: it keeps its place, and no loss is counted. LeaseLost."""
    ready_at = clock(session) + timedelta(seconds=delay_s)
    _write(session, claim, status=Status.QUEUED.value, started_at=None, ready_at=ready_at, **columns)


def requeue_expired(session: Session, table: type[Leased], *, max_losses: int) -> Expired:
    """Free the rows whose lease has run out; those that lost `max_losses` workers stay, for their owner to fail."""
    rows = session.execute(_overdue(session, table)).all()
    canceled = [row.id for row in rows if row.cancel_requested]
    exhausted = [row.id for row in rows if not row.cancel_requested and row.losses + 1 >= max_losses]
    kept = {*canceled, *exhausted}
    requeued = [row.id for row in rows if row.id not in kept]
    freed = {"lease_token": None, "lease_until": None, "losses": table.losses + 1, **_bumped(table)}
    if requeued:
        again = {"status": Status.QUEUED.value, "started_at": None, **freed}
        session.execute(_rows(table, requeued).values(**again))
    return Expired(requeued, exhausted, canceled)


def end_expired(session: Session, table: type[Leased], ids: Sequence[str], status: Status, **columns: Any) -> None:
    """End running rows that `requeue_expired` found in this very transaction, whose workers are gone."""
    values = {"status": status.value, "finished_at": clock(session), "losses": table.losses + 1, **columns}
    statement = _rows(table, ids).values(lease_token=None, lease_until=None, **values, **_bumped(table))
    session.execute(statement)


def waiting(session: Session, table: type[Leased], at_most: int) -> list[str]:
    """The ids of up to `at_most` rows that could be claimed now, in the order of service."""
    return list(session.scalars(_waiting(table, clock(session)).limit(at_most)))


def _claim(session: Session, table: type[Leased], ids: Select[Any], now: datetime, lease_s: float) -> list[Claim]:
    chosen = ids.with_for_update(skip_locked=True).cte("chosen")
    token = secrets.token_hex(8)
    statement = (
        update(table)
        .where(table.id.in_(select(chosen.c.id)), table.status == QUEUED)
        .values(
            status=Status.RUNNING.value,
            attempt=table.attempt + 1,
            lease_token=token,
            lease_until=now + timedelta(seconds=lease_s),
            started_at=now,
            **_bumped(table),
        )
        .returning(table.id, table.tenant_id, table.attempt, table.losses, table.due_at)
        .execution_options(synchronize_session=False)
    )
    rows = sorted(session.execute(statement), key=lambda row: (row.due_at, row.id))
    return [Claim(table, row.id, row.tenant_id, token, row.attempt, row.losses) for row in rows]


def _waiting(table: type[Leased], now: Any) -> Select[Any]:
    ready = table.ready_at.is_not(None) & (table.ready_at <= now)
    return select(table.id).where(table.status == QUEUED, ready).order_by(table.due_at, table.id)


def _overdue(session: Session, table: type[Leased]) -> Any:
    found = select(table.id, table.losses, table.cancel_requested).where(
        table.status == RUNNING, table.lease_until < clock(session)
    )
    return found.order_by(table.lease_until).limit(SWEEP_AT_ONCE).with_for_update(skip_locked=True)


def _rows(table: type[Leased], ids: Sequence[str]) -> Any:
    statement = update(table).where(table.id.in_(ids), table.status == RUNNING)
    return statement.execution_options(synchronize_session=False)


def _held(claim: Claim) -> Any:
    """The row of a claim, as long as its token is the row's: compare, and set."""
    table = claim.table
    mine = (table.id == claim.id) & (table.lease_token == claim.token) & (table.status == RUNNING)
    return update(table).where(mine).execution_options(synchronize_session=False)


def _write(session: Session, claim: Claim, **columns: Any) -> None:
    values = {"lease_token": None, "lease_until": None, **columns, **_bumped(claim.table)}
    if written(session, _held(claim).values(**values)) != 1:
        raise LeaseLost()


def _bumped(table: type[Leased]) -> dict[str, Any]:
    """Rows that clients poll carry a version, which grows with every change."""
    return {"version": table.version + 1} if hasattr(table, "version") else {}
