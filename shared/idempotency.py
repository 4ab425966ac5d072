"""The same request twice is one job: a tenant's key keeps what its first request was answered.

A claim is made in a transaction of its own, so that the database closes the race. `locked_until` is its fence: it is
another in every claim, so a request that was frozen past it, and whose key was taken over, writes nothing any more.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Row, delete, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from shared.db import clock, written
from shared.errors import Conflict, Invalid
from shared.models import IdempotencyKey
from shared.settings import Settings

INSERT: dict[str, Any] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
TRIES = 3  # a row that was in the way may be gone by the time it is read
EXPIRE_AT_ONCE = 1000


@dataclass(frozen=True)
class Keyed:
    """A request that came with a key: whose it is, and the sha256 of all that it asks for."""

    tenant_id: str
    key: str
    sha256: str


@dataclass(frozen=True)
class Claim:
    """The right to answer for a key until `locked_until`; `job_id` is what an earlier request made and never told."""

    tenant_id: str
    key: str
    locked_until: datetime
    job_id: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a client is sent, byte for byte; the body is JSON."""

    status: int
    headers: dict[str, str]
    body: str


def claim(session: Session, request: Keyed, *, lock_s: float) -> Claim | Answer:
    """The right to go ahead for `lock_s`, or what the first request with this key was answered.

    Raises Invalid when the key came with another request, Conflict while the first one is in flight.
    """
    now = clock(session)
    until = now + timedelta(seconds=lock_s)
    for _ in range(TRIES):
        if _inserted(session, request, now, until):
            return Claim(request.tenant_id, request.key, until)
        row = session.execute(_row(request)).first()
        if row is not None:
            return _again(session, request, row, now, until)
    raise _in_flight()


def note(session: Session, claim: Claim, answer: Answer | None = None, *, job_id: str | None = None) -> None:
    """Write for which job the key stands and what is answered, in the transaction that makes it true.

    Raises Conflict when the key was taken over: then that transaction must not commit.
    """
    values: dict[str, Any] = {"job_id": job_id} if job_id else {}
    if answer is not None:
        values |= {"status": answer.status, "headers": answer.headers, "answer": answer.body, "locked_until": None}
    if not written(session, _held(claim).values(**values)):
        raise _in_flight()


def release(session: Session, claim: Claim) -> None:
    """The request failed: its key is free again or, where a job was made all the same, the next request takes it."""
    held = (_is(claim), IdempotencyKey.locked_until == claim.locked_until)
    session.execute(delete(IdempotencyKey).where(*held, IdempotencyKey.job_id.is_(None)))
    session.execute(_held(claim).values(locked_until=clock(session)))


def expire(session: Session, settings: Settings) -> int:
    """Forget keys older than `idempotency_hours`, some at a time; how many they were."""
    oldest = clock(session) - timedelta(hours=settings.idempotency_hours)
    key = (IdempotencyKey.tenant_id, IdempotencyKey.key)
    old = select(*key).where(IdempotencyKey.created_at < oldest).limit(EXPIRE_AT_ONCE)
    return written(session, delete(IdempotencyKey).where(tuple_(*key).in_(old)))


def _inserted(session: Session, request: Keyed, now: datetime, until: datetime) -> bool:
    """Whether this request is the first with its key; waits for a transaction that inserts the same."""
    insert = INSERT[session.get_bind().dialect.name](IdempotencyKey).values(
        tenant_id=request.tenant_id,
        key=request.key,
        request_sha256=request.sha256,
        locked_until=until,
        created_at=now,
    )
    # The row that was inserted says so itself: a driver need not know how many rows an insert wrote.
    return session.scalars(insert.on_conflict_do_nothing().returning(IdempotencyKey.key)).first() is not None


def _again(session: Session, request: Keyed, row: Row[Any], now: datetime, until: datetime) -> Claim | Answer:
    """The key was used before: replay, refuse, or go on where a request ended without an answer."""
    if row.request_sha256 != request.sha256:
        raise Invalid("This Idempotency-Key came with another request before.", code="idempotency_key_reused")
    if row.status is not None:
        return Answer(row.status, row.headers, row.answer)
    before = Claim(request.tenant_id, request.key, row.locked_until, row.job_id)
    # Its answer is kept for as long as any other, counted from now.
    if row.locked_until > now or not written(session, _held(before).values(locked_until=until, created_at=now)):
        raise _in_flight()
    return Claim(request.tenant_id, request.key, until, row.job_id)


def _row(request: Keyed) -> Any:
    table = IdempotencyKey
    columns = (table.request_sha256, table.job_id, table.status, table.headers, table.answer, table.locked_until)
    return select(*columns).where(_is(request))


def _is(one: Keyed | Claim) -> Any:
    return (IdempotencyKey.tenant_id == one.tenant_id) & (IdempotencyKey.key == one.key)


def _held(claim: Claim) -> Any:
    """The row as long as this claim is the last: compare, and set."""
    held = update(IdempotencyKey).where(_is(claim), IdempotencyKey.locked_until == claim.locked_until)
    return held.execution_options(synchronize_session=False)


def _in_flight() -> Conflict:
    return Conflict(
        "The first request with this Idempotency-Key is still in flight.", code="request_in_flight", retry_after_s=1
    )
