"""The audit log: who did what and when, written in the transaction of the deed; the database refuses to change it."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NotRequired, TypedDict

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared import ids
from shared.errors import Invalid
from shared.models import Deed
from shared.ranges import within
from shared.schemas import Frozen

AT_ONCE = 500


class By(TypedDict):
    """Who does something, as `record` takes it: the id of a key, `cli:<user>`, or `hilum` of its own accord."""

    actor: str
    request_id: NotRequired[str | None]


HILUM: By = {"actor": "hilum"}


def typed_by() -> By:
    """Who does what is typed here: the user of this process, whatever the environment says."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run as a number that nobody gave a name
        name = str(os.getuid())
    return {"actor": f"cli:{name}"[:64]}


class DeedView(Frozen):
    """One entry of the audit log; ids and codes, never patient data."""

    id: str
    at: datetime
    tenant: str | None
    actor: str
    action: str
    subject: str | None
    request_id: str | None
    detail: dict[str, Any]


class DeedPage(Frozen):
    """One page of the audit log, newest first; `next_cursor` is null on the last page."""

    deeds: list[DeedView]
    next_cursor: str | None = None


def record(
    session: Session,
    action: str,
    subject: str | None,
    *,
    tenant_id: str | None,
    actor: str,
    request_id: str | None = None,
    **detail: Any,
) -> None:
    """Write that `actor` did `action` to `subject`, in the transaction in which it is done; never patient data."""
    # The clock of this process, as in the id: asking the database for its own would cost every submit a round trip.
    session.add(
        Deed(
            id=ids.new("ded"),
            tenant_id=tenant_id,
            at=datetime.now(UTC),
            actor=actor,
            action=action,
            subject=subject,
            request_id=request_id,
            detail=detail,
        )
    )


def page(session: Session, tenant_id: str, *, limit: int, cursor: str | None = None) -> DeedPage:
    """At most `limit` deeds of a tenant older than `cursor`, newest first; Invalid when the cursor is none of ours."""
    if cursor is not None and not ids.PATTERN.fullmatch(cursor):
        raise Invalid("The cursor is none that a page gave out.", code="invalid_cursor")
    found = _of(tenant_id, "ded_", cursor or "ded_8", descending=True)
    rows: Sequence[Deed] = session.scalars(found.limit(limit + 1)).all()
    more = len(rows) > limit
    return DeedPage(deeds=[view(row) for row in rows[:limit]], next_cursor=rows[limit - 1].id if more else None)


def export(session: Session, *, tenant_id: str | None = None, since: datetime | None = None) -> Iterator[DeedView]:
    """Every deed, or those of a tenant, oldest first, from `since` on; the log is never held in memory as a whole."""
    # By pages and not by a cursor of the database, which would need one transaction for as long as its reader takes.
    after = "ded_"
    while rows := session.scalars(_since(_of(tenant_id, after, "ded_8"), since).limit(AT_ONCE)).all():
        yield from map(view, rows)
        after = rows[-1].id
        session.expunge_all()


def _of(tenant_id: str | None, above: str, below: str, *, descending: bool = False) -> Any:
    """The deeds between two ids: of a tenant a range of its index, else of the primary key."""
    if tenant_id is None:
        return within(select(Deed), (Deed.id,), (above,), (below,), descending=descending)
    key = (Deed.tenant_id, Deed.id)
    return within(select(Deed), key, (tenant_id, above), (tenant_id, below), descending=descending)


def _since(found: Any, moment: datetime | None) -> Any:
    return found if moment is None else found.where(Deed.at >= moment)


def view(row: Deed) -> DeedView:
    """The deed as its readers see it."""
    return DeedView(
        id=row.id,
        at=row.at,
        tenant=row.tenant_id,
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        request_id=row.request_id,
        detail=row.detail,
    )
