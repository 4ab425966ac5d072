"""Where a tenant wants its events: a webhook is made, changed, disabled and deleted here, and its secrets turn over."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from shared import deeds, ids, outbox
from shared.db import clock, written
from shared.deeds import HILUM, By
from shared.errors import Conflict, NotFound
from shared.models import Delivery, Destination
from shared.schemas import EventType, Status
from shared.settings import Settings

WEBHOOK = "webhook"
MOST_PER_TENANT = 50  # every event of a tenant writes a row for each of them
SECRET_BYTES = 32
CANCELED_AT_ONCE = 1000  # rows: whoever waits for this transaction does not wait for a pile of any height
GONE, FAILING, OWNER = "gone", "failing", "owner"  # why one is disabled


def create(
    session: Session, tenant_id: str, *, url: str, events: Sequence[EventType], description: str, by: By
) -> Destination:
    """A new webhook for a URL that is checked already; its secret is `secrets[0]`. Conflict when there are too many."""
    if session.scalars(_of(tenant_id).with_only_columns(func.count())).one() >= MOST_PER_TENANT:
        raise Conflict(f"There can be {MOST_PER_TENANT} webhooks: delete one first.", code="too_many_webhooks")
    row = Destination(
        id=ids.new("whk"),
        tenant_id=tenant_id,
        kind=WEBHOOK,
        address=url,
        events=list(dict.fromkeys(events)),
        secrets=[_new_secret()],
        description=description,
        enabled=True,
        created_at=clock(session),
    )
    session.add(row)
    session.flush()
    deeds.record(session, "webhook.created", row.id, tenant_id=tenant_id, **by, events=row.events)
    return row


def known(session: Session, tenant_id: str) -> Sequence[Destination]:
    """The tenant's webhooks, oldest first."""
    return session.scalars(_of(tenant_id).order_by(Destination.id)).all()


def get(session: Session, tenant_id: str, webhook_id: str, *, to_change: bool = False) -> Destination:
    """The tenant's webhook; NotFound, also for another's and for one that was deleted.

    Who asks for it `to_change` it is alone with it until the commit: of two who do, the second sees what the first
    has made. Events that are owed to it meanwhile do not wait.
    """
    found = _of(tenant_id).where(Destination.id == webhook_id)
    if to_change:
        found = found.with_for_update(key_share=True)
    row = session.scalars(found.execution_options(populate_existing=True)).one_or_none()
    if row is None:
        raise NotFound("There is no such webhook.")
    return row


def change(session: Session, row: Destination, columns: dict[str, Any], *, by: By) -> None:
    """Set some of address, events and description; another address starts with a clean record."""
    for name, value in columns.items():
        setattr(row, name, value)
    if "address" in columns:
        row.failing_since = None
    deeds.record(session, "webhook.changed", row.id, tenant_id=row.tenant_id, **by, fields=sorted(columns))


def rotate(session: Session, row: Destination, overlap: timedelta, *, by: By) -> None:
    """A new secret; the one before signs too until `overlap` has passed, and any older one does no more."""
    row.secrets = [_new_secret(), row.secrets[0]]
    row.old_secret_until = clock(session) + overlap
    until = row.old_secret_until.isoformat()
    deeds.record(session, "webhook.secret_rotated", row.id, tenant_id=row.tenant_id, **by, old_secret_until=until)


def live_secrets(row: Destination, now: datetime) -> list[str]:
    """The secrets that sign now, the newest first."""
    overlapping = row.old_secret_until is not None and row.old_secret_until > now
    return row.secrets if overlapping else row.secrets[:1]


def enable(session: Session, row: Destination, *, by: By) -> None:
    """Send to it (again) from now on; what was canceled meanwhile is sent when its owner asks for it."""
    if row.enabled:
        return
    row.enabled, row.disabled_because, row.failing_since = True, None, None
    deeds.record(session, "webhook.enabled", row.id, tenant_id=row.tenant_id, **by)


def disable(session: Session, row: Destination, because: str, *, by: By = HILUM) -> None:
    """Send to it no more and cancel what waits for it; unless its owner wished so, an event says it."""
    values = {"enabled": False, "disabled_because": because}
    was_enabled = written(session, _row(row.id).where(Destination.enabled).values(**values))
    session.refresh(row)
    cancel_waiting(session, row.id)
    if not was_enabled:
        return
    deeds.record(session, "webhook.disabled", row.id, tenant_id=row.tenant_id, **by, because=because)
    if because != OWNER:
        outbox.record(session, row.tenant_id, None, "webhook.disabled", webhook=row.id, because=because)


def delete(session: Session, row: Destination, *, by: By) -> None:
    """It exists no more for its owner; its secrets are forgotten, its deliveries are kept until they are purged."""
    row.enabled, row.deleted_at, row.secrets = False, clock(session), []
    cancel_waiting(session, row.id)
    deeds.record(session, "webhook.deleted", row.id, tenant_id=row.tenant_id, **by)


def answered(session: Session, destination_id: str) -> None:
    """A delivery arrived: if it was failing, it is not any more."""
    failing = _row(destination_id).where(Destination.failing_since.is_not(None))
    session.execute(failing.values(failing_since=None))


def failed(session: Session, settings: Settings, destination_id: str, *, gone: bool) -> None:
    """A delivery did not arrive: a receiver that is gone, or has failed for too long, is disabled."""
    now = clock(session)
    session.execute(_row(destination_id).where(Destination.failing_since.is_(None)).values(failing_since=now))
    row = session.get_one(Destination, destination_id, populate_existing=True)
    since = row.failing_since or now
    if gone or now - since > timedelta(hours=settings.webhook_disable_hours):
        disable(session, row, GONE if gone else FAILING)
    elif not row.enabled:
        cancel_waiting(session, row.id)


def cancel_waiting(session: Session, destination_id: str) -> int:
    """End what waits for a destination that gets nothing any more; its log shows it, and its owner can ask for it.

    How many: at most CANCELED_AT_ONCE, and none that another transaction holds. The sweeper ends the rest of a pile.
    """
    queued = (Delivery.destination_id == destination_id) & (Delivery.status == Status.QUEUED.value)
    chosen = select(Delivery.id).where(queued).order_by(Delivery.due_at, Delivery.id).limit(CANCELED_AT_ONCE)
    found = session.scalars(chosen.with_for_update(skip_locked=True)).all()
    values = {"status": Status.CANCELED.value, "finished_at": clock(session), "error": outbox.DISABLED.model_dump()}
    ended = update(Delivery).where(Delivery.id.in_(found), queued).values(**values)
    return written(session, ended.execution_options(synchronize_session=False)) if found else 0


def _of(tenant_id: str) -> Any:
    return select(Destination).where(
        Destination.tenant_id == tenant_id, Destination.kind == WEBHOOK, Destination.deleted_at.is_(None)
    )


def _row(destination_id: str) -> Any:
    return update(Destination).where(Destination.id == destination_id).execution_options(synchronize_session=False)


def _new_secret() -> str:
    """A secret as Standard Webhooks writes it: a prefix, and random bytes in Base64."""
    return "whsec_" + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()
