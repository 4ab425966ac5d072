"""Tenants, what each is allowed, and their keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from shared import deeds, ids, keys
from shared.db import clock
from shared.deeds import HILUM, By
from shared.errors import Conflict, Invalid, NotFound, Unauthenticated
from shared.models import LIVE, ApiKey, Tenant

DEFAULT = "default"
SCOPES = ("submit", "read", "admin")
LONGEST_LIFE = timedelta(days=36_500)
USE_NOTED_S = 60.0  # `last_used_at` is written at most this often


class Issued(NamedTuple):
    """A new key in full, which is stored nowhere, and its row."""

    key: str
    row: ApiKey


# ---------------------------------------------------------------- tenants


def default_id(session: Session) -> str:
    """The id of the default tenant; NotFound before the first start made it."""
    return named(session, DEFAULT).id


def named(session: Session, name: str) -> Tenant:
    """The tenant called `name`; NotFound."""
    found = session.scalars(select(Tenant).where(Tenant.name == name)).one_or_none()
    if found is None:
        raise NotFound(f"There is no tenant called {name}.")
    return found


def ensure_default(session: Session) -> str | None:
    """Make the default tenant with one key, which is returned; None when it is there already."""
    if session.scalars(select(Tenant.id).where(Tenant.name == DEFAULT)).first():
        return None
    return create_key(session, create(session, DEFAULT).id, name="first")


def create(session: Session, name: str, *, by: By = HILUM) -> Tenant:
    """A new tenant; Conflict when the name is taken."""
    if session.scalars(select(Tenant.id).where(Tenant.name == name)).first():
        raise Conflict(f"There is a tenant called {name} already.")
    tenant = Tenant(id=ids.new("ten"), name=name, created_at=clock(session))
    session.add(tenant)
    session.flush()
    deeds.record(session, "tenant.created", tenant.id, tenant_id=tenant.id, **by, name=name)
    return tenant


def configure(session: Session, tenant: Tenant, allowed: Mapping[str, int | None], *, by: By = HILUM) -> None:
    """Set some of rate_per_minute, queued_cap and retention_days; None: what the settings say."""
    before = {name: getattr(tenant, name) for name in allowed}
    for name, value in allowed.items():
        setattr(tenant, name, value)
    deeds.record(session, "tenant.changed", tenant.id, tenant_id=tenant.id, **by, before=before, after=dict(allowed))


# ---------------------------------------------------------------- keys


def authenticate(session: Session, key: str) -> ApiKey:
    """The row of a key; Unauthenticated when nobody made it, it was revoked or has expired."""
    found = session.scalars(select(ApiKey).where(ApiKey.digest == keys.digest(key))).one_or_none()
    if found is None or found.revoked_at is not None:
        raise Unauthenticated("This API key is not known.")
    if found.expires_at is not None and found.expires_at <= clock(session):
        raise Unauthenticated("This API key has expired.", code="key_expired")
    return found


def create_key(session: Session, tenant_id: str, scopes: Sequence[str] = SCOPES, name: str = "") -> str:
    """A new live key that never expires, in full: it is stored nowhere, so this is the only time it can be shown."""
    return issue_key(session, tenant_id, scopes, name).key


def issue_key(
    session: Session,
    tenant_id: str,
    scopes: Sequence[str] = SCOPES,
    name: str = "",
    *,
    mode: str = LIVE,
    expires_at: datetime | None = None,
    by: By = HILUM,
) -> Issued:
    """A new key of the tenant; Invalid when it would have expired already, or in more than LONGEST_LIFE."""
    now = clock(session)
    if expires_at is not None and not now < expires_at < now + LONGEST_LIFE:
        raise Invalid("A key must expire in the future, and within a hundred years; or never.")
    issued = _add_key(session, tenant_id, scopes, name, mode, now, expires_at)
    deeds.record(session, "key.created", issued.row.id, tenant_id=tenant_id, **by, **_told(issued.row))
    return issued


def rotate_key(
    session: Session, key_id: str, overlap: timedelta, *, tenant_id: str | None = None, by: By = HILUM
) -> Issued:
    """A key that replaces another, which expires after `overlap`; a key made to expire is replaced by one as lasting.

    NotFound, also for another tenant's; Conflict when the key has ended or was replaced before.
    """
    old, now = key_of(session, tenant_id, key_id), clock(session)
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        raise Conflict("This key has ended: make a new one.", code="key_ended")
    if old.replaced_by is not None:
        raise Conflict(f"This key was replaced by {old.replaced_by} already.", code="key_replaced")
    expires_at = old.expires_at and now + (old.expires_at - old.created_at)
    issued = _add_key(session, old.tenant_id, old.scopes, old.name, old.mode, now, expires_at)
    old.replaced_by = issued.row.id
    old.expires_at = min(now + overlap, old.expires_at or now + overlap)
    told = {"replaced_by": issued.row.id, "expires_at": old.expires_at.isoformat()}
    deeds.record(session, "key.rotated", old.id, tenant_id=old.tenant_id, **by, **told)
    return issued


def list_keys(session: Session, tenant_id: str, *, after: str = "", limit: int | None = None) -> Sequence[ApiKey]:
    """The keys of a tenant, oldest first, ended ones too; at most `limit` of those made after the key `after`."""
    found = select(ApiKey).where(ApiKey.tenant_id == tenant_id, ApiKey.id > after)
    return session.scalars(found.order_by(ApiKey.id).limit(limit)).all()


def key_of(session: Session, tenant_id: str | None, key_id: str) -> ApiKey:
    """The tenant's key (None: whosever it is), held until the commit: two who replace it see each other. NotFound."""
    found = select(ApiKey).where(ApiKey.id == key_id)
    if tenant_id is not None:
        found = found.where(ApiKey.tenant_id == tenant_id)
    row = session.scalars(found.with_for_update().execution_options(populate_existing=True)).one_or_none()
    if row is None:
        raise NotFound("There is no such key.")
    return row


def revoke_key(session: Session, key_id: str, *, tenant_id: str | None = None, by: By = HILUM) -> ApiKey:
    """Make a key worthless from now on, if it is not; NotFound, also for another tenant's."""
    found = key_of(session, tenant_id, key_id)
    if found.revoked_at is None:
        found.revoked_at = clock(session)
        deeds.record(session, "key.revoked", found.id, tenant_id=found.tenant_id, **by)
    return found


def note_use(session: Session, key_ids: Collection[str]) -> None:
    """Write that these keys were used about now, unless another process wrote so within USE_NOTED_S."""
    now = clock(session)
    stale = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at <= now - timedelta(seconds=USE_NOTED_S))
    used = update(ApiKey).where(ApiKey.id.in_(key_ids), stale)
    session.execute(used.values(last_used_at=now).execution_options(synchronize_session=False))


def _add_key(
    session: Session,
    tenant_id: str,
    scopes: Sequence[str],
    name: str,
    mode: str,
    now: datetime,
    expires_at: datetime | None,
) -> Issued:
    made = keys.make(mode)
    row = ApiKey(
        id=ids.new("key"),
        tenant_id=tenant_id,
        name=name,
        prefix=made.prefix,
        digest=made.digest,
        scopes=list(scopes),
        mode=mode,
        created_at=now,
        expires_at=expires_at,
    )
    session.add(row)
    session.flush()
    return Issued(made.key, row)


def _told(row: ApiKey) -> dict[str, object]:
    """What the audit log says of a new key."""
    expires = row.expires_at.isoformat() if row.expires_at else None
    return {"name": row.name, "scopes": row.scopes, "mode": row.mode, "expires_at": expires}
