"""API keys over HTTP: an admin key makes, lists, rotates and revokes those of its own tenant."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Path, Query, Response
from pydantic import AfterValidator, Field

from api.deps import AdminDep, ByDep, CallerDep, PartsDep, ensure_reach
from api.intake import PRINTABLE
from api.problems import documented
from shared import errors, ids, tenants
from shared.db import reading, transaction
from shared.errors import Invalid, NotFound
from shared.models import ApiKey
from shared.schemas import Frozen

router = APIRouter(prefix="/v1/keys", tags=["keys"])

KEY_ID = re.compile(r"key_[0-9A-HJKMNP-TV-Z]{26}")
LONGEST_OVERLAP_H = 24 * 90

Scope = Literal["submit", "read", "admin"]
Mode = Literal["live", "test"]


def _key_id(value: str) -> str:
    if not KEY_ID.fullmatch(value):
        raise NotFound("There is no such key.")
    return value


def _utc(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


KeyId = Annotated[str, Path(examples=["key_01JDJ5W1M0QZ8N4T7X2B9C3D6F"]), AfterValidator(_key_id)]


class KeyView(Frozen):
    """A key as lists show it: how it begins, never the whole."""

    id: str
    name: str
    prefix: str = Field(description="how the key begins")
    scopes: list[Scope]
    mode: Mode
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = Field(None, description="accurate to about a minute")
    revoked_at: datetime | None = None
    replaced_by: str | None = Field(None, description="the key that it was rotated to")


class NewKey(KeyView):
    """A key that was made just now; nobody can be told `key` a second time."""

    key: str = Field(description="the key in full; only its hash is kept")


class KeyPage(Frozen):
    """One page of keys, oldest first; `next_cursor` is null on the last page."""

    keys: list[KeyView]
    next_cursor: str | None = None


class WantedKey(Frozen):
    """What a new key is to be."""

    name: str = Field("", max_length=128, pattern=PRINTABLE)
    scopes: list[Scope] = Field(min_length=1, max_length=3, description="what the key may do")
    mode: Mode = Field("live", description="`test`: its jobs are played, and no film is read")
    expires_at: Annotated[datetime, AfterValidator(_utc)] | None = Field(None, description="null: never")


class Rotation(Frozen):
    """How a key gives way to another."""

    overlap_hours: float = Field(24.0, ge=0, le=LONGEST_OVERLAP_H, description="both keys open the door for so long")


VIEW: dict[str, Any] = {
    "id": "key_01JDJ5W1M0QZ8N4T7X2B9C3D6F",
    "name": "worklist",
    "prefix": "hlm_Zm9vYm",
    "scopes": ["submit", "read"],
    "mode": "live",
    "created_at": "2026-01-05T08:30:00Z",
    "expires_at": None,
    "last_used_at": "2026-01-05T09:12:00Z",
    "revoked_at": None,
    "replaced_by": None,
}
MADE = {**VIEW, "last_used_at": None, "key": "hlm_Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4Zm9vYmFyYmE"}
ERRORS = documented(errors.Unauthenticated, errors.Forbidden, errors.Invalid, errors.Unavailable)
ONE_ERRORS = {**ERRORS, **documented(errors.NotFound)}
PRIVATE = {"Cache-Control": "private, no-store"}


@router.get(
    "",
    response_model=KeyPage,
    summary="List keys, oldest first",
    responses={
        200: {"content": {"application/json": {"example": {"keys": [VIEW], "next_cursor": None}}}},
        **ERRORS,
    },
)
def page(
    tenant_id: AdminDep,
    parts: PartsDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    cursor: Annotated[str, Query(max_length=128, pattern=PRINTABLE)] | None = None,
) -> Response:
    """The tenant's keys, ended ones too."""
    if cursor is not None and not ids.PATTERN.fullmatch(cursor):
        raise Invalid("The cursor is none that a page gave out.", code="invalid_cursor")
    with reading(parts.database) as session:
        rows = tenants.list_keys(session, tenant_id, after=cursor or "", limit=limit + 1)
    shown = [KeyView(**_fields(row)) for row in rows[:limit]]
    return _answer(KeyPage(keys=shown, next_cursor=shown[-1].id if len(rows) > limit else None))


@router.post(
    "",
    status_code=201,
    response_model=NewKey,
    summary="Make a key",
    responses={201: {"content": {"application/json": {"example": MADE}}}, **ERRORS},
)
def create(wanted: WantedKey, tenant_id: AdminDep, found: CallerDep, by: ByDep, parts: PartsDep) -> Response:
    """A new key of the tenant, shown this once; a test key makes test keys only."""
    ensure_reach(found, wanted.mode)
    with transaction(parts.database) as session:
        issued = tenants.issue_key(
            session,
            tenant_id,
            sorted(set(wanted.scopes), key=tenants.SCOPES.index),
            wanted.name,
            mode=wanted.mode,
            expires_at=wanted.expires_at,
            by=by,
        )
    return _answer(NewKey(**_fields(issued.row), key=issued.key), 201)


@router.post(
    "/{key_id}/rotate",
    status_code=201,
    response_model=NewKey,
    summary="Replace a key",
    responses={
        201: {"content": {"application/json": {"example": MADE}}},
        **ONE_ERRORS,
        **documented(errors.Conflict),
    },
)
def rotate(
    key_id: KeyId,
    tenant_id: AdminDep,
    found: CallerDep,
    by: ByDep,
    parts: PartsDep,
    rotation: Annotated[Rotation, Body()] = Rotation(overlap_hours=24.0),  # noqa: B008  # a frozen value
) -> Response:
    """A new key of the same name, scopes and mode; the old one expires after the overlap. 409 when it has ended."""
    with transaction(parts.database) as session:
        ensure_reach(found, tenants.key_of(session, tenant_id, key_id).mode)
        overlap = timedelta(hours=rotation.overlap_hours)
        issued = tenants.rotate_key(session, key_id, overlap, tenant_id=tenant_id, by=by)
    return _answer(NewKey(**_fields(issued.row), key=issued.key), 201)


@router.delete(
    "/{key_id}",
    response_model=KeyView,
    summary="Revoke a key",
    responses={200: {"content": {"application/json": {"example": VIEW}}}, **ONE_ERRORS},
)
def revoke(key_id: KeyId, tenant_id: AdminDep, found: CallerDep, by: ByDep, parts: PartsDep) -> Response:
    """The key opens nothing any more, within seconds; revoking it again changes nothing."""
    with transaction(parts.database) as session:
        ensure_reach(found, tenants.key_of(session, tenant_id, key_id).mode)
        row = tenants.revoke_key(session, key_id, tenant_id=tenant_id, by=by)
    return _answer(KeyView(**_fields(row)))


def _fields(row: ApiKey) -> dict[str, Any]:
    return {name: getattr(row, name) for name in KeyView.model_fields}


def _answer(found: Frozen, status: int = 200) -> Response:
    return Response(found.model_dump_json(), status, headers=PRIVATE, media_type="application/json")
