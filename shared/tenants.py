"""Tenants and their keys."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared import ids, keys
from shared.db import clock
from shared.errors import Conflict, NotFound, Unauthenticated
from shared.models import ApiKey, Tenant

DEFAULT = "default"
SCOPES = ("submit", "read", "admin")


def authenticate(session: Session, key: str) -> tuple[str, list[str]]:
    """The tenant and the scopes of a key; Unauthenticated when nobody made it, it was revoked or has expired."""
    found = session.scalars(select(ApiKey).where(ApiKey.digest == keys.digest(key))).one_or_none()
    if found is None or found.revoked_at is not None:
        raise Unauthenticated("This API key is not known.")
    if found.expires_at is not None and found.expires_at <= clock(session):
        raise Unauthenticated("This API key has expired.", code="key_expired")
    return found.tenant_id, found.scopes


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


def create(session: Session, name: str) -> Tenant:
    """A new tenant; Conflict when the name is taken."""
    if session.scalars(select(Tenant.id).where(Tenant.name == name)).first():
        raise Conflict(f"There is a tenant called {name} already.")
    tenant = Tenant(id=ids.new("ten"), name=name, created_at=clock(session))
    session.add(tenant)
    session.flush()
    return tenant


def create_key(session: Session, tenant_id: str, scopes: Sequence[str] = SCOPES, name: str = "") -> str:
    """A new key of the tenant, in full: it is stored nowhere, so this is the only time it can be shown."""
    made = keys.make()
    session.add(
        ApiKey(
            id=ids.new("key"),
            tenant_id=tenant_id,
            name=name,
            prefix=made.prefix,
            digest=made.digest,
            scopes=list(scopes),
            created_at=clock(session),
        )
    )
    session.flush()
    return made.key


def list_keys(session: Session, tenant_id: str) -> Sequence[ApiKey]:
    """The keys of a tenant, oldest first, revoked ones too."""
    return session.scalars(select(ApiKey).where(ApiKey.tenant_id == tenant_id).order_by(ApiKey.id)).all()


def revoke_key(session: Session, key_id: str) -> ApiKey:
    """Make a key worthless from now on; NotFound."""
    found = session.get(ApiKey, key_id)
    if found is None:
        raise NotFound(f"There is no key {key_id}.")
    found.revoked_at = found.revoked_at or clock(session)
    return found
