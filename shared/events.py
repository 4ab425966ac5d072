"""What happened, in the order in which everyone sees it: numbered after the commit, and read by that number.

Transactions commit in another order than they begin. A number taken at the insert would let a reader go past an event
that is committed only later, so whoever reads first numbers what is committed, one at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple, get_args

from sqlalchemy import Select, exists, or_, select, update
from sqlalchemy.orm import Session

from shared import ids
from shared.db import Database, reading, transaction
from shared.models import TEST, Counter, Event, Explanation, Job
from shared.ranges import within
from shared.schemas import TERMINAL, EventType, EventView, Status

COUNTER = "events"
KEY, HIGHEST = (Event.tenant_id, Event.seq), 2**63 - 1
AT_ONCE = 500
UNTOLD = "webhook.test"  # concerns the endpoint alone that is tested
TOLD = tuple(kind for kind in get_args(EventType) if kind != UNTOLD)
# Events are numbered a little out of the order of their ids; from an id that is gone, reading begins this much earlier.
APART = timedelta(seconds=60)


@dataclass(frozen=True)
class Wanted:
    """Which events someone asks for: all of a tenant, or those of one of its jobs; of some types, or (none) of all."""

    tenant_id: str
    job_id: str | None = None
    types: frozenset[str] = frozenset()


class Numbered(NamedTuple):
    """An event at its place in the order."""

    seq: int
    tenant_id: str
    job_id: str | None
    view: EventView


class Tail(NamedTuple):
    """The number of the newest event that has one, and whether some are committed without."""

    seq: int
    unnumbered: bool


def number(session: Session) -> int | None:
    """Number up to AT_ONCE committed events; the highest number now, or None while another process is numbering.

    The counter's row is held until the commit. So numbers become visible in their order, and none is given to an event
    while a lower one is not visible yet.
    """
    counter = select(Counter.value).where(Counter.name == COUNTER).with_for_update(skip_locked=True)
    value = session.scalars(counter).one_or_none()
    if value is None:
        return None
    found = session.scalars(_unnumbered().limit(AT_ONCE)).all()
    if found:
        session.execute(update(Event), [{"id": one, "seq": seq} for seq, one in enumerate(found, value + 1)])
        value += len(found)
        session.execute(update(Counter).where(Counter.name == COUNTER).values(value=value))
    return value


def tail(session: Session) -> Tail:
    """Where the order of events ends now; one query."""
    waiting = _unnumbered().limit(1).scalar_subquery()
    row = session.execute(select(Counter.value, waiting.label("id")).where(Counter.name == COUNTER)).one()
    return Tail(row.value, row.id is not None)


def numbered(database: Database) -> int:
    """Number what is committed, if anything is; the highest number there is."""
    with reading(database) as session:
        found = tail(session)
    if not found.unnumbered:
        return found.seq
    with transaction(database) as session:
        value = number(session)
    return found.seq if value is None else value


def since(session: Session, seq: int, limit: int = AT_ONCE) -> list[Numbered]:
    """The first events after `seq`, of every tenant, in their order."""
    found = select(Event).where(Event.seq > seq, Event.type != UNTOLD)
    return _read(session, found.order_by(Event.seq), limit)


def page(session: Session, wanted: Wanted, seq: int, limit: int = AT_ONCE) -> list[Numbered]:
    """The first events after `seq` that are `wanted`, in their order."""
    found = select(Event).where(Event.type != UNTOLD)
    if wanted.job_id is not None:
        found = found.where(Event.tenant_id == wanted.tenant_id, Event.job_id == wanted.job_id, Event.seq > seq)
        found = found.order_by(Event.seq)
    else:
        found = within(found, KEY, (wanted.tenant_id, seq), (wanted.tenant_id, HIGHEST))
    if wanted.types:
        found = found.where(Event.type.in_(sorted(wanted.types)))
    return _read(session, found, limit)


def newest(session: Session, tenant_id: str) -> tuple[str, int] | None:
    """The id and the number of the tenant's newest event; None when it has none."""
    found = select(Event.id, Event.seq)
    row = session.execute(within(found, KEY, (tenant_id, 0), (tenant_id, HIGHEST), descending=True).limit(1)).first()
    return (row.id, row.seq) if row else None


def place(session: Session, tenant_id: str, event_id: str) -> int:
    """The number after which a reader goes on that saw `event_id` last.

    An event that is not there (purged, not numbered yet, or never ours) is placed by the time in its id, a little too
    early: a reader may see some events twice, and misses none.
    """
    known = select(Event.seq).where(Event.id == event_id, Event.tenant_id == tenant_id)
    seq = session.scalars(known).one_or_none()
    if seq is not None:
        return seq
    moment = ids.made_at(event_id) - APART
    own = (tenant_id, 0), (tenant_id, HIGHEST)
    oldest = session.execute(within(select(Event.created_at), KEY, *own).limit(1)).first()
    if oldest is None or oldest.created_at > moment:
        return 0
    before = within(select(Event.seq).where(Event.created_at <= moment), KEY, *own, descending=True)
    return session.scalars(before.limit(1)).first() or 0  # none: retention took it at this moment


def over(session: Session, job_ids: Collection[str]) -> set[str]:
    """Those of the jobs about which nothing more will be told: purged, or ended with all of their explanations."""
    explained = exists().where(
        Explanation.job_id == Job.id, Explanation.status.in_((Status.QUEUED.value, Status.RUNNING.value))
    )
    untold = exists().where(Event.job_id == Job.id, Event.seq.is_(None))
    going_on = Job.status.not_in([status.value for status in TERMINAL])
    found = select(Job.id).where(Job.id.in_(job_ids), or_(going_on, explained, untold))
    return set(job_ids).difference(session.scalars(found))


def view(event: Event) -> EventView:
    """The event as a stream, a poll and a webhook tell it."""
    return EventView(
        id=event.id,
        type=event.type,
        created_at=event.created_at,
        data=event.payload,
        test=event.mode == TEST,
    )


def _unnumbered() -> Select[Any]:
    # In this order, not by `exists`: a planner that remembers many of them would read the table for the first.
    return select(Event.id).where(Event.seq.is_(None)).order_by(Event.created_at, Event.id)


def _read(session: Session, found: Select[Any], limit: int) -> list[Numbered]:
    rows: Sequence[Event] = session.scalars(found.limit(limit)).all()
    return [Numbered(row.seq or 0, row.tenant_id, row.job_id, view(row)) for row in rows]
