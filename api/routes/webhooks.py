"""Webhooks over HTTP: make, list, change, disable, delete, and let their secrets turn over."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import AfterValidator, Field

from api.deps import ByDep, LiveDep, PartsDep, ReaderDep
from api.intake import PRINTABLE
from api.problems import documented
from api.webhook_examples import WEBHOOK, WEBHOOK_ID, WEBHOOK_LIST, WEBHOOK_WITH_SECRET, said
from shared import destinations, errors, webhook_views
from shared.addresses import LONGEST_URL, checked_url
from shared.db import reading, transaction
from shared.destinations import OWNER
from shared.errors import NotFound
from shared.schemas import EventType, Frozen
from shared.webhook_views import WebhookList, WebhookView, WebhookWithSecret

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])

ERRORS = documented(errors.Unauthenticated, errors.Forbidden, errors.Invalid, errors.Unavailable)
ERRORS_OF_ONE = {**ERRORS, **documented(errors.NotFound)}
PATTERN = re.compile(r"whk_[0-9A-HJKMNP-TV-Z]{26}")
LONGEST_OVERLAP_H = 24 * 7


def _webhook_id(value: str) -> str:
    if not PATTERN.fullmatch(value):
        raise NotFound("There is no such webhook.")
    return value


WebhookId = Annotated[str, Path(examples=[WEBHOOK_ID]), AfterValidator(_webhook_id)]
Url = Annotated[str, Field(max_length=LONGEST_URL, description="https://, without a user name")]
Events = Annotated[list[EventType], Field(max_length=32, description="what it wants to hear; empty: everything")]
Description = Annotated[str, Field(max_length=256, pattern=PRINTABLE, description="yours, never interpreted")]


class NewWebhook(Frozen):
    """Where events shall be sent, and which."""

    url: Url
    events: Events = Field(default_factory=list)
    description: Description = ""


class WebhookChange(Frozen):
    """What shall be different; what is left out, or null, stays."""

    url: Url | None = None
    events: Events | None = None
    description: Description | None = None
    enabled: bool | None = None


class Rotation(Frozen):
    """How long the secret before the new one signs too."""

    overlap_hours: float = Field(24.0, ge=0, le=LONGEST_OVERLAP_H, allow_inf_nan=False)


@router.post(
    "",
    status_code=201,
    response_model=WebhookWithSecret,
    summary="Make a webhook",
    responses={
        201: said(WEBHOOK_WITH_SECRET, "made; the secret is shown this once"),
        **ERRORS,
        **documented(errors.Conflict),
    },
)
def create(wanted: NewWebhook, tenant_id: LiveDep, by: ByDep, parts: PartsDep) -> Response:
    """Send the tenant's events to a URL from now on, signed with a secret that only this answer shows."""
    url = checked_url(wanted.url, private=parts.settings.webhook_private)
    with transaction(parts.database) as session:
        row = destinations.create(
            session, tenant_id, url=url, events=wanted.events, description=wanted.description, by=by
        )
        view = webhook_views.with_secret(row)
    return answer(view, 201, Location=f"/v1/webhooks/{view.id}")


@router.get("", response_model=WebhookList, summary="List webhooks", responses={200: said(WEBHOOK_LIST), **ERRORS})
def known(tenant_id: ReaderDep, parts: PartsDep) -> Response:
    """Every webhook of the tenant, oldest first, without secrets."""
    with reading(parts.database) as session:
        rows = [webhook_views.webhook(row) for row in destinations.known(session, tenant_id)]
    return answer(WebhookList(webhooks=rows))


@router.get(
    "/{webhook_id}",
    response_model=WebhookView,
    summary="Read a webhook",
    responses={200: said(WEBHOOK), **ERRORS_OF_ONE},
)
def read(webhook_id: WebhookId, tenant_id: ReaderDep, parts: PartsDep) -> Response:
    """A webhook, and whether it fails or is disabled; without secrets."""
    with reading(parts.database) as session:
        view = webhook_views.webhook(destinations.get(session, tenant_id, webhook_id))
    return answer(view)


@router.patch(
    "/{webhook_id}",
    response_model=WebhookView,
    summary="Change a webhook",
    responses={200: said(WEBHOOK), **ERRORS_OF_ONE},
)
def change(wanted: WebhookChange, webhook_id: WebhookId, tenant_id: LiveDep, by: ByDep, parts: PartsDep) -> Response:
    """Change what the body names. Disabling cancels what waits; that can be sent again after enabling."""
    columns = wanted.model_dump(exclude_none=True)
    enabled = columns.pop("enabled", None)
    if "url" in columns:
        columns["address"] = checked_url(columns.pop("url"), private=parts.settings.webhook_private)
    with transaction(parts.database) as session:
        row = destinations.get(session, tenant_id, webhook_id, to_change=True)
        if columns:
            destinations.change(session, row, columns, by=by)
        if enabled is True:
            destinations.enable(session, row, by=by)
        elif enabled is False:
            destinations.disable(session, row, OWNER, by=by)
        view = webhook_views.webhook(row)
    return answer(view)


@router.delete("/{webhook_id}", status_code=204, summary="Delete a webhook", responses=ERRORS_OF_ONE)
def delete(webhook_id: WebhookId, tenant_id: LiveDep, by: ByDep, parts: PartsDep) -> Response:
    """Send nothing there any more: what waits is canceled, and the secrets are forgotten."""
    with transaction(parts.database) as session:
        row = destinations.get(session, tenant_id, webhook_id, to_change=True)
        destinations.delete(session, row, by=by)
    return Response(status_code=204)


@router.post(
    "/{webhook_id}/enable",
    response_model=WebhookView,
    summary="Enable a webhook (again)",
    responses={200: said(WEBHOOK), **ERRORS_OF_ONE},
)
def enable(webhook_id: WebhookId, tenant_id: LiveDep, by: ByDep, parts: PartsDep) -> Response:
    """Send to it from now on, with a clean record; what was canceled meanwhile waits for a redelivery."""
    with transaction(parts.database) as session:
        row = destinations.get(session, tenant_id, webhook_id, to_change=True)
        destinations.enable(session, row, by=by)
        view = webhook_views.webhook(row)
    return answer(view)


@router.post(
    "/{webhook_id}/rotate-secret",
    response_model=WebhookWithSecret,
    summary="Let a new secret replace the old one",
    responses={200: said(WEBHOOK_WITH_SECRET, "the new secret is shown this once"), **ERRORS_OF_ONE},
)
def rotate(
    webhook_id: WebhookId, tenant_id: LiveDep, by: ByDep, parts: PartsDep, wanted: Rotation | None = None
) -> Response:
    """Sign with a new secret, and with the one before until the overlap has ended: deliveries carry both signatures."""
    overlap = timedelta(hours=(wanted or Rotation()).overlap_hours)
    with transaction(parts.database) as session:
        row = destinations.get(session, tenant_id, webhook_id, to_change=True)
        destinations.rotate(session, row, overlap, by=by)
        view = webhook_views.with_secret(row)
    return answer(view)


def answer(view: Frozen, status: int = 200, **headers: str) -> Response:
    """A view as JSON that no cache keeps: it may hold a secret."""
    sent = {"Cache-Control": "private, no-store", **headers}
    return Response(view.model_dump_json(), status, headers=sent, media_type="application/json")
