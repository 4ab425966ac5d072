"""`hilum tenant | key | job`: what an operator reads and changes in the database without HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated

import typer
from sqlalchemy import select
from sqlalchemy.orm import Session

from shared import tenants, views
from shared.db import open_database, reading, transaction
from shared.errors import NotFound
from shared.models import Tenant
from shared.schemas import Status
from shared.settings import Settings

tenant = typer.Typer(no_args_is_help=True, help="Tenants: each sees its own jobs only.")
key = typer.Typer(no_args_is_help=True, help="API keys of a tenant.")
job = typer.Typer(no_args_is_help=True, help="Jobs, as their tenant sees them.")
GROUPS = {"tenant": tenant, "key": key, "job": job}

TenantName = Annotated[str, typer.Option("--tenant", help="Name of the tenant.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]


@tenant.command("create")
def create_tenant(name: Annotated[str, typer.Argument(help="A name of its own.")]) -> None:
    """Make a tenant; prints its id."""
    with _writing() as session:
        made = tenants.create(session, name).id
    typer.echo(made)


@tenant.command("list")
def list_tenants() -> None:
    """Every tenant: id, name, since when."""
    with _reading() as session:
        for row in session.scalars(select(Tenant).order_by(Tenant.id)):
            typer.echo(f"{row.id}  {_when(row.created_at)}  {row.name}")


@key.command("create")
def create_key(
    tenant: TenantName = tenants.DEFAULT,
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    scope: Annotated[list[str] | None, typer.Option(help="submit, read, admin; all of them unless given.")] = None,
) -> None:
    """Make an API key; it is printed this once, and only its hash is kept."""
    unknown = set(scope or ()) - set(tenants.SCOPES)
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: the scopes are {', '.join(tenants.SCOPES)}")
    with _writing() as session:
        made = tenants.create_key(session, _owner(session, tenant).id, scope or tenants.SCOPES, name)
    typer.echo(made)


@key.command("list")
def list_keys(tenant: TenantName = tenants.DEFAULT) -> None:
    """The keys of a tenant: id, how it begins, scopes, since when, whether it was revoked."""
    with _reading() as session:
        for row in tenants.list_keys(session, tenants.named(session, tenant).id):
            until = f"revoked {_when(row.revoked_at)}" if row.revoked_at else "valid"
            typer.echo(
                f"{row.id}  {row.prefix}...  {','.join(row.scopes)}  {_when(row.created_at)}  {until}  {row.name}"
            )


@key.command("revoke")
def revoke_key(key_id: Annotated[str, typer.Argument(help="The id that `hilum key list` shows.")]) -> None:
    """Make a key worthless; API processes may believe it for a few more seconds."""
    with _writing() as session:
        tenants.revoke_key(session, key_id)


@job.command("list")
def list_jobs(
    tenant: TenantName = tenants.DEFAULT,
    status: Annotated[Status | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: AsJson = False,
) -> None:
    """The newest jobs of a tenant."""
    with _reading() as session:
        page = views.page(session, tenants.named(session, tenant).id, limit=limit, status=status)
    for found in page.jobs:
        if as_json:
            typer.echo(found.model_dump_json())
        else:
            said = found.result.top_class if found.result else found.reason.code if found.reason else ""
            said = found.error.code if found.error else said
            typer.echo(f"{found.id}  {_when(found.created_at)}  {found.status:<9}  {found.priority:<7}  {said}")


@job.command("show")
def show_job(job_id: Annotated[str, typer.Argument()], tenant: TenantName = tenants.DEFAULT) -> None:
    """One job in full, as JSON."""
    with _reading() as session:
        found = views.view(session, views.get(session, tenants.named(session, tenant).id, job_id))
    typer.echo(json.dumps(found.model_dump(mode="json"), indent=2, ensure_ascii=False))


def _owner(session: Session, name: str) -> Tenant:
    """The tenant called `name`; the default one is made when the first key is wanted for it."""
    try:
        return tenants.named(session, name)
    except NotFound:
        if name != tenants.DEFAULT:
            raise
        return tenants.create(session, name)


@contextmanager
def _reading() -> Iterator[Session]:
    with reading(open_database(Settings())) as session:
        yield session


@contextmanager
def _writing() -> Iterator[Session]:
    with transaction(open_database(Settings())) as session:
        yield session


def _when(moment: datetime | None) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}" if moment else "-"
