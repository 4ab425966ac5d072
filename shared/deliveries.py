"""The life of a delivery: queued -> running -> succeeded | failed, or canceled. At least once; every try is logged."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select, union_all, update
from sqlalchemy.orm import Session

from shared import destinations, events, ids, ledger, logs, outbox
from shared.db import clock, written
from shared.errors import Conflict, LeaseLost, NotFound
from shared.ledger import QUEUED, Claim
from shared.models import TEST, Attempt, Delivery, Destination, Event
from shared.queue import DELIVER, ring_after_commit
from shared.schemas import Status
from shared.settings import Settings

JITTER = 0.1  # of a pause, either way: receivers that failed together are not all tried again together
LONGEST_RETRY_AFTER_S = 86_400.0
NO_LOSS_ENDS_IT = 2**31  # a process that dies says nothing of the receiver
GONE = "gone"
LOST, HANDED_BACK = "worker_lost", "handed_back"
AT_ONCE = 1000  # rows that one transaction queues again
SKEW = timedelta(hours=1)  # an id says what its maker's clock said, `created_at` what the database's did

log = logs.get("shared.deliveries")


@dataclass(frozen=True)
class Answer:
    """What one try met: `error` is a stable code, or None when the receiver took the event with a 2xx."""

    at: datetime
    duration_ms: int = 0
    status: int | None = None
    error: str | None = None
    detail: str | None = None
    response: str | None = None
    retry_after_s: float | None = None


@dataclass(frozen=True)
class Parcel:
    """What a delivery is about to send, and where to; the newest secret is the first."""

    url: str
    event_id: str
    body: str
    secrets: Sequence[str]


# ---------------------------------------------------------------- the worker's side


def ready(session: Session, n: int, *, held: Mapping[str, int], share: int) -> list[tuple[str, str]]:
    """Up to `n` deliveries that are due, as (id, destination), in the order of service.

    No destination gets more than `share` slots, of which it holds `held`. Only the first row of each destination and
    the rows that are returned are read: what a destination at its share has piled up costs the others nothing.
    """
    now = clock(session)
    full = [destination for destination, count in held.items() if count >= share]
    heads = session.scalars(_first_due(now, full, n)).all()
    if not heads:
        return []
    found = union_all(*(_due_at(d, now, min(n, share - held.get(d, 0))) for d in heads)).subquery()
    in_order = select(found.c.id, found.c.destination_id).order_by(found.c.due_at, found.c.id)
    return [(row.id, row.destination_id) for row in session.execute(in_order.limit(n))]


def claim(
    session: Session, delivery_ids: Sequence[str], *, lease_s: float
) -> list[tuple[Claim, Parcel | Answer | None]]:
    """Claim those of the deliveries that still wait, each with what to send; None where nothing is sent any more.

    An answer in its place is how this try ends: what cannot be put into words must not keep the others waiting.
    """
    chosen = select(Delivery.id).where(Delivery.id.in_(delivery_ids))
    claims = ledger.claim_chosen(session, Delivery, chosen, lease_s=lease_s)
    found = select(Delivery.id, Event, Destination).join(Event).join(Destination)
    parcels = {
        row.id: _parcel(session, row.Event, row.Destination)
        for row in session.execute(found.where(Delivery.id.in_([claim.id for claim in claims])))
    }
    return [(claim, parcels[claim.id]) for claim in claims]


def settle(session: Session, settings: Settings, claim: Claim, answer: Answer) -> None:
    """Write what a try met and what follows: done, another try, or the end of it. LeaseLost."""
    row = _held(session, claim)
    tries, pauses = row.tries + 1, settings.webhook_pauses_s
    _log(session, claim, answer)
    if answer.error is None:
        ledger.settle(session, claim, Status.SUCCEEDED, error=None)
        return destinations.answered(session, row.destination_id)
    gone, error = answer.error == GONE, {"code": answer.error, "detail": answer.detail or ""}
    if gone or tries > len(pauses):
        ledger.settle(session, claim, Status.FAILED, tries=tries, error=error)
    else:
        again_at = clock(session) + timedelta(seconds=_pause_s(pauses[tries - 1], answer))
        ledger.requeue(session, claim, due_at=again_at, tries=tries, error=error)
    return destinations.failed(session, settings, row.destination_id, gone=gone)


def _held(session: Session, claim: Claim) -> Delivery:
    """The row, held until the commit. LeaseLost: it was purged meanwhile, and no try can be written to it."""
    row = session.get(Delivery, claim.id, with_for_update=True, populate_existing=True)
    if row is None:
        raise LeaseLost()
    return row


def cancel(session: Session, claim: Claim) -> None:
    """Its destination gets nothing any more. LeaseLost."""
    ledger.settle(session, claim, Status.CANCELED, error=outbox.DISABLED.model_dump())


def hand_back(session: Session, claim: Claim) -> None:
    """A process that stops gives a delivery to another, whether or not the receiver has had it. LeaseLost."""
    _held(session, claim)
    detail = "The process that sent it was stopped before the receiver had answered."
    _log(session, claim, Answer(clock(session), error=HANDED_BACK, detail=detail))
    ledger.requeue(session, claim)
    ring_after_commit(session, DELIVER)


def expire(session: Session, settings: Settings) -> ledger.Expired:
    """Free the deliveries whose process is gone; what loses one process after the other is tried less and less often.

    None is given up for it: whether the receiver has had the event is not known.
    """
    expired = ledger.requeue_expired(session, Delivery, max_losses=NO_LOSS_ENDS_IT)
    if not expired.requeued:
        return expired
    now, pauses = clock(session), [0.0, *settings.webhook_pauses_s]
    for row in session.scalars(select(Delivery).where(Delivery.id.in_(expired.requeued))):
        detail = "The process that sent it died or froze."
        _log(session, _lost(row), Answer(now, error=LOST, detail=detail))
        row.due_at = now + timedelta(seconds=pauses[min(row.losses, len(pauses)) - 1])
    ring_after_commit(session, DELIVER)
    return expired


def cancel_disabled(session: Session) -> int:
    """Cancel some of what still waits for destinations that get nothing any more; how many: 0 when none is left."""
    at = _walk()
    disabled = select(Destination.id).join(at, at.c.destination_id == Destination.id).where(~Destination.enabled)
    return sum(destinations.cancel_waiting(session, found) for found in session.scalars(disabled).all())


# ---------------------------------------------------------------- the owner's side


def redeliver(session: Session, destination: Destination, delivery_id: str) -> Delivery:
    """Send an event again, now; what is on its way already goes on. NotFound; Conflict where nothing can be sent."""
    _ask_enabled(destination)
    mine = (Delivery.id == delivery_id) & (Delivery.destination_id == destination.id)
    row = session.scalars(select(Delivery).where(mine).with_for_update()).one_or_none()
    if row is None:
        raise NotFound("There is no such delivery.")
    _again(session, mine & (Delivery.status != Status.RUNNING.value))
    session.refresh(row)
    return row


def redeliver_some(
    session: Session,
    destination: Destination,
    *,
    since: datetime,
    until: datetime | None,
    statuses: Sequence[Status],
    after: str = "",
) -> Sequence[str]:
    """Send again what happened from `since` on and before `until`, as far as it ended so; their ids. Conflict.

    At most AT_ONCE rows in the order of their ids: while there are as many, go on `after` the last. No transaction
    holds more, whatever has piled up.
    """
    _ask_enabled(destination)
    ended = (Delivery.destination_id == destination.id) & Delivery.status.in_([status.value for status in statuses])
    wanted = ended & (Delivery.id > max(after, ids.earliest("dlv", since - SKEW))) & (Delivery.created_at >= since)
    if until is not None:
        wanted &= Delivery.created_at < until
    chosen = select(Delivery.id).where(wanted).order_by(Delivery.id).limit(AT_ONCE).with_for_update()
    found = session.scalars(chosen).all()
    if found:
        _again(session, Delivery.id.in_(found))
    return found


def send_test(session: Session, destination: Destination) -> Delivery:
    """Send a `webhook.test` event there, the way that every event goes. Conflict where nothing can be sent."""
    _ask_enabled(destination)
    return outbox.record_for(session, destination, "webhook.test", mode=TEST, webhook=destination.id)


def _parcel(session: Session, event: Event, destination: Destination) -> Parcel | Answer | None:
    if not destination.enabled:
        return None
    try:
        live = destinations.live_secrets(destination, clock(session))
        return Parcel(destination.address, event.id, events.view(event).model_dump_json(), live)
    except Exception as error:
        log.exception("not_put_into_words", event_id=event.id)
        return unforeseen(clock(session), error)


def unforeseen(at: datetime, error: Exception) -> Answer:
    """How a try ends that was our own fault."""
    return Answer(at, error="internal_error", detail=f"Nobody foresaw this: {type(error).__name__}.")


def _ask_enabled(destination: Destination) -> None:
    if not destination.enabled:
        raise Conflict("The webhook is disabled: enable it first.", code=outbox.DISABLED.code)


def _again(session: Session, wanted: Any) -> int:
    now = clock(session)
    fresh = {"status": Status.QUEUED.value, "due_at": now, "ready_at": now, "tries": 0, "losses": 0}
    ended = {"error": None, "started_at": None, "finished_at": None}
    statement = update(Delivery).where(wanted).values(**fresh, **ended)
    ring_after_commit(session, DELIVER)
    return written(session, statement.execution_options(synchronize_session=False))


def _log(session: Session, claim: Claim, answer: Answer) -> None:
    session.add(
        Attempt(
            id=ids.new("att"),
            tenant_id=claim.tenant_id,
            delivery_id=claim.id,
            number=claim.attempt,
            at=answer.at,
            duration_ms=answer.duration_ms,
            status=answer.status,
            error=answer.error,
            detail=answer.detail,
            response=answer.response,
        )
    )


def _lost(row: Delivery) -> Claim:
    """The claim that ended with its process."""
    return Claim(Delivery, row.id, row.tenant_id, "", row.attempt)


def _pause_s(pause_s: float, answer: Answer) -> float:
    """Seconds to the next try: the schedule's, about, but no sooner than the receiver asked for, up to a day."""
    asked_s = min(answer.retry_after_s or 0.0, LONGEST_RETRY_AFTER_S)
    return max(pause_s * random.uniform(1 - JITTER, 1 + JITTER), asked_s)


