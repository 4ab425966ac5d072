"""The audit log over HTTP: an admin key reads what was done in its own tenant."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from api.deps import AdminDep, PartsDep
from api.intake import PRINTABLE
from api.problems import documented
from shared import deeds, errors
from shared.db import reading
from shared.deeds import DeedPage

router = APIRouter(prefix="/v1/audit", tags=["audit"])

DEED: dict[str, Any] = {
    "id": "ded_01JDJ5W1M0QZ8N4T7X2B9C3D6F",
    "at": "2026-01-05T08:30:00Z",
    "tenant": "ten_01JDJ5W1M0QZ8N4T7X2B9C3D6F",
    "actor": "key_01JDJ5W1M0QZ8N4T7X2B9C3D6F",
    "action": "job.submitted",
    "subject": "job_01JDJ5W1M0QZ8N4T7X2B9C3D6F",
    "request_id": "0f6c",
    "detail": {},
}


@router.get(
    "",
    response_model=DeedPage,
    summary="Read the audit log, newest first",
    responses={
        200: {"content": {"application/json": {"example": {"deeds": [DEED], "next_cursor": None}}}},
        **documented(errors.Unauthenticated, errors.Forbidden, errors.Invalid, errors.Unavailable),
    },
)
def page(
    tenant_id: AdminDep,
    parts: PartsDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    cursor: Annotated[str, Query(max_length=128, pattern=PRINTABLE)] | None = None,
) -> Response:
    """Who did what, and when; follow `next_cursor` until it is null."""
    with reading(parts.database) as session:
        found = deeds.page(session, tenant_id, limit=limit, cursor=cursor)
    headers = {"Cache-Control": "private, no-cache"}
    return Response(found.model_dump_json(), headers=headers, media_type="application/json")
