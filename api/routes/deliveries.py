"""Deliveries over HTTP: what a webhook was sent and what it answered, and how to have it sent again."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import AfterValidator, Field

from api.deps import AdminDep, ByDep, LiveDep, PartsDep, ReaderDep
from api.problems import documented
from api.routes.webhooks import ERRORS_OF_ONE, WebhookId, answer
from api.webhook_examples import DELIVERY, DELIVERY_ID, DELIVERY_PAGE, said
from shared import deeds, deliveries, destinations, errors, webhook_views
from shared.db import reading, transaction
from shared.errors import NotFound
from shared.schemas import EventType, Frozen, Status
from shared.webhook_views import DeliveryPage, DeliveryView

router = APIRouter(prefix="/v1/webhooks/{webhook_id}", tags=["webhooks"])

ERRORS = {**ERRORS_OF_ONE, **documented(errors.Conflict)}
PATTERN = re.compile(r"dlv_[0-9A-HJKMNP-TV-Z]{26}")


def _delivery_id(value: str) -> str:
    if not PATTERN.fullmatch(value):
        raise NotFound("There is no such delivery.")
    return value


def _utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError as error:
        raise ValueError("a time before the year 1 or after 9999 in UTC") from error


DeliveryId = Annotated[str, Path(examples=[DELIVERY_ID]), AfterValidator(_delivery_id)]
DeliveryStatus = Literal["queued", "running", "succeeded", "failed", "canceled"]
Ended = Literal["failed", "canceled", "succeeded"]
Moment = Annotated[datetime, AfterValidator(_utc)]


class Range(Frozen):
    """Which deliveries shall be sent again: by when their events happened, and by how they ended."""

    since: Moment = Field(description="ISO 8601; without a zone it is UTC")
    until: Moment | None = Field(None, description="exclusive; else now")
    status: list[Ended] = Field(["failed", "canceled"], min_length=1, max_length=3)


class Queued(Frozen):
    """How many deliveries are on their way again."""

    queued: int


@router.get(
    "/deliveries",
    response_model=DeliveryPage,
    summary="List deliveries, newest first",
    responses={200: said(DELIVERY_PAGE), **ERRORS_OF_ONE},
)
def page(
    webhook_id: WebhookId,
    tenant_id: ReaderDep,
    parts: PartsDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    cursor: Annotated[str | None, Query(max_length=32)] = None,
    status: DeliveryStatus | None = None,
    type: Annotated[EventType | None, Query(description="of the event")] = None,
) -> Response:
    """What was sent, with every try and how the receiver answered; follow `next_cursor` until it is null."""
    wanted = Status(status) if status else None
    with reading(parts.database) as session:
        row = destinations.get(session, tenant_id, webhook_id)
        found = webhook_views.page(session, row, limit=limit, cursor=cursor, status=wanted, type=type)
    return answer(found)


@router.post(
    "/deliveries/{delivery_id}/redeliver",
    status_code=202,
    response_model=DeliveryView,
    summary="Send one event again",
    responses={202: said(DELIVERY, "on its way"), **ERRORS},
)
def redeliver(
    webhook_id: WebhookId, delivery_id: DeliveryId, tenant_id: LiveDep, by: ByDep, parts: PartsDep
) -> Response:
    """Send it now, with the same `webhook-id`, and start the schedule anew; 409 while the webhook is disabled."""
    with transaction(parts.database) as session:
        destination = destinations.get(session, tenant_id, webhook_id)
        row = deliveries.redeliver(session, destination, delivery_id)
        deeds.record(session, "webhook.redelivered", webhook_id, tenant_id=tenant_id, **by, delivery=delivery_id)
        view = webhook_views.delivery(session, row)
    return answer(view, 202)


@router.post(
    "/redeliver",
    status_code=202,
    response_model=Queued,
    summary="Send a range of events again",
    responses={202: said({"queued": 12}, "on their way"), **ERRORS},
)
def redeliver_range(wanted: Range, webhook_id: WebhookId, tenant_id: LiveDep, by: ByDep, parts: PartsDep) -> Response:
    """Send what happened in a time and ended so; canceled ones are those that came while it was disabled."""
    statuses = [Status(status) for status in wanted.status]
    queued, after, more = 0, "", True
    while more:
        with transaction(parts.database) as session:
            row = destinations.get(session, tenant_id, webhook_id)
            found = deliveries.redeliver_some(
                session, row, since=wanted.since, until=wanted.until, statuses=statuses, after=after
            )
            told = {"since": wanted.since.isoformat(), "queued": len(found)}
            deeds.record(session, "webhook.redelivered", webhook_id, tenant_id=tenant_id, **by, **told)
        queued, more = queued + len(found), len(found) == deliveries.AT_ONCE
        after = found[-1] if found else after
    return answer(Queued(queued=queued), 202)


@router.post(
    "/test",
    status_code=202,
    response_model=DeliveryView,
    summary="Send a test event",
    responses={202: said(DELIVERY, "on its way"), **ERRORS},
)
def send_test(webhook_id: WebhookId, tenant_id: AdminDep, by: ByDep, parts: PartsDep) -> Response:
    """Send a `webhook.test` event, whatever the filter says, the way that every event goes; the log says what came."""
    with transaction(parts.database) as session:
        destination = destinations.get(session, tenant_id, webhook_id)
        row = deliveries.send_test(session, destination)
        deeds.record(session, "webhook.tested", webhook_id, tenant_id=tenant_id, **by, delivery=row.id)
        session.flush()
        view = webhook_views.delivery(session, row)
    return answer(view, 202)
