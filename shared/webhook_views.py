"""Webhooks and their deliveries as their owner sees them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from shared import events, ids
from shared.errors import Invalid
from shared.models import Attempt, Delivery, Destination, Event
from shared.schemas import EventType, EventView, Failure, Frozen, Status


class WebhookView(Frozen):
    """A webhook; its secret is shown when it is made and when it is rotated, and never again."""

    id: str
    url: str
    events: list[EventType] = Field(description="what it wants to hear; empty: everything")
    description: str
    enabled: bool
    disabled_because: str | None = Field(None, description="gone (410), failing (for too long) or owner")
    failing_since: datetime | None = Field(None, description="the first failure after the last success")
    old_secret_until: datetime | None = Field(None, description="until then the secret before this one signs too")
    created_at: datetime


class WebhookWithSecret(WebhookView):
    """A webhook and its newest secret."""

    secret: str = Field(description="`whsec_...`: shown this once")


class WebhookList(Frozen):
    """Every webhook of the tenant."""

    webhooks: list[WebhookView]


class AttemptView(Frozen):
    """One try to deliver."""

    number: int
    at: datetime
    duration_ms: int
    status: int | None = Field(None, description="of HTTP; null: there was no answer")
    error: str | None = Field(None, description="a stable code; null: the receiver took it")
    detail: str | None = None
    response: str | None = Field(None, description="how the body of the answer began")


class DeliveryView(Frozen):
    """One event on its way to one webhook, with every try so far."""

    id: str
    event: EventView
    status: Status
    created_at: datetime
    next_attempt_at: datetime | None = Field(None, description="while it is queued")
    finished_at: datetime | None = None
    error: Failure | None = Field(None, description="of the last try, if that failed; or why it was canceled")
    attempts: list[AttemptView]


class DeliveryPage(Frozen):
    """One page of deliveries, newest first; `next_cursor` is null on the last page."""

    deliveries: list[DeliveryView]
    next_cursor: str | None = None


def webhook(row: Destination) -> WebhookView:
    """A webhook without its secrets."""
    return WebhookView(**_columns(row))


def with_secret(row: Destination) -> WebhookWithSecret:
    """A webhook with its newest secret."""
    return WebhookWithSecret(**_columns(row), secret=row.secrets[0])


def delivery(session: Session, row: Delivery) -> DeliveryView:
    """A delivery with its tries."""
    return _deliveries(session, [(row, session.get_one(Event, row.event_id))])[0]


def page(
    session: Session,
    destination: Destination,
    *,
    limit: int,
    cursor: str | None = None,
    status: Status | None = None,
    type: EventType | None = None,
) -> DeliveryPage:
    """At most `limit` deliveries older than `cursor`, newest first; Invalid when the cursor is none of ours."""
    if cursor is not None and not ids.PATTERN.fullmatch(cursor):
        raise Invalid("The cursor is none that a page gave out.", code="invalid_cursor")
    found: Any = select(Delivery, Event).join(Event).where(Delivery.destination_id == destination.id)
    if cursor is not None:
        found = found.where(Delivery.id < cursor)
    if status is not None:
        found = found.where(Delivery.status == status.value)
    if type is not None:
        found = found.where(Event.type == type)
    rows = session.execute(found.order_by(Delivery.id.desc()).limit(limit + 1)).all()
    more = len(rows) > limit
    shown = _deliveries(session, [(row.Delivery, row.Event) for row in rows[:limit]])
    return DeliveryPage(deliveries=shown, next_cursor=shown[-1].id if more else None)


def _columns(row: Destination) -> dict[str, Any]:
    return {
        "id": row.id,
        "url": row.address,
        "events": row.events,
        "description": row.description,
        "enabled": row.enabled,
        "disabled_because": row.disabled_because,
        "failing_since": row.failing_since,
        "old_secret_until": row.old_secret_until,
        "created_at": row.created_at,
    }


def _deliveries(session: Session, rows: Sequence[tuple[Delivery, Event]]) -> list[DeliveryView]:
    """The views of many deliveries, with one query for all their tries."""
    tries: dict[str, list[AttemptView]] = defaultdict(list)
    asked = select(Attempt).where(Attempt.delivery_id.in_([row.id for row, _ in rows]))
    for attempt in session.scalars(asked.order_by(Attempt.id)):
        tries[attempt.delivery_id].append(_attempt(attempt))
    return [_delivery(row, event, tries[row.id]) for row, event in rows]


def _delivery(row: Delivery, event: Event, attempts: list[AttemptView]) -> DeliveryView:
    return DeliveryView(
        id=row.id,
        event=events.view(event),
        status=Status(row.status),
        created_at=row.created_at,
        next_attempt_at=row.due_at if row.status == Status.QUEUED else None,
        finished_at=row.finished_at,
        error=Failure.model_validate(row.error) if row.error else None,
        attempts=attempts,
    )


def _attempt(row: Attempt) -> AttemptView:
    return AttemptView(
        number=row.number,
        at=row.at,
        duration_ms=row.duration_ms,
        status=row.status,
        error=row.error,
        detail=row.detail,
        response=row.response,
    )
