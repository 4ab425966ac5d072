"""`hilum tenant | job | audit | purge`: what an operator reads and changes in the database without HTTP."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from sqlalchemy import select

from api import credentials
from api.terminal import TenantName, reads, when, writes
from shared import deeds, tenants, views
from shared import purge as purging
from shared.db import clock, open_database, reading
from shared.errors import Misconfigured
from shared.models import Tenant
from shared.purge import Purged
from shared.schemas import Status
from shared.settings import Settings
from shared.storage import open_storage

tenant = typer.Typer(no_args_is_help=True, help="Tenants: each sees its own jobs only.")
job = typer.Typer(no_args_is_help=True, help="Jobs, as their tenant sees them.")
audit = typer.Typer(no_args_is_help=True, help="Who did what, and when.")
GROUPS = {"tenant": tenant, "key": credentials.key, "job": job, "audit": audit}

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]
BY_SETTINGS = "default"


def _limit(text: str) -> int:
    """A whole number, or -1 for `default`."""
    if text == BY_SETTINGS:
        return -1
    if not text.isdecimal() or int(text) > 10**6:
        raise typer.BadParameter(f"a whole number up to a million, or `{BY_SETTINGS}`")
    return int(text)


Limit = Annotated[int | None, typer.Option(parser=_limit, metavar="N|default", help="0: none; default: the setting.")]


@tenant.command("create")
def create_tenant(name: Annotated[str, typer.Argument(help="A name of its own.")]) -> None:
    """Make a tenant; prints its id."""
    with writes() as session:
        made = tenants.create(session, name, by=deeds.typed_by()).id
    typer.echo(made)


@tenant.command("list")
def list_tenants() -> None:
    """Every tenant: id, since when, name, and what it is allowed where that is not the settings' default."""
    with reads() as session:
        for row in session.scalars(select(Tenant).order_by(Tenant.id)):
            own = {name: getattr(row, name) for name in ("rate_per_minute", "queued_cap", "retention_days")}
            told = [f"{name}={value}" for name, value in own.items() if value is not None]
            typer.echo("  ".join((row.id, when(row.created_at), row.name, *told)))


@tenant.command("set")
def set_tenant(
    name: Annotated[str, typer.Argument(help="Name of the tenant.")],
    rate_per_minute: Limit = None,
    queued_cap: Limit = None,
    retention_days: Limit = None,
) -> None:
    """Allow a tenant so many requests a minute, so many waiting jobs, and keep its ended jobs for so many days."""
    given = {"rate_per_minute": rate_per_minute, "queued_cap": queued_cap, "retention_days": retention_days}
    allowed = {key: None if value < 0 else value for key, value in given.items() if value is not None}
    if not allowed:
        raise typer.BadParameter("say what to set: --rate-per-minute, --queued-cap or --retention-days")
    with writes() as session:
        tenants.configure(session, tenants.named(session, name), allowed, by=deeds.typed_by())


@job.command("list")
def list_jobs(
    tenant: TenantName = tenants.DEFAULT,
    status: Annotated[Status | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: AsJson = False,
) -> None:
    """The newest jobs of a tenant."""
    with reads() as session:
        page = views.page(session, tenants.named(session, tenant).id, limit=limit, status=status)
    for found in page.jobs:
        if as_json:
            typer.echo(found.model_dump_json())
        else:
            said = found.result.top_class if found.result else found.reason.code if found.reason else ""
            said = found.error.code if found.error else said
            typer.echo(f"{found.id}  {when(found.created_at)}  {found.status:<9}  {found.priority:<7}  {said}")


@job.command("show")
def show_job(job_id: Annotated[str, typer.Argument()], tenant: TenantName = tenants.DEFAULT) -> None:
    """One job in full, as JSON."""
    with reads() as session:
        found = views.view(session, views.get(session, tenants.named(session, tenant).id, job_id))
    typer.echo(json.dumps(found.model_dump(mode="json"), indent=2, ensure_ascii=False))


@audit.command("export")
def export_audit(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    since: Annotated[datetime | None, typer.Option(help="Only from this moment on, in UTC.")] = None,
) -> None:
    """The audit log as JSON lines, oldest first."""
    with reads() as session:
        tenant_id = tenants.named(session, tenant).id if tenant else None
        moment = since.replace(tzinfo=UTC) if since else None
        for deed in deeds.export(session, tenant_id=tenant_id, since=moment):
            typer.echo(deed.model_dump_json())


def purge(
    tenant: TenantName,
    older_than_days: Annotated[int | None, typer.Option(min=1, max=36_500, help="Ended so long ago.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every job that has ended.")] = False,
) -> None:
    """Delete ended jobs of a tenant for good, with their files and events; else those past the tenant's retention."""
    if everything and older_than_days is not None:
        raise typer.BadParameter("--all or --older-than-days, not both")
    settings = Settings()
    database, storage = open_database(settings), open_storage(settings)
    with reading(database) as session:
        row, now = tenants.named(session, tenant), clock(session)
    days = older_than_days or purging.days_of(row, settings)
    if not days and not everything:
        raise Misconfigured(f"The jobs of {tenant} are kept for ever: say --older-than-days or --all.")
    before = None if everything else now - timedelta(days=days)
    total = Purged()
    while (purged := purging.purge_ended(database, storage, row.id, before=before, by=deeds.typed_by())).jobs:
        total += purged
    typer.echo(f"{total.jobs} jobs and {total.files} files purged")
    if total.left:
        typer.echo(f"{total.left} files could not be deleted now; they belong to no job any more", err=True)