def _first_due(now: datetime, full: Sequence[str], n: int) -> Any:
    """The destinations whose first row has been due the longest, at most `n`, without those that are `full`."""
    at = _walk()
    head = select(Delivery.due_at).where(Delivery.status == QUEUED, Delivery.destination_id == at.c.destination_id)
    due_at = head.order_by(Delivery.due_at, Delivery.id).limit(1).scalar_subquery()
    heads = select(at.c.destination_id, due_at.label("due_at"))
    found = heads.where(at.c.destination_id.is_not(None), at.c.destination_id.not_in(full)).subquery()
    return select(found.c.destination_id).where(found.c.due_at <= now).order_by(found.c.due_at).limit(n)


def _walk() -> Any:
    """The destinations for which something waits, and a null at the end.

    The walk jumps along the index from one destination to the next (a loose index scan), so it reads one row of each.
    """
    at = select(_next_waiting().subquery("first")).cte("walk", recursive=True)
    after = _next_waiting(Delivery.destination_id > at.c.destination_id).scalar_subquery()
    return at.union_all(select(after).where(at.c.destination_id.is_not(None)))


def _next_waiting(*wanted: Any) -> Any:
    """The first destination for which something waits; in the order of that index, so that no other can serve it."""
    waiting = select(Delivery.destination_id).where(Delivery.status == QUEUED, *wanted)
    return waiting.order_by(Delivery.destination_id, Delivery.due_at, Delivery.id).limit(1)


def _due_at(destination_id: str, now: datetime, n: int) -> Any:
    """The first `n` rows of a destination that are due."""
    due = select(Delivery.id, Delivery.destination_id, Delivery.due_at).where(
        Delivery.status == QUEUED, Delivery.destination_id == destination_id, Delivery.due_at <= now
    )
    return select(due.order_by(Delivery.due_at, Delivery.id).limit(n).subquery())
