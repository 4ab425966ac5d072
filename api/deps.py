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

from api.forecast import Forecast
from api.notifier import Notifier, Seen
from api.rates import RATE_HEADERS, Rates
from api.stream import Broadcast
from shared import tenants, views
from shared.db import Database, open_database, reading
from shared.deeds import By
from shared.errors import Forbidden, Throttled, Unauthenticated
from shared.models import LIVE, TEST, Tenant
from shared.queue import ringer
from shared.settings import Settings
from shared.storage import Storage, open_storage

KEY_CACHE_S = 5.0
KEY_CACHE_SIZE = 4096


@dataclass(frozen=True)
class Caller:
    """Who calls: the tenant of the key, the key, what it may do, whether its jobs are live or a test, and how many."""

    tenant_id: str
    scopes: frozenset[str]
    key_id: str
    mode: str = LIVE
    rate_per_minute: int = 0  # requests; 0: no limit
    queued_cap: int = 0  # jobs that may wait at a time; 0: no limit


@dataclass(frozen=True)
class Parts:
    """What one API process holds open."""

    settings: Settings
    database: Database
    storage: Storage
    notifier: Notifier
    broadcast: Broadcast
    rates: Rates
    forecast: Forecast = field(default_factory=Forecast)
    callers: dict[bytes, tuple[float, Caller]] = field(default_factory=dict)
    used_keys: set[str] = field(default_factory=set)  # since the database was told


def open_parts(settings: Settings) -> Parts:
    """Open the database and the storage; nothing is asked of either yet."""
    database = open_database(settings, ring=ringer(settings))

    def versions(job_ids: Collection[str]) -> Seen:
        with reading(database) as session:
            return views.versions(session, job_ids)

    notifier = Notifier(versions, tick_s=settings.notifier_tick_s)
    broadcast = Broadcast(database, tick_s=settings.notifier_tick_s)
    return Parts(settings, database, open_storage(settings), notifier, broadcast, Rates(settings.broker_url))


async def _parts(request: Request) -> Parts:
    # Asynchronous although it waits for nothing: FastAPI sends plain functions through the thread pool.
    return request.app.state.parts


PartsDep = Annotated[Parts, Depends(_parts)]

_bearer = HTTPBearer(auto_error=False, description="An API key: `Authorization: Bearer hlm_...`")
BearerDep = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def caller(request: Request, parts: PartsDep, credentials: BearerDep) -> Caller:
    """Who calls, by their key; known keys are believed for KEY_CACHE_S before the database is asked again."""
    if credentials is None:
        raise Unauthenticated("Send an API key: Authorization: Bearer <key>.")
    found = await known(parts, credentials)
    parts.used_keys.add(found.key_id)
    await _count(request, parts, found)
    return found


async def known(parts: Parts, credentials: HTTPAuthorizationCredentials) -> Caller:
    """Whose key it is, uncounted; Unauthenticated."""
    digest = hashlib.sha256(credentials.credentials.encode()).digest()
    expires_at, known = parts.callers.get(digest, (0.0, None))
    if known is not None and time.monotonic() < expires_at:
        return known
    found = await run_in_threadpool(_authenticate, parts, credentials.credentials)
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


async def admin(found: CallerDep) -> str:
    """The tenant whose keys, log and files this request may govern; Forbidden when its key is none of an admin."""
    return _allowed(found, "admin")


AdminDep = Annotated[str, Depends(admin)]


async def live_admin(found: CallerDep) -> str:
    """As `admin`, over what live events depend on; Forbidden for a test key."""
    tenant_id = _allowed(found, "admin")
    ensure_reach(found, LIVE)
    return tenant_id


LiveDep = Annotated[str, Depends(live_admin)]


def ensure_reach(found: Caller, mode: str) -> None:
    """Forbidden when a test key would change what is live."""
    if found.mode == TEST and mode == LIVE:
        raise Forbidden("A test key has no say over what is live.")


async def legacy_caller(request: Request, parts: PartsDep, credentials: BearerDep) -> Caller:
    """Who submits; without a key the default tenant, where the operator opened the legacy routes."""
    if credentials is None and parts.settings.legacy_open:
        found = await run_in_threadpool(_anyone, parts)
        await _count(request, parts, found)
        return found
    found = await caller(request, parts, credentials)
    _allowed(found, "submit")
    return found


LegacyCallerDep = Annotated[Caller, Depends(legacy_caller)]


async def by(found: CallerDep, request: Request) -> By:
    """Who the audit log names for what this request does."""
    return done_by(found, request)


ByDep = Annotated[By, Depends(by)]


def done_by(found: Caller, request: Request) -> By:
    """Who the audit log names for what `found` does with this request."""
    return {"actor": found.key_id, "request_id": request.scope.get("request_id")}


def _allowed(found: Caller, scope: str) -> str:
    if scope not in found.scopes:
        raise Forbidden(f"This key lacks the scope `{scope}`.")
    return found.tenant_id


async def _count(request: Request, parts: Parts, found: Caller) -> None:
    """Throttled when the tenant's minute is used up; every answer of such a tenant says what is left of it."""
    if not found.rate_per_minute:
        return
    window = await parts.rates.take(found.tenant_id, found.rate_per_minute)
    request.scope[RATE_HEADERS] = window.headers
    if window.exceeded:
        raise Throttled(f"At most {window.limit} requests a minute.", retry_after_s=window.reset_s)


def _authenticate(parts: Parts, key: str) -> Caller:
    with reading(parts.database) as session:
        found = tenants.authenticate(session, key)
        tenant = session.get_one(Tenant, found.tenant_id)
    return _caller(parts.settings, tenant, found.scopes, found.id, found.mode)


def _anyone(parts: Parts) -> Caller:
    with reading(parts.database) as session:
        tenant = tenants.named(session, tenants.DEFAULT)
    return _caller(parts.settings, tenant, ["submit"], "anyone")


def _caller(settings: Settings, tenant: Tenant, scopes: Collection[str], key_id: str, mode: str = LIVE) -> Caller:
    """The limits are those of the tenant's row, or else of the settings."""
    rate, cap = tenant.rate_per_minute, tenant.queued_cap
    return Caller(
        tenant.id,
        frozenset(scopes),
        key_id,
        mode,
        rate_per_minute=settings.rate_per_minute if rate is None else rate,
        queued_cap=settings.queued_cap if cap is None else cap,
    )
