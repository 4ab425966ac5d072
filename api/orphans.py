"""`hilum storage orphans`: blobs that no row names, and rows whose blob is gone.

A blob is stored before its row is written, and deleted after its row is gone: what died between the two left an orphan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Annotated, Any, TypeVar

import typer
from sqlalchemy import BigInteger, Column, MetaData, String, Table, insert, select, union
from sqlalchemy.orm import Session

from api import terminal
from shared import deeds
from shared.columns import Moment
from shared.db import Database, open_database, reading, transaction
from shared.models import Artifact, Job
from shared.settings import Settings
from shared.storage import Blob, Storage, open_storage

AT_ONCE = 1000

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="The blobs: films, masks, pictures.")

# What the store listed, for the time of one comparison: a database compares millions of keys better than we could.
_LISTED = Table(
    "listed_blobs",
    MetaData(),
    Column("key", String(1024), primary_key=True),
    Column("size", BigInteger),
    Column("modified_at", Moment),
    prefixes=["TEMPORARY"],
)


@dataclass(frozen=True)
class Compared:
    """How many blobs the store holds, those that no row names, and the keys that a row names and the store lacks."""

    blobs: int
    orphans: list[Blob]
    missing: list[str]


@app.callback()
def _group() -> None:
    """A group, although it has one command."""


@app.command()
def orphans(
    delete: Annotated[bool, typer.Option("--delete", help="Delete what no row names.")] = False,
    older_than_hours: Annotated[
        float, typer.Option(min=1.0, help="Younger ones may belong to an upload or a job that is under way.")
    ] = 24.0,
) -> None:
    """List blobs that no row names, and rows whose blob is missing; exit code 1 when one is missing."""
    settings = Settings()
    database, store = open_database(settings), open_storage(settings)
    before = datetime.now(UTC) - timedelta(hours=older_than_hours)
    found = compare(database, store, before)
    for blob in found.orphans:
        typer.echo(f"orphan   {blob.key}  {blob.size} bytes  {terminal.when(blob.modified_at)}")
    for key in found.missing:
        typer.echo(f"missing  {key}")
    size = sum(blob.size for blob in found.orphans)
    typer.echo(f"{found.blobs} blobs, {len(found.orphans)} orphans of {size} bytes, {len(found.missing)} missing")
    if delete:
        typer.echo(f"deleted {collect(database, store, found.orphans)}")
    raise typer.Exit(1 if found.missing else 0)


def compare(database: Database, store: Storage, before: datetime) -> Compared:
    """The store against the rows; only orphans that were written before a moment count. Unavailable."""
    with Session(database.engine) as session:
        blobs = _listed(session, store.list())
        unnamed = select(_LISTED.c.key).except_(_named())
        old = select(_LISTED).where(_LISTED.c.key.in_(unnamed), _LISTED.c.modified_at < before)
        found = [Blob(*row) for row in session.execute(old.order_by(_LISTED.c.key))]
        lacking = list(session.scalars(_named().except_(select(_LISTED.c.key))))
        session.rollback()  # the transaction, and with it the temporary table
    return Compared(blobs, found, sorted(_still_missing(database, store, lacking)))


def collect(database: Database, store: Storage, blobs: Iterable[Blob]) -> int:
    """Delete orphans, each after one more look whether a row names it by now; how many were deleted. Unavailable."""
    deleted = 0
    for some in _chunks(blobs):
        with reading(database) as session:
            named = set(session.scalars(_named([blob.key for blob in some])))
        for blob in some:
            if blob.key not in named:
                store.delete(blob.key)
                deleted += 1
    if deleted:
        with transaction(database) as session:
            deeds.record(session, "storage.collected", None, tenant_id=None, **deeds.typed_by(), blobs=deleted)
    return deleted


def _named(keys: Collection[str] | None = None) -> Any:
    """The query of every key that a row names, or of those among `keys`."""
    columns = (Job.blob_key.label("key"), Artifact.key)
    named = [select(column) if keys is None else select(column).where(column.in_(keys)) for column in columns]
    return select(union(*named).subquery().c.key)


def _listed(session: Session, blobs: Iterable[Blob]) -> int:
    """Write what the store holds into the temporary table; how many blobs that is."""
    _LISTED.create(session.connection())
    count = 0
    for some in _chunks(blobs):
        rows = [{"key": blob.key, "size": blob.size, "modified_at": blob.modified_at} for blob in some]
        session.execute(insert(_LISTED), rows)
        count += len(some)
    return count


def _still_missing(database: Database, store: Storage, keys: Iterable[str]) -> Iterator[str]:
    """Those of `keys` that a row names and the store lacks even now: jobs came and were purged while we listed."""
    for some in _chunks(keys):
        held = {blob.key for folder in {key.rpartition("/")[0] for key in some} for blob in store.list(folder)}
        absent = [key for key in some if key not in held]
        with reading(database) as session:
            yield from session.scalars(_named(absent))


def _chunks(items: Iterable[T]) -> Iterator[Sequence[T]]:
    remaining = iter(items)
    while some := list(islice(remaining, AT_ONCE)):
        yield some
