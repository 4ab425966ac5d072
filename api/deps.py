"""What the routes are given: the process's parts and the caller's tenant, as Annotated aliases.

No dependency here holds a transaction: a route opens its own (`with transaction(database)`), so that it has committed
before its answer exists. Code after a `yield` in a dependency would run after the answer was sent.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from api.notifier import Notifier, Seen
from shared import tenants, views
from shared.db import Database, open_database, reading
from shared.errors import Forbidden, Unauthenticated
from shared.queue import ringer
from shared.settings import Settings
from shared.storage import Storage, open_storage

KEY_CACHE_S = 5.0
KEY_CACHE_SIZE = 4096


@dataclass(frozen=True)
class Caller:
    """Who calls: the tenant of the key and what the key may do."""

    tenant_id: str
    scopes: frozenset[str]


@dataclass(frozen=True)
class Parts:
    """What one API process holds open."""

    settings: Settings
    database: Database
    storage: Storage
    notifier: Notifier
    callers: dict[bytes, tuple[float, Caller]] = field(default_factory=dict)


def open_parts(settings: Settings) -> Parts:
    """Open the database and the storage; nothing is asked of either yet."""
    database = open_database(settings, ring=ringer(settings))

    def versions(job_ids: Collection[str]) -> Seen:
        with reading(database) as session:
            return views.versions(session, job_ids)

    notifier = Notifier(versions, tick_s=settings.notifier_tick_s)
    return Parts(settings, database, open_storage(settings), notifier)


async def _parts(request: Request) -> Parts:
    # Asynchronous although it waits for nothing: FastAPI sends plain functions through the thread pool.
    return request.app.state.parts


PartsDep = Annotated[Parts, Depends(_parts)]

_bearer = HTTPBearer(auto_error=False, description="An API key: `Authorization: Bearer hlm_...`")
BearerDep = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def caller(parts: PartsDep, credentials: BearerDep) -> Caller:
    """Who calls, by their key; known keys are believed for KEY_CACHE_S before the database is asked again."""
    if credentials is None:
        raise Unauthenticated("Send an API key: Authorization: Bearer <key>.")
    digest = hashlib.sha256(credentials.credentials.encode()).digest()
    expires_at, known = parts.callers.get(digest, (0.0, None))
    if known is not None and time.monotonic() < expires_at:
        return known
    found = await run_in_threadpool(_authenticate, parts.database, credentials.credentials)
    if len(parts.callers) >= KEY_CACHE_SIZE:
        parts.callers.clear()
    parts.callers[digest] = (time.monotonic() + KEY_CACHE_S, found)
    return found


CallerDep = Annotated[Caller, Depends(caller)]


async def reader(found: CallerDep) -> str:
    """The tenant whose rows this request may see; Forbidden when its key may not read."""
    return _allowed(found, "read")


ReaderDep = Annotated[str, Depends(reader)]


async def submitter(found: CallerDep) -> str:
    """The tenant whose rows this request may make and cancel; Forbidden when its key may not submit."""
    return _allowed(found, "submit")


SubmitterDep = Annotated[str, Depends(submitter)]


async def legacy_tenant(parts: PartsDep, credentials: BearerDep) -> str:
    """As `submitter`; without a key the default tenant, where the operator opened the legacy routes."""
    if credentials is None and parts.settings.legacy_open:
        return await run_in_threadpool(_default_tenant, parts.database)
    return _allowed(await caller(parts, credentials), "submit")


LegacyTenantDep = Annotated[str, Depends(legacy_tenant)]


def _allowed(found: Caller, scope: str) -> str:
    if scope not in found.scopes:
        raise Forbidden(f"This key lacks the scope `{scope}`.")
    return found.tenant_id


def _authenticate(database: Database, key: str) -> Caller:
    with reading(database) as session:
        tenant_id, scopes = tenants.authenticate(session, key)
    return Caller(tenant_id, frozenset(scopes))


def _default_tenant(database: Database) -> str:
    with reading(database) as session:
        return tenants.default_id(session)
