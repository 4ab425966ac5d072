"""`hilum key`: API keys without HTTP, for the first of them and for an operator."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

import typer
from sqlalchemy.orm import Session

from api.terminal import TenantName, reads, when, writes
from shared import deeds, tenants
from shared.db import clock
from shared.errors import NotFound
from shared.models import LIVE, TEST, ApiKey, Tenant

key = typer.Typer(no_args_is_help=True, help="API keys of a tenant.")

KeyId = Annotated[str, typer.Argument(help="The id that `hilum key list` shows.")]


@key.command("create")
def create_key(
    tenant: TenantName = tenants.DEFAULT,
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    scope: Annotated[list[str] | None, typer.Option(help="submit, read, admin; all of them unless given.")] = None,
    test: Annotated[bool, typer.Option("--test", help="Its jobs are played: no film is read.")] = False,
    expires_in_days: Annotated[int | None, typer.Option(min=1, max=36_499, help="Never unless given.")] = None,
) -> None:
    """Make an API key; it is printed this once, and only its hash is kept."""
    unknown = set(scope or ()) - set(tenants.SCOPES)
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: the scopes are {', '.join(tenants.SCOPES)}")
    with writes() as session:
        expires_at = clock(session) + timedelta(days=expires_in_days) if expires_in_days else None
        made = tenants.issue_key(
            session,
            _owner(session, tenant).id,
            scope or tenants.SCOPES,
            name,
            mode=TEST if test else LIVE,
            expires_at=expires_at,
            by=deeds.typed_by(),
        )
    typer.echo(made.key)


@key.command("list")
def list_keys(tenant: TenantName = tenants.DEFAULT) -> None:
    """The keys of a tenant: id, how it begins, scopes, since when, last used, whether it still opens, name."""
    with reads() as session:
        now = clock(session)
        for row in tenants.list_keys(session, tenants.named(session, tenant).id):
            used = f"used {when(row.last_used_at)}"
            told = (row.id, f"{row.prefix}...", ",".join(row.scopes), when(row.created_at), used, _state(row, now))
            typer.echo("  ".join((*told, row.name)))


@key.command("rotate")
def rotate_key(
    key_id: KeyId,
    overlap_hours: Annotated[float, typer.Option(min=0, max=2160, help="The old key opens for so long still.")] = 24.0,
) -> None:
    """Replace a key by one of the same name, scopes and mode, which is printed this once."""
    with writes() as session:
        made = tenants.rotate_key(session, key_id, timedelta(hours=overlap_hours), by=deeds.typed_by())
    typer.echo(made.key)


@key.command("revoke")
def revoke_key(key_id: KeyId) -> None:
    """Make a key worthless; API processes may believe it for a few more seconds."""
    with writes() as session:
        tenants.revoke_key(session, key_id, by=deeds.typed_by())


def _state(row: ApiKey, now: datetime) -> str:
    if row.revoked_at:
        return f"revoked {when(row.revoked_at)}"
    if row.expires_at is None:
        return "valid"
    return f"{'expired' if row.expires_at <= now else 'valid until'} {when(row.expires_at)}"


def _owner(session: Session, name: str) -> Tenant:
    """The tenant called `name`; the default one is made when the first key is wanted for it."""
    try:
        return tenants.named(session, name)
    except NotFound:
        if name != tenants.DEFAULT:
            raise
        return tenants.create(session, name, by=deeds.typed_by())
